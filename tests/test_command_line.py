"""The command line says what it can do, and says in one line what it cannot."""

import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

import camshaft
from camshaft.__main__ import COMMANDS, main


def test_version_is_the_package_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        main(["--version"])
    assert exit_.value.code == 0
    assert capsys.readouterr().out == f"camshaft {camshaft.__version__}\n"


def test_help_lists_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        main(["--help"])
    assert exit_.value.code == 0
    text = " ".join(capsys.readouterr().out.split())  # lines are broken where the terminal ends
    assert all(name in text and summary in text for name, summary in COMMANDS.items())


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_a_module_with_arguments_and_a_run(name: str) -> None:
    command = import_module(f"camshaft.commands.{name}")
    assert callable(command.add_arguments)
    assert callable(command.run)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        main([name, "--help"])
    assert exit_.value.code == 0
    assert f"usage: camshaft {name}" in capsys.readouterr().out


@pytest.mark.parametrize("arguments", [[], ["fly"], ["--fly"], ["env", "--fly"]])
def test_wrong_arguments_end_with_one_line_of_error_and_status_2(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as exit_:
        main(arguments)
    assert exit_.value.code == 2
    assert "error: " in capsys.readouterr().err.splitlines()[-1]


def test_env_prints_the_versions_of_what_a_run_depends_on(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["env"]) == 0
    versions = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    assert versions["camshaft"] == camshaft.__version__
    assert versions["python"] == ".".join(map(str, sys.version_info[:3]))
    assert {"platform", "torch", "pytorch-ignite", "tensorboardX", "tqdm"} <= versions.keys()


def test_env_says_which_distribution_is_not_installed(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("camshaft.commands.env.DISTRIBUTIONS", ("a-distribution-that-nobody-wrote",))
    assert main(["env"]) == 0
    assert "a-distribution-that-nobody-wrote  not installed" in capsys.readouterr().out


def test_the_package_runs_as_a_module(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "camshaft", "--version"]
    answer = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert answer.stdout.startswith("camshaft ")


def test_env_answers_without_importing_torch(tmp_path: Path) -> None:
    program = """if True:
        import sys
        from camshaft.__main__ import main
        main(["env"])
        sys.exit(sorted({"torch", "ignite", "numpy"} & sys.modules.keys()) or 0)
    """
    subprocess.run([sys.executable, "-c", program], cwd=tmp_path, stdout=subprocess.DEVNULL, check=True)
