"""What is kept, what is refused, and what happens when the disk does not play along; exact resume has its own file."""

import json
import math
import pickle
import resource
import shutil
import signal
from collections import Counter
from pathlib import Path

import ignite.handlers
import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from camshaft.engine import Engine, Events
from camshaft.handlers import EMA, Checkpoint, EarlyStopping, OptimizerStep
from camshaft.handlers.checkpoint_store import BrokenCheckpointError, CheckpointStore

DATA = [torch.ones(2, 3), torch.zeros(2, 3), -torch.ones(2, 3)]


def network(value=None):
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 1))
    if value is not None:
        nn.init.constant_(model[0].weight, value)
    return model


def trainer(directory, model=None, *, scores=None, engine_class=Engine, handlers=(), **options):
    """An engine that trains a network; ``scores`` are the values of ``state.metrics["score"]``, one an epoch."""
    model = model or network()
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    engine = engine_class(lambda engine, batch: model(batch).square().mean())
    checkpoint = Checkpoint(directory, **{"model": model, "optimizer": optimizer, **options})
    for handler in (OptimizerStep(optimizer), checkpoint, *handlers):
        handler.attach(engine)
    if scores is not None:

        @engine.on(Events.EPOCH_COMPLETED)
        def score(engine):
            engine.state.metrics["score"] = scores[engine.state.epoch - 1]

    engine.checkpoint = checkpoint
    engine.model = model
    return engine


def names_in(directory):
    return sorted(path.name for path in (directory / "checkpoints").iterdir())


def epochs_kept(directory):
    checkpoints = CheckpointStore(directory / "checkpoints").list()
    return [checkpoint.epoch for checkpoint in checkpoints if not checkpoint.finished]


class TestKept:
    def test_are_the_two_newest_and_that_of_the_finished_run_by_default(self, tmp_path, engine_class):
        trainer(tmp_path, engine_class=engine_class).run(DATA, max_epochs=4)
        assert names_in(tmp_path) == [
            "iteration=00000009,epoch=3",
            "iteration=00000012,epoch=4",
            "iteration=00000012,finished",
        ]

    def test_are_as_many_as_asked_for(self, tmp_path):
        trainer(tmp_path, keep_last=3).run(DATA, max_epochs=5)
        assert epochs_kept(tmp_path) == [3, 4, 5]

    def test_are_the_best_besides(self, tmp_path):
        scores = [0.1, 0.9, 0.9, 0.2, 0.8, 0.3]
        engine = trainer(tmp_path, scores=scores, monitor="score", keep_last=1, keep_best=2)
        engine.run(DATA, max_epochs=6)
        assert epochs_kept(tmp_path) == [2, 3, 6]
        assert engine.checkpoint.best.name == "iteration=00000006,epoch=2"  # the earlier of equal ones
        assert engine.checkpoint.last.name == "iteration=00000018,finished"

    def test_are_those_with_the_least_value_where_less_is_better(self, tmp_path):
        trainer(tmp_path, scores=[3.0, 1.0, 2.0], monitor="score", mode="min", keep_last=1).run(DATA, max_epochs=3)
        assert epochs_kept(tmp_path) == [2, 3]

    def test_are_not_those_whose_value_is_nan_nor_does_one_block_later_ones(self, tmp_path):
        scores = [math.nan, 0.5, math.nan, 0.6, math.nan]
        engine = trainer(tmp_path, scores=scores, monitor="score", keep_last=1)
        engine.run(DATA, max_epochs=5)
        assert epochs_kept(tmp_path) == [4, 5]

    def test_is_the_last_one_even_where_every_value_is_nan(self, tmp_path):
        trainer(tmp_path, scores=[math.nan] * 3, monitor="score", keep_last=1).run(DATA, max_epochs=3)
        assert epochs_kept(tmp_path) == [3]

    def test_is_the_best_of_an_earlier_process_too(self, tmp_path):
        trainer(tmp_path, scores=[0.9, 0.1], monitor="score", keep_last=1).run(DATA, max_epochs=2)
        trainer(tmp_path, scores=[0.9, 0.1, 0.2, 0.3], monitor="score", keep_last=1).run(DATA, max_epochs=4)
        assert epochs_kept(tmp_path) == [1, 4]

    def test_a_whole_one_is_never_deleted_for_newer_ones_that_are_broken(self, tmp_path):
        engine = trainer(tmp_path, keep_last=3)
        engine.run(DATA, max_epochs=3)
        for newer in ("iteration=00000006,epoch=2", "iteration=00000009,epoch=3", "iteration=00000009,finished"):
            truncate(tmp_path / "checkpoints" / newer / "state.pt")
        resumed = trainer(tmp_path, at=Events.ITERATION_COMPLETED)

        @resumed.on(Events.ITERATION_STARTED(once=6))
        def die(engine):
            raise KeyboardInterrupt

        with pytest.warns(UserWarning, match="is broken"), pytest.raises(KeyboardInterrupt):
            resumed.run(DATA, max_epochs=3)
        assert CheckpointStore(tmp_path / "checkpoints").newest_whole()[0].iteration == 5

    def test_epochs_and_iterations_may_both_be_asked_for(self, tmp_path):
        at = Events.EPOCH_COMPLETED(every=2) | Events.ITERATION_COMPLETED(every=2)
        trainer(tmp_path, at=at, keep_last=99).run(DATA, max_epochs=3)
        assert names_in(tmp_path) == [
            "iteration=00000002",
            "iteration=00000004",
            "iteration=00000006,epoch=2",  # at the end of an epoch once, with all that this brings
            "iteration=00000008",
            "iteration=00000009,finished",
        ]

    def test_an_iteration_at_the_end_of_an_epoch_is_saved_after_that(self, tmp_path):
        engine = trainer(tmp_path, at=Events.ITERATION_COMPLETED(every=3))
        engine.add_event_handler(Events.EPOCH_COMPLETED, lambda engine: engine.model[0].weight.data.zero_())
        engine.run(DATA, max_epochs=1)
        assert names_in(tmp_path) == ["iteration=00000003,epoch=1", "iteration=00000003,finished"]
        saved = CheckpointStore(tmp_path / "checkpoints").list()[0].path
        assert not torch.load(saved / "state.pt")["model"]["0.weight"].any()

    def test_the_value_within_an_epoch_is_that_of_the_iteration(self, tmp_path):
        losses = iter([0.5, 0.1, 0.3])
        engine = Engine(lambda engine, batch: next(losses))
        engine.attach(Checkpoint(tmp_path, at=Events.ITERATION_COMPLETED, monitor="loss", keep_last=1))
        engine.run([0] * 4, max_epochs=1, epoch_length=3)
        assert engine.handlers[0].best.name == "iteration=00000002"

    def test_nothing_else_lies_in_the_directory(self, tmp_path):
        trainer(tmp_path).run(DATA, max_epochs=2)
        assert sorted(path.name for path in tmp_path.iterdir()) == [".lock", "checkpoints", "run.json"]
        assert not [path for path in (tmp_path / "checkpoints").iterdir() if path.name.startswith(".")]

    @pytest.mark.parametrize("asynchronous", [False, True])
    def test_wait_returns_when_the_last_one_is_on_the_disk(self, tmp_path, asynchronous):
        engine = trainer(tmp_path, asynchronous=asynchronous)
        kept = []

        @engine.on(Events.EPOCH_STARTED(once=2))
        def look():
            engine.checkpoint.wait()
            kept.extend(names_in(tmp_path))

        engine.run(DATA, max_epochs=2)
        assert kept == ["iteration=00000003,epoch=1"]


class TestResume:
    def test_auto_begins_where_there_is_nothing(self, tmp_path):
        assert trainer(tmp_path).run(DATA, max_epochs=1).iteration == 3

    def test_auto_goes_on_where_there_is_something(self, tmp_path, engine_class):
        trainer(tmp_path).run(DATA, max_epochs=2)
        iterations = []
        engine = trainer(tmp_path, engine_class=engine_class)
        engine.add_event_handler(Events.ITERATION_STARTED, lambda engine: iterations.append(engine.state.iteration))
        engine.run(DATA, max_epochs=3)
        assert iterations == [7, 8, 9]

    def test_never_refuses_a_directory_that_has_checkpoints(self, tmp_path, engine_class):
        trainer(tmp_path).run(DATA, max_epochs=1)
        engine = trainer(tmp_path, engine_class=engine_class, resume="never")
        with pytest.raises(
            ValueError, match=r"has checkpoints of an earlier run, the newest .*finished: choose another"
        ):
            engine.run(DATA, max_epochs=2)

    def test_never_takes_an_empty_one(self, tmp_path):
        assert trainer(tmp_path, resume="never").run(DATA, max_epochs=1).iteration == 3

    def test_a_path_is_that_of_a_checkpoint(self, tmp_path):
        trainer(tmp_path / "one", keep_last=3).run(DATA, max_epochs=3)
        path = tmp_path / "one" / "checkpoints" / "iteration=00000003,epoch=1"
        engine = trainer(tmp_path / "two", resume=path)
        epochs = []
        engine.add_event_handler(Events.EPOCH_STARTED, lambda engine: epochs.append(engine.state.epoch))
        engine.run(DATA, max_epochs=3)
        assert epochs == [2, 3]

    def test_a_path_in_the_same_directory_goes_back(self, tmp_path):
        trainer(tmp_path, keep_last=3).run(DATA, max_epochs=3)
        path = tmp_path / "checkpoints" / "iteration=00000003,epoch=1"
        engine = trainer(tmp_path, resume=path, keep_last=3)
        engine.run(DATA, max_epochs=2)
        assert engine.state.iteration == 6
        assert engine.checkpoint.last.name == "iteration=00000006,finished"

    def test_a_run_that_began_from_a_path_goes_on_where_it_is_when_the_same_command_is_given_again(self, tmp_path):
        trainer(tmp_path / "one").run(DATA, max_epochs=2)
        path = tmp_path / "one" / "checkpoints" / "iteration=00000003,epoch=1"
        trainer(tmp_path / "two", resume=path).run(DATA, max_epochs=3)
        engine = trainer(tmp_path / "two", resume=path)
        epochs = []
        engine.add_event_handler(Events.EPOCH_STARTED, lambda engine: epochs.append(engine.state.epoch))
        engine.run(DATA, max_epochs=4)
        assert epochs == [4]

    def test_a_path_where_there_is_nothing_is_told_of(self, tmp_path):
        with pytest.raises(ValueError, match=r"There is no checkpoint .*nowhere to go on with"):
            trainer(tmp_path, resume=tmp_path / "nowhere").run(DATA)

    def test_other_data_is_refused(self, tmp_path):
        trainer(tmp_path).run(DATA, max_epochs=1)
        with pytest.raises(ValueError, match="saved with 3 iterations an epoch, but the data has now 2"):
            trainer(tmp_path).run(DATA[:2], max_epochs=2)

    def test_data_without_length_finds_it_again(self, tmp_path):
        def stream():
            yield from DATA

        trainer(tmp_path).run(stream(), max_epochs=1)
        engine = trainer(tmp_path)
        engine.add_event_handler(Events.DATALOADER_STOP_ITERATION, lambda engine: engine.set_data(stream()))
        with pytest.warns(UserWarning, match="3 batches of generator are loaded again"):
            engine.run(stream(), max_epochs=2)
        assert engine.state.iteration == 6


class TestAllOrNothing:
    def saved(self, directory, **options):
        trainer(directory, network(1.0), **options).run(DATA, max_epochs=2)

    def state_of(self, *things):
        return pickle.dumps([thing.state_dict() for thing in things])

    @pytest.mark.filterwarnings("ignore:The run uses")
    def test_a_state_that_does_not_fit_leaves_everything_as_it_was(self, tmp_path, engine_class):
        self.saved(tmp_path)
        model, larger = network(2.0), nn.Linear(5, 5)
        optimizer = torch.optim.SGD(model.parameters(), 0.5)
        engine = engine_class(lambda engine, batch: model(batch).mean())
        Checkpoint(tmp_path, {"model": model, "optimizer": larger}).attach(engine)
        OptimizerStep(optimizer).attach(engine)
        before = self.state_of(model, optimizer, larger)
        with pytest.raises(ValueError, match=r"'optimizer' \(Linear\) cannot take its state"):
            engine.run(DATA, max_epochs=3)
        assert self.state_of(model, optimizer, larger) == before
        assert (engine.state.iteration, engine.state.epoch) == (0, 0)

    @pytest.mark.filterwarnings("ignore:The run uses")
    def test_nor_does_a_handler_that_does_not_fit_change_a_module(self, tmp_path):
        model = network(1.0)
        trainer(tmp_path, model, handlers=[EMA(model)]).run(DATA, max_epochs=2)
        model, other = network(2.0), nn.Linear(2, 2)
        optimizer = torch.optim.SGD([*model.parameters(), *other.parameters()], 0.1, momentum=0.9)
        engine = Engine(lambda engine, batch: model(batch).square().mean())
        engine.attach(
            OptimizerStep(optimizer),
            EMA(other),
            Checkpoint(tmp_path, model=model, optimizer=torch.optim.SGD(model.parameters(), 0.1)),
        )
        before = self.state_of(model)
        with pytest.raises(ValueError, match=r"'EMA' \(EMA\) cannot take its state"):
            engine.run(DATA, max_epochs=3)
        assert self.state_of(model) == before

    def test_a_name_that_is_missing_is_told_of_with_those_that_are_there(self, tmp_path):
        self.saved(tmp_path)
        critic = nn.Linear(1, 1)
        with pytest.raises(ValueError, match=r"has no 'critic'; it has \['model', 'optimizer'\]"):
            trainer(tmp_path, critic=critic).run(DATA, max_epochs=3)

    def test_the_state_of_a_handler_that_is_gone_is_told_of(self, tmp_path):
        self.saved(tmp_path, handlers=[EarlyStopping("loss", patience=99)])
        with pytest.warns(UserWarning, match="has the state of EarlyStopping, but no such handler is attached"):
            trainer(tmp_path).run(DATA, max_epochs=3)

    def test_a_newer_format_is_refused(self, tmp_path):
        self.saved(tmp_path)
        store = CheckpointStore(tmp_path / "checkpoints")
        path = store.list()[-1].path
        state = store.read(path)
        state["camshaft"]["format"] = 99
        store.write(path.name, state, {"iteration": 6, "epoch": 2})
        with pytest.raises(ValueError, match="written by a newer version of Camshaft"):
            trainer(tmp_path).run(DATA, max_epochs=3)


class TestForgotten:
    def test_a_module_that_the_step_uses_is_named_in_a_warning(self, tmp_path, engine_class):
        generator, critic = nn.Linear(1, 1), nn.Linear(1, 1)
        engine = engine_class(lambda engine, batch: critic(generator(batch)).mean())
        Checkpoint(tmp_path, generator=generator).attach(engine)
        with pytest.warns(UserWarning, match=r"uses 'critic' \(Linear\), but the checkpoint.*critic=critic\)"):
            engine.run([torch.ones(1, 1)])

    def test_so_is_an_optimizer(self, tmp_path):
        model = nn.Linear(1, 1)
        engine = Engine(lambda engine, batch: model(batch).mean())
        engine.attach(Checkpoint(tmp_path, model=model), OptimizerStep(torch.optim.Adam(model.parameters())))
        with pytest.warns(UserWarning, match="uses 'Adam'"):
            engine.run([torch.ones(1, 1)])

    def test_so_is_a_schedule_that_a_function_of_the_user_steps(self, tmp_path, engine_class):
        model = nn.Linear(1, 1)
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        schedule = torch.optim.lr_scheduler.StepLR(optimizer, 1)
        engine = engine_class(lambda engine, batch: model(batch).mean())
        Checkpoint(tmp_path, model=model, optimizer=optimizer).attach(engine)
        OptimizerStep(optimizer).attach(engine)
        engine.add_event_handler(Events.EPOCH_COMPLETED(every=1), lambda: schedule.step())
        with pytest.warns(UserWarning, match=r"uses 'schedule' \(StepLR\)"):
            engine.run([torch.ones(1, 1)])

    def test_what_has_no_state_is_not(self, tmp_path):
        model, criterion = network(), nn.MSELoss()
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        engine = Engine(lambda engine, batch: criterion(model(batch), torch.zeros(2, 1)))
        engine.attach(OptimizerStep(optimizer), Checkpoint(tmp_path, model=model, optimizer=optimizer))
        engine.run(DATA)  # warnings are errors

    def test_nor_is_a_part_of_what_is_kept_or_what_is_wrapped(self, tmp_path):
        model = network()
        compiled, part = torch.compile(model, backend="eager"), model[0]
        engine = Engine(lambda engine, batch: compiled(batch).mean() + part(batch).mean())
        engine.attach(Checkpoint(tmp_path, model=model)).run(DATA)

    def test_what_cannot_be_kept_is_refused_at_once(self, tmp_path):
        with pytest.raises(
            TypeError, match=r"keeps what has state_dict\(\) and load_state_dict\(\), but 'loss' is <function"
        ):
            Checkpoint(tmp_path, loss=F.mse_loss)


class TestOtherFiles:
    def test_ours_are_read_by_plain_torch(self, tmp_path):
        model = network(1.0)
        trainer(tmp_path, model, handlers=[EMA(model)]).run(DATA, max_epochs=1)
        state = torch.load(tmp_path / "checkpoints" / "iteration=00000003,finished" / "state.pt", weights_only=True)
        other = network()
        other.load_state_dict(state["model"])
        assert torch.equal(other[0].weight, model[0].weight)
        assert state["optimizer"]["param_groups"][0]["momentum"] == 0.9

    def test_a_compiled_model_has_the_names_of_the_user(self, tmp_path):
        model = network(1.0)
        compiled = torch.compile(model, backend="eager")
        engine = Engine(lambda engine, batch: compiled(batch).mean())
        engine.attach(Checkpoint(tmp_path, model=compiled)).run(DATA)
        state = torch.load(tmp_path / "checkpoints" / "iteration=00000003,finished" / "state.pt")
        assert list(state["model"]) == list(model.state_dict())

    @pytest.mark.parametrize("names", [("model", "optimizer"), ("model",)], ids=["several objects", "a single one"])
    def test_a_file_of_ignites_checkpoint_is_taken_over(self, tmp_path, names):
        source = network(3.0)
        optimizer = torch.optim.SGD(source.parameters(), 0.7, momentum=0.9)
        things = {"model": source, "optimizer": optimizer}
        saver = ignite.handlers.DiskSaver(tmp_path / "ignite")
        handler = ignite.handlers.Checkpoint({name: things[name] for name in names}, saver)
        ignite_trainer = Engine(lambda engine, batch: None)
        ignite_trainer.add_event_handler(Events.EPOCH_COMPLETED, handler)
        ignite_trainer.run([0])
        path = tmp_path / "ignite" / handler.last_checkpoint
        model = network()
        optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
        engine = Engine(lambda engine, batch: None)
        engine.attach(
            Checkpoint(
                tmp_path / "ours", {name: {"model": model, "optimizer": optimizer}[name] for name in names}, resume=path
            )
        )
        engine.run(DATA)
        assert torch.equal(model[0].weight, source[0].weight)
        assert optimizer.param_groups[0]["lr"] == (0.7 if "optimizer" in names else 0.1)
        assert engine.state.iteration == 3

    def test_a_pickle_that_would_run_code_is_refused_and_not_run(self, tmp_path):
        trap = Trap(tmp_path / "sprung")
        torch.save({"model": trap}, tmp_path / "payload.pt")
        with pytest.raises(ValueError, match=r"payload\.pt is no file of tensors and plain values"):
            trainer(tmp_path / "run", resume=tmp_path / "payload.pt").run(DATA)
        assert not trap.path.exists()

    def test_so_is_one_in_a_checkpoint_whose_digests_were_made_to_fit(self, tmp_path):
        trainer(tmp_path).run(DATA, max_epochs=2)
        trap = Trap(tmp_path / "sprung")
        store = CheckpointStore(tmp_path / "checkpoints")
        store.write("iteration=00000099,epoch=9", {"model": trap}, {"iteration": 99, "epoch": 9})
        with pytest.warns(
            UserWarning, match=r"iteration=00000099,epoch=9 is broken: its digests are right, but state\.pt"
        ):
            assert trainer(tmp_path).run(DATA, max_epochs=3).iteration == 9
        assert not trap.path.exists()

    def test_states_of_numpy_and_enums_and_paths_are_made_plain(self, tmp_path):
        class Odd:
            def state_dict(self):
                return {
                    "float": np.float64(0.5),
                    "array": np.arange(3),
                    "path": Path("a"),
                    "phase": Events.STARTED,
                    "steps": Counter([2, 2, 4]),
                    np.int64(3): (1, {2}),
                }

            def load_state_dict(self, state):
                self.loaded = state

        engine = Engine(lambda engine, batch: None).attach(Checkpoint(tmp_path, odd=Odd()))
        engine.run([0])
        odd = Odd()
        Engine(lambda engine, batch: None).attach(Checkpoint(tmp_path, odd=odd)).run([0], max_epochs=2)
        assert odd.loaded["array"].tolist() == [0, 1, 2]
        assert odd.loaded["steps"].most_common(1) == [(2, 2)]
        assert {key: odd.loaded[key] for key in ("float", "path", "phase", 3)} == {
            "float": 0.5,
            "path": "a",
            "phase": "started",
            3: (1, [2]),
        }

    def test_what_cannot_be_made_plain_is_told_of_with_its_place(self, tmp_path):
        class Odd:
            def state_dict(self):
                return {"inner": [1, lambda: None]}

            def load_state_dict(self, state):
                pass

        with pytest.raises(TypeError, match="odd/inner/1 is <function"):
            Engine(lambda engine, batch: None).attach(Checkpoint(tmp_path, odd=Odd())).run([0])
        assert not (tmp_path / "checkpoints").exists()


class Trap:
    """Unpickled with code execution allowed, it makes a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def truncate(path, part=0.5):
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * part)])


class TestABrokenCheckpoint:
    def test_is_named_in_a_warning_and_the_one_before_it_is_used(self, tmp_path):
        trainer(tmp_path).run(DATA, max_epochs=3)
        for name in ("iteration=00000009,finished", "iteration=00000009,epoch=3"):
            truncate(tmp_path / "checkpoints" / name / "state.pt")
        engine = trainer(tmp_path)
        epochs = []
        engine.add_event_handler(Events.EPOCH_STARTED, lambda engine: epochs.append(engine.state.epoch))
        with pytest.warns(UserWarning, match="is broken") as told:
            engine.run(DATA, max_epochs=4)
        messages = [str(warning.message) for warning in told]
        assert epochs == [3, 4]
        assert len(messages) == 2
        assert all(
            "is not what was written" in message and "epoch=2 is used instead" in message for message in messages
        )

    def test_ends_the_run_if_no_other_is_whole_and_nothing_is_deleted(self, tmp_path):
        trainer(tmp_path).run(DATA, max_epochs=2)
        for path in (tmp_path / "checkpoints").iterdir():
            truncate(path / "state.pt")
        before = {path: path.read_bytes() for path in (tmp_path / "checkpoints").rglob("*") if path.is_file()}
        model = network(5.0)
        weights = model[0].weight.clone()
        with pytest.raises(BrokenCheckpointError, match=r"No checkpoint in .* is whole, and nothing was deleted\."):
            trainer(tmp_path, model).run(DATA, max_epochs=3)
        assert {path: path.read_bytes() for path in (tmp_path / "checkpoints").rglob("*") if path.is_file()} == before
        assert torch.equal(model[0].weight, weights)

    def test_of_the_finished_run_is_no_obstacle_to_a_longer_one(self, tmp_path):
        trainer(tmp_path).run(DATA, max_epochs=2)
        shutil.rmtree(tmp_path / "checkpoints" / "iteration=00000006,epoch=2")
        truncate(tmp_path / "checkpoints" / "iteration=00000003,epoch=1" / "state.pt")
        with pytest.warns(UserWarning, match="epoch=1 is broken"):
            assert trainer(tmp_path).run(DATA, max_epochs=3).iteration == 9


def limit_files_to(size):
    """Let no file of this process become larger: as a disk that is full, but for the message."""
    hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
    resource.setrlimit(resource.RLIMIT_FSIZE, (hard if size is None else size, hard))


@pytest.fixture
def disk_that_fills():
    """``disk_that_fills(engine, epoch)``: from the beginning of that epoch on nothing large can be written."""
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)

    def fill(engine, epoch):
        @engine.on(Events.EPOCH_STARTED(once=epoch))
        def fill(engine):
            if engine.checkpoint._writer is not None:
                engine.checkpoint._writer.wait()
            limit_files_to(200)

    yield fill
    limit_files_to(None)
    signal.signal(signal.SIGXFSZ, before)


def wait_for_the_writer(engine):
    engine.checkpoint._writer._underway.exception()
    limit_files_to(None)


class TestAnErrorOfTheDisk:
    def test_ends_the_run_in_a_sentence_and_leaves_the_earlier_checkpoints(
        self, tmp_path, disk_that_fills, engine_class
    ):
        engine = trainer(tmp_path, engine_class=engine_class)
        disk_that_fills(engine, epoch=3)
        with pytest.raises(OSError, match=r"epoch=3 could not be written: File too large \(\d+ MB are free there\)"):
            engine.run(DATA, max_epochs=4)
        limit_files_to(None)
        assert names_in(tmp_path) == ["iteration=00000003,epoch=1", "iteration=00000006,epoch=2"]
        assert trainer(tmp_path).run(DATA, max_epochs=4).iteration == 12

    def test_lets_the_run_go_on_where_a_warning_is_asked_for(self, tmp_path, disk_that_fills):
        engine = trainer(tmp_path, on_error="warn")
        disk_that_fills(engine, epoch=2)
        engine.add_event_handler(Events.EPOCH_STARTED(once=4), lambda engine: limit_files_to(None))
        with pytest.warns(UserWarning, match=r"File too large .* The run goes on without it\.") as told:
            engine.run(DATA, max_epochs=4)
        assert len(told) == 2
        assert epochs_kept(tmp_path) == [1, 4]

    def test_in_the_background_ends_the_run_at_the_next_iteration(self, tmp_path, disk_that_fills):
        engine = trainer(tmp_path, asynchronous=True)
        disk_that_fills(engine, epoch=2)
        engine.add_event_handler(Events.ITERATION_STARTED(once=7), wait_for_the_writer)
        with pytest.raises(OSError, match="epoch=2 could not be written: File too large"):
            engine.run(DATA, max_epochs=4)
        assert engine.state.iteration == 7
        assert names_in(tmp_path) == ["iteration=00000003,epoch=1"]

    def test_in_the_background_is_a_warning_where_that_is_asked_for(self, tmp_path, disk_that_fills):
        engine = trainer(tmp_path, asynchronous=True, on_error="warn", keep_last=9)
        disk_that_fills(engine, epoch=2)
        engine.add_event_handler(Events.ITERATION_STARTED(once=7), wait_for_the_writer)
        with pytest.warns(UserWarning, match="epoch=2 could not be written: File too large"):
            engine.run(DATA, max_epochs=4)
        assert epochs_kept(tmp_path) == [1, 3, 4]

    def test_a_directory_that_vanishes_is_made_anew(self, tmp_path):
        engine = trainer(tmp_path / "run")
        engine.add_event_handler(Events.EPOCH_STARTED(once=3), lambda engine: shutil.rmtree(tmp_path / "run"))
        engine.run(DATA, max_epochs=3)
        assert epochs_kept(tmp_path / "run") == [3]

    def test_a_file_in_the_place_of_the_directory_is_told_of_at_the_start(self, tmp_path, engine_class):
        (tmp_path / "run").write_text("")
        steps = []
        engine = engine_class(lambda engine, batch: steps.append(batch))
        Checkpoint(tmp_path / "run").attach(engine)
        with pytest.raises(OSError, match="run"):
            engine.run([0])
        assert steps == []


class TestRefusals:
    def test_two_on_one_engine(self, tmp_path):
        engine = Engine(lambda engine, batch: None).attach(Checkpoint(tmp_path / "a"), Checkpoint(tmp_path / "b"))
        with pytest.raises(ValueError, match="2 Checkpoint handlers are attached to one engine"):
            engine.run([0])

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"keep_last": 0}, "keep_last must be at least 1"),
            ({"keep_best": -1}, "keep_best 0"),
            ({"on_error": "ignore"}, "on_error is 'raise' or 'warn', not 'ignore'"),
            ({"at": Events.STARTED}, "saves at ITERATION_COMPLETED or EPOCH_COMPLETED"),
            ({"camshaft": nn.Linear(1, 1)}, "The name 'camshaft' is taken"),
        ],
    )
    def test_of_arguments(self, tmp_path, options, message):
        with pytest.raises(ValueError, match=message):
            Checkpoint(tmp_path, **options)

    def test_an_object_may_be_called_like_an_argument(self, tmp_path):
        model = nn.Linear(1, 1)
        Engine(lambda engine, batch: None).attach(Checkpoint(tmp_path, {"monitor": model})).run([0])
        assert "monitor" in torch.load(tmp_path / "checkpoints" / "iteration=00000001,finished" / "state.pt")


def test_the_metadata_can_be_read_without_the_state(tmp_path):
    trainer(tmp_path, scores=[0.5], monitor="score").run(DATA, max_epochs=1)
    metadata = json.loads((tmp_path / "checkpoints" / "iteration=00000003,epoch=1" / "metadata.json").read_text())
    assert {key: metadata[key] for key in ("iteration", "epoch", "value", "finished", "monitor", "mode")} == {
        "iteration": 3,
        "epoch": 1,
        "value": 0.5,
        "finished": False,
        "monitor": "score",
        "mode": "max",
    }


def test_detached_it_saves_nothing_and_leaves_the_data_alone(tmp_path):
    engine = trainer(tmp_path)
    engine.checkpoint.detach(engine)
    engine.run(DATA)
    assert "_setup_dataloader_iter" not in vars(engine)
    assert list(tmp_path.iterdir()) == []
