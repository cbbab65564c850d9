"""Each benchmark runs, with settings so small that what it measures means nothing."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


def run(name: str, *arguments: str) -> str:
    """What it prints, in a process of its own, as users run it."""
    finished = subprocess.run(
        [sys.executable, str(BENCHMARKS / f"{name}.py"), *arguments],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert finished.returncode == 0, finished.stderr
    return finished.stdout


def module_of(name: str):
    spec = importlib.util.spec_from_file_location(name, BENCHMARKS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as meanwhile:  # not for longer: `lightning` is a file there, too
        meanwhile.syspath_prepend(BENCHMARKS)
        spec.loader.exec_module(module)
    return module


def test_the_full_set_leads_to_the_same_bits_as_the_loop_by_hand():
    printed = run("full_set", "--batches", "8", "--epochs", "1", "--repeats", "1", "--peers", "none")
    compared = re.findall(r"^Camshaft .* (same bits|others) .*goal 1.05", printed, re.MULTILINE)
    assert compared == ["same bits", "same bits"]
    for concern in ("accumulation", "early stopping", "checkpoint", "moving average"):
        assert re.search(rf"^{concern} +\d", printed, re.MULTILINE)


def test_whole_runs_lead_to_the_same_bits_as_the_loop_by_hand():
    pytest.importorskip("sklearn", reason="the digits come with scikit-learn")
    printed = run("whole_runs", "--repeats", "1", "--epochs", "1", "--peers", "none", "--batches", "4")
    assert re.findall(r"^Camshaft .* (same bits|others) ", printed, re.MULTILINE) == ["same bits", "same bits"]


def test_scaling_tells_of_handlers_epochs_starts_and_long_runs():
    printed = run("scaling", "--iterations", "1000", "--trained", "100", "--short", "100", "--repeats", "1")
    for line in ("  100 plain", "  100 every=100", "an epoch of one iteration", "run() of one iteration"):
        assert f"\n{line}" in printed
    assert printed.count(" MB (goal 1.0 MB ") == 3


def test_a_peer_that_cannot_be_imported_is_told_and_left_out(monkeypatch, capsys):
    startup = module_of("startup")
    broken = "raise RuntimeError('operator torchvision::nms does not exist')"
    monkeypatch.setattr(startup, "PROGRAMS", {"bare loop": startup.SAY_WHEN})
    monkeypatch.setattr(startup, "PEERS", {"Lightning": broken})
    assert list(startup.measure(1)) == ["bare loop"]
    told = "Lightning is left out: RuntimeError: operator torchvision::nms does not exist\n"
    assert capsys.readouterr().out == told


with_the_peers = pytest.mark.skipif(
    importlib.util.find_spec("keras") is None, reason="the peers are installed by `make bench`, into .venv-bench"
)


@with_the_peers
def test_the_peers_do_not_see_a_torchvision_that_may_not_fit_torch():
    assert importlib.util.find_spec("torchvision") is None
    importlib.import_module("lightning.pytorch")


@with_the_peers
def test_every_peer_trains_to_the_same_bits_but_keras():
    printed = run("full_set", "--batches", "8", "--epochs", "1", "--repeats", "1", "--concerns", "none")
    for peer in ("Ignite", "Fabric", "Accelerate", "TorchTNT", "Lightning"):
        assert re.findall(rf"^{peer} .* (same bits|others)$", printed, re.MULTILINE) == ["same bits", "same bits"]


@pytest.fixture(scope="module")
def run_all():
    return module_of("run_all")


class TestTheResults:
    """RESULTS.md, as run_all.py writes it."""

    def test_sections_are_kept_when_others_are_measured_anew(self, run_all):
        sections = {"full_set": "a table\n\n```text\nCamshaft  1.01  goal 1.05: reached\n```", "scaling": "another"}
        assert run_all.sections_of(run_all.document(sections)) == sections

    def test_goals_are_gathered_from_all_sections(self, run_all):
        document = run_all.document({"full_set": "Camshaft  1.07 MISSED", "scaling": "a run 0.1 MB reached"})
        assert "| `full_set.py` | **missed** | Camshaft 1.07 MISSED |" in document
        assert "| `scaling.py` | reached | a run 0.1 MB reached |" in document

    def test_it_says_at_the_top_which_peers_are_missing(self, run_all):
        document = run_all.document(
            {"startup": "bare loop 1.0\n  Lightning is left out: ImportError: none\nIgnite 1.2"}
        )
        top, _ = document.split("## startup")
        assert "Peers that are missing below:\n\n- `startup.py`: Lightning is left out: ImportError: none\n\n" in top
        assert "missing" not in run_all.document({"startup": "Lightning 1.8"})

    def test_every_benchmark_there_is_takes_part(self, run_all):
        others = {"libraries", "run_all", "figures"}
        assert {path.stem for path in BENCHMARKS.glob("*.py")} - others == set(run_all.BENCHMARKS)

    @pytest.mark.skipif(not hasattr(os, "getloadavg"), reason="the load of the machine is not known here")
    def test_a_benchmark_that_fails_leaves_its_section(self, run_all, tmp_path, monkeypatch):
        (tmp_path / "engine.py").write_text('"""Fails."""\n\nraise SystemExit(1)\n', encoding="utf-8")
        monkeypatch.setattr(run_all, "HERE", tmp_path)
        monkeypatch.setattr(run_all, "RESULTS", tmp_path / "RESULTS.md")
        monkeypatch.setattr(run_all.figures, "SHOWN_IN", ())
        (tmp_path / "RESULTS.md").write_text(run_all.document({"engine": "as it was"}), encoding="utf-8")
        monkeypatch.setattr(sys, "argv", ["run_all.py", "engine"])
        with pytest.raises(SystemExit, match="failed: engine"):
            run_all.main()
        assert "as it was" in (tmp_path / "RESULTS.md").read_text(encoding="utf-8")
