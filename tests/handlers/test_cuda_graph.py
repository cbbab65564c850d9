"""What of recording a step needs no GPU is shown on the CPU, where doing the same again stands for a replay."""

import threading
from collections import namedtuple

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from camshaft.engine import Engine, Events, StepEvents
from camshaft.handlers import (
    AMP,
    EMA,
    Checkpoint,
    Compile,
    CUDAGraph,
    DataParallel,
    Device,
    GradientAccumulation,
    GradientClipping,
    LRScheduler,
    OptimizerStep,
    Prefetch,
    cuda_graph,
)
from camshaft.handlers.cuda_graph import StaticBatch, layout_of, make_capturable
from tests.ranks import values_of_ranks

on_a_gpu = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device"),
]


@pytest.fixture
def on_the_cpu(monkeypatch):
    """Lets the CPU take part: a replay does the work again."""
    monkeypatch.setattr(cuda_graph, "DEVICES", ("cpu", "cuda"))
    monkeypatch.setattr(cuda_graph, "record", lambda work: work)


def batches(number=8, size=8, device="cpu"):
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randn(number, size, 4, generator=generator)
    return [(x.to(device), x[:, :3].argmax(1).to(device)) for x in inputs]


def network():
    return nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Dropout(0.1), nn.Linear(8, 3))


class Training:
    """A small model, its optimizer, and an engine whose step returns the loss."""

    def __init__(self, optimizer=torch.optim.SGD, engine_class=Engine, device="cpu", **options):
        torch.manual_seed(0)
        self.model = network().to(device)
        self.optimizer = optimizer(self.model.parameters(), **{"lr": 0.1, **options})
        self.engine = engine_class(self.step)
        OptimizerStep(self.optimizer).attach(self.engine)
        self.calls = 0

    def step(self, engine, batch):
        self.calls += 1
        x, y = batch
        logits = self.model(x)
        return {"loss": F.cross_entropy(logits, y), "logits": logits}

    def run(self, *handlers, data=None, max_epochs=1):
        for handler in handlers:
            handler.attach(self.engine)
        self.engine.run(data or batches(), max_epochs=max_epochs)
        return self

    @property
    def weights(self):
        return [parameter.detach().cpu() for parameter in self.model.parameters()]


def assert_same(training, expected, tolerance=0.0):
    torch.testing.assert_close(training.weights, expected.weights, rtol=0, atol=tolerance)


# --------------------------------------------------------------------------------------------- as if it were recorded


@pytest.mark.usefixtures("on_the_cpu")
class TestTheLogic:
    @pytest.mark.parametrize(
        "options",
        [
            {"optimizer": torch.optim.SGD, "momentum": 0.9},
            {"optimizer": torch.optim.AdamW, "fused": True, "lr": 0.01},
        ],
        ids=["SGD", "fused-AdamW"],
    )
    def test_a_replayed_step_is_the_same_step(self, engine_class, options):
        graph = CUDAGraph()
        training = Training(engine_class=engine_class, **options).run(graph, max_epochs=2)
        assert_same(training, Training(**options).run(max_epochs=2), tolerance=1e-6)  # rates are in single precision
        assert graph.recorded == 1
        assert training.engine.state.optimizer_step == 16

    @pytest.mark.parametrize(
        "handlers", [lambda: [GradientClipping(0.1)], lambda: [AMP("bf16")]], ids=["clipping", "bf16"]
    )
    def test_clipping_and_mixed_precision_are_part_of_it(self, handlers):
        assert_same(Training().run(CUDAGraph(), *handlers()), Training().run(*handlers()))

    def test_the_norm_before_clipping_is_told_for_each_step(self):
        def norms(*handlers):
            training, seen = Training(), []
            training.engine.add_event_handler(
                Events.ITERATION_COMPLETED, lambda engine: seen.append(engine.state.metrics["gradient_norm"])
            )
            training.run(GradientClipping(0.1), *handlers)
            return seen

        assert norms(CUDAGraph()) == norms()

    def test_a_schedule_moves_the_learning_rate_of_a_recorded_step(self):
        def run(*handlers):
            training = Training(torch.optim.AdamW, fused=True)
            schedule = torch.optim.lr_scheduler.ExponentialLR(training.optimizer, 0.8)
            return training.run(LRScheduler(schedule, per="step"), *handlers)

        graph = CUDAGraph()
        training, expected = run(graph), run()
        assert graph.recorded == 1
        assert_same(training, expected, tolerance=1e-6)
        assert training.optimizer.param_groups[0]["lr"] == expected.optimizer.param_groups[0]["lr"]

    def test_a_learning_rate_that_changes_each_epoch_is_recorded_anew(self):
        def run(*handlers):
            training = Training()
            schedule = torch.optim.lr_scheduler.ExponentialLR(training.optimizer, 0.5)
            return training.run(LRScheduler(schedule), *handlers, max_epochs=3)

        graph = CUDAGraph()
        assert_same(run(graph), run())
        assert graph.recorded == 3

    def test_a_learning_rate_that_changes_each_step_is_not_recorded(self):
        training, graph = Training(), CUDAGraph()
        schedule = torch.optim.lr_scheduler.ExponentialLR(training.optimizer, 0.9)
        training.run(LRScheduler(schedule, per="step"), graph)
        assert graph.recorded == 0

    def test_the_first_iterations_warm_up(self):
        training, graph, recorded = Training(), CUDAGraph(warmup=4), []
        training.engine.add_event_handler(Events.ITERATION_COMPLETED, lambda: recorded.append(graph.recorded))
        training.run(graph, data=batches(6))
        assert recorded == [0, 0, 0, 0, 1, 1]

    def test_a_batch_of_another_shape_trains_as_ever(self):
        data = [*batches(5), *batches(1, size=3), *batches(2)]
        graph = CUDAGraph()
        assert_same(Training().run(graph, data=data), Training().run(data=data))
        assert graph.recorded == 1

    def test_each_run_records_anew(self):
        graph = CUDAGraph()
        training = Training().run(graph)
        training.engine.run(batches(3))
        assert graph.recorded == 0
        training.engine.run(batches(5))
        assert graph.recorded == 1

    def test_what_a_step_returned_is_kept_when_the_next_one_is_replayed(self):
        def outputs(*handlers):
            training, seen = Training(), []
            training.engine.add_event_handler(
                Events.ITERATION_COMPLETED, lambda engine: seen.append(engine.state.output)
            )
            training.run(*handlers)
            return seen

        recorded = outputs(CUDAGraph())
        torch.testing.assert_close(recorded, outputs(), rtol=0, atol=0)
        assert not recorded[-1]["logits"].requires_grad

    def test_what_listens_to_the_end_of_a_step_is_called_for_each(self):
        training, called = Training(), []
        training.engine.add_event_handler(
            StepEvents.OPTIMIZER_STEP_COMPLETED(every=2), lambda engine: called.append(engine.state.optimizer_step)
        )
        training.engine.add_event_handler(StepEvents.FORWARD_STARTED, lambda: called.append("forward"))
        training.run(CUDAGraph(warmup=1), data=batches(4))
        assert called == ["forward", "forward", 2, "forward", "forward", 4]

    def test_moving_averages_follow_it(self):
        def averages(*handlers):
            training = Training()
            ema = EMA(training.model, decay=0.5)
            training.run(ema, *handlers)
            return list(ema.module.parameters())

        torch.testing.assert_close(averages(CUDAGraph()), averages(), rtol=0, atol=0)

    @pytest.mark.parametrize(
        "options",
        [{"momentum": 0.9}, {"optimizer": torch.optim.AdamW, "fused": True, "lr": 0.01}],
        ids=["SGD", "fused-AdamW"],
    )
    def test_a_run_that_is_resumed_ends_in_the_same_bits(self, tmp_path, options):
        def run(folder, max_epochs, seed=0):
            training = Training(**options)
            torch.manual_seed(seed)
            checkpoint = Checkpoint(folder, model=training.model, optimizer=training.optimizer)
            return training.run(CUDAGraph(), checkpoint, max_epochs=max_epochs)

        whole = run(tmp_path / "whole", 2)
        run(tmp_path / "parts", 1)
        assert_same(run(tmp_path / "parts", 2, seed=1), whole)

    def test_detach_leaves_the_plain_step(self):
        training = Training()
        training.run(graph := CUDAGraph())
        graph.detach(training.engine)
        training.engine.run(batches())
        assert training.engine.state.optimizer_step == 16
        assert graph.recorded == 1

    def test_nothing_is_loaded_in_the_background_while_a_step_is_recorded(self, engine_class, monkeypatch):
        threads = []

        def record(work):
            threads.extend(thread.name for thread in threading.enumerate())
            return work

        monkeypatch.setattr(cuda_graph, "record", record)
        ahead = []
        training = Training(engine_class=engine_class)
        training.engine.add_event_handler(
            Events.ITERATION_STARTED, lambda: ahead.extend(thread.name for thread in threading.enumerate())
        )
        training.run(CUDAGraph(), Prefetch())
        assert any(name.startswith("camshaft-prefetch") for name in ahead)
        assert threads
        assert not any(name.startswith("camshaft-prefetch") for name in threads)

    def test_an_error_while_recording_says_what_a_recorded_step_may_not_do(self, monkeypatch):
        def fails(work):
            raise RuntimeError("operation not permitted when stream is capturing")

        monkeypatch.setattr(cuda_graph, "record", fails)
        with pytest.raises(RuntimeError, match=r"not permitted when stream is capturing. A recorded step may not look"):
            Training().run(CUDAGraph())


# ----------------------------------------------------------------------------------------------------- what is refused


class TestWhatIsRefused:
    def test_a_device_that_is_no_cuda_device(self):
        with pytest.raises(ValueError, match="the engine computes on cpu: leave it out there"):
            Training().run(CUDAGraph())

    @pytest.mark.parametrize("warmup", [0, -1, True, 1.5])
    def test_a_warm_up_of_no_iterations(self, warmup):
        with pytest.raises(ValueError, match="needs at least one iteration to warm up"):
            CUDAGraph(warmup=warmup)

    @pytest.mark.usefixtures("on_the_cpu")
    @pytest.mark.parametrize(
        ("handler", "reason"),
        [
            (lambda: GradientAccumulation(2), "not one of 2 micro-batches: leave GradientAccumulation out"),
            (lambda: AMP("fp16"), "looks on the host whether a gradient overflowed: use bf16"),
            (lambda: OptimizerStep(torch.optim.SGD([nn.Parameter(torch.ones(1))])), "but 2 are attached"),
        ],
        ids=["accumulation", "fp16", "two optimizer steps"],
    )
    def test_handlers_that_cannot_be_recorded(self, handler, reason):
        with pytest.raises(ValueError, match=reason):
            Training().run(CUDAGraph(), handler())

    @pytest.mark.usefixtures("on_the_cpu")
    def test_a_step_with_a_backward_of_its_own(self):
        with pytest.raises(ValueError, match="records the step of one OptimizerStep, but 0 are attached"):
            Engine(lambda engine, batch: None).attach(CUDAGraph()).run([0])

    @pytest.mark.usefixtures("on_the_cpu")
    @pytest.mark.parametrize(
        ("optimizer", "reason"),
        [
            (torch.optim.Adagrad, "cannot record Adagrad, which counts or decides on the host"),
            (torch.optim.LBFGS, "LBFGS"),
        ],
    )
    def test_optimizers_that_need_the_host(self, optimizer, reason):
        with pytest.raises(ValueError, match=reason):
            Training(optimizer).run(CUDAGraph())

    @pytest.mark.usefixtures("on_the_cpu")
    @pytest.mark.parametrize(
        "event",
        [StepEvents.FORWARD_COMPLETED, StepEvents.BACKWARD_COMPLETED, StepEvents.OPTIMIZER_STEP_STARTED(every=5)],
    )
    def test_functions_that_would_be_called_within_the_step(self, engine_class, event):
        def look_at_gradients():
            """Cannot be."""

        training = Training(engine_class=engine_class)
        training.engine.add_event_handler(event, look_at_gradients)
        with pytest.raises(ValueError, match=f"cannot call .*look_at_gradients.* at {event.name}, which is within"):
            training.run(CUDAGraph())

    @pytest.mark.usefixtures("on_the_cpu")
    def test_a_step_that_calls_its_optimizer_step_itself(self):
        model = network()
        optimizer_step = OptimizerStep(torch.optim.SGD(model.parameters(), lr=0.1))
        engine = Engine(lambda engine, batch: optimizer_step(model(batch[0]).mean()))
        with pytest.raises(ValueError, match="calls its OptimizerStep itself; let it return the loss"):
            engine.attach(optimizer_step, CUDAGraph()).run(batches())

    @pytest.mark.usefixtures("on_the_cpu")
    def test_gradients_that_several_processes_exchange(self):
        def program():
            training = Training()
            with pytest.raises(ValueError, match="whose exchange of gradients is not recorded"):
                training.run(CUDAGraph(), DataParallel(training.model))
            return True

        assert values_of_ranks(program) == [True, True]


# ------------------------------------------------------------------------------------------------------------ the parts


class TestStaticBatch:
    Pair = namedtuple("Pair", "x y")

    @pytest.mark.parametrize(
        "make",
        [
            lambda x: x,
            lambda x: (x, x.long()),
            lambda x: {"x": x, "more": [x + 1, "name", None]},
            lambda x: TestStaticBatch.Pair(x, (x,)),
        ],
        ids=["tensor", "tuple", "nested", "named tuple"],
    )
    def test_batches_are_copied_into_the_same_memory(self, make):
        static = StaticBatch(make(torch.zeros(3)))
        before = [tensor.data_ptr() for tensor in cuda_graph.tensors_in(static.batch)]
        static.fill(make(torch.ones(3)))
        assert repr(static.batch) == repr(make(torch.ones(3)))
        assert [tensor.data_ptr() for tensor in cuda_graph.tensors_in(static.batch)] == before

    def test_the_first_batch_is_not_written_into(self):
        first = torch.zeros(3)
        StaticBatch(first).fill(torch.ones(3))
        assert first.tolist() == [0, 0, 0]

    @pytest.mark.parametrize(
        "other",
        [
            (torch.ones(3), 1),
            (torch.ones(2, dtype=torch.float64), 1),
            (torch.ones(2, device="meta"), 1),
            (torch.ones(2), 2),
            [torch.ones(2), 1],
            (torch.ones(2), 1, 1),
        ],
        ids=["shape", "type", "device", "number", "container", "length"],
    )
    def test_another_layout_is_told(self, other):
        batch = (torch.zeros(2), 1)
        assert layout_of(batch) == layout_of((torch.ones(2), 1))
        assert layout_of(batch) != layout_of(other)

    def test_an_object_of_which_nothing_is_known_is_never_the_same(self):
        thing = object()
        assert layout_of((thing,)) != layout_of((thing,))


def test_an_optimizer_that_has_begun_counts_on_the_device_from_there():
    training = Training(torch.optim.Adam).run()
    make_capturable((training.optimizer,), torch.device("meta"))
    state = next(iter(training.optimizer.state.values()))
    assert training.optimizer.param_groups[0]["capturable"] is True
    assert state["step"].device.type == "meta"


# ------------------------------------------------------------------------------------------------------------ on a GPU


class TestOnAGPU:
    pytestmark = on_a_gpu

    @staticmethod
    def run(*handlers, max_epochs=3, **options):
        training = Training(**{"optimizer": torch.optim.AdamW, "device": "cuda", "lr": 0.01, **options})
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(training.optimizer, 100)
        data = [*batches(20), *batches(1, size=3)]
        return training.run(
            Device("cuda"), LRScheduler(schedule, per="step"), *handlers, data=data, max_epochs=max_epochs
        )

    @pytest.mark.parametrize(
        "options",
        [{}, {"fused": True}, {"foreach": False}, {"optimizer": torch.optim.RMSprop}],
        ids=["foreach", "fused", "single", "RMSprop"],
    )
    def test_a_recorded_step_is_the_same_step(self, options):
        graph = CUDAGraph()
        recorded = self.run(graph, GradientClipping(0.5), **options)
        assert graph.recorded == 1
        assert recorded.calls < 12  # of 63 iterations, those that warm up, are recorded or are smaller
        assert_same(recorded, self.run(GradientClipping(0.5), **options), tolerance=1e-5)

    def test_mixed_precision_is_part_of_it(self):
        assert_same(self.run(CUDAGraph(), AMP("bf16")), self.run(AMP("bf16")), tolerance=1e-2)

    def test_what_was_compiled_can_be_recorded(self):
        graph = CUDAGraph()
        recorded = self.run(graph, Compile())
        assert graph.recorded == 1
        assert all(weight.isfinite().all() for weight in recorded.weights)

    def test_a_run_that_is_resumed_ends_in_the_same_bits(self, tmp_path):
        def run(folder, max_epochs):
            training = Training(torch.optim.AdamW, device="cuda", lr=0.01)
            checkpoint = Checkpoint(folder, model=training.model, optimizer=training.optimizer)
            data = batches(20, device="cuda")
            return training.run(CUDAGraph(), Device("cuda"), checkpoint, data=data, max_epochs=max_epochs)

        whole = run(tmp_path / "whole", 2)
        run(tmp_path / "parts", 1)
        assert_same(run(tmp_path / "parts", 2), whole)

    def test_a_step_that_looks_at_a_value_is_refused(self):
        model = network().cuda()
        engine = Engine(lambda engine, batch: model(batch[0]).mean() * batch[0].sum().item())
        engine.attach(OptimizerStep(torch.optim.AdamW(model.parameters())), CUDAGraph(), Device("cuda"))
        with pytest.raises(RuntimeError, match="A recorded step may not look at values"):
            engine.run(batches())
