"""What holds for all tests: one thread, the same random numbers each time, and a torchvision that can be imported."""

import os

# Before torch is imported, so that it holds for the processes that tests start, too.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import importlib.util
import random
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import settings

torch.set_num_threads(1)

# "ci" tries the same examples each time; `pytest --hypothesis-profile nightly` looks for new ones.
settings.register_profile("ci", deadline=None, derandomize=True, max_examples=50)
settings.register_profile("nightly", deadline=None, max_examples=2000)
settings.load_profile("ci")


@pytest.fixture(autouse=True)
def _same_random_numbers_in_every_test() -> None:
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002 - the generator that code under test might draw from
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _no_test_leaves_a_launchers_variables_behind() -> Iterator[None]:
    """Those that `initialise` adds to what a test has set; other libraries would take them for a launcher's."""
    names = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    before = {name: os.environ[name] for name in names if name in os.environ}
    yield
    for name in names:
        os.environ.pop(name, None)
    os.environ.update(before)


def _declare_torchvision_operators() -> None:
    """Let a torchvision built for CUDA be imported beside a torch built for the CPU.

    Its compiled operators cannot be loaded then, and its import fails for want of two of them, which no test calls.
    """
    torchvision = importlib.util.find_spec("torchvision")
    if torchvision is None or torchvision.origin is None:
        return
    try:
        for library in Path(torchvision.origin).parent.glob("_C.*"):
            torch.ops.load_library(library)
    except OSError:
        _torchvision_operators.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        _torchvision_operators.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")


# Its operators are gone when this object is.
_torchvision_operators = torch.library.Library("torchvision", "FRAGMENT")
_declare_torchvision_operators()
