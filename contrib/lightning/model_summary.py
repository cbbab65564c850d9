"""What a model consists of: its layers with their types, parameters, shapes and operations, as a table."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from camshaft.contrib.lightning.example_input import example_input
from camshaft.contrib.lightning.utilities.rank_zero import rank_zero_warn
from camshaft.model_summary import LayerSummary, number_of_parameters, unnoticed
from camshaft.model_summary import human_readable as get_human_readable_count
from camshaft.model_summary import shape_of as parse_batch_shape

__all__ = [
    "LEFTOVER_PARAMS_NAME",
    "NOT_APPLICABLE",
    "PARAMETER_NUM_UNITS",
    "UNKNOWN_SIZE",
    "LayerSummary",
    "ModelSummary",
    "as_table",
    "get_formatted_model_size",
    "get_human_readable_count",
    "parse_batch_shape",
    "summarize",
]

PARAMETER_NUM_UNITS = [" ", "K", "M", "B", "T"]
UNKNOWN_SIZE = "?"
LEFTOVER_PARAMS_NAME = "other params"
NOT_APPLICABLE = "n/a"

_BITS = {"64": 64, "64-true": 64, "16": 16, "16-true": 16, "bf16": 16, "bf16-true": 16, "transformer-engine": 32}


class ModelSummary:
    """All layers of a model, and their sums.

    If the model has an ``example_input_array``, it is called with it once, in evaluation mode and without gradients, to
    see the shapes and to count the operations. Random generators are as before afterwards.

    Args:
        model: a module.
        max_depth: how deep layers are within others; -1 for all of them, 0 for none.

    Raises:
        ValueError: ``max_depth`` is less than -1.

    Example:
        >>> import torch
        >>> model = nn.Sequential(nn.Linear(256, 512), nn.BatchNorm1d(512))
        >>> model.example_input_array = torch.zeros(10, 256)
        >>> ModelSummary(model)
          | Name | Type        | Params | Mode  | FLOPs | In sizes  | Out sizes
        -----------------------------------------------------------------------------
        0 | 0    | Linear      | 131 K  | train | 2.6 M | [10, 256] | [10, 512]
        1 | 1    | BatchNorm1d | 1.0 K  | train | 0     | [10, 512] | [10, 512]
        -----------------------------------------------------------------------------
        132 K     Trainable params
        0         Non-trainable params
        132 K     Total params
        0.530     Total estimated model params size (MB)
        2         Modules in train mode
        0         Modules in eval mode
        2.6 M     Total Flops
    """

    def __init__(self, model: nn.Module, max_depth: int = 1) -> None:
        if not isinstance(max_depth, int) or max_depth < -1:
            raise ValueError(f"A ModelSummary's max_depth is -1 for all layers, 0 or more, but got {max_depth!r}.")
        self._model = model
        self._max_depth = max_depth
        self._flop_counter = FlopCounterMode(display=False, depth=max_depth + 1)
        self._layers = self.summarize()

    # ------------------------------------------------------------------------------------------------- layer by layer

    @property
    def named_modules(self) -> list[tuple[str, nn.Module]]:
        """The layers of which the shapes are looked at, without the model itself."""
        if self._max_depth == 0:
            return []
        return list(self._model.named_modules())[1:] if self._max_depth != 1 else list(self._model.named_children())

    @property
    def layer_names(self) -> list[str]:
        """Their names."""
        return list(self._layers)

    @property
    def layer_types(self) -> list[str]:
        """The names of their classes."""
        return [layer.layer_type for layer in self._layers.values()]

    @property
    def in_sizes(self) -> list[Any]:
        """The shapes of what went in."""
        return [layer.in_size for layer in self._layers.values()]

    @property
    def out_sizes(self) -> list[Any]:
        """The shapes of what came out."""
        return [layer.out_size for layer in self._layers.values()]

    @property
    def param_nums(self) -> list[int]:
        """How many numbers their parameters have."""
        return [layer.num_parameters for layer in self._layers.values()]

    @property
    def training_modes(self) -> list[bool]:
        """Whether they are in training mode."""
        return [layer.training for layer in self._layers.values()]

    @property
    def flop_counts(self) -> dict[str, dict[Any, int]]:
        """Operations by their kind, of each layer."""
        counts: dict[str, dict[Any, int]] = self._flop_counter.get_flop_counts()
        root = type(self._model).__name__
        return {name: counts.get(f"{root}.{name}", {}) for name in self._layers}

    # ------------------------------------------------------------------------------------------------------- the sums

    @property
    def total_training_modes(self) -> dict[str, int]:
        """How many layers are in training and in evaluation mode."""
        modes = [module.training for module in self._model.modules()][1:]
        return {"train": modes.count(True), "eval": modes.count(False)}

    @property
    def total_parameters(self) -> int:
        """How many numbers all parameters have."""
        return _size(self._model)

    @property
    def trainable_parameters(self) -> int:
        """How many of these are trained."""
        return _size(self._model, only_trained=True)

    @property
    def total_layer_params(self) -> int:
        """How many of these are in the layers that are listed."""
        return sum(self.param_nums)

    @property
    def model_size(self) -> float:
        """Megabytes of all parameters, in the trainer's precision, 32 bits without one."""
        trainer = getattr(self._model, "_trainer", None)
        bits = 32 if trainer is None else _BITS.get(str(trainer.precision), 32)
        return self.total_parameters * bits / 8 * 1e-6

    @property
    def total_flops(self) -> int:
        """Operations of one call."""
        return int(self._flop_counter.get_total_flops())

    # ------------------------------------------------------------------------------------------------------ the table

    def summarize(self) -> dict[str, LayerSummary]:
        """Look at the layers; with an example, at what goes in and out of them."""
        layers = {name: LayerSummary(module) for name, module in self.named_modules}
        example = example_input(self._model)
        if example is not None:
            with unnoticed(self._model), _precision_of(self._model), self._flop_counter:
                if isinstance(example, dict):
                    self._model(**example)
                else:
                    self._model(*example if isinstance(example, list | tuple) else (example,))
        for layer in layers.values():
            layer.detach_hook()
        if self._max_depth >= 1:
            layers = {name: layer for name, layer in layers.items() if name.count(".") < self._max_depth}
        return layers

    def _get_summary_data(self) -> list[tuple[str, list[str]]]:
        """The columns of the table, each with its title."""
        operations = [sum(counts.values()) for counts in self.flop_counts.values()]
        columns = [
            (" ", [str(number) for number in range(len(self._layers))]),
            ("Name", self.layer_names),
            ("Type", self.layer_types),
            ("Params", [get_human_readable_count(number) for number in self.param_nums]),
            ("Mode", ["train" if mode else "eval" for mode in self.training_modes]),
            ("FLOPs", [get_human_readable_count(number) for number in operations]),
        ]
        if getattr(self._model, "example_input_array", None) is not None:
            columns += [("In sizes", list(map(str, self.in_sizes))), ("Out sizes", list(map(str, self.out_sizes)))]
        others = self.total_parameters - self.total_layer_params
        if others > 0:
            row = {" ": " ", "Name": LEFTOVER_PARAMS_NAME, "Params": get_human_readable_count(others)}
            for title, column in columns:
                column.append(row.get(title, NOT_APPLICABLE))
        return columns

    def __str__(self) -> str:
        return as_table(
            self._get_summary_data(),
            self.total_parameters,
            self.trainable_parameters,
            self.model_size,
            self.total_training_modes,
            self.total_flops,
        )

    __repr__ = __str__


def summarize(lightning_module: nn.Module, max_depth: int = 1) -> ModelSummary:
    """The summary of a module.

    Args:
        lightning_module: the module.
        max_depth: how deep layers are within others; -1 for all of them, 0 for none.

    Example:
        >>> summarize(nn.Sequential(nn.Linear(2, 1))).total_parameters
        3
    """
    return ModelSummary(lightning_module, max_depth=max_depth)


def as_table(
    columns: list[tuple[str, list[str]]],
    total_parameters: int,
    trainable_parameters: int,
    model_size: float,
    total_training_modes: dict[str, int],
    total_flops: int,
) -> str:
    """A summary as text.

    Args:
        columns: each with its title.
        total_parameters: numbers of all parameters.
        trainable_parameters: how many of these are trained.
        model_size: megabytes.
        total_training_modes: layers in training and in evaluation mode.
        total_flops: operations of one call.
    """
    widths = [max(map(len, (title, *column))) for title, column in columns]
    rows = [[title for title, _ in columns], *zip(*(column for _, column in columns), strict=True)]
    lines = [" | ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)) for row in rows]
    rule = "-" * (sum(widths) + 3 * (len(columns) + 1))
    sums = [
        (get_human_readable_count(trainable_parameters), "Trainable params"),
        (get_human_readable_count(total_parameters - trainable_parameters), "Non-trainable params"),
        (get_human_readable_count(total_parameters), "Total params"),
        (get_formatted_model_size(model_size), "Total estimated model params size (MB)"),
        (str(total_training_modes["train"]), "Modules in train mode"),
        (str(total_training_modes["eval"]), "Modules in eval mode"),
        (get_human_readable_count(total_flops), "Total Flops"),
    ]
    return "\n".join([lines[0], rule, *lines[1:], rule, *(f"{number:<10}{what}" for number, what in sums)])


def get_formatted_model_size(total_model_size: float) -> str:
    """Megabytes as text.

    Example:
        >>> get_formatted_model_size(1234.5678)
        '1,234.568'
    """
    return f"{total_model_size:,.3f}"


def _size(module: nn.Module, *, only_trained: bool = False) -> int:
    return number_of_parameters(module, only_trained=only_trained, warn=_warn_of_lazy_ones)


def _warn_of_lazy_ones(name: str) -> None:
    rank_zero_warn(
        f"The parameters of {name} are not counted in full, because lazy ones have no shape yet: "
        "set self.example_input_array.",
    )


def _precision_of(model: nn.Module) -> AbstractContextManager[Any]:
    """What the trainer computes in."""
    plugin = getattr(getattr(model, "_trainer", None), "precision_plugin", None)
    forward_context = getattr(plugin, "forward_context", None)
    return nullcontext() if forward_context is None else forward_context()
