"""Measures the operations of torch, on the CPU and on accelerators."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import nn
from torch.autograd.profiler import record_function
from torch.autograd.profiler_util import EventList
from torch.profiler import ProfilerAction, ProfilerActivity, tensorboard_trace_handler

from camshaft.contrib.lightning.profilers.profiler import Profiler
from camshaft.contrib.lightning.utilities.exceptions import MisconfigurationException

__all__ = ["PyTorchProfiler"]

_WINDOW = (1, 1, 3)  # batches at the beginning of a stage: left out, to warm up, recorded


class PyTorchProfiler(Profiler):
    """Reports which operations took how long, through ``torch.profiler``.

    Of each stage (training, validation, …) a few batches are recorded: by default the third to the fifth, all of them
    where there are fewer than five. Where there is a directory, what was recorded is also written there as a trace,
    which TensorBoard and ``chrome://tracing`` show.

    Args:
        dirpath: the directory of the report; the trainer's ``log_dir`` unless given.
        filename: of the report, without ``.txt``; without one it is logged.
        group_by_input_shapes: tell operations apart by the shapes of their inputs; needs ``record_shapes=True``.
        emit_nvtx: mark operations for NVIDIA's tools instead, which must run the program.
        export_to_chrome: whether to write traces.
        row_limit: lines of a table at most; -1 for all.
        sort_by_key: one of ``AVAILABLE_SORT_KEYS``; the total time unless given.
        record_module_names: whether to record which layers the operations belong to.
        table_kwargs: ``torch.autograd.profiler_util.EventList.table``'s.
        profiler_kwargs: ``torch.profiler.profile``'s, such as ``schedule``, ``activities`` and ``with_stack``; and
            ``export_to_flame_graph=True`` to write stacks as well, with ``metric`` as their measure.

    Raises:
        MisconfigurationException: ``sort_by_key`` or ``schedule`` is none.
        TypeError: ``torch.profiler.profile`` or the table do not have such an argument.

    Example:
        >>> profiler = PyTorchProfiler(schedule=None)
        >>> with profiler.profile("[LightningModule]Model.training_step"):
        ...     _ = torch.ones(2, 2) @ torch.ones(2, 2)
        >>> "aten::mm" in profiler.summary()
        True
    """

    STEP_FUNCTIONS: ClassVar[set[str]] = {"training_step", "validation_step", "test_step", "predict_step"}
    AVAILABLE_SORT_KEYS: ClassVar[set[str]] = {
        "count",
        "cpu_memory_usage",
        "cpu_time",
        "cpu_time_total",
        "cuda_memory_usage",
        "cuda_time",
        "cuda_time_total",
        "self_cpu_memory_usage",
        "self_cuda_memory_usage",
    }

    def __init__(
        self,
        dirpath: str | Path | None = None,
        filename: str | None = None,
        group_by_input_shapes: bool = False,
        emit_nvtx: bool = False,
        export_to_chrome: bool = True,
        row_limit: int = 20,
        sort_by_key: str | None = None,
        record_module_names: bool = True,
        table_kwargs: dict[str, Any] | None = None,
        **profiler_kwargs: Any,
    ) -> None:
        super().__init__(dirpath, filename)
        self._group_by_input_shapes = group_by_input_shapes and bool(profiler_kwargs.get("record_shapes"))
        self._emit_nvtx = emit_nvtx
        self._export_to_chrome = export_to_chrome
        self._row_limit = row_limit
        self._record_module_names = record_module_names
        self._table_kwargs = table_kwargs or {}
        self._export_to_flame_graph = profiler_kwargs.pop("export_to_flame_graph", False)
        self._metric = profiler_kwargs.pop("metric", "self_cpu_time_total")
        self._on_trace_ready = profiler_kwargs.pop("on_trace_ready", None)
        self._chosen = "schedule" in profiler_kwargs
        self._schedule = profiler_kwargs.pop("schedule", None)
        activities = profiler_kwargs.setdefault("activities", _activities())
        on_cuda = ProfilerActivity.CUDA in activities
        self._sort_by_key = sort_by_key or f"{'cuda' if on_cuda else 'cpu'}_time_total"
        if self._export_to_flame_graph:
            profiler_kwargs["with_stack"] = True
        self._profiler_kwargs = profiler_kwargs
        self._check_arguments()

        self.profiler: Any = None
        self._lightning_module: nn.Module | None = None  # set by the trainer
        self._stages: _Stages | None = None
        self._open = ExitStack()  # what ends with the profiler
        self._labels: dict[str, record_function] = {}
        self._tables: dict[str, str] = {}
        self._action = ""

    def _check_arguments(self) -> None:
        if self._sort_by_key not in self.AVAILABLE_SORT_KEYS:
            known = ", ".join(sorted(self.AVAILABLE_SORT_KEYS))
            raise MisconfigurationException(
                f"PyTorchProfiler's sort_by_key is one of {known}, but got {self._sort_by_key!r}."
            )
        schedule = self._schedule
        if schedule is not None and not (callable(schedule) and isinstance(schedule(0), ProfilerAction)):
            raise MisconfigurationException(
                "PyTorchProfiler's schedule is a function from the number of a step to a torch.profiler.ProfilerAction "
                f"(torch.profiler.schedule makes one), but got {schedule!r}."
            )
        of_profile = set(inspect.signature(torch.profiler.profile.__init__).parameters) - {"self"}
        of_table = set(inspect.signature(EventList.table).parameters) - {"self", "sort_by", "row_limit"}
        for given, known_names, whose in (
            (self._profiler_kwargs, of_profile, "torch.profiler.profile"),
            (self._table_kwargs, of_table, "the table"),
        ):
            unknown = sorted(set(given) - known_names)
            if unknown:
                raise TypeError(f"PyTorchProfiler got {', '.join(unknown)}, which {whose} does not have: leave it out.")

    def start(self, action_name: str) -> None:
        if self.profiler is None:
            self._begin()
        if action_name not in self._labels:
            label = record_function(f"[pl][profile]{action_name}")
            label.__enter__()
            self._labels[action_name] = label

    def stop(self, action_name: str) -> None:
        label = self._labels.pop(action_name, None)
        if label is not None:
            label.__exit__(None, None, None)
        stage = next((name for name in self.STEP_FUNCTIONS if action_name.endswith(name)), None)
        if self.profiler is None or self._emit_nvtx or stage is None or self._is_sanity_check():
            return
        if self._stages is not None:
            self._stages.current = stage
            if self._stages.recorded is None:
                self._action = action_name
        else:
            self._action = action_name
        with warnings.catch_warnings():  # that it forgets a window when the next begins: by then its table is made
            warnings.filterwarnings("ignore", "Warning: Profiler clears events")
            self.profiler.step()

    def summary(self) -> str:
        self._end()
        return self._stats_to_str(self._tables) if self._tables else ""

    def setup(self, stage: str, local_rank: int | None = None, log_dir: str | None = None) -> None:
        super().setup(stage, local_rank, log_dir)
        self._tables = {}  # those of the run before

    def teardown(self, stage: str | None) -> None:
        self._end()

    def _begin(self) -> None:
        if self._emit_nvtx:
            self._open.enter_context(torch.cuda.profiler.profile())
            self.profiler = self._open.enter_context(torch.autograd.profiler.emit_nvtx())
            return
        schedule = self._schedule
        if not self._chosen and not self._is_short():
            wait, warmup, active = _WINDOW
            schedule = torch.profiler.schedule(wait=wait, warmup=warmup, active=active)
        self._stages = None if schedule is None else _Stages(schedule)
        self.profiler = torch.profiler.profile(
            schedule=self._stages, on_trace_ready=self._keep, **self._profiler_kwargs
        )
        self._open.enter_context(self.profiler)
        if self._lightning_module is not None and self._record_module_names:
            self._open.enter_context(_layers_recorded(self._lightning_module))

    def _end(self) -> None:
        for action in list(self._labels):
            self._labels.pop(action).__exit__(None, None, None)
        self._open.close()
        self.profiler = None
        self._stages = None

    def _keep(self, profiler: Any) -> None:
        """A window was recorded: make its table, and write its trace."""
        action = self._action or "all"
        events = profiler.key_averages(group_by_input_shape=self._group_by_input_shapes)
        self._tables[action] = events.table(sort_by=self._sort_by_key, row_limit=self._row_limit, **self._table_kwargs)
        if self._on_trace_ready is not None:
            self._on_trace_ready(profiler)
            return
        if self.dirpath is None:
            return
        if self._export_to_chrome:
            tensorboard_trace_handler(str(self.dirpath), self._prepare_filename(action, ""))(profiler)
        if self._export_to_flame_graph:
            profiler.export_stacks(str(Path(self.dirpath, self._prepare_filename(action, ".stack"))), self._metric)

    def _trainer(self) -> Any:
        return getattr(self._lightning_module, "_trainer", None)

    def _is_sanity_check(self) -> bool:
        return bool(getattr(self._trainer(), "sanity_checking", False))

    def _is_short(self) -> bool:
        """Whether there are fewer batches than the default window needs."""
        trainer = self._trainer()
        if trainer is None:
            return False
        names = {"fit": "training", "validate": "val", "test": "test", "predict": "predict"}
        batches = getattr(trainer, f"num_{names.get(self._stage or 'fit', 'training')}_batches")
        return bool((sum(batches) if isinstance(batches, list) else batches) < sum(_WINDOW))

    def __reduce__(self) -> tuple[Any, ...]:
        raise TypeError("A PyTorchProfiler cannot be pickled: make it in the process that is measured.")


class _Stages:
    """A schedule for several stages that take turns: one window is recorded of each, and none is cut by another."""

    def __init__(self, schedule: Callable[[int], ProfilerAction]) -> None:
        self._schedule = schedule
        self.current: str | None = None
        self.recorded: str | None = None  # the stage whose window is open
        self._steps: dict[str, int] = {}
        self._finished: set[str] = set()
        self._action = ProfilerAction.NONE

    def __call__(self, step: int) -> ProfilerAction:
        if self._action == ProfilerAction.RECORD_AND_SAVE and self.recorded is not None:
            self._finished.add(self.recorded)
            self.recorded = None
            self._action = ProfilerAction.NONE
        if self.current is None or self.current in self._finished or self.recorded not in {None, self.current}:
            return self._action
        self._steps[self.current] = self._steps.get(self.current, 0) + 1
        self._action = self._schedule(self._steps[self.current])
        self.recorded = None if self._action == ProfilerAction.NONE else self.current
        return self._action


@contextmanager
def _layers_recorded(model: nn.Module) -> Iterator[None]:
    """Within it, the profiler knows which layer an operation belongs to."""
    under_way: dict[str, list[record_function]] = {}

    def begin(_module: nn.Module, _args: Any, name: str) -> None:
        label = record_function(name)
        label.__enter__()
        under_way.setdefault(name, []).append(label)

    def end(_module: nn.Module, _args: Any, _output: Any, name: str) -> None:
        if under_way.get(name):
            under_way[name].pop().__exit__(None, None, None)

    with ExitStack() as hooks:
        for path, module in model.named_modules():
            if path and not isinstance(module, torch.jit.ScriptModule):
                name = f"[pl][module]{type(module).__module__}.{type(module).__name__}: {path}"
                hooks.callback(module.register_forward_pre_hook(partial(begin, name=name)).remove)
                hooks.callback(module.register_forward_hook(partial(end, name=name), always_call=True).remove)
        yield


def _activities() -> list[ProfilerActivity]:
    on_accelerator = [ProfilerActivity.CUDA] if torch.cuda.is_available() else []
    return [ProfilerActivity.CPU, *on_accelerator]
