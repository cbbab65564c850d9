import logging
import math

import numpy as np
import pytest
import torch
from ignite.engine import create_supervised_trainer
from torch import nn
from torch.nn import functional as F

from camshaft.engine import Events, Phase
from camshaft.handlers import Handler, On, OptimizerStep, TerminateOnNaN

NAN, INF = math.nan, math.inf


class AsOnAnAccelerator(TerminateOnNaN):
    """Treats every tensor as if it lay on a device for which one must wait."""

    @staticmethod
    def is_costly(value):
        return True


def losses(*values, dtype=torch.float32):
    values = iter(values)
    return lambda engine, batch: torch.tensor(next(values), dtype=dtype)


class TestOnTheCPU:
    @pytest.mark.parametrize("value", [NAN, INF, -INF])
    def test_ends_the_run_at_once(self, engine_of, value):
        guard = TerminateOnNaN()
        assert engine_of(losses(1, 2, value, 3), guard).run([0] * 4).iteration == 3
        assert guard.found[:2] == (3, "loss")
        assert str(guard.found[2]) == str(float(value))

    def test_lets_a_finite_run_end_by_itself(self, engine_of):
        guard = TerminateOnNaN()
        assert engine_of(losses(1, 2, 3, 4), guard).run([0] * 4).iteration == 4
        assert guard.found is None

    def test_names_the_value_and_the_iteration_in_a_warning(self, engine_of, caplog):
        with caplog.at_level(logging.WARNING):
            engine_of(losses(1, NAN), TerminateOnNaN()).run([0] * 4)
        assert "loss is nan after iteration 2" in caplog.text

    def test_sees_plain_numbers(self, engine_of):
        values = iter([1.0, np.float32(1), NAN])
        assert engine_of(lambda engine, batch: next(values), TerminateOnNaN()).run([0] * 4).iteration == 3

    def test_sees_the_loss_of_a_stock_trainer(self):
        model = nn.Linear(1, 1)
        trainer = create_supervised_trainer(model, torch.optim.SGD(model.parameters(), lr=1e30), F.mse_loss)
        guard = TerminateOnNaN()
        guard.attach(trainer)
        trainer.run([(torch.ones(2, 1), torch.zeros(2, 1))] * 50)
        assert guard.found[0] == trainer.state.iteration < 50

    def test_sees_a_loss_that_still_has_its_graph(self, engine_of):
        weight = torch.ones(1, requires_grad=True)
        assert engine_of(lambda engine, batch: weight * NAN, TerminateOnNaN()).run([0] * 4).iteration == 1


class TestOnAnAccelerator:
    def test_ends_the_run_when_it_next_looks_and_names_the_first_bad_iteration(self, engine_of):
        guard = AsOnAnAccelerator(every=4)
        assert engine_of(losses(1, 2, 3, 4, 5, INF, NAN, 6, 7), guard).run([0] * 9).iteration == 8
        assert guard.found == (6, "loss", INF)

    def test_looks_at_the_end_of_an_epoch(self, engine_of):
        guard = AsOnAnAccelerator(every=100)
        assert engine_of(losses(*[1, NAN, 2] * 2), guard).run([0] * 3, max_epochs=2).epoch == 1
        assert guard.found[0] == 2

    def test_looks_at_the_end_of_a_run_that_ends_within_an_epoch(self, engine_of):
        guard = AsOnAnAccelerator(every=100)
        engine_of(losses(1, NAN, 2), guard).run([0] * 9, max_iters=3)
        assert guard.found[0] == 2

    @pytest.mark.parametrize("event", [Events.ITERATION_COMPLETED(every=3), Events.ITERATION_COMPLETED(once=3)])
    def test_looks_before_anything_is_saved(self, engine_of, event):
        class Saver(Handler):
            listens = (On(event, Phase.SAVE, "save"), On(Events.EPOCH_COMPLETED, Phase.SAVE, "save"))

            def save(self, engine):
                saved.append((engine.state.iteration, guard.found))

        saved, guard, saver = [], AsOnAnAccelerator(every=100), Saver()
        engine = engine_of(losses(1, NAN, 3, 4), saver, guard)
        engine.run([0] * 4)
        assert [(iteration, found[0]) for iteration, found in saved] == [(3, 2)]
        guard.detach(engine)
        assert not any(engine.has_event_handler(guard.look, event) for event in Events)

    def test_does_not_look_in_each_iteration_because_another_listens_to_each(self, engine_of):
        class Saver(Handler):
            listens = (On(Events.ITERATION_COMPLETED, Phase.SAVE, "save"),)

            def save(self, engine):
                pass

        guard = AsOnAnAccelerator(every=4)
        assert engine_of(losses(1, NAN, 3, 4, 5), Saver(), guard).run([0] * 5).iteration == 4

    def test_keeps_losses_that_are_written_over_in_place(self, engine_of):
        buffer = torch.zeros(())
        values = iter([1.0, NAN, 2.0])
        guard = AsOnAnAccelerator(every=3)
        engine_of(lambda engine, batch: buffer.fill_(next(values)), guard).run([0] * 3)
        assert guard.found[0] == 2

    def test_takes_no_finite_number_of_another_precision_for_infinite(self, engine_of):
        guard = AsOnAnAccelerator(every=3)
        engine_of(losses(1e300, 1e300, 1e300, 1e300, dtype=torch.float64), guard).run([0] * 4)
        assert guard.found is None

    def test_follows_a_change_of_precision(self, engine_of):
        values = iter(
            [torch.tensor(1.0), torch.tensor(NAN), torch.tensor(1e300).double(), torch.tensor(2.0).bfloat16()]
        )
        guard = AsOnAnAccelerator(every=4)
        engine_of(lambda engine, batch: next(values), guard).run([0] * 4)
        assert guard.found[0] == 2

    def test_sees_losses_of_one_element_with_a_graph_and_in_inference_mode(self, engine_of):
        weight = torch.full((1,), NAN, requires_grad=True)

        def step(engine, batch):
            with torch.inference_mode(engine.state.iteration == 1):
                return weight * 2

        guard = AsOnAnAccelerator(every=2)
        engine_of(step, guard).run([0] * 2)
        assert guard.found[0] == 1


class TestWhatIsWatched:
    def found_in(self, engine_of, output, **arguments):
        guard = TerminateOnNaN(**arguments)
        engine_of(lambda engine, batch: output, guard).run([0])
        return guard.found and guard.found[1]

    def test_is_the_loss_of_a_mapping_and_no_other_entry(self, engine_of):
        assert self.found_in(engine_of, {"loss": torch.tensor(NAN), "y_pred": torch.ones(3)}) == "loss"
        assert self.found_in(engine_of, {"loss": torch.tensor(1.0), "perplexity": INF}) is None

    def test_is_every_scalar_of_a_mapping_without_loss(self, engine_of):
        output = {"generator": 1.0, "discriminator": torch.tensor(NAN), "images": torch.full((3,), NAN), "n": 3}
        assert self.found_in(engine_of, output) == "discriminator"

    def test_is_every_scalar_of_a_tuple(self, engine_of):
        assert self.found_in(engine_of, (torch.ones(3), torch.tensor(1.0), NAN)) == "output 2"

    def test_is_what_is_named(self, engine_of):
        assert self.found_in(engine_of, {"loss": 1.0, "kl": NAN}, watch=["loss", "kl"]) == "kl"
        assert self.found_in(engine_of, {"loss": NAN, "kl": 1.0}, watch="kl") is None

    def test_must_be_there_where_it_is_named(self, engine_of):
        with pytest.raises(ValueError, match=r"watches 'kl', but the step returned only \['loss'\]"):
            self.found_in(engine_of, {"loss": 1.0}, watch=["kl"])

    @pytest.mark.parametrize("output", [torch.ones(3), "text", {"y_pred": torch.ones(3)}])
    def test_must_be_something(self, engine_of, output):
        with pytest.raises(ValueError, match="found no loss in what the step returned"):
            self.found_in(engine_of, output)

    def test_is_nothing_in_a_batch_that_is_skipped(self, engine_of):
        model = nn.Linear(1, 1)
        step = OptimizerStep(torch.optim.SGD(model.parameters(), lr=0.1))

        def step_function(engine, batch):
            return None if engine.state.iteration == 1 else model(batch).sum() * NAN

        assert engine_of(step_function, TerminateOnNaN(), step).run([torch.ones(1, 1)] * 3).iteration == 2

    def test_is_missed_aloud_where_the_step_never_returns_anything(self, engine_of, caplog):
        with caplog.at_level(logging.WARNING):
            engine_of(lambda engine, batch: None, TerminateOnNaN()).run([0] * 3, max_epochs=2)
        assert caplog.text.count("has nothing to look at") == 1


def test_a_new_run_begins_with_a_clean_slate(engine_of):
    guard = AsOnAnAccelerator(every=10)
    engine = engine_of(losses(1, NAN, 2, 3), guard)
    engine.run([0] * 2)
    engine.state.max_epochs = None
    engine.run([0] * 2)
    assert guard.found is None


@pytest.mark.parametrize("every", [0, 2.5])
def test_a_rhythm_that_is_no_positive_integer_is_refused(every):
    with pytest.raises(ValueError, match=f"a positive integer, but got {every}"):
        TerminateOnNaN(every=every)
