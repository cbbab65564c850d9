"""Ends a run whose loss is no longer a number.

Listens to:

- ITERATION_COMPLETED in DECIDE: looks at the loss if it is on the CPU, else keeps it on its device and looks at every
  so many together.
- STARTED in PREPARE: forgets an earlier run.
- EPOCH_COMPLETED, INTERRUPT, TERMINATE, COMPLETED in DECIDE, and wherever an attached handler saves: looks at what it
  has kept, so that no checkpoint is written after a loss that nobody has looked at.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from numbers import Integral, Real
from typing import Any

import torch
from ignite.engine import Engine as IgniteEngine

from camshaft.engine.agreement import any_rank
from camshaft.engine.distributed import world_size
from camshaft.engine.events import Events
from camshaft.engine.phases import Phase, events_in, subscribe
from camshaft.handlers.handler import Handler, On, handlers_of

__all__ = ["TerminateOnNaN"]

_LAST_CHANCES = Events.INTERRUPT | Events.TERMINATE | Events.COMPLETED
# At an exception there is nothing left to terminate.
_LOOKED_AT = frozenset((*_LAST_CHANCES, Events.EPOCH_COMPLETED, Events.EXCEPTION_RAISED))


class TerminateOnNaN(Handler):
    """Terminates the run, with a warning in the log, when the loss is NaN or infinite.

    On an accelerator the losses are copied to a small buffer there and fetched ``every`` iterations, before anything is
    saved, and at the end of each epoch: the warning names the very iteration, but the run may go on for up to ``every``
    iterations after it. On the CPU it ends at once. Several processes look together every so many iterations and end
    at the same one; the process whose loss it is says so.

    Args:
        every: fetch losses from an accelerator after so many iterations.
        watch: entries of the mapping that the step returns. Left out: ``"loss"`` if it has one, else all its
            floating-point scalars. A step may also return the loss alone, or several in a tuple.

    Attributes:
        found: ``(iteration, name, value)`` of the first loss that was not finite in this run, or None.

    Raises:
        ValueError: ``every`` is not a positive integer; during the run, if the step returns nothing to look at.

    Example:
        >>> from camshaft import Engine
        >>> guard = TerminateOnNaN()
        >>> engine = Engine(lambda engine, batch: torch.tensor(batch).log()).attach(guard)
        >>> engine.logger.disabled = True
        >>> engine.run([2.0, 1.0, -1.0, 3.0]).iteration, guard.found
        (3, (3, 'loss', nan))
    """

    alone = True
    listens = (
        On(Events.STARTED, Phase.PREPARE, "start"),
        On(Events.ITERATION_COMPLETED, Phase.DECIDE, "watch_loss"),
        On(Events.EPOCH_COMPLETED, Phase.DECIDE, "end_epoch"),
        On(_LAST_CHANCES, Phase.DECIDE, "look"),
    )

    def __init__(self, every: int = 50, *, watch: Iterable[str] = ()) -> None:
        if every < 1 or every % 1:
            raise ValueError(f"TerminateOnNaN looks every so many iterations, a positive integer, but got {every!r}.")
        self.every = every
        self.watch = (watch,) if isinstance(watch, str) else tuple(watch)
        self.found: tuple[int, str, float] | None = None
        self._kept: dict[str, _Kept] = {}
        self._iterations = 0  # since it was last looked
        self._saw_something = False
        self._began_at = 0
        self._is_one_of_several = False
        self._before_saving: list[Any] = []  # events at which others save

    def check(self, engine: IgniteEngine) -> None:
        """Look, from now on, also at every event at which an attached handler saves."""
        super().check(engine)
        saving = [on.event for handler in handlers_of(engine) for on in handler.listens if on.phase == Phase.SAVE]
        for event in (event for several in saving for event in events_in(several)):
            each_iteration = event == Events.ITERATION_COMPLETED and getattr(event, "filter", None) is None
            known = event in _LOOKED_AT or any(event is other for other in self._before_saving)
            if not known and not each_iteration:  # who listens to each iteration does not save in each
                self._before_saving.append(event)
                subscribe(engine, event, self.look, Phase.DECIDE)

    def detach(self, engine: IgniteEngine) -> None:
        super().detach(engine)
        for event in dict.fromkeys(self._before_saving):  # events are equal by name, and one removal removes all
            engine.remove_event_handler(self.look, event)
        self._before_saving.clear()

    def start(self, engine: IgniteEngine) -> None:
        """Begin a run."""
        self.found = None
        self._kept.clear()
        self._iterations = 0
        self._saw_something = False
        self._is_one_of_several = world_size() > 1
        self._began_at = engine.state.iteration

    def watch_loss(self, engine: IgniteEngine) -> None:
        """Look at the loss of one iteration, or keep it where looking would wait for the device."""
        output = engine.state.output
        if output is not None:
            self._watch(engine, output)
        self._iterations += 1
        if self._iterations == self.every:
            self.look(engine)

    def _watch(self, engine: IgniteEngine, output: Any) -> None:
        for name, value in self._losses_in(output):
            self._saw_something = True
            if isinstance(value, torch.Tensor) and self.is_costly(value):
                if name not in self._kept:
                    self._kept[name] = _Kept(self.every)
                self._kept[name].add(engine.state.iteration, value)
            else:
                number = value.item() if isinstance(value, torch.Tensor) else float(value)
                if not math.isfinite(number):
                    self._end(engine, engine.state.iteration, name, number)
        if not self._saw_something:
            raise ValueError(
                f"TerminateOnNaN found no loss in what the step returned, {_kind(output)}. Return the loss, a mapping "
                "with 'loss' or the entries named in watch=, or leave TerminateOnNaN out."
            )

    def end_epoch(self, engine: IgniteEngine) -> None:
        """Look, and say so if there was nothing to look at."""
        self.look(engine)
        if not self._saw_something and engine.state.iteration > self._began_at:
            self._saw_something = True  # said once
            engine.logger.warning("TerminateOnNaN has nothing to look at: the step returned None in every iteration.")

    def look(self, engine: IgniteEngine) -> None:
        """Fetch what was kept on an accelerator and terminate the run if any of it is not finite."""
        self._iterations = 0
        not_finite = [
            (iteration, name, value)
            for name, kept in self._kept.items()
            for iteration, value in kept.fetch()
            if not math.isfinite(value)
        ]
        if not_finite:
            self._end(engine, *min(not_finite, key=lambda found: found[0]))
        if self._is_one_of_several and any_rank(self.found is not None):
            engine.terminate()

    @staticmethod
    def is_costly(value: torch.Tensor) -> bool:
        """Whether reading it would wait for a device."""
        return not value.is_cpu

    def _losses_in(self, output: Any) -> Iterable[tuple[str, Any]]:
        if isinstance(output, torch.Tensor):
            return (("loss", output),) if _is_float(output) else ()
        return self._losses_among(output)

    def _losses_among(self, output: Any) -> Iterator[tuple[str, Any]]:
        if isinstance(output, Mapping):
            names = self.watch or (("loss",) if "loss" in output else tuple(output))
            missing = [name for name in self.watch if name not in output]
            if missing:
                raise ValueError(
                    f"TerminateOnNaN watches {missing[0]!r}, but the step returned only {sorted(map(str, output))}."
                )
            yield from ((str(name), output[name]) for name in names if _is_float(output[name]))
        elif isinstance(output, (tuple, list)):
            yield from ((f"output {i}", value) for i, value in enumerate(output) if _is_float(value))
        elif _is_float(output):
            yield "loss", output

    def _end(self, engine: IgniteEngine, iteration: int, name: str, value: float) -> None:
        if self.found is None:
            self.found = (iteration, name, value)
            engine.logger.warning(
                "The run is terminated: %s is %s after iteration %d. A smaller learning rate, GradientClipping, or the "
                "batch of this iteration are worth a look.",
                name,
                value,
                iteration,
            )
        if not self._is_one_of_several:
            engine.terminate()


class _Kept:
    """The values of one loss in the last iterations, copied on its own device.

    Copied rather than held: a compiled step with CUDA graphs writes the next loss over the last.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self.iterations: list[int] = []
        self.fetched: list[float] = []  # where the losses changed their device or precision in between
        self.values: torch.Tensor | None = None  # (size,)
        self.slots: tuple[torch.Tensor, ...] = ()

    @torch.no_grad()
    def add(self, iteration: int, value: torch.Tensor) -> None:
        if self.values is None or (self.values.dtype, self.values.device) != (value.dtype, value.device):
            self.fetched = self._on_cpu()
            with torch.inference_mode(False):
                self.values = torch.empty(self.size, dtype=value.dtype, device=value.device)
            self.slots = self.values.unbind()
        self.slots[len(self.iterations)].copy_(value.view(()))
        self.iterations.append(iteration)

    def fetch(self) -> list[tuple[int, float]]:
        """The iterations and values since the last time; this waits for the device."""
        fetched = list(zip(self.iterations, self._on_cpu(), strict=True))
        self.iterations, self.fetched = [], []
        return fetched

    def _on_cpu(self) -> list[float]:
        if self.values is None or not self.iterations:
            return []
        return self.fetched + self.values[len(self.fetched) : len(self.iterations)].tolist()


def _is_float(value: Any) -> bool:
    if isinstance(value, torch.Tensor):
        return value.numel() == 1 and value.is_floating_point()
    return isinstance(value, float) or (
        isinstance(value, Real) and not isinstance(value, Integral)
    )  # the latter: NumPy's


def _kind(output: Any) -> str:
    if isinstance(output, Mapping):
        return f"a mapping with the keys {sorted(map(str, output))}"
    if isinstance(output, torch.Tensor):
        return f"a tensor of the shape {tuple(output.shape)} and type {output.dtype}"
    return f"a {type(output).__name__}"
