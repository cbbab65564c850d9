import io
import os
import shutil
import time

import pytest
import torch
from torch import nn
from torch._dynamo.backends.common import aot_autograd
from torch.nn import functional as F

from camshaft.engine import Engine, Events
from camshaft.handlers import (
    AMP,
    EMA,
    Checkpoint,
    Compile,
    DataParallel,
    Evaluate,
    FullySharded,
    GradientAccumulation,
    GradientClipping,
    LRScheduler,
    OptimizerStep,
    ProgressBar,
)
from tests.ranks import values_of_ranks

COMPILER = os.environ.get("CXX", "g++")
needs_a_compiler = pytest.mark.skipif(
    shutil.which(COMPILER) is None, reason=f"inductor needs a C++ compiler: {COMPILER}"
)


class Network(nn.Module):
    """Enough for a backward and random numbers, and quick to compile."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(4, 8)
        self.last = nn.Linear(8, 3)

    def forward(self, x):
        return self.last(F.dropout(torch.tanh(self.first(x)), 0.1, self.training))


class Talking(Network):
    """Its code cannot be compiled as a whole."""

    def forward(self, x):
        hidden = torch.tanh(self.first(x))
        if hidden.sum() > 0:
            hidden = hidden + 1
        return self.last(hidden)


def batches(number=4, size=8):
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randn(number, size, 4, generator=generator)
    return [(x, x[:, :3].argmax(1)) for x in inputs]


def loss_step(model):
    return lambda engine, batch: F.cross_entropy(model(batch[0]), batch[1])


def trained(*handlers, network=Network, engine_class=Engine, data=None, max_epochs=1):
    torch.manual_seed(0)
    model = network()
    engine = engine_class(loss_step(model))
    OptimizerStep(torch.optim.AdamW(model.parameters(), lr=0.01)).attach(engine)
    for handler in handlers:
        handler.attach(engine)
    engine.run(data or batches(), max_epochs=max_epochs)
    return model


def assert_same_weights(model, other, tolerance=0.0):
    for (name, weight), expected in zip(model.named_parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(
            weight, expected, rtol=0, atol=tolerance, msg=lambda text, name=name: f"{name}: {text}"
        )


# ---------------------------------------------------------------------------------------------------- what is compiled


class TestTheModules:
    def test_a_compiled_model_learns_what_the_plain_one_does(self, engine_of):
        compiling = Compile(backend="aot_eager")
        model = trained(compiling, engine_class=lambda step: engine_of(step))
        assert compiling.graphs == 1
        assert_same_weights(model, trained(), tolerance=1e-6)

    def test_the_model_stays_the_object_it_is_with_the_names_it_has(self):
        model = trained(Compile(backend="eager"))
        assert type(model) is Network
        assert list(model.state_dict()) == list(Network().state_dict())

    def test_a_module_of_torch_itself_is_compiled(self):
        compiling = Compile(backend="eager")
        trained(compiling, network=lambda: nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)))
        assert compiling.graphs == 1

    def test_each_shape_of_a_batch_is_compiled_once(self):
        compiling = Compile(backend="eager")
        trained(compiling, data=[*batches(), *batches(1, size=5)], max_epochs=3)
        assert compiling.graphs == 2

    def test_batches_of_many_shapes_are_compiled_once_if_asked_to(self):
        compiling = Compile(backend="eager", dynamic=True)
        trained(compiling, data=[batches(1, size=size)[0] for size in range(5, 12)])
        assert compiling.graphs == 1

    def test_several_runs_compile_once(self):
        compiling, model = Compile(backend="eager"), Network()
        engine = Engine(lambda engine, batch: model(batch[0]).sum().item()).attach(compiling)
        engine.run(batches())
        assert engine.run(batches()).times["COMPILATION"] == 0
        assert compiling.graphs == 1

    def test_more_models_than_torch_compiles_of_the_same_code_are_all_compiled(self):
        compiling, models = Compile(backend="eager"), [nn.Linear(4, 2) for _ in range(12)]
        engine = Engine(lambda engine, batch: sum(model(batch[0]).sum() for model in models).item())
        engine.attach(compiling).run(batches())
        assert compiling.graphs == 12

    def test_a_loss_that_is_a_module_is_not_compiled(self):
        compiling, model, loss = Compile(backend="eager"), Network(), nn.CrossEntropyLoss()
        Engine(lambda engine, batch: loss(model(batch[0]), batch[1]).item()).attach(compiling).run(batches())
        assert compiling.graphs == 1
        assert loss._compiled_call_impl is None

    def test_what_the_user_has_compiled_is_left_alone(self):
        model = Network()
        model.compile(backend="eager")
        before = model._compiled_call_impl
        Engine(lambda engine, batch: model(batch[0]).sum().item()).attach(Compile(model, backend="eager"))
        assert model._compiled_call_impl is before

    def test_detach_leaves_the_plain_model(self):
        compiling, model = Compile(backend="eager"), Network()
        engine = Engine(lambda engine, batch: model(batch[0]).sum().item()).attach(compiling)
        engine.run(batches())
        compiling.detach(engine)
        engine.run(batches(size=3))
        assert compiling.graphs == 1
        assert model._compiled_call_impl is None

    def test_the_step_of_an_evaluator_is_compiled_too(self):
        model, compiling = Network(), Compile(backend="eager")
        evaluator = Engine(lambda engine, batch: model(batch[0]).sum().item()).attach(compiling)
        Engine(lambda engine, batch: None).attach(Evaluate(evaluator, batches())).run([0, 1], max_epochs=2)
        assert compiling.graphs == 1

    def test_a_module_is_compiled_by_one_handler_of_several(self):
        model, compiling = Network(), [Compile(backend="eager"), Compile(backend="eager")]
        evaluator = Engine(lambda engine, batch: model(batch[0]).sum().item()).attach(compiling[1])
        trainer = Engine(loss_step(model)).attach(compiling[0], Evaluate(evaluator, batches()))
        trainer.run(batches())
        assert [one.graphs for one in compiling] == [2, 0]

    @pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")  # by torch
    def test_parts_that_the_step_calls_are_compiled_when_they_are_named(self):
        model = Network()
        compiling = Compile(model.first, model.last, backend="eager")
        engine = Engine(lambda engine, batch: model.last(model.first(batch[0])).sum().item())
        engine.attach(compiling).run(batches())
        assert compiling.graphs == 2

    def test_a_model_of_which_the_step_calls_only_parts_is_warned_of(self):
        model = Network()
        engine = Engine(lambda engine, batch: model.last(model.first(batch[0])).sum().item())
        with pytest.warns(UserWarning, match="the step calls none of the modules itself"):
            engine.attach(Compile(backend="eager")).run(batches())


class TestBesideOtherHandlers:
    @pytest.mark.parametrize(
        "handlers",
        [
            lambda: [GradientAccumulation(3)],
            lambda: [GradientClipping(0.1)],
            lambda: [AMP("bf16")],
        ],
        ids=["accumulation", "clipping", "bf16"],
    )
    def test_the_weights_are_those_without_it(self, handlers):
        compiled = trained(Compile(backend="aot_eager"), *handlers(), max_epochs=2)
        assert_same_weights(compiled, trained(*handlers(), max_epochs=2), tolerance=2e-3)  # bf16 is rounded elsewhere

    def test_averages_of_the_weights_are_evaluated_by_the_compiled_model(self):
        torch.manual_seed(0)
        model, outputs = nn.Linear(4, 3), []
        ema = EMA(model, decay=0.5)
        evaluator = Engine(lambda engine, batch: outputs.append(model(batch[0])))
        trainer = Engine(loss_step(model))
        trainer.attach(
            OptimizerStep(torch.optim.SGD(model.parameters(), lr=0.1)),
            Compile(backend="aot_eager"),
            Evaluate(evaluator, batches(1), ema=ema),
            ema,
        )
        trainer.run(batches(), max_epochs=2)
        torch.testing.assert_close(outputs[-1], ema.module(batches(1)[0][0]))

    def test_several_processes_compile_what_data_parallel_wraps(self):
        def program():
            compiling = Compile(backend="aot_eager")
            torch.manual_seed(0)
            model = Network()
            engine = Engine(loss_step(model))
            engine.attach(OptimizerStep(torch.optim.SGD(model.parameters(), lr=0.1)), DataParallel(model), compiling)
            engine.run(batches(size=4 + int(os.environ["RANK"])))
            return compiling.graphs, [parameter.tolist() for parameter in model.parameters()]

        (graphs, weights), (other_graphs, other_weights) = values_of_ranks(program, timeout=60)
        assert graphs == other_graphs == 1
        assert weights == other_weights


# ------------------------------------------------------------------------------------------------------- the optimizer


class TestTheOptimizer:
    def test_its_step_is_compiled_if_asked_to(self):
        compiling = Compile(backend="aot_eager", optimizer=True)
        model = trained(compiling, max_epochs=2)
        assert compiling.graphs >= 2
        assert_same_weights(model, trained(max_epochs=2), tolerance=1e-5)

    def test_a_schedule_does_not_compile_it_again(self):
        rates, graphs = [], []
        for handlers in ([compiling := Compile(backend="aot_eager", optimizer=True)], []):
            torch.manual_seed(0)
            model = Network()
            optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
            schedule = LRScheduler(torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9))
            engine = Engine(loss_step(model)).attach(OptimizerStep(optimizer), schedule, *handlers)
            engine.add_event_handler(Events.ITERATION_COMPLETED, lambda: graphs.append(compiling.graphs))
            engine.run(batches(12))
            rates.append(optimizer.param_groups[0]["lr"])
        assert graphs[3] == graphs[-1]
        assert rates[0] == rates[1]
        assert type(rates[0]) is float

    def test_hooks_of_the_optimizer_are_called(self):
        torch.manual_seed(0)
        model, called = Network(), []
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        optimizer.register_step_post_hook(lambda *_: called.append(True))
        engine = Engine(loss_step(model)).attach(OptimizerStep(optimizer), Compile(backend="eager", optimizer=True))
        engine.run(batches())
        assert len(called) == 4

    def test_detach_leaves_the_plain_step(self):
        model = Network()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        compiling = Compile(backend="eager", optimizer=True)
        engine = Engine(loss_step(model)).attach(OptimizerStep(optimizer), compiling)
        engine.run(batches())
        compiling.detach(engine)
        assert "step" not in vars(optimizer)

    def test_one_that_evaluates_the_loss_several_times_is_refused(self):
        model = Network()
        engine = Engine(loss_step(model)).attach(OptimizerStep(torch.optim.LBFGS(model.parameters())))
        with pytest.raises(ValueError, match="does not go with LBFGS"):
            engine.attach(Compile(optimizer=True)).run(batches())


# ---------------------------------------------------------------------------------------------- where it does not work


class TestWhatCannotBeCompiled:
    def test_a_backend_that_fails_is_warned_of_and_the_run_goes_on(self):
        def broken(graph, inputs):
            raise RuntimeError("no such instruction")

        with pytest.warns(UserWarning, match="could not compile a graph, which is run as it is: no such instruction"):
            model = trained(Compile(backend=broken))
        assert_same_weights(model, trained())

    def test_a_backward_that_cannot_be_compiled_is_found_before_it_is_called(self):
        def broken(graph, inputs):
            raise RuntimeError("backward is too hard")

        with pytest.warns(UserWarning, match="backward is too hard"):
            model = trained(Compile(backend=aot_autograd(fw_compiler=lambda graph, inputs: graph, bw_compiler=broken)))
        assert_same_weights(model, trained(), tolerance=1e-6)

    def test_code_that_torch_cannot_follow_is_warned_of_and_compiled_in_parts(self):
        compiling = Compile(backend="aot_eager")
        with pytest.warns(UserWarning, match="compiled Talking in several parts.*Data-dependent branching"):
            model = trained(compiling, network=Talking)
        assert compiling.graphs > 1
        assert_same_weights(model, trained(network=Talking), tolerance=1e-6)

    def test_an_error_of_the_model_is_the_models(self):
        model = Network()
        engine = Engine(lambda engine, batch: model(batch).sum()).attach(Compile(backend="eager"))
        with pytest.raises(RuntimeError, match="mat1 and mat2 shapes cannot be multiplied"):
            engine.run([torch.ones(2, 5)])

    def test_an_unknown_backend_is_refused_with_those_there_are(self):
        engine = Engine(loss_step(Network())).attach(Compile(backend="inducter"))
        with pytest.raises(ValueError, match=r"torch has no backend 'inducter'; it has .*'inductor'"):
            engine.run(batches())

    @pytest.mark.parametrize(("backend", "mode"), [("eager", "max-autotune"), ("inductor", "fastest")])
    def test_a_mode_that_the_backend_does_not_have_is_refused(self, backend, mode):
        engine = Engine(loss_step(Network())).attach(Compile(backend=backend, mode=mode))
        with pytest.raises(ValueError, match=mode):
            engine.run(batches())

    def test_only_modules_are_taken(self):
        with pytest.raises(TypeError, match="Compile takes modules, but got"):
            Compile(loss_step)

    def test_a_step_without_modules_is_refused(self):
        with pytest.raises(ValueError, match=r"no module with parameters in the step. Name what to compile"):
            Engine(lambda engine, batch: None).attach(Compile()).run([0])

    def test_an_optimizer_without_an_optimizer_step_is_refused(self):
        with pytest.raises(ValueError, match="compiles the optimizers of OptimizerStep, but none is attached"):
            Engine(loss_step(Network())).attach(Compile(optimizer=True)).run(batches())

    def test_a_model_sharded_over_several_processes_is_refused(self):
        def program():
            model = Network()
            engine = Engine(loss_step(model)).attach(FullySharded(model), Compile())
            with pytest.raises(ValueError, match="does not go with FullySharded"):
                engine.run(batches())
            return True

        assert values_of_ranks(program) == [True, True]


# ------------------------------------------------------------------------------------------------------------ the time


class TestTheTime:
    @pytest.fixture
    def slow_backend(self):
        """Takes a second to compile."""

        def backend(graph, inputs):
            time.sleep(1)
            return graph.forward

        return backend

    def test_compiling_is_no_time_of_the_epoch(self, slow_backend):
        torch.manual_seed(0)
        model = Network()
        engine = Engine(loss_step(model)).attach(Compile(backend=slow_backend))
        times = engine.run(batches()).times
        assert times["COMPILATION"] >= 1
        assert times["COMPLETED"] >= times["EPOCH_COMPLETED"] + times["COMPILATION"] - 0.001

    def test_the_progress_bar_leaves_it_out_and_tells_it(self, slow_backend):
        model, file = Network(), io.StringIO()
        Engine(loss_step(model)).attach(Compile(backend=slow_backend), ProgressBar(file=file)).run(
            batches(), max_epochs=2
        )
        first, second = file.getvalue().splitlines()
        assert "s of compilation" in first
        assert float(first.split("after ")[1].split()[0]) >= 1
        assert "compilation" not in second


# ------------------------------------------------------------------------------------------------- with a real backend


@pytest.fixture(scope="module")
def inductors(tmp_path_factory):
    """A run of two epochs with random numbers in its model, and one that goes on after the first of them."""
    folders = [tmp_path_factory.mktemp("whole"), tmp_path_factory.mktemp("parts")]

    def run(folder, max_epochs, seed=0):
        torch.manual_seed(seed)
        model = Network()
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
        engine = Engine(loss_step(model))
        engine.attach(OptimizerStep(optimizer), Compile(), Checkpoint(folder, model=model, optimizer=optimizer))
        engine.run(batches(), max_epochs=max_epochs)
        return model

    with torch._inductor.config.patch(cpp_cache_precompile_headers=False):
        whole = run(folders[0], 2)
        run(folders[1], 1)
        return folders, whole, run(folders[1], 2, seed=1)


@needs_a_compiler
@pytest.mark.slow
class TestInductor:
    def test_a_run_that_is_resumed_ends_in_the_same_bits(self, inductors):
        _, whole, resumed = inductors
        assert_same_weights(resumed, whole)

    def test_what_was_compiled_is_kept_in_the_directory_of_the_run(self, inductors):
        folders, _, _ = inductors
        assert list((folders[0] / "compiled").rglob("*.so"))
