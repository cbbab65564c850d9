"""Pictures in a grid are where they belong, with their titles; and are moved, turned and zoomed as far as asked."""

from collections.abc import Callable
from pathlib import Path
from xml.etree import ElementTree

import matplotlib as mpl
import pytest
import torch
from PIL import Image

from camshaft.contrib.pictures import jittered, picture_grid

Texts = Callable[..., list[str]]


@pytest.fixture
def texts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Texts:
    """The texts of a grid of six grey pictures, three in a row, as they are drawn."""
    monkeypatch.setitem(mpl.rcParams, "svg.fonttype", "none")  # texts as texts, not as their outlines

    def draw(**options: object) -> list[str]:
        path = picture_grid(torch.rand(6, 1, 4, 4), tmp_path / "grid.svg", columns=3, **options)
        texts = ElementTree.parse(path).iter("{http://www.w3.org/2000/svg}text")
        return ["".join(element.itertext()) for element in texts]

    return draw


def test_each_picture_is_drawn_in_its_place_and_colour(tmp_path: Path) -> None:
    colours = torch.tensor([[1, 0, 0], [0, 1, 0], [0, 0, 1], [0, 0, 0]], dtype=torch.float32)
    path = picture_grid(colours[:, :, None, None].expand(-1, -1, 2, 2), tmp_path / "grid.png", columns=2)
    with Image.open(path).convert("RGB") as drawn:
        assert drawn.size == (800, 800)
        centres = [drawn.getpixel((x, y)) for y in (200, 600) for x in (200, 600)]
    assert centres == [(255, 0, 0), (0, 255, 0), (0, 0, 255), (0, 0, 0)]


def test_what_is_darker_than_black_or_brighter_than_white_is_drawn_as_black_or_white(tmp_path: Path) -> None:
    pictures = torch.tensor([-3.0, 2.0]).reshape(2, 1, 1, 1)
    with Image.open(picture_grid(pictures, tmp_path / "grid.png", columns=2)).convert("RGB") as drawn:
        assert [drawn.getpixel((x, drawn.height // 2)) for x in (200, 600)] == [(0, 0, 0), (255, 255, 255)]


@pytest.mark.parametrize(
    ("number", "columns", "shape", "rows"),
    [(9, None, (8, 8), 3), (7, None, (8, 8), 3), (5, 5, (8, 8), 1), (4, 2, (8, 16), 2)],
    ids=["square", "square-not-full", "one-row", "wide-pictures"],
)
def test_the_height_follows_from_the_rows_and_the_width_is_800(
    number: int, columns: int | None, shape: tuple[int, int], rows: int, tmp_path: Path
) -> None:
    path = picture_grid(torch.rand(number, 1, *shape), tmp_path / "grid.png", columns=columns)
    with Image.open(path) as drawn:
        width, height = drawn.size
    assert width == 800
    assert height == pytest.approx(800 * rows / (columns or rows) * shape[0] / shape[1], abs=30)  # the gaps


def test_titles_stand_above_the_columns_or_above_each_picture_and_left_of_the_rows(texts: Texts) -> None:
    assert set(texts(titles=["a", "b", "c"])) == {"a", "b", "c"}
    shown = texts(titles="abcdef", row_titles=["first", "second"], xlabel="across", ylabel="down")
    assert sorted(shown) == ["a", "across", "b", "c", "d", "down", "e", "f", "first", "second"]
    assert texts() == []


def test_gradients_and_half_precision_are_no_obstacle(tmp_path: Path) -> None:
    pictures = torch.rand(1, 1, 2, 2, dtype=torch.bfloat16, requires_grad=True)
    assert picture_grid(pictures, tmp_path / "grid.png").stat().st_size > 0


# Moved a little


@pytest.fixture
def dots() -> torch.Tensor:
    """Many wide pictures with one bright pixel, two to the right of the middle."""
    pictures = torch.zeros(500, 1, 21, 41)
    pictures[:, :, 10, 22] = 1
    return pictures


def offsets(pictures: torch.Tensor) -> torch.Tensor:
    """Where the brightness of each lies, down and right of the middle; (pictures, 2)."""
    mass = pictures.sum((1, 2, 3))
    down = (pictures.sum((1, 3)) * (torch.arange(21.0) - 10)).sum(1) / mass
    right = (pictures.sum((1, 2)) * (torch.arange(41.0) - 20)).sum(1) / mass
    return torch.stack([down, right], dim=1)


def test_each_picture_is_moved_by_its_own_number_of_pixels(dots: torch.Tensor) -> None:
    moved = offsets(jittered(dots, pixels=3)) - torch.tensor([0.0, 2.0])
    assert moved.abs().max() <= 3.001
    for direction in moved.T:
        assert direction.min() < -2.7
        assert direction.max() > 2.7


def test_turning_keeps_the_distance_from_the_middle(dots: torch.Tensor) -> None:
    turned = offsets(jittered(dots, degrees=90))
    assert torch.allclose(turned.norm(dim=1), torch.tensor(2.0), atol=0.25)  # the pixels of the grid
    angles = torch.rad2deg(torch.atan2(turned[:, 0], turned[:, 1]))
    assert angles.min() < -80
    assert angles.max() > 80


def test_zooming_moves_what_is_off_the_middle_along_its_direction(dots: torch.Tensor) -> None:
    down, right = offsets(jittered(dots, zoom=0.5)).T
    assert down.abs().max() < 1e-5
    assert right.min() == pytest.approx(1, abs=0.2)
    assert right.max() == pytest.approx(3, abs=0.2)


# What is refused


@pytest.mark.parametrize("shape", [(8, 8), (2, 2, 8, 8), (0, 1, 8, 8)], ids=str)
def test_pictures_of_another_shape_are_refused(shape: tuple[int, ...], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"1 or 3 channels, but got \("):
        picture_grid(torch.rand(shape), tmp_path / "grid.png")


@pytest.mark.parametrize(
    ("titles", "message"),
    [
        ({"titles": ["a", "b"]}, "There are 2 titles for 3 columns or 6 pictures"),
        ({"row_titles": ["a"]}, "There are 1 row_titles for 2 rows"),
    ],
    ids=["columns", "rows"],
)
def test_a_wrong_number_of_titles_is_refused(titles: dict[str, list[str]], message: str, texts: Texts) -> None:
    with pytest.raises(ValueError, match=message):
        texts(**titles)
