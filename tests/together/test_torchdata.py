"""torchdata's pipelines of nodes, and its StatefulDataLoader with data sets that keep their own state."""

import pytest
import torch
from torch.utils.data import RandomSampler

from camshaft.engine import Engine, Events
from camshaft.handlers import Checkpoint

torchdata = pytest.importorskip("torchdata", reason="torchdata is not installed: pip install torchdata")

from torchdata import nodes  # noqa: E402
from torchdata.stateful_dataloader import StatefulDataLoader  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore:'set_vital' is deprecated")  # torchdata 0.11 calls it


def plain():
    return nodes.Loader(nodes.Batcher(nodes.IterableWrapper(range(20)), 3, drop_last=False))


def shuffled():
    sampler = nodes.SamplerWrapper(RandomSampler(range(20)))  # draws from the global generator
    return nodes.Loader(nodes.Batcher(nodes.Mapper(sampler, lambda index: 10 * index), 3, drop_last=False))


def in_parallel():
    mapped = nodes.ParallelMapper(nodes.IterableWrapper(range(20)), lambda index: index + 0.5, num_workers=2)
    return nodes.Loader(nodes.Prefetcher(nodes.Batcher(mapped, 3, drop_last=False), prefetch_factor=2))


class Counting(torch.utils.data.IterableDataset):
    def __init__(self):
        self.next = 0

    def __iter__(self):
        while self.next < 20:
            self.next += 1
            yield self.next
        self.next = 0

    def state_dict(self):
        return {"next": self.next}

    def load_state_dict(self, state):
        self.next = state["next"]


def stateful():
    return StatefulDataLoader(Counting(), batch_size=3)


def seen_in(directory, build, kill_at=None, seed=0):
    """The batches of a run by iteration, which may be killed."""
    torch.manual_seed(seed)
    seen = {}
    engine = Engine(lambda engine, batch: seen.update({engine.state.iteration: torch.as_tensor(batch).tolist()}))
    engine.attach(Checkpoint(directory, at=Events.ITERATION_COMPLETED | Events.EPOCH_COMPLETED))

    @engine.on(Events.ITERATION_STARTED(once=kill_at or 1000))
    def kill(engine):
        raise KeyboardInterrupt

    try:
        engine.run(build(), max_epochs=3, epoch_length=7)
    except KeyboardInterrupt:
        assert kill_at is not None
    return seen


@pytest.mark.parametrize("build", [plain, shuffled, in_parallel, stateful])
@pytest.mark.parametrize("killed_at", [4, 11])
def test_a_killed_run_goes_on_with_the_batches_that_come_next(tmp_path, build, killed_at):
    whole = seen_in(tmp_path / "whole", build)
    assert len(whole) == 21
    first = seen_in(tmp_path / "killed", build, killed_at)
    assert list(first) == list(range(1, killed_at))
    then = seen_in(tmp_path / "killed", build, seed=1)
    assert list(then) == list(range(killed_at, 22))
    assert first | then == whole
