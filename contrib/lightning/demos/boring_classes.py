"""The smallest modules and data: for reports of bugs, and for tests."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.lr_scheduler import LRScheduler
from torch.utils.data import DataLoader, Dataset, IterableDataset, Subset

from camshaft.contrib.lightning.datamodule import LightningDataModule
from camshaft.contrib.lightning.module import LightningModule
from camshaft.contrib.lightning.utilities.types import STEP_OUTPUT

__all__ = [
    "BoringDataModule",
    "BoringDataModuleNoLen",
    "BoringModel",
    "DemoModel",
    "IterableBoringDataModule",
    "ManualOptimBoringModel",
    "Net",
    "RandomDataset",
    "RandomDictDataset",
    "RandomIterableDataset",
    "RandomIterableDatasetWithLen",
]


class RandomDataset(Dataset[Tensor]):
    """``length`` vectors of ``size`` random numbers, drawn once.

    Example:
        >>> len(RandomDataset(32, 64)), RandomDataset(32, 64)[0].shape
        (64, torch.Size([32]))
    """

    def __init__(self, size: int, length: int) -> None:
        self.len = length
        self.data = torch.randn(length, size)

    def __getitem__(self, index: int) -> Tensor:
        return self.data[index]

    def __len__(self) -> int:
        return self.len


class RandomDictDataset(Dataset[dict[str, Tensor]]):
    """The same as dictionaries of ``a`` and ``b``, which is ``a + 2``."""

    def __init__(self, size: int, length: int) -> None:
        self.len = length
        self.data = torch.randn(length, size)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {"a": self.data[index], "b": self.data[index] + 2}

    def __len__(self) -> int:
        return self.len


class RandomIterableDataset(IterableDataset[Tensor]):
    """``count`` vectors of ``size`` random numbers, drawn as they are asked for; its length is not known."""

    def __init__(self, size: int, count: int) -> None:
        self.count = count
        self.size = size

    def __iter__(self) -> Iterator[Tensor]:
        for _ in range(self.count):
            yield torch.randn(self.size)


class RandomIterableDatasetWithLen(RandomIterableDataset):
    """The same with a known length."""

    def __len__(self) -> int:
        return self.count


class BoringModel(LightningModule):
    """A linear layer that learns to give ones; a subclass overrides what it wants to see.

    Example:
        >>> model = BoringModel()
        >>> model(torch.zeros(4, 32)).shape
        torch.Size([4, 2])
    """

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(32, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)  # type: ignore[no-any-return]

    def loss(self, preds: Tensor, labels: Tensor | None = None) -> Tensor:
        return F.mse_loss(preds, torch.ones_like(preds) if labels is None else labels)

    def step(self, batch: Any) -> Tensor:
        return self.loss(self(batch))

    def training_step(self, batch: Any, batch_idx: int) -> STEP_OUTPUT:
        return {"loss": self.step(batch)}

    def validation_step(self, batch: Any, batch_idx: int) -> STEP_OUTPUT:
        return {"x": self.step(batch)}

    def test_step(self, batch: Any, batch_idx: int) -> STEP_OUTPUT:
        return {"y": self.step(batch)}

    def configure_optimizers(self) -> tuple[list[torch.optim.Optimizer], list[LRScheduler]]:
        optimizer = torch.optim.SGD(self.parameters(), lr=0.1)
        return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, step_size=1)]

    def train_dataloader(self) -> Any:
        return DataLoader(RandomDataset(32, 64))

    def val_dataloader(self) -> Any:
        return DataLoader(RandomDataset(32, 64))

    def test_dataloader(self) -> Any:
        return DataLoader(RandomDataset(32, 64))

    def predict_dataloader(self) -> Any:
        return DataLoader(RandomDataset(32, 64))


class ManualOptimBoringModel(BoringModel):
    """The same, which steps its optimizer itself."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch: Any, batch_idx: int) -> STEP_OUTPUT:
        optimizer = self.optimizers()
        loss = self.step(batch)
        optimizer.zero_grad()
        self.manual_backward(loss)
        optimizer.step()
        return loss


class DemoModel(LightningModule):
    """A linear layer with hyperparameters."""

    def __init__(self, out_dim: int = 10, learning_rate: float = 0.02) -> None:
        super().__init__()
        self.l1 = nn.Linear(32, out_dim)
        self.learning_rate = learning_rate

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.l1(x.view(x.size(0), -1)))

    def training_step(self, batch: Any, batch_nb: int) -> STEP_OUTPUT:
        return self(batch).sum()  # type: ignore[no-any-return]

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=self.learning_rate)


class Net(nn.Module):
    """A convolutional network for MNIST's images.

    Example:
        >>> Net()(torch.zeros(2, 1, 28, 28)).shape
        torch.Size([2, 10])
    """

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 32, 3, 1)
        self.conv2 = nn.Conv2d(32, 64, 3, 1)
        self.dropout1 = nn.Dropout(0.25)
        self.dropout2 = nn.Dropout(0.5)
        self.fc1 = nn.Linear(64 * 12 * 12, 128)
        self.fc2 = nn.Linear(128, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.conv2(F.relu(self.conv1(x))))  # (batch, 64, 24, 24)
        x = self.dropout1(F.max_pool2d(x, 2)).flatten(1)
        x = self.dropout2(F.relu(self.fc1(x)))
        return F.log_softmax(self.fc2(x), dim=1)


class _BoringStages(LightningDataModule):
    """A data module whose loaders are those of the data sets that ``setup`` has made for each stage."""

    random_train: Any
    random_val: Any
    random_test: Any
    random_predict: Any

    def train_dataloader(self) -> Any:
        return _loaders(self.random_train)

    def val_dataloader(self) -> Any:
        return _loaders(self.random_val)

    def test_dataloader(self) -> Any:
        return _loaders(self.random_test)

    def predict_dataloader(self) -> Any:
        return _loaders(self.random_predict)


class BoringDataModule(_BoringStages):
    """Four times 64 random vectors, for each stage its own.

    Example:
        >>> data = BoringDataModule()
        >>> data.setup("fit")
        >>> len(data.train_dataloader()), len(data.val_dataloader())
        (64, 64)
    """

    def __init__(self) -> None:
        super().__init__()
        self.random_full = RandomDataset(32, 64 * 4)

    def setup(self, stage: str) -> None:
        if stage == "fit":
            self.random_train = Subset(self.random_full, range(64))
        if stage in {"fit", "validate"}:
            self.random_val = Subset(self.random_full, range(64, 64 * 2))
        if stage == "test":
            self.random_test = Subset(self.random_full, range(64 * 2, 64 * 3))
        if stage == "predict":
            self.random_predict = Subset(self.random_full, range(64 * 3, 64 * 4))


class BoringDataModuleNoLen(_BoringStages):
    """Random vectors of which nobody knows how many there are."""

    def setup(self, stage: str) -> None:
        if stage == "fit":
            self.random_train = RandomIterableDataset(32, 512)
        if stage in {"fit", "validate"}:
            self.random_val = RandomIterableDataset(32, 128)
        if stage == "test":
            self.random_test = RandomIterableDataset(32, 256)
        if stage == "predict":
            self.random_predict = RandomIterableDataset(32, 64)


class IterableBoringDataModule(_BoringStages):
    """Two data sets in each stage, the second of which has no known length."""

    def setup(self, stage: str) -> None:
        def pair(length: int) -> list[Dataset[Tensor]]:
            return [RandomDataset(4, length), RandomIterableDataset(4, length)]

        if stage == "fit":
            self.random_train = self.train_datasets = pair(16)
        if stage in {"fit", "validate"}:
            self.random_val = self.val_datasets = pair(32)
        if stage == "test":
            self.random_test = self.test_datasets = pair(64)
        if stage == "predict":
            self.random_predict = self.predict_datasets = pair(128)


def _loaders(datasets: Any) -> Any:
    return [DataLoader(dataset) for dataset in datasets] if isinstance(datasets, list) else DataLoader(datasets)
