"""Makes a module or a data module from a checkpoint: of ours, of Lightning's 1.x and 2.x, or of the style of 2020."""

from __future__ import annotations

import ast
import csv
import errno
import inspect
import pickle
import re
import sys
import zipfile
import zlib
from argparse import Namespace
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, TypeAlias, TypeVar, cast

import torch
from torch import nn

from camshaft.contrib.lightning.harmless import harmless_classes
from camshaft.contrib.lightning.utilities.parsing import AttributeDict
from camshaft.contrib.lightning.utilities.rank_zero import rank_zero_warn

__all__ = ["hyperparameters_of_file", "load_datamodule", "load_module", "read_checkpoint"]

T = TypeVar("T")
M = TypeVar("M", bound=nn.Module)
Where: TypeAlias = str | Path | IO[bytes]
MapLocation: TypeAlias = torch.device | str | int | Callable[[Any, str], Any] | Mapping[str, str] | None

# Where the hyperparameters stood before they stood in "hyper_parameters".
_OLD_KEYS = ("hparams", "module_arguments")
# What torch says of a file that it would have to run.
_REFUSED = re.compile(r"GLOBAL [\w.]+|Unsupported class [\w.]+|Can only [^.\n]*|Trying to call [^.\n]*")
# The command line's maker of modules, as Lightning and we write it into checkpoints.
_INSTANTIATORS = {
    f"{package}.cli.instantiate_module"
    for package in ("lightning.pytorch", "pytorch_lightning", "camshaft.contrib.lightning")
}


def load_module(
    cls: type[M],
    path: Where,
    /,
    map_location: MapLocation = None,
    hparams_file: str | Path | None = None,
    strict: bool | None = None,
    weights_only: bool | None = None,
    **kwargs: Any,
) -> M:
    """A module of class ``cls`` with the weights of a checkpoint, made with the hyperparameters that it keeps.

    Args:
        cls: the class to make.
        path: the checkpoint: a path, an address (``https://...``) or an open file.
        map_location: where the weights shall be, as for ``torch.load``; where they were, if that device is there.
        hparams_file: a ``.csv`` or ``.yaml`` file whose hyperparameters count instead of the checkpoint's.
        strict: whether the names of the weights must match exactly; ``cls.strict_loading`` unless given.
        weights_only: accepted; a file that holds more than values is never read, see ``add_safe_globals`` of torch.
        kwargs: arguments of ``__init__`` that count before the checkpoint's, or are missing there.

    Raises:
        TypeError: ``__init__`` needs arguments that neither the checkpoint nor ``kwargs`` have.
        ValueError: the file is damaged, or holds no module, or something else than values.

    Example:
        >>> import tempfile
        >>> from camshaft.contrib.lightning import LightningModule
        >>> class Network(LightningModule):
        ...     def __init__(self, width: int) -> None:
        ...         super().__init__()
        ...         self.save_hyperparameters()
        ...         self.layer = nn.Linear(1, width)
        >>> network = Network(3)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = Path(folder) / "network.ckpt"
        ...     torch.save({"state_dict": network.state_dict(), **network.hyperparameters_for_checkpoint()}, path)
        ...     load_module(Network, path).hparams
        "width": 3
    """
    hparams_file = kwargs.pop("tags_csv", None) or hparams_file  # its name in 2020
    checkpoint = read_checkpoint(path, map_location)
    if "state_dict" not in checkpoint:
        raise ValueError(
            f"{_name(path)} is no checkpoint of a LightningModule: it has no 'state_dict' but "
            f"{', '.join(map(repr, checkpoint)) or 'nothing'}."
        )
    if hparams_file is None:
        kept = [checkpoint.get(key) or {} for key in (*_OLD_KEYS, "hyper_parameters")]
        saved = {name: value for hparams in kept for name, value in hparams.items()}
    else:
        saved = hyperparameters_of_file(hparams_file)
    kind = checkpoint.get("hparams_type", "namespace" if "hparams" in checkpoint else None)
    made_with = _Saved(saved, checkpoint.get("hparams_name"), kind, _name(path))
    module = made_with.make(cls, kwargs)
    _load_weights(module, checkpoint, strict)
    device = next((value.device for value in checkpoint["state_dict"].values() if hasattr(value, "device")), None)
    if device is None:
        rank_zero_warn(f"{_name(path)} holds no weights.")
        return module
    return module.to(device)


def _load_weights(module: nn.Module, checkpoint: dict[str, Any], strict: bool | None) -> None:
    """Load a checkpoint's weights, after the hooks of the module that make ready for them."""
    default = getattr(module, "strict_loading", True)
    if strict is not None and strict != default and getattr(module, "_strict_loading", None) is not None:
        raise ValueError(
            f"load_from_checkpoint(..., strict={strict}) contradicts {type(module).__name__}.strict_loading={default}; "
            "leave one of them out."
        )
    hooks: tuple[tuple[str, tuple[Any, ...]], ...] = (("configure_model", ()), ("on_load_checkpoint", (checkpoint,)))
    for hook, arguments in hooks:
        if callable(getattr(module, hook, None)):
            getattr(module, hook)(*arguments)
    strict = default if strict is None else strict
    keys = module.load_state_dict(checkpoint["state_dict"], strict=strict)
    if not strict:
        for found, names in (
            ("in the model but not in the checkpoint", keys.missing_keys),
            ("in the checkpoint but not in the model", keys.unexpected_keys),
        ):
            if names:
                rank_zero_warn(f"Weights that are {found}: {', '.join(names)}.")


def load_datamodule(
    cls: type[T],
    path: Where,
    /,
    map_location: MapLocation = None,
    hparams_file: str | Path | None = None,
    weights_only: bool | None = None,
    **kwargs: Any,
) -> T:
    """A data module of class ``cls``, made with the hyperparameters and the state that a checkpoint keeps of it.

    Args:
        cls: the class to make.
        path: the checkpoint, as for :func:`load_module`; the others too.
        map_location: where its tensors shall be.
        hparams_file: a file whose hyperparameters count instead of the checkpoint's.
        weights_only: accepted, as there.
        kwargs: arguments of ``__init__`` that count before the checkpoint's, or are missing there.
    """
    checkpoint = read_checkpoint(path, map_location)
    saved = dict(
        checkpoint.get("datamodule_hyper_parameters") or {}
        if hparams_file is None
        else hyperparameters_of_file(hparams_file)
    )
    name, kind = checkpoint.get("datamodule_hparams_name"), checkpoint.get("datamodule_hparams_type")
    datamodule = _Saved(saved, name, kind, _name(path)).make(cls, kwargs)
    if cls.__qualname__ in checkpoint:
        cast(Any, datamodule).load_state_dict(checkpoint[cls.__qualname__])
    return datamodule


def read_checkpoint(path: Where, map_location: MapLocation = None) -> dict[str, Any]:
    """What a checkpoint holds; nothing in it is run.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is damaged, or it holds more than values.
    """
    options: dict[str, Any] = {
        "map_location": map_location if map_location is not None else _to_a_device_that_is_there,
        "weights_only": True,
    }
    _check_sums(path)
    try:
        with harmless_classes():
            if isinstance(path, str) and path.startswith(("http://", "https://")):
                checkpoint = torch.hub.load_state_dict_from_url(path, **options)
            else:
                checkpoint = torch.load(path, **options)
    except pickle.UnpicklingError as error:
        refused = _REFUSED.search(str(error))
        if refused is None:
            raise _damaged(path) from error
        raise ValueError(
            f"{_name(path)} holds more than values: reading it would run code from it ({refused[0]}). If you "
            "trust the file, allow what it holds: torch.serialization.add_safe_globals([...])."
        ) from error
    except (EOFError, RuntimeError) as error:
        raise _damaged(path) from error
    except OSError as error:  # torch looks for the end of a truncated file before its beginning
        if error.errno != errno.EINVAL:
            raise
        raise _damaged(path) from error
    if not isinstance(checkpoint, dict):
        raise ValueError(f"{_name(path)} is no checkpoint: it holds a {type(checkpoint).__name__}, not a dictionary.")
    return checkpoint


def _read_yaml(path: Path) -> Any:
    import yaml  # type: ignore[import-untyped]  # noqa: PLC0415 - comes with jsonargparse, and nothing else needs it

    class Loader(yaml.SafeLoader):  # type: ignore[misc]
        """Also knows tuples, which Lightning writes."""

    Loader.add_constructor(
        "tag:yaml.org,2002:python/tuple", lambda loader, node: tuple(loader.construct_sequence(node))
    )
    return yaml.load(path.read_text("utf-8"), Loader)


def _check_sums(path: Where) -> None:
    """Compare a file with the check sums in it, as torch does not."""
    if isinstance(path, str | Path) and zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            try:
                is_whole = archive.testzip() is None
            except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError) as error:
                raise _damaged(path) from error
        if not is_whole:
            raise _damaged(path)


def hyperparameters_of_file(path: str | Path) -> dict[str, Any]:
    """The hyperparameters in a ``.yaml``, ``.yml`` or ``.csv`` file, as loggers write them.

    Raises:
        ValueError: the file is of another kind.
    """
    path = Path(path)
    if path.suffix.lower() in {".yaml", ".yml"}:
        return dict(_read_yaml(path) or {})
    if path.suffix.lower() == ".csv":
        with path.open(newline="", encoding="utf-8") as file:
            return {row[0]: _value(row[1]) for row in list(csv.reader(file))[1:]}
    raise ValueError(f"Hyperparameters are read from .yaml, .yml and .csv files, but got {str(path)!r}.")


@dataclass(frozen=True)
class _Saved:
    """The hyperparameters of a checkpoint.

    Attributes:
        values: the hyperparameters.
        name: the one argument of ``__init__`` that held them all, if there was one.
        kind: the type of that argument.
        source: the checkpoint's name, for messages.
    """

    values: dict[str, Any]
    name: str | None
    kind: Any
    source: str

    def make(self, cls: type[T], given: dict[str, Any]) -> T:
        """An object of the class, made with what was saved and, before it, with what is given."""
        parameters = dict(list(inspect.signature(cls.__init__).parameters.items())[1:])
        takes_all = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
        named = [
            name
            for name, parameter in parameters.items()
            if parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
        ]
        arguments = self._arguments(named, given)
        instantiator, class_path = arguments.pop("_instantiator", None), arguments.get("_class_path")
        if not takes_all:
            unknown = [name for name in given if name not in named]
            if unknown and not self._holder(named):
                rank_zero_warn(
                    f"{cls.__name__}.__init__ takes no {', '.join(map(repr, unknown))}, which load_from_checkpoint "
                    "was given."
                )
            arguments = {name: value for name, value in arguments.items() if name in named}
        if instantiator is not None:
            return self._make_as_command_line(cls, instantiator, class_path, arguments)
        missing = [
            name for name in named if name not in arguments and parameters[name].default is inspect.Parameter.empty
        ]
        if missing:
            raise TypeError(
                f"{cls.__name__} needs {', '.join(map(repr, missing))}, which {self.source} does not keep. Pass "
                f"{'it' if len(missing) == 1 else 'them'}: load_from_checkpoint(..., "
                f"{', '.join(f'{name}=...' for name in missing)}); or call self.save_hyperparameters() in __init__, "
                "and the next checkpoint keeps what can be kept."
            )
        return cls(**arguments)

    def _holder(self, named: list[str]) -> str | None:
        """The argument that takes all the hyperparameters as one object."""
        if self.name in named and self.name not in self.values:
            return self.name
        is_of_2020 = self.kind is not None and "hparams" in named and "hparams" not in self.values
        return "hparams" if is_of_2020 else None

    def _arguments(self, named: list[str], given: dict[str, Any]) -> dict[str, Any]:
        values = {name: _with_attributes(value) for name, value in self.values.items()}
        holder = self._holder(named)
        if holder is None:
            return values | given
        values |= {name: value for name, value in given.items() if name != holder}
        is_namespace = self.kind is Namespace or str(self.kind).lower() == "namespace"
        return {holder: Namespace(**values) if is_namespace else AttributeDict(values)} | given

    def _make_as_command_line(self, cls: type[T], instantiator: Any, class_path: Any, arguments: dict[str, Any]) -> T:
        """An object made from the configuration that a command line has kept."""
        if instantiator not in _INSTANTIATORS:
            raise ValueError(f"{self.source} asks to be made by {instantiator!r}, which is not known and not run.")
        for path in _import_paths({"class_path": class_path, **arguments}):
            root, (module, _, name) = path.partition(".")[0], path.rpartition(".")
            if root in sys.stdlib_module_names or not isinstance(getattr(sys.modules.get(module), name, None), type):
                raise ValueError(
                    f"{self.source} asks for {path!r}, which may be no class of a model. A checkpoint imports nothing: "
                    f"import the module {module!r} before you load it, if it has that class and you trust it."
                )
        from camshaft.contrib.lightning.cli import instantiate_module  # noqa: PLC0415 - needs jsonargparse

        if class_path is not None:
            arguments["_class_path"] = class_path
        return instantiate_module(cls, arguments)


def _import_paths(config: Any) -> list[str]:
    """What making a configuration would look up by name: its classes, and functions of Python itself."""
    if isinstance(config, str):
        module, _, name = config.rpartition(".")
        is_function = module.partition(".")[0] in sys.stdlib_module_names and hasattr(sys.modules.get(module), name)
        return [config] if is_function else []
    if isinstance(config, Mapping):
        own = [config["class_path"]] if isinstance(config.get("class_path"), str) else []
        return own + [path for value in config.values() for path in _import_paths(value)]
    if isinstance(config, list | tuple):
        return [path for value in config for path in _import_paths(value)]
    return []


def _with_attributes(value: Any) -> Any:
    """The value with attributes for its nested dictionaries that had them when they were saved."""
    if type(value) is list or type(value) is tuple:
        parts = [_with_attributes(part) for part in value]
        return tuple(parts) if isinstance(value, tuple) else parts
    if type(value) is dict or type(value) is OrderedDict:
        nested = {name: _with_attributes(part) for name, part in value.items()}
        return AttributeDict(nested) if isinstance(value, OrderedDict) else nested
    return value


def _to_a_device_that_is_there(storage: Any, location: str) -> Any:
    backend = location.partition(":")[0]
    is_missing = {"cuda": not torch.cuda.is_available(), "mps": not torch.backends.mps.is_available(), "xla": True}
    if is_missing.get(backend, False):
        return storage.cpu()
    return None  # where torch would put it


def _value(text: str) -> Any:
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def _name(path: Where) -> str:
    return str(path) if isinstance(path, str | Path) else str(getattr(path, "name", "The file"))


def _damaged(path: Where) -> ValueError:
    return ValueError(f"{_name(path)} is damaged or no checkpoint: torch cannot read it. Take an older one.")
