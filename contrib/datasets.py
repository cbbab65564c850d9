"""Small real data to try things on: pictures that come with scikit-learn, or that torchvision downloads.

``pip install 'camshaft[vision]'``.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import ignite.distributed as idist
import torch
from torch.utils.data import Dataset, TensorDataset, random_split

__all__ = ["IMAGES", "Images", "images"]

Pair = tuple[torch.Tensor, torch.Tensor]


class Images(NamedTuple):
    """A data set of pictures in three parts.

    Attributes:
        train: pairs of a picture, float of ``shape``, and its class, int64 from 0 on.
        validation: likewise.
        test: likewise.
        shape: of a picture: (channels, height, width).
        classes: how many there are.
    """

    train: Dataset[Pair]
    validation: Dataset[Pair]
    test: Dataset[Pair]
    shape: tuple[int, int, int]
    classes: int


def images(name: str, root: str | Path = "data") -> Images:
    """Pictures in three parts, which are the same whatever the seed; brightness is from 0 to 1.

    Args:
        name: ``"digits"``, which comes with scikit-learn, or ``"mnist"``, ``"fashion-mnist"``, ``"cifar10"``, which
            torchvision downloads.
        root: the folder for downloads.

    Raises:
        ValueError: there is no data set of that name.
        OSError: it is not in ``root`` and cannot be downloaded.

    Example:
        >>> data = images("digits")
        >>> len(data.train), len(data.validation), len(data.test), data.shape, data.classes
        (1283, 257, 257, (1, 8, 8), 10)
        >>> picture, label = data.test[0]
        >>> picture.shape, float(picture.max()), int(label)
        (torch.Size([1, 8, 8]), 1.0, 1)
    """
    if name not in IMAGES:
        raise ValueError(f"There are no pictures named {name!r}: choose one of {', '.join(IMAGES)}.")
    return IMAGES[name](Path(root))


def _digits(root: Path) -> Images:
    """Scikit-learn's 1,797 handwritten digits of 8 by 8 pixels, a seventh each to validate and to test with."""
    from sklearn.datasets import load_digits  # noqa: PLC0415 - each data set needs its own package only

    pixels, labels = load_digits(return_X_y=True)
    pictures = torch.tensor(pixels / 16, dtype=torch.float32).reshape(-1, 1, 8, 8)
    train, validation, test = _parts(TensorDataset(pictures, torch.tensor(labels)), 257, 257)
    return Images(train, validation, test, (1, 8, 8), 10)


def _of_torchvision(name: str, shape: tuple[int, int, int]) -> Callable[[Path], Images]:
    """A loader of one of torchvision's data sets of ten classes; a twelfth of what is to train with is to validate."""

    def load(root: Path) -> Images:
        from torchvision import datasets, transforms  # noqa: PLC0415

        kind = getattr(datasets, name)
        try:
            with idist.one_rank_first(local=True):  # of each machine: it downloads for the others
                train, test = (
                    kind(root, train=part, download=True, transform=transforms.ToTensor()) for part in (True, False)
                )
        except (RuntimeError, OSError) as error:
            reason = str(error).strip().splitlines()[-1]
            raise OSError(f"{name} could neither be loaded from {root} nor downloaded: {reason}") from error
        train, validation = _parts(train, len(train) // 12)
        return Images(train, validation, test, shape, 10)

    return load


def _parts(data: Any, *sizes: int) -> list[Any]:
    return random_split(data, [len(data) - sum(sizes), *sizes], torch.Generator().manual_seed(0))


IMAGES: dict[str, Callable[[Path], Images]] = {
    "digits": _digits,
    "mnist": _of_torchvision("MNIST", (1, 28, 28)),
    "fashion-mnist": _of_torchvision("FashionMNIST", (1, 28, 28)),
    "cifar10": _of_torchvision("CIFAR10", (3, 32, 32)),
}
