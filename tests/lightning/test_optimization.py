"""How losses reach the weights: optimizers and their hooks, schedules, accumulation, clipping, precision."""

from typing import Any

import pytest
import torch
from torch import nn
from torch.optim.lr_scheduler import ExponentialLR, OneCycleLR, ReduceLROnPlateau, StepLR
from torch.utils.data import DataLoader

import camshaft.contrib.lightning as pl

SAMPLES = torch.randn(20, 3, generator=torch.Generator().manual_seed(1))
BATCHES = list(SAMPLES.split(4))


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))


class Model(pl.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.net = network()
        self.rates: list[float] = []

    def loss(self, batch):
        return (self.net(batch) - 1).square().mean()

    def training_step(self, batch, batch_idx):
        self.rates.append(round(self.trainer.optimizers[0].param_groups[0]["lr"], 6))
        loss = self.loss(batch)
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch, batch_idx):
        self.log("val_loss", float(self.current_epoch))

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def fitted(model: Any, val: Any = None, **flags: Any) -> Any:
    settings = {"max_epochs": 2, **flags}
    trainer = pl.Trainer(
        accelerator="cpu",
        devices=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **settings,
    )
    trainer.fit(model, DataLoader(SAMPLES, batch_size=4), val)
    return model


def of(configure: Any, **methods: Any) -> Any:
    """A model with its own ``configure_optimizers``."""
    return type("Configured", (Model,), {"configure_optimizers": configure, **methods})()


def by_hand(step: Any, epochs: int = 2) -> nn.Sequential:
    """A network trained by a loop without any of this."""
    net = network()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    for _ in range(epochs):
        for index, batch in enumerate(BATCHES):
            step(net, optimizer, batch, index)
    return net


def plain(net, optimizer, batch, index, clip=lambda parameters: None):
    optimizer.zero_grad()
    (net(batch) - 1).square().mean().backward()
    clip(list(net.parameters()))
    optimizer.step()


def assert_same(model: Any, net: nn.Module) -> None:
    assert all(torch.equal(one, other) for one, other in zip(model.net.parameters(), net.parameters(), strict=True))


# ------------------------------------------------------------------------------------------------ the loop by hand


def test_a_fit_ends_in_the_bits_of_a_loop_by_hand():
    assert_same(fitted(Model()), by_hand(plain))


def test_clipping_by_norm():
    clipped = by_hand(lambda *args: plain(*args, clip=lambda all_: nn.utils.clip_grad_norm_(all_, 0.1)))
    assert_same(fitted(Model(), gradient_clip_val=0.1), clipped)


def test_clipping_by_value():
    clipped = by_hand(lambda *args: plain(*args, clip=lambda all_: nn.utils.clip_grad_value_(all_, 0.01)))
    assert_same(fitted(Model(), gradient_clip_val=0.01, gradient_clip_algorithm="value"), clipped)


def grouped(net, optimizer, batch, index, *, last: float):
    """Groups of two batches; the fifth is a group of its own, divided by ``last``."""
    if index % 2 == 0:
        optimizer.zero_grad()
    ((net(batch) - 1).square().mean() / (last if index == 4 else 2)).backward()
    if index % 2 or index == 4:
        optimizer.step()


def test_an_incomplete_group_is_divided_by_what_it_holds():
    ours = fitted(Model(), accumulate_grad_batches=2)
    expected = by_hand(lambda *args: grouped(*args, last=1))
    for one, other in zip(ours.net.parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(one, other)


def test_lightnings_way_divides_it_by_the_size_of_a_complete_one():
    ours = fitted(Model(), accumulate_grad_batches=2, lightning_way=True)
    expected = by_hand(lambda *args: grouped(*args, last=2))
    for one, other in zip(ours.net.parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(one, other)


def test_lbfgs_evaluates_several_times_and_may_be_clipped():
    model = of(lambda self: torch.optim.LBFGS(self.parameters(), lr=0.1, max_iter=3))
    fitted(model, gradient_clip_val=0.5, max_epochs=1)
    assert len(model.rates) > len(BATCHES)
    assert all(torch.isfinite(parameter).all() for parameter in model.parameters())


# ------------------------------------------------------------------------------------------------ schedules


def with_schedule(make: Any, **settings: Any) -> Any:
    def configure(self):
        optimizer = torch.optim.SGD(self.parameters(), lr=0.1)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": make(optimizer), **settings}}

    return configure


@pytest.mark.parametrize(
    ("settings", "flags", "rates"),
    [
        ({}, {}, [0.1] * 5 + [0.05] * 5),
        ({"frequency": 2}, {"max_epochs": 3}, [0.1] * 10 + [0.05] * 5),
        ({"interval": "step"}, {"max_epochs": 1}, [0.1, 0.05, 0.025, 0.0125, 0.00625]),
        ({"interval": "step", "frequency": 2}, {"max_epochs": 1}, [0.1, 0.1, 0.05, 0.05, 0.025]),
        ({"interval": "step"}, {"max_epochs": 1, "accumulate_grad_batches": 2}, [0.1, 0.1, 0.05, 0.05, 0.025]),
    ],
    ids=str,
)
def test_a_schedule_is_stepped_at_its_interval(settings, flags, rates):
    model = of(with_schedule(lambda optimizer: StepLR(optimizer, 1, 0.5), **settings))
    assert fitted(model, **flags).rates == rates


def test_several_schedules_are_stepped_each_at_its_own():
    def configure(self):
        optimizer = torch.optim.SGD(self.parameters(), lr=1.0)
        by_step = {"scheduler": ExponentialLR(optimizer, 0.5), "interval": "step"}
        return [optimizer], [by_step, StepLR(optimizer, 1, 0.1)]

    assert fitted(of(configure)).rates[4:7] == [0.0625, 0.003125, 0.001563]


@pytest.mark.parametrize(
    ("settings", "rates"),
    [
        ({"monitor": "val_loss"}, [0.1] * 10 + [0.05] * 5),  # in which the loss of the validation rose
        ({"monitor": "nothing", "strict": False}, [0.1] * 15),
    ],
    ids=["monitored", "missing"],
)
@pytest.mark.filterwarnings("ignore:ReduceLROnPlateau monitors 'nothing'")
def test_a_plateau_is_told_the_value_that_it_monitors(settings, rates):
    model = of(with_schedule(lambda optimizer: ReduceLROnPlateau(optimizer, patience=0, factor=0.5), **settings))
    assert fitted(model, DataLoader(SAMPLES), max_epochs=3, num_sanity_val_steps=0).rates == rates


def test_a_plateau_whose_value_is_missing_is_refused():
    model = of(with_schedule(ReduceLROnPlateau, monitor="nothing"))
    with pytest.raises(ValueError, match="ReduceLROnPlateau monitors 'nothing', which was not logged"):
        fitted(model)


@pytest.mark.parametrize(
    ("flags", "steps"),
    [
        ({}, 10),
        ({"accumulate_grad_batches": 4}, 4),
        ({"max_steps": 7}, 7),
        ({"max_epochs": -1, "max_steps": 3}, 3),
        ({"limit_train_batches": 0.4}, 4),
    ],
    ids=str,
)
def test_the_number_of_steps_is_known_when_the_schedule_is_made(flags, steps):
    def configure(self):
        self.steps = self.trainer.estimated_stepping_batches
        optimizer = torch.optim.SGD(self.parameters(), lr=0.1)
        return [optimizer], [{"scheduler": OneCycleLR(optimizer, 0.5, total_steps=self.steps), "interval": "step"}]

    model = fitted(of(configure), **flags)
    assert model.steps == model.trainer.estimated_stepping_batches == model.trainer.global_step == steps


# ------------------------------------------------------------------------------------------------ the module's hooks


def test_an_optimizer_step_of_the_modules_own_warms_up():
    def optimizer_step(self, epoch, batch_idx, optimizer, optimizer_closure):
        for group in optimizer.param_groups:
            group["lr"] = 0.1 * min(1.0, (self.trainer.global_step + 1) / 4)
        optimizer.step(closure=optimizer_closure)

    model = fitted(of(Model.configure_optimizers, optimizer_step=optimizer_step), max_epochs=1)
    assert model.rates == [0.025, 0.05, 0.075, 0.1, 0.1]


def test_an_optimizer_step_may_leave_out_steps():
    def optimizer_step(self, epoch, batch_idx, optimizer, optimizer_closure):
        optimizer_closure()
        if batch_idx % 2:
            optimizer.step()

    clipped: list[int] = []
    model = of(
        Model.configure_optimizers,
        optimizer_step=optimizer_step,
        on_before_optimizer_step=lambda self, optimizer: clipped.append(self.trainer.batch_idx),
    )
    fitted(model, max_epochs=1)
    assert clipped == [1, 3]


def test_an_optimizer_step_that_computes_nothing_is_refused():
    model = of(Model.configure_optimizers, optimizer_step=lambda self, *args: None)
    with pytest.raises(RuntimeError, match="has not computed the loss"):
        fitted(model)


def test_a_clipping_of_the_modules_own():
    def configure_gradient_clipping(self, optimizer, gradient_clip_val=None, gradient_clip_algorithm=None):
        self.clip_gradients(optimizer, gradient_clip_val=0.1, gradient_clip_algorithm="norm")

    model = of(Model.configure_optimizers, configure_gradient_clipping=configure_gradient_clipping)
    assert_same(fitted(model), fitted(Model(), gradient_clip_val=0.1).net)


# ------------------------------------------------------------------------------------------------ by hand


class Adversaries(Model):
    """Two networks with an optimizer each; all by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.other = network()

    def training_step(self, batch, batch_idx):
        first, second = self.optimizers()
        for optimizer, net in ((first, self.net), (second, self.other)):
            self.toggle_optimizer(optimizer)
            assert [parameter.requires_grad for parameter in self.other.parameters()] == [net is self.other] * 4
            optimizer.zero_grad()
            self.manual_backward((net(batch) - 1).square().mean())
            optimizer.step()
            self.untoggle_optimizer(optimizer)
        for scheduler in self.lr_schedulers():
            scheduler.step()

    def configure_optimizers(self):
        optimizers = [torch.optim.SGD(net.parameters(), lr=0.1) for net in (self.net, self.other)]
        return optimizers, [StepLR(optimizer, 100) for optimizer in optimizers]


def test_two_optimizers_by_hand_end_as_each_alone():
    model = fitted(Adversaries())
    assert_same(model, by_hand(plain))
    assert all(torch.equal(one, two) for one, two in zip(model.net.parameters(), model.other.parameters(), strict=True))


@pytest.mark.parametrize(("lightning_way", "steps"), [(False, 10), (True, 20)])
def test_global_step_counts_the_steps_of_one_optimizer_or_of_all(lightning_way, steps):
    assert fitted(Adversaries(), lightning_way=lightning_way).trainer.global_step == steps


def test_a_step_by_hand_may_take_a_closure():
    events: list[str] = []

    class Closes(Model):
        def __init__(self) -> None:
            super().__init__()
            self.automatic_optimization = False

        def training_step(self, batch, batch_idx):
            optimizer = self.optimizers()

            def closure():
                events.append("closure")
                optimizer.zero_grad()
                loss = self.loss(batch)
                self.manual_backward(loss)
                return loss

            assert optimizer.step(closure=closure).ndim == 0

        def on_before_optimizer_step(self, optimizer):
            events.append("before step")

    assert_same(fitted(Closes()), by_hand(plain))
    assert events == ["closure", "before step"] * 10


@pytest.mark.parametrize("flag", [{"gradient_clip_val": 0.1}, {"accumulate_grad_batches": 2}], ids=str)
def test_what_would_do_nothing_by_hand_is_refused(flag):
    with pytest.raises(ValueError, match="does nothing where the module makes its steps itself"):
        fitted(Adversaries(), **flag)


def test_two_optimizers_need_to_be_stepped_by_hand():
    with pytest.raises(ValueError, match=r"2 optimizers: set self.automatic_optimization = False"):
        fitted(of(lambda self: [torch.optim.SGD([p], lr=0.1) for p in list(self.parameters())[:2]]))


# ------------------------------------------------------------------------------------------------ precision


@pytest.mark.parametrize(
    ("precision", "weights", "outputs"),
    [
        (None, torch.float32, torch.float32),
        ("bf16-mixed", torch.float32, torch.bfloat16),
        ("bf16-true", torch.bfloat16, torch.bfloat16),
        ("64-true", torch.float64, torch.float64),
        (64, torch.float64, torch.float64),
    ],
    ids=str,
)
def test_precisions(precision, weights, outputs):
    class Looks(Model):
        def training_step(self, batch, batch_idx):
            assert self.net(batch).dtype == outputs
            return super().training_step(batch, batch_idx)

    model = fitted(Looks(), precision=precision)
    assert model.net[0].weight.dtype == weights
    assert torch.get_default_dtype() == torch.float32


def test_16_bit_precision_is_bf16_on_the_cpu():
    with pytest.warns(UserWarning, match="computes in bf16 on the CPU"):
        trainer = pl.Trainer(accelerator="cpu", precision="16-mixed", logger=False)
    assert trainer.precision == "bf16-mixed"
