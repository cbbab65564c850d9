"""The flags of a Trainer: what those of earlier releases mean now, and all of them as options of a command line."""

from __future__ import annotations

import argparse
import difflib
import inspect
import os
import warnings
from collections.abc import Callable, Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

from camshaft.contrib.lightning.devices import gpu_ids, number_of_devices

__all__ = ["add_arguments", "arguments_and_types", "check", "chosen_arguments", "from_old_flags", "seconds_of"]

# Flags of earlier releases that only had another name.
_RENAMED = {
    "max_nb_epochs": "max_epochs",
    "min_nb_epochs": "min_epochs",
    "nb_sanity_val_steps": "num_sanity_val_steps",
    "nb_gpu_nodes": "num_nodes",
    "default_save_path": "default_root_dir",
    "gradient_clip": "gradient_clip_val",
    "row_log_interval": "log_every_n_steps",
    "add_row_log_interval": "log_every_n_steps",
    "replace_sampler_ddp": "use_distributed_sampler",
}
# Shares of the data, from 0 to 1: here 1 is all of it, where today's flags mean one batch by it.
_SHARES = {
    "train_percent_check": ("limit_train_batches",),
    "val_percent_check": ("limit_val_batches",),
    "test_percent_check": ("limit_test_batches",),
    "overfit_pct": ("limit_train_batches", "limit_val_batches", "limit_test_batches"),
}
# The defaults of today's flags that the two tables above lead to, where it is not None.
_TODAYS_DEFAULTS = {"num_nodes": 1, "use_distributed_sampler": True}
# The other flags of releases up to 1.9 with their types and defaults, for command lines; None is nothing given.
_OLD_FLAGS: dict[str, tuple[tuple[type, ...], Any]] = {
    "gpus": ((int, str, list), None),
    "tpu_cores": ((int, str), None),
    "num_tpu_cores": ((int,), None),
    "num_processes": ((int,), 1),
    "distributed_backend": ((str,), None),
    "checkpoint_callback": ((bool,), True),
    "early_stop_callback": ((bool,), False),
    "overfit_pct": ((float,), 0.0),
    "train_percent_check": ((float,), 1.0),
    "val_percent_check": ((float,), 1.0),
    "test_percent_check": ((float,), 1.0),
    "row_log_interval": ((int,), None),
    "add_row_log_interval": ((int,), None),
    "log_save_interval": ((int,), 100),
    "show_progress_bar": ((bool,), True),
    "progress_bar_refresh_rate": ((int,), 1),
    "process_position": ((int,), 0),
    "weights_summary": ((str,), "top"),
    "weights_save_path": ((str,), None),
    "default_save_path": ((str,), None),
    "track_grad_norm": ((int, float, str), -1),
    "use_amp": ((bool,), False),
    "amp_level": ((str,), "O1"),
    "amp_backend": ((str,), "native"),
    "print_nan_grads": ((bool,), False),
    "terminate_on_nan": ((bool,), False),
    "replace_sampler_ddp": ((bool,), True),
    "reload_dataloaders_every_epoch": ((bool,), False),
    "truncated_bptt_steps": ((int,), None),
    "log_gpu_memory": ((str,), None),
    "auto_select_gpus": ((bool,), False),
    "gradient_clip": ((float,), None),
    "max_nb_epochs": ((int,), None),
    "min_nb_epochs": ((int,), None),
    "nb_sanity_val_steps": ((int,), None),
    "nb_gpu_nodes": ((int,), None),
    "stochastic_weight_avg": ((bool,), False),
    "multiple_trainloader_mode": ((str,), "max_size_cycle"),
    "move_metrics_to_cpu": ((bool,), False),
    "flush_logs_every_n_steps": ((int,), None),
    "prepare_data_per_node": ((bool,), True),
    "automatic_optimization": ((bool,), None),
    "enable_pl_optimizer": ((bool,), None),
    "ipus": ((int,), None),
}
# Today's flags whose types their annotations do not tell.
_TYPES: dict[str, tuple[type, ...]] = {
    "logger": (bool,),
    "devices": (int, str),
    "precision": (int, str),
    "val_check_interval": (int, float, str),
    "profiler": (bool, str),
}
# What does nothing here, and why: refused, unless it asks for what is done anyway.
_WITHOUT_EFFECT = {
    "log_save_interval": "loggers are flushed whenever something is logged",
    "flush_logs_every_n_steps": "loggers are flushed whenever something is logged",
    "amp_level": "there is only torch's own mixed precision, which has no levels: use precision=16",
    "amp_backend": "there is only torch's own mixed precision: use precision=16",
    "auto_select_gpus": "choose them by CUDA_VISIBLE_DEVICES",
    "log_gpu_memory": "add the callback DeviceStatsMonitor",
    "print_nan_grads": "use detect_anomaly=True, or terminate_on_nan=True",
    "truncated_bptt_steps": "split the batch in training_step, with self.automatic_optimization = False in __init__",
    "multiple_trainloader_mode": "pass CombinedLoader(loaders, mode) to fit",
    "move_metrics_to_cpu": "values are fetched when they are read",
    "prepare_data_per_node": "prepare_data() is called on every process, first on one of each machine",
    "automatic_optimization": "set self.automatic_optimization in the module's __init__",
    "enable_pl_optimizer": "self.optimizers(use_pl_optimizer=False) gives those of torch",
    "ipus": "there is no torch for them any more",
}
_NEVER_DONE = {"dp", "ddp2", "horovod", "ddp_spawn", "ddp_sharded", "deepspeed"}


# Whole numbers, and the least that they may be; None is the default of some.
_LEAST = {
    "max_epochs": -1,
    "min_epochs": 0,
    "max_steps": -1,
    "min_steps": 0,
    "num_nodes": 1,
    "accumulate_grad_batches": 1,
    "check_val_every_n_epoch": 1,
    "num_sanity_val_steps": -1,
    "log_every_n_steps": 0,
    "reload_dataloaders_every_n_epochs": 0,
}
_MEANINGS_OF_MINUS_1 = {"max_epochs": "no limit", "max_steps": "no limit", "num_sanity_val_steps": "all"}
# What a Trainer for measurements does without, and may not be told to have.
_NOT_BAREBONES = (
    "logger",
    "enable_checkpointing",
    "enable_progress_bar",
    "enable_model_summary",
    "num_sanity_val_steps",
    "fast_dev_run",
    "detect_anomaly",
    "profiler",
    "log_every_n_steps",
)


def check(flags: Mapping[str, Any]) -> None:
    """Refuse values of today's flags that mean nothing, and flags that contradict each other.

    Raises:
        ValueError: there is one.

    Example:
        >>> check({"max_epochs": 3, "barebones": False})
        >>> check({"max_epochs": "3"})
        Traceback (most recent call last):
            ...
        ValueError: Trainer(max_epochs='3'): it is a whole number, -1 (no limit) or more, but got text: use type=int.
    """
    for name, least in _LEAST.items():
        value = flags.get(name)
        if value is None or (isinstance(value, int) and not isinstance(value, bool) and value >= least):
            continue
        meaning = f" ({_MEANINGS_OF_MINUS_1[name]})" if least == -1 else ""
        text = ", but got text: use type=int" if isinstance(value, str) else ""
        raise ValueError(f"Trainer({name}={value!r}): it is a whole number, {least}{meaning} or more{text}.")
    clip = flags.get("gradient_clip_val")
    if clip is not None and (isinstance(clip, bool) or not isinstance(clip, (int, float))):
        raise ValueError(f"Trainer(gradient_clip_val={clip!r}): it is a number, or None for no clipping.")
    if flags.get("deterministic") not in (None, True, False, "warn"):
        raise ValueError(f"Trainer(deterministic={flags['deterministic']!r}): it is True, False or 'warn'.")
    wanted = [name for name in _NOT_BAREBONES if flags.get(name)] if flags.get("barebones") else []
    if wanted:
        raise ValueError(
            f"Trainer(barebones=True) contradicts {wanted[0]}={flags[wanted[0]]!r}: leave one of them out."
        )


def from_old_flags(given: Mapping[str, Any], old: Mapping[str, Any]) -> dict[str, Any]:
    """The flags of today that mean what those of earlier releases did.

    Args:
        given: the flags of today, all of them.
        old: the others.

    Raises:
        TypeError: one that was never a flag.
        ValueError: one that is not supported, or contradicts another.

    Example:
        >>> from_old_flags({"max_epochs": None}, {"max_nb_epochs": 3})
        {'max_epochs': 3}
        >>> from_old_flags({}, {"overfit_pct": 0.1})
        {'limit_train_batches': 0.1, 'limit_val_batches': 0.1, 'limit_test_batches': 0.1}
    """
    flags, old = dict(given), dict(old)
    _refuse(old)
    callbacks = flags.get("callbacks")
    callbacks = [] if callbacks is None else list(callbacks) if isinstance(callbacks, (list, tuple)) else [callbacks]
    before = list(callbacks)
    for name, new in _RENAMED.items():
        if old.get(name) is not None:
            _put(flags, new, old[name], name)
    for name, news in _SHARES.items():
        share = _share(name, _OLD_FLAGS[name][1] if old.get(name) is None else old[name])
        for new in news if share != _OLD_FLAGS[name][1] else ():
            _put(flags, new, share, name)
    _take_devices(flags, old)
    _take_callbacks(flags, old, callbacks)
    if old.get("use_amp"):
        flags["precision"] = 16
    if old.get("reload_dataloaders_every_epoch"):
        flags["reload_dataloaders_every_n_epochs"] = 1
    if isinstance(flags.get("accumulate_grad_batches"), Mapping):
        from camshaft.contrib.lightning.callbacks import GradientAccumulationScheduler  # noqa: PLC0415 - they import this

        callbacks.append(GradientAccumulationScheduler(dict(flags["accumulate_grad_batches"])))
        flags["accumulate_grad_batches"] = 1
    if callbacks != before:
        flags["callbacks"] = callbacks
    return flags


def _refuse(old: Mapping[str, Any]) -> None:
    """Refuse what was never a flag, and what cannot be done."""
    known = [*_OLD_FLAGS, *_RENAMED]
    for name in old:
        if name not in known:
            from camshaft.contrib.lightning.trainer import Trainer  # noqa: PLC0415 - it imports this

            similar = difflib.get_close_matches(name, [*known, *inspect.signature(Trainer).parameters], 1)
            raise TypeError(f"Trainer() has no flag {name!r}.{f' Did you mean {similar[0]!r}?' if similar else ''}")
    for name, reason in _WITHOUT_EFFECT.items():
        if old.get(name) is not None and old[name] != _OLD_FLAGS[name][1]:
            raise ValueError(f"Trainer({name}={old[name]!r}) is not supported: {reason}.")


def _put(flags: dict[str, Any], new: str, value: Any, name: str) -> None:
    """Set a flag of today, unless it is set to something else."""
    present = flags.get(new, _TODAYS_DEFAULTS.get(new))
    if present not in (None, _TODAYS_DEFAULTS.get(new), value):
        raise ValueError(f"Trainer({name}={value!r}) contradicts {new}={present!r}: leave one of them out.")
    flags[new] = value


def _share(name: str, value: Any) -> float:
    try:
        share = float(value)
    except (TypeError, ValueError):
        share = -1.0
    if not 0 <= share <= 1:
        raise ValueError(f"Trainer({name}={value!r}): it is a share of the data, from 0 to 1.")
    return share


def _take_devices(flags: dict[str, Any], old: Mapping[str, Any]) -> None:
    gpus = old.get("gpus")
    tpus = old.get("tpu_cores") or old.get("num_tpu_cores")
    processes = int(old.get("num_processes") or 1)
    ids = gpu_ids(gpus)
    if ids:
        _put_devices(flags, ("gpu", "cuda", "mps"), ids, f"gpus={gpus!r}")
    if tpus:
        _put_devices(flags, ("tpu", "xla"), tpus, f"tpu_cores={tpus!r}")
    if processes > 1:
        _put_devices(flags, ("cpu",), processes, f"num_processes={processes}")
        flags["strategy"] = "ddp" if flags.get("strategy", "auto") == "auto" else flags["strategy"]
    if "gpus" in old and not ids and not tpus:
        if gpus is not None and flags.get("accelerator", "auto") in ("gpu", "cuda"):
            raise ValueError(f"Trainer(gpus={gpus!r}) contradicts accelerator={flags['accelerator']!r}.")
        if flags.get("accelerator", "auto") == "auto":
            flags["accelerator"] = "cpu"  # where no GPU was asked for, none was used
    _take_backend(flags, old.get("distributed_backend"), processes)


def _put_devices(flags: dict[str, Any], kinds: tuple[str, ...], devices: Any, asked: str) -> None:
    for name, fits in (
        ("accelerator", flags.get("accelerator", "auto") in ("auto", *kinds)),
        ("devices", flags.get("devices", "auto") in ("auto", None)),
    ):
        if not fits:
            raise ValueError(f"Trainer({asked}) contradicts {name}={flags[name]!r}: leave one of them out.")
    flags["accelerator"] = kinds[0] if flags.get("accelerator", "auto") == "auto" else flags["accelerator"]
    flags["devices"] = devices


def _take_backend(flags: dict[str, Any], backend: Any, processes: int) -> None:
    if backend is None:
        return
    devices = number_of_devices(flags.get("devices", "auto"))
    is_alone = processes == 1 and devices <= 1
    if backend in ("dp", "ddp2") and is_alone:
        return  # on one device they were nothing
    if backend not in ("ddp", "ddp_cpu"):
        known = "it is not done here" if backend in _NEVER_DONE else "it is not known"
        raise ValueError(
            f"Trainer(distributed_backend={backend!r}) is not supported: {known}. Use 'ddp', or 'ddp_cpu'."
        )
    if flags.get("strategy", "auto") not in ("auto", "ddp"):
        raise ValueError(f"Trainer(distributed_backend={backend!r}) contradicts strategy={flags['strategy']!r}.")
    flags["strategy"] = "ddp"
    if backend == "ddp_cpu":
        if flags.get("accelerator", "auto") not in ("auto", "cpu"):
            raise ValueError("Trainer(distributed_backend='ddp_cpu') computes on the CPU: leave gpus out.")
        flags["accelerator"] = "cpu"
    if is_alone and int(flags.get("num_nodes", 1)) == 1 and int(os.environ.get("WORLD_SIZE", "1")) == 1:
        more = "gpus=2 or more" if backend == "ddp" else "num_processes=2 or more"
        warnings.warn(f"Trainer(distributed_backend={backend!r}) runs one process: give {more}.", stacklevel=6)


def _take_callbacks(flags: dict[str, Any], old: Mapping[str, Any], callbacks: list[Any]) -> None:
    from camshaft.contrib.lightning import callbacks as kinds  # noqa: PLC0415 - they import this

    _take_checkpoints(flags, old, callbacks)
    _take_appearance(flags, old, callbacks)
    stopping = old.get("early_stop_callback", False)
    if stopping is None or stopping is True:
        callbacks.append(kinds.EarlyStopping(monitor="val_loss", patience=3, strict=stopping is not None))
    elif stopping:
        callbacks.append(stopping)
    norm = old.get("track_grad_norm", -1)
    if norm not in (-1, "-1", None):
        callbacks.append(_track_gradient_norm(norm))
    if old.get("terminate_on_nan"):
        from camshaft.handlers.terminate_on_nan import TerminateOnNaN  # noqa: PLC0415 - rarely wanted

        callbacks.append(TerminateOnNaN())
    if old.get("stochastic_weight_avg"):
        callbacks.append(kinds.StochasticWeightAveraging(swa_lrs=1e-2))


def _take_appearance(flags: dict[str, Any], old: Mapping[str, Any], callbacks: list[Any]) -> None:
    from camshaft.contrib.lightning import callbacks as kinds  # noqa: PLC0415 - they import this

    summary = old.get("weights_summary", "top")
    if summary is None:
        flags["enable_model_summary"] = False
    elif summary == "full":
        callbacks.append(kinds.ModelSummary(max_depth=-1))
    elif summary != "top":
        raise ValueError(f"Trainer(weights_summary={summary!r}): it is 'top', 'full' or None.")
    rate, position = int(old.get("progress_bar_refresh_rate", 1)), int(old.get("process_position", 0))
    if old.get("show_progress_bar") is False or rate == 0:
        flags["enable_progress_bar"] = False
    elif (rate, position) != (1, 0):
        callbacks.append(kinds.TQDMProgressBar(refresh_rate=rate, process_position=position))


def _take_checkpoints(flags: dict[str, Any], old: Mapping[str, Any], callbacks: list[Any]) -> None:
    from camshaft.contrib.lightning import callbacks as kinds  # noqa: PLC0415 - they import this

    checkpoint, path = old.get("checkpoint_callback", True), old.get("weights_save_path")
    if checkpoint in (False, None):
        flags["enable_checkpointing"] = False
    elif checkpoint is not True:
        callbacks.append(checkpoint)
    if path is None or checkpoint in (False, None):
        return
    saving = [one for one in callbacks if isinstance(one, kinds.ModelCheckpoint)]
    if any(one.dirpath is not None for one in saving):
        raise ValueError(f"Trainer(weights_save_path={path!r}) contradicts the directory of its ModelCheckpoint.")
    if not saving:
        saving = [kinds.ModelCheckpoint(filename="{epoch}-{step}", monitor="val_loss")]
        saving[0]._monitors_if_there = True
        callbacks += saving
    for one in saving:
        one.dirpath = str(Path(path).absolute() / "checkpoints")


def _track_gradient_norm(norm_type: Any) -> Any:
    from camshaft.contrib.lightning.callbacks import Callback  # noqa: PLC0415 - they import this
    from camshaft.contrib.lightning.utilities.grads import grad_norm  # noqa: PLC0415

    class TrackGradientNorm(Callback):
        """Logs the norm of the gradients of each parameter, and of all of them."""

        def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
            pl_module.log_dict(grad_norm(pl_module, float(norm_type)))

    return TrackGradientNorm()


def seconds_of(span: str | timedelta | Mapping[str, float]) -> float:
    """A span of time in seconds.

    Args:
        span: ``"DD:HH:MM:SS"``, a ``timedelta``, or its arguments.

    Raises:
        ValueError: text of another form.

    Example:
        >>> seconds_of("00:01:30:00"), seconds_of({"minutes": 2})
        (5400.0, 120.0)
    """
    if isinstance(span, str):
        parts = span.split(":")
        if len(parts) != 4 or not all(part.isdigit() for part in parts):
            raise ValueError(f"A span of time is written DD:HH:MM:SS, but got {span!r}.")
        days, hours, minutes, seconds = map(int, parts)
        span = timedelta(days=days, hours=hours, minutes=minutes, seconds=seconds)
    return (span if isinstance(span, timedelta) else timedelta(**span)).total_seconds()


def arguments_and_types(trainer: type) -> list[tuple[str, tuple[type, ...], Any]]:
    """The name, types and default of each flag.

    Example:
        >>> from camshaft.contrib.lightning import Trainer
        >>> [found for found in arguments_and_types(Trainer) if found[0] in ("max_epochs", "gpus")]
        [('max_epochs', (<class 'int'>,), None), ('gpus', (<class 'int'>, <class 'str'>, <class 'list'>), None)]
    """
    found: list[tuple[str, tuple[type, ...], Any]] = []
    for name, parameter in inspect.signature(trainer.__init__).parameters.items():  # type: ignore[misc]
        if name == "self" or parameter.kind is parameter.VAR_KEYWORD:
            continue
        words = str(parameter.annotation).replace("|", " ").split()
        kinds = tuple(kind for kind in (bool, int, float, str) if kind.__name__ in words)
        found.append((name, _TYPES.get(name, kinds or (str,)), parameter.default))
    own = {name for name, _, _ in found}  # a subclass may take some as its own
    return found + [(name, kinds, default) for name, (kinds, default) in _OLD_FLAGS.items() if name not in own]


def add_arguments(trainer: type, parent: argparse.ArgumentParser, **kwargs: Any) -> argparse.ArgumentParser:
    """A parser with an option for each flag, besides those of ``parent``.

    Args:
        trainer: the class.
        parent: a parser.
        kwargs: for ``argparse.ArgumentParser``.
    """
    parser = argparse.ArgumentParser(**{"parents": [parent], "add_help": False, **kwargs})
    own = {action.dest for action in parent._actions}
    for name, kinds, default in arguments_and_types(trainer):
        if name in own or name in _NOT_ON_A_COMMAND_LINE:
            continue
        # A flag that is True or False may stand alone: `--fast_dev_run`.
        alone: dict[str, Any] = {"nargs": "?", "const": True} if bool in kinds else {}
        words = " or ".join(kind.__name__ for kind in kinds)
        parser.add_argument(f"--{name}", dest=name, default=default, type=_reader(kinds), help=words, **alone)
    return parser


def chosen_arguments(trainer: type, args: Any) -> dict[str, Any]:
    """The flags among parsed arguments that are not as they are anyway.

    Args:
        trainer: the class.
        args: a namespace, or a parser, which then parses the command line.
    """
    if isinstance(args, argparse.ArgumentParser):
        args = args.parse_known_args()[0]
    values = vars(args)
    chosen = {}
    for name, _, default in arguments_and_types(trainer):
        if name in values and values[name] is not None and values[name] != default:
            chosen[name] = values[name]
    return chosen


# Objects, which cannot be written there.
_NOT_ON_A_COMMAND_LINE = {"callbacks", "plugins", "model_registry"}


def _reader(kinds: tuple[type, ...]) -> Callable[[str], Any]:
    """What turns the text of an option into a value: the first kind that it fits."""

    def read(text: str) -> Any:
        if text in ("None", "null"):
            return None
        if bool in kinds and text.lower() in ("true", "false"):
            return text.lower() == "true"
        if kinds == (bool,) and text in ("0", "1"):
            return text == "1"
        for kind, takes in ((int, {int, float}), (float, {float})):
            if takes & set(kinds):
                try:
                    return kind(text)
                except ValueError:
                    continue
        if str in kinds:
            return text
        raise argparse.ArgumentTypeError(f"{text!r} is no {' or '.join(kind.__name__ for kind in kinds)}")

    return read
