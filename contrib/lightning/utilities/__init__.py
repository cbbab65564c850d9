"""What programs import from `lightning.pytorch.utilities`; the names load when they are first used."""

from typing import TYPE_CHECKING

from camshaft.lazy import lazy_names

if TYPE_CHECKING:
    from camshaft.contrib.lightning.utilities.parsing import AttributeDict, is_picklable
    from camshaft.contrib.lightning.utilities.rank_zero import (
        rank_zero_debug,
        rank_zero_deprecation,
        rank_zero_info,
        rank_zero_only,
        rank_zero_warn,
    )

__all__ = [
    "AttributeDict",
    "is_picklable",
    "rank_zero_debug",
    "rank_zero_deprecation",
    "rank_zero_info",
    "rank_zero_only",
    "rank_zero_warn",
]

_modules = {
    "AttributeDict": "parsing",
    "is_picklable": "parsing",
    "rank_zero_debug": "rank_zero",
    "rank_zero_deprecation": "rank_zero",
    "rank_zero_info": "rank_zero",
    "rank_zero_only": "rank_zero",
    "rank_zero_warn": "rank_zero",
}

if not TYPE_CHECKING:
    __getattr__, __dir__ = lazy_names(__name__, _modules)
