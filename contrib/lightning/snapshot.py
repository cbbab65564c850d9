"""What a checkpoint of a Trainer holds, in Lightning's layout, and taking it back.

Beside Lightning's entries there is ``"camshaft"``: the position in the data and the random generators, by which a run
that was cut off in the midst of an epoch ends in the same bits.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from camshaft.contrib.lightning.hooks import is_overridden
from camshaft.contrib.lightning.training import EpochEnd, Training
from camshaft.engine.distributed import gather, rank, world_size
from camshaft.engine.generators import generator_states
from camshaft.handlers.checkpoint_contents import plain, stateful_handlers
from camshaft.handlers.device import moved

if TYPE_CHECKING:
    from camshaft.contrib.lightning.trainer.metrics import TrainerMetrics

__all__ = ["restore_callbacks", "restore_module", "restore_training", "snapshot"]

_VERSION = "2.6.0"  # of Lightning, whose layout this is


def snapshot(trainer: TrainerMetrics, *, weights_only: bool) -> dict[str, Any]:
    """A checkpoint of a trainer as it is now; all processes must call this.

    Args:
        trainer: with a module.
        weights_only: the weights and hyperparameters alone.
    """
    module, training = trainer.lightning_module, trainer.training_loop
    content: dict[str, Any] = {
        "epoch": trainer.current_epoch,
        "global_step": trainer.global_step,
        "pytorch-lightning_version": _VERSION,
        "state_dict": trainer.strategy.model_state_dict(),
    }
    if not weights_only and training is not None:
        content["loops"] = _loops(trainer, training)
        content["callbacks"] = {
            callback.state_key: state for callback in trainer.callbacks if (state := callback.state_dict())
        }
        content["optimizer_states"] = [
            trainer.strategy.optimizer_state_dict(optimizer.optimizer) for optimizer in training.optimizers
        ]
        content["lr_schedulers"] = [config.scheduler.state_dict() for config in training.configured.schedules]
        content["camshaft"] = _ours(trainer, training)
    for thing in (module, trainer.datamodule):
        if thing is not None and hasattr(thing, "hyperparameters_for_checkpoint"):
            content.update(thing.hyperparameters_for_checkpoint())
    if trainer.datamodule is not None and is_overridden("state_dict", trainer.datamodule):
        content[type(trainer.datamodule).__qualname__] = trainer.datamodule.state_dict()
    if not weights_only:
        for callback in trainer.callbacks:
            if is_overridden("on_save_checkpoint", callback):
                callback.on_save_checkpoint(trainer, module, content)
    if is_overridden("on_save_checkpoint", module):
        module.on_save_checkpoint(content)
    return content


def _ours(trainer: TrainerMetrics, training: Training) -> dict[str, Any]:
    engine = training.engine
    epoch, iteration = engine.state.epoch, engine.state.iteration
    in_batches = training.epoch_end is None and epoch > training.epochs_completed
    within = in_batches and iteration > training.iterations_before_epoch
    done = training.total_batches - training.batches_before_epoch
    if within:
        iteration = training.iterations_before_epoch + done  # a batch that was not finished is to come once more
    elif in_batches:
        epoch -= 1  # none of its batches has begun
    of_rank = {
        "data": _place_in_data(training, iteration) if engine.state.dataloader is not None else None,
        "generators": generator_states(),
        "results": plain(training.results.state_dict()),
        "torchmetrics": plain(_torchmetrics_states(trainer.lightning_module)),
    }
    return {
        "epochs_completed": training.epochs_completed,
        "engine": {"iteration": iteration, "epoch": epoch},
        "position": done if within else None,
        "epoch_end": None if training.epoch_end is None else int(training.epoch_end),
        "batch_idx": training.batch_idx,
        "total_batches": training.total_batches,
        "batches_stepped": training.batches_stepped,
        "steps": [optimizer.steps for optimizer in training.optimizers],
        "handlers": {name: plain(handler.state_dict()) for name, handler in stateful_handlers(engine).items()},
        "metrics": plain(dict(trainer.callback_metrics)),
        "scaler": training.scaler.state_dict() if training.scaler is not None else None,
        "ranks": gather(of_rank),
    }


def _place_in_data(training: Training, iteration: int) -> dict[str, Any]:
    """The place in the data after an iteration: the last one, or the one before it if that was not finished."""
    state = training.engine.state
    reached, state.iteration = state.iteration, iteration
    try:
        return training.data.state_dict(training.engine)
    finally:
        state.iteration = reached


def restore_module(trainer: TrainerMetrics, content: Mapping[str, Any]) -> None:
    """Take back the weights, after the hooks that make ready for them.

    Raises:
        RuntimeError: they do not fit.
    """
    module = trainer.lightning_module
    if is_overridden("on_load_checkpoint", module):
        module.on_load_checkpoint(content)
    trainer.strategy.load_model_state_dict(content["state_dict"], strict=module.strict_loading)
    datamodule = trainer.datamodule
    if datamodule is not None and type(datamodule).__qualname__ in content:
        datamodule.load_state_dict(content[type(datamodule).__qualname__])


def restore_callbacks(trainer: TrainerMetrics, content: Mapping[str, Any]) -> None:
    """Take back the states of the callbacks that are attached."""
    module, states = trainer.lightning_module, content.get("callbacks") or {}
    for callback in trainer.callbacks:
        if is_overridden("on_load_checkpoint", callback):
            callback.on_load_checkpoint(trainer, module, content)
        state = states.get(callback.state_key, states.get(type(callback).__qualname__))
        if state is not None:
            callback.load_state_dict(dict(state))


def restore_training(trainer: TrainerMetrics, training: Training, content: Mapping[str, Any]) -> None:
    """Take back optimizers, schedules, and where the run was.

    Raises:
        ValueError: the checkpoint holds weights only, or another number of optimizers or schedules.
    """
    _restore_optimization(trainer, training, content)
    ours = content.get("camshaft")
    if ours is None:
        _set_from_lightning(training, content)
        return
    _restore_counts(trainer, training, ours)
    _restore_position(training, ours)
    of_ranks = ours["ranks"]
    if len(of_ranks) != world_size():  # the data is shared otherwise: the epoch goes on without its position
        training.generators = of_ranks[0]["generators"]
        return
    of_rank, state = of_ranks[rank()], training.engine.state
    if of_rank["data"] is not None:
        training.data.load_state_dict(of_rank["data"])
        if ours["position"] is None:  # the next epoch begins the data anew, with what its parts remember
            training.data.iterator(training.loader, state.iteration)
    training.generators = of_rank["generators"]
    training.results.load_state_dict(of_rank["results"])
    _set_torchmetrics_states(trainer.lightning_module, of_rank["torchmetrics"])


def _restore_optimization(trainer: TrainerMetrics, training: Training, content: Mapping[str, Any]) -> None:
    if "optimizer_states" not in content:
        raise ValueError(
            "The checkpoint holds weights only, so a fit cannot go on with it: load them by "
            "Module.load_from_checkpoint(path), or give another ckpt_path."
        )
    states, schedules = content["optimizer_states"], content.get("lr_schedulers") or []
    if len(states) != len(training.optimizers) or len(schedules) != len(training.configured.schedules):
        raise ValueError(
            f"The checkpoint has {len(states)} optimizer(s) and {len(schedules)} schedule(s), but the module has "
            f"{len(training.optimizers)} and {len(training.configured.schedules)}."
        )
    for optimizer, state in zip(training.optimizers, states, strict=True):
        trainer.strategy.load_optimizer_state_dict(optimizer.optimizer, state)
    for config, state in zip(training.configured.schedules, schedules, strict=True):
        config.scheduler.load_state_dict(state)


def _restore_counts(trainer: TrainerMetrics, training: Training, ours: Mapping[str, Any]) -> None:
    engine = training.engine
    training.epochs_completed = ours["epochs_completed"]
    training.total_batches, training.batches_stepped = ours["total_batches"], ours["batches_stepped"]
    attached = stateful_handlers(engine)
    for name, state in ours["handlers"].items():
        if name in attached:
            attached[name].load_state_dict(state)
    for optimizer, steps in zip(training.optimizers, ours["steps"], strict=True):
        optimizer.steps = steps
    if training.scaler is not None and ours["scaler"] is not None:
        training.scaler.load_state_dict(ours["scaler"])
    trainer.take_metric_values(ours["metrics"])


def _restore_position(training: Training, ours: Mapping[str, Any]) -> None:
    engine, state = training.engine, training.engine.state
    state.iteration, state.epoch = ours["engine"]["iteration"], ours["engine"]["epoch"]
    if ours["position"] is not None:
        state.epoch -= 1  # the loop is about to begin that epoch again
        training.at = ours["position"]
        engine._init_iter = ours["position"]
    elif ours["epoch_end"] is not None:
        training.pending_epoch_end = EpochEnd(ours["epoch_end"])
        training.batch_idx = ours["batch_idx"]
        training.batches_before_epoch = training.total_batches - training.batch_idx - 1
        if not training.has_length:
            state.epoch_length = training.batch_idx + 1


def _torchmetrics_of(module: Any) -> dict[str, Any]:
    """The metrics of torchmetrics among the parts of a module."""
    return {
        name: part for name, part in module.named_modules() if hasattr(part, "_defaults") and hasattr(part, "compute")
    }


def _torchmetrics_states(module: Any) -> dict[str, Any]:
    """What metrics have counted in the epoch under way; their own ``state_dict`` leaves that out."""
    return {
        name: {"count": metric._update_count, "values": {key: getattr(metric, key) for key in metric._defaults}}
        for name, metric in _torchmetrics_of(module).items()
    }


def _set_torchmetrics_states(module: Any, states: Mapping[str, Any]) -> None:
    for name, metric in _torchmetrics_of(module).items():
        if name not in states:
            continue
        for key, value in states[name]["values"].items():
            setattr(metric, key, moved(value, metric.device))
        metric._update_count, metric._computed = states[name]["count"], None


def _set_from_lightning(training: Training, content: Mapping[str, Any]) -> None:
    """Go on after a checkpoint of the real Lightning, at the epoch it says: it does not tell where the data was."""
    steps, epochs = int(content["global_step"]), int(content["epoch"])
    loops = content.get("loops") or {}
    progress = (loops.get("fit_loop") or {}).get("epoch_progress", {}).get("current", {})
    epochs = max(epochs, progress.get("processed", 0))
    training.epochs_completed = training.engine.state.epoch = epochs
    batches = training.num_batches
    training.engine.state.iteration = training.total_batches = int(epochs * batches) if batches != float("inf") else 0
    training.batches_stepped = steps
    for optimizer in training.optimizers:
        optimizer.steps = steps
    for step in training.steps:
        step.steps = steps


def _loops(trainer: TrainerMetrics, training: Training) -> dict[str, Any]:
    """The progress of the loops, as the real Lightning wants to find it."""
    epochs = training.engine.state.epoch
    at_end = training.epoch_end is not None
    done = training.epochs_completed
    epoch = {"ready": epochs, "started": epochs, "processed": epochs if at_end else done, "completed": done}
    batches = training.batch_idx + 1
    batch = {"ready": batches, "started": batches, "processed": batches, "completed": batches}
    total = dict.fromkeys(batch, training.total_batches)
    steps = trainer.global_step
    ready = {"ready": steps, "completed": steps}
    started = {"ready": steps, "started": steps, "completed": steps}
    schedule = {"ready": 0, "completed": 0}
    nothing = {"ready": 0, "started": 0, "processed": 0, "completed": 0}
    evaluation = {
        "state_dict": {},
        "batch_progress": {"total": nothing, "current": nothing, "is_last_batch": True},
    }
    fit = {
        "state_dict": {},
        "epoch_loop.state_dict": {"_batches_that_stepped": training.batches_stepped},
        "epoch_loop.batch_progress": {"total": total, "current": batch, "is_last_batch": training.is_last_batch},
        "epoch_loop.scheduler_progress": {"total": schedule, "current": schedule},
        "epoch_loop.automatic_optimization.state_dict": {},
        "epoch_loop.automatic_optimization.optim_progress": {
            "optimizer": {
                "step": {"total": ready, "current": ready},
                "zero_grad": {"total": started, "current": started},
            }
        },
        "epoch_loop.manual_optimization.state_dict": {},
        "epoch_loop.manual_optimization.optim_step_progress": {"total": ready, "current": ready},
        "epoch_loop.val_loop.state_dict": {},
        "epoch_loop.val_loop.batch_progress": evaluation["batch_progress"],
        "epoch_progress": {"total": epoch, "current": epoch},
    }
    return {
        "fit_loop": fit,
        "validate_loop": evaluation,
        "test_loop": evaluation,
        "predict_loop": {"state_dict": {}, "batch_progress": {"total": nothing, "current": nothing}},
    }
