"""A fit on two processes that the Trainer starts itself."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

PROGRAM = Path(__file__).with_name("processes_program.py")
SAMPLES = [round(number / 10, 6) for number in range(22)]


def run(directory: Path, mode: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, str(PROGRAM), str(directory), mode]
    return subprocess.run(command, capture_output=True, text=True, timeout=150, check=False)


@pytest.fixture(scope="module")
def seen(tmp_path_factory) -> list[dict[str, Any]]:
    """What each process saw."""
    directory = tmp_path_factory.mktemp("processes")
    ended = run(directory, "fits")
    assert ended.returncode == 0, ended.stderr
    return [json.loads((directory / f"{rank}.json").read_text()) for rank in range(2)]


def together(seen: list[dict[str, Any]], name: str) -> list[float]:
    return sorted(round(number, 6) for one in seen for number in one[name])


def test_there_are_two(seen):
    assert [one["world"] for one in seen] == [2, 2]


def test_each_has_its_share_of_the_batches(seen):
    assert [one["batches"] for one in seen] == [[3, 3], [3, 3]]


def test_together_they_train_on_every_sample_once(seen):
    assert together(seen, "first_epoch") == SAMPLES


def test_together_they_test_on_every_sample_once(seen):
    assert together(seen, "tested") == SAMPLES


def test_they_end_with_the_same_weights(seen):
    assert seen[0]["weights"] == seen[1]["weights"]


def test_synchronised_metrics_are_alike(seen):
    assert seen[0]["metrics"] == seen[1]["metrics"]
    assert seen[0]["metrics"]["of_rank"] == 1.0


def test_means_are_over_all_samples(seen):
    assert seen[0]["test"] == seen[1]["test"]
    assert seen[0]["test"][0]["mean"] == pytest.approx(sum(SAMPLES) / len(SAMPLES))


def test_they_stop_and_save_alike(seen):
    assert seen[0]["counts"] == seen[1]["counts"]
    assert seen[0]["counts"][0] < 6
    assert seen[0]["best"] == seen[1]["best"]


def test_what_prepare_data_assigns_is_there_on_each(seen):
    assert all(one["prepared"] for one in seen)


def test_several_loaders_are_shared_as_well(seen):
    assert not set(seen[0]["of_several"]) & set(seen[1]["of_several"])


def test_an_error_of_one_ends_the_other(tmp_path):
    ended = run(tmp_path, "fails")
    assert ended.returncode != 0
    assert "ZeroDivisionError" in ended.stderr
