import functools
import types

import pytest
import torch
from ignite.engine import create_supervised_evaluator, create_supervised_trainer
from torch import nn

from camshaft.engine import Engine
from camshaft.engine.training_step import TrainingStep
from camshaft.engine.used_objects import modules_used_by, used_by

a_global_module = nn.Linear(1, 1)


def uses_a_global(engine, batch):
    return a_global_module(batch)


def calls_a_helper(engine, batch):
    return uses_a_global(engine, batch)


def assert_finds(function, module):
    assert list(modules_used_by(function).values()) == [module]


class TestWhereAModuleIsFound:
    def test_in_a_global(self):
        assert modules_used_by(uses_a_global) == {"a_global_module": a_global_module}

    def test_in_a_function_that_the_step_calls(self):
        assert_finds(calls_a_helper, a_global_module)

    def test_in_a_function_defined_within_the_step(self):
        def step(engine, batch):
            def predict(item):
                return a_global_module(item)

            return predict(batch)

        assert_finds(step, a_global_module)

    def test_in_a_closure(self):
        model = nn.Linear(1, 1)
        assert modules_used_by(lambda engine, batch: model(batch)) == {"model": model}

    def test_in_a_default_argument(self):
        model, other = nn.Linear(1, 1), nn.Linear(1, 1)

        def step(engine, batch, model=model, *, other=other):
            return other(model(batch))

        assert list(modules_used_by(step).values()) == [model, other]

    def test_in_a_partial(self):
        model, other = nn.Linear(1, 1), nn.Linear(1, 1)
        step = functools.partial(lambda model, engine, batch, head: head(model(batch)), model, head=other)
        assert sorted(modules_used_by(step)) == ["0", "head"]

    def test_on_the_object_whose_method_the_step_is(self):
        class Research:
            def __init__(self):
                self.networks = {"generator": nn.Linear(1, 1)}

            def step(self, engine, batch):
                return self.networks["generator"](batch)

            def __call__(self, engine, batch):
                return self.step(engine, batch)

        research = Research()
        for step in (research.step, research):
            assert modules_used_by(step) == {"networks.generator": research.networks["generator"]}

    def test_as_the_object_whose_method_the_step_is(self):
        class Research(nn.Module):
            def __init__(self):
                super().__init__()
                self.layer = nn.Linear(1, 1)

            def step(self, engine, batch):
                return self.layer(batch)

        research = Research()
        assert modules_used_by(research.step) == {"Research": research}

    def test_behind_a_decorator(self):
        model = nn.Linear(1, 1)

        def decorated(function):
            @functools.wraps(function)
            def wrapper(*args):
                return function(*args)

            return wrapper

        @decorated
        @torch.no_grad()
        def step(engine, batch):
            return model(batch)

        assert_finds(step, model)

    def test_in_another_python_module(self):
        networks = types.ModuleType("networks")
        networks.generator, networks.unused = nn.Linear(1, 1), nn.Linear(1, 1)
        names = {"networks": networks, "__name__": "research"}
        exec("def step(engine, batch):\n    return networks.generator(batch)", names)
        assert modules_used_by(names["step"]) == {"networks.generator": networks.generator}

    def test_in_the_steps_that_ignite_makes(self):
        model = nn.Linear(1, 1)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        for engine in (create_supervised_trainer(model, optimizer, len), create_supervised_evaluator(model)):
            assert_finds(engine._process_function, model)

    def test_through_the_wrapping_of_step_handlers(self):
        model = nn.Linear(1, 1)
        engine = Engine(lambda engine, batch: model(batch))
        assert_finds(TrainingStep.of(engine), model)


class TestWhatIsNotFound:
    def test_a_module_that_only_another_engine_uses(self):
        model = nn.Linear(1, 1)
        evaluator = Engine(lambda engine, batch: model(batch))
        assert modules_used_by(lambda engine, batch: evaluator.run(batch)) == {}

    def test_a_variable_that_has_no_value_yet(self):
        def step(engine, batch):
            return model(batch)

        assert modules_used_by(step) == {}
        model = nn.Linear(1, 1)
        assert_finds(step, model)

    def test_data(self):
        data = [nn.Identity() for _ in range(1001)]
        assert modules_used_by(lambda engine, batch: data[batch]) == {}

    def test_a_class(self):
        assert modules_used_by(lambda engine, batch: nn.Linear(1, 1)(batch)) == {}


def test_parts_of_a_module_that_was_found_are_not_named_again():
    model = nn.Sequential(nn.Linear(1, 1), nn.Tanh())
    head = model[0]
    assert modules_used_by(lambda engine, batch: (head, model)) == {"model": model}


def test_one_module_under_two_names_is_found_once():
    model = nn.Linear(1, 1)
    again = model
    assert len(modules_used_by(lambda engine, batch: (model, again), lambda engine, batch: again)) == 1


@pytest.mark.parametrize("kind", [torch.optim.Optimizer, torch.Generator])
def test_objects_of_any_class_can_be_looked_for(kind):
    parameter = nn.Parameter(torch.zeros(1))
    things = {torch.optim.Optimizer: torch.optim.SGD([parameter], lr=0.1), torch.Generator: torch.Generator()}
    thing = things[kind]
    assert used_by(lambda engine, batch: thing, kind) == {"thing": thing}


def test_objects_that_refer_to_each_other_are_looked_at_once():
    class Node:
        pass

    node = Node()
    node.itself, node.model = node, nn.Linear(1, 1)
    assert modules_used_by(lambda engine, batch: node) == {"node.model": node.model}
