import traceback
from collections import OrderedDict, namedtuple

import pytest
import torch
from ignite.engine import Engine as IgniteEngine
from torch import nn

from camshaft.engine import Engine, Events, StepEvents
from camshaft.engine.training_step import TrainingStep, without_graph
from camshaft.handlers import AMP, OptimizerStep

Pair = namedtuple("Pair", "logits name")


@pytest.fixture(params=[Engine, IgniteEngine], ids=["camshaft", "ignite"])
def engine_class(request):
    return request.param


class TestAStepThatIsLeftWhole:
    def test_what_it_returns_is_kept_as_it_is(self, engine_class):
        model = nn.Linear(1, 1)
        engine = engine_class(lambda engine, batch: (model(batch), "text"))
        TrainingStep.of(engine)
        output = engine.run([torch.ones(1)]).output
        assert output[0].requires_grad
        assert output[1] == "text"

    def test_moments_around_it_fire(self, engine_class):
        fired = []
        engine = engine_class(lambda engine, batch: fired.append("step"))
        TrainingStep.of(engine)
        for event in (StepEvents.FORWARD_STARTED, StepEvents.FORWARD_COMPLETED, StepEvents.BACKWARD_STARTED):
            engine.add_event_handler(event, lambda event: fired.append(event.name), event)
        engine.run([0])
        assert fired == ["FORWARD_STARTED", "step", "FORWARD_COMPLETED"]


class TestWrapping:
    def test_a_step_is_wrapped_once(self, engine_class):
        engine = engine_class(lambda engine, batch: None)
        step = TrainingStep.of(engine)
        assert TrainingStep.of(engine) is step
        assert engine._process_function is step
        assert not isinstance(step.function, TrainingStep)

    def test_it_goes_by_the_name_of_the_users_function(self, engine_class):
        def my_training_step(engine, batch):
            """What it does."""

        step = TrainingStep.of(engine_class(my_training_step))
        assert (step.__name__, step.__doc__) == ("my_training_step", "What it does.")
        assert step.function is my_training_step

    def test_listening_to_a_moment_wraps_the_step_of_our_engine(self):
        engine, fired = Engine(lambda engine, batch: None), []
        engine.add_event_handler(StepEvents.FORWARD_STARTED, lambda: fired.append(engine.state.iteration))
        engine.run([0, 1], max_epochs=1)
        assert fired == [1, 2]

    def test_an_error_in_the_step_passes_through_at_most_four_of_our_frames(self):
        model = nn.Linear(1, 1)

        def my_training_step(engine, batch):
            raise ZeroDivisionError

        engine = Engine(my_training_step).attach(
            OptimizerStep(torch.optim.SGD(model.parameters(), lr=0.1)), AMP("bf16")
        )
        with pytest.raises(ZeroDivisionError) as raised:
            engine.run([0])
        names = [frame.name for frame in traceback.extract_tb(raised.value.__traceback__)]
        between = names[names.index("run") + 1 : names.index("my_training_step")]
        assert len(between) <= 4

    def test_an_error_in_the_step_leaves_autocast(self):
        engine = Engine(lambda engine, batch: 1 / 0).attach(AMP("bf16"))
        with pytest.raises(ZeroDivisionError):
            engine.run([0])
        assert not torch.is_autocast_enabled("cpu")


class TestWithoutGraph:
    @pytest.fixture
    def tensor(self):
        return torch.ones(2, requires_grad=True) * 2

    def test_the_output_of_an_iteration_holds_no_graph_at_any_depth(self, engine_class, tensor):
        model = nn.Linear(2, 1)

        def step(engine, batch):
            logits = model(batch)
            return OrderedDict(loss=logits.mean(), more=[Pair(logits, "a"), {"deep": (logits,)}], names=["a"])

        engine = engine_class(step)
        OptimizerStep(torch.optim.SGD(model.parameters(), lr=0.1)).attach(engine)
        seen = []
        engine.add_event_handler(Events.ITERATION_COMPLETED, lambda: seen.append(engine.state.output))
        engine.run([torch.ones(3, 2)])
        output = seen[0]
        tensors = [output["loss"], output["more"][0].logits, output["more"][1]["deep"][0]]
        assert [tensor.requires_grad for tensor in tensors] == [False] * 3
        assert type(output) is OrderedDict
        assert output["more"][0].name == "a"
        assert output["names"] == ["a"]

    def test_values_stay_as_they_are(self, tensor):
        assert torch.equal(without_graph(tensor), tensor)
        assert without_graph("text") == "text"

    def test_a_tensor_without_a_graph_is_not_copied(self):
        plain = torch.ones(2)
        assert without_graph(plain) is plain

    def test_the_users_own_container_is_not_changed(self, tensor):
        output = {"loss": tensor}
        assert without_graph(output)["loss"].grad_fn is None
        assert output["loss"] is tensor
