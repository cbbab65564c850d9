import io
import math

import pytest
import torch
from ignite.engine import create_supervised_trainer
from torch import nn
from torch.nn import functional as F

from camshaft.engine import Engine, Events
from camshaft.handlers import EMA, EarlyStopping, Evaluate, GradientAccumulation, OptimizerStep, TimeLimit


def losses_of(values):
    """A step whose loss is the next of ``values``."""
    values = iter(values)
    return lambda engine, batch: next(values)


def evaluator_giving(**values):
    """An evaluator each of whose metrics is the next of its values each time that it runs."""
    evaluator = Engine(lambda engine, batch: None)
    iterators = {name: iter(each) for name, each in values.items()}

    @evaluator.on(Events.COMPLETED)
    def measure(engine):
        engine.state.metrics.update({name: next(each) for name, each in iterators.items()})

    return evaluator


def counting_model():
    """A model whose only weight each optimizer step increases by one."""
    model = nn.Linear(1, 1, bias=False)
    nn.init.zeros_(model.weight)
    return model, OptimizerStep(torch.optim.SGD(model.parameters(), lr=1.0))


def step_of(model):
    return lambda engine, batch: -model(batch).sum()


BATCH = torch.ones(1, 1)


class TestPatience:
    @pytest.mark.parametrize(("patience", "epochs"), [(1, 3), (2, 4), (3, 8)])
    def test_is_how_many_values_without_improvement_end_the_run(self, engine_of, patience, epochs):
        losses = [3.0, 2.0, 2.5, 2.0, 1.0, 1.1, 1.2, 1.3, 1.4]
        engine = engine_of(losses_of(losses), EarlyStopping("loss", patience))
        assert engine.run([None], max_epochs=9).epoch == epochs

    def test_begins_anew_after_an_improvement(self, engine_of):
        stopping = EarlyStopping("loss", patience=2)
        engine_of(losses_of([3.0, 4.0, 2.0, 4.0, 1.0]), stopping).run([None], max_epochs=5)
        assert (stopping.counter, stopping.monitor.best) == (0, 1.0)

    def test_of_less_than_one_is_refused(self):
        with pytest.raises(ValueError, match="a patience of at least 1, an integer, but got 0"):
            EarlyStopping("loss", patience=0)
        with pytest.raises(ValueError, match=r"but got 1.5"):
            EarlyStopping("loss", patience=1.5)


class TestWhatCounts:
    def test_a_metric_called_an_accuracy_should_become_more(self, engine_of):
        evaluate = Evaluate(evaluator_giving(accuracy=[0.5, 0.7, 0.6, 0.9]), [0], modules=[nn.Identity()])
        engine = engine_of(lambda engine, batch: None, EarlyStopping("val_accuracy", patience=1), evaluate)
        assert engine.run([None], max_epochs=4).epoch == 3

    def test_an_improvement_smaller_than_min_delta_is_none(self, engine_of):
        stopping = EarlyStopping("loss", patience=2, min_delta=0.5)
        assert engine_of(losses_of([3.0, 2.75, 2.6, 0.0]), stopping).run([None], max_epochs=4).epoch == 3

    def test_nan_is_never_an_improvement(self, engine_of):
        stopping = EarlyStopping("loss", patience=2)
        engine = engine_of(losses_of([math.nan, 1.0, math.nan, math.nan, 0.5]), stopping)
        assert engine.run([None], max_epochs=5).epoch == 4
        assert stopping.monitor.best == 1.0

    def test_a_value_that_was_not_made_anew_is_not_counted(self, engine_of):
        evaluator = evaluator_giving(loss=[1.0, 2.0, 2.0])
        evaluate = Evaluate(evaluator, [0], at=Events.EPOCH_COMPLETED(every=3), modules=[nn.Identity()])
        engine = engine_of(lambda engine, batch: None, evaluate, EarlyStopping("val_loss", patience=2))
        assert engine.run([None], max_epochs=20).epoch == 9

    def test_at_another_event_is_possible(self, engine_of):
        stopping = EarlyStopping("loss", patience=1, at=Events.ITERATION_COMPLETED(every=2))
        assert engine_of(losses_of([1.0, 2.0, 9.0, 3.0, 0.0]), stopping).run([None] * 5).iteration == 4

    def test_a_value_that_nothing_produces_is_refused_after_the_first_epoch(self, engine_of):
        engine = engine_of(losses_of([1.0] * 9), EarlyStopping("val_loss"))
        with pytest.raises(ValueError, match=r"'val_loss' is monitored, but nothing .* There is: 'loss'"):
            engine.run([None] * 3, max_epochs=3)
        assert engine.state.epoch == 1


class TestRestoringTheBest:
    def run(self, engine_of, losses, epochs=9, handlers=(), batches=1, **arguments):
        model, optimizer_step = counting_model()
        arguments = {"restore_best": True, "patience": 3} | arguments
        stopping = EarlyStopping("val_loss", **arguments)
        evaluate = Evaluate(evaluator_giving(loss=losses), [0], modules=[model])
        engine = engine_of(step_of(model), stopping, *handlers, evaluate, optimizer_step)
        engine.run([BATCH] * batches, max_epochs=epochs)
        return model.weight.item(), engine

    def test_is_off_by_default(self, engine_of):
        weight, _ = self.run(engine_of, [3, 1, 2, 2, 2], restore_best=None)
        assert weight == 5.0

    def test_brings_back_the_weights_of_the_best_value_after_it_stopped_the_run(self, engine_of):
        weight, engine = self.run(engine_of, [3, 1, 2, 2, 2])
        assert (weight, engine.state.epoch) == (2.0, 5)

    def test_brings_them_back_after_a_run_of_full_length(self, engine_of):
        weight, engine = self.run(engine_of, [3, 1, 2], epochs=3)
        assert (weight, engine.state.epoch) == (2.0, 3)

    def test_leaves_the_weights_where_no_value_was_ever_good(self, engine_of):
        weight, _ = self.run(engine_of, [math.nan] * 3)
        assert weight == 3.0

    def test_comes_after_the_step_of_a_last_incomplete_group(self, engine_of):
        weight, _ = self.run(engine_of, [3, 1, 2, 2], handlers=[GradientAccumulation(2)], batches=3, patience=2)
        assert weight == 4.0

    def test_comes_before_a_test_at_the_end_and_after_what_is_saved_on_termination(self, engine_of):
        model, optimizer_step = counting_model()
        seen = {}
        tester = Engine(lambda engine, batch: seen.update(tested=model.weight.item()))
        engine = engine_of(
            step_of(model),
            Evaluate(tester, [0], at=Events.COMPLETED),
            EarlyStopping("val_loss", patience=1, restore_best=model),
            Evaluate(evaluator_giving(loss=[1, 2]), [0], modules=[model]),
            optimizer_step,
        )
        engine.add_event_handler(Events.TERMINATE, lambda: seen.update(terminated=model.weight.item()))
        engine.run([BATCH], max_epochs=3)
        assert seen == {"tested": 1.0, "terminated": 2.0}

    def test_finds_the_modules_of_a_stock_trainer(self):
        model = nn.Linear(1, 1)
        weights = []
        trainer = create_supervised_trainer(model, torch.optim.SGD(model.parameters(), lr=0.1), F.mse_loss)
        trainer.add_event_handler(Events.EPOCH_COMPLETED, lambda: weights.append(model.weight.item()))
        evaluator = evaluator_giving(loss=[2, 1, 3])
        for handler in (
            Evaluate(evaluator, [0], modules=[model]),
            EarlyStopping("val_loss", patience=1, restore_best=True),
        ):
            handler.attach(trainer)
        trainer.run([(BATCH, BATCH)], max_epochs=5)
        assert model.weight.item() == weights[1] != weights[2]

    def test_of_named_modules_leaves_others_as_they_are(self, engine_of):
        model, optimizer_step = counting_model()
        other, other_step = counting_model()

        def step(engine, batch):
            optimizer_step(-model(batch).sum())
            other_step(-other(batch).sum())

        evaluate = Evaluate(evaluator_giving(loss=[1, 2]), [0], modules=[model])
        stopping = EarlyStopping("val_loss", patience=1, restore_best=[model])
        engine_of(step, optimizer_step, other_step, evaluate, stopping).run([BATCH], max_epochs=9)
        assert (model.weight.item(), other.weight.item()) == (1.0, 2.0)

    def test_brings_back_the_averages_with_the_weights(self, engine_of):
        model, optimizer_step = counting_model()
        ema = EMA(model, decay=0.5)
        evaluate = Evaluate(evaluator_giving(loss=[1, 2, 2]), [0], modules=[model], ema=ema)
        stopping = EarlyStopping("val_loss", patience=2, restore_best=True)
        engine_of(step_of(model), optimizer_step, evaluate, stopping, ema).run([BATCH], max_epochs=9)
        with ema.applied():
            assert model.weight.item() == 0.5
        assert model.weight.item() == 1.0

    def test_knows_compiled_modules_by_the_names_of_the_module_itself(self):
        model, optimizer_step = counting_model()
        compiled = torch.compile(model, backend="eager")
        stopping = EarlyStopping("val_loss", patience=1, restore_best=compiled)
        evaluate = Evaluate(evaluator_giving(loss=[1, 2]), [0], modules=[model])
        Engine(step_of(compiled)).attach(optimizer_step, evaluate, stopping).run([BATCH], max_epochs=9)
        assert model.weight.item() == 1.0
        assert list(stopping.state_dict()["best_weights"]["0"]) == ["weight"]

    def test_of_a_step_without_modules_is_refused(self, engine_of):
        engine = engine_of(losses_of([1.0]), EarlyStopping("loss", restore_best=True))
        with pytest.raises(ValueError, match="found no module in the step"):
            engine.run([None])


class TestWhatIsTold:
    def told(self, engine_of, caplog, losses, **options):
        engine_of(losses_of(losses), EarlyStopping("loss", 2, **options)).run([None], max_epochs=len(losses))
        return [message for message in caplog.messages if message.startswith("EarlyStopping")]

    def test_is_one_line_when_it_has_ended_the_run(self, engine_of, caplog):
        assert self.told(engine_of, caplog, [3.0, 0.025441, 1.0, 1.0, 1.0]) == [
            "EarlyStopping: loss has not improved 2 times in a row (best 0.02544 in epoch 2): "
            "the run ends in epoch 4, with the last weights."
        ]

    def test_says_that_the_best_weights_are_back(self, engine_of, caplog):
        (line,) = self.told(engine_of, caplog, [3.0, 4.0, 4.0, 1.0], restore_best=nn.Linear(1, 1))
        assert line.endswith("the run ends in epoch 3, with the best weights.")

    def test_is_nothing_where_the_run_came_to_its_end(self, engine_of, caplog):
        assert self.told(engine_of, caplog, [3.0, 4.0, 2.0]) == []


class TestState:
    def start(self, engine_of, losses, state=None):
        model, optimizer_step = counting_model()
        stopping = EarlyStopping("val_loss", patience=3, restore_best=True)
        evaluate = Evaluate(evaluator_giving(loss=losses), [0], modules=[model])
        engine = engine_of(step_of(model), stopping, evaluate, optimizer_step)
        if state is not None:
            model.load_state_dict(state["model"])
            stopping.load_state_dict(state["stopping"])
            engine.load_state_dict(state["engine"])
        return model, stopping, engine

    def saved_after(self, engine_of, losses):
        model, stopping, engine = self.start(engine_of, losses)
        states = []

        @engine.on(Events.TERMINATE)
        def save(engine):
            file = io.BytesIO()
            state = {"model": model.state_dict(), "stopping": stopping.state_dict(), "engine": engine.state_dict()}
            torch.save(state, file)
            file.seek(0)
            states.append(torch.load(file, weights_only=True))

        engine.add_event_handler(Events.EPOCH_STARTED(once=len(losses) + 1), lambda engine: engine.terminate())
        engine.run([BATCH], max_epochs=9)
        states[0]["engine"]["iteration"] = len(losses)
        return states[0]

    def test_goes_on_in_a_resumed_run(self, engine_of):
        state = self.saved_after(engine_of, [3, 1, 2, 2])
        model, stopping, engine = self.start(engine_of, [2, 0], state)
        engine.run([BATCH])
        assert engine.state.epoch == 5
        assert stopping.monitor.best == 1.0
        assert model.weight.item() == 2.0  # the best of before

    def test_is_forgotten_where_the_same_engine_starts_a_new_run(self, engine_of):
        model, stopping, engine = self.start(engine_of, [1, 2, 2, 2, 5, 6, 6, 6])
        engine.run([BATCH], max_epochs=4)
        with torch.no_grad():
            model.weight.zero_()
        engine.state.max_epochs = None
        engine.run([BATCH], max_epochs=4)
        assert stopping.monitor.best == 5.0
        assert (engine.state.epoch, model.weight.item()) == (4, 1.0)

    def test_that_was_loaded_holds_even_where_the_run_begins_at_its_beginning(self, engine_of):
        stopping = EarlyStopping("loss", patience=2)
        stopping.load_state_dict({"monitor": {"best": 1.0, "last_read": None}, "counter": 1})
        assert engine_of(losses_of([2.0, 0.5]), stopping).run([None], max_epochs=2).epoch == 1

    def test_of_a_handler_without_restore_best_is_small(self):
        stopping = EarlyStopping("loss")
        assert stopping.state_dict().keys() == {"monitor", "counter", "best_epoch"}


def test_a_time_limit_beside_it_makes_no_difference_to_what_it_restores(engine_of):
    model, optimizer_step = counting_model()
    evaluate = Evaluate(evaluator_giving(loss=[1, 2, 3]), [0], modules=[model])
    stopping = EarlyStopping("val_loss", restore_best=model)
    engine = engine_of(step_of(model), TimeLimit("1h"), optimizer_step, evaluate, stopping)
    engine.run([BATCH], max_epochs=2)
    assert model.weight.item() == 1.0
