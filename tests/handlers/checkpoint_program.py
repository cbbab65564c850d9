"""What each of several processes does that make checkpoints together; tests/handlers/test_checkpoint_distributed.py
starts it and reads the JSON that it writes.

    python tests/handlers/checkpoint_program.py SCENARIOS FOLDER

Kills are simulated: while a run goes on, its directory is copied at many moments, and the same program is started anew
in each copy. Real kills are in tests/chaos and at the end of that file.
"""

import json
import os
import resource
import shutil
import signal
import sys
import warnings
from pathlib import Path

import torch
import torch.distributed as dist
from ignite.engine import Engine as IgniteEngine
from ignite.metrics import Accuracy, Loss
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

from camshaft import (
    EMA,
    Checkpoint,
    CSVLogger,
    DataParallel,
    DistributedSampling,
    EarlyStopping,
    Engine,
    Evaluate,
    Events,
    GradientAccumulation,
    Metrics,
    OptimizerStep,
    seed_everything,
)
from camshaft.engine.distributed import gather, initialise, rank, world_size
from camshaft.handlers.checkpoint_ranks import read_for_this_rank
from camshaft.handlers.checkpoint_store import CheckpointStore
from camshaft.handlers.run_lock import RunLock
from tests.resumption import different

torch.set_num_threads(1)
OFTEN = Events.ITERATION_COMPLETED | Events.EPOCH_COMPLETED


class Noisy(Dataset):
    """Samples with noise, drawn where they are loaded."""

    def __init__(self, samples=40, noise=0.1, dtype=torch.float32):
        self.noise = noise
        self.inputs = torch.randn(samples, 4, generator=torch.Generator().manual_seed(0), dtype=dtype)
        self.labels = (self.inputs.sum(1) > 0).long()

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, index):
        return self.inputs[index] + (self.noise * torch.randn(4) if self.noise else 0), self.labels[index]


class Study:
    """A classifier with dropout, in parallel."""

    def __init__(
        self,
        directory,
        *,
        engine_class=Engine,
        together=8,
        workers=0,
        sharded=False,
        exact=False,
        samples=40,
        **options,
    ):
        if exact:
            self.model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Identity(), nn.Linear(8, 2)).double()
            data = Noisy(samples, noise=0, dtype=torch.float64)
        else:
            self.model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.3), nn.Linear(8, 2))
            data = Noisy(samples)
        if sharded:
            self.model = sharded_over_all(self.model)
        self.optimizer = torch.optim.Adam(self.model.parameters(), 0.05)
        self.loader = DataLoader(data, together // world_size(), shuffle=True, num_workers=workers)
        self.engine = engine_class(lambda engine, batch: F.cross_entropy(self.model(batch[0]), batch[1]))
        self.checkpoint = Checkpoint(
            directory, **{"at": OFTEN, "model": self.model, "optimizer": self.optimizer, **options}
        )
        self.handlers = [OptimizerStep(self.optimizer), DistributedSampling(), self.checkpoint]
        if not sharded:
            self.handlers.append(DataParallel(self.model))
        else:
            self.handlers[1].check = lambda engine: None  # the gradients are exchanged by the shards

    def run(self, *handlers, max_epochs=2, watch=None):
        for handler in (*self.handlers, *handlers):
            handler.attach(self.engine)
        if watch is not None:
            for event in (Events.ITERATION_STARTED, Events.EPOCH_COMPLETED):
                self.engine.add_event_handler(event, watch)
        return self.engine.run(self.loader, max_epochs=max_epochs)


def sharded_over_all(model):
    mesh = init_device_mesh("cpu", (world_size(),))
    for layer in (model[0], model[3]):
        fully_shard(layer, mesh=mesh)
    return fully_shard(model, mesh=mesh)


def much(directory, **options):
    """All that has state, at once."""
    study = Study(directory, monitor="val_accuracy", **options)
    evaluator = Engine(lambda engine, batch: (study.model(batch[0]) + 0.01 * torch.randn(2), batch[1]))
    evaluator.attach(Metrics(accuracy=Accuracy(), loss=Loss(F.cross_entropy)))
    ema = EMA(study.model, decay=0.9)
    more = [
        GradientAccumulation(2),
        ema,
        Metrics(train_accuracy=Accuracy(output_transform=lambda loss: (torch.rand(4) > 0.5, torch.rand(4) > 0.5))),
        Evaluate(evaluator, DataLoader(Noisy(10), 4), ema=ema),
        EarlyStopping("val_accuracy", patience=9, restore_best=True),
        *([] if "NOCSV" in os.environ else [CSVLogger(directory, every=1)]),
    ]
    return study, more


def exact(directory, **options):
    """What is the same on any number of processes, but for the order of additions."""
    return Study(directory, exact=True, **options), [GradientAccumulation(2)]


def little(directory, **options):
    """No more than it takes."""
    return Study(directory, **options), [GradientAccumulation(2)]


def outcome_in(directory):
    """All that this rank finds in the last checkpoint of a run."""
    store = CheckpointStore(directory / "checkpoints")
    last = store.list()[-1]
    store.verify(last.path)
    logs = {path.name: path.read_text() for path in directory.glob("metrics.csv")}
    return {**read_for_this_rank(store, last.path, None, {}), "name": last.path.name, "logs": logs}


def differences_after_kills(build, folder, moments=None, **options):
    """What differs between a run and those that were killed and went on.

    The moments are the starts of iterations 1 to 5, the end of the first epoch, and the same of the second.
    """
    whole = folder / "whole"
    copies = []

    def copy_directory(engine):
        copies.append(folder / f"killed-{len(copies)}-at-{engine.state.iteration}-{engine.last_event_name.name}")
        while rank() == 0 and not copies[-1].exists():
            try:
                shutil.copytree(whole, copies[-1])
            except shutil.Error:  # written to in the background meanwhile
                shutil.rmtree(copies[-1])

    seed_everything(1)
    study, more = build(whole, **options)
    study.run(*more, watch=copy_directory)
    expected = outcome_in(whole)
    weights = [parameter.detach().clone() for parameter in study.model.parameters()]
    found = []
    for number, copy in enumerate(copies):
        if moments is not None and number not in moments:
            continue
        dist.barrier()  # copied
        begun = CheckpointStore(copy / "checkpoints").list()
        dist.barrier()
        seed_everything(number + 2 if begun else 1)
        study, more = build(copy, **options)
        study.run(*more)
        found += [f"{copy.name}: {line}" for line in different(expected, outcome_in(copy))]
        for one, other in zip(weights, study.model.parameters(), strict=True):
            if not torch.equal(local(one), local(other.detach())):
                found.append(f"{copy.name}: the weights of rank {rank()}")
    return found


def local(tensor):
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor


def whole(tensor):
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def error_of(function):
    try:
        function()
    except Exception as error:  # noqa: BLE001 - whatever the run ends with
        return type(error).__name__, str(error)
    return None


# ------------------------------------------------------------------------------------------------------- scenarios


def everything(folder):
    return differences_after_kills(much, folder, moments={0, 2, 3, 5, 7, 10})


def everything_at_two_moments(folder):
    return differences_after_kills(much, folder, moments={3, 8})


def workers(folder):
    return differences_after_kills(little, folder, moments={7}, workers=2)


def in_the_background(folder):
    return differences_after_kills(much, folder, moments={2, 5, 9}, asynchronous=True)


def on_ignites_engine(folder):
    return differences_after_kills(little, folder, moments={3, 8}, engine_class=IgniteEngine)


def sharded(folder):
    return differences_after_kills(little, folder, moments={2, 5, 8}, sharded=True)


def sharded_at_two_moments(folder):
    return differences_after_kills(little, folder, moments={3, 8}, sharded=True)


def sharded_in_the_background(folder):
    return differences_after_kills(little, folder, moments={3, 8}, sharded=True, asynchronous=True)


def of_one_rank_broken(folder):
    study, more = little(folder)
    study.run(*more, max_epochs=1)
    if rank() == 0:
        last = CheckpointStore(folder / "checkpoints").list()[-1].path
        content = bytearray((last / "rank-1.pt").read_bytes())
        content[len(content) // 2] ^= 1
        (last / "rank-1.pt").write_bytes(content)
    dist.barrier()
    study, more = little(folder)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        state = study.run(*more, max_epochs=2)
    return {
        "iteration": state.iteration,
        "warnings": [str(one.message) for one in caught if "broken" in str(one.message)],
    }


class Picky:
    """Takes no state but its own."""

    def state_dict(self):
        return {}

    def load_state_dict(self, state):
        if state:
            raise ValueError("not this one")


def does_not_fit_one_rank(folder):
    study, more = little(folder, other=nn.Linear(1, 1))
    study.run(*more, max_epochs=1)
    other = nn.Linear(1, 1) if rank() == 0 else Picky()
    seed_everything(5)
    study, more = little(folder, other=other)
    before = study.model[0].weight.detach().clone()
    error = error_of(lambda: study.run(*more, max_epochs=2))
    return {"error": error, "changed": not torch.equal(before, study.model[0].weight)}


def never(folder):
    study, more = little(folder)
    study.run(*more, max_epochs=1)
    study, more = little(folder, resume="never")
    return error_of(lambda: study.run(*more, max_epochs=1))


def directories_differ(folder):
    study, more = little(folder / f"rank-{rank()}")
    return error_of(lambda: study.run(*more, max_epochs=1))


def directory_taken(folder):
    holder = None
    if rank() == 0:
        folder.mkdir(parents=True)
        read, write = os.pipe()
        holder = os.fork()
        if holder == 0:
            lock = RunLock(folder)
            lock.acquire()
            os.write(write, b"x")
            signal.pause()
        os.read(read, 1)
    study, more = little(folder)
    error = error_of(lambda: study.run(*more, max_epochs=1))
    if holder is not None:
        os.kill(holder, signal.SIGKILL)
        os.waitpid(holder, 0)
    return error


def full_disk(folder, on_error="raise", full_on=0, **options):
    """The first checkpoint is written, for the others there is no space on one of the ranks."""
    study, more = little(folder, on_error=on_error, at=Events.EPOCH_COMPLETED, **options)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)

    def fill_disk():
        if rank() == full_on:
            resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))

    study.engine.add_event_handler(Events.EPOCH_STARTED(once=2), fill_disk)
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            error = error_of(lambda: study.run(*more, max_epochs=2))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    gather(None)
    left = sorted(path.name for path in (folder / "checkpoints").iterdir())
    told = [str(one.message) for one in caught if "could not be written" in str(one.message)]
    return {"error": error, "left": left, "warnings": told}


def full_disk_of_another_rank(folder):
    return full_disk(folder, full_on=1)


def full_disk_warned(folder):
    return full_disk(folder, on_error="warn")


def full_disk_in_the_background(folder):
    return full_disk(folder, asynchronous=True)


def full_disk_of_shards(folder):
    return full_disk(folder, sharded=True, full_on=1)


def go_on(folder, build=None, together=8, **options):
    """Goes on with a run that another number of processes has begun, to the end of its second epoch."""
    study, more = (build or exact)(folder, together=together, **options)
    seen = []
    study.engine.add_event_handler(
        Events.ITERATION_COMPLETED, lambda engine: seen.append([engine.state.epoch, engine.state.iteration])
    )
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        study.run(*more)
    return {
        "seen": seen,
        "lines": [str(one.message) for one in caught if "was saved by" in str(one.message)],
        "steps": study.engine.state.optimizer_step,
        "weights": torch.cat([whole(weight.detach()).flatten() for weight in study.model.parameters()]).tolist(),
        "random": torch.rand(1).item(),
    }


def go_on_sharded(folder):
    return go_on(folder, sharded=True)


def go_on_with_much(folder):
    return go_on(folder, much)


def go_on_with_other_batches(folder):
    return go_on(folder, together=16)


def go_on_with_batches_that_do_not_fit(folder):
    return go_on(folder, together=20)


def go_on_with_other_data(folder):
    return error_of(lambda: go_on(folder, together=16, samples=80))


def begin(folder, build=None, **options):
    """A run that is killed in the midst of its second epoch and of a group of micro-batches."""
    seed_everything(1)
    study, more = (build or exact)(folder, **options)

    def stop(engine):
        if engine.state.iteration == 7:
            raise InterruptedError

    study.engine.add_event_handler(Events.ITERATION_STARTED, stop)
    error_of(lambda: study.run(*more))


def begin_sharded(folder):
    begin(folder, sharded=True)


def begin_with_much(folder):
    begin(folder, much)


def undisturbed(folder):
    seed_everything(1)
    return go_on(folder)


def main(scenarios, folder):
    initialise()
    results = {}
    for scenario in scenarios.split(","):
        name, _, place = scenario.partition("@")
        results[scenario] = globals()[name](folder / (place or name))
        if world_size() > 1:
            gather(None)
    (folder / f"results-{world_size()}-{rank()}.json").write_text(json.dumps(results))


if __name__ == "__main__":
    warnings.simplefilter("error")
    warnings.filterwarnings("ignore", message=".torch\\.jit\\..* is deprecated")
    main(sys.argv[1], Path(sys.argv[2]))
