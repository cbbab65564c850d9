"""Warnings that programs for Lightning ask for by name."""

from __future__ import annotations

import warnings

from camshaft.contrib.lightning.utilities.rank_zero import WarningCache

__all__ = ["PossibleUserWarning", "WarningCache", "disable_possible_user_warnings"]


class PossibleUserWarning(UserWarning):
    """What is said only because it might be a mistake."""


def disable_possible_user_warnings(module: str = "") -> None:
    """Say nothing that only might be a mistake.

    Args:
        module: only of this module; of all unless given.
    """
    warnings.simplefilter("ignore", PossibleUserWarning) if not module else warnings.filterwarnings(
        "ignore", category=PossibleUserWarning, module=module
    )
