"""Names of hyperparameters: a dictionary with attributes, and finding one in a module or its data module."""

from __future__ import annotations

import pickle
from typing import Any

__all__ = [
    "AttributeDict",
    "holders_of",
    "is_picklable",
    "lightning_getattr",
    "lightning_hasattr",
    "lightning_setattr",
    "set_in_all",
]


class AttributeDict(dict[str, Any]):
    """A dictionary whose entries are also attributes.

    Example:
        >>> settings = AttributeDict(lr=0.1)
        >>> settings.batch_size = 32
        >>> settings["batch_size"], settings.lr
        (32, 0.1)
        >>> settings
        "batch_size": 32
        "lr":         0.1
    """

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(
                f"There is no hyperparameter {name!r}; there are: {', '.join(map(str, self)) or 'none'}.",
                name=name,
                obj=self,
            ) from None

    def __setattr__(self, name: str, value: Any) -> None:
        self[name] = value

    def __delattr__(self, name: str) -> None:
        if name not in self:
            raise AttributeError(f"There is no hyperparameter {name!r}.", name=name, obj=self)
        del self[name]

    def __dir__(self) -> list[str]:
        return [*super().__dir__(), *map(str, self)]

    def __repr__(self) -> str:
        labels = {name: f'"{name}":' for name in sorted(self, key=str)}
        width = max(map(len, labels.values()), default=0)
        return "\n".join(f"{label:<{width}} {self[name]}" for name, label in labels.items())

    def copy(self) -> AttributeDict:
        """A shallow copy of the same kind."""
        return AttributeDict(self)


def is_picklable(obj: object) -> bool:
    """Whether an object can be pickled.

    Example:
        >>> is_picklable(1), is_picklable(lambda: 1)
        (True, False)
    """
    try:
        pickle.dumps(obj)
    except (pickle.PickleError, AttributeError, RuntimeError, TypeError):
        return False
    return True


def lightning_hasattr(model: Any, attribute: str) -> bool:
    """Whether a module, its hyperparameters, its data module or that one's hyperparameters have an attribute."""
    return bool(holders_of(attribute, model, _datamodule_of(model)))


def lightning_getattr(model: Any, attribute: str) -> Any:
    """The value of an attribute of a module, its hyperparameters, its data module or that one's hyperparameters.

    Of several the last one counts.

    Raises:
        AttributeError: none has it.
    """
    holder = _holders_or_error(model, attribute)[-1]
    return holder[attribute] if isinstance(holder, dict) else getattr(holder, attribute)


def lightning_setattr(model: Any, attribute: str, value: Any) -> None:
    """Set an attribute wherever it is: in a module, its hyperparameters, its data module, that one's hyperparameters.

    Raises:
        AttributeError: none has it.
    """
    set_in_all(_holders_or_error(model, attribute), attribute, value)


def holders_of(attribute: str, *owners: Any) -> list[Any]:
    """Of objects and their hyperparameters, those that have an attribute.

    Args:
        attribute: the name.
        owners: modules and data modules; None has nothing.

    Example:
        >>> from argparse import Namespace
        >>> holders_of("lr", Namespace(lr=1, hparams={"lr": 2}), None)
        [Namespace(lr=1, hparams={'lr': 2}), {'lr': 2}]
    """
    holders: list[Any] = []
    for owner in owners:
        hparams = getattr(owner, "hparams", None)
        if hasattr(owner, attribute):
            holders.append(owner)
        if hparams is not None and attribute in hparams:  # argparse's Namespace understands `in`
            holders.append(hparams)
    return holders


def set_in_all(holders: list[Any], attribute: str, value: Any) -> None:
    """Set an attribute of objects, or an entry of dictionaries."""
    for holder in holders:
        if isinstance(holder, dict):
            holder[attribute] = value
        else:
            setattr(holder, attribute, value)


def _datamodule_of(model: Any) -> Any:
    return getattr(getattr(model, "_trainer", None), "datamodule", None)


def _holders_or_error(model: Any, attribute: str) -> list[Any]:
    holders = holders_of(attribute, model, _datamodule_of(model))
    if not holders:
        raise AttributeError(
            f"Neither the {type(model).__name__} nor its hyperparameters nor the data module have {attribute!r}: "
            f"assign self.{attribute}, or name it in __init__ and call self.save_hyperparameters()."
        )
    return holders
