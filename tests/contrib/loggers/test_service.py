"""What all loggers of services do, with a service in memory that can be out of order."""

import sys
import threading

import pytest
import torch

from camshaft import Engine, Events
from camshaft.contrib import loggers
from camshaft.contrib.loggers import MLflowLogger, ServiceLogger, VisdomLogger
from camshaft.contrib.loggers.sender import Sender
from camshaft.handlers import Checkpoint


class Service:
    """Keeps what it is sent, by the ids of runs."""

    def __init__(self):
        self.runs = {}
        self.error = None
        self.has_failed = threading.Event()

    def run(self, run_id):
        if self.error is not None:
            self.has_failed.set()
            raise self.error
        return self.runs.setdefault(
            run_id, {"numbers": [], "parameters": {}, "tags": {}, "files": [], "status": "running", "threads": set()}
        )


class ToMemory(ServiceLogger):
    """A logger of it."""

    service = "memory"

    def __init__(self, to, **options):
        super().__init__(**{"every": 1, **options})
        self.to = to

    def begin_run(self, run_id):
        run_id = run_id or f"run {len(self.to.runs)}"
        return self.to.run(run_id), run_id

    def send_parameters(self, run, parameters):
        run["parameters"].update(parameters)

    def send_tags(self, run, tags):
        run["tags"].update(tags)

    def send_record(self, run, record):
        self.to.run(self.run_id)
        run["threads"].add(threading.current_thread())
        run["numbers"] += [(record.iteration, name, value) for name, value in record.values.items()]

    def send_file(self, run, path, name):
        run["files"].append(name)

    def end_run(self, run, status):
        run["status"] = status


@pytest.fixture
def service():
    return Service()


@pytest.fixture
def hurried(monkeypatch):
    """Nobody rests for long after a failure."""
    monkeypatch.setattr(Sender, "rest", 0.02)


def engine_with(*handlers):
    engine = Engine(lambda engine, batch: torch.tensor(float(batch)))
    for handler in handlers:
        handler.attach(engine)
    return engine


def steps(run):
    return [iteration for iteration, _, _ in run["numbers"]]


@pytest.mark.parametrize("name", loggers.__all__)
def test_every_public_name_is_there_without_its_client(name):
    assert issubclass(getattr(loggers, name), ServiceLogger)


def test_numbers_are_sent_in_order_from_another_thread(service):
    engine_with(ToMemory(service)).run([1, 2, 3])

    run = service.runs["run 0"]
    assert run["numbers"] == [(1, "loss", 1.0), (2, "loss", 2.0), (3, "loss", 3.0)]
    assert threading.current_thread() not in run["threads"]
    assert run["status"] == "finished"


def test_parameters_are_flat_and_tags_are_words_or_have_values(service):
    engine_with(ToMemory(service, parameters={"net": {"width": 3}, "lr": 0.5}, tags={"stage": 1})).run([1])
    engine_with(ToMemory(service, tags=["first"])).run([1])

    assert service.runs["run 0"]["parameters"] == {"net/width": 3, "lr": 0.5}
    assert [run["tags"] for run in service.runs.values()] == [{"stage": "1"}, {"first": ""}]


def test_an_error_in_the_training_ends_the_run_as_failed_with_all_its_numbers(service):
    engine = engine_with(ToMemory(service))

    @engine.on(Events.ITERATION_STARTED(once=3))
    def fail():
        raise ArithmeticError

    with pytest.raises(ArithmeticError):
        engine.run([1, 2, 3])

    assert steps(service.runs["run 0"]) == [1, 2]
    assert service.runs["run 0"]["status"] == "failed"


def test_a_new_run_of_the_same_logger_is_a_new_run_there(service):
    engine = engine_with(ToMemory(service))
    engine.run([1, 2])
    engine.run([3])

    assert [steps(run) for run in service.runs.values()] == [[1, 2], [1]]


def test_a_run_that_goes_on_is_one_run_there(service):
    engine = engine_with(ToMemory(service))
    engine.run([1, 2], max_epochs=1)
    engine.run([1, 2], max_epochs=2)

    assert [steps(run) for run in service.runs.values()] == [[1, 2, 3, 4]]


def program(service, directory, ends_at=None, **options):
    engine = engine_with(ToMemory(service, **options), Checkpoint(directory, model=torch.nn.Linear(1, 1)))
    if ends_at is not None:

        @engine.on(Events.ITERATION_STARTED(once=ends_at))
        def end():
            raise KeyboardInterrupt

    return engine


@pytest.mark.filterwarnings("ignore:.*uses.*:UserWarning")
def test_a_resumed_run_goes_on_there_and_sends_nothing_twice(service, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        program(service, tmp_path, ends_at=6).run([1, 2, 3], max_epochs=3)
    assert steps(service.runs["run 0"]) == [1, 2, 3, 4, 5]

    program(service, tmp_path).run([1, 2, 3], max_epochs=3)

    (run,) = service.runs.values()
    assert steps(run) == list(range(1, 10))
    assert run["status"] == "finished"


def test_where_the_service_tells_what_it_has_that_is_what_counts(service, tmp_path):
    class Asked(ToMemory):
        def steps_there(self, run):
            return {name: step for step, name, _ in run["numbers"]}

    for ends_at in (6, None):
        engine = engine_with(Asked(service), Checkpoint(tmp_path / "run", model=torch.nn.Linear(1, 1)))
        if ends_at is not None:
            engine.add_event_handler(Events.ITERATION_STARTED(once=6), lambda: 1 / 0)
            with pytest.raises(ZeroDivisionError):
                engine.run([1, 2, 3], max_epochs=3)
            service.runs["run 0"]["numbers"].pop()  # the service has lost the fifth
        else:
            engine.run([1, 2, 3], max_epochs=3)

    assert steps(service.runs["run 0"]) == list(range(1, 10))


@pytest.mark.parametrize(
    ("which", "names"),
    [
        ("last", ["iteration=00000004,epoch=2"]),
        ("best", ["iteration=00000002,epoch=1"]),
        ("all", ["iteration=00000002,epoch=1", "iteration=00000004,epoch=2"]),
    ],
)
@pytest.mark.parametrize("asynchronous", [False, True])
def test_the_checkpoints_that_were_asked_for_are_sent(service, tmp_path, which, names, asynchronous):
    engine = Engine(lambda engine, batch: torch.tensor(float(engine.state.epoch)))
    checkpoint = Checkpoint(
        tmp_path, model=torch.nn.Linear(1, 1), monitor="loss", mode="min", asynchronous=asynchronous
    )
    engine.attach(ToMemory(service, checkpoints=which), checkpoint)
    engine.run([1, 2], max_epochs=2)

    assert service.runs["run 0"]["files"] == [f"checkpoints/{name}" for name in names]


def test_a_file_of_the_program_is_sent_after_what_was_recorded_before(service, tmp_path):
    logger = ToMemory(service)
    engine = engine_with(logger)
    engine.add_event_handler(Events.COMPLETED, lambda: logger.add_file(tmp_path / "picture.png"))
    engine.run([1])

    assert service.runs["run 0"]["files"] == ["picture.png"]


def test_sending_checkpoints_that_nobody_makes_is_refused(service):
    with pytest.raises(ValueError, match="this engine makes none: attach a Checkpoint"):
        engine_with(ToMemory(service, checkpoints="best")).run([1])
    with pytest.raises(ValueError, match="but got 'some'"):
        ToMemory(service, checkpoints="some")
    with pytest.raises(ValueError, match="Visdom keeps no files"):
        VisdomLogger(checkpoints="best")


# ------------------------------------------------------------------------------------------- a service that fails


def test_an_outage_costs_no_record_and_one_warning(service, hurried):
    logger = ToMemory(service)
    engine = engine_with(logger)

    @engine.on(Events.EPOCH_STARTED)
    def out_of_order(engine):
        if engine.state.epoch == 2:
            service.error = ConnectionError("no route to host")
        elif engine.state.epoch == 3:
            service.has_failed.wait(20)
            service.error = None

    with pytest.warns(UserWarning, match="ToMemory could not send a record, and the training goes on") as warned:
        engine.run([1, 2], max_epochs=3)

    assert steps(service.runs["run 0"]) == [1, 2, 3, 4, 5, 6]
    assert len(warned) == 1


def test_a_service_that_stays_away_does_not_end_the_training_and_the_loss_is_counted(service, hurried):
    engine = engine_with(ToMemory(service))
    engine.add_event_handler(Events.EPOCH_COMPLETED(once=1), lambda: setattr(service, "error", OSError("gone")))

    with pytest.warns(UserWarning, match="could not send") as warned:
        state = engine.run([1, 2], max_epochs=3)

    assert state.iteration == 6
    assert [str(warning.message).partition(":")[0] for warning in warned] == [
        "ToMemory could not send a record, and the training goes on",
        "ToMemory could not send 6 records.",
    ]


def test_a_run_that_could_not_begin_does_when_the_service_is_back(service, hurried):
    service.error = ConnectionError("no route to host")
    engine = engine_with(ToMemory(service))
    engine.add_event_handler(Events.EPOCH_COMPLETED(once=1), lambda: setattr(service, "error", None))

    with pytest.warns(UserWarning, match="no route to host"):
        engine.run([1, 2], max_epochs=2)

    assert steps(service.runs["run 0"]) == [1, 2, 3, 4]


def test_a_service_that_does_not_answer_is_not_waited_for(service, monkeypatch, tmp_path):
    monkeypatch.setattr(Sender, "longest_wait", 0.2)
    answers = threading.Event()

    class Slow(ToMemory):
        def send_record(self, run, record):
            answers.wait(20)
            super().send_record(run, record)

    logger = Slow(service)
    engine = engine_with(logger, Checkpoint(tmp_path, model=torch.nn.Linear(1, 1)))

    @engine.on(Events.EPOCH_COMPLETED(once=2))
    def answer():
        answers.set()
        monkeypatch.setattr(Sender, "longest_wait", 20.0)

    engine.run([1, 2], max_epochs=3)

    assert steps(service.runs["run 0"]) == [1, 2, 3, 4, 5, 6]


def test_what_the_service_refuses_is_not_tried_again_and_holds_nothing_up(service, hurried):
    class Picky(ToMemory):
        def send_record(self, run, record):
            if record.iteration == 2:
                raise ValueError("no")
            super().send_record(run, record)

    with pytest.warns(UserWarning, match="could not send") as warned:
        engine_with(Picky(service)).run([1, 2, 3])

    assert steps(service.runs["run 0"]) == [1, 3]
    assert str(warned[-1].message) == "Picky could not send 1 records."


def test_an_argument_that_is_wrong_ends_the_run_where_it_starts(service):
    service.error = ValueError("project: there is none of this name")

    with pytest.raises(ValueError, match="none of this name"):
        engine_with(ToMemory(service)).run([1])


def test_a_client_that_is_not_installed_is_named_where_the_run_starts(monkeypatch):
    monkeypatch.setitem(sys.modules, "mlflow", None)

    with pytest.raises(ModuleNotFoundError, match="MLflowLogger needs the package mlflow"):
        engine_with(MLflowLogger()).run([1])
