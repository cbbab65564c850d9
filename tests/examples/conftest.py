"""Examples as they run from the command line, but in this process, which has imported torch already."""

from __future__ import annotations

import runpy
import struct
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from tests.examples.running import Ended, Run

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture
def example(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Iterator[Callable[[str], Run]]:
    """``run = example("digits.py")``, then ``run("--seed", "1")``: each in the empty directory of the test."""
    monkeypatch.chdir(tmp_path)

    def of(name: str) -> Run:
        def run(*arguments: str | Path) -> Ended:
            monkeypatch.setattr(sys, "argv", [str(EXAMPLES / name), *map(str, arguments)])
            status = 0
            try:
                runpy.run_path(str(EXAMPLES / name), run_name="__main__")
            except SystemExit as exit_:
                status = exit_.code
            return Ended(status, *capsys.readouterr())

        return run

    threads = torch.get_num_threads()
    yield of
    torch.set_num_threads(threads)


@pytest.fixture
def small_mnist() -> Callable[[Path], None]:
    """Writes data in the format of MNIST: squares of one pixel's width whose size is their class."""

    def write(folder: Path) -> None:
        folder.mkdir(parents=True)
        for part, count in (("train", 240), ("t10k", 60)):
            labels = torch.arange(count) % 10
            images = torch.zeros(count, 28, 28, dtype=torch.uint8)
            for image, label in zip(images, labels.tolist(), strict=True):
                end = 2 * label + 4
                image[2 : end + 1, [2, end]] = image[[2, end], 2 : end + 1] = 255
            header = struct.pack(">4B3I", 0, 0, 8, 3, count, 28, 28)
            (folder / f"{part}-images-idx3-ubyte").write_bytes(header + images.numpy().tobytes())
            header = struct.pack(">4BI", 0, 0, 8, 1, count)
            (folder / f"{part}-labels-idx1-ubyte").write_bytes(header + labels.to(torch.uint8).numpy().tobytes())

    return write
