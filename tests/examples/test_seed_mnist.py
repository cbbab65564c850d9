"""The programs of early 2020: `seed_mnist.py` ends in the bits of a loop by hand, and `main.py` takes `--gpus`."""

import re
import runpy
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    """An example as it runs from the command line, in this process; gives what it printed, and how it ended."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(ROOT / "examples")

    def start(name, *arguments):
        monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
        ended = None
        try:
            runpy.run_path(str(ROOT / "examples" / name), run_name="__main__")
        except SystemExit as exit_:
            ended = exit_.code
        return capsys.readouterr().out, ended

    threads = torch.get_num_threads()
    yield start
    torch.set_num_threads(threads)


def digest_of(out):
    return re.search(r"^weights sha256: ([0-9a-f]{64})$", out, re.MULTILINE)[1]


def accuracy_of(out):
    return float(re.search(r"^test_accuracy +([\d.]+)", out, re.MULTILINE)[1])


def test_the_two_lines_end_in_the_bits_of_the_loop_that_they_replace(run):
    two_lines, _ = run("seed_mnist.py", "--max-epochs", "2")
    by_hand, _ = run("seed_mnist.py", "--max-epochs", "2", "--by-hand")
    assert digest_of(two_lines) == digest_of(by_hand)


def test_it_learns_keeps_its_best_weights_and_uses_them(run):
    out, ended = run("seed_mnist.py")
    assert ended is None
    assert accuracy_of(out) > 0.9
    assert Path(re.search(r"^best checkpoint: (.*)$", out, re.MULTILINE)[1]).is_file()
    assert float(re.search(r"even digits from odd ones: ([\d.]+)%", out)[1]) > 60
    assert list(Path("runs/seed/lightning_logs/version_0").glob("events.out.tfevents.*"))


def test_it_trains_on_mnist_by_torchvisions_own_loader(run, small_mnist):
    pytest.importorskip("torchvision", reason="MNIST is read by torchvision")
    small_mnist(Path("data", "MNIST", "raw"))
    out, ended = run("seed_mnist.py", "--dataset", "mnist", "--max-epochs", "8")
    assert ended is None
    assert accuracy_of(out) > 0.9


def test_mnist_that_cannot_be_downloaded_is_told_in_one_line(run, monkeypatch):
    for name in ("http_proxy", "https_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    _, ended = run("seed_mnist.py", "--dataset", "mnist")
    assert ended.startswith("seed_mnist.py: MNIST could neither be loaded from data nor downloaded: ")
    assert "\n" not in ended


@pytest.mark.parametrize("gpus", [(), ("--gpus", "0")], ids=["by-default", "gpus-0"])
def test_main_trains_on_the_cpu(gpus, run):
    _, ended = run("main.py", *gpus, "--max_epochs", "1")
    assert ended is None
    assert list(Path("lightning_logs/version_0/checkpoints").iterdir())


def test_main_says_that_there_are_no_two_gpus(run, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    _, ended = run("main.py", "--gpus", "2")
    assert ended.startswith("main.py: Trainer(gpus='2') asks for 2 GPUs, but there is none here.")


def test_main_takes_every_flag_of_the_trainer(run):
    _, ended = run("main.py", "--fast_dev_run", "--weights_summary", "None")
    assert ended is None
    assert not any(Path.cwd().iterdir())
