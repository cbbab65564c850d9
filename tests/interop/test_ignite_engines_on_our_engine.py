"""What Ignite builds of engines works when it is built of ours: supervised steps, set-ups, determinism, processes."""

from __future__ import annotations

import io
from contextlib import redirect_stderr

import ignite.contrib.engines.tbptt
import ignite.engine
import pytest
import torch
from ignite.contrib.engines.common import (
    add_early_stopping_by_val_score,
    gen_save_best_models_by_val_score,
    save_best_model_by_val_score,
    setup_common_training_handlers,
    setup_tb_logging,
)
from ignite.contrib.engines.tbptt import Tbptt_Events, create_supervised_tbptt_trainer
from ignite.engine import (
    DeterministicEngine,
    Events,
    create_supervised_evaluator,
    create_supervised_trainer,
    supervised_evaluation_step,
    supervised_training_step,
)
from ignite.handlers import PiecewiseLinear
from ignite.metrics import Accuracy, Loss
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from camshaft.engine import Engine
from tests.interop.same import assert_same
from tests.interop.test_ignite_handlers_on_our_engine import contents_of, scalars_in
from tests.interop.training import Training, batches, network

row = pytest.mark.row


# ------------------------------------------------------------------------------------------------- supervised steps


@row("ignite", "supervised_training_step", "supervised_evaluation_step")
def test_the_supervised_steps_train_and_evaluate(outcome_of) -> None:
    def program(engine_class, directory):
        model = network()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        step = supervised_training_step(model, optimizer, F.cross_entropy, gradient_accumulation_steps=2)
        trainer = engine_class(step)
        evaluator = engine_class(supervised_evaluation_step(model))
        Accuracy().attach(evaluator, "accuracy")
        losses = []
        trainer.add_event_handler(Events.ITERATION_COMPLETED, lambda: losses.append(trainer.state.output))
        trainer.run(batches(), max_epochs=6)
        return losses, evaluator.run(batches()).metrics["accuracy"], model.state_dict()

    losses, accuracy, _ = outcome_of(program)
    assert losses[-1] < losses[0]
    assert accuracy > 0.5


@row("ignite", "create_supervised_trainer", "create_supervised_evaluator")
def test_the_factories_build_of_our_engine_where_it_stands_in_ignites_place(outcome_of, monkeypatch) -> None:
    def program(engine_class, directory):
        monkeypatch.setattr(ignite.engine, "Engine", engine_class)
        model = network()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        trainer = create_supervised_trainer(
            model, optimizer, F.cross_entropy, output_transform=lambda *all_of: all_of[-1].item()
        )
        evaluator = create_supervised_evaluator(model, metrics={"accuracy": Accuracy(), "loss": Loss(F.cross_entropy)})
        monkeypatch.undo()
        assert type(trainer) is type(evaluator) is engine_class
        trainer.add_event_handler(Events.EPOCH_COMPLETED, lambda: evaluator.run(batches(2, seed=2)))
        trainer.run(batches(), max_epochs=6)
        return trainer.state.output, dict(evaluator.state.metrics), model.state_dict()

    _, metrics, _ = outcome_of(program)
    assert metrics["accuracy"] > 0.5


@row("ignite", "create_supervised_tbptt_trainer")
def test_truncated_backpropagation_fires_its_own_events(outcome_of, monkeypatch) -> None:
    def program(engine_class, directory):
        monkeypatch.setattr(ignite.contrib.engines.tbptt, "Engine", engine_class)
        model = torch.nn.RNNCell(2, 3)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

        class Unrolled(torch.nn.Module):
            def __init__(self):
                super().__init__()
                self.cell = model

            def forward(self, x, hidden=None):  # x  # (time, batch, 2)
                for at_time in x:
                    hidden = self.cell(at_time, hidden)
                return hidden, hidden

        trainer = create_supervised_tbptt_trainer(
            Unrolled(), optimizer, lambda y_pred, y: (y_pred - y[-1]).square().mean(), tbtt_step=2
        )
        monkeypatch.undo()
        fired = []
        for event in Tbptt_Events:
            trainer.add_event_handler(event, fired.append, event.name)
        trainer.run([(torch.ones(6, 4, 2), torch.zeros(6, 4, 3))] * 2)
        return fired, trainer.state.output, model.state_dict()

    fired, _, _ = outcome_of(program)
    assert fired == ["TIME_ITERATION_STARTED", "TIME_ITERATION_COMPLETED"] * 6


# ----------------------------------------------------------------------------------------------------------- set-ups


@row("ignite", "setup_common_training_handlers")
def test_the_common_handlers_save_schedule_log_and_end_the_run(outcome_of) -> None:
    def program(engine_class, directory):
        training = Training(engine_class)
        Accuracy().attach(training.evaluator, "accuracy")
        training.trainer.add_event_handler(Events.EPOCH_COMPLETED, lambda: training.evaluator.run(batches(2, seed=2)))
        with redirect_stderr(io.StringIO()) as bars:
            setup_common_training_handlers(
                training.trainer,
                to_save={"model": training.model, "optimizer": training.optimizer, "trainer": training.trainer},
                save_every_iters=4,
                output_path=str(directory / "common"),
                n_saved=2,
                lr_scheduler=PiecewiseLinear(training.optimizer, "lr", [(0, 0.1), (20, 0.0)]),
                output_names=["loss"],
                log_every_iters=2,
            )
            save_best_model_by_val_score(
                str(directory / "best"), training.evaluator, training.model, "accuracy", trainer=training.trainer
            )
            gen_save_best_models_by_val_score(
                lambda checkpoint, filename, metadata: None, training.evaluator, {"model": training.model}, "accuracy"
            )
            add_early_stopping_by_val_score(2, training.evaluator, training.trainer, "accuracy")
            logger = setup_tb_logging(
                str(directory / "log"),
                training.trainer,
                training.optimizer,
                evaluators={"validation": training.evaluator},
                log_every_iters=2,
            )
            rates = training.note(Events.ITERATION_COMPLETED, training.learning_rate)
            training.trainer.run(batches(), max_epochs=40)
            logger.close()
        saved = contents_of(directory / "common"), contents_of(directory / "best")
        return (
            training.trainer.state.epoch,
            rates,
            training.trainer.state.metrics,
            saved,
            scalars_in(directory / "log"),
            bars.getvalue().count("loss=") > 0,
        )

    epochs, rates, metrics, (common, best), scalars, shown = outcome_of(program)
    assert 3 <= epochs < 40
    assert rates[:2] == [0.1, pytest.approx(0.095)]
    assert list(metrics) == ["loss"]
    assert len(common) == 2
    assert len(best) == 3
    assert {"training/loss", "lr/group_0", "validation/accuracy"} <= {tag for _, tag, _ in scalars}
    assert shown


# ------------------------------------------------------------------------------------------------------ determinism


class Deterministic(DeterministicEngine, Engine):
    """Ignite's deterministic engine on ours."""


@pytest.fixture(params=["camshaft", "ignite"])
def deterministic(request) -> type[DeterministicEngine]:
    return {"camshaft": Deterministic, "ignite": DeterministicEngine}[request.param]


def batches_seen(engine_class, *, until: int | None = None, state=None, seed: int = 12):
    """The batches of each iteration, and the state after ``until`` of them; the program draws numbers before."""
    torch.manual_seed(seed)
    seen, kept = {}, {}
    engine = engine_class(lambda engine, batch: seen.__setitem__(engine.state.iteration, (batch[0], torch.rand(2))))
    if state is not None:
        engine.load_state_dict(state)
    if until is not None:
        engine.add_event_handler(Events.ITERATION_COMPLETED(once=until), lambda: kept.update(engine.state_dict()))
    torch.rand(3)
    engine.run(DataLoader(TensorDataset(torch.arange(12.0)), batch_size=3, shuffle=True), max_epochs=3)
    return seen, kept


@row("ignite", "DeterministicEngine")
def test_a_deterministic_run_is_the_same_each_time_and_as_on_ignites(deterministic) -> None:
    seen, _ = batches_seen(deterministic)
    assert len(seen) == 12
    assert_same(seen, batches_seen(deterministic)[0])
    assert_same(seen, batches_seen(DeterministicEngine)[0])
    assert not torch.equal(
        torch.stack([seen[i][0] for i in range(1, 5)]), torch.stack([seen[i][0] for i in range(5, 9)])
    )


@row("ignite", "DeterministicEngine")
@pytest.mark.parametrize("until", [4, 6, 8])
def test_a_deterministic_run_goes_on_from_an_epochs_end_as_if_it_had_not_ended(deterministic, until) -> None:
    whole, state = batches_seen(deterministic, until=until)
    rest, _ = batches_seen(deterministic, state=state)
    assert sorted(rest) == list(range(until + 1, 13))
    if until % 4 == 0:  # it promises nothing else
        assert_same(rest, {iteration: whole[iteration] for iteration in rest})
    assert_same(rest, batches_seen(DeterministicEngine, state=state)[0])


@row("ignite", "DeterministicEngine")
def test_a_deterministic_engine_is_attached_to_as_any_other(deterministic) -> None:
    ended = []
    engine = deterministic(lambda engine, batch: float(batch))
    Accuracy(output_transform=lambda output: (torch.tensor([output > 1]).float(), torch.tensor([1]))).attach(
        engine, "large"
    )
    engine.add_event_handler(Events.ITERATION_COMPLETED(once=5), lambda: engine.terminate_epoch())
    engine.add_event_handler(
        Events.EPOCH_COMPLETED, lambda: ended.append((engine.state.iteration, engine.state.metrics["large"]))
    )
    engine.run(range(4), max_epochs=3)
    assert ended == [(4, 0.5), (5, 0.0), (9, 0.5)]


# -------------------------------------------------------------------------------------------------------- processes


@pytest.mark.distributed
@pytest.mark.slow
@row("ignite", "idist.Parallel", "idist.auto_model", "idist.auto_dataloader")
@pytest.mark.parametrize("column", ["camshaft", "ignite"])
def test_two_processes_of_ignite_train_one_model_and_reduce_their_metrics(parallel, column) -> None:
    first, second = parallel[column]
    assert first["weights"] == second["weights"]
    assert first["accuracy"] == second["accuracy"]
    assert first["seen"] != second["seen"]
    assert sorted(first["seen"] + second["seen"]) == list(range(32))
    assert parallel["camshaft"] == parallel["ignite"]
