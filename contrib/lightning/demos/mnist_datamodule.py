"""MNIST as a data set and as a data module; torchvision is not needed."""

from __future__ import annotations

import gzip
import struct
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.error import URLError

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, random_split

from camshaft.contrib.lightning.datamodule import LightningDataModule

__all__ = ["MNIST", "MNISTDataModule", "read_idx"]

_MIRRORS = ("https://ossci-datasets.s3.amazonaws.com/mnist/", "http://yann.lecun.com/exdb/mnist/")
_FILES = {True: ("train-images-idx3-ubyte", "train-labels-idx1-ubyte")}
_FILES[False] = ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")


class MNIST(Dataset[tuple[Any, int]]):
    """Handwritten digits: 60,000 to train with and 10,000 to test with, in the files and folders of torchvision.

    Args:
        root: the folder in which ``MNIST/raw`` is.
        train: whether the ones to train with.
        transform: changes an image, which is a PIL image where Pillow is installed, else a float tensor (1, 28, 28) of
            numbers from 0 to 1.
        target_transform: changes a label.
        download: whether to download the files where they are missing.
        normalize: without ``transform``: the mean and the standard deviation with which images are made into tensors.

    Raises:
        RuntimeError: the files are not there.
    """

    def __init__(
        self,
        root: str | Path,
        train: bool = True,
        transform: Callable[[Any], Any] | None = None,
        target_transform: Callable[[Any], Any] | None = None,
        download: bool = False,
        *,
        normalize: tuple[float, float] | None = None,
    ) -> None:
        self.root = Path(root)
        self.train = train
        self.transform = transform
        self.target_transform = target_transform
        self.normalize = normalize
        images, labels = _FILES[train]
        self.data = read_idx(self._file(images, download))  # (images, 28, 28), 0 to 255
        self.targets = read_idx(self._file(labels, download)).long()

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        image, label = self.data[index], int(self.targets[index])
        if self.normalize is not None and self.transform is None:
            mean, deviation = self.normalize
            return (image.unsqueeze(0) / 255 - mean) / deviation, label
        changed = _as_image(image)
        if self.transform is not None:
            changed = self.transform(changed)
        return changed, label if self.target_transform is None else self.target_transform(label)

    @property
    def raw_folder(self) -> str:
        """Where the files are."""
        return str(self.root / "MNIST" / "raw")

    def _file(self, name: str, download: bool) -> Path:
        path = Path(self.raw_folder) / name
        for there in (path, path.with_name(f"{name}.gz")):
            if there.exists():
                return there
        if not download:
            raise RuntimeError(
                f"MNIST is not in {self.raw_folder}: there is no {name}. MNIST(..., download=True) gets it."
            )
        path.parent.mkdir(parents=True, exist_ok=True)
        errors = []
        for mirror in _MIRRORS:
            try:
                return _downloaded(f"{mirror}{name}.gz", path.with_name(f"{name}.gz"))
            except (URLError, OSError) as error:
                errors.append(f"{mirror}: {error}")
        raise RuntimeError(f"MNIST cannot be downloaded ({'; '.join(errors)}). Put {name} into {self.raw_folder}.")


class MNISTDataModule(LightningDataModule):
    """MNIST in loaders; a part of the images to train with is kept for validation.

    Args:
        data_dir: the folder of the data.
        val_split: how many images to validate with.
        num_workers: of each loader.
        normalize: whether images are from -1 to 1 rather than from 0 to 1.
        seed: decides which images are validated with.
        batch_size: of each loader.
    """

    name = "mnist"

    def __init__(
        self,
        data_dir: str = "./data",
        val_split: int = 5000,
        num_workers: int = 16,
        normalize: bool = False,
        seed: int = 42,
        batch_size: int = 32,
    ) -> None:
        super().__init__()
        self.data_dir = data_dir
        self.val_split = val_split
        self.num_workers = num_workers
        self.normalize = normalize
        self.seed = seed
        self.batch_size = batch_size

    @property
    def num_classes(self) -> int:
        """The ten digits."""
        return 10

    def prepare_data(self) -> None:
        for train in (True, False):
            MNIST(self.data_dir, train=train, download=True)

    def setup(self, stage: str) -> None:
        dataset = self._dataset(train=True)
        self.dataset_train, self.dataset_val = random_split(
            dataset,
            [len(dataset) - self.val_split, self.val_split],
            generator=torch.Generator().manual_seed(self.seed),
        )

    def train_dataloader(self) -> DataLoader[Any]:
        return self._loader(self.dataset_train, shuffle=True)

    def val_dataloader(self) -> DataLoader[Any]:
        return self._loader(self.dataset_val)

    def test_dataloader(self) -> DataLoader[Any]:
        return self._loader(self._dataset(train=False))

    def _dataset(self, *, train: bool) -> MNIST:
        return MNIST(self.data_dir, train=train, normalize=(0.5, 0.5) if self.normalize else (0.0, 1.0))

    def _loader(self, dataset: Dataset[Any], *, shuffle: bool = False) -> DataLoader[Any]:
        return DataLoader(
            dataset,
            batch_size=self.batch_size,
            shuffle=shuffle,
            num_workers=self.num_workers,
            drop_last=shuffle,
            pin_memory=torch.accelerator.is_available(),
        )


def read_idx(path: str | Path) -> Tensor:
    """The tensor of bytes in an idx file, as MNIST's are, compressed or not.

    Raises:
        ValueError: another kind of file, or one that is cut off.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = Path(folder) / "labels-idx1-ubyte"
        ...     _ = path.write_bytes(bytes([0, 0, 8, 1, 0, 0, 0, 3, 7, 2, 1]))
        ...     read_idx(path)
        tensor([7, 2, 1], dtype=torch.uint8)
    """
    path = Path(path)
    content = path.read_bytes()
    if path.suffix == ".gz":
        content = gzip.decompress(content)
    if len(content) < 4 or content[:3] != b"\0\0\x08":  # two zeros, and unsigned bytes
        raise ValueError(f"{path} is no idx file of bytes.")
    dimensions = content[3]
    start = 4 + 4 * dimensions
    if len(content) < start:
        raise ValueError(f"{path} is cut off.")
    shape = struct.unpack(f">{dimensions}I", content[4:start])
    values = torch.frombuffer(bytearray(content[start:]) or bytearray(1), dtype=torch.uint8)[: len(content) - start]
    if values.numel() != torch.Size(shape).numel():
        raise ValueError(f"{path} is cut off: it has {values.numel()} of {torch.Size(shape).numel()} bytes.")
    return values.view(shape)


def _as_image(image: Tensor) -> Any:
    try:
        from PIL import Image  # noqa: PLC0415 - not needed without torchvision's transforms
    except ImportError:
        return image.unsqueeze(0) / 255
    return Image.fromarray(image.numpy())


def _downloaded(address: str, path: Path) -> Path:
    unfinished = path.with_suffix(".part")
    urllib.request.urlretrieve(address, unfinished)
    unfinished.replace(path)
    return path
