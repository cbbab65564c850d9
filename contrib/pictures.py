"""Pictures beside each other, to see what a model was given and what it made of it; and moved a little, to train on.

``pip install 'camshaft[vision]'``.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import torch
from torch.nn import functional as F

__all__ = ["jittered", "picture_grid"]

_WIDTH = 8.0  # inches; 800 pixels
_DOTS_PER_INCH = 100
_GAP = 0.1  # between two pictures, as a share of a picture's width
_TITLE = 20 / (_WIDTH * _DOTS_PER_INCH)  # the height of a line, as a share of the whole width


def picture_grid(
    pictures: torch.Tensor,
    path: str | os.PathLike[str],
    *,
    columns: int | None = None,
    titles: Sequence[str] = (),
    row_titles: Sequence[str] = (),
    xlabel: str = "",
    ylabel: str = "",
) -> Path:
    """Draw pictures in rows, from the left to the right and from the top down, 800 pixels wide.

    Args:
        pictures: (pictures, channels, height, width), of one channel (grey) or three (red, green, blue); brightness is
            from 0 to 1, and what lies beyond is drawn as 0 or 1.
        path: the file to write; its ending chooses the format.
        columns: pictures in a row; by default the smallest square that holds all.
        titles: as many as there are columns, to stand above the first row, or as many as there are pictures, to stand
            above each.
        row_titles: as many as there are rows, to stand left of them.
        xlabel: below all.
        ylabel: left of all.

    Returns:
        The path.

    Raises:
        ValueError: pictures of another shape, or a wrong number of titles.
        OSError: the file cannot be written.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "noise.png"
        >>> picture_grid(torch.rand(6, 1, 8, 8), path, columns=3, titles=["a", "b", "c"]).name
        'noise.png'
    """
    from matplotlib.figure import Figure  # noqa: PLC0415 - an optional dependency

    if pictures.ndim != 4 or pictures.shape[1] not in (1, 3) or 0 in pictures.shape:
        raise ValueError(
            "picture_grid draws pictures of shape (pictures, channels, height, width) with 1 or 3 channels, but got "
            f"{tuple(pictures.shape)}."
        )
    number, _, height, width = pictures.shape
    columns = columns or next(side for side in range(1, number + 1) if side * side >= number)
    rows = -(-number // columns)
    _check_titles("titles", len(titles), {columns: "columns", number: "pictures"})
    _check_titles("row_titles", len(row_titles), {rows: "rows"})
    titled_rows = 0 if not titles else rows if len(titles) == number else 1

    # A picture is one unit wide, its upper left corner is at (right, down).
    right = [(1 + _GAP) * column for column in range(columns)]
    across = right[-1] + 1
    title = across * _TITLE
    pitch = height / width + _GAP + title * (titled_rows > 1)
    down = [pitch * row + title * (titled_rows > 0) for row in range(rows)]
    along = down[-1] + height / width

    figure = Figure(figsize=(_WIDTH, _WIDTH), dpi=_DOTS_PER_INCH, layout="constrained")
    panel = figure.subplots()
    pixels = pictures.detach().cpu().float().clamp(0, 1).permute(0, 2, 3, 1).expand(-1, -1, -1, 3).numpy()
    for index, picture in enumerate(pixels):
        x, y = right[index % columns], down[index // columns]
        panel.imshow(picture, extent=(x, x + 1, y + height / width, y), interpolation="nearest")
        if index < len(titles):
            panel.text(x + 0.5, y - title / 4, titles[index], ha="center", va="bottom", fontsize="small")
    panel.set(xlim=(0, across), ylim=(along, 0), aspect="auto", frame_on=False, xlabel=xlabel, ylabel=ylabel)
    panel.set_xticks([])
    panel.set_yticks([y + height / width / 2 for y in down] if row_titles else [], row_titles or None)
    panel.tick_params(length=0, labelsize="small")

    figure.draw_without_rendering()  # finds how wide the labels leave the pictures
    box = panel.get_position().transformed(figure.transSubfigure).bounds
    figure.set_size_inches(_WIDTH, _WIDTH + (box[2] * along / across - box[3]) / _DOTS_PER_INCH)
    figure.savefig(path)
    return Path(path)


def jittered(pictures: torch.Tensor, *, pixels: float = 0.0, degrees: float = 0.0, zoom: float = 0.0) -> torch.Tensor:
    """Each picture moved, turned and zoomed by amounts of its own, drawn evenly; black where there was nothing.

    Args:
        pictures: (pictures, channels, height, width).
        pixels: by how many it is moved at most, up or down and left or right.
        degrees: by how many it is turned at most, in either direction.
        zoom: by which share of its size it is made larger or smaller at most.

    Returns:
        Pictures of the same shape.

    Example:
        >>> pictures = torch.rand(2, 1, 8, 8)
        >>> torch.allclose(jittered(pictures), pictures, atol=1e-5)
        True
        >>> jittered(pictures, pixels=1, degrees=10, zoom=0.1).shape
        torch.Size([2, 1, 8, 8])
    """
    number, _, height, width = pictures.shape
    across, down, angle, scale = 2 * torch.rand(4, number, device=pictures.device, dtype=pictures.dtype) - 1
    angle = torch.deg2rad(degrees * angle)
    scale = 1 / (1 + zoom * scale)
    cosine, sine = scale * angle.cos(), scale * angle.sin()
    # Where each point of the new picture comes from; a picture reaches from -1 to 1.
    move = 2 * pixels * torch.stack([across / width, down / height])
    matrices = torch.stack(
        [cosine, -sine * height / width, move[0], sine * width / height, cosine, move[1]], dim=1
    ).reshape(number, 2, 3)
    grid = F.affine_grid(matrices, list(pictures.shape), align_corners=False)
    return F.grid_sample(pictures, grid, align_corners=False)


def _check_titles(name: str, given: int, wanted: dict[int, str]) -> None:
    if given and given not in wanted:
        numbers = " or ".join(f"{number} {things}" for number, things in wanted.items())
        raise ValueError(f"There are {given} {name} for {numbers}: give as many.")
