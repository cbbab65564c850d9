"""The arguments with which a module or a data module was made: kept on it, logged, and saved in its checkpoints."""

from __future__ import annotations

import copy
import inspect
import sys
from argparse import Namespace
from collections import OrderedDict
from collections.abc import Iterator, MutableMapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import fields, is_dataclass
from types import FrameType
from typing import Any, ClassVar

from torch import nn

from camshaft.contrib.lightning.harmless import is_harmless
from camshaft.contrib.lightning.loading import load_module
from camshaft.contrib.lightning.scripting import OwnProperties
from camshaft.contrib.lightning.utilities.parsing import AttributeDict
from camshaft.contrib.lightning.utilities.rank_zero import rank_zero_warn

__all__ = ["HyperparametersMixin", "given_hyperparameters", "load_module"]

# What the command line adds to hyperparameters, to make the object again.
_OF_COMMAND_LINE = ("_class_path", "_instantiator")
# What the command line has built a class from: the class, and its configuration.
_given: ContextVar[tuple[type, dict[str, Any]] | None] = ContextVar("_given", default=None)


class HyperparametersMixin:
    """Gives a class ``save_hyperparameters`` and ``hparams``.

    Attributes:
        CHECKPOINT_HYPER_PARAMS_KEY: under which a checkpoint keeps the hyperparameters.
        CHECKPOINT_HYPER_PARAMS_NAME: under which it keeps the name of the one argument that held them all.
        CHECKPOINT_HYPER_PARAMS_TYPE: under which it keeps the type of that argument.

    Example:
        >>> class Network(HyperparametersMixin):
        ...     def __init__(self, width: int, depth: int = 2) -> None:
        ...         super().__init__()
        ...         self.save_hyperparameters()
        >>> Network(8).hparams
        "depth": 2
        "width": 8

        As it was done in 2020, with the arguments of the command line:

        >>> class Network(HyperparametersMixin):
        ...     def __init__(self, hparams: Namespace) -> None:
        ...         super().__init__()
        ...         self.hparams = hparams
        >>> Network(Namespace(width=8)).hparams.width
        8
    """

    CHECKPOINT_HYPER_PARAMS_KEY: ClassVar[str] = "hyper_parameters"
    CHECKPOINT_HYPER_PARAMS_NAME: ClassVar[str] = "hparams_name"
    CHECKPOINT_HYPER_PARAMS_TYPE: ClassVar[str] = "hparams_type"

    __jit_ignored_attributes__ = __jit_unused_properties__ = OwnProperties()

    # Defaults of the class, so that they hold before and without `super().__init__()`.
    _log_hyperparams: bool = False
    _hparams_name: str | None = None

    def save_hyperparameters(
        self,
        *args: Any,
        ignore: Sequence[str] | str | None = None,
        frame: FrameType | None = None,
        logger: bool = True,
    ) -> None:
        """Keep the arguments of ``__init__``; it is called there, also in that of a base class.

        Args:
            args: names of the arguments to keep (all of them, if none is named), or instead one dictionary,
                ``argparse.Namespace`` or OmegaConf container that holds the hyperparameters.
            ignore: names of arguments not to keep.
            frame: the frame of the ``__init__`` whose arguments are meant; the caller's unless given.
            logger: whether the trainer hands them to its loggers.

        Raises:
            RuntimeError: outside of ``__init__``, where there are no arguments to find.
            ValueError: a name that is not one of the arguments, or something that holds no hyperparameters.
        """
        self._log_hyperparams = logger
        ignored = {ignore} if isinstance(ignore, str) else set(ignore or ())
        containers = [arg for arg in args if not isinstance(arg, str)]
        if containers and len(args) > 1:
            raise ValueError(
                "save_hyperparameters takes either names of arguments or one object that holds the hyperparameters, "
                f"but got {args!r}."
            )
        if containers and not isinstance(containers[0], Namespace) and not containers[0]:
            return  # an empty dictionary
        given = _given.get()
        arguments = (
            dict(given[1])
            if given is not None and frame is None and (isinstance(self, given[0]) or issubclass(given[0], type(self)))
            else _arguments_of(self, frame or sys._getframe(1), needed=not containers)
        )
        arguments = {name: value for name, value in arguments.items() if name not in ignored}

        if containers:
            hparams = containers[0]
            same = [name for name, value in arguments.items() if value is hparams]
            self._hparams_name = same[0] if same else None
        elif args:
            missing = [name for name in args if name not in arguments]
            if missing:
                raise ValueError(
                    f"save_hyperparameters was asked for {', '.join(map(repr, missing))}, but {type(self).__name__} "
                    f"was made with {', '.join(arguments) or 'no arguments'}."
                )
            hparams = {name: arguments[name] for name in args}
            self._hparams_name = "kwargs"
        else:
            hparams = arguments
            self._hparams_name = "kwargs" if arguments else None

        self._merge_hparams(hparams)
        for name in ignored:
            self.hparams.pop(name, None)
        for name, value in self.hparams.items():
            if isinstance(value, nn.Module):
                rank_zero_warn(
                    f"The hyperparameter {name!r} is a module, whose weights the checkpoint keeps anyway; as a "
                    f"hyperparameter it is left out there. Say so: save_hyperparameters(ignore=[{name!r}]).",
                )
        self._hparams_initial = _copied(self.hparams)

    @property
    def hparams(self) -> Any:
        """The hyperparameters: an ``AttributeDict``, or what was assigned here; yours to change."""
        if "_hparams" not in self.__dict__:
            self.__dict__["_hparams"] = AttributeDict()
        return self.__dict__["_hparams"]

    @hparams.setter
    def hparams(self, hparams: Namespace | MutableMapping[str, Any]) -> None:
        self.__dict__["_hparams"] = hparams
        _as_mapping(hparams)  # or refuse
        self._hparams_initial = _copied(_as_mapping(hparams))
        self._hparams_name = "hparams"
        self._log_hyperparams = True

    @property
    def hparams_initial(self) -> AttributeDict:
        """A copy of the hyperparameters as they were when they were saved, for loggers."""
        initial = self.__dict__.get("_hparams_initial", {})
        return _copied({name: value for name, value in initial.items() if name not in _OF_COMMAND_LINE})

    def remove_ignored_hparams(self, ignore_list: list[str]) -> None:
        """Forget hyperparameters, such as those that a base class has saved."""
        for name in ignore_list:
            self.hparams.pop(name, None)

    def hyperparameters_for_checkpoint(self) -> dict[str, Any]:
        """The entries of a checkpoint that hold the hyperparameters; empty where there are none.

        A value that cannot be pickled, or cannot be read again without running code from the file, is left out with a
        warning; ``load_from_checkpoint`` then asks for it.
        """
        hparams = self.hparams
        values = dict(_as_mapping(hparams))
        if not values:
            return {}
        warned: set[str] = self.__dict__.setdefault("_hparams_left_out", set())
        for name, value in list(values.items()):
            if is_harmless(value):
                values[name] = _without_attributes(value)
                continue
            del values[name]
            if name not in warned and not isinstance(value, nn.Module):  # of modules save_hyperparameters has warned
                warned.add(name)
                rank_zero_warn(
                    f"The hyperparameter {name!r} ({type(value).__name__}) is left out of the checkpoint, because it "
                    "cannot be written, or not be read again without running code from the file. Either say "
                    f"save_hyperparameters(ignore=[{name!r}]) and load_from_checkpoint(..., {name}=...), or, for a "
                    "class that you trust, torch.serialization.add_safe_globals([...]).",
                )
        entries: dict[str, Any] = {
            self.CHECKPOINT_HYPER_PARAMS_NAME: self._hparams_name,
            self.CHECKPOINT_HYPER_PARAMS_KEY: values,
        }
        if isinstance(hparams, Namespace):
            entries[self.CHECKPOINT_HYPER_PARAMS_TYPE] = "namespace"
        return entries

    def _merge_hparams(self, hparams: Any) -> None:
        values = _as_mapping(hparams)
        if isinstance(hparams, dict | Namespace) and isinstance(self.hparams, dict):
            self.hparams.update(values)
        else:  # an OmegaConf container, which resolves its entries itself
            self.__dict__["_hparams"] = hparams


@contextmanager
def given_hyperparameters(cls: type, hparams: dict[str, Any]) -> Iterator[None]:
    """Within it, ``save_hyperparameters`` of an object of this class keeps these instead of the arguments.

    Of an object of a base class, too: that is what a function makes for which jsonargparse has made a class.

    The command line makes modules from a configuration, which can make them again, unlike the objects that their
    ``__init__`` received.
    """
    token = _given.set((cls, hparams))
    try:
        yield
    finally:
        _given.reset(token)


def _as_mapping(hparams: Any) -> MutableMapping[str, Any]:
    if isinstance(hparams, Namespace):
        return vars(hparams)
    if isinstance(hparams, MutableMapping):
        return hparams
    raise ValueError(
        "Hyperparameters are a dictionary, an argparse.Namespace or an OmegaConf container, but got "
        f"{hparams!r} ({type(hparams).__name__})."
    )


def _arguments_of(owner: object, frame: FrameType, *, needed: bool) -> dict[str, Any]:
    """The arguments of the ``__init__`` methods of an object that are running now, the most derived one's first.

    Frames are told by the object that they work on, so that decorated and old-style ``__init__`` methods are found too.
    """
    if is_dataclass(owner):
        return {field.name: getattr(owner, field.name) for field in fields(owner) if field.init}
    found: list[dict[str, Any]] = []
    outer: FrameType | None = frame
    while outer is not None:
        code = outer.f_code
        if code.co_name == "__init__" and code.co_argcount and outer.f_locals[code.co_varnames[0]] is owner:
            info = inspect.getargvalues(outer)
            arguments = {name: info.locals[name] for name in info.args[1:]}
            found.append(arguments | (info.locals[info.keywords] if info.keywords else {}))
        outer = outer.f_back
    if needed and not found:
        raise RuntimeError(
            f"save_hyperparameters() finds the arguments of {type(owner).__name__} only while its __init__ runs: "
            "call it there, or give it a dictionary."
        )
    merged: dict[str, Any] = {}
    for arguments in found:  # from the innermost to the outermost, which is the most derived class
        merged.update(arguments)
    return merged


def _copied(hparams: MutableMapping[str, Any] | dict[str, Any]) -> AttributeDict:
    """A deep copy, but for modules, which are large, and what cannot be copied."""
    copies = AttributeDict()
    for name, value in hparams.items():
        try:
            copies[name] = value if isinstance(value, nn.Module) else copy.deepcopy(value)
        except Exception:  # noqa: BLE001 - whatever a `__deepcopy__` raises: a lock, a generator, a client
            copies[name] = value
    return copies


def _without_attributes(value: Any) -> Any:
    """The value with ordered dictionaries in the place of those with attributes, which torch's safe reader refuses."""
    if type(value) in {list, tuple}:
        return type(value)(map(_without_attributes, value))
    if type(value) is dict or type(value) is AttributeDict:
        plain = {name: _without_attributes(part) for name, part in value.items()}
        return OrderedDict(plain) if isinstance(value, AttributeDict) else plain
    return value
