"""Handwritten digits in the style of Lightning's releases of early 2020: a module of its own kind, and two lines.

python examples/seed_mnist.py                  # scikit-learn's 1,797 digits, which come with it
python examples/seed_mnist.py --dataset mnist  # downloads MNIST
python examples/seed_mnist.py --by-hand        # the loop that the two lines replace; it ends in the same bits
"""

import argparse
import sys
from pathlib import Path

import torch
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset, TensorDataset, random_split

import camshaft.contrib.lightning as pl
from camshaft.scripts import weights_sha256


class LightningMNISTClassifier(pl.LightningModule):
    """Three layers; with its losses, its data and its optimizer it is all of the research.

    Args:
        dataset: ``"digits"`` or ``"mnist"``.
        data_dir: where downloads go.
    """

    def __init__(self, dataset: str = "digits", data_dir: str = "data") -> None:
        super().__init__()
        self.save_hyperparameters()
        image_size = {"digits": 8, "mnist": 28}[dataset]
        self.layer_1 = torch.nn.Linear(image_size * image_size, 128)
        self.layer_2 = torch.nn.Linear(128, 256)
        self.layer_3 = torch.nn.Linear(256, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # (batch, 1, height, width) -> (batch, 10)
        x = x.flatten(1)
        x = torch.relu(self.layer_1(x))
        x = torch.relu(self.layer_2(x))
        return torch.log_softmax(self.layer_3(x), dim=1)

    def cross_entropy_loss(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return F.nll_loss(logits, labels)

    # What one batch does, and what comes of all of them

    def training_step(self, train_batch, batch_idx):
        x, y = train_batch
        loss = self.cross_entropy_loss(self(x), y)
        return {"loss": loss, "log": {"train_loss": loss}}

    def validation_step(self, val_batch, batch_idx):
        x, y = val_batch
        return {"val_loss": self.cross_entropy_loss(self(x), y)}

    def validation_epoch_end(self, outputs):
        # A mapping for each batch: [{"val_loss": of batch 0}, {"val_loss": of batch 1}, ...]
        avg_loss = torch.stack([output["val_loss"] for output in outputs]).mean()
        return {"avg_val_loss": avg_loss, "log": {"val_loss": avg_loss}}

    def test_step(self, test_batch, batch_idx):
        x, y = test_batch
        logits = self(x)
        return {"test_loss": self.cross_entropy_loss(logits, y), "right": (logits.argmax(1) == y).float()}

    def test_epoch_end(self, outputs):
        avg_loss = torch.stack([output["test_loss"] for output in outputs]).mean()
        accuracy = torch.cat([output["right"] for output in outputs]).mean()
        return {"log": {"test_loss": avg_loss, "test_accuracy": accuracy}}

    # Data and optimizer

    def prepare_data(self):
        load = {"digits": digits, "mnist": mnist}[self.hparams.dataset]
        train_and_val, self.mnist_test = load(self.hparams.data_dir)
        validation = len(train_and_val) // 12
        parts = [len(train_and_val) - validation, validation]
        self.mnist_train, self.mnist_val = random_split(train_and_val, parts, torch.Generator().manual_seed(0))

    def train_dataloader(self):
        return DataLoader(self.mnist_train, batch_size=64)

    def val_dataloader(self):
        return DataLoader(self.mnist_val, batch_size=64)

    def test_dataloader(self):
        return DataLoader(self.mnist_test, batch_size=64)

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=0.002)


class Finetuned(torch.nn.Module):
    """Whether a digit is even: one layer that is trained on top of a pretrained network, which stays as it is."""

    def __init__(self, pretrained_model: LightningMNISTClassifier) -> None:
        super().__init__()
        self.pretrained_model = pretrained_model
        self.classifier = torch.nn.Linear(10, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # (batch, 1, height, width) -> (batch, 2)
        features = self.pretrained_model(x)
        return self.classifier(features)


def main() -> None:
    options = parse_options()
    if options.dataset == "digits":
        torch.set_num_threads(1)  # several threads would mostly wait for each other
    torch.manual_seed(0)
    model = LightningMNISTClassifier(options.dataset, options.data_dir)
    if options.by_hand:
        train_by_hand(model, options.max_epochs)
        print(f"weights sha256: {weights_sha256(model)}")
        return

    # ------------------------------------------------------------------------------------------------ the two lines

    trainer = pl.Trainer(max_epochs=options.max_epochs, default_save_path=options.run_dir, gpus=options.gpus)
    trainer.fit(model)

    trainer.test()

    # ------------------------------------------------------------------------------------------------ deployment

    path = trainer.checkpoint_callback.best_model_path
    pretrained_model = LightningMNISTClassifier.load_from_checkpoint(path, map_location="cpu")
    pretrained_model.freeze()
    images, labels = next(iter(model.test_dataloader()))
    out = pretrained_model(images)
    print(f"best checkpoint: {path}")
    print(f"of its first 10 digits, {labels[:10].tolist()}, it takes for {out[:10].argmax(1).tolist()}")

    finetuned = Finetuned(pretrained_model)
    optimizer = torch.optim.SGD(finetuned.classifier.parameters(), lr=0.1)
    for x, y in model.train_dataloader():
        optimizer.zero_grad()
        F.cross_entropy(finetuned(x), y % 2).backward()
        optimizer.step()
    even = (finetuned(images).argmax(1) == labels % 2).float().mean()
    print(f"on top of it, one layer tells even digits from odd ones: {even:.1%} right")
    print(f"weights sha256: {weights_sha256(model)}")


def train_by_hand(model: LightningMNISTClassifier, num_epochs: int) -> None:
    """The loop that ``trainer.fit(model)`` stands for."""
    model.prepare_data()
    optimizer = model.configure_optimizers()
    mnist_train, mnist_val = model.train_dataloader(), model.val_dataloader()

    for epoch in range(num_epochs):
        # TRAINING LOOP
        for train_batch in mnist_train:
            x, y = train_batch

            logits = model(x)
            loss = model.cross_entropy_loss(logits, y)

            loss.backward()

            optimizer.step()
            optimizer.zero_grad()

        # VALIDATION LOOP
        with torch.no_grad():
            val_loss = []
            for val_batch in mnist_val:
                x, y = val_batch
                logits = model(x)
                val_loss.append(model.cross_entropy_loss(logits, y).item())

            val_loss = torch.mean(torch.tensor(val_loss))
            print(f"epoch {epoch}, train_loss {loss.item():.4f}, val_loss {val_loss.item():.4f}")


def digits(data_dir: str) -> tuple[Dataset, Dataset]:
    """Scikit-learn's digits of 8 by 8 pixels; a seventh is for the test."""
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    images = torch.tensor(images / 16, dtype=torch.float32).reshape(-1, 1, 8, 8)
    data = TensorDataset(images, torch.tensor(labels))
    return tuple(random_split(data, [1540, 257], torch.Generator().manual_seed(0)))


def mnist(data_dir: str) -> tuple[Dataset, Dataset]:
    """MNIST of 28 by 28 pixels, downloaded where it is not there yet."""
    from torchvision import transforms
    from torchvision.datasets import MNIST

    transform = transforms.Compose([transforms.ToTensor(), transforms.Normalize((0.1307,), (0.3081,))])
    try:
        train, test = (MNIST(data_dir, train=train, download=True, transform=transform) for train in (True, False))
    except RuntimeError as error:  # of every mirror, a line each
        reason = str(error).strip().splitlines()[-1]
        raise OSError(f"MNIST could neither be loaded from {data_dir} nor downloaded: {reason}") from error
    return train, test


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dataset", choices=("digits", "mnist"), default="digits", help="(default: %(default)s)")
    parser.add_argument("--data-dir", default="data", help="for downloads (default: %(default)s)")
    parser.add_argument("--run-dir", type=Path, default=Path("runs/seed"), help="for logs (default: %(default)s)")
    parser.add_argument("--max-epochs", type=int, default=5, help="(default: %(default)s)")
    parser.add_argument("--gpus", default=None, help="how many (2), or which (0,1); none by default")
    parser.add_argument("--by-hand", action="store_true", help="train by the loop that the Trainer replaces")
    return parser.parse_args()


if __name__ == "__main__":
    try:
        main()
    except (ImportError, OSError, ValueError) as error:  # no torchvision, no network, no GPU
        sys.exit(f"seed_mnist.py: {error}")
