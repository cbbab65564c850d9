"""What programs import from `lightning.pytorch.utilities`; the names load when they are first used."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from camshaft.lazy import lazy_names

if TYPE_CHECKING:
    from camshaft.contrib.lightning.combined_loader import CombinedLoader
    from camshaft.contrib.lightning.utilities.apply_func import move_data_to_device
    from camshaft.contrib.lightning.utilities.data import suggested_max_num_workers
    from camshaft.contrib.lightning.utilities.enums import GradClipAlgorithmType, LightningEnum
    from camshaft.contrib.lightning.utilities.flops import measure_flops
    from camshaft.contrib.lightning.utilities.grads import grad_norm
    from camshaft.contrib.lightning.utilities.parameter_tying import find_shared_parameters, set_shared_parameters
    from camshaft.contrib.lightning.utilities.parsing import AttributeDict, is_picklable
    from camshaft.contrib.lightning.utilities.rank_zero import (
        rank_zero_debug,
        rank_zero_deprecation,
        rank_zero_info,
        rank_zero_only,
        rank_zero_warn,
    )
    from camshaft.contrib.lightning.utilities.warnings import disable_possible_user_warnings

__all__ = [
    "AttributeDict",
    "CombinedLoader",
    "GradClipAlgorithmType",
    "LightningEnum",
    "disable_possible_user_warnings",
    "find_shared_parameters",
    "grad_norm",
    "is_picklable",
    "measure_flops",
    "move_data_to_device",
    "rank_zero_debug",
    "rank_zero_deprecation",
    "rank_zero_info",
    "rank_zero_only",
    "rank_zero_warn",
    "set_shared_parameters",
    "suggested_max_num_workers",
]

_modules = {
    "AttributeDict": "parsing",
    "CombinedLoader": "combined_loader",
    "GradClipAlgorithmType": "enums",
    "LightningEnum": "enums",
    "disable_possible_user_warnings": "warnings",
    "find_shared_parameters": "parameter_tying",
    "grad_norm": "grads",
    "is_picklable": "parsing",
    "measure_flops": "flops",
    "move_data_to_device": "apply_func",
    "rank_zero_debug": "rank_zero",
    "rank_zero_deprecation": "rank_zero",
    "rank_zero_info": "rank_zero",
    "rank_zero_only": "rank_zero",
    "rank_zero_warn": "rank_zero",
    "set_shared_parameters": "parameter_tying",
    "suggested_max_num_workers": "data",
}
# What programs reach as an attribute: `pl.utilities.seed.seed_everything`.
_submodules = {
    "apply_func",
    "cli",
    "combined_loader",
    "data",
    "debugging",
    "distributed",
    "enums",
    "exceptions",
    "flops",
    "grads",
    "imports",
    "memory",
    "model_helpers",
    "model_summary",
    "parameter_tying",
    "parsing",
    "rank_zero",
    "seed",
    "types",
    "warnings",
}

if not TYPE_CHECKING:
    _load, __dir__ = lazy_names(__name__, _modules)

    def __getattr__(name: str) -> Any:
        return import_module(f"{__name__}.{name}") if name in _submodules else _load(name)
