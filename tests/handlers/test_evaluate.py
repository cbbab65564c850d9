import pytest
import torch
from ignite.engine import create_supervised_evaluator, create_supervised_trainer
from ignite.metrics import Average
from torch import nn
from torch.nn import functional as F

from camshaft.engine import Engine, Events
from camshaft.handlers import EMA, Evaluate, Metrics, OptimizerStep


def mean_of_output():
    return Metrics(mean=Average(output_transform=lambda output: output.float()))


@pytest.fixture
def model():
    return nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2), nn.Dropout(0.5))


@pytest.fixture
def data():
    return [torch.ones(4, 2), 2 * torch.ones(4, 2), 3 * torch.ones(4, 2)]


def do_nothing(engine, batch):
    return None


class TestDuringTheEvaluation:
    def test_gradients_are_off(self, engine_of, model, data):
        seen = []
        evaluator = engine_of(lambda engine, batch: seen.append((torch.is_inference_mode_enabled(), model(batch))))
        engine_of(do_nothing, Evaluate(evaluator, data)).run([0])
        assert [(inference, output.requires_grad) for inference, output in seen] == [(True, False)] * 3
        assert not torch.is_inference_mode_enabled()

    def test_every_part_of_the_modules_is_in_evaluation_mode_and_afterwards_as_it_was(self, engine_of, model, data):
        model[1].eval()  # frozen statistics, which training must leave as they are
        during = []
        evaluator = engine_of(lambda engine, batch: during.append([part.training for part in model.modules()]))
        engine_of(do_nothing, Evaluate(evaluator, data[:1])).run([0])
        assert during == [[False] * 4]
        assert [part.training for part in model.modules()] == [True, True, False, True]

    def test_the_modes_are_restored_when_the_evaluator_raises(self, engine_of, model, data):
        model[1].eval()

        def fail(engine, batch):
            model(batch)
            raise ZeroDivisionError

        trainer = engine_of(do_nothing, Evaluate(engine_of(fail), data))
        with pytest.raises(ZeroDivisionError):
            trainer.run([0])
        assert [part.training for part in model.modules()] == [True, True, False, True]
        assert not torch.is_inference_mode_enabled()

    def test_named_modules_are_used_instead_of_those_in_the_step(self, engine_of, model, data):
        other, during = nn.Dropout(), []
        evaluator = engine_of(lambda engine, batch: during.append((model.training, other.training)))
        engine_of(do_nothing, Evaluate(evaluator, data[:1], modules=[other])).run([0])
        assert during == [(True, False)]

    def test_the_evaluator_of_ignite_leaves_the_model_in_training_mode(self, model, data):
        """Ignite's own step calls ``model.eval()`` and nothing takes it back."""
        pairs = [(batch, batch) for batch in data]
        evaluator = create_supervised_evaluator(model)
        trainer = create_supervised_trainer(model, torch.optim.SGD(model.parameters(), lr=0.1), F.mse_loss)
        Evaluate(evaluator, pairs).attach(trainer)
        trainer.run(pairs)
        assert all(part.training for part in model.modules())

    def test_training_goes_on_as_if_it_had_not_been_there(self, engine_of, data):
        weights = []
        for evaluates in (False, True):
            torch.manual_seed(0)
            model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2), nn.Dropout(0.5))
            handlers = [OptimizerStep(torch.optim.SGD(model.parameters(), lr=0.1))]
            if evaluates:
                handlers.append(
                    Evaluate(
                        engine_of(lambda engine, batch, model=model: model(batch)), data, at=Events.ITERATION_COMPLETED
                    )
                )
            engine_of(lambda engine, batch, model=model: model(batch).square().mean(), *handlers).run(
                data, max_epochs=2
            )
            weights.append(torch.cat([value.flatten().float() for value in model.state_dict().values()]))
        assert torch.equal(*weights)


class TestItsMetrics:
    def test_they_come_to_the_trainers_metrics_under_a_prefix(self, engine_of, model, data):
        evaluator = engine_of(lambda engine, batch: (model, batch)[1], mean_of_output())
        trainer = engine_of(do_nothing, Evaluate(evaluator, data, prefix="test_"))
        assert trainer.run([0]).metrics["test_mean"].tolist() == [2.0, 2.0]

    def test_two_evaluations_at_one_event_do_not_mix(self, engine_of, model, data):
        evaluators = [engine_of(lambda engine, batch: (model, batch.mean())[1], mean_of_output()) for _ in range(2)]
        trainer = engine_of(
            do_nothing, Evaluate(evaluators[0], data), Evaluate(evaluators[1], data[:1], prefix="test_")
        )
        assert trainer.run([0]).metrics == {"val_mean": 2.0, "test_mean": 1.0}

    def test_they_are_there_before_functions_of_the_user_that_were_attached_earlier(self, model, data):
        seen = []
        evaluator = Engine(lambda engine, batch: (model, batch.mean())[1]).attach(mean_of_output())
        trainer = Engine(do_nothing)
        trainer.add_event_handler(Events.EPOCH_COMPLETED, lambda: seen.append(trainer.state.metrics["val_mean"]))
        trainer.attach(Evaluate(evaluator, data)).run([0])
        assert seen == [2.0]

    def test_it_tells_when_a_value_was_made(self, engine_of, model, data):
        evaluator = engine_of(lambda engine, batch: (model, batch.mean())[1], mean_of_output())
        evaluate, told = Evaluate(evaluator, data, at=Events.EPOCH_COMPLETED(every=2)), []
        trainer = engine_of(do_nothing, evaluate)
        told.append(evaluate.produced_at("val_mean"))
        trainer.add_event_handler(
            Events.EPOCH_STARTED, lambda: told.append((trainer.state.epoch, evaluate.produced_at("val_mean")))
        )
        trainer.run([0, 1, 2], max_epochs=5)
        assert told == [0, (1, 0), (2, 0), (3, 6), (4, 6), (5, 12)]
        assert evaluate.produced_at("val_other") is None
        assert evaluate.produced_at("mean") is None


class TestWhenItRuns:
    @pytest.mark.parametrize(
        ("at", "iterations"),
        [
            (Events.EPOCH_COMPLETED, [3, 6, 9, 12]),
            (Events.EPOCH_COMPLETED(every=2), [6, 12]),
            (Events.ITERATION_COMPLETED(every=5), [5, 10]),
            (Events.STARTED | Events.COMPLETED, [0, 12]),
        ],
        ids=["each epoch", "every second epoch", "every five iterations", "start and end"],
    )
    def test_it_runs_at_the_events_that_are_asked_for(self, engine_of, model, data, at, iterations):
        seen = []
        evaluator = engine_of(lambda engine, batch: model(batch))
        trainer = engine_of(do_nothing, Evaluate(evaluator, data, at=at))
        evaluator.add_event_handler(Events.STARTED, lambda: seen.append(trainer.state.iteration))
        trainer.run([0, 1, 2], max_epochs=4)
        assert seen == iterations

    def test_each_run_of_the_evaluator_begins_with_epoch_and_iteration_1(self, engine_of, model, data):
        seen = []
        evaluator = engine_of(
            lambda engine, batch: (model, seen.append((engine.state.epoch, engine.state.iteration)))[1]
        )
        engine_of(do_nothing, Evaluate(evaluator, data)).run([0], max_epochs=2)
        assert seen == [(1, 1), (1, 2), (1, 3)] * 2

    def test_an_evaluation_that_was_ended_early_begins_anew_the_next_time(self, engine_of, model, data):
        seen = []
        evaluator = engine_of(lambda engine, batch: (model, seen.append(engine.state.iteration))[1])
        evaluator.add_event_handler(Events.ITERATION_COMPLETED(once=2), lambda engine: engine.terminate())
        engine_of(do_nothing, Evaluate(evaluator, data)).run([0], max_epochs=2)
        assert seen == [1, 2, 1, 2]

    def test_it_takes_only_as_many_batches_as_asked_for(self, engine_of, model, data):
        seen = []
        evaluator = engine_of(lambda engine, batch: (model, seen.append(batch.mean().item()))[1])
        engine_of(do_nothing, Evaluate(evaluator, data, epoch_length=2)).run([0], max_epochs=2)
        assert seen == [1.0, 2.0, 1.0, 2.0]

    def test_after_detaching_it_nothing_is_evaluated(self, engine_of, model, data):
        evaluate = Evaluate(engine_of(lambda engine, batch: model(batch)), data)
        trainer = engine_of(do_nothing, evaluate)
        evaluate.detach(trainer)
        trainer.run([0])
        assert evaluate.evaluator.state.iteration == 0


def test_it_evaluates_the_moving_averages_of_the_weights_and_gives_the_weights_back(engine_of):
    model = nn.Linear(1, 1, bias=False)
    nn.init.zeros_(model.weight)
    ema = EMA(model, decay=0.5)
    evaluator = engine_of(lambda engine, batch: model(batch).mean(), mean_of_output())
    evaluate = Evaluate(evaluator, [torch.ones(1, 1)], ema=ema)
    update = OptimizerStep(torch.optim.SGD(model.parameters(), lr=1.0))
    trainer = engine_of(lambda engine, batch: -model(batch).mean(), evaluate, ema, update)
    assert trainer.run([torch.ones(1, 1)] * 2).metrics["val_mean"] == 1.25
    assert model.weight.item() == 2.0


class TestWhatIsRefused:
    def test_what_is_no_engine(self):
        with pytest.raises(TypeError, match=r"runs an engine.*Evaluate\(Engine\(evaluation_step\), data\)"):
            Evaluate(len, [])

    def test_a_step_in_which_no_module_is_found(self, engine_of, data):
        trainer = engine_of(do_nothing, Evaluate(engine_of(lambda engine, batch: batch), data))
        with pytest.raises(ValueError, match=r"found no module.*modules=\[model\]"):
            trainer.run([0])

    def test_its_own_evaluator_as_the_trainer(self, engine_of, model, data):
        engine = engine_of(lambda engine, batch: model(batch))
        Evaluate(engine, data).attach(engine)
        with pytest.raises(ValueError, match="attached to its own evaluator"):
            engine.run([0])
