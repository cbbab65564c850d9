"""What is tried out leaves no trace: this is what LRFinder and BatchSizeFinder rely on."""

import copy

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

from camshaft.engine import Events
from camshaft.handlers import AMP, EMA, Checkpoint, Evaluate, GradientClipping, LRScheduler, Metrics, OptimizerStep
from camshaft.handlers.trial import trial


class Program:
    """A model with all that training changes, on either engine."""

    def __init__(self, engine_of, *handlers, momentum=0.9):
        torch.manual_seed(0)
        self.model = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3), nn.Dropout(0.5), nn.Linear(3, 1))
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.1, momentum=momentum)
        self.engine = engine_of(self.step, OptimizerStep(self.optimizer), *handlers)
        self.loader = DataLoader(
            torch.arange(16.0).reshape(8, 2) / 8, batch_size=4, shuffle=True, generator=torch.Generator().manual_seed(1)
        )

    def step(self, engine, batch):
        return self.model(batch).square().mean()

    def everything(self):
        return copy.deepcopy(
            [
                self.model.state_dict(),
                [part.training for part in self.model.modules()],
                self.optimizer.state_dict(),
                {name: value for name, value in vars(self.engine.state).items() if name not in ("dataloader", "times")},
                [handler.state_dict() for handler in self.engine.handlers],
                torch.get_rng_state(),
                self.loader.generator.get_state(),
            ]
        )

    def try_out(self, iterations=3):
        with trial(self.engine, self.loader):
            self.engine.run(self.loader, max_iters=iterations)


def same(one, other):
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(same, one, other))
    return one == other


def test_everything_is_as_it_was(engine_of):
    program = Program(engine_of, GradientClipping(1.0))
    before = program.everything()
    program.try_out()
    assert same(before, program.everything())


def test_everything_is_as_it_was_after_a_run(engine_of):
    program = Program(engine_of)
    program.engine.run(program.loader, max_epochs=2)
    before = program.everything()
    assert before[2]["state"]
    program.try_out()
    assert same(before, program.everything())


def test_training_after_it_is_the_same_as_without_it(engine_of):
    tried, other = Program(engine_of), Program(engine_of)
    torch.manual_seed(5)
    tried.try_out()
    tried.engine.run(tried.loader, max_epochs=2)
    torch.manual_seed(5)
    other.engine.run(other.loader, max_epochs=2)
    assert same(tried.everything(), other.everything())


def test_everything_is_as_it_was_after_an_error(engine_of):
    program = Program(engine_of)
    before = program.everything()
    with pytest.raises(RuntimeError, match="shapes"), trial(program.engine, []):
        program.engine.run([torch.ones(2, 2), torch.ones(2, 7)])
    assert same(before, program.everything())


def test_fp16_scaling_is_as_it_was(engine_of):
    program = Program(engine_of, AMP("fp16", scaler=torch.amp.GradScaler("cpu", init_scale=8.0, growth_interval=1)))
    program.try_out()
    assert program.engine.handlers[1].scalers[0].get_scale() == 8.0


def test_gradients_are_as_they_were(engine_of):
    program = Program(engine_of)
    program.model[0].weight.grad = gradient = torch.ones(3, 2)
    program.try_out()
    assert program.model[0].weight.grad is gradient
    assert torch.equal(gradient, torch.ones(3, 2))
    assert program.model[3].weight.grad is None


def test_nobody_else_hears_of_it(engine_of, tmp_path):
    heard = []
    program = Program(engine_of)
    for handler in (
        Checkpoint(tmp_path / "run", model=program.model),
        EMA(program.model),
        LRScheduler(torch.optim.lr_scheduler.StepLR(program.optimizer, 1)),
        Evaluate(engine_of(lambda engine, batch: heard.append(batch)), [0], modules=[program.model]),
    ):
        handler.attach(program.engine)
    for event in (Events.STARTED, Events.ITERATION_COMPLETED(every=2), Events.COMPLETED):
        program.engine.add_event_handler(event, heard.append, event)
    program.try_out()
    assert heard == []
    assert not (tmp_path / "run").exists()


def test_afterwards_all_hear_again_in_the_same_order(engine_of):
    heard = []
    program = Program(engine_of, Metrics())
    for name in "ab":
        program.engine.add_event_handler(Events.STARTED, heard.append, name)
    handlers = list(program.engine.handlers)
    entries = {event: list(found) for event, found in program.engine._event_handlers.items() if found}
    program.try_out()
    assert {event: list(found) for event, found in program.engine._event_handlers.items() if found} == entries
    assert program.engine.handlers == handlers
    program.engine.run(program.loader)
    assert heard == ["a", "b"]


def test_in_the_middle_of_a_run_it_is_refused(engine_of):
    program = Program(engine_of)
    program.engine.add_event_handler(Events.ITERATION_STARTED, program.try_out)
    with pytest.raises(ValueError, match="in the middle of a run"):
        program.engine.run(program.loader)


def test_without_an_optimizer_it_is_refused(engine_of):
    with pytest.raises(ValueError, match="No optimizer was found"), trial(engine_of(lambda engine, batch: None), []):
        pass
