"""Compiles what the step computes with ``torch.compile``.

Listens to:

- STARTED in MEASURE, when devices, wrappers and a checkpoint's weights are in place: compiles, which torch does when
  each function is first called.
- EPOCH_COMPLETED in REPORT: logs how long that took; warns where nothing was compiled.
"""

from __future__ import annotations

import inspect
import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from time import perf_counter
from types import FunctionType, MethodType
from typing import Any

import torch
from ignite.engine import Engine as IgniteEngine
from torch import nn

from camshaft.engine.clock import COMPILATION, compilation_seconds
from camshaft.engine.distributed import world_size
from camshaft.engine.events import Events
from camshaft.engine.phases import Phase
from camshaft.engine.used_objects import modules_used_by
from camshaft.handlers.checkpoint import Checkpoint
from camshaft.handlers.data_parallel import DataParallel
from camshaft.handlers.fully_sharded import FullySharded
from camshaft.handlers.handler import Handler, On, handlers_of
from camshaft.handlers.optimizer_step import optimizer_steps_of, refuse_reevaluation

__all__ = ["Compile"]


class Compile(Handler):
    """Compiles the modules that the step calls, with their backward, and the optimizers' step if asked to.

    The modules stay the objects they are: names in checkpoints do not change, and whoever else calls them, such as an
    evaluator, calls the compiled form, too. Attached to an evaluator it compiles what that one's step calls. The step
    function itself stays plain Python: what it does with the engine would have to be checked before each call.

    Compiling takes seconds to minutes, in the first iteration and wherever a batch has a new shape or the model a new
    mode. ``state.times["COMPILATION"]`` has the seconds; the engine's epoch times and ``ProgressBar`` leave them out.

    A run never ends because of it: what torch cannot compile is called as it is, after a warning that gives the reason;
    so is the part of a module's code that torch cannot follow, between two parts that are compiled.

    Ansel et al., "PyTorch 2: Faster Machine Learning Through Dynamic Python Bytecode Transformation and Graph
    Compilation", ASPLOS 2024.

    Args:
        modules: what to compile. Left out, the modules with parameters that the step uses are found in its code. Where
            the step calls only parts (``model.encoder(x)``), name those.
        optimizer: compile the step of the optimizers in ``OptimizerStep`` as well.
        backend: a name or a function, as ``torch.compile`` takes it.
        mode: of the backend ``"inductor"``, such as ``"max-autotune"``.
        dynamic: compile once for all shapes, where they differ from batch to batch. By default each shape is compiled
            for itself; torch's own way, a mixture, would depend on what came before, and a run that is resumed would
            not end in the same bits.
        cache_directory: where inductor keeps what it has compiled, so that a resumed run waits less. By default
            ``compiled`` in the directory of the engine's ``Checkpoint``, else where torch puts it.

    Attributes:
        graphs: how many were compiled.

    Raises:
        TypeError: something to compile is no module.
        ValueError: when the run starts: nothing is found to compile, torch has no such backend or mode, or
            ``FullySharded`` shards a model over several processes.

    Example:
        >>> from camshaft import Engine
        >>> model = nn.Linear(2, 1)
        >>> engine, compile = Engine(lambda engine, batch: model(batch).mean().item()), Compile(backend="eager")
        >>> state = engine.attach(compile).run([torch.ones(4, 2)] * 3)
        >>> compile.graphs, sorted(model.state_dict()), state.times["COMPILATION"] > 0
        (1, ['bias', 'weight'], True)
    """

    alone = True
    listens = (
        On(Events.STARTED, Phase.MEASURE, "compile"),
        On(Events.EPOCH_COMPLETED, Phase.REPORT, "report"),
    )

    def __init__(
        self,
        *modules: nn.Module,
        optimizer: bool = False,
        backend: str | Callable[..., Any] = "inductor",
        mode: str | None = None,
        dynamic: bool = False,
        cache_directory: str | os.PathLike[str] | None = None,
    ) -> None:
        for module in modules:
            if not isinstance(module, nn.Module):
                raise TypeError(f"Compile takes modules, but got {module!r}.")
        self.modules = modules
        self.optimizer = optimizer
        self.backend = backend
        self.mode = mode
        self.dynamic = dynamic
        self.cache_directory = cache_directory
        self.graphs = 0
        self._undo: dict[int, Callable[[], None]] = {}  # for what is compiled, by its identity
        self._reported = 0.0  # seconds
        self._has_failed = False
        self._state: Any = None
        self._cache: Path | None = None
        self._breaks: set[str] = set()

    # ------------------------------------------------------------------------------------------------ what to compile

    def check(self, engine: IgniteEngine) -> None:
        super().check(engine)
        self._backend()
        if world_size() > 1 and any(isinstance(handler, FullySharded) for handler in handlers_of(engine)):
            raise ValueError(
                f"{self!r} does not go with FullySharded, whose model is put together while it computes: leave it out."
            )
        if self.optimizer:
            refuse_reevaluation(self, engine)
            if not optimizer_steps_of(engine):
                raise ValueError(f"{self!r} compiles the optimizers of OptimizerStep, but none is attached.")
        if not self._modules(engine):
            raise ValueError(
                f"{self!r} found no module with parameters in the step. Name what to compile: Compile(model)."
            )

    def compile(self, engine: IgniteEngine) -> None:
        """Let torch compile each module, and each optimizer if asked to, when it is next called."""
        self._state = engine.state
        self._state.times[COMPILATION] = self._reported = 0.0
        self._cache = self._cache_directory(engine)
        self._breaks = _breaks()
        for module in self._modules(engine):
            called = _within_wrapper(module, engine)
            if id(called) not in self._undo and not _is_compiled(called):
                self._compile_module(called)
        if self.optimizer:
            for optimizer in (one for step in optimizer_steps_of(engine) for one in step.optimizers):
                if id(optimizer) not in self._undo:
                    self._compile_optimizer(optimizer)

    def detach(self, engine: IgniteEngine) -> None:
        super().detach(engine)
        for undo in self._undo.values():
            undo()
        self._undo.clear()

    def report(self, engine: IgniteEngine) -> None:
        """Log how long compiling took since the last report."""
        seconds = compilation_seconds(engine.state)
        if seconds > self._reported:
            took = seconds - self._reported
            engine.logger.info("Compiled in %.1f s, which the time of the epoch leaves out; %r.", took, self)
            self._reported = seconds
        if self._undo and not self.graphs and not self._has_failed:
            self._warn("nothing was compiled: the step calls none of the modules itself. Name the parts that it calls")

    def _modules(self, engine: IgniteEngine) -> list[nn.Module]:
        # A loss or a metric is a module as well, but too small to be worth the check of its arguments.
        found = modules_used_by(engine._process_function).values()
        return list(self.modules) or [module for module in found if next(module.parameters(), None) is not None]

    def _cache_directory(self, engine: IgniteEngine) -> Path | None:
        if self.cache_directory is not None:
            return Path(self.cache_directory)
        for handler in handlers_of(engine):
            if isinstance(handler, Checkpoint):
                return handler.directory / "compiled"
        return None

    # ------------------------------------------------------------------------------------------------ how

    def _compile_module(self, module: nn.Module) -> None:
        eager = module._call_impl
        module._compiled_call_impl = _Compiled(self, type(module).__name__, eager, self._compiled(eager))

        def undo() -> None:
            module._compiled_call_impl = None

        self._undo[id(module)] = undo

    def _compile_optimizer(self, optimizer: torch.optim.Optimizer) -> None:
        """Compile the step itself, within the hooks that others have put around it."""
        before = vars(optimizer).get("step")
        eager = torch.no_grad()(inspect.unwrap(type(optimizer).step))
        compiled = _with_learning_rates_as_tensors(self._compiled(inspect.unwrap(type(optimizer).step)))
        call = _Compiled(self, type(optimizer).__name__, eager, torch.no_grad()(compiled))

        def step(optimizer: torch.optim.Optimizer, closure: None = None) -> None:
            optimizer._opt_called = True  # type: ignore[attr-defined]  # what a scheduler of torch looks at
            call(optimizer)

        hooked: Any = torch.optim.Optimizer.profile_hook_step(step)
        if hasattr(before, "_wrapped_by_lr_sched"):
            hooked._wrapped_by_lr_sched = True
        optimizer.step = MethodType(hooked, optimizer)  # type: ignore[method-assign]

        def undo() -> None:
            del optimizer.step
            if before is not None:
                optimizer.step = before  # type: ignore[method-assign]

        self._undo[id(optimizer)] = undo

    def _compiled(self, function: Callable[..., Any]) -> Callable[..., Any]:
        # A function in torch's own files is only compiled within one that is not. That one has code of its own, because
        # torch limits how often the same code is compiled.
        def call(*args: Any, **kwargs: Any) -> Any:
            return function(*args, **kwargs)

        own = FunctionType(call.__code__.replace(), call.__globals__, closure=call.__closure__)
        return torch.compile(own, backend=self._compile_graph, dynamic=self.dynamic)

    def _compile_graph(self, graph: Any, example_inputs: Any) -> Callable[..., Any]:
        """The backend as torch calls it for each graph; one that it cannot compile is left as it is."""
        self.graphs += 1
        in_cache = nullcontext() if self._cache is None else _environment("TORCHINDUCTOR_CACHE_DIR", self._cache)
        try:
            with in_cache, _backward_at_once():
                compiled: Callable[..., Any] = self._backend()(graph, example_inputs)
        except torch._dynamo.exc.RestartAnalysis:  # it asks for another form of the graph
            raise
        except Exception as error:  # noqa: BLE001 - whatever a backend may raise
            self._warn(f"{self.backend!r} could not compile a graph, which is run as it is: {_first_line(error)}")
            compiled = graph.forward
        return compiled

    def _backend(self) -> Callable[..., Any]:
        if self.mode is not None:
            if self.backend != "inductor":
                raise ValueError(f"{self!r}: a mode is one of 'inductor', not of {self.backend!r}.")
            try:
                options = torch._inductor.list_mode_options(self.mode)
            except RuntimeError as error:
                raise ValueError(f"{self!r}: {error}") from None
        if callable(self.backend):
            return self.backend
        from torch._dynamo import list_backends, lookup_backend  # noqa: PLC0415 - takes a second

        if self.backend not in list_backends(None):
            known = ", ".join(map(repr, list_backends()))
            raise ValueError(f"{self!r}: torch has no backend {self.backend!r}; it has {known}.")
        backend: Any = lookup_backend(self.backend)
        return backend if self.mode is None else lambda graph, inputs: backend(graph, inputs, config_patches=options)

    # ------------------------------------------------------------------------------------------------ what came of it

    def _note(self, name: str, seconds: float) -> None:
        """Something was compiled in that time: add it up, and tell where torch could not follow the code."""
        self._state.times[COMPILATION] = compilation_seconds(self._state) + seconds
        breaks = _breaks()
        new, self._breaks = breaks - self._breaks, breaks
        if new:
            self._warn(f"torch compiled {name} in several parts, with Python between them: {'; '.join(sorted(new))}")

    def _warn(self, message: str) -> None:
        warnings.warn(f"{self!r}: {message}.", stacklevel=2)


class _Compiled:
    """What is called in the place of a function: its compiled form, or itself once that has failed."""

    def __init__(self, handler: Compile, name: str, eager: Callable[..., Any], compiled: Callable[..., Any]) -> None:
        self.handler = handler
        self.name = name
        self.eager = eager
        self.compiled: Callable[..., Any] | None = compiled

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if self.compiled is None:
            return self.eager(*args, **kwargs)
        graphs, begin = self.handler.graphs, perf_counter()
        try:
            result = self.compiled(*args, **kwargs)
        except torch._dynamo.exc.TorchDynamoException as error:
            reason = _first_line(error)
        else:
            if self.handler.graphs != graphs:
                self.handler._note(self.name, perf_counter() - begin)
            return result
        result = self.eager(*args, **kwargs)  # may say better what is wrong with the arguments
        self.compiled = None
        self.handler._has_failed = True
        self.handler._warn(f"torch could not compile {self.name}, which is called as it is: {reason}")
        return result


def _within_wrapper(module: nn.Module, engine: IgniteEngine) -> nn.Module:
    """What is called to compute ``module``: within ``DataParallel``'s wrapper, whose exchange cannot be compiled."""
    for handler in handlers_of(engine):
        if isinstance(handler, DataParallel) and handler.model is module and handler._wrapped is not None:
            within: nn.Module = handler._wrapped.module
            return within
    return module


def _is_compiled(module: nn.Module) -> bool:
    """Whether the user, or the handler of another engine, has compiled it."""
    return module._compiled_call_impl is not None or hasattr(module, "_orig_mod")


def _with_learning_rates_as_tensors(
    step: Callable[[torch.optim.Optimizer], Any],
) -> Callable[[torch.optim.Optimizer], None]:
    """``step`` called with the learning rates in tensors: it would be compiled anew for each number."""
    tensors: list[torch.Tensor] = []

    def call(optimizer: torch.optim.Optimizer) -> None:
        groups = optimizer.param_groups
        rates = [group["lr"] for group in groups]
        while len(tensors) < len(groups):
            tensors.append(torch.zeros((), dtype=torch.float64))
        for group, rate, tensor in zip(groups, rates, tensors, strict=False):
            group["lr"] = tensor.fill_(rate)
        try:
            step(optimizer)
        finally:  # schedules, loggers and checkpoints see the numbers
            for group, rate in zip(groups, rates, strict=True):
                group["lr"] = rate

    return call


@contextmanager
def _environment(name: str, value: os.PathLike[str]) -> Iterator[None]:
    """Within this context the variable of the environment has this value."""
    before = os.environ.get(name)
    os.environ[name] = os.fspath(value)
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before


def _backward_at_once() -> AbstractContextManager[Any]:
    """Within this context a graph's backward is compiled with it, where an error is caught, rather than when called."""
    from torch._functorch import config  # noqa: PLC0415 - takes a second

    known = hasattr(config, "force_non_lazy_backward_lowering")
    return config.patch(force_non_lazy_backward_lowering=True) if known else nullcontext()


def _breaks() -> set[str]:
    """Why torch has divided what it compiled in this process so far."""
    counters = torch._dynamo.utils.counters
    return {_first_line(reason) for kind in ("graph_break", "unimplemented") for reason in counters[kind]}


def _first_line(reason: object) -> str:
    return (str(reason).strip() or type(reason).__name__).splitlines()[0].rstrip(".")
