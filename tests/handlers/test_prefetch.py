import itertools
import random
import threading
import traceback
import warnings
from contextlib import nullcontext

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, RandomSampler, Sampler, TensorDataset
from torchdata.stateful_dataloader import StatefulDataLoader

from camshaft.engine import Engine, Events
from camshaft.engine.distributed import rank
from camshaft.engine.generators import generator_states, same_states
from camshaft.engine.resumable_data import data_state
from camshaft.engine.tensor_loader import TensorLoader
from camshaft.handlers import (
    Checkpoint,
    DataParallel,
    Device,
    DistributedSampling,
    Evaluate,
    GradientAccumulation,
    OptimizerStep,
    Prefetch,
)
from tests.ranks import values_of_ranks
from tests.resumption import differences_after_kills, different, outcome_in, run

SAMPLES = 24
THREAD = "camshaft-prefetch"


class Plain(Dataset):
    def __len__(self):
        return SAMPLES

    def __getitem__(self, index):
        return torch.full((3,), float(index))


class Augmented(Plain):
    """Samples with noise of the global generators."""

    def __getitem__(self, index):
        return super().__getitem__(index) + torch.rand(3) + random.random() + np.random.rand()  # noqa: NPY002


class AugmentedByItself(Plain):
    """Samples with noise of generators of its own, and a number that counts them."""

    def __init__(self):
        self.torch, self.python, self.numpy = torch.Generator(), random.Random(1), np.random.default_rng(1)
        self.loaded = 0

    def __getitem__(self, index):
        self.loaded += 1
        noise = self.python.random() + self.numpy.random()
        return super().__getitem__(index) + torch.rand(3, generator=self.torch) + noise


class Lazy(Sampler):
    """Draws each index from the global generators when it is asked for it."""

    def __iter__(self):
        for _ in range(SAMPLES):
            yield int(torch.randint(SAMPLES, ()))

    def __len__(self):
        return SAMPLES


class Stream(IterableDataset):
    def __init__(self):
        self.generator = torch.Generator()

    def __iter__(self):
        for index in range(SAMPLES):
            yield torch.full((3,), float(index)) + torch.rand(3, generator=self.generator)


class StatefulStream(IterableDataset):
    """A stream that can go on where it was."""

    def __init__(self):
        self.index = 0

    def __iter__(self):
        while self.index < SAMPLES:
            self.index += 1
            yield torch.full((3,), float(self.index))
        self.index = 0

    def state_dict(self):
        return {"index": self.index}

    def load_state_dict(self, state):
        self.index = state["index"]


def lines():
    """A generator: an iterator that goes on where it was, whoever asks."""
    for index in itertools.count():
        yield torch.full((4, 3), float(index))


AHEAD = {
    "shuffled": lambda: DataLoader(Plain(), 4, shuffle=True),
    "with a last batch that is not full": lambda: DataLoader(Plain(), 5, shuffle=True),
    "with an own generator": lambda: DataLoader(Plain(), 4, shuffle=True, generator=torch.Generator()),
    "with replacement": lambda: DataLoader(
        Plain(), 4, sampler=RandomSampler(range(SAMPLES), replacement=True, generator=torch.Generator())
    ),
    "augmented by itself": lambda: DataLoader(AugmentedByItself(), 4, shuffle=True),
    "of a stream": lambda: DataLoader(Stream(), 4),
    "of tensors": lambda: TensorLoader(torch.rand(SAMPLES, 3), batch_size=4, shuffle=True),
    "of torchdata": lambda: StatefulDataLoader(StatefulStream(), 4),
    "a list": lambda: list(torch.rand(6, 4, 3)),
}
ON_TIME = {
    "augmented": lambda: DataLoader(Augmented(), 4, shuffle=True),
    "with a sampler that draws lazily": lambda: DataLoader(Plain(), 4, sampler=Lazy()),
}
pytestmark = pytest.mark.filterwarnings("ignore:'set_vital' is deprecated")  # torchdata 0.11 calls it


def inputs_of(batch):
    return batch[0] if isinstance(batch, (list, tuple)) else batch


def trace_of(engine_of, make_data, prefetch, prepare=lambda engine: None, accumulate=1, **arguments):
    """All that tells one run from another: batches, weights, and what each generator would draw next."""
    torch.manual_seed(1)
    random.seed(1)
    np.random.seed(1)  # noqa: NPY002
    data = make_data()
    model = nn.Sequential(nn.Linear(3, 4), nn.Dropout(0.5), nn.Linear(4, 1))
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    handlers = [OptimizerStep(optimizer), GradientAccumulation(accumulate), *([Prefetch()] if prefetch else [])]
    engine = engine_of(lambda engine, batch: model(inputs_of(batch) / SAMPLES).square().mean(), *handlers)
    seen = []
    engine.add_event_handler(Events.ITERATION_STARTED, lambda: seen.append(inputs_of(engine.state.batch).clone()))
    prepare(engine)
    engine.run(data, **{"max_epochs": 2, **arguments})
    noted = data_state(data).note()
    return {
        "batches": seen,
        "weights": model.state_dict(),
        "global": generator_states(),
        "own": noted.generators,
        "numbers": data_state(data).numbers(),
        "iteration": engine.state.iteration,
    }


def differences(engine_of, make_data, expect_warning=False, **arguments):
    without = trace_of(engine_of, make_data, prefetch=False, **arguments)
    expectation = pytest.warns(UserWarning, match="loads nothing ahead") if expect_warning else nullcontext()
    with expectation:
        with_it = trace_of(engine_of, make_data, prefetch=True, **arguments)
    assert len(without["batches"]) > 2
    assert all(weight.isfinite().all() for weight in without["weights"].values())
    return list(different(without, with_it))


def threads():
    return [thread.name for thread in threading.enumerate() if thread.name.startswith(THREAD)]


class Watched(Plain):
    """Tells which thread loaded which sample, and lets a step wait for that."""

    def __init__(self):
        self.by = {}
        self.loaded = [threading.Event() for _ in range(SAMPLES)]

    def __getitem__(self, index):
        self.by[index] = threading.current_thread().name
        self.loaded[index].set()
        return super().__getitem__(index)


class TestTheRunIsTheSame:
    @pytest.mark.parametrize("make_data", AHEAD.values(), ids=AHEAD)
    @pytest.mark.parametrize("epoch_length", [None, 4, 9], ids=["", "epochs shorter", "epochs longer"])
    def test_a_run_that_loads_ahead_ends_as_one_that_does_not(self, engine_of, make_data, epoch_length):
        assert differences(engine_of, make_data, epoch_length=epoch_length) == []

    @pytest.mark.parametrize("make_data", ON_TIME.values(), ids=ON_TIME)
    def test_data_that_draws_from_the_global_generators_is_loaded_on_time(self, engine_of, make_data):
        assert differences(engine_of, make_data, expect_warning=True) == []

    def test_workers_may_draw_from_them(self, engine_of):
        assert differences(engine_of, lambda: DataLoader(Augmented(), 4, shuffle=True, num_workers=1)) == []

    def test_with_several_micro_batches_a_step(self, engine_of):
        assert differences(engine_of, AHEAD["augmented by itself"], accumulate=4, epoch_length=7) == []

    @pytest.mark.parametrize("make_data", AHEAD.values(), ids=AHEAD)
    @pytest.mark.parametrize("end", ["terminate", "terminate_epoch"])
    def test_an_epoch_or_a_run_that_is_cut_short(self, engine_of, make_data, end):
        def prepare(engine):
            engine.add_event_handler(Events.ITERATION_COMPLETED(once=4), lambda: getattr(engine, end)())

        assert differences(engine_of, make_data, prepare=prepare, max_epochs=3) == []

    def test_other_data_that_is_set_while_running(self, engine_of):
        generator = torch.Generator()

        def prepare(engine):
            second = DataLoader(Plain(), 3, shuffle=True, generator=generator.manual_seed(1))
            engine.add_event_handler(Events.ITERATION_COMPLETED(once=4), lambda: engine.set_data(second))

        def make_data():
            dataset = AugmentedByItself()
            dataset.torch = generator  # from which the other data draws its order
            return DataLoader(dataset, 4, shuffle=True)

        assert differences(engine_of, make_data, prepare=prepare) == []

    def test_an_iterator_of_the_user_goes_on_where_it_was(self, engine_of):
        data = lines()
        seen = []
        engine = engine_of(lambda engine, batch: seen.append(int(batch[0, 0])), Prefetch())
        engine.add_event_handler(Events.ITERATION_COMPLETED(once=5), lambda: engine.terminate_epoch())
        engine.add_event_handler(Events.ITERATION_COMPLETED(once=9), lambda: engine.terminate())
        engine.run(data, max_epochs=3, epoch_length=8)
        engine.state.max_epochs = None
        engine.run(data, max_epochs=1, epoch_length=4)
        assert seen == [*range(9), *range(9, 13)]
        assert int(next(data)[0, 0]) == 13

    def test_an_error_that_the_user_takes_care_of(self, engine_of):
        def prepare(engine):
            def fail():
                raise ValueError("here")

            engine.add_event_handler(Events.ITERATION_COMPLETED(once=4), fail)
            engine.add_event_handler(Events.EXCEPTION_RAISED, lambda error: None)

        assert differences(engine_of, AHEAD["with an own generator"], prepare=prepare) == []

    def test_an_interrupted_run(self, engine_of):
        def prepare(engine):
            engine.add_event_handler(Events.ITERATION_COMPLETED(once=4), lambda: engine.interrupt())
            first_run = engine.run

            def run_twice(*args, **kwargs):
                first_run(*args, **kwargs)
                assert engine.state.iteration == 4
                return first_run(*args, **kwargs)

            engine.run = run_twice

        assert differences(engine_of, AHEAD["augmented by itself"], prepare=prepare) == []

    def test_a_generator_that_the_step_has_too_is_not_drawn_from_ahead(self, engine_of):
        def outcome(*handlers):
            generator = torch.Generator()
            data = AugmentedByItself()
            data.torch = generator
            engine = engine_of(lambda engine, batch: (batch, torch.rand(1, generator=generator)), *handlers)
            outputs = []
            engine.add_event_handler(Events.ITERATION_COMPLETED, lambda: outputs.append(engine.state.output))
            engine.run(DataLoader(data, 4))
            return outputs

        with pytest.warns(UserWarning, match="'dataset.torch', as the step or an evaluator does"):
            assert list(different(outcome(), outcome(Prefetch()))) == []


def program_with(make_data, prefetch=True, **arguments):
    """A small network with dropout over data, with a checkpoint after every second iteration."""

    def program(directory):
        data = make_data()
        model = nn.Sequential(nn.Linear(3, 4), nn.Dropout(0.5), nn.Linear(4, 1))
        optimizer = torch.optim.Adam(model.parameters(), 0.01)
        engine = Engine(lambda engine, batch: model(inputs_of(batch) / SAMPLES).square().mean())
        at = Events.ITERATION_COMPLETED(every=2) | Events.EPOCH_COMPLETED
        engine.attach(OptimizerStep(optimizer), Checkpoint(directory, model=model, optimizer=optimizer, at=at))
        if prefetch:
            engine.attach(Prefetch())
        return engine, {"data": data, "max_epochs": 2, **arguments}

    return program


class TestTheRunGoesOn:
    @pytest.mark.parametrize(
        "name", ["shuffled", "with an own generator", "with replacement", "augmented by itself", "of torchdata"]
    )
    def test_a_killed_run_goes_on_to_the_same_bits(self, tmp_path, name):
        assert differences_after_kills(program_with(AHEAD[name]), tmp_path) == []

    def test_also_in_epochs_shorter_than_the_data(self, tmp_path):
        program = program_with(AHEAD["augmented by itself"], epoch_length=5)
        assert differences_after_kills(program, tmp_path) == []

    @pytest.mark.parametrize("name", AHEAD)
    @pytest.mark.filterwarnings("ignore:To go on where the run was")
    def test_the_checkpoints_are_those_of_a_run_without_it(self, tmp_path, name):
        for prefetch in (False, True):
            run(program_with(AHEAD[name], prefetch), tmp_path / str(prefetch))
        without, with_it = outcome_in(tmp_path / "False"), outcome_in(tmp_path / "True")
        del with_it["camshaft"]["handlers"]["Prefetch"]
        assert list(different(without, with_it)) == []

    def test_a_checkpoint_within_an_epoch_counts_what_was_used(self, tmp_path):
        noted = []

        def watch(engine):
            dataset = engine.data.dataset
            engine.add_event_handler(
                Events.ITERATION_COMPLETED(once=3), lambda: dataset.loaded == 20 or noted.append("not ahead")
            )

        def program(directory):
            engine, arguments = program_with(AHEAD["augmented by itself"], max_epochs=1)(directory)
            engine.data = arguments["data"]
            return engine, arguments

        engine = run(program, tmp_path, watch=watch)
        checkpoint = engine.handlers[1]
        [path] = [path for path in checkpoint.store.directory.iterdir() if path.name.startswith("iteration=00000004")]
        content = checkpoint.store.read(path)
        assert content["camshaft"]["data"]["numbers"] == {"dataset.loaded": 16}


class TestInTheBackground:
    def test_the_next_batches_are_loaded_while_the_step_computes(self, engine_of):
        dataset = Watched()

        def step(engine, batch):
            number = engine.state.iteration
            if 2 <= number < 6:  # the first two are loaded on time
                return dataset.loaded[4 * number].wait(30)
            return True

        engine = engine_of(step, Prefetch())
        outputs = []
        engine.add_event_handler(Events.ITERATION_COMPLETED, lambda: outputs.append(engine.state.output))
        engine.run(DataLoader(dataset, 4))
        assert outputs == [True] * 6
        assert [dataset.by[4 * number].startswith(THREAD) for number in range(6)] == [False] * 2 + [True] * 4

    @pytest.mark.parametrize("depth", [1, 3])
    def test_as_many_batches_as_asked_for_and_no_more(self, engine_of, depth):
        dataset, ahead = Watched(), []
        engine = engine_of(lambda engine, batch: None, Prefetch(depth))

        @engine.on(Events.ITERATION_COMPLETED(once=3))
        def look():
            dataset.loaded[2 + depth].wait(30)
            engine._dataloader_iter.pause()  # after which all is loaded that was asked for
            ahead.append(len(dataset.by) - 3)

        engine.run(DataLoader(dataset, 1))
        assert ahead == [depth]

    def test_nothing_is_loaded_that_the_run_does_not_need(self, engine_of):
        dataset = Watched()
        engine_of(lambda engine, batch: None, Prefetch(3)).run(DataLoader(dataset, 4), epoch_length=4, max_epochs=1)
        assert len(dataset.by) == 16

    def test_of_data_without_length_neither(self, engine_of):
        data = lines()
        engine_of(lambda engine, batch: None, Prefetch(3)).run(data, epoch_length=4, max_epochs=2)
        assert int(next(data)[0, 0]) == 8

    def test_gradient_modes_are_those_of_the_run(self, engine_of):
        modes = []

        class Modes(Plain):
            def __getitem__(self, index):
                modes.append((torch.is_grad_enabled(), torch.is_inference_mode_enabled()))
                return super().__getitem__(index)

        engine = engine_of(lambda engine, batch: None, Prefetch())
        with torch.inference_mode():
            engine.run(DataLoader(Modes(), 4))
        with torch.no_grad():
            engine.run(DataLoader(Modes(), 4))
        assert modes == [(False, True)] * SAMPLES + [(False, False)] * SAMPLES

    def test_the_batch_is_moved_there_too(self, engine_of):
        class Batch:
            """Notes the threads that move it."""

            def __init__(self):
                self.moved_by = []

            def to(self, device):
                self.moved_by.append((threading.current_thread().name.startswith(THREAD), device.type))
                return self

        batches = [Batch() for _ in range(5)]
        engine_of(lambda engine, batch: None, Prefetch(), Device("meta")).run(batches)
        in_background, by_device = (True, "meta"), (False, "meta")
        assert [batch.moved_by for batch in batches] == [[by_device]] * 2 + [[in_background, by_device]] * 3


class TestErrors:
    @pytest.mark.parametrize("failing", [1, 2, 4])
    def test_an_error_of_the_loader_comes_with_its_batch_and_its_traceback(self, engine_of, failing):
        class Broken(Plain):
            def __getitem__(self, index):
                if index == 4 * failing:
                    raise OSError("this sample cannot be read")
                return super().__getitem__(index)

        engine = engine_of(lambda engine, batch: None, Prefetch())
        with pytest.raises(OSError, match="this sample cannot be read") as caught:
            engine.run(DataLoader(Broken(), 4))
        assert engine.state.iteration == failing
        assert traceback.extract_tb(caught.value.__traceback__)[-1].name == "__getitem__"
        assert threads() == []

    def test_after_an_error_that_is_taken_care_of_the_loader_goes_on_behind_it(self, engine_of):
        class Broken(Plain):
            def __getitem__(self, index):
                if index == 12:
                    raise OSError("this sample cannot be read")
                return super().__getitem__(index)

        def outcome(*handlers):
            seen = []
            engine = engine_of(lambda engine, batch: seen.append(int(batch[0, 0])), *handlers)
            engine.add_event_handler(Events.EXCEPTION_RAISED, lambda error: None)
            engine.run(DataLoader(Broken(), 4), max_epochs=3)
            return seen

        assert outcome(Prefetch()) == outcome()

    @pytest.mark.parametrize("depth", [0, -1, True, 1.5, None])
    def test_a_depth_that_is_no_number_of_batches_is_refused(self, depth):
        with pytest.raises(ValueError, match="at least one batch ahead, but got depth="):
            Prefetch(depth)


class TestThreads:
    def test_it_ends_with_the_run(self, engine_of):
        during = []
        engine = engine_of(lambda engine, batch: during.extend(threads()), Prefetch())
        engine.run(DataLoader(Plain(), 2))
        assert during
        assert threads() == []

    @pytest.mark.parametrize("end", ["terminate", "terminate_epoch", "interrupt"])
    def test_it_ends_when_the_run_is_asked_to(self, engine_of, end):
        left = []

        def step(engine, batch):
            if engine.state.iteration == 4:
                left.append(len(threads()))
                getattr(engine, end)()

        engine = engine_of(step, Prefetch())
        event = {"terminate": Events.TERMINATE, "terminate_epoch": Events.TERMINATE_SINGLE_EPOCH}.get(end)
        engine.add_event_handler(event or Events.INTERRUPT, lambda iter_counter=0: left.append(len(threads())))
        engine.run(DataLoader(Plain(), 2))
        assert left == [1, 0]
        assert threads() == []

    def test_it_ends_with_a_run_that_skips_its_completion(self, engine_of):
        def step(engine, batch):
            if engine.state.iteration == 4:
                engine.terminate(skip_completed=True)

        engine_of(step, Prefetch()).run(DataLoader(Plain(), 2))
        assert threads() == []

    @pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
    def test_it_ends_with_an_error_of_the_step(self, engine_of, error):
        def step(engine, batch):
            if engine.state.iteration == 4:
                raise error

        with pytest.raises(error):
            engine_of(step, Prefetch()).run(DataLoader(Plain(), 2))
        assert threads() == []

    def test_it_ends_with_an_engine_that_is_dropped_while_it_pauses(self, engine_of):
        engine = engine_of(lambda engine, batch: engine.interrupt(), Prefetch())
        engine.run(DataLoader(Plain(), 2))
        del engine
        assert threads() == []

    def test_detached_while_running_it_loses_no_batch(self, engine_of):
        seen, prefetch = [], Prefetch()
        engine = engine_of(lambda engine, batch: seen.append(int(batch[0, 0])), prefetch)
        engine.add_event_handler(Events.ITERATION_COMPLETED(once=4), lambda: prefetch.detach(engine))
        engine.run(DataLoader(Plain(), 2))
        assert seen == [*range(0, SAMPLES, 2)]
        assert threads() == []


class TestEvaluators:
    def test_their_batches_are_loaded_ahead_if_one_is_attached_to_them(self, engine_of, engine_class):
        model, dataset = nn.Linear(3, 1), Watched()
        evaluator = engine_class(lambda engine, batch: model(batch))
        Prefetch().attach(evaluator)
        engine_of(lambda engine, batch: None, Evaluate(evaluator, DataLoader(dataset, 4))).run([0])
        assert [dataset.by[4 * number].startswith(THREAD) for number in range(6)] == [False] * 2 + [True] * 4

    def test_while_one_runs_nothing_is_loaded_for_the_training(self, engine_of, engine_class):
        model, during = nn.Linear(3, 1), []
        evaluator = engine_class(lambda engine, batch: (model(batch), during.append(threads())))
        evaluate = Evaluate(evaluator, [torch.ones(1, 3)], at=Events.ITERATION_COMPLETED(every=3))
        engine = engine_of(lambda engine, batch: None, Prefetch(), evaluate)
        assert engine.run(DataLoader(Plain(), 2)).iteration == 12
        assert during == [[]] * 4

    def test_one_handler_serves_several_engines(self, engine_of, engine_class):
        model, prefetch, dataset = nn.Linear(3, 1), Prefetch(), Watched()
        evaluator = engine_class(lambda engine, batch: model(batch))
        prefetch.attach(evaluator)
        evaluate = Evaluate(evaluator, DataLoader(dataset, 4), at=Events.ITERATION_COMPLETED(every=5))
        seen = []
        engine_of(lambda engine, batch: seen.append(int(batch[0, 0])), prefetch, evaluate).run(DataLoader(Plain(), 2))
        assert seen == [*range(0, SAMPLES, 2)]


def test_the_warning_comes_once_and_names_what_to_do(engine_of):
    engine = engine_of(lambda engine, batch: None, Prefetch())
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        engine.run(DataLoader(Augmented(), 4), max_epochs=3)
    assert [str(warning.message) for warning in caught] == [
        "Prefetch() loads nothing ahead, because loading from DataLoader draws from this process's random numbers, "
        "from which the step may draw as well: give the loader workers (num_workers=1 or more), or the data set a "
        "generator of its own as an attribute."
    ]


def test_numbers_that_a_handler_sets_in_the_data_set_stay(engine_of):
    dataset = AugmentedByItself()
    dataset.strength = 1.0
    engine = engine_of(lambda engine, batch: None, Prefetch())

    @engine.on(Events.ITERATION_COMPLETED(once=4))
    def weaken():
        engine._dataloader_iter.pause()
        dataset.strength = 0.5

    engine.add_event_handler(Events.ITERATION_COMPLETED(once=5), lambda: engine._dataloader_iter.pause())
    engine.add_event_handler(Events.ITERATION_COMPLETED(once=5), lambda: engine.terminate())
    engine.run(DataLoader(dataset, 2))
    assert (dataset.strength, dataset.loaded) == (0.5, 10)


def test_an_engine_without_data_has_nothing_to_load(engine_of):
    assert engine_of(lambda engine, batch: batch, Prefetch()).run(epoch_length=3).iteration == 3


def test_random_numbers_of_the_step_stay_as_they_were(engine_of):
    def numbers(*handlers):
        torch.manual_seed(0)
        engine_of(lambda engine, batch: torch.rand(1), *handlers).run(DataLoader(Plain(), 2, shuffle=True))
        return generator_states()

    assert same_states(numbers(), numbers(Prefetch()))


def trains_on_its_share(kinds):
    """The trace of each of these data sets, without and with loading ahead."""

    def trace(name, prefetch):
        torch.manual_seed(rank())
        data = AHEAD[name]()
        model = nn.Sequential(nn.Linear(3, 4), nn.Dropout(0.5), nn.Linear(4, 1))
        optimizer = torch.optim.SGD(model.parameters(), 0.01)
        engine = Engine(lambda engine, batch: model(inputs_of(batch) / SAMPLES).square().mean())
        engine.attach(OptimizerStep(optimizer), DataParallel(model), DistributedSampling())
        engine.attach(*([Prefetch()] if prefetch else []))
        seen = []
        engine.add_event_handler(Events.ITERATION_STARTED, lambda: seen.append(inputs_of(engine.state.batch).tolist()))
        engine.run(data, max_epochs=2)
        return [seen, [weight.tolist() for weight in model.state_dict().values()]]

    return {name: [trace(name, prefetch=False), trace(name, prefetch=True)] for name in kinds}


@pytest.mark.distributed
def test_processes_that_share_the_data_train_as_without_it():
    kinds = ["shuffled", "with an own generator", "augmented by itself", "of a stream", "of tensors"]
    first, second = values_of_ranks(trains_on_its_share, kinds, timeout=60)
    for name in kinds:
        for without, with_it in (first[name], second[name]):
            assert with_it == without
        assert first[name][1][0] != second[name][1][0]  # of the data; the weights are the same
        assert first[name][1][1] == second[name][1][1]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no accelerator")
class TestOnCUDA:
    def test_batches_are_moved_by_a_stream_of_their_own_from_pinned_memory(self, engine_of):
        inputs = torch.arange(64.0 * 1000).reshape(64, 1000)
        sums, on_device = [], []

        def step(engine, batch):
            on_device.append(batch[0].is_cuda)
            sums.append((batch[0] * 2).sum())

        engine_of(step, Prefetch(), Device("cuda")).run(DataLoader(TensorDataset(inputs), 4), max_epochs=20)
        assert all(on_device)
        expected = [(part * 2).sum() for part in inputs.split(4)] * 20
        assert [float(one) for one in sums] == pytest.approx([float(one) for one in expected])
