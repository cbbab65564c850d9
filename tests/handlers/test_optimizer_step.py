import copy
import weakref

import pytest
import torch
from ignite.engine import create_supervised_trainer
from torch import nn
from torch.nn import functional as F

from camshaft.engine import Events, StepEvents
from camshaft.handlers import AMP, GradientAccumulation, GradientClipping, OptimizerStep
from camshaft.handlers.handler import handlers_of


def make_model():
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Dropout(0.2), nn.Linear(4, 2))


def make_data(batches=7, batch_size=5):
    generator = torch.Generator().manual_seed(2)
    return [
        (torch.randn(batch_size, 3, generator=generator), torch.randint(2, (batch_size,), generator=generator))
        for _ in range(batches)
    ]


def loss_step(model):
    return lambda engine, batch: F.cross_entropy(model(batch[0]), batch[1])


def assert_equal_bits(model, other):
    for parameter, expected in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.equal(parameter, expected)


class TestTheMathematics:
    @pytest.mark.parametrize("optimizer_class", [torch.optim.SGD, torch.optim.AdamW])
    def test_a_run_ends_in_the_same_bits_as_a_hand_written_loop(self, engine_of, optimizer_class):
        by_hand, model = make_model(), make_model()
        optimizer = optimizer_class(by_hand.parameters(), lr=0.1)
        torch.manual_seed(3)
        for _ in range(2):
            for x, y in make_data():
                optimizer.zero_grad()
                F.cross_entropy(by_hand(x), y).backward()
                optimizer.step()

        engine = engine_of(loss_step(model), OptimizerStep(optimizer_class(model.parameters(), lr=0.1)))
        torch.manual_seed(3)
        engine.run(make_data(), max_epochs=2)
        assert_equal_bits(model, by_hand)
        assert engine.state.optimizer_step == 14

    def test_the_bits_are_the_same_where_torch_offers_no_way_straight_to_its_engine(self, engine_of, monkeypatch):
        weights = []
        for straight in (True, False):
            if not straight:
                monkeypatch.setattr("camshaft.handlers.optimizer_step._run_backward", None)
            model = make_model()
            torch.manual_seed(3)
            engine_of(loss_step(model), OptimizerStep(torch.optim.AdamW(model.parameters()))).run(make_data())
            weights.append(model)
        assert_equal_bits(*weights)

    def test_a_loss_of_another_kind_of_tensor_goes_backward_its_own_way(self, engine_of):
        backwards = []

        class Loss(torch.Tensor):
            def backward(self, *arguments, **keywords):
                backwards.append(type(self))
                super().backward(*arguments, **keywords)

        by_hand, model = make_model().eval(), make_model().eval()
        engine_of(loss_step(by_hand), OptimizerStep(torch.optim.SGD(by_hand.parameters(), lr=0.1))).run(make_data())
        step = loss_step(model)
        engine = engine_of(
            lambda engine, batch: step(engine, batch).as_subclass(Loss),
            OptimizerStep(torch.optim.SGD(model.parameters(), lr=0.1)),
        )
        engine.run(make_data())
        assert backwards == [Loss] * 7
        assert_equal_bits(model, by_hand)

    def test_an_optimizer_clears_gradients_its_own_way_if_it_has_one(self, engine_of):
        class Counting(torch.optim.SGD):
            cleared = 0

            def zero_grad(self, set_to_none=True):
                self.cleared += 1
                super().zero_grad(set_to_none)

        model = make_model()
        optimizer = Counting(model.parameters(), lr=0.1)
        engine_of(loss_step(model), OptimizerStep(optimizer)).run(make_data())
        assert optimizer.cleared == 1 + 7  # when the run starts, and after each step
        assert all(parameter.grad is None for parameter in model.parameters())

    def test_no_gradients_are_left_after_a_step(self, engine_of):
        model = make_model()
        engine_of(loss_step(model), OptimizerStep(torch.optim.SGD(model.parameters(), lr=0.1))).run(make_data())
        assert all(parameter.grad is None for parameter in model.parameters())

    def test_several_optimizers_step_for_one_loss(self, engine_of):
        by_hand, model = make_model(), make_model()

        def make_optimizers(model):
            return torch.optim.SGD(model[0].parameters(), lr=0.1), torch.optim.Adam(model[3].parameters(), lr=0.01)

        optimizers = make_optimizers(by_hand)
        torch.manual_seed(3)
        for x, y in make_data():
            F.cross_entropy(by_hand(x), y).backward()
            for optimizer in optimizers:
                optimizer.step()
                optimizer.zero_grad()

        torch.manual_seed(3)
        engine_of(loss_step(model), OptimizerStep(*make_optimizers(model))).run(make_data())
        assert_equal_bits(model, by_hand)

    def test_accumulation_clipping_and_bf16_together_equal_a_hand_written_loop(self, engine_of):
        by_hand, model = make_model(), make_model()
        optimizer = torch.optim.AdamW(by_hand.parameters(), lr=0.1)
        torch.manual_seed(3)
        for i, (x, y) in enumerate(make_data(8)):
            with torch.autocast("cpu", dtype=torch.bfloat16):
                loss = F.cross_entropy(by_hand(x), y)
            (loss / 4).backward()
            if i % 4 == 3:
                nn.utils.clip_grad_norm_(by_hand.parameters(), 0.1)
                optimizer.step()
                optimizer.zero_grad()

        handlers = [
            GradientClipping(0.1),
            AMP("bf16"),
            OptimizerStep(torch.optim.AdamW(model.parameters(), lr=0.1)),
            GradientAccumulation(4),
        ]
        torch.manual_seed(3)
        engine_of(loss_step(model), *handlers).run(make_data(8))
        assert_equal_bits(model, by_hand)

    def test_gradients_left_by_something_else_do_not_enter_the_first_step(self, engine_of):
        by_hand, model = make_model().eval(), make_model().eval()
        x, y = make_data()[0]
        F.cross_entropy(model(x), y).backward()
        engine_of(loss_step(model), OptimizerStep(torch.optim.SGD(model.parameters(), lr=0.1))).run([(x, y)])

        F.cross_entropy(by_hand(x), y).backward()
        torch.optim.SGD(by_hand.parameters(), lr=0.1).step()
        assert_equal_bits(model, by_hand)


class TestWhatAStepReturns:
    def test_the_entries_of_a_mapping_are_at_hand_in_the_output(self, engine_of):
        model = make_model()

        def step(engine, batch):
            logits = model(batch[0])
            return {"loss": F.cross_entropy(logits, batch[1]), "y_pred": logits, "y": batch[1]}

        engine = engine_of(step, OptimizerStep(torch.optim.SGD(model.parameters(), lr=0.1)))
        output = engine.run(make_data()).output
        assert list(output) == ["loss", "y_pred", "y"]
        assert output["y_pred"].shape == (5, 2)

    def test_none_skips_the_batch(self, engine_of):
        model, data = make_model().eval(), make_data(4)
        skipped = [0, 2]

        def step(engine, batch):
            if engine.state.iteration - 1 in skipped:
                return None
            return F.cross_entropy(model(batch[0]), batch[1])

        engine = engine_of(step, OptimizerStep(torch.optim.SGD(model.parameters(), lr=0.1)))
        assert engine.run(data).optimizer_step == 2

        by_hand = make_model().eval()
        engine_of(loss_step(by_hand), OptimizerStep(torch.optim.SGD(by_hand.parameters(), lr=0.1))).run(data[1::2])
        assert_equal_bits(model, by_hand)

    @pytest.mark.parametrize(
        ("returned", "error", "words"),
        [
            (lambda loss: loss.item(), TypeError, "scalar tensor.*leave OptimizerStep out"),
            (lambda loss: (loss, 1), TypeError, "a tuple of 2.*scalar tensor"),
            (lambda loss: {"error": loss}, ValueError, r"\['error'\] but no 'loss'"),
            (lambda loss: {"loss": loss.item()}, TypeError, "scalar tensor"),
            (lambda loss: loss * torch.ones(5), ValueError, r"shape \(5,\) but must be a scalar"),
            (lambda loss: loss.detach(), ValueError, "no graph.*detached"),
        ],
        ids=["a float", "a tuple", "a mapping without loss", "a float as loss", "not a scalar", "a detached loss"],
    )
    def test_anything_else_is_refused_with_a_sentence(self, engine_of, returned, error, words):
        model = make_model()
        engine = engine_of(
            lambda engine, batch: returned(loss_step(model)(engine, batch)),
            OptimizerStep(torch.optim.SGD(model.parameters(), lr=0.1)),
        )
        with pytest.raises(error, match=words):
            engine.run(make_data())

    def test_a_step_of_ignite_that_does_its_own_backward_is_refused(self):
        model = make_model()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        trainer = create_supervised_trainer(model, optimizer, F.cross_entropy)
        OptimizerStep(optimizer).attach(trainer)
        begun = copy.deepcopy(model.state_dict())
        with pytest.raises(ValueError, match="whose step does its own backward"):
            trainer.run(make_data())
        assert all(torch.equal(weight, begun[name]) for name, weight in model.state_dict().items())

    def test_the_loss_and_its_graph_are_freed_after_the_step(self, engine_of):
        model, losses = make_model(), []

        def step(engine, batch):
            assert all(loss() is None for loss in losses)
            loss = F.cross_entropy(model(batch[0]), batch[1])
            losses.append(weakref.ref(loss))
            return loss

        engine = engine_of(step, OptimizerStep(torch.optim.SGD(model.parameters(), lr=0.1)))
        engine.run(make_data())
        assert len(losses) == 7
        assert losses[-1]() is None
        assert engine.state.output.grad_fn is None


class TestCalledByHand:
    def make_networks(self):
        torch.manual_seed(4)
        return nn.Linear(3, 3), nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))

    def optimizers(self, generator, discriminator):
        return torch.optim.SGD(generator.parameters(), lr=0.1), torch.optim.SGD(discriminator.parameters(), lr=0.1)

    def losses(self, generator, discriminator, x):
        """The discriminator's loss, then, with the discriminator as it is by then, the generator's."""
        fake = generator(x)
        yield discriminator(fake.detach()).mean() - discriminator(x).mean() + discriminator(x).square().mean()
        yield -discriminator(fake).mean()

    def train(self, engine_of, batches, *handlers):
        generator, discriminator = self.make_networks()
        generator_optimizer, discriminator_optimizer = self.optimizers(generator, discriminator)
        generator_step, discriminator_step = OptimizerStep(generator_optimizer), OptimizerStep(discriminator_optimizer)

        def step(engine, batch):
            losses = self.losses(generator, discriminator, batch[0])
            discriminator_step(next(losses))
            loss = next(losses)
            generator_step(loss)
            return {"generator": loss}

        engine = engine_of(step, *handlers, generator_step, discriminator_step)
        engine.run(make_data(batches), max_epochs=1)
        assert engine.state.output["generator"].grad_fn is None
        return generator, discriminator, engine

    def test_two_of_them_train_two_networks_as_a_hand_written_loop_does(self, engine_of):
        generator, discriminator = self.make_networks()
        optimizers = self.optimizers(generator, discriminator)
        for x, _ in make_data(6):
            losses = self.losses(generator, discriminator, x)
            for optimizer in reversed(optimizers):
                loss = next(losses)
                optimizer.zero_grad()
                loss.backward()
                nn.utils.clip_grad_norm_(optimizer.param_groups[0]["params"], 0.05)
                optimizer.step()
        trained = self.train(engine_of, 6, GradientClipping(0.05))
        assert_equal_bits(trained[0], generator)
        assert_equal_bits(trained[1], discriminator)
        assert trained[2].state.optimizer_step == 6

    def test_they_do_bf16_without_old_copies_of_the_weights(self, engine_of):
        """autocast keeps the weights it has cast; between two losses of one step these are stepped."""
        generator, discriminator = self.make_networks()
        optimizers = self.optimizers(generator, discriminator)
        for x, _ in make_data(6):
            with torch.autocast("cpu", dtype=torch.bfloat16):
                losses = self.losses(generator, discriminator, x)
                loss = next(losses)
            loss.backward()
            optimizers[1].step()
            optimizers[1].zero_grad()
            with torch.autocast("cpu", dtype=torch.bfloat16):
                loss = next(losses)
            loss.backward()
            optimizers[0].step()
            optimizers[0].zero_grad()
            optimizers[1].zero_grad()  # drops what the generator's loss left in the discriminator
        trained = self.train(engine_of, 6, AMP("bf16"))
        assert_equal_bits(trained[0], generator)
        assert_equal_bits(trained[1], discriminator)

    def test_each_adds_up_its_own_group_and_scales_it_by_its_own_scale(self, engine_of):
        """One scale for both would change within the group of the one that steps later."""

        def growing():
            return torch.amp.GradScaler("cpu", init_scale=4.0, growth_interval=1)

        generator, discriminator = self.make_networks()
        optimizers = self.optimizers(generator, discriminator)
        scalers = [growing(), growing()]
        for i, (x, _) in enumerate(make_data(8)):
            with torch.autocast("cpu", dtype=torch.float16):
                losses = self.losses(generator, discriminator, x)
                loss = next(losses)
            scalers[1].scale(loss / 4).backward()
            if i % 4 == 3:
                self.clip_and_step(scalers[1], optimizers[1])
            with torch.autocast("cpu", dtype=torch.float16):
                loss = next(losses)
            scalers[0].scale(loss / 4).backward(inputs=list(generator.parameters()))
            if i % 4 == 3:
                self.clip_and_step(scalers[0], optimizers[0])
        handlers = AMP("fp16", scaler=growing()), GradientAccumulation(4), GradientClipping(0.05)
        trained = self.train(engine_of, 8, *handlers)
        assert_equal_bits(trained[0], generator)
        assert_equal_bits(trained[1], discriminator)
        assert trained[2].state.optimizer_step == 2

    def clip_and_step(self, scaler, optimizer):
        scaler.unscale_(optimizer)
        nn.utils.clip_grad_norm_(optimizer.param_groups[0]["params"], 0.05)
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()

    def test_a_loss_returned_to_two_that_were_not_called_is_refused(self, engine_of):
        model = make_model()
        steps = [OptimizerStep(torch.optim.SGD(part.parameters(), lr=0.1)) for part in (model[0], model[3])]
        with pytest.raises(ValueError, match=r"2 OptimizerStep handlers.*which is meant"):
            engine_of(loss_step(model), *steps).run(make_data())

    def test_calling_one_that_is_not_attached_is_refused(self):
        model = make_model()
        step = OptimizerStep(torch.optim.SGD(model.parameters(), lr=0.1))
        with pytest.raises(RuntimeError, match="attached to no engine"):
            step(model(torch.ones(1, 3)).sum())


class TestWhatIsRefused:
    def test_shared_parameters_are_refused_when_the_run_starts(self, engine_of):
        model = make_model()
        steps = [OptimizerStep(torch.optim.SGD(model.parameters(), lr=rate)) for rate in (0.1, 0.2)]
        engine = engine_of(loss_step(model), *steps)
        with pytest.raises(ValueError, match=r"share 4 parameter\(s\).*stepped twice"):
            engine.run(make_data())

    @pytest.mark.parametrize("arguments", [(), (nn.Linear(1, 1),), ("sgd",)])
    def test_something_that_is_no_optimizer_is_refused(self, arguments):
        with pytest.raises(TypeError, match="optimizer"):
            OptimizerStep(*arguments)

    def test_attaching_to_a_second_engine_is_refused(self, engine_of):
        model = make_model()
        step = OptimizerStep(torch.optim.SGD(model.parameters(), lr=0.1))
        first = engine_of(loss_step(model), step)
        second = engine_of(loss_step(model))
        with pytest.raises(ValueError, match="attached to another engine"):
            step.attach(second)
        assert handlers_of(first) == [step]
        assert handlers_of(second) == []

    def test_after_detaching_it_can_go_to_another_engine(self, engine_of):
        model = make_model()
        step = OptimizerStep(torch.optim.SGD(model.parameters(), lr=0.1))
        first = engine_of(loss_step(model), step)
        step.detach(first)
        assert first.run(make_data()).output.requires_grad  # the step is the user's own again
        assert engine_of(loss_step(model), step).run(make_data()).optimizer_step == 7


class TestMoments:
    def test_the_moments_of_a_step_fire_in_the_order_in_which_they_are_drawn(self, engine_of):
        model, fired = make_model(), []
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        engine = engine_of(loss_step(model), OptimizerStep(optimizer), GradientAccumulation(2))
        for event in (Events.ITERATION_STARTED, *StepEvents, Events.ITERATION_COMPLETED, Events.EPOCH_COMPLETED):
            engine.add_event_handler(event, lambda event: fired.append(event.name), event)
        engine.run(make_data(3))

        forward_and_backward = ["FORWARD_STARTED", "FORWARD_COMPLETED", "BACKWARD_STARTED", "BACKWARD_COMPLETED"]
        optimizer_step = ["OPTIMIZER_STEP_STARTED", "OPTIMIZER_STEP_COMPLETED"]
        added_up = ["ITERATION_STARTED", *forward_and_backward, "ITERATION_COMPLETED"]
        stepped = ["ITERATION_STARTED", *forward_and_backward, *optimizer_step, "ITERATION_COMPLETED"]
        last = [*added_up, *optimizer_step, "EPOCH_COMPLETED"]
        assert fired == [*added_up, *stepped, *last]

    def test_gradients_are_whole_when_the_optimizer_step_starts_and_gone_in_the_next_iteration(self, engine_of):
        model, seen = make_model(), []
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        engine = engine_of(loss_step(model), OptimizerStep(optimizer))
        for event in (StepEvents.FORWARD_STARTED, StepEvents.OPTIMIZER_STEP_STARTED):
            engine.add_event_handler(event, lambda: seen.append(model[0].weight.grad is not None))
        engine.run(make_data(2))
        assert seen == [False, True, False, True]

    def test_filters_on_the_optimizer_step_count_optimizer_steps(self, engine_of):
        model, seen = make_model(), []
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        engine = engine_of(loss_step(model), GradientAccumulation(3), OptimizerStep(optimizer))

        @engine.on(StepEvents.OPTIMIZER_STEP_COMPLETED(every=2))
        def note():
            seen.append((engine.state.iteration, engine.state.optimizer_step))

        engine.run(make_data(7), max_epochs=2)
        assert seen == [(6, 2), (10, 4), (14, 6)]

    def test_filters_on_forward_and_backward_count_iterations(self, engine_of):
        model, seen = make_model(), []
        engine = engine_of(loss_step(model), OptimizerStep(torch.optim.SGD(model.parameters(), lr=0.1)))
        for event in (StepEvents.FORWARD_STARTED(every=3), StepEvents.BACKWARD_COMPLETED(once=4)):
            engine.add_event_handler(event, lambda: seen.append(engine.state.iteration))
        engine.run(make_data(7))
        assert seen == [3, 4, 6]


class TestOptimizersThatEvaluateTheLossSeveralTimes:
    def lbfgs(self, model):
        return torch.optim.LBFGS(model.parameters(), lr=0.5, max_iter=4, line_search_fn="strong_wolfe")

    @pytest.mark.parametrize("precision", ["float32", "bf16"])
    def test_lbfgs_equals_torchs_own_loop_to_the_bit(self, engine_of, precision):
        by_hand, model = make_model(), make_model()
        optimizer = self.lbfgs(by_hand)
        torch.manual_seed(3)
        for x, y in make_data():

            def closure(x=x, y=y):
                optimizer.zero_grad()
                with torch.autocast("cpu", dtype=torch.bfloat16, enabled=precision == "bf16"):
                    loss = F.cross_entropy(by_hand(x), y)
                loss.backward()
                return loss

            last_loss = optimizer.step(closure)

        handlers = [OptimizerStep(self.lbfgs(model)), *([AMP("bf16")] if precision == "bf16" else [])]
        engine = engine_of(loss_step(model), *handlers)
        torch.manual_seed(3)
        engine.run(make_data())
        assert_equal_bits(model, by_hand)
        assert torch.equal(engine.state.output, last_loss)
        assert engine.state.optimizer_step == 7

    def test_the_step_may_return_a_mapping(self, engine_of):
        model = make_model().eval()
        engine = engine_of(
            lambda engine, batch: {"loss": loss_step(model)(engine, batch)}, OptimizerStep(self.lbfgs(model))
        )
        data = make_data(1)
        before = loss_step(model)(None, data[0]).item()
        assert engine.run(data).output["loss"].item() == before
        assert loss_step(model)(None, data[0]).item() < before

    @pytest.mark.parametrize("handler", [GradientAccumulation(2), AMP("fp16"), GradientClipping(1.0)], ids=repr)
    def test_what_needs_the_gradients_once_is_refused_when_the_run_starts(self, engine_of, handler):
        model = make_model()
        engine = engine_of(loss_step(model), handler, OptimizerStep(self.lbfgs(model)))
        with pytest.raises(ValueError, match=r"does not go with LBFGS.*several times in one step"):
            engine.run(make_data())

    def test_a_call_by_hand_is_refused(self, engine_of):
        model = make_model()
        step = OptimizerStep(self.lbfgs(model))
        with pytest.raises(ValueError, match="let the step return the loss"):
            engine_of(lambda engine, batch: step(loss_step(model)(engine, batch)), step).run(make_data())

    def test_one_beside_other_optimizers_is_refused(self):
        model = make_model()
        with pytest.raises(ValueError, match="must be the only one"):
            OptimizerStep(self.lbfgs(model[0]), torch.optim.SGD(model[3].parameters(), lr=0.1))


class TestState:
    def test_a_group_of_micro_batches_under_way_can_be_kept_and_gone_on_with(self, engine_of):
        data, by_hand, model = make_data(6), make_model().eval(), make_model().eval()
        engine_of(
            loss_step(by_hand), OptimizerStep(torch.optim.SGD(by_hand.parameters(), lr=0.1)), GradientAccumulation(4)
        ).run(data)

        first = OptimizerStep(torch.optim.SGD(model.parameters(), lr=0.1))
        engine = engine_of(loss_step(model), first, GradientAccumulation(4))
        kept = {}

        @engine.on(Events.ITERATION_COMPLETED(once=3))
        def keep():
            kept.update(first.state_dict())
            kept["gradients"] = [gradient.clone() for gradient in kept["gradients"]]
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            engine.run(data)

        resumed = OptimizerStep(torch.optim.SGD(model.parameters(), lr=0.1))
        engine = engine_of(loss_step(model), resumed, GradientAccumulation(4))
        engine.add_event_handler(Events.STARTED, lambda: resumed.load_state_dict(kept))
        assert engine.run(data[3:]).optimizer_step == 2
        assert_equal_bits(model, by_hand)

    def test_it_goes_on_counting_its_steps(self, engine_of):
        model = make_model()
        step = OptimizerStep(torch.optim.SGD(model.parameters(), lr=0.1))
        engine = engine_of(loss_step(model), step)
        step.load_state_dict({"steps": 100})
        assert engine.state.optimizer_step == 100
        engine.run(make_data())
        assert step.state_dict() == {"steps": 107}

    def test_an_error_within_a_group_leaves_nothing_for_the_next_run(self, engine_of):
        data, model, by_hand = make_data(4), make_model().eval(), make_model().eval()
        step = OptimizerStep(torch.optim.SGD(model.parameters(), lr=0.1))
        failing = engine_of(loss_step(model), step, GradientAccumulation(4))
        with pytest.raises(RuntimeError, match="target"):
            failing.run([*data[:2], (torch.ones(1, 3), torch.ones(1, 1, 1).long())])
        step.detach(failing)
        engine_of(loss_step(model), step, GradientAccumulation(4)).run(data)

        engine_of(
            loss_step(by_hand), OptimizerStep(torch.optim.SGD(by_hand.parameters(), lr=0.1)), GradientAccumulation(4)
        ).run(data)
        assert_equal_bits(model, by_hand)
