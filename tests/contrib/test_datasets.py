"""Small real data; `tests/examples/test_digits.py` reads MNIST's format through it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from camshaft.contrib.datasets import images


def pictures_of(part) -> torch.Tensor:
    return torch.stack([picture for picture, _ in part])


def test_the_parts_are_the_same_whatever_the_seed() -> None:
    torch.manual_seed(1)
    first = images("digits")
    torch.manual_seed(2)
    second = images("digits")
    for one, same in zip(first[:3], second[:3], strict=True):
        assert torch.equal(pictures_of(one), pictures_of(same))


def test_no_picture_to_test_with_is_among_those_to_train_with() -> None:
    data = images("digits")
    taken = [set(part.indices) for part in data[:3]]
    assert sum(map(len, taken)) == len(set.union(*taken)) == 1797


def test_brightness_is_from_0_to_1_and_classes_count_from_0() -> None:
    data = images("digits")
    pictures = pictures_of(data.train)
    assert (float(pictures.min()), float(pictures.max()), pictures.dtype) == (0.0, 1.0, torch.float32)
    assert pictures.shape[1:] == data.shape
    assert {int(label) for _, label in data.train} == set(range(data.classes))


def test_a_name_that_is_not_known_is_refused_with_those_that_are() -> None:
    with pytest.raises(ValueError, match="There are no pictures named 'emnist': choose one of digits, mnist,"):
        images("emnist")


def test_what_can_neither_be_read_nor_downloaded_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")  # where nobody listens
    with pytest.raises(OSError, match=r"CIFAR10 could neither be loaded from .* nor downloaded"):
        images("cifar10", tmp_path)
