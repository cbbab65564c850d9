"""Metrics of Ignite and of torchmetrics, by name.

Listens to:

- EPOCH_STARTED, ITERATION_COMPLETED, EPOCH_COMPLETED in MEASURE: starts, updates and computes each metric of
  torchmetrics, and leaves Ignite's metrics to choose among these by their usage. Values come to ``state.metrics``.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import torch
from ignite.engine import Engine as IgniteEngine
from ignite.metrics import Metric as IgniteMetric
from ignite.metrics import MetricsLambda
from ignite.metrics.metric import BatchWise, EpochWise, MetricUsage

from camshaft.engine.events import Events
from camshaft.engine.phases import Phase, subscribing
from camshaft.handlers.handler import Handler, On

if TYPE_CHECKING:
    from torchmetrics import Metric as TorchMetric
    from torchmetrics import MetricCollection

__all__ = ["Metrics"]


class Metrics(Handler):
    """Measures what the step returns, over each epoch, with metrics of Ignite or of torchmetrics.

    Args:
        metrics: the metrics by the name they get in ``state.metrics``: ``Metrics(accuracy=Accuracy())``, or as a
            mapping where a name is no identifier. A metric of Ignite takes its own ``output_transform``; a
            ``MetricCollection`` keeps its own names.
        usage: when Ignite's metrics start, update and compute, such as ``"batch_wise"``. By default each metric's own:
            ``"epoch_wise"``, for a ``RunningAverage`` ``"running_batch_wise"``.
        output_transform: for torchmetrics, makes ``(predictions, targets)`` from ``state.output``. By default the
            output itself if it is a tuple, or the entries ``"y_pred"`` and ``"y"`` of a mapping, as in Ignite.

    Raises:
        TypeError: a metric of neither library.

    Example:
        >>> from ignite.metrics import Accuracy
        >>> from camshaft import Engine
        >>> evaluator = Engine(lambda engine, batch: batch).attach(Metrics(accuracy=Accuracy()))
        >>> predictions = torch.tensor([[0.9, 0.1], [0.2, 0.8]])
        >>> evaluator.run([(predictions, torch.tensor([0, 0]))]).metrics
        {'accuracy': 0.5}
    """

    listens: tuple[On, ...] = (
        On(Events.EPOCH_STARTED, Phase.MEASURE, "start"),
        On(Events.ITERATION_COMPLETED, Phase.MEASURE, "update"),
        On(Events.EPOCH_COMPLETED, Phase.MEASURE, "compute"),
    )

    def __init__(
        self,
        metrics: Mapping[str, Any] | None = None,
        /,
        *,
        usage: str | MetricUsage | None = None,
        output_transform: Callable[[Any], Any] | None = None,
        **named: Any,
    ) -> None:
        self.metrics: dict[str, Any] = {**(metrics or {}), **named}
        for name, metric in self.metrics.items():
            if not isinstance(metric, IgniteMetric) and not _is_torchmetric(metric):
                raise TypeError(
                    f"Metrics takes metrics of ignite.metrics or of torchmetrics, but {name!r} is {metric!r}. "
                    f"For a plain value use {name}=ignite.metrics.Average(output_transform=...)."
                )
        self.usage = usage
        self.output_transform = output_transform or _predictions_and_targets
        self._torchmetrics: dict[str, TorchMetric | MetricCollection] = {
            name: metric for name, metric in self.metrics.items() if not isinstance(metric, IgniteMetric)
        }
        self._device: torch.device | None = None  # of the torchmetrics
        self._produced_at = dict.fromkeys(self._names(), 0)
        self._complete: set[str] = set(self.metrics)  # those whose epoch is over, or that have not begun one
        if not self._torchmetrics:
            self.listens = self.listens[:1]

    def attach(self, engine: IgniteEngine) -> None:
        super().attach(engine)
        with subscribing(engine, Phase.MEASURE):
            for name, metric, usage in self._ignite_metrics():
                measured: Any = _UnlessSkipped(engine)
                metric.attach(measured, name, usage)
                measured.add_event_handler(usage.COMPLETED, self._note, name)

    def detach(self, engine: IgniteEngine) -> None:
        super().detach(engine)
        for _, metric, usage in self._ignite_metrics():
            metric.detach(engine, usage)
            if engine.has_event_handler(self._note, usage.COMPLETED):
                engine.remove_event_handler(self._note, usage.COMPLETED)

    def start(self, engine: IgniteEngine) -> None:
        """Begin an epoch."""
        self._complete.clear()
        for metric in self._torchmetrics.values():
            metric.reset()

    @torch.no_grad()
    def update(self, engine: IgniteEngine) -> None:
        """Add the output of one iteration; one that the step skipped by returning None is not measured."""
        if engine.state.output is None:
            return
        output = self.output_transform(engine.state.output)
        device = _device_in(output)
        for metric in self._torchmetrics.values():
            if device != self._device:
                metric.to(device)
            metric.update(*output) if isinstance(output, (tuple, list)) else metric.update(output)
        self._device = device

    def compute(self, engine: IgniteEngine) -> None:
        """Compute the epoch's values."""
        for name, metric in self._torchmetrics.items():
            value = metric.compute()
            values = value if isinstance(value, dict) else {name: value}
            engine.state.metrics.update(values)
            self._produced_at.update(dict.fromkeys(values, engine.state.iteration))
            self._complete.add(name)

    def produced_at(self, name: str) -> int | None:
        return self._produced_at.get(name)

    def _names(self) -> Iterator[str]:
        """The names in ``state.metrics``: a ``MetricCollection`` brings its own."""
        for name, metric in self.metrics.items():
            collection = name in self._torchmetrics and hasattr(metric, "keys")  # Ignite's have any attribute
            yield from metric.keys() if collection else (name,)

    def _note(self, engine: IgniteEngine, name: str) -> None:
        self._produced_at[name] = engine.state.iteration
        self._complete.add(name)

    def state_dict(self) -> dict[str, Any]:
        """What the metrics have gathered of an epoch that is not over, and those that run on over epochs."""
        kept: dict[str, Any] = {}
        for name, metric, usage in self._ignite_metrics():
            passing = type(usage) is BatchWise or (type(usage) is EpochWise and name in self._complete)
            if not passing:
                kept[name] = _state_of_ignites(metric)
        for name, collection in self._torchmetrics.items():
            if name not in self._complete:
                kept[name] = {part: _state_of(inner) for part, inner in _parts_of(collection)}
        return {"produced_at": dict(self._produced_at), "metrics": kept}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        self._produced_at.update(state_dict["produced_at"])
        for name, state in state_dict["metrics"].items():
            metric = self.metrics[name]
            if isinstance(metric, MetricsLambda):
                for gathering, gathered in zip(_gathering(metric), state, strict=True):
                    gathering.load_state_dict(gathered)
            elif isinstance(metric, IgniteMetric):
                metric.load_state_dict(state)
            else:
                for part, inner in _parts_of(metric):
                    _set_state(inner, state[part])

    def _ignite_metrics(self) -> Iterator[tuple[str, IgniteMetric, MetricUsage]]:
        """The metrics of Ignite by name, each with its usage: the one asked for, else the metric's own default."""
        for name, metric in self.metrics.items():
            if isinstance(metric, IgniteMetric):
                default = inspect.signature(metric.attach).parameters["usage"].default
                yield name, metric, metric._check_usage(default if self.usage is None else self.usage)


def _state_of_ignites(metric: IgniteMetric) -> Any:
    if isinstance(metric, MetricsLambda):
        return [part.state_dict() for part in _gathering(metric)]
    return metric.state_dict()


def _gathering(metric: IgniteMetric) -> Iterator[IgniteMetric]:
    """The metrics that one is computed of by functions, whose arguments Ignite cannot always keep, as in ``mIoU``."""
    if isinstance(metric, MetricsLambda):
        for argument in (*metric.args, *metric.kwargs.values()):
            if isinstance(argument, IgniteMetric):
                yield from _gathering(argument)
    else:
        yield metric


def _parts_of(metric: Any) -> Iterator[tuple[str, TorchMetric]]:
    """A metric of torchmetrics as the only part of itself, or those of a ``MetricCollection``."""
    if hasattr(metric, "keys"):
        yield from metric.items(keep_base=True, copy_state=True)
    else:
        yield "", metric


def _state_of(metric: TorchMetric) -> dict[str, Any]:
    states = {key: getattr(metric, key) for key in metric._defaults}
    states = {key: list(state) if isinstance(state, list) else state.clone() for key, state in states.items()}
    return {"updates": metric.update_count, "states": states}


def _set_state(metric: TorchMetric, state: Mapping[str, Any]) -> None:
    metric._update_count = state["updates"]
    metric._computed = None
    for key, value in state["states"].items():
        if isinstance(value, torch.Tensor):
            setattr(metric, key, value.to(metric.device, copy=True))
        else:
            setattr(metric, key, [item.to(metric.device, copy=True) for item in value])


class _UnlessSkipped:
    """Stands for an engine while a metric of Ignite attaches, so that batches without an output are not measured."""

    def __init__(self, engine: IgniteEngine) -> None:
        self._engine = engine

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    def add_event_handler(self, event: Any, *arguments: Any) -> None:
        if event == Events.ITERATION_COMPLETED:
            event = Events.ITERATION_COMPLETED(event_filter=_and_output(event.filter))
        self._engine.add_event_handler(event, *arguments)


def _and_output(event_filter: Callable[[Any, int], bool] | None) -> Callable[[Any, int], bool]:
    def passes(engine: Any, count: int) -> bool:
        return engine.state.output is not None and (event_filter is None or event_filter(engine, count))

    return passes


def _predictions_and_targets(output: Any) -> Any:
    if isinstance(output, Mapping):
        missing = [key for key in ("y_pred", "y") if key not in output]
        if missing:
            raise ValueError(
                "Metrics looks for 'y_pred' and 'y' in the output of the step, but it has only "
                f"{sorted(map(str, output))}. Return them, or pass output_transform."
            )
        return output["y_pred"], output["y"]
    return output


def _device_in(output: Any) -> torch.device:
    for item in output if isinstance(output, (tuple, list)) else (output,):
        if isinstance(item, torch.Tensor):
            return item.device
    return torch.device("cpu")


def _is_torchmetric(metric: Any) -> bool:
    """Whether it is one, without importing torchmetrics: who has one has imported it."""
    ancestors = {f"{ancestor.__module__.split('.')[0]}.{ancestor.__name__}" for ancestor in type(metric).__mro__}
    return bool(ancestors & {"torchmetrics.Metric", "torchmetrics.MetricCollection"})
