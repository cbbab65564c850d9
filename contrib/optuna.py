"""Search for hyperparameters with Optuna: each trial is a run of an engine, and one that lags behind is cut short.

``pip install optuna``. ``OptunaPruning`` listens to:

- EPOCH_COMPLETED (or the event that is asked for) in DECIDE: reports the monitored value and ends a run that is pruned.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from ignite.engine import Engine as IgniteEngine

from camshaft.engine.events import Events
from camshaft.engine.phases import Phase
from camshaft.handlers.handler import Handler, On
from camshaft.handlers.monitor import Mode, Monitor

if TYPE_CHECKING:
    import optuna

__all__ = ["OptunaPruning", "sweep"]


class OptunaPruning(Handler):
    """Reports a value to a trial of Optuna and ends the run when its pruner says so.

    Args:
        trial: of Optuna.
        monitor: the name of a metric, or of an entry of what the step returns.
        mode: whether the best is the ``"min"`` or the ``"max"``; ``"auto"`` goes by the name.
        at: when; after each validation, so the same event as that of ``Evaluate``.

    Attributes:
        best: the best value of the run so far.
        pruned: whether the run was ended.

    Raises:
        ValueError: during the run, if there is no such value, or the study looks for the other end of it.

    Example:
        >>> from camshaft import Engine
        >>> class Trial:  # as of Optuna
        ...     def report(self, value, step):
        ...         self.value = value
        ...
        ...     def should_prune(self):
        ...         return self.value > 10
        >>> pruning = OptunaPruning(Trial(), "loss")
        >>> engine = Engine(lambda engine, batch: 4.0 * engine.state.epoch).attach(pruning)
        >>> engine.run([0], max_epochs=10).epoch, pruning.pruned, pruning.best
        (3, True, 4.0)
    """

    def __init__(
        self, trial: optuna.trial.BaseTrial, monitor: str, *, mode: Mode = "auto", at: Any = Events.EPOCH_COMPLETED
    ) -> None:
        self.trial = trial
        self.monitor = Monitor(monitor, mode)
        self.listens = (On(Events.STARTED, Phase.PREPARE, "begin"), On(at, Phase.DECIDE, "report"))
        self.best: float | None = None
        self.pruned = False

    def begin(self) -> None:
        """Forget an earlier run, and see that the study wants what the monitor does."""
        self.best, self.pruned = None, False
        self.monitor.reset()
        study = getattr(self.trial, "study", None)
        if study is not None and study.direction.name.lower()[:3] != self.monitor.mode:
            raise ValueError(
                f"The best {self.monitor.name!r} is the {self.monitor.mode}, but the study has the direction "
                f"{study.direction.name}: create it with direction={self.monitor.mode + 'imize'!r}, or pass mode=…"
            )

    def report(self, engine: IgniteEngine) -> None:
        """Report the value of now, if there is a new one."""
        value = self.monitor.read(engine)
        if value is None:
            return
        if self.monitor.improves(value):
            self.best = value
        self.trial.report(value, engine.state.epoch)
        if self.trial.should_prune():
            self.pruned = True
            engine.logger.info("Optuna prunes this run after epoch %d: %s.", engine.state.epoch, value)
            engine.terminate()


def sweep(
    build: Callable[[optuna.Trial], IgniteEngine],
    data: Iterable[Any] | Callable[[optuna.Trial], Iterable[Any]],
    *,
    monitor: str,
    trials: int,
    mode: Mode = "auto",
    at: Any = Events.EPOCH_COMPLETED,
    study: optuna.Study | None = None,
    **run: Any,
) -> optuna.Study:
    """Search for the hyperparameters with the best value of ``monitor`` at any time of their run.

    Args:
        build: makes an engine with all its handlers from a trial, whose ``suggest_float`` and so on it asks. Give a
            ``Checkpoint`` or a logger in it a directory for each ``trial.number``.
        data: what to train on, or a function that makes it from the trial.
        monitor: the name of the value.
        trials: how many.
        mode: whether the best is the ``"min"`` or the ``"max"``; ``"auto"`` goes by the name.
        at: when the value is reported; the same event as that of ``Evaluate``.
        study: of Optuna, with a sampler, a pruner and a storage of your own; one in memory unless given.
        run: arguments of ``engine.run()``, as ``max_epochs=10``.

    Returns:
        The study, with ``best_params`` and ``best_value``.

    Raises:
        ModuleNotFoundError: ``optuna`` is not installed.
        ValueError: the study looks for the other end of the value; a run made no value.

    Example::

        def build(trial):
            model, rate = torch.nn.Linear(1, 1), trial.suggest_float("learning_rate", 1e-3, 1.0, log=True)
            optimizer = torch.optim.SGD(model.parameters(), lr=rate)
            return Engine(lambda engine, batch: (model(batch) - 3).square().mean()).attach(OptimizerStep(optimizer))

        study = sweep(build, loader, monitor="loss", trials=20, max_epochs=10)
        study.best_params  # {'learning_rate': 0.4}
    """
    try:
        import optuna  # noqa: PLC0415 - an optional package
    except ImportError as error:
        raise ModuleNotFoundError("A sweep needs Optuna: pip install optuna.", name="optuna") from error

    study = study or optuna.create_study(direction="maximize" if Monitor(monitor, mode).mode == "max" else "minimize")

    def objective(trial: optuna.Trial) -> float:
        engine = build(trial)
        pruning = OptunaPruning(trial, monitor, mode=mode, at=at)
        pruning.attach(engine)
        engine.run(data(trial) if callable(data) else data, **run)
        if pruning.pruned:
            raise optuna.TrialPruned(f"after epoch {engine.state.epoch}")
        if pruning.best is None:
            raise ValueError(f"The run of trial {trial.number} made no {monitor!r}: nothing to compare it by.")
        return pruning.best

    study.optimize(objective, n_trials=trials)
    return study
