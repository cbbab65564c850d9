"""Writes what TensorBoard shows: the numbers of a run, at the moments of :mod:`camshaft.handlers.logger`, and more.

With ``histograms=`` it listens also to:

- ITERATION_STARTED(every=N) in PREPARE: decides to look at the gradients.
- OPTIMIZER_STEP_STARTED in REPORT, after they were clipped: records their histograms.
- ITERATION_COMPLETED(every=N) in REPORT: records those of the weights, and of the gradients where the step itself calls
  ``backward()``.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ignite.distributed as idist
import torch
from ignite.engine import Engine as IgniteEngine
from torch import nn

from camshaft.engine.events import Events, StepEvents
from camshaft.engine.phases import Phase
from camshaft.engine.sharded import part_here
from camshaft.handlers.handler import On
from camshaft.handlers.logger import Logger, Record, check_directory
from camshaft.handlers.optimizer_step import optimizer_steps_of

if TYPE_CHECKING:
    from tensorboardX.event_file_writer import EventsWriter

__all__ = ["TensorBoardLogger"]

_BUCKETS = 64  # of a histogram


class TensorBoardLogger(Logger):
    """Writes scalars to an event file, through tensorboardX; ``tensorboard --logdir DIRECTORY`` shows them.

    A tag is the name by which the value can be monitored and stands in the CSV: ``loss``, ``val_accuracy``; the step is
    the iteration. Where a run resumes, or a new one begins in the directory of an earlier one, the event file tells
    TensorBoard to hide what an earlier one holds from that iteration on.

    What is no number is recorded by methods that any function of the program may call, on any process, of which the
    first alone writes: :meth:`add_image`, :meth:`add_figure`, :meth:`add_text`, :meth:`add_histogram`,
    :meth:`add_pr_curve` and :meth:`add_graph`. The step is the engine's iteration at that moment.

    Args:
        directory: where the event file is made; one for each run lets TensorBoard compare them.
        every: record what the step returns at each N-th iteration.
        histograms: a module, or several by name: record the distributions of its parameters (``weights/NAME``) and of
            their gradients (``gradients/NAME``); of sharded ones, of the first process's part. Each fetches some
            numbers from the device, and waits for it.
        histograms_every: at each N-th iteration; of gradients that are accumulated, at the optimizer step that follows.
        parameters: what this run was started with, for the table HPARAMS: numbers, strings and booleans by name.

    Raises:
        ValueError: as :class:`Logger`; ``histograms_every`` is not positive.
        TypeError: ``histograms`` is no module.
        OSError: when the run starts, if the directory cannot be written.

    Example:
        >>> import tempfile
        >>> from camshaft import Engine
        >>> directory = tempfile.TemporaryDirectory()
        >>> logger = TensorBoardLogger(directory.name, every=2, parameters={"lr": 0.1})
        >>> engine = Engine(lambda engine, batch: batch / 2).attach(logger)
        >>> @engine.on(Events.EPOCH_COMPLETED)
        ... def show(engine):
        ...     logger.add_text("note", f"epoch {engine.state.epoch} is over")
        >>> state = engine.run([1, 2, 3, 4])
        >>> [path.name[:20] for path in Path(directory.name).iterdir()]
        ['events.out.tfevents.']
        >>> directory.cleanup()
    """

    path: Path

    def __init__(
        self,
        directory: str | os.PathLike[str],
        *,
        every: int = 50,
        histograms: nn.Module | Mapping[str, nn.Module] | None = None,
        histograms_every: int = 500,
        parameters: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(every=every)
        self.path = Path(directory)
        self.parameters = dict(parameters or {})
        self._modules = dict(histograms) if isinstance(histograms, Mapping) else {"": histograms} if histograms else {}
        for module in self._modules.values():
            if not isinstance(module, nn.Module):
                raise TypeError(f"TensorBoardLogger makes histograms of a module's parameters, not of {module!r}.")
        if not histograms_every > 0:
            raise ValueError(
                f"TensorBoardLogger makes histograms every so many iterations, but got {histograms_every!r}."
            )
        if self._modules:
            self.listens += (
                On(Events.ITERATION_STARTED(every=histograms_every), Phase.PREPARE, "plan_histograms"),
                On(StepEvents.OPTIMIZER_STEP_STARTED, Phase.REPORT, "record_gradients"),
                On(Events.ITERATION_COMPLETED(every=histograms_every), Phase.REPORT, "record_weights"),
            )
        self._gradients_are_due = False
        self._writer: EventsWriter | None = None
        self._hide_from: int | None = None
        self._last: list[Record] = []  # those of the last iteration that were written
        self._again: list[Record] = []  # those among them that will be hidden
        self._last_summaries: list[tuple[int, bytes]] = []  # the same of what is no number, with the iteration
        self._early: list[Any] = []  # events from before the run
        self._ended_at: int | None = None  # the last iteration of a run that is over
        self._is_unflushed = False
        self._hides = True  # what is there is of a run that this object knows nothing of, or went on from

    # ------------------------------------------------------------------------------------------------ more than numbers

    def add_image(self, tag: str, image: Any) -> None:
        """Record a picture, or several in a grid.

        Args:
            tag: its name.
            image: of shape (height, width), (channels, height, width) or (images, channels, height, width); bytes from
                0 to 255, or floats from 0 to 1.

        Raises:
            ValueError: it has another shape.
            ModuleNotFoundError: Pillow is not installed.
        """
        pixels = _on_host(image)
        layout = {2: "HW", 3: "CHW", 4: "NCHW"}.get(pixels.ndim)
        if layout is None:
            raise ValueError(
                f"TensorBoardLogger takes images as (height, width), (channels, height, width) or several of these, "
                f"but {tag!r} has the shape {tuple(pixels.shape)}."
            )
        if pixels.is_floating_point():
            pixels = (pixels.float().clamp(0, 1) * 255).round()
        self._add_summary(lambda summary: summary.image(tag, pixels.to(torch.uint8).numpy(), dataformats=layout))

    def add_figure(self, tag: str, figure: Any) -> None:
        """Record a figure of matplotlib, which stays open.

        Args:
            tag: its name.
            figure: a ``matplotlib.figure.Figure``.
        """
        from matplotlib.backends.backend_agg import FigureCanvasAgg  # noqa: PLC0415

        canvas: Any = FigureCanvasAgg(figure)  # it has no types
        canvas.draw()
        pixels = torch.frombuffer(bytearray(canvas.buffer_rgba()), dtype=torch.uint8)
        width, height = canvas.get_width_height()
        self.add_image(tag, pixels.reshape(height, width, 4).permute(2, 0, 1))

    def add_text(self, tag: str, text: str) -> None:
        """Record text, which TensorBoard shows as Markdown.

        Args:
            tag: its name.
            text: the text.
        """
        self._add_summary(lambda summary: summary.text(tag, text))

    def add_histogram(self, tag: str, values: torch.Tensor) -> None:
        """Record the distribution of a tensor's elements; of those that are finite.

        Args:
            tag: its name.
            values: of any shape.
        """
        if self._is_first_process:
            histogram = _histogram(values)
            if histogram is not None:
                self._add_summary(lambda summary: summary.histogram_raw(tag, **histogram))

    def add_pr_curve(self, tag: str, labels: Any, scores: Any) -> None:
        """Record the curve of precision and recall of a classifier of two classes.

        Args:
            tag: its name.
            labels: for each example whether it is of the class, 0 or 1.
            scores: for each example how probable that is, from 0 to 1.

        Raises:
            ValueError: these are not as many labels as scores.
        """
        truth, probabilities = _on_host(labels).reshape(-1), _on_host(scores).reshape(-1)
        if len(truth) != len(probabilities):
            raise ValueError(
                f"A curve of precision and recall needs a score for each label, but {tag!r} has {len(truth)} labels "
                f"and {len(probabilities)} scores."
            )
        self._add_summary(lambda summary: summary.pr_curve(tag, truth.numpy(), probabilities.float().numpy()))

    def add_graph(self, model: nn.Module, example: Any) -> None:
        """Record the operations of a model.

        Args:
            model: it is traced, in the mode in which it is.
            example: what to call it with: a tensor, or a tuple of arguments.

        Raises:
            ModuleNotFoundError: ``tensorboard`` is not installed, through which torch makes graphs.
        """
        if not self._is_first_process:
            return
        try:
            from torch.utils.tensorboard._pytorch_graph import graph  # noqa: PLC0415
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError(
                "torch makes graphs of models with the package tensorboard, which is not installed: "
                "pip install tensorboard",
                name=error.name,
            ) from None
        nodes, _ = graph(model, example)
        self._write_event(_event(0, graph_def=nodes.SerializeToString()))

    def plan_histograms(self) -> None:
        """Look at the gradients of the next optimizer step."""
        self._gradients_are_due = True

    def record_gradients(self) -> None:
        """Record the histograms of the gradients, if it is time to."""
        if not self._gradients_are_due:
            return
        self._gradients_are_due = False
        for name, parameter in self._parameters():
            if parameter.grad is not None:
                self.add_histogram(f"gradients/{name}", parameter.grad)

    def record_weights(self, engine: IgniteEngine) -> None:
        """Record the histograms of the weights."""
        for name, parameter in self._parameters():
            self.add_histogram(f"weights/{name}", parameter)
        if not optimizer_steps_of(engine):
            self.record_gradients()

    def _parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        for name, module in self._modules.items():
            for parameter_name, parameter in module.named_parameters():
                yield f"{name}/{parameter_name}".lstrip("/"), parameter

    @property
    def _is_first_process(self) -> bool:
        return bool(idist.get_rank() == 0)

    def _add_summary(self, make: Callable[[Any], Any]) -> None:
        """Write what ``make`` gives, a ``Summary``, at the iteration of the engine."""
        if not self._is_first_process:
            return
        from tensorboardX import summary  # noqa: PLC0415

        engine = self._engine() if self._engine is not None else None
        iteration = engine.state.iteration if engine is not None else self._ended_at or 0
        try:
            content = make(summary).SerializeToString()
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError(
                f"tensorboardX needs {error.name} for this, which is not installed: pip install pillow", name=error.name
            ) from None
        if iteration > 0:  # what came before the first one is never hidden
            self._last_summaries = [(at, kept) for at, kept in self._last_summaries if at == iteration]
            self._last_summaries.append((iteration, content))
        self._write_summary(iteration, content)

    def _write_summary(self, iteration: int, content: bytes) -> None:
        from tensorboardX.proto.summary_pb2 import Summary  # noqa: PLC0415

        self._write_event(_event(iteration, summary=Summary.FromString(content)))

    def _write_event(self, event: Any) -> None:
        if self._hides and not self._is_open:  # the run has not begun
            self._early.append(event)
            return
        self._do(partial(self._write_event_now, event))
        self._is_unflushed = True
        if self._ended_at is not None:
            self.close()

    def _write_event_now(self, event: Any) -> None:
        if self._writer is None:
            self._writer = self._new_file()
        self._writer.write_event(event)

    # ------------------------------------------------------------------------------------------------ writing

    def check_destination(self) -> None:
        check_directory(self.path, self)

    def open(self, iteration: int) -> None:
        # Half a second that only a run should pay. Not in the thread that writes: a worker of a loader that is forked
        # while a thread imports may wait for that import forever.
        import tensorboardX.event_file_writer  # noqa: PLC0415
        import tensorboardX.summary  # noqa: F401, PLC0415

        self._ended_at = None
        # From this iteration on, of which there may be records that came after the checkpoint; those from before it are
        # written again.
        self._hide_from = max(iteration, 1) if self._hides else None
        self._again = [record for record in self._last if self._hides and record.iteration == iteration]
        summaries = [content for at, content in self._last_summaries if self._hides and at == iteration]
        self._hides = False
        if self.parameters and self.records_written is None:
            self._write_summary(0, _start_of(self.parameters))
        for content in summaries:
            self._write_summary(iteration, content)
        early, self._early = self._early, []
        for event in early:
            self._write_event(event)

    def write(self, records: list[Record]) -> None:
        from tensorboardX.proto.event_pb2 import Event  # noqa: PLC0415
        from tensorboardX.proto.summary_pb2 import Summary  # noqa: PLC0415

        if self._writer is None:
            self._writer = self._new_file()
        again, self._again = self._again, []
        for record in (*again, *records):
            scalars = [Summary.Value(tag=name, simple_value=number) for name, number in record.values.items()]
            self._writer.write_event(
                Event(wall_time=record.time, step=record.iteration, summary=Summary(value=scalars))
            )
        self._writer.flush()
        self._last = [record for record in (*self._last, *records) if record.iteration == records[-1].iteration]

    def _hand_over(self) -> None:
        super()._hand_over()
        if self._is_unflushed:
            self._is_unflushed = False
            self._do(self._flush_file)

    def _flush_file(self) -> None:
        if self._writer is not None:
            self._writer.flush()

    def finish(self, engine: Any) -> None:
        if self.parameters and self._writes:
            self._write_summary(engine.state.iteration, _end())
        super().finish(engine)
        self._ended_at = engine.state.iteration

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def _new_file(self) -> Any:
        # Not tensorboardX's SummaryWriter: its queue and thread give no means to wait until a record is in the file.
        from tensorboardX.event_file_writer import EventsWriter  # noqa: PLC0415
        from tensorboardX.proto.event_pb2 import Event, SessionLog  # noqa: PLC0415

        files = sum(1 for _ in self.path.glob("*.tfevents.*"))
        writer = EventsWriter(str(self.path / "events"), f".{files}")  # the rest of its name is the time in seconds
        if files and self._hide_from is not None:
            writer.write_event(Event(step=self._hide_from, session_log=SessionLog(status=SessionLog.START)))
        self._hide_from = None
        return writer

    def state_dict(self) -> dict[str, Any]:
        state = super().state_dict()  # which writes what waits
        # Without their time, so that equal runs have equal states.
        last = [tuple(record._replace(time=0.0)) for record in self._last]
        engine = self._engine() if self._engine is not None else None
        summaries = [
            (at, torch.frombuffer(bytearray(content), dtype=torch.uint8))
            for at, content in self._last_summaries
            if engine is not None and at == engine.state.iteration
        ]
        return {**state, "last": last, "last_summaries": summaries}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self._last = [Record(*record)._replace(time=time.time()) for record in state_dict["last"]]
        # Checkpoints of 0.1 have none.
        self._last_summaries = [(at, bytes(content.tolist())) for at, content in state_dict.get("last_summaries", ())]
        self._hides = True


def _event(iteration: int, **content: Any) -> Any:
    from tensorboardX.proto.event_pb2 import Event  # noqa: PLC0415

    return Event(wall_time=time.time(), step=iteration, **content)


def _on_host(values: Any) -> torch.Tensor:
    return torch.as_tensor(values).detach().cpu()


def _histogram(values: torch.Tensor) -> dict[str, Any] | None:
    """What tensorboardX needs for a histogram; made on the device, from which a hundred numbers are fetched.

    Example:
        >>> histogram = _histogram(torch.tensor([0.0, 1.0, 1.0, float("nan")]))
        >>> histogram["num"], histogram["sum"], histogram["bucket_counts"][-1]
        (3, 2.0, 2.0)
    """
    elements = part_here(values.detach()).float()
    elements = elements[elements.isfinite()]
    if elements.numel() == 0:
        return None
    exact = elements.double() if elements.device.type != "mps" else elements
    smallest, largest = torch.aminmax(exact)
    low, high, total, squares = torch.stack([smallest, largest, exact.sum(), exact.square().sum()]).tolist()
    if low == high:
        limits, counts = [high], [float(elements.numel())]
    else:
        limits = torch.linspace(low, high, _BUCKETS + 1, dtype=torch.float64)[1:].tolist()
        counts = torch.histc(elements, _BUCKETS, low, high).tolist()
    return {
        "min": low,
        "max": high,
        "num": elements.numel(),
        "sum": total,
        "sum_squares": squares,
        "bucket_limits": limits,
        "bucket_counts": counts,
    }


def _start_of(parameters: Mapping[str, Any]) -> bytes:
    """The beginning of a run in the table HPARAMS, whose other columns TensorBoard finds by itself."""
    from tensorboardX.summary import hparams  # noqa: PLC0415

    plain = {
        name: value if isinstance(value, (bool, int, float, str)) else str(value) for name, value in parameters.items()
    }
    _, start, _ = hparams(plain, {})
    content: bytes = start.SerializeToString()
    return content


def _end() -> bytes:
    from tensorboardX.summary import hparams  # noqa: PLC0415

    content: bytes = hparams({}, {})[2].SerializeToString()
    return content
