"""The package is what setup.cfg says it is: in the source tree, as a wheel, as a source distribution, as imports."""

import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable
from configparser import ConfigParser
from importlib import import_module
from pathlib import Path

import pytest

import camshaft
from camshaft import handlers

ROOT = Path(__file__).parent.parent
MAPPED = ("contrib", "engine", "handlers")
PUBLIC = [
    (package, name)
    for package in ("camshaft", "camshaft.engine", "camshaft.handlers", "camshaft.contrib")
    for name in import_module(package).__all__
]

setup = ConfigParser()
setup.read(ROOT / "setup.cfg", encoding="utf-8")


def folders_of_packages() -> dict[str, Path]:
    """Every package in the source tree, by its name."""
    packages = {}
    tops = {"camshaft": ROOT / "camshaft"} | {f"camshaft.{name}": ROOT / name for name in MAPPED}
    for top, folder in tops.items():
        for directory, subdirectories, files in os.walk(folder, followlinks=False):
            if "__init__.py" not in files:
                subdirectories.clear()
                continue
            packages[".".join((top, *Path(directory).relative_to(folder).parts))] = Path(directory)
    return packages


def files_of_packages() -> set[str]:
    """What an installed Camshaft consists of, relative to the folder that it is installed in."""
    modules = {
        f"{package.replace('.', '/')}/{module.name}"
        for package, folder in folders_of_packages().items()
        for module in folder.glob("*.py")
    }
    return modules | {"camshaft/py.typed"}


def run(*command: str | Path, cwd: Path, **environment: str) -> str:
    """What the command printed; a failure shows all of its output."""
    ended = subprocess.run(
        command, check=False, cwd=cwd, env=os.environ | environment, capture_output=True, encoding="utf-8"
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return ended.stdout


# The source tree


def test_setup_lists_every_package_of_the_tree() -> None:
    assert setup["options"]["packages"].split() == sorted(folders_of_packages())


def test_setup_maps_every_linked_folder_to_its_package() -> None:
    mapping = dict(line.split(" = ") for line in setup["options"]["package_dir"].strip().splitlines())
    assert mapping == {"camshaft": "camshaft"} | {f"camshaft.{name}": name for name in MAPPED}


@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="a source distribution has the mapping alone")
@pytest.mark.parametrize("name", MAPPED)
def test_a_link_in_the_package_leads_to_each_mapped_folder(name: str) -> None:
    assert (ROOT / "camshaft" / name).resolve() == ROOT / name


@pytest.mark.parametrize("folder", folders_of_packages().values(), ids=list(folders_of_packages()))
def test_every_module_opens_by_saying_what_it_is_for(folder: Path) -> None:
    silent = [module.name for module in folder.glob("*.py") if not module.read_text("utf-8").startswith('"""')]
    assert not silent


# Imports


def test_importing_the_packages_imports_neither_torch_nor_ignite(tmp_path: Path) -> None:
    program = """if True:
        import sys, camshaft, camshaft.handlers, camshaft.contrib
        dir(camshaft), camshaft.__version__, camshaft.__all__
        sys.exit(sorted({"torch", "ignite", "numpy", "tqdm", "tensorboardX"} & sys.modules.keys()) or 0)
    """
    run(sys.executable, "-c", program, cwd=tmp_path)


def test_the_root_package_has_the_names_of_engine_handlers_launch_and_summary() -> None:
    engine, others = import_module("camshaft.engine"), ["launch", "Summary", "summary", "__version__"]
    assert sorted(camshaft.__all__) == sorted([*engine.__all__, *handlers.__all__, *others])


def test_the_list_of_handlers_is_the_table_of_their_modules() -> None:
    assert handlers.__all__ == list(handlers._modules) == sorted(handlers._modules)


@pytest.mark.parametrize(("package", "name"), PUBLIC)
def test_every_public_name_is_there_and_says_what_it_is(package: str, name: str) -> None:
    module = import_module(package)
    value = getattr(module, name)
    assert name in dir(module)
    assert name == "__version__" or value.__doc__


@pytest.mark.parametrize("package", [camshaft, handlers])
def test_a_misspelt_name_is_refused_by_the_packages_name_and_a_proposal(package: object) -> None:
    with pytest.raises(AttributeError, match=r"module 'camshaft.*' has no attribute 'Chekpoint'") as error:
        package.Chekpoint  # type: ignore[attr-defined]  # noqa: B018
    assert error.value.name == "Chekpoint"
    assert error.value.obj is package  # what Python looks for the nearest name in


# Distributions


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A copy of what the repository holds, in which a build leaves its traces."""
    copy = tmp_path / "source"
    ignored = shutil.ignore_patterns(".*", "__pycache__", "*.egg-info", "build", "dist", "runs", "data")
    shutil.copytree(ROOT, copy, symlinks=True, ignore=ignored)
    shutil.copy(ROOT / ".pre-commit-config.yaml", copy)
    return copy


def build(kind: str, source: Path) -> Path:
    """Build a "wheel" or an "sdist" with the installed setuptools, without a network."""
    target = source.parent / kind
    target.mkdir()
    run(sys.executable, "-c", f"from setuptools.build_meta import *; build_{kind}({str(target)!r})", cwd=source)
    (built,) = target.iterdir()
    return built


def files_in_wheel(wheel: Path) -> set[str]:
    with zipfile.ZipFile(wheel) as archive:
        return {name for name in archive.namelist() if ".dist-info/" not in name}


def links_as_they_are(source: Path) -> None:
    """What git makes."""


def links_as_text_files(source: Path) -> None:
    """What unpacking an archive, or git on Windows, may leave of a link."""
    for name in MAPPED:
        (source / "camshaft" / name).unlink(missing_ok=True)
        (source / "camshaft" / name).write_text(f"../{name}")


@pytest.mark.slow
@pytest.mark.parametrize("links", [links_as_they_are, links_as_text_files])
def test_the_wheel_holds_every_module_once_and_the_mark_of_types(links: Callable[[Path], None], source: Path) -> None:
    links(source)
    assert files_in_wheel(build("wheel", source)) == files_of_packages()


@pytest.mark.slow
def test_the_source_distribution_holds_the_tests_and_builds_the_same_wheel(source: Path, tmp_path: Path) -> None:
    sdist = build("sdist", source)
    unpacked = tmp_path / "unpacked"
    with tarfile.open(sdist) as archive:
        archive.extractall(unpacked, **({"filter": "data"} if hasattr(tarfile, "data_filter") else {}))
    (project,) = unpacked.iterdir()
    for file in ("LICENSE", "CHANGELOG.md", "constraints.txt", "tests/conftest.py", "tests/test_packaging.py"):
        assert (project / file).is_file()
    assert files_in_wheel(build("wheel", project)) == files_of_packages()


@pytest.mark.slow
def test_an_installed_wheel_works_away_from_the_source_tree(source: Path, tmp_path: Path) -> None:
    wheel = build("wheel", source)
    installed = tmp_path / "installed"
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check", "install", "--no-deps", "--no-index")
    run(*pip, "--target", installed, wheel, cwd=tmp_path)
    program = "import camshaft; from camshaft import Engine, OptimizerStep; print(camshaft.__file__)"
    printed = run(sys.executable, "-c", program, cwd=tmp_path, PYTHONPATH=str(installed))
    assert Path(printed.strip()) == installed / "camshaft" / "__init__.py"
    assert camshaft.__version__ in run(
        installed / "bin" / "camshaft", "--version", cwd=tmp_path, PYTHONPATH=str(installed)
    )
