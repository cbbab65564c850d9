"""What a model consists of: its layers with their types, output shapes, parameters and operations, as a table."""

from __future__ import annotations

import html
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn.parameter import UninitializedParameter
from torch.utils.flop_counter import FlopCounterMode

from camshaft.engine.nested import rebuilt

__all__ = [
    "Layer",
    "LayerSummary",
    "Summary",
    "human_readable",
    "number_of_parameters",
    "shape_of",
    "summary",
    "unnoticed",
]

_UNKNOWN = "?"
_UNITS = (" ", "K", "M", "B", "T")


class Layer(NamedTuple):
    """A row of a summary.

    Attributes:
        name: as in ``model.named_modules()``; empty for the model itself.
        kind: the name of its class.
        depth: how deep it is within others: 0 for the model.
        input_shape: of what went in at its first call, ``"?"`` if it was not called.
        output_shape: of what came out of it.
        parameters: how many numbers its parameters have, with those of the layers within.
        trained: how many of these require a gradient.
        flops: floating-point operations of all its calls, of multiplications of matrices, convolutions and attention.
    """

    name: str
    kind: str
    depth: int
    input_shape: Any
    output_shape: Any
    parameters: int
    trained: int
    flops: int


@dataclass(frozen=True, repr=False)
class Summary:
    """All layers of a model; :func:`summary` makes it, and ``print`` shows it as a table.

    Attributes:
        layers: in the order of ``model.named_modules()``, the model itself first.
        bytes: what parameters and buffers take.
        depth: of the layers that the table shows.
    """

    layers: tuple[Layer, ...]
    bytes: int
    depth: int

    def __str__(self) -> str:
        rows = [("layer", "type", "output shape", "parameters", "FLOPs"), *self._rows()]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = [
            "  ".join(cell.rjust(width) if number >= 3 else cell.ljust(width)
                      for number, (cell, width) in enumerate(zip(row, widths, strict=True))).rstrip()
            for row in rows
        ]  # fmt: skip
        rule = "  ".join("-" * width for width in widths)
        return "\n".join([lines[0], rule, *lines[1:], rule, self._sums()])

    def __repr__(self) -> str:
        return str(self)

    def _repr_html_(self) -> str:
        titles = "".join(f"<th>{title}</th>" for title in ("layer", "type", "output shape", "parameters", "FLOPs"))
        rows = "".join(
            "<tr>" + "".join(f"<td>{html.escape(cell).replace('  ', '&emsp;')}</td>" for cell in row) + "</tr>"
            for row in self._rows()
        )
        return f"<table><thead><tr>{titles}</tr></thead><tbody>{rows}</tbody></table><p>{html.escape(self._sums())}</p>"

    def _rows(self) -> Iterator[tuple[str, ...]]:
        for layer in self.layers:
            if layer.depth <= self.depth or self.depth < 0:
                name = "  " * layer.depth + (layer.name.rpartition(".")[2] if layer.depth else "(the model)")
                frozen = " (frozen)" if layer.parameters and not layer.trained else ""
                flops = human_readable(layer.flops) if layer.flops else ""
                parameters = human_readable(layer.parameters) if layer.parameters else ""
                yield name, layer.kind, _as_text(layer.output_shape), (parameters + frozen).strip(), flops.strip()

    def _sums(self) -> str:
        model = self.layers[0]
        return (
            f"{model.parameters:,} parameters, {model.trained:,} of them trained; {self.bytes / 1e6:,.2f} MB with "
            f"buffers; {human_readable(model.flops).strip()} FLOPs forward for a batch of the shape "
            f"{_as_text(model.input_shape)}"
        )


def summary(model: nn.Module, batch: Any, *, depth: int = -1) -> Summary:
    """Call a model once with a sample batch, and list its layers: types, output shapes, parameters, FLOPs.

    The call is in evaluation mode and without gradients, on the device of the model's parameters; modes and random
    generators are as before afterwards. FLOPs are counted by torch's own counter: a multiplication and an addition are
    two; what is not a multiplication of matrices, a convolution or attention counts nothing.

    Args:
        model: a module.
        batch: what it is called with: a tensor, a tuple or list of positional arguments, or a mapping of keyword
            arguments.
        depth: of the layers within others that the table shows; all of them by default. ``summary.layers`` has all.

    Raises:
        ValueError: ``depth`` is less than -1.

    Example:
        >>> summary(nn.Sequential(nn.Linear(256, 512), nn.ReLU(), nn.Linear(512, 10)), torch.zeros(32, 256))
        layer        type        output shape  parameters  FLOPs
        -----------  ----------  ------------  ----------  -----
        (the model)  Sequential  32 x 10            136 K  8.7 M
          0          Linear      32 x 512           131 K  8.4 M
          1          ReLU        32 x 512
          2          Linear      32 x 10            5.1 K  327 K
        -----------  ----------  ------------  ----------  -----
        136,714 parameters, 136,714 of them trained; 0.55 MB with buffers; 8.7 M FLOPs forward for a batch of the shape
        32 x 256
    """
    if not isinstance(depth, int) or depth < -1:
        raise ValueError(f"The depth of a summary is -1 for all layers, 0 or more, but got {depth!r}.")
    tensors = [*model.parameters(), *model.buffers()]
    if tensors:
        batch = _on(batch, tensors[0].device)
    modules = dict(model.named_modules())
    counter = FlopCounterMode(display=False)  # names layers as far as they are within others
    seen = {name: LayerSummary(module) for name, module in modules.items()}
    try:
        with unnoticed(model), counter:
            if isinstance(batch, Mapping):
                model(**batch)
            else:
                model(*batch) if isinstance(batch, (list, tuple)) else model(batch)
    finally:
        for layer in seen.values():
            layer.detach_hook()
    root, counts = type(model).__name__, counter.get_flop_counts()
    layers = [
        Layer(
            name,
            layer.layer_type,
            name.count(".") + 1 if name else 0,
            layer.in_size,
            layer.out_size,
            number_of_parameters(modules[name]),
            number_of_parameters(modules[name], only_trained=True),
            sum(counts.get(f"{root}.{name}", {}).values()) if name else int(counter.get_total_flops()),
        )
        for name, layer in seen.items()
    ]
    sized = (tensor for tensor in (*model.parameters(), *model.buffers()) if not _is_lazy(tensor))
    return Summary(tuple(layers), sum(tensor.numel() * tensor.element_size() for tensor in sized), depth)


class LayerSummary:
    """One layer: its type, its parameters, and the shapes that went in and out when it was first called.

    Args:
        module: the layer.

    Example:
        >>> layer = nn.Conv2d(3, 8, 3)
        >>> summary = LayerSummary(layer)
        >>> _ = layer(torch.zeros(1, 3, 5, 5))
        >>> summary.layer_type, summary.num_parameters, summary.in_size, summary.out_size
        ('Conv2d', 224, [1, 3, 5, 5], [1, 8, 3, 3])
    """

    def __init__(self, module: nn.Module) -> None:
        self._module = module
        self._in_size: Any = _UNKNOWN
        self._out_size: Any = _UNKNOWN
        is_script = isinstance(module, torch.jit.ScriptModule)  # which takes no hooks
        self._hook = None if is_script else module.register_forward_hook(self._note_sizes, with_kwargs=True)

    def _note_sizes(self, module: nn.Module, args: Any, kwargs: dict[str, Any], output: Any) -> None:
        given = (*args, *kwargs.values())
        self._in_size = shape_of(given[0] if len(given) == 1 else given)
        self._out_size = shape_of(output)
        self.detach_hook()

    def detach_hook(self) -> None:
        """Look no longer at what goes in and out."""
        if self._hook is not None:
            self._hook.remove()

    @property
    def in_size(self) -> Any:
        """The shape of what went in, ``"?"`` if it was not called."""
        return self._in_size

    @property
    def out_size(self) -> Any:
        """The shape of what came out, ``"?"`` if it was not called."""
        return self._out_size

    @property
    def layer_type(self) -> str:
        """The name of its class."""
        return type(self._module).__name__

    @property
    def num_parameters(self) -> int:
        """How many numbers its parameters have."""
        return number_of_parameters(self._module)

    @property
    def training(self) -> bool:
        """Whether it is in training mode."""
        return self._module.training


def shape_of(batch: Any) -> Any:
    """The shape of a tensor, or of each in a list or tuple; ``"?"`` of anything else.

    Example:
        >>> shape_of((torch.zeros(2, 3), [torch.zeros(4)], "text"))
        [[2, 3], [[4]], '?']
    """
    if hasattr(batch, "shape"):
        return list(batch.shape)
    return [shape_of(part) for part in batch] if isinstance(batch, (list, tuple)) else _UNKNOWN


def human_readable(number: int) -> str:
    """A number in thousands (K), millions (M), billions (B) or trillions (T).

    Example:
        >>> [human_readable(number) for number in (123, 1234, 2_000_000, 3 * 10**9, 4 * 10**14, 5 * 10**15)]
        ['123  ', '1.2 K', '2.0 M', '3.0 B', '400 T', '5,000 T']
    """
    digits = math.floor(math.log10(number)) + 1 if number > 0 else 1
    unit = min(math.ceil(digits / 3), len(_UNITS)) - 1
    shown = number * 10 ** (-3 * unit)
    return f"{int(shown):,d} {_UNITS[unit]}" if unit < 1 or shown >= 100 else f"{shown:,.1f} {_UNITS[unit]}"


def number_of_parameters(
    module: nn.Module, *, only_trained: bool = False, warn: Callable[[str], None] | None = None
) -> int:
    """How many numbers the parameters of a module have; those of lazy ones that have no shape yet count nothing.

    Args:
        module: with the modules within.
        only_trained: leave out those that require no gradient.
        warn: called with the name of the module's class if there are lazy ones.

    Example:
        >>> number_of_parameters(nn.Linear(2, 1))
        3
    """
    parameters = [parameter for parameter in module.parameters() if parameter.requires_grad or not only_trained]
    if warn is not None and any(map(_is_lazy, parameters)):
        warn(type(module).__name__)
    return sum(parameter.numel() for parameter in parameters if not _is_lazy(parameter))


@contextmanager
def unnoticed(model: nn.Module) -> Iterator[None]:
    """Within it, the model is in evaluation mode and has no gradients; afterwards all is as before.

    That is the modes of all its modules and the random generators.
    """
    modes = {module: module.training for module in model.modules()}
    devices = [device for device in {parameter.device for parameter in model.parameters()} if device.type == "cuda"]
    model.eval()
    try:
        with torch.random.fork_rng(devices), torch.no_grad():
            yield
    finally:
        for module, mode in modes.items():
            module.training = mode


def _is_lazy(tensor: torch.Tensor) -> bool:
    return isinstance(tensor, (UninitializedParameter, torch.nn.parameter.UninitializedBuffer))


def _on(batch: Any, device: torch.device) -> Any:
    if isinstance(batch, torch.Tensor):
        return batch.to(device)
    return rebuilt(batch, lambda item: _on(item, device)) if isinstance(batch, (Mapping, list, tuple)) else batch


def _as_text(shape: Any) -> str:
    """``32 x 10``; of several tensors ``(32 x 10, 32 x 5)``."""
    if not isinstance(shape, list):
        return str(shape)
    if shape and any(isinstance(part, (list, str)) for part in shape):
        return f"({', '.join(map(_as_text, shape))})"
    return " x ".join(map(str, shape)) or "scalar"
