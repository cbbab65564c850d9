import math

import numpy as np
import pytest
import torch
from ignite.metrics import Average

from camshaft.engine import Engine, Events
from camshaft.handlers import Evaluate, Metrics
from camshaft.handlers.monitor import Monitor, values_of


class TestMode:
    @pytest.mark.parametrize(
        "name", ["val_accuracy", "acc", "val_top5_acc", "AUROC", "f1", "mAP", "map50", "mIoU", "psnr", "score", "r2"]
    )
    def test_auto_takes_the_maximum_of_what_should_become_more(self, name):
        assert Monitor(name).mode == "max"

    @pytest.mark.parametrize("name", ["loss", "val_error", "mape", "rmse", "accumulated_loss", "f1_loss", "perplexity"])
    def test_auto_takes_the_minimum_of_everything_else(self, name):
        assert Monitor(name).mode == "min"

    def test_that_is_given_is_taken(self):
        assert Monitor("accuracy", "min").mode == "min"

    def test_that_is_unknown_is_refused(self):
        with pytest.raises(ValueError, match="is 'min', 'max' or 'auto', not 'best'"):
            Monitor("loss", "best")


class TestImproves:
    def test_is_what_is_better_than_the_best_so_far(self):
        monitor = Monitor("loss")
        assert [monitor.improves(value) for value in (3.0, 2.0, 2.5, 2.0, 1.0)] == [True, True, False, False, True]
        assert monitor.best == 1.0

    def test_needs_more_than_min_delta(self):
        monitor = Monitor("accuracy", min_delta=0.5)
        assert [monitor.improves(value) for value in (1.0, 1.5, 1.75)] == [True, False, True]

    def test_holds_of_negative_values(self):
        monitor = Monitor("log_likelihood", "max", min_delta=0.5)
        assert [monitor.improves(value) for value in (-10.0, -9.75, -9.0)] == [True, False, True]

    @pytest.mark.parametrize("mode", ["min", "max"])
    def test_never_holds_of_nan_which_does_not_block_later_values(self, mode):
        monitor = Monitor("x", mode)
        assert [monitor.improves(value) for value in (math.nan, 1.0, math.nan)] == [False, True, False]
        assert monitor.best == 1.0

    def test_refuses_a_negative_min_delta(self):
        with pytest.raises(ValueError, match=r"must not be negative, but is -0.1"):
            Monitor("loss", min_delta=-0.1)


class TestRead:
    def read_each(self, event, monitor, engine):
        read = []
        engine.add_event_handler(event, lambda engine: read.append(monitor.read(engine)))
        return read

    def test_finds_the_loss_that_the_step_returned_alone(self, engine_of):
        engine = engine_of(lambda engine, batch: torch.tensor(float(batch)))
        read = self.read_each(Events.ITERATION_COMPLETED, Monitor("loss"), engine)
        engine.run([1, 2])
        assert read == [1.0, 2.0]

    def test_takes_a_loss_that_still_has_its_graph(self, engine_of):
        weight = torch.ones(1, requires_grad=True)
        engine = engine_of(lambda engine, batch: 2 * weight)
        read = self.read_each(Events.EPOCH_COMPLETED, Monitor("loss"), engine)
        engine.run([1])
        assert read == [2.0]

    def test_finds_an_entry_of_what_the_step_returned(self, engine_of):
        engine = engine_of(lambda engine, batch: {"loss": 1.0, "error": np.float32(batch)})
        read = self.read_each(Events.ITERATION_COMPLETED, Monitor("error"), engine)
        engine.run([1, 2])
        assert read == [1.0, 2.0]

    def test_prefers_a_metric_to_an_output_of_the_same_name(self, engine_of):
        engine = engine_of(lambda engine, batch: {"loss": 1.0})
        engine.state.metrics["loss"] = 7.0
        read = self.read_each(Events.EPOCH_COMPLETED, Monitor("loss"), engine)
        engine.run([1])
        assert read == [7.0]

    def test_complains_at_the_end_of_an_epoch_and_names_what_there_is(self, engine_of):
        engine = engine_of(lambda engine, batch: {"loss": 1.0, "y_pred": torch.ones(3)})
        engine.state.metrics["val_loss"] = 2.0
        self.read_each(Events.EPOCH_COMPLETED, Monitor("val_los"), engine)
        with pytest.raises(
            ValueError, match=r"'val_los' is monitored.*iteration 2 \(epoch 1\).*is: 'loss', 'val_loss'"
        ):
            engine.run([1, 2])

    def test_waits_for_the_end_of_the_first_epoch_before_it_complains(self, engine_of):
        engine = engine_of(lambda engine, batch: None)
        read = self.read_each(Events.ITERATION_COMPLETED, Monitor("accuracy"), engine)
        with pytest.raises(ValueError, match="There is: nothing yet"):
            engine.run([1, 2], max_epochs=2)
        assert read == [None, None]

    def test_takes_no_value_twice_that_evaluate_makes_more_seldom(self, engine_of):
        values = iter([0.5, 0.5])
        evaluator = Engine(lambda engine, batch: None)
        evaluator.add_event_handler(Events.COMPLETED, lambda engine: engine.state.metrics.update(loss=next(values)))
        model = torch.nn.Linear(1, 1)
        evaluate = Evaluate(evaluator, [0], at=Events.EPOCH_COMPLETED(every=2), modules=[model])
        engine = engine_of(lambda engine, batch: None, evaluate)
        read = self.read_each(Events.EPOCH_COMPLETED, Monitor("val_loss"), engine)
        engine.run([0], max_epochs=5)
        assert read == [None, 0.5, None, 0.5, None]

    def test_waits_for_a_metric_of_the_trainer_itself(self, engine_of):
        engine = engine_of(lambda engine, batch: float(batch), Metrics(mean=Average()))
        read = self.read_each(Events.ITERATION_COMPLETED, Monitor("mean"), engine)
        engine.run([1, 3], max_epochs=2)
        assert read == [None, None, 2.0, None]

    def test_takes_no_value_that_is_left_from_a_longer_run_before(self, engine_of):
        evaluator = Engine(lambda engine, batch: None)
        evaluator.state.metrics["loss"] = 0.5
        evaluate = Evaluate(evaluator, [0], at=Events.EPOCH_COMPLETED(every=2), modules=[torch.nn.Linear(1, 1)])
        engine = engine_of(lambda engine, batch: None, evaluate)
        engine.run([0], max_epochs=2)
        read = self.read_each(Events.EPOCH_COMPLETED, Monitor("val_loss"), engine)
        engine.run([0], max_epochs=2)
        assert read == [None, 0.5]

    def test_after_a_reset_takes_the_values_of_a_new_run(self, engine_of):
        evaluator = Engine(lambda engine, batch: None)
        evaluator.state.metrics["loss"] = 0.5
        engine = engine_of(lambda engine, batch: None, Evaluate(evaluator, [0], modules=[torch.nn.Linear(1, 1)]))
        monitor = Monitor("val_loss")
        read = self.read_each(Events.EPOCH_COMPLETED, monitor, engine)
        engine.run([0], max_epochs=2)
        monitor.reset()
        engine.run([0], max_epochs=2)
        assert read == [0.5, 0.5, 0.5, 0.5]
        assert monitor.best == math.inf


def test_the_state_keeps_the_best_and_what_was_read():
    engine = Engine(lambda engine, batch: None)
    evaluator = Engine(lambda engine, batch: None)
    evaluator.state.metrics["loss"] = 0.5
    engine.attach(Evaluate(evaluator, [0], modules=[torch.nn.Linear(1, 1)])).run([0])
    monitor, other = Monitor("val_loss"), Monitor("val_loss")
    monitor.improves(monitor.read(engine))
    other.load_state_dict(monitor.state_dict())
    assert other.best == 0.5
    assert other.read(engine) is None


def test_values_are_scalars_only_and_are_left_where_they_are():
    engine = Engine(lambda engine, batch: {"loss": torch.ones(1), "logits": torch.ones(2), "name": "x", "ok": True})
    engine.state.metrics["accuracy"] = np.float64(0.5)
    engine.run([0])
    values = values_of(engine)
    assert list(values) == ["loss", "accuracy"]
    assert values["loss"] is engine.state.output["loss"]
