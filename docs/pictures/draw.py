"""Draws the pictures in this folder, and prints the texts of docs/seeing.md, from real runs that it makes.

    python docs/pictures/draw.py [DIRECTORY]

It needs the extra `vision` and rich. Other pictures come out each time, because times are in them.
"""

# ruff: noqa: T201

import io
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from rich.console import Console
from train import Training

from camshaft import Events, GradientMonitor, LRFinder, ProgressBar, RichProgress, Trace
from camshaft.curves import plot_curves

HERE = Path(__file__).parent
DIGITS = HERE.parents[1] / "examples" / "digits.py"
_COLUMNS = 96


def main(pictures: Path) -> None:
    torch.set_num_threads(1)
    os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    with tempfile.TemporaryDirectory() as folder:
        runs = Path(folder) / "runs"
        shutil.copy(HERE / "train.py", folder)
        subprocess.run([sys.executable, DIGITS, "--run-dir", runs / "demo"], check=True, capture_output=True)
        shutil.copy(runs / "demo" / "curves.png", pictures / "run.png")
        shutil.rmtree(runs)

        for rate in ("0.001", "0.003", "0.03"):
            subprocess.run(["python", "train.py", f"runs/lr={rate}", "--lr", rate], cwd=folder, check=True)
        plot_curves(sorted(runs.iterdir()), pictures / "curves_of_three_runs.png")
        for command in (["runs", "runs"], ["show", "runs/lr=0.003"]):
            print(f"$ camshaft {' '.join(command)}", flush=True)
            subprocess.run([sys.executable, "-m", "camshaft", *command], cwd=folder, check=True)

        training = Training(0.003, width=4096)  # for a step that can be seen beside the rest
        timeline = training.trainer.timeline(first=38, iterations=3)
        training.run(Path(folder) / "timeline")
        timeline.plot(pictures / "timeline.png")

        training = Training(0.003)
        LRFinder(min_lr=1e-5, max_lr=1.0).run(training.trainer, training.loader).plot(pictures / "learning_rate.png")

        (pictures / "rich_progress.svg").write_text(seen_with_rich(Path(folder) / "rich"), encoding="utf-8")
        print("\nProgressBar in a pipe")
        Training(0.003).run(Path(folder) / "bar", ProgressBar(file=sys.stdout))
        print("\nTrace")
        Training(0.003).run(Path(folder) / "trace", Trace(first=7, iterations=1, file=sys.stdout))
        print("\nGradientMonitor, where a bias of -100 keeps the first layer from learning")
        training = Training(0.003)
        torch.nn.init.constant_(training.model[1].bias, -100.0)
        training.run(Path(folder) / "gradients", GradientMonitor(dead=50, every=10))


class Terminal(io.StringIO):
    """Takes what is written for a terminal."""

    def isatty(self) -> bool:
        return True


def seen_with_rich(directory: Path) -> str:
    """What a terminal shows in the midst of a run, as a picture."""
    os.environ["COLUMNS"] = str(_COLUMNS)
    training, progress = Training(0.003), RichProgress(file=Terminal(), refresh_seconds=0)
    terminal = Console(file=Terminal(), width=_COLUMNS, record=True)

    @training.trainer.on(Events.ITERATION_COMPLETED(once=70))
    def look() -> None:
        assert progress._display is not None
        lines = progress._display.console.file.getvalue().splitlines()  # type: ignore[attr-defined]
        for line in dict.fromkeys(re.sub(r"\x1b\[[^A-Za-z]*[A-Za-z]", "", line) for line in lines):
            if re.match(r"epoch \d+/\d+ \d+/\d+ \[", line):  # of an epoch that is over
                terminal.print(line, highlight=False)
        terminal.print(progress._display._live.renderable)

    training.run(directory, progress)
    return terminal.export_svg(title="RichProgress")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else HERE)
