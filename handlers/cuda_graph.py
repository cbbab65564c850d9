"""Records the whole training step as a CUDA graph, which is then started at once for each batch.

Takes the place of the engine's step, and listens to:

- STARTED in MEASURE, when weights and optimizers are in place: makes ready to record anew.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, Literal, NamedTuple

import torch
from ignite.engine import Engine as IgniteEngine

from camshaft.engine.distributed import world_size
from camshaft.engine.events import Events, StepEvents
from camshaft.engine.loading_ahead import pause_loading
from camshaft.engine.nested import rebuilt
from camshaft.engine.overview import describe_function
from camshaft.engine.phases import Phase
from camshaft.engine.training_step import TrainingStep, without_graph
from camshaft.handlers.amp import AMP
from camshaft.handlers.device import device_of
from camshaft.handlers.gradient_clipping import GradientClipping
from camshaft.handlers.handler import Handler, On, handlers_of
from camshaft.handlers.optimizer_step import optimizer_steps_of, refuse_reevaluation

__all__ = ["CUDAGraph", "StaticBatch", "make_capturable"]

DEVICES = ("cuda",)
"""The types of device that can record."""

# The moments that are within a recorded step.
_WITHIN = (
    StepEvents.FORWARD_COMPLETED,
    StepEvents.BACKWARD_STARTED,
    StepEvents.BACKWARD_COMPLETED,
    StepEvents.OPTIMIZER_STEP_STARTED,
)


class CUDAGraph(Handler):
    """Records forward, backward, clipping and the optimizer's step on a CUDA device, and replays them for each batch.

    A small model spends its time in starting hundreds of short computations one by one; a graph starts them together.
    The first iterations train as ever, while libraries choose their algorithms. Then one step is recorded with the
    batch in memory of its own, into which each further batch is copied. A batch of other shapes than the recorded ones
    trains as ever. AMP("bf16"), schedules, moving averages, ``Compile`` and what listens to the end of an optimizer's
    step work as without it; so does resuming, which records anew.

    What the step function does in Python is done once, while it is recorded: it may not look at values (``.item()``,
    ``print(loss)``, ``if loss > 1``), nor at ``engine.state``. Gradients are not seen from outside.

    Args:
        warmup: iterations before one is recorded, 3 by default.

    Attributes:
        recorded: how often a step was recorded in this run: once, and again where the settings of an optimizer that
            takes its learning rate as a number, such as ``SGD`` without ``fused=True``, change from time to time.

    Raises:
        ValueError: ``warmup`` is not positive; when the run starts, if something cannot be recorded: a device that is
            no CUDA device, a step that does its own backward, several ``OptimizerStep`` handlers, an optimizer that
            counts its steps on the host or evaluates the loss several times, gradient accumulation, AMP("fp16"),
            gradients that several processes exchange, or functions that would have to be called within the step.
        RuntimeError: the step function does something that cannot be recorded.

    Example:
        >>> from camshaft import Engine, OptimizerStep
        >>> model = torch.nn.Linear(2, 1)
        >>> engine = Engine(lambda engine, batch: model(batch).mean())
        >>> engine = engine.attach(OptimizerStep(torch.optim.AdamW(model.parameters())), CUDAGraph())
        >>> try:
        ...     state = engine.run([torch.ones(4, 2)])
        ... except ValueError as error:
        ...     print(error)
        CUDAGraph() records work of a CUDA device, but the engine computes on cpu: leave it out there.
    """

    alone = True
    listens = (On(Events.STARTED, Phase.MEASURE, "begin"),)

    def __init__(self, *, warmup: int = 3) -> None:
        if isinstance(warmup, bool) or not isinstance(warmup, int) or warmup < 1:
            raise ValueError(f"CUDAGraph needs at least one iteration to warm up, but got {warmup!r}.")
        self.warmup = warmup
        self.recorded = 0
        self._warm = 0  # iterations so far
        self._recording: _Recording | None = None
        self._rates = _Rates((), torch.device("cpu"))
        self._before: tuple[Any, Any] | None = None  # layout of the batch and settings, in the last iteration

    # ------------------------------------------------------------------------------------------------ the run

    def attach(self, engine: IgniteEngine) -> None:
        super().attach(engine)
        self._step = TrainingStep.of(engine)

    def detach(self, engine: IgniteEngine) -> None:
        super().detach(engine)
        self._step.instead = self._recording = None
        self._rates.let_go()

    def check(self, engine: IgniteEngine) -> None:
        super().check(engine)
        refuse_reevaluation(self, engine)
        reason = next(_reasons(engine), None)
        if reason is not None:
            raise ValueError(f"{self!r} {reason}")

    def begin(self, engine: IgniteEngine) -> None:
        """Forget what an earlier run recorded: the weights may be others, or elsewhere."""
        (self._optimizer_step,) = optimizer_steps_of(engine)
        self._device = device_of(engine)
        make_capturable(self._optimizer_step.optimizers, self._device)
        self._clips = any(isinstance(handler, GradientClipping) for handler in handlers_of(engine))
        self._rates.let_go()
        self._rates = _Rates(self._optimizer_step.optimizers, self._device)
        self._recording = self._before = None
        self.recorded = self._warm = 0
        self._step.instead = self.step

    def step(self, engine: Any, batch: Any) -> Any:
        """What the engine calls for a batch: record and replay, or train as ever."""
        choice = self._choose(batch)
        if choice == "eager":
            return self._train_as_ever(engine, batch)
        moments, optimizer_step = self._step.moments, self._optimizer_step
        if moments[StepEvents.FORWARD_STARTED]:
            moments[StepEvents.FORWARD_STARTED].fire(engine)
        if choice == "record" or self._recording is None:
            self._record(engine, batch)
        assert self._recording is not None
        self._recording.batch.fill(batch)
        self._rates.fill()
        output, norm = self._recording.replay()

        # What the recorded work has left out, because it is done on the host.
        if norm is not None:
            engine.state.metrics["gradient_norm"] = norm.clone()
        optimizer_step.steps += 1
        engine.state.optimizer_step = optimizer_step.steps
        for optimizer in optimizer_step.optimizers:
            _call_hooks(optimizer)
        if moments[StepEvents.OPTIMIZER_STEP_COMPLETED]:
            self._step.stepping = optimizer_step
            moments[StepEvents.OPTIMIZER_STEP_COMPLETED].fire(engine)
            self._step.stepping = None
        return _cloned(output)  # the next replay writes into the same memory

    def _choose(self, batch: Any) -> Literal["eager", "record", "replay"]:
        """Whether this batch is like the recorded one, or it is time to record.

        Only what was the same in the last iteration is recorded: a number that changes each time is better not.
        """
        now = layout_of(batch), self._rates.settings()
        before, self._before = self._before, now
        if self._warm < self.warmup:
            self._warm += 1
            return "eager"
        layout, settings = now
        if self._recording is not None:
            if layout != self._recording.batch.layout:
                return "eager"
            if settings == self._recording.settings:
                return "replay"
        on_device = all(tensor.device.type == self._device.type for tensor in tensors_in(batch))
        return "record" if now == before and on_device else "eager"

    def _train_as_ever(self, engine: Any, batch: Any) -> Any:
        self._step.instead = None
        try:
            with _side_stream(self._device):
                return self._step(engine, batch)
        finally:
            self._step.instead = self.step

    # ------------------------------------------------------------------------------------------------ recording

    def _record(self, engine: Any, batch: Any) -> None:
        if self._step.called_by_hand:
            raise ValueError(f"{self!r}: the step calls its OptimizerStep itself; let it return the loss instead.")
        self._recording = None  # its memory is free for the next
        pause_loading(engine)  # a thread that copies to the device meanwhile would break the recording
        static = StaticBatch(batch)
        settings = self._rates.settings()
        try:
            replay = record(lambda: self._work(engine, static.batch))
        except RuntimeError as error:
            raise RuntimeError(
                f"{self!r} could not record the step: {error}. A recorded step may not look at values on the device "
                "(.item(), .cpu(), print(loss), `if loss > 1`). Do so in a function that listens to "
                "ITERATION_COMPLETED, or leave CUDAGraph out."
            ) from error
        self._recording = _Recording(static, settings, replay)
        self.recorded += 1

    def _work(self, engine: Any, batch: Any) -> tuple[Any, torch.Tensor | None]:
        """What is recorded: a step without its events and hooks; returns the output and the norm before clipping."""
        step, optimizer_step = self._step, self._optimizer_step
        with step.forward_context or nullcontext():
            output = step.function(engine, batch)
        if output is None:
            raise RuntimeError("it returned None, to skip a batch")
        loss, _ = step._loss_of(output)
        loss.backward()
        optimizer_step.step_weights(engine, self._step_on_device)
        return without_graph(output), engine.state.metrics["gradient_norm"] if self._clips else None

    def _step_on_device(self) -> None:
        """The optimizers' steps without their hooks, and with the learning rates in tensors."""
        with torch.no_grad(), self._rates.as_tensors():
            for optimizer in self._optimizer_step.optimizers:
                inspect.unwrap(type(optimizer).step)(optimizer)


class _Recording(NamedTuple):
    """A recorded step: where its batch is, with which settings of the optimizers, and how to do it again."""

    batch: StaticBatch
    settings: Any
    replay: Callable[[], tuple[Any, torch.Tensor | None]]


def record(work: Callable[[], Any]) -> Callable[[], Any]:
    """Record ``work`` without doing it; each call of what comes back does it and returns the same, changed tensors."""
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = work()

    def replay() -> Any:
        graph.replay()
        return result

    return replay


@contextmanager
def _side_stream(device: torch.device) -> Iterator[None]:
    """Within this context work goes to a stream of its own, as is asked of what comes before a recording."""
    if device.type != "cuda":
        yield
        return
    current, side = torch.cuda.current_stream(device), torch.cuda.Stream(device)
    side.wait_stream(current)
    with torch.cuda.stream(side):
        yield
    current.wait_stream(side)


# ---------------------------------------------------------------------------------------------------- what is refused


def _reasons(engine: IgniteEngine) -> Iterator[str]:
    """Why the step of this engine cannot be recorded, and what to do."""
    device = device_of(engine)
    if device.type not in DEVICES:
        yield f"records work of a CUDA device, but the engine computes on {device.type}: leave it out there."
    steps = optimizer_steps_of(engine)
    if len(steps) != 1:
        yield (
            f"records the step of one OptimizerStep, but {len(steps)} are attached. Give it all optimizers, and let "
            "the step return the loss without its own backward() and step()."
        )
    for optimizer in (one for step in steps for one in step.optimizers if not _is_capturable(one)):
        yield (
            f"cannot record {type(optimizer).__name__}, which counts or decides on the host. Take one that knows "
            "capturable=True or fused=True, such as AdamW, or SGD."
        )
    step = TrainingStep.of(engine)
    if step.group_size > 1:
        yield f"records one whole step, not one of {step.group_size} micro-batches: leave GradientAccumulation out."
    yield from _reasons_of_handlers(engine)
    for event in _WITHIN:
        for function, *_ in engine._event_handlers.get(event, ()):
            if not isinstance(getattr(function, "__self__", None), GradientClipping):
                yield (
                    f"cannot call {describe_function(function)} at {event.name}, which is within the recorded step. "
                    "Let it listen to OPTIMIZER_STEP_COMPLETED or ITERATION_COMPLETED."
                )


def _reasons_of_handlers(engine: IgniteEngine) -> Iterator[str]:
    for handler in handlers_of(engine):
        if isinstance(handler, AMP) and handler.precision == "fp16":
            yield f"does not go with {handler!r}, which looks on the host whether a gradient overflowed: use bf16."
        if handler.exchanges_gradients and world_size() > 1:
            yield f"does not go with {handler!r}, whose exchange of gradients is not recorded: leave one of them out."


def _is_capturable(optimizer: torch.optim.Optimizer) -> bool:
    plain_sgd = type(optimizer) is torch.optim.SGD  # it counts nothing
    return plain_sgd or all("capturable" in group or group.get("fused") for group in optimizer.param_groups)


# -------------------------------------------------------------------------------------------------------- optimizers


def make_capturable(optimizers: tuple[torch.optim.Optimizer, ...], device: torch.device) -> None:
    """Let optimizers count their steps on the device, as ``capturable=True`` from the beginning would.

    Example:
        >>> weight = torch.nn.Parameter(torch.ones(2))
        >>> optimizer = torch.optim.AdamW([weight])
        >>> make_capturable((optimizer,), weight.device)
        >>> optimizer.param_groups[0]["capturable"]
        True
    """
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            if "capturable" not in group:
                continue
            group["capturable"] = True
            for parameter in group["params"]:
                state = optimizer.state.get(parameter, {})
                if "step" in state:
                    state["step"] = torch.as_tensor(state["step"], dtype=torch.float32, device=device)


class _Rates:
    """The learning rates of optimizers: in tensors on the device while they step, as numbers for all others.

    Also for the steps that are not recorded, so that it makes no difference to the last bit which are.
    """

    def __init__(self, optimizers: tuple[torch.optim.Optimizer, ...], device: torch.device) -> None:
        self.groups = [group for optimizer in optimizers for group in optimizer.param_groups]
        self.tensors = [
            torch.zeros((), device=device) if group.get("capturable") or group.get("fused") else None
            for group in self.groups
        ]
        self.filled: list[Any] = [None] * len(self.groups)
        self.numbers: list[Any] = []
        self.hooks = [optimizer.register_step_pre_hook(self._fill_and_put) for optimizer in optimizers]
        self.hooks += [optimizer.register_step_post_hook(self._take_back) for optimizer in optimizers]

    def let_go(self) -> None:
        """Leave the optimizers as they were."""
        for hook in self.hooks:
            hook.remove()

    def fill(self) -> None:
        """Bring the learning rates of now to the device, where they have changed."""
        for index, (group, tensor) in enumerate(zip(self.groups, self.tensors, strict=True)):
            if tensor is not None and self.filled[index] != group["lr"]:
                tensor.fill_(group["lr"])
                self.filled[index] = group["lr"]

    @contextmanager
    def as_tensors(self) -> Iterator[None]:
        """Within this context the optimizers have the tensors, as they are."""
        self._put()
        try:
            yield
        finally:
            self._take_back()

    def _fill_and_put(self, *_: Any) -> None:
        self.fill()
        self._put()

    def _put(self) -> None:
        self.numbers = [group["lr"] for group in self.groups]
        for group, tensor in zip(self.groups, self.tensors, strict=True):
            group["lr"] = group["lr"] if tensor is None else tensor

    def _take_back(self, *_: Any) -> None:
        for group, number in zip(self.groups, self.numbers, strict=True):
            group["lr"] = number

    def settings(self) -> list[dict[str, Any]]:
        """What a recorded step has in it for good."""
        return [
            {key: value for key, value in group.items() if key != "params" and (key != "lr" or tensor is None)}
            for group, tensor in zip(self.groups, self.tensors, strict=True)
        ]


def _call_hooks(optimizer: torch.optim.Optimizer) -> None:
    """Call what listens to an optimizer's step, such as a schedule that counts it."""
    optimizer._opt_called = True  # type: ignore[attr-defined]  # what a scheduler of torch looks at
    _hooks_alone(optimizer)


def _no_step(optimizer: torch.optim.Optimizer) -> None:
    """The step was made on the device."""


_hooks_alone = torch.optim.Optimizer.profile_hook_step(_no_step)


# ------------------------------------------------------------------------------------------------------------ batches


class StaticBatch:
    """A batch in memory of its own, into which others of the same layout are copied.

    Example:
        >>> static = StaticBatch({"x": torch.zeros(2), "name": "a"})
        >>> kept = static.batch["x"]
        >>> static.fill({"x": torch.ones(2), "name": "a"})
        >>> kept, static.layout == layout_of({"x": torch.ones(2), "name": "b"})
        (tensor([1., 1.]), False)
    """

    def __init__(self, batch: Any) -> None:
        self.layout = layout_of(batch)
        self.batch = _cloned(batch)
        self._tensors = list(tensors_in(self.batch))

    def fill(self, batch: Any) -> None:
        """Copy a batch of the same layout."""
        for own, other in zip(self._tensors, tensors_in(batch), strict=True):
            own.copy_(other, non_blocking=True)


class _Layout(NamedTuple):
    """What two tensors have in common of which one can be copied into the memory of the other."""

    shape: torch.Size
    dtype: torch.dtype
    device: torch.device


def layout_of(batch: Any) -> Any:
    """What two batches have in common that one recording serves: anything but the values of their tensors.

    Example:
        >>> layout_of([torch.ones(2), "a"]) == layout_of([torch.zeros(2), "a"])
        True
    """
    if isinstance(batch, torch.Tensor):
        return _Layout(batch.shape, batch.dtype, batch.device)
    inner = rebuilt(batch, layout_of)
    if inner is not batch or isinstance(batch, _PLAIN):
        return inner
    return _Incomparable()  # it may have changed


_PLAIN = (str, bytes, int, float, complex, type(None), torch.dtype, torch.device)


class _Incomparable:
    """Stands for an object of which nothing is known, and which equals no other."""

    def __eq__(self, other: object) -> bool:
        return False

    __hash__ = object.__hash__


def tensors_in(batch: Any) -> Iterator[torch.Tensor]:
    """The tensors in a batch, in order.

    Example:
        >>> [len(tensor) for tensor in tensors_in([torch.ones(2), {"y": torch.ones(3)}, "a"])]
        [2, 3]
    """
    found: list[torch.Tensor] = []

    def look(item: Any) -> Any:
        if isinstance(item, torch.Tensor):
            found.append(item)
            return item
        return rebuilt(item, look)

    look(batch)
    return iter(found)


def _cloned(batch: Any) -> Any:
    if isinstance(batch, torch.Tensor):
        return batch.clone()
    return rebuilt(batch, _cloned)
