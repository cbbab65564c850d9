import io

import pytest
import torch
from ignite.engine import create_supervised_trainer
from torch import nn
from torch.nn import functional as F
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from camshaft.engine import Engine, Events
from camshaft.handlers import AMP, EMA, Device, Evaluate, GradientAccumulation, OptimizerStep


def make_model():
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Tanh(), nn.Linear(4, 2))


def make_data(batches=6):
    generator = torch.Generator().manual_seed(2)
    return [
        (torch.randn(5, 3, generator=generator), torch.randint(2, (5,), generator=generator)) for _ in range(batches)
    ]


def sgd(model):
    return torch.optim.SGD(model.parameters(), lr=0.1)


def loss_step(model):
    return lambda engine, batch: F.cross_entropy(model(batch[0]), batch[1])


def state_of(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def assert_same(state, expected):
    assert state.keys() == expected.keys()
    for name, tensor in state.items():
        assert torch.equal(tensor, expected[name]), name


def history_by_hand(batches=6):
    """The parameters of the model before the first and after each optimizer step."""
    model, history = make_model(), []
    optimizer = sgd(model)
    history.append([parameter.detach().clone() for parameter in model.parameters()])
    for x, y in make_data(batches):
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
        optimizer.zero_grad()
        history.append([parameter.detach().clone() for parameter in model.parameters()])
    return history


def averages_by_hand(history, decay):
    averages = history[0]
    for weights in history[1:]:
        averages = [decay * average + (1 - decay) * weight for average, weight in zip(averages, weights, strict=True)]
    return averages


def assert_averages(ema, expected):
    for average, by_hand in zip(ema.module.parameters(), expected, strict=True):
        torch.testing.assert_close(average, by_hand)


class TestTheAverage:
    def test_starts_from_the_initial_weights_and_takes_in_the_weights_of_each_step(self, engine_of):
        model = make_model()
        ema = EMA(model, decay=0.9)
        engine_of(loss_step(model), ema, OptimizerStep(sgd(model))).run(make_data())
        assert_averages(ema, averages_by_hand(history_by_hand(), 0.9))
        assert ema.updates == 6

    def test_equals_that_of_torchs_averaged_model_to_the_bit(self):
        model, ema_model = make_model(), make_model()
        reference = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.9))
        reference.update_parameters(model)  # its first takes the weights as they are
        ema = EMA(ema_model, decay=0.9)
        Engine(loss_step(ema_model)).attach(OptimizerStep(sgd(ema_model)), ema).run(make_data())
        optimizer = sgd(model)
        for x, y in make_data():
            F.cross_entropy(model(x), y).backward()
            optimizer.step()
            optimizer.zero_grad()
            reference.update_parameters(model)
        for average, expected in zip(ema.module.parameters(), reference.module.parameters(), strict=True):
            assert torch.equal(average, expected)

    def test_with_warmup_is_the_plain_mean_of_the_weights_after_each_step_at_first(self, engine_of):
        model = make_model()
        ema = EMA(model, decay=0.999, warmup=True)
        engine_of(loss_step(model), OptimizerStep(sgd(model)), ema).run(make_data())
        history = history_by_hand()[1:]
        assert_averages(ema, [torch.stack(weights).mean(0) for weights in zip(*history, strict=True)])

    def test_with_warmup_forgets_at_its_decay_once_the_mean_reaches_back_further(self):
        model = make_model()
        ema = EMA(model, decay=0.5, warmup=True)
        Engine(loss_step(model)).attach(OptimizerStep(sgd(model)), ema).run(make_data())
        assert_averages(ema, averages_by_hand(history_by_hand()[1:], 0.5))

    def test_counts_optimizer_steps_and_not_micro_batches(self, engine_of):
        model = make_model()
        ema = EMA(model)
        engine_of(loss_step(model), ema, OptimizerStep(sgd(model)), GradientAccumulation(4)).run(make_data(6))
        assert ema.updates == 2

    def test_counts_iterations_where_the_step_steps_its_optimizer_itself(self, engine_of):
        model = make_model()
        ema = EMA(model, decay=0.9)
        trainer = create_supervised_trainer(model, sgd(model), F.cross_entropy)
        ema.attach(trainer)
        trainer.run(make_data())
        assert ema.updates == 6
        assert_averages(ema, averages_by_hand(history_by_hand(), 0.9))

    def test_follows_only_the_optimizer_that_trains_its_model(self, engine_of):
        generator, discriminator = nn.Linear(2, 2), nn.Linear(2, 1)
        generator_step, discriminator_step = OptimizerStep(sgd(generator)), OptimizerStep(sgd(discriminator))

        def step(engine, batch):
            discriminator_step(discriminator(generator(batch)).mean())
            if engine.state.iteration % 3 == 0:
                generator_step(-discriminator(generator(batch)).mean())

        ema = EMA(generator)
        engine_of(step, generator_step, ema, discriminator_step).run([torch.ones(4, 2)] * 6)
        assert ema.updates == 2

    def test_of_bfloat16_weights_is_kept_in_float32_so_that_small_changes_count(self):
        model = nn.Linear(1, 1, bias=False).bfloat16()
        ema = EMA(model, decay=0.999)
        engine = Engine(lambda engine, batch: model.weight.data.add_(1)).attach(ema)
        nn.init.ones_(model.weight)
        engine.run([None] * 3)
        average = ema.state_dict()["averages"]["weight"]
        assert average.dtype == torch.float32
        assert average.item() == pytest.approx(1.005996, abs=1e-6)  # in bfloat16 it would be 1 forever
        with ema.applied():
            assert model.weight.dtype == torch.bfloat16

    def test_takes_weights_of_several_types_together(self):
        model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2).double(), nn.Linear(2, 2).bfloat16())
        ema = EMA(model, decay=0.5)
        engine = Engine(lambda engine, batch: [parameter.data.fill_(1) for parameter in model.parameters()])
        for parameter in model.parameters():
            nn.init.zeros_(parameter)
        engine.attach(ema).run([None])
        assert all(torch.equal(average, torch.full_like(average, 0.5)) for average in ema.module.parameters())

    def test_begins_only_after_device_has_moved_the_model(self):
        model = nn.Linear(2, 1)
        engine = Engine(lambda engine, batch: None).attach(EMA(model), Device("meta", model))
        ema = engine.handlers[0]
        engine.run([None])
        assert ema.state_dict()["averages"]["weight"].device.type == "meta"

    def test_does_not_change_the_training_to_the_bit(self, engine_of):
        plain, averaged = make_model(), make_model()
        engine_of(loss_step(plain), OptimizerStep(sgd(plain))).run(make_data(), max_epochs=2)
        ema = EMA(averaged)
        evaluator = Engine(lambda engine, batch: averaged(batch[0]))
        handlers = OptimizerStep(sgd(averaged)), ema, Evaluate(evaluator, make_data(2), ema=ema)
        engine_of(loss_step(averaged), *handlers).run(make_data(), max_epochs=2)
        assert_same(averaged.state_dict(), plain.state_dict())


class TestBuffers:
    def trained(self, buffers):
        model = make_model()
        ema = EMA(model, decay=0.5, buffers=buffers)
        Engine(loss_step(model)).attach(OptimizerStep(sgd(model)), ema).run(make_data(1))
        return model, ema

    def test_are_the_models_where_they_are_copied(self):
        model, ema = self.trained("copy")
        assert torch.equal(ema.module[1].running_mean, model[1].running_mean)
        with ema.applied():
            assert torch.equal(ema.module[1].running_mean, model[1].running_mean)

    def test_are_averaged_on_request_but_for_counters(self):
        model, ema = self.trained("average")
        torch.testing.assert_close(ema.module[1].running_mean, model[1].running_mean / 2)  # it began at 0
        assert ema.module[1].num_batches_tracked == 1
        own = model[1].running_mean.clone()
        with ema.applied():
            assert torch.equal(model[1].running_mean, ema.module[1].running_mean)
        assert torch.equal(model[1].running_mean, own)

    @pytest.mark.parametrize("buffers", ["copy", "average"])
    def test_of_the_copy_are_tensors_of_their_own(self, buffers):
        model, ema = self.trained(buffers)
        own = model[1].running_mean.clone()
        ema.module[1].running_mean.fill_(7)
        assert torch.equal(model[1].running_mean, own)

    def test_that_the_model_assigns_anew_are_averaged_too(self):
        class Counter(nn.Module):
            def __init__(self):
                super().__init__()
                self.register_buffer("count", torch.zeros(()))

            def forward(self):
                self.count = self.count + 1

        model = Counter()
        ema = EMA(model, decay=0.5, buffers="average")
        Engine(lambda engine, batch: model()).attach(ema).run([None, None])
        assert ema.module.count == 1.25
        with ema.applied():
            assert model.count == 1.25
        assert model.count == 2


class TestApplied:
    def trained(self, model=None, **arguments):
        model = make_model() if model is None else model
        ema = EMA(model, decay=0.5, **arguments)
        Engine(loss_step(model)).attach(OptimizerStep(sgd(model)), ema).run(make_data())
        return model, ema

    def test_gives_the_model_the_averages_and_then_its_own_weights_back_to_the_bit(self):
        model, ema = self.trained()
        own = state_of(model)
        with ema.applied():
            assert_same(model.state_dict(), ema.module.state_dict())
            assert not torch.equal(model[0].weight, own["0.weight"])
        assert_same(model.state_dict(), own)

    def test_gives_the_weights_back_after_an_error(self):
        model, ema = self.trained()
        own = state_of(model)
        with pytest.raises(KeyError), ema.applied():
            raise KeyError
        assert_same(model.state_dict(), own)

    def test_may_be_nested(self):
        model, ema = self.trained()
        own = state_of(model)
        with ema.applied(), ema.applied():
            assert torch.equal(model[0].weight, ema.module[0].weight)
        assert_same(model.state_dict(), own)

    def test_keeps_the_parameters_that_the_optimizer_holds(self):
        model, ema = self.trained()
        before = [(parameter, parameter.data_ptr()) for parameter in model.parameters()]
        with ema.applied():
            pass
        assert all(
            parameter is other and address == other.data_ptr()
            for (parameter, address), other in zip(before, model.parameters(), strict=True)
        )

    @pytest.mark.parametrize("outside", [False, True])
    def test_works_with_inference_mode_within_and_around(self, outside):
        model, ema = self.trained()
        own = state_of(model.eval())
        with torch.inference_mode(outside), ema.applied(), torch.inference_mode():
            model(torch.ones(2, 3))
        assert_same(model.state_dict(), own)
        model(torch.ones(2, 3)).sum().backward()  # they are still no inference tensors

    def test_refuses_to_train_the_model_meanwhile(self):
        model, ema = self.trained()
        engine = Engine(loss_step(model)).attach(OptimizerStep(sgd(model)), ema)
        with ema.applied(), pytest.raises(RuntimeError, match="Only evaluate there"):
            engine.run(make_data())

    def test_needs_a_run_that_has_started(self):
        ema = EMA(make_model())
        with pytest.raises(RuntimeError, match="no averages yet"), ema.applied():
            pass
        with pytest.raises(RuntimeError, match="no averages yet"):
            _ = ema.module

    def test_is_how_evaluate_measures_the_averages(self, engine_of):
        model = make_model()
        ema = EMA(model, decay=0.5)
        seen = []
        evaluator = Engine(lambda engine, batch: seen.append(state_of(model)))
        engine = engine_of(loss_step(model), Evaluate(evaluator, [None], modules=[model], ema=ema), ema)
        OptimizerStep(sgd(model)).attach(engine)
        engine.run(make_data())
        assert_same(seen[0], ema.module.state_dict())


class TestModule:
    def test_is_in_evaluation_mode_without_gradients_and_stays_up_to_date(self, engine_of):
        model = make_model()
        ema = EMA(model, decay=0.5)
        engine = engine_of(loss_step(model), OptimizerStep(sgd(model)), ema)
        modules = []
        engine.add_event_handler(Events.ITERATION_COMPLETED(once=1), lambda engine: modules.append(ema.module))
        engine.run(make_data())
        assert modules[0] is ema.module
        assert not any(part.training for part in ema.module.modules())
        assert not any(parameter.requires_grad for parameter in ema.module.parameters())
        assert_averages(ema, averages_by_hand(history_by_hand(), 0.5))

    def test_that_was_first_asked_for_in_inference_mode_can_be_updated(self):
        model = make_model()
        ema = EMA(model, decay=0.5)
        engine = Engine(loss_step(model)).attach(OptimizerStep(sgd(model)), ema)

        @engine.on(Events.ITERATION_COMPLETED(once=1))
        @torch.inference_mode()
        def look():
            ema.module(torch.ones(2, 3))

        engine.run(make_data())
        assert_averages(ema, averages_by_hand(history_by_hand(), 0.5))

    def test_shares_tied_weights_as_the_model_does(self):
        model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
        model[1].weight = model[0].weight
        ema = EMA(model, decay=0.5)
        engine = Engine(lambda engine, batch: model(batch).square().mean()).attach(OptimizerStep(sgd(model)), ema)
        engine.run([torch.ones(2, 3)] * 3)
        assert ema.module[1].weight is ema.module[0].weight
        assert list(ema.state_dict()["averages"]) == ["0.weight", "0.bias", "1.bias"]
        own = model[0].weight.clone()
        with ema.applied():
            assert torch.equal(model[1].weight, ema.module[0].weight)
        assert torch.equal(model[0].weight, own)


class TestCompiledModels:
    def test_are_averaged_under_the_names_of_the_model_itself(self):
        model = make_model()
        model[0] = torch.compile(model[0], backend="eager")
        compiled = torch.compile(model, backend="eager")
        ema = EMA(compiled, decay=0.9)
        Engine(loss_step(compiled)).attach(OptimizerStep(sgd(compiled)), ema).run(make_data())
        assert_averages(ema, averages_by_hand(history_by_hand(), 0.9))
        assert list(ema.state_dict()["averages"]) == [name for name, _ in make_model().named_parameters()]

    def test_compute_with_the_averages_where_these_are_applied(self):
        model = make_model()
        compiled = torch.compile(model, backend="eager")
        ema = EMA(compiled, decay=0.5)
        Engine(loss_step(compiled)).attach(OptimizerStep(sgd(compiled)), ema).run(make_data())
        x = torch.ones(2, 3)
        model.eval()
        with ema.applied(), torch.no_grad():
            torch.testing.assert_close(compiled(x), ema.module(x))


class TestState:
    def run(self, engine_of, epochs, state=None):
        model = make_model()
        ema = EMA(model, decay=0.9, warmup=True)
        engine = engine_of(loss_step(model), OptimizerStep(sgd(model)), ema)
        if state is not None:
            model.load_state_dict(state["model"])
            ema.load_state_dict(state["ema"])
            engine.load_state_dict(state["engine"])
        engine.run(make_data(), max_epochs=epochs)
        file = io.BytesIO()
        torch.save({"model": model.state_dict(), "ema": ema.state_dict(), "engine": engine.state_dict()}, file)
        file.seek(0)
        return torch.load(file, weights_only=True)

    def test_loaded_before_the_run_lets_it_go_on_to_the_bit(self, engine_of):
        whole = self.run(engine_of, 3)
        resumed = self.run(engine_of, 3, self.run(engine_of, 1))
        assert resumed["ema"]["updates"] == whole["ema"]["updates"] == 18
        assert_same(resumed["ema"]["averages"], whole["ema"]["averages"])

    def test_can_be_applied_without_a_run(self, engine_of):
        saved = self.run(engine_of, 1)
        model = make_model()
        model.load_state_dict(saved["model"])
        ema = EMA(model)
        ema.load_state_dict(saved["ema"])
        with ema.applied():
            assert torch.equal(model[0].weight, saved["ema"]["averages"]["0.weight"])
        assert torch.equal(model[0].weight, saved["model"]["0.weight"])

    def test_is_copied_when_it_is_loaded(self, engine_of):
        saved = self.run(engine_of, 1)
        before = saved["ema"]["averages"]["0.weight"].clone()
        self.run(engine_of, 3, saved)
        assert torch.equal(saved["ema"]["averages"]["0.weight"], before)

    def test_of_a_compiled_model_loads_into_one_that_is_not(self):
        compiled = torch.compile(make_model(), backend="eager")
        ema = EMA(compiled)
        Engine(lambda engine, batch: None).attach(ema).run([None])
        other = EMA(make_model())
        other.load_state_dict(ema.state_dict())
        assert_same(other.module.state_dict(), make_model().state_dict())

    def test_of_another_model_is_refused(self):
        ema = EMA(nn.Linear(2, 1))
        Engine(lambda engine, batch: None).attach(ema).run([None])
        with pytest.raises(ValueError, match=r"of another model.*'weight'"):
            EMA(nn.Linear(3, 1)).load_state_dict(ema.state_dict())

    def test_of_a_handler_that_has_not_run_loads_as_nothing(self, engine_of):
        model = make_model()
        ema = EMA(model)
        ema.load_state_dict(EMA(make_model()).state_dict())
        engine_of(lambda engine, batch: None, ema).run([None])
        assert_same(ema.module.state_dict(), model.state_dict())

    def test_starts_afresh_in_a_new_run_of_the_same_engine(self, engine_of):
        model = make_model()
        ema = EMA(model, decay=0.9)
        engine = engine_of(loss_step(model), OptimizerStep(sgd(model)), ema)
        engine.run(make_data())
        model.load_state_dict(make_model().state_dict())
        engine.run(make_data())
        assert ema.updates == 6
        assert_averages(ema, averages_by_hand(history_by_hand(), 0.9))

    def test_goes_on_where_the_same_engine_goes_on(self, engine_of):
        model = make_model()
        ema = EMA(model)
        engine = engine_of(loss_step(model), OptimizerStep(sgd(model)), ema)
        handle = engine.add_event_handler(Events.EPOCH_COMPLETED(once=1), lambda engine: engine.terminate())
        engine.run(make_data(), max_epochs=2)
        handle.remove()
        engine.run(make_data(), max_epochs=2)
        assert ema.updates == 12


def test_steps_that_fp16_skips_for_an_overflow_are_not_counted():
    model = nn.Linear(3, 2)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**60)
    ema = EMA(model)
    engine = Engine(loss_step(model)).attach(OptimizerStep(sgd(model)), AMP("fp16", scaler=scaler), ema)
    engine.run(make_data(1))
    assert ema.updates == 0


def test_a_model_that_no_optimizer_step_trains_is_refused(engine_of):
    model = make_model()
    engine = engine_of(loss_step(model), OptimizerStep(sgd(model)), EMA(make_model()))
    with pytest.raises(ValueError, match="its averages would never change"):
        engine.run(make_data())


def test_wrong_arguments_are_refused():
    with pytest.raises(TypeError, match=r"of a torch.nn.Module, but got \[\]"):
        EMA([])
    with pytest.raises(ValueError, match=r"between 0 and 1, such as 0.999, but is 1.0"):
        EMA(make_model(), decay=1.0)
    with pytest.raises(ValueError, match="'copy' the buffers or 'average' them, not 'update'"):
        EMA(make_model(), buffers="update")
