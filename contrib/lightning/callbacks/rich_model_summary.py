"""Shows what the model consists of when a fit begins, in colours."""

from __future__ import annotations

import importlib.util
from typing import Any

from camshaft.contrib.lightning.callbacks.model_summary import ModelSummary
from camshaft.contrib.lightning.model_summary import get_formatted_model_size, get_human_readable_count

__all__ = ["RichModelSummary"]


class RichModelSummary(ModelSummary):
    """Shows a table of the layers, through rich.

    Args:
        max_depth: how deep layers are within others; -1 for all of them, 0 for no table.
        summarize_kwargs: ``header_style``, ``"bold magenta"`` unless given.

    Raises:
        ModuleNotFoundError: rich is not installed.
        ValueError: ``max_depth`` is less than -1.

    Example:
        >>> RichModelSummary(max_depth=2).state_key
        'RichModelSummary'
    """

    def __init__(self, max_depth: int = 1, **summarize_kwargs: Any) -> None:
        if importlib.util.find_spec("rich") is None:
            raise ModuleNotFoundError(
                "RichModelSummary needs the package rich, which is not installed: pip install rich", name="rich"
            )
        super().__init__(max_depth, **summarize_kwargs)

    @staticmethod
    def summarize(
        summary_data: list[tuple[str, list[str]]],
        total_parameters: int,
        trainable_parameters: int,
        model_size: float,
        total_training_modes: dict[str, int],
        total_flops: int,
        **summarize_kwargs: Any,
    ) -> None:
        from rich import get_console  # noqa: PLC0415 - only who shows it pays
        from rich.table import Table  # noqa: PLC0415

        table = Table(header_style=summarize_kwargs.get("header_style", "bold magenta"))
        for title, _ in summary_data:
            is_text = title in {" ", "Name", "Type", "Mode"}
            table.add_column(title, justify="left" if is_text else "right", no_wrap=title == "Name")
        for row in zip(*(column for _, column in summary_data), strict=True):
            table.add_row(*row)
        sums = {
            "Trainable params": get_human_readable_count(trainable_parameters),
            "Non-trainable params": get_human_readable_count(total_parameters - trainable_parameters),
            "Total params": get_human_readable_count(total_parameters),
            "Total estimated model params size (MB)": get_formatted_model_size(model_size),
            "Modules in train mode": str(total_training_modes["train"]),
            "Modules in eval mode": str(total_training_modes["eval"]),
            "Total FLOPs": get_human_readable_count(total_flops),
        }
        console = get_console()
        console.print(table)
        for what, number in sums.items():
            console.print(f"[bold]{what}[/]: {number}")
