"""Signals to real processes, which are forked here and signal themselves at exact moments."""

import os
import signal
import sys
import threading
import time
import traceback
from types import ModuleType

import ignite.handlers
import pytest
import torch
from ignite.engine import Engine as IgniteEngine
from ignite.metrics import Accuracy, Loss
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from camshaft import seed_everything
from camshaft.engine import Engine, Events
from camshaft.engine.distributed import rank
from camshaft.handlers import (
    EMA,
    Checkpoint,
    CSVLogger,
    DataParallel,
    DistributedSampling,
    EarlyStopping,
    Evaluate,
    GradientAccumulation,
    LRScheduler,
    Metrics,
    OptimizerStep,
    Preemption,
    preemption,
)
from camshaft.handlers.checkpoint_store import CheckpointStore
from camshaft.handlers.preemption import PREEMPTED
from tests.ranks import on_ranks, values_of_ranks
from tests.resumption import different, outcome_in, run


def status_of(function, *arguments):
    """The exit status of a process that calls a function; minus its number if a signal ended it."""
    sys.stdout.flush()
    process = os.fork()
    if process == 0:
        status = 1
        try:
            os.setsid()  # a group of its own, which it may signal
            function(*arguments)
            status = 0
        except SystemExit as leaving:
            status = leaving.code
        except BaseException:  # noqa: BLE001 - else this process would go on with the tests
            traceback.print_exc()
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


class Signals:
    """What sends a signal the n-th time that it is called, so that each test says exactly where it comes."""

    def __init__(self, at=None, number=signal.SIGTERM, send=os.kill):
        self.at = at
        self.number = number
        self.send = send
        self.calls = 0

    def __call__(self):
        self.calls += 1
        if self.calls == self.at:
            self.send(os.getpid(), self.number)


NEVER = Signals()


def program_with(
    in_step=NEVER, in_validation=NEVER, in_test=NEVER, *, engine_class=Engine, at=Events.EPOCH_COMPLETED, **options
):
    """A program of 2 epochs of 7 iterations, in groups of 4, with two validations of 4 batches and a test."""

    def program(directory):
        generator = torch.Generator().manual_seed(0)
        inputs = torch.randn(28, 4, generator=generator)
        data = TensorDataset(inputs, (inputs.sum(1) > 0).long())
        model = nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.3), nn.Linear(8, 2))
        optimizer = torch.optim.Adam(model.parameters(), 0.05)
        plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, patience=0)
        ema = EMA(model, decay=0.9)
        returns = options.pop("returns", {})

        def step(engine, batch):
            in_step()
            logits = model(batch[0])
            return {"loss": F.cross_entropy(logits, batch[1]), "y_pred": logits, "y": batch[1], **returns}

        def evaluator_that(calls):
            def evaluation_step(engine, batch):
                calls()
                return model(batch[0]) + 0.1 * torch.randn(2), batch[1]

            return Engine(evaluation_step).attach(Metrics(accuracy=Accuracy(), loss=Loss(F.cross_entropy)))

        workers = options.pop("num_workers", 0)
        loader = DataLoader(data, 4, shuffle=True, num_workers=workers, persistent_workers=workers > 0)
        validation = DataLoader(data, 7, shuffle=True)
        engine = engine_class(step)
        first_evaluator = evaluator_that(NEVER)
        count = ignite.handlers.EarlyStopping(99, lambda engine: -engine.state.epoch, engine)  # it never improves
        first_evaluator.add_event_handler(Events.COMPLETED, count)
        for handler in (
            OptimizerStep(optimizer),
            GradientAccumulation(4),
            ema,
            Metrics(train_accuracy=Accuracy()),
            Evaluate(first_evaluator, validation, at=at, prefix="first_"),
            Evaluate(evaluator_that(in_validation), validation, at=at, ema=ema),
            Evaluate(evaluator_that(in_test), validation, at=Events.COMPLETED, prefix="test_"),
            LRScheduler(plateau, monitor="val_loss", at=at),
            EarlyStopping("val_loss", patience=9, restore_best=True, at=at),
            Checkpoint(
                directory, model=model, optimizer=optimizer, monitor="val_loss", **options.pop("checkpoint", {})
            ),
            Preemption(**options),
            CSVLogger(directory, every=8),
        ):
            handler.attach(engine)
        return engine, {"data": loader, "max_epochs": 2}

    return program


def assert_same_end(program, directory, **undisturbed):
    """Started again, the program in a directory must end as one that nobody signalled."""
    run(program_with(**undisturbed), directory.parent / "undisturbed")
    begun = CheckpointStore(directory / "checkpoints").list()
    run(program, directory, seed=7 if begun else 1)
    assert list(different(outcome_in(directory.parent / "undisturbed"), outcome_in(directory))) == []


def newest_in(directory):
    return CheckpointStore(directory / "checkpoints").list()[-1]


@pytest.mark.parametrize(("number", "status"), [("SIGTERM", 75), ("SIGUSR1", 75), ("SIGINT", 130)])
def test_a_signal_ends_the_process_with_a_status_of_its_own_and_the_run_goes_on(tmp_path, number, status):
    program = program_with(in_step=Signals(9, getattr(signal, number)))
    assert status_of(run, program, tmp_path / "run") == status
    assert newest_in(tmp_path / "run").iteration == 9  # the one under way was finished, in a group of micro-batches
    assert_same_end(program_with(), tmp_path / "run")


def test_the_status_after_a_preemption_is_a_constant_for_launchers():
    assert PREEMPTED == 75


MOMENTS = {
    "in the first iteration": {"in_step": 1},
    "in the last iteration of an epoch": {"in_step": 7},
    "in the last iteration": {"in_step": 14},
    "in the first validation": {"in_validation": 2},
    "in the last validation": {"in_validation": 7},
    "in the last batch of a validation": {"in_validation": 4},
    "in the test at the end": {"in_test": 2},
}


@pytest.mark.parametrize("asynchronous", [False, True], ids=["", "writing in the background"])
@pytest.mark.parametrize("moment", MOMENTS.values(), ids=MOMENTS)
def test_nothing_is_lost_of_what_was_done(tmp_path, moment, asynchronous):
    options = {"checkpoint": {"asynchronous": asynchronous}}
    ((where, at),) = moment.items()
    assert status_of(run, program_with(**{where: Signals(at)}, **options), tmp_path / "run") == 75
    expected = at if where == "in_step" else {"in_test": 14, "in_validation": 7 if at <= 4 else 14}[where]
    assert newest_in(tmp_path / "run").iteration == expected
    assert_same_end(program_with(**options), tmp_path / "run", **options)


def test_what_the_step_returned_is_logged_after_the_validation_even_if_not_all_of_it_can_be_kept(tmp_path):
    returns = {"returns": {"words": object()}}
    assert status_of(run, program_with(in_validation=Signals(2), **returns), tmp_path / "run") == 75
    assert_same_end(program_with(**returns), tmp_path / "run", **returns)


def test_a_validation_is_left_within_one_batch_and_done_again_from_its_beginning(tmp_path):
    program = program_with(in_validation=Signals(2))
    assert status_of(run, program, tmp_path / "run") == 75
    batches = Signals()
    run(program_with(in_validation=batches), tmp_path / "run")
    assert batches.calls == 8


def test_a_validation_in_the_midst_of_an_epoch_is_left_too_and_nothing_is_lost(tmp_path):
    at = Events.ITERATION_COMPLETED(every=5)
    assert status_of(run, program_with(in_validation=Signals(7), at=at), tmp_path / "run") == 75
    assert newest_in(tmp_path / "run").iteration == 10
    assert_same_end(program_with(at=at), tmp_path / "run", at=at)


def test_it_may_happen_again_and_again(tmp_path):
    statuses = [
        status_of(run, program_with(**{where: Signals(at)}), tmp_path / "run")
        for where, at in [("in_step", 3), ("in_validation", 3), ("in_validation", 4), ("in_step", 2), ("in_test", 1)]
    ]
    assert statuses == [75] * 5
    assert_same_end(program_with(), tmp_path / "run")


def test_the_weights_are_saved_and_not_the_averages_that_are_evaluated(tmp_path):
    assert status_of(run, program_with(in_validation=Signals(1)), tmp_path / "run") == 75
    state = CheckpointStore(tmp_path / "run" / "checkpoints").newest_whole()[1]
    averages = state["camshaft"]["handlers"]["EMA"]["averages"]
    assert not torch.equal(state["model"]["0.weight"], averages["0.weight"])


def twice(process, number):
    os.kill(process, number)
    os.kill(process, number)


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)], ids=["SIGTERM", "Ctrl-C"])
def test_the_second_signal_ends_the_process_at_once(tmp_path, monkeypatch, number, status):
    monkeypatch.setattr(preemption, "_ONE_REQUEST", -1.0)  # seconds
    assert status_of(run, program_with(in_step=Signals(9, number, twice)), tmp_path / "run") == status
    assert newest_in(tmp_path / "run").iteration == 7
    assert_same_end(program_with(), tmp_path / "run")


def test_a_signal_that_comes_twice_within_a_second_is_one_request(tmp_path):
    assert status_of(run, program_with(in_step=Signals(9, signal.SIGTERM, twice)), tmp_path / "run") == 75
    assert newest_in(tmp_path / "run").iteration == 9


def test_a_second_ctrl_c_is_never_taken_for_the_first(tmp_path):
    assert status_of(run, program_with(in_step=Signals(9, signal.SIGINT, twice)), tmp_path / "run") == 130
    assert newest_in(tmp_path / "run").iteration == 7


def test_workers_that_get_the_signal_as_well_do_not_break_the_iteration(tmp_path):
    to_all = Signals(9, send=lambda process, number: os.killpg(process, number))
    assert status_of(run, program_with(in_step=to_all, num_workers=2), tmp_path / "run") == 75
    assert newest_in(tmp_path / "run").iteration == 9
    assert_same_end(program_with(num_workers=2), tmp_path / "run", num_workers=2)


def test_a_run_that_was_finished_before_gives_the_signals_back(tmp_path):
    before = signal.getsignal(signal.SIGTERM)
    for _ in range(2):
        run(program_with(), tmp_path / "run")
    assert signal.getsignal(signal.SIGTERM) is before


class TestWhatIsTold:
    @pytest.mark.parametrize(
        ("name", "signals", "iteration"),
        [("SIGTERM", {"in_step": 9}, 9), ("SIGINT", {"in_step": 9}, 9), ("SIGUSR1", {"in_validation": 2}, 7)],
        ids=["SIGTERM", "Ctrl-C", "SIGUSR1 in a validation"],
    )
    def test_is_the_signal_what_is_saved_and_what_to_do(self, tmp_path, caplog, name, signals, iteration):
        with pytest.raises(SystemExit):
            run(program_with(**{where: Signals(at, getattr(signal, name)) for where, at in signals.items()}), tmp_path)
        assert f"{name}: saved at iteration {iteration} in {tmp_path}; the same command goes on." in caplog.messages

    def test_is_nothing_where_the_process_does_not_end(self, tmp_path, caplog):
        run(program_with(in_step=Signals(9), leave=False), tmp_path)
        assert not [message for message in caplog.messages if "SIGTERM" in message]


class TestInANotebook:
    def test_the_run_pauses_and_goes_on(self, tmp_path):
        def start_twice(directory):
            seed_everything(1)
            engine, arguments = program_with(in_step=Signals(9), leave=False)(directory)
            assert engine.run(**arguments).iteration == 9
            assert engine.run(**arguments).iteration == 14

        assert status_of(start_twice, tmp_path / "run") == 0
        assert_same_end(program_with(), tmp_path / "run")

    def test_a_process_started_anew_goes_on_there_as_well(self, tmp_path):
        assert status_of(run, program_with(in_step=Signals(9), leave=False), tmp_path / "run") == 0
        assert newest_in(tmp_path / "run").iteration == 9
        assert_same_end(program_with(), tmp_path / "run")

    def test_a_validation_is_finished_first(self, tmp_path):
        assert status_of(run, program_with(in_validation=Signals(1), leave=False), tmp_path / "run") == 0
        assert newest_in(tmp_path / "run").iteration == 8
        assert_same_end(program_with(), tmp_path / "run")

    def test_a_prompt_is_one_too(self, tmp_path, monkeypatch):
        monkeypatch.setattr(sys, "ps1", ">>> ", raising=False)
        monkeypatch.delattr(sys.modules["__main__"], "__file__", raising=False)  # xdist's processes have none anyway
        assert status_of(run, program_with(in_step=Signals(9)), tmp_path / "run") == 0

    def test_a_script_that_had_opened_a_prompt_is_none(self, tmp_path, monkeypatch):
        monkeypatch.setattr(sys, "ps1", "In : ", raising=False)  # which IPython.embed() leaves behind
        monkeypatch.setattr(sys.modules["__main__"], "__file__", "train.py", raising=False)
        assert status_of(run, program_with(in_step=Signals(9)), tmp_path / "run") == 75

    def test_a_script_of_which_some_package_has_imported_ipykernel_is_none(self, tmp_path, monkeypatch):
        monkeypatch.setitem(sys.modules, "ipykernel", ModuleType("ipykernel"))
        assert status_of(run, program_with(in_step=Signals(9)), tmp_path / "run") == 75


@pytest.mark.parametrize("where", ["in_step", "in_validation", "in_test"])
@pytest.mark.parametrize("at", [2, 4, 7])
def test_a_stock_engine_of_ignite_goes_on_as_well(tmp_path, where, at):
    kind = {"engine_class": IgniteEngine}
    status = status_of(run, program_with(**{where: Signals(at)}, **kind), tmp_path / "run")
    assert status == (0 if (where, at) == ("in_test", 7) else 75)
    assert_same_end(program_with(**kind), tmp_path / "run", **kind)


class TestTheSignalsAreGivenBack:
    def handlers(self):
        return [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)]

    def test_when_the_run_is_over(self, tmp_path):
        before = self.handlers()
        engine, arguments = program_with()(tmp_path)
        during = []
        engine.add_event_handler(Events.EPOCH_STARTED, lambda engine: during.append(self.handlers()))
        engine.run(**arguments)
        assert during[0] != before
        assert self.handlers() == before

    def test_when_an_error_ends_it(self, tmp_path):
        before = self.handlers()
        engine = Engine(lambda engine, batch: 1 / 0).attach(Checkpoint(tmp_path), Preemption())
        with pytest.raises(ZeroDivisionError):
            engine.run([0])
        assert self.handlers() == before

    def test_only_those_that_were_asked_for_are_taken(self, tmp_path):
        during = []
        engine = Engine(lambda engine, batch: during.append(self.handlers()))
        engine.attach(Checkpoint(tmp_path), Preemption([signal.SIGUSR1])).run([0])
        terminate, user, interrupt = self.handlers()
        assert (during[0][0], during[0][2]) == (terminate, interrupt)
        assert during[0][1] != user


class TestRefusals:
    def test_without_a_checkpoint(self):
        with pytest.raises(ValueError, match="needs a Checkpoint on the same engine"):
            Engine(lambda engine, batch: None).attach(Preemption()).run([0])

    def test_in_a_thread(self, tmp_path):
        engine = Engine(lambda engine, batch: None).attach(Checkpoint(tmp_path), Preemption())
        errors = []

        def start():
            try:
                engine.run([0])
            except ValueError as error:
                errors.append(str(error))

        thread = threading.Thread(target=start)
        thread.start()
        thread.join()
        assert "delivers to the main thread only" in errors[0]


def test_an_interrupt_of_somebody_else_saves_nothing_and_leaves_nothing(tmp_path):
    engine = Engine(lambda engine, batch: engine.interrupt() if batch == 1 else None)
    engine.attach(Checkpoint(tmp_path), Preemption())
    assert engine.run([0, 1, 2]).iteration == 2
    assert CheckpointStore(tmp_path / "checkpoints").list() == []
    assert engine.run([0, 1, 2]).iteration == 3


def train_together(directory, signals, in_validation=0, engine_class=Engine):
    """Two epochs of forty iterations on each process, one of which signals itself at an exact moment."""
    seed_everything(1)
    calls = Signals(signals.get(rank()))
    validations = Signals(in_validation if rank() == 0 else None)
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(160, 4, generator=generator)
    data = TensorDataset(inputs, (inputs.sum(1) > 0).long())
    model = nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.3), nn.Linear(8, 2))
    optimizer = torch.optim.Adam(model.parameters(), 0.05)

    def step(engine, batch):
        calls()
        time.sleep(0.01)
        return F.cross_entropy(model(batch[0]), batch[1])

    def evaluation_step(engine, batch):
        validations()
        return model(batch[0]), batch[1]

    evaluator = Engine(evaluation_step).attach(Metrics(accuracy=Accuracy(), loss=Loss(F.cross_entropy)))
    engine = engine_class(step)
    for handler in (
        OptimizerStep(optimizer),
        DataParallel(model),
        DistributedSampling(),
        Evaluate(evaluator, DataLoader(data, 100)),
        EarlyStopping("val_loss", patience=9),
        Checkpoint(directory, model=model, optimizer=optimizer),
        Preemption(),
        CSVLogger(directory, every=7),
    ):
        handler.attach(engine)
    engine.run(DataLoader(data, 2, shuffle=True), max_epochs=2)
    return torch.cat([weight.flatten() for weight in model.parameters()]).tolist()


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    directory = tmp_path_factory.mktemp("undisturbed")
    return values_of_ranks(train_together, directory, {}), (directory / "metrics.csv").read_text()


@pytest.mark.distributed
@pytest.mark.parametrize(
    ("signals", "in_validation"),
    [({0: 9, 1: 12}, 0), ({1: 40}, 0), ({}, 1)],
    ids=["one after the other", "one in the last iteration of an epoch", "one in a validation"],
)
class TestOfSeveralProcesses:
    def test_all_save_and_leave_when_one_is_told_and_go_on_to_the_same_bits(
        self, tmp_path, undisturbed, signals, in_validation
    ):
        ended = on_ranks(train_together, tmp_path, signals, in_validation)
        assert [process.status for process in ended] == [75, 75], "\n".join(process.error for process in ended)
        told_at = min(signals.values(), default=40)
        assert told_at <= newest_in(tmp_path).iteration < 80
        assert values_of_ranks(train_together, tmp_path, {}) == undisturbed[0]
        assert (tmp_path / "metrics.csv").read_text() == undisturbed[1]
