"""The small modules and data of the demonstrations."""

import gzip
import struct

import pytest
import torch

from camshaft.contrib.lightning import demos
from camshaft.contrib.lightning.demos import boring_classes
from camshaft.contrib.lightning.demos.lstm import LightningLSTM, SimpleLSTM
from camshaft.contrib.lightning.demos.mnist_datamodule import MNIST, MNISTDataModule, read_idx
from camshaft.contrib.lightning.demos.transformer import (
    LightningTransformer,
    PositionalEncoding,
    Transformer,
    WikiText2,
)


@pytest.mark.parametrize("name", demos.__all__)
def test_every_public_name_is_there(name):
    assert getattr(demos, name).__name__ == name


@pytest.mark.parametrize("stage", ["fit", "validate", "test", "predict"])
@pytest.mark.parametrize("name", ["BoringDataModule", "BoringDataModuleNoLen", "IterableBoringDataModule"])
def test_the_boring_data_has_loaders_for_each_stage(name, stage):
    data = getattr(boring_classes, name)()
    data.setup(stage)
    method = {"fit": "train", "validate": "val"}.get(stage, stage)
    loaders = getattr(data, f"{method}_dataloader")()
    for loader in loaders if isinstance(loaders, list) else [loaders]:
        assert next(iter(loader)).shape[0] == 1


def test_random_data_of_each_kind_has_the_size_that_was_asked_for():
    assert boring_classes.RandomDictDataset(3, 4)[1]["b"].shape == (3,)
    assert [item.shape for item in boring_classes.RandomIterableDataset(3, 2)] == [(3,), (3,)]
    assert len(boring_classes.RandomIterableDatasetWithLen(3, 5)) == 5


@pytest.fixture
def text(tmp_path):
    (tmp_path / "wikitext-2.txt").write_text("to be or not\nto be\n" * 8)
    return tmp_path


def test_a_text_is_cut_into_pieces_of_which_each_predicts_the_next_word(text):
    dataset = WikiText2(text, block_size=5)
    inputs, target = dataset[0]
    assert (dataset.vocab_size, inputs.tolist(), target.tolist()) == (5, [0, 1, 2, 3, 4], [1, 2, 3, 4, 0])


@pytest.mark.parametrize("seen", [1, 3])
def test_the_transformer_sees_no_word_before_its_time(seen):
    model = Transformer(vocab_size=5, ninp=8).eval()
    source = torch.randint(5, (1, 6))
    target = torch.randint(5, (1, 6))
    changed = target.clone()
    changed[:, seen:] = (changed[:, seen:] + 1) % 5
    assert torch.allclose(model(source, target)[:seen], model(source, changed)[:seen], atol=1e-6)
    assert not torch.allclose(model(source, target)[seen:], model(source, changed)[seen:], atol=1e-3)


def test_each_place_has_an_encoding_of_its_own():
    encoded = PositionalEncoding(8, dropout=0.0)(torch.zeros(1, 6, 8))[0]
    assert len({tuple(row.tolist()) for row in encoded}) == 6


def test_the_transformer_learns_a_step(text):
    module = LightningTransformer(vocab_size=5)
    inputs, target = WikiText2(text, block_size=5)[0]
    module.training_step((inputs[None], target[None]), 0).backward()
    assert all(parameter.grad is not None for parameter in module.parameters())


def test_the_lstm_goes_on_where_the_batch_before_ended():
    module = LightningLSTM(vocab_size=5)
    module.model = SimpleLSTM(vocab_size=5, ninp=4, nhid=4, nlayers=2)
    words = torch.randint(5, (3, 6))
    module.training_step((words, words), 0)
    state = module.hidden[0]
    module.training_step((words, words), 1)
    assert not state.requires_grad
    assert not torch.equal(state, module.hidden[0])


# MNIST.


def idx(array):
    return (
        bytes([0, 0, 8, array.dim()]) + struct.pack(f">{array.dim()}I", *array.shape) + bytes(array.flatten().tolist())
    )


@pytest.fixture
def digits(tmp_path):
    """A folder of MNIST with 20 and 10 images, half of the files compressed."""
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for name, number in (("train", 20), ("t10k", 10)):
        images = torch.randint(256, (number, 28, 28), dtype=torch.uint8)
        (raw / f"{name}-images-idx3-ubyte").write_bytes(idx(images))
        labels = torch.arange(number, dtype=torch.uint8) % 10
        (raw / f"{name}-labels-idx1-ubyte.gz").write_bytes(gzip.compress(idx(labels)))
    return tmp_path


def test_mnist_is_read_as_torchvision_reads_it(digits):
    datasets = pytest.importorskip("torchvision.datasets", reason="an optional package")
    for file in (digits / "MNIST" / "raw").glob("*.gz"):
        file.with_suffix("").write_bytes(gzip.decompress(file.read_bytes()))
    ours, theirs = MNIST(digits, train=False), datasets.MNIST(digits, train=False)
    assert torch.equal(ours.data, theirs.data)
    assert torch.equal(ours.targets, theirs.targets)
    assert (ours[3][0].tobytes(), ours[3][1]) == (theirs[3][0].tobytes(), theirs[3][1])


def test_images_and_labels_are_transformed(digits):
    dataset = MNIST(digits, transform=lambda image: "image", target_transform=lambda label: label + 1)
    assert dataset[3] == ("image", 4)


def test_missing_files_are_told_with_what_to_do(tmp_path):
    with pytest.raises(RuntimeError, match=r"no train-images-idx3-ubyte. MNIST\(..., download=True\)"):
        MNIST(tmp_path)


def test_the_data_module_keeps_some_images_for_validation(digits):
    data = MNISTDataModule(str(digits), val_split=4, num_workers=0, batch_size=4)
    data.setup("fit")
    sizes = [len(loader.dataset) for loader in (data.train_dataloader(), data.val_dataloader(), data.test_dataloader())]
    images, labels = next(iter(data.train_dataloader()))
    assert (sizes, images.shape, labels.shape) == ([16, 4, 10], (4, 1, 28, 28), (4,))
    assert 0 <= images.min() <= images.max() <= 1


def test_normalized_images_are_from_minus_one_to_one(digits):
    data = MNISTDataModule(str(digits), val_split=4, num_workers=0, normalize=True)
    data.setup("fit")
    images, _ = next(iter(data.val_dataloader()))
    assert -1 <= images.min() < 0 < images.max() <= 1


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"\x89PNG....", "no idx file"),
        (bytes([0, 0, 8, 1, 0]), "cut off"),
        (bytes([0, 0, 8, 1, 0, 0, 0, 3, 7]), "1 of 3"),
    ],
    ids=["another", "header", "content"],
)
def test_a_damaged_file_is_told_as_such(tmp_path, content, sentence):
    (tmp_path / "file").write_bytes(content)
    with pytest.raises(ValueError, match=sentence):
        read_idx(tmp_path / "file")
