import contextlib
import threading

import pytest
import torch
from ignite.engine import create_supervised_trainer
from ignite.metrics import MeanSquaredError
from torch import nn

from camshaft.engine import Engine, Events
from camshaft.handlers import (
    Evaluate,
    GradientAccumulation,
    GradientClipping,
    Logger,
    LRScheduler,
    Metrics,
    OptimizerStep,
)


class Memory(Logger):
    """A logger whose records can be looked at; ``batches`` are the lengths of what was written at once."""

    def __init__(self, every=50):
        super().__init__(every=every)
        self.records = []
        self.batches = []
        self.calls = []
        self.threads = set()

    def open(self, iteration):
        self.calls.append(f"open after {iteration}")

    def write(self, records):
        self.records += records
        self.batches.append(len(records))
        self.threads.add(threading.current_thread())

    def close(self):
        self.calls.append("close")

    def column(self, name):
        return [(record.iteration, record.values[name]) for record in self.records if name in record.values]


def writer_threads():
    return [thread for thread in threading.enumerate() if thread.name.startswith("camshaft-")]


def attach(engine, *handlers):
    for handler in handlers:
        handler.attach(engine)
    return engine


def regression(rows=4):
    model = nn.Linear(2, 1)
    data = [(torch.randn(rows, 2), torch.randn(rows, 1)) for _ in range(6)]
    return model, data


def evaluator_of(model, engine_class=Engine):
    evaluator = engine_class(lambda engine, batch: (model(batch[0]), batch[1]))
    return attach(evaluator, Metrics(error=MeanSquaredError()))


class TestWhatIsRecorded:
    def test_a_scalar_that_the_step_returns_is_the_loss(self, engine_class):
        memory = Memory(every=2)
        attach(engine_class(lambda engine, batch: torch.tensor(float(batch))), memory).run([1, 2, 3, 4])

        assert memory.column("loss") == [(2, 2.0), (4, 4.0)]

    def test_each_scalar_of_a_returned_mapping_is_recorded_and_nothing_else(self, engine_class):
        memory = Memory(every=1)
        output = {"loss": torch.tensor(0.5), "tokens": 7, "y_pred": torch.ones(3), "name": "x"}
        attach(engine_class(lambda engine, batch: output), memory).run([0])

        assert [record.values for record in memory.records] == [{"loss": 0.5, "tokens": 7}]

    def test_the_default_is_every_fiftieth_iteration(self):
        memory = Memory()
        attach(Engine(lambda engine, batch: torch.tensor(1.0)), memory).run(range(120))

        assert [iteration for iteration, _ in memory.column("loss")] == [50, 100]

    def test_an_epoch_with_no_such_iteration_has_its_last_one_recorded(self, engine_class):
        memory = Memory(every=50)
        attach(engine_class(lambda engine, batch: torch.tensor(float(batch))), memory).run([1, 2, 3], max_epochs=2)

        assert memory.column("loss") == [(3, 3.0), (6, 3.0)]

    def test_a_step_that_reuses_its_output_tensor_has_each_value_recorded(self, engine_class):
        output = torch.zeros(())
        memory = Memory(every=1)
        attach(engine_class(lambda engine, batch: output.add_(1)), memory).run(range(3))

        assert memory.column("loss") == [(1, 1.0), (2, 2.0), (3, 3.0)]

    def test_a_skipped_batch_has_no_values(self):
        model, data = regression()
        memory = Memory(every=1)
        engine = Engine(lambda engine, batch: None if engine.state.iteration == 2 else model(batch[0]).mean())
        attach(engine, memory, OptimizerStep(torch.optim.SGD(model.parameters(), 0.1))).run(data[:3])

        assert [iteration for iteration, _ in memory.column("loss")] == [1, 3]

    def test_records_carry_epoch_and_optimizer_step(self):
        model, data = regression()
        memory = Memory(every=2)
        step = OptimizerStep(torch.optim.SGD(model.parameters(), 0.1))
        engine = Engine(lambda engine, batch: model(batch[0]).mean())
        attach(engine, memory, step, GradientAccumulation(2)).run(data, max_epochs=2)

        positions = [(r.iteration, r.epoch, r.optimizer_step) for r in memory.records]
        assert positions == [(2, 1, 1), (4, 1, 2), (6, 1, 3), (8, 2, 4), (10, 2, 5), (12, 2, 6)]

    def test_the_metrics_of_the_validation_are_recorded_each_epoch_under_the_name_they_are_monitored_by(
        self, engine_class
    ):
        model, data = regression()
        memory = Memory()
        engine = engine_class(lambda engine, batch: None)
        attach(engine, memory, Evaluate(evaluator_of(model, engine_class), data)).run(data, max_epochs=2)

        assert [iteration for iteration, _ in memory.column("val_error")] == [6, 12]

    def test_a_validation_every_second_epoch_is_recorded_once_each_time(self):
        model, data = regression()
        memory = Memory()
        evaluate = Evaluate(evaluator_of(model), data, at=Events.EPOCH_COMPLETED(every=2))
        attach(Engine(lambda engine, batch: None), memory, evaluate).run(data, max_epochs=5)

        assert [iteration for iteration, _ in memory.column("val_error")] == [12, 24]

    def test_a_validation_within_the_epoch_is_recorded_at_the_iteration_it_was_made_at(self):
        model, data = regression()
        memory = Memory(every=5)
        evaluate = Evaluate(evaluator_of(model), data, at=Events.ITERATION_COMPLETED(once=3))
        engine = Engine(lambda engine, batch: torch.tensor(1.0))
        attach(engine, memory, evaluate).run(data)

        assert [(record.iteration, sorted(record.values)) for record in memory.records] == [
            (3, ["val_error"]),
            (5, ["loss"]),
        ]

    def test_a_test_at_the_end_of_the_run_is_recorded(self, engine_class):
        model, data = regression()
        memory = Memory()
        test = Evaluate(evaluator_of(model, engine_class), data, at=Events.COMPLETED, prefix="test_")
        attach(engine_class(lambda engine, batch: None), memory, test).run(data)

        assert [iteration for iteration, _ in memory.column("test_error")] == [6]

    def test_a_test_at_the_end_of_a_terminated_run_is_recorded(self, engine_class):
        model, data = regression()
        memory = Memory()
        test = Evaluate(evaluator_of(model, engine_class), data, at=Events.COMPLETED, prefix="test_")
        engine = attach(engine_class(lambda engine, batch: engine.terminate()), memory, test)
        engine.run(data)

        assert [iteration for iteration, _ in memory.column("test_error")] == [1]

    def test_a_number_that_a_function_sets_each_epoch_is_recorded_each_epoch_though_it_stays_the_same(self):
        memory = Memory()
        engine = Engine(lambda engine, batch: None)
        engine.add_event_handler(Events.EPOCH_COMPLETED, lambda engine: engine.state.metrics.update(correct=10))
        attach(engine, memory).run([0, 1], max_epochs=3)

        assert memory.column("correct") == [(2, 10), (4, 10), (6, 10)]

    def test_the_gradient_norm_is_recorded_with_the_loss_of_its_iteration(self):
        model, data = regression()
        memory = Memory(every=3)
        step = OptimizerStep(torch.optim.SGD(model.parameters(), 0.1))
        attach(Engine(lambda engine, batch: model(batch[0]).mean()), memory, step, GradientClipping(1.0)).run(data)

        assert [(r.iteration, "loss" in r.values, "gradient_norm" in r.values) for r in memory.records] == [
            (3, True, True),
            (6, True, True),
        ]

    def test_a_metric_of_an_earlier_run_is_not_taken_for_a_new_one_within_the_epoch(self):
        memory = Memory(every=1)
        engine = Engine(lambda engine, batch: torch.tensor(1.0))
        engine.state.metrics["old"] = 0.25
        attach(engine, memory).run([0, 1], epoch_length=2)

        assert memory.column("old") == [(2, 0.25)]  # at the end of the epoch, where nobody says how old it is
        assert memory.records[0].values == {"loss": 1.0}


class TestLearningRates:
    def test_it_is_the_one_that_the_iteration_has_used(self):
        model, data = regression()
        optimizer = torch.optim.SGD(model.parameters(), 1.0)
        schedule = LRScheduler(torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5), per="step")
        memory = Memory(every=1)
        attach(Engine(lambda e, batch: model(batch[0]).mean()), schedule, memory, OptimizerStep(optimizer)).run(
            data[:3]
        )

        assert memory.column("learning_rate") == [(1, 1.0), (2, 0.5), (3, 0.25)]

    def test_the_optimizer_of_a_step_that_does_all_itself_is_found(self, engine_class):
        model, data = regression()
        optimizer = torch.optim.SGD(model.parameters(), 0.125)
        memory = Memory(every=3)

        def step(engine, batch):
            loss = model(batch[0]).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            return loss.detach()

        attach(engine_class(step), memory).run(data)

        assert memory.column("learning_rate") == [(3, 0.125), (6, 0.125)]

    def test_that_of_a_supervised_trainer_of_ignite_is_found(self):
        model, data = regression()
        memory = Memory(every=3)
        trainer = create_supervised_trainer(model, torch.optim.SGD(model.parameters(), 0.125), nn.functional.mse_loss)
        attach(trainer, memory).run(data)

        assert memory.column("learning_rate") == [(3, 0.125), (6, 0.125)]
        assert [iteration for iteration, _ in memory.column("loss")] == [3, 6]

    def test_groups_of_parameters_have_their_name_or_number(self):
        model, data = regression()
        groups = [{"params": [model.weight], "lr": 0.5, "name": "weight"}, {"params": [model.bias], "lr": 0.25}]
        memory = Memory(every=6)
        step = OptimizerStep(torch.optim.SGD(groups))
        attach(Engine(lambda engine, batch: model(batch[0]).mean()), memory, step).run(data)

        assert memory.column("learning_rate/weight") == [(6, 0.5)]
        assert memory.column("learning_rate/1") == [(6, 0.25)]

    def test_optimizers_have_the_names_that_the_step_calls_them_by(self):
        model, data = regression()
        first = OptimizerStep(torch.optim.SGD([model.weight], 0.5))
        second = OptimizerStep(torch.optim.SGD([model.bias], 0.25))
        memory = Memory(every=6)

        def step(engine, batch):
            first(model(batch[0]).mean())
            second(model(batch[0]).mean())

        attach(Engine(step), memory, first, second).run(data)

        assert memory.column("learning_rate/first") == [(6, 0.5)]
        assert memory.column("learning_rate/second") == [(6, 0.25)]


class TestWhenItIsWritten:
    def test_values_stay_tensors_until_the_epoch_ends_and_are_written_at_once(self):
        memory = Memory(every=1)
        engine = Engine(lambda engine, batch: torch.tensor(1.0))
        attach(engine, memory)
        engine.add_event_handler(Events.ITERATION_COMPLETED, lambda: seen.append(list(memory.batches)))
        seen = []
        engine.run(range(3), max_epochs=2)

        assert seen[:3] == [[], [], []]
        assert memory.batches == [3, 3]

    def test_a_hundred_records_do_not_wait_for_the_end_of_a_long_epoch(self):
        memory = Memory(every=1)
        attach(Engine(lambda engine, batch: torch.tensor(1.0)), memory).run(range(250))

        assert memory.batches == [100, 100, 50]

    def test_the_state_for_a_checkpoint_counts_what_has_been_recorded_until_then(self):
        memory = Memory(every=1)
        engine = attach(Engine(lambda engine, batch: torch.tensor(1.0)), memory)
        engine.add_event_handler(Events.ITERATION_COMPLETED(once=3), lambda: states.append(memory.state_dict()))
        states = []
        engine.run(range(5))

        assert states[0]["records_written"] == 2  # USER comes before REPORT, in which the third will be recorded
        assert memory.batches == [2, 3]

    def test_an_error_loses_no_record_and_is_raised(self, engine_class):
        def step(engine, batch):
            return torch.tensor(1.0 / batch)

        memory = Memory(every=1)
        with pytest.raises(ZeroDivisionError):
            attach(engine_class(step), memory).run([1, 2, 0])

        assert memory.column("loss") == [(1, 1.0), (2, 0.5)]
        assert memory.calls == ["open after 0", "close"]

    def test_an_error_that_a_function_of_the_user_raises_again_loses_no_record(self):
        engine = Engine(lambda engine, batch: torch.tensor(1.0 / batch))

        @engine.on(Events.EXCEPTION_RAISED)
        def raise_it(engine, error):
            raise error

        memory = Memory(every=1)
        with pytest.raises(ZeroDivisionError):
            attach(engine, memory).run([1, 0])

        assert memory.column("loss") == [(1, 1.0)]

    def test_an_error_that_a_function_of_the_user_takes_care_of_is_not_raised(self, engine_class):
        errors = []
        engine = engine_class(lambda engine, batch: torch.tensor(1.0 / batch))
        engine.add_event_handler(Events.EXCEPTION_RAISED, lambda engine, error: errors.append(error))
        attach(engine, Memory()).run([1, 0])

        assert [type(error) for error in errors] == [ZeroDivisionError]

    def test_a_failure_to_write_at_an_error_does_not_hide_it(self, engine_class):
        class Broken(Memory):
            def write(self, records):
                raise OSError("the disk is full")

        with pytest.raises(ZeroDivisionError):
            attach(engine_class(lambda engine, batch: torch.tensor(1.0 / batch)), Broken(every=1)).run([1, 0])

    def test_an_interrupted_run_has_written_what_it_recorded(self):
        memory = Memory(every=1)
        engine = attach(Engine(lambda engine, batch: torch.tensor(1.0)), memory)
        engine.add_event_handler(Events.ITERATION_COMPLETED(once=2), lambda engine: engine.interrupt())
        engine.run(range(4))

        assert len(memory.records) == 2
        engine.run(range(4))
        assert [record.iteration for record in memory.records] == [1, 2, 3, 4]

    def test_a_run_that_ends_without_completed_is_written_and_closed(self):
        memory = Memory(every=1)
        engine = attach(Engine(lambda engine, batch: torch.tensor(1.0)), memory)
        engine.add_event_handler(
            Events.ITERATION_COMPLETED(once=2), lambda engine: engine.terminate(skip_completed=True)
        )
        engine.run(range(4))

        assert [record.iteration for record in memory.records] == [1, 2]
        assert memory.calls == ["open after 0", "close"]

    def test_the_next_run_on_the_same_logger_goes_on(self, engine_class):
        memory = Memory(every=1)
        engine = attach(engine_class(lambda engine, batch: torch.tensor(1.0)), memory)
        engine.run(range(2), max_epochs=1)
        engine.run(range(2), max_epochs=2)

        assert [record.iteration for record in memory.records] == [1, 2, 3, 4]
        assert memory.calls == ["open after 0", "close", "open after 2", "close"]

    def test_every_process_but_the_first_writes_nothing(self, monkeypatch):
        monkeypatch.setattr("ignite.distributed.get_rank", lambda: 1)
        memory = Memory(every=1)
        attach(Engine(lambda engine, batch: torch.tensor(1.0)), memory).run(range(3))

        assert memory.calls == []
        assert memory.records == []
        assert memory.state_dict()["records_written"] is None


class TestTheThread:
    def test_it_writes_in_order_beside_the_one_that_trains(self):
        memory = Memory(every=1)
        attach(Engine(lambda engine, batch: torch.tensor(1.0)), memory).run(range(20), max_epochs=10)

        assert [record.iteration for record in memory.records] == list(range(1, 201))
        assert threading.main_thread() not in memory.threads

    def test_the_training_goes_on_while_it_writes_and_a_state_is_given_when_it_has(self):
        may_write = threading.Event()
        seen = []

        class Slow(Memory):
            def write(self, records):
                assert may_write.wait(60)
                super().write(records)

        memory = Slow(every=1)
        engine = attach(Engine(lambda engine, batch: torch.tensor(1.0)), memory)

        @engine.on(Events.EPOCH_STARTED(once=3))
        def look():
            seen.append(len(memory.records))
            may_write.set()
            seen.append(memory.state_dict()["records_written"])

        engine.run(range(2), max_epochs=3)

        assert seen == [0, 4]

    def test_its_error_is_raised_by_the_training_and_nothing_is_written_behind_what_is_missing(self):
        class Full(Memory):
            def write(self, records):
                if records[0].epoch == 2:
                    raise OSError(28, "No space left on device")
                super().write(records)

        memory = Full(every=1)
        engine = attach(Engine(lambda engine, batch: torch.tensor(1.0)), memory)
        engine.add_event_handler(Events.EPOCH_STARTED, lambda: memory.flush())

        with pytest.raises(OSError, match="No space left"):
            engine.run(range(2), max_epochs=5)

        assert engine.state.epoch == 3
        assert [record.iteration for record in memory.records] == [1, 2]

    def test_an_error_in_the_last_write_ends_the_run_with_it_too(self, engine_class):
        class Full(Memory):
            def write(self, records):
                raise OSError(28, "No space left on device")

        with pytest.raises(OSError, match="No space left"):
            attach(engine_class(lambda engine, batch: torch.tensor(1.0)), Full(every=1)).run(range(2))

    @pytest.mark.parametrize("end", ["at the end", "terminated", "by an error"])
    def test_it_is_there_only_while_a_run_goes_on(self, end):
        def step(engine, batch):
            if batch == 5 and end == "terminated":
                engine.terminate(skip_completed=True)
            return torch.tensor(1.0 / (batch if end == "by an error" else 1))

        engine = attach(Engine(step), Memory(every=1))
        engine.add_event_handler(Events.EPOCH_STARTED, lambda: before.extend(writer_threads()))
        before = []
        with contextlib.suppress(ZeroDivisionError):
            engine.run([4, 5, 0])

        assert before == []
        assert writer_threads() == []

    def test_an_interruption_waits_for_it(self):
        memory = Memory(every=1)
        engine = attach(Engine(lambda engine, batch: torch.tensor(1.0)), memory)
        engine.add_event_handler(Events.ITERATION_COMPLETED(once=2), lambda engine: engine.interrupt())
        engine.run(range(4))

        assert [record.iteration for record in memory.records] == [1, 2]

    @pytest.mark.parametrize("how", ["fork", "spawn"])
    def test_workers_of_a_loader_that_are_made_meanwhile_do_their_work(self, how):
        memory = Memory(every=1)
        loader = torch.utils.data.DataLoader(torch.arange(6.0), num_workers=1, multiprocessing_context=how)
        attach(Engine(lambda engine, batch: batch.sum()), memory).run(loader, max_epochs=3 if how == "fork" else 1)

        assert memory.column("loss")[:6] == [(number + 1, float(number)) for number in range(6)]


class TestAfterACheckpoint:
    def test_a_state_that_is_loaded_in_mid_run_drops_what_waits_and_opens_anew(self):
        memory = Memory(every=1)
        engine = Engine(lambda engine, batch: torch.tensor(1.0))
        states = []

        @engine.on(Events.ITERATION_STARTED)
        def keep_or_go_back(engine):
            if engine.state.iteration == 2:
                states.append(memory.state_dict())
            elif engine.state.iteration == 4:
                memory.flush()
                memory.load_state_dict(states[0])

        attach(engine, memory).run(range(5))

        assert states[0]["records_written"] == 1
        assert memory.calls == ["open after 0", "close", "open after 3", "close"]
        assert memory.records_written == 3

    def test_a_state_goes_through_a_state_dict(self):
        memory, other = Memory(every=1), Memory(every=1)
        attach(Engine(lambda engine, batch: torch.tensor(1.0)), memory).run(range(3))
        other.load_state_dict(memory.state_dict())

        assert other.state_dict() == memory.state_dict() == {"records_written": 3, "epoch_recorded": 1, "seen": {}}


def test_zero_for_every_is_refused():
    with pytest.raises(ValueError, match="every=0"):
        Memory(every=0)


def test_a_logger_that_does_not_say_how_it_writes_is_told_so():
    with pytest.raises(NotImplementedError, match=r"override write\(records\)"):
        attach(Engine(lambda engine, batch: torch.tensor(1.0)), Logger(every=1)).run([0])


def test_it_can_be_detached(engine_class):
    memory = Memory(every=1)
    engine = attach(engine_class(lambda engine, batch: torch.tensor(1.0)), memory)
    memory.detach(engine)
    engine.run(range(3))

    assert memory.records == []
