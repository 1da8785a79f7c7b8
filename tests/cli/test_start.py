"""What a pip user gets: a wheel with all its files, the library without any extra, and a folder to work in."""

import errno
import os
import shutil
import subprocess
import sys
import tomllib
import zipfile
from importlib import metadata
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from onestep_bench.cli import main

ROOT = Path(__file__).parents[2]
SHIPPED = ("notebooks", "params")
DATA = ("report/web/report.html", "report/web/page.js", "report/published.csv", "scoring/judges/digits.safetensors")


def contents(folder):
    """Relative path to bytes, of all files but hidden ones."""
    paths = [path for path in folder.rglob("*") if path.is_file()]
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in paths
        if not any(part.startswith(".") for part in path.relative_to(folder).parts)
    }


def check_started(folder):
    for name in SHIPPED:
        assert contents(folder / name) == contents(ROOT / name)
    assert {path.name for path in folder.iterdir()} == {*SHIPPED, "README.md"}
    assert "onestep-bench run params/quickstart.yaml" in (folder / "README.md").read_text()


# ---- the folder ------------------------------------------------------------------------------------------------------


def test_start_writes_a_folder_that_grids_are_planned_in(tmp_path, capsys, store_folder):
    folder = tmp_path / "new" / "work"
    assert main(["start", str(folder)]) == 0
    check_started(folder)
    assert [path.name for path in folder.parent.iterdir()] == ["work"]
    capsys.readouterr()
    assert main(["plan", str(folder / "params" / "quickstart.yaml")]) == 0
    assert f"results go to {folder / 'reports'}" in capsys.readouterr().out


def test_start_fills_the_empty_folder_that_one_stands_in(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    before = tmp_path.stat().st_ino
    assert main(["start", "."]) == 0
    assert tmp_path.stat().st_ino == before
    check_started(tmp_path)


@pytest.mark.parametrize("used", ["a folder", "a hidden file", "a file"])
def test_start_leaves_what_is_there_alone(tmp_path, capsys, used):
    folder = tmp_path / "work"
    if used == "a file":
        folder.write_text("mine")
    else:
        folder.mkdir()
        (folder / (".git" if used == "a hidden file" else "notes.txt")).write_text("mine")
    before = sorted(tmp_path.rglob("*"))
    assert main(["start", str(folder)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert str(folder) in line
    assert "choose another name" in line
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("exists", [False, True])
def test_a_full_disk_leaves_nothing(tmp_path, capsys, monkeypatch, exists):
    folder = tmp_path / "work"
    if exists:
        folder.mkdir()
    before = sorted(tmp_path.rglob("*"))
    copy = shutil.copyfile

    def filling(source, target):
        if str(source).endswith(".yaml"):
            raise OSError(errno.ENOSPC, "No space left on device")
        copy(source, target)

    monkeypatch.setattr(shutil, "copyfile", filling)
    assert main(["start", str(folder)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "No space left on device; free space" in line
    assert sorted(tmp_path.rglob("*")) == before


# ---- the wheel -------------------------------------------------------------------------------------------------------


def pip(*words):
    subprocess.run([sys.executable, "-m", "pip", "--quiet", *map(str, words)], check=True)


def build(source, folder):
    """A wheel of a folder or an sdist, by the hatchling of this environment."""
    pip("wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", folder, source)
    (wheel,) = folder.glob("*.whl")
    return wheel


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A checkout that somebody works in: with what JupyterLab and Python leave behind."""
    copy = tmp_path_factory.mktemp("source")
    for name in ("onestep_bench", *SHIPPED):
        shutil.copytree(ROOT / name, copy / name)
    for name in ("pyproject.toml", "README.md", "LICENSE", "CITATION.cff", "constraints.txt", ".gitignore"):
        shutil.copyfile(ROOT / name, copy / name)
    for stray in ("notebooks/.ipynb_checkpoints/tour-checkpoint.ipynb", "params/.quickstart.yaml.swp"):
        (copy / stray).parent.mkdir(exist_ok=True)
        (copy / stray).write_text("stray")
    return copy


@pytest.fixture(scope="module")
def wheel(source, tmp_path_factory):
    return build(source, tmp_path_factory.mktemp("wheel"))


def checksums(wheel):
    with zipfile.ZipFile(wheel) as archive:
        return {entry.filename: entry.CRC for entry in archive.infolist()}


def test_wheel_holds_the_package_with_its_data_and_no_strays(wheel):
    names = checksums(wheel)
    assert {f"onestep_bench/{name}" for name in DATA} <= names.keys()
    code = {str(path.relative_to(ROOT)) for path in (ROOT / "onestep_bench").rglob("*.py")}
    assert {name for name in names if name.endswith(".py")} == code
    assert not [name for name in names if "/." in name or "__pycache__" in name]
    assert {name.split("/")[0] for name in names if ".dist-info/" not in name} == {"onestep_bench"}


def test_sdist_builds_the_same_wheel(source, wheel, tmp_path):
    command = [sys.executable, "-m", "hatchling", "build", "--target", "sdist", "--directory", str(tmp_path)]
    subprocess.run(command, cwd=source, check=True, capture_output=True)
    (sdist,) = tmp_path.glob("*.tar.gz")
    assert checksums(build(sdist, tmp_path)) == checksums(wheel)


def brought():
    """The distributions that `pip install onestep-bench` brings here, by normalised name."""
    found = set()
    open_ = list(tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"])
    while open_:
        wanted = Requirement(open_.pop())
        name = canonicalize_name(wanted.name)
        if name not in found and (not wanted.marker or wanted.marker.evaluate({"extra": ""})):
            found.add(name)
            open_ += metadata.requires(name) or ()
    return found


HIDE = """
import sys
from importlib.machinery import PathFinder

class Bare(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name.split(".")[0] in {hidden} else super().find_spec(name, path, target)

sys.meta_path[sys.meta_path.index(PathFinder)] = Bare
"""


@pytest.fixture(scope="module")
def bare(wheel, tmp_path_factory):
    """Function that runs Python with the wheel's package, and of all others only those that it brings."""
    site = tmp_path_factory.mktemp("site")
    pip("install", "--no-deps", "--target", site, wheel)
    base = {"onestep-bench", *brought()}
    hidden = {
        top
        for top, owners in metadata.packages_distributions().items()
        if not base & {canonicalize_name(owner) for owner in owners}
    }
    # Were one of them a dependency of the library, nothing here would notice that the library alone does without.
    extras = {"dask", "distributed", "bokeh", "psutil", "papermill", "ipykernel", "IPython", "jupyterlab", "ipywidgets"}
    assert extras <= hidden
    (site / "sitecustomize.py").write_text(HIDE.format(hidden=hidden))

    def run(folder, *words):
        environment = os.environ | {"PYTHONPATH": str(site), "ONESTEP_STORE": str(folder / "store")}
        return subprocess.run(
            [sys.executable, *words], cwd=folder, env=environment, capture_output=True, text=True, check=False
        )

    return run


COMMAND = ("-m", "onestep_bench.cli")


def test_the_library_alone_starts_and_plans_and_says_what_running_needs(bare, tmp_path):
    started = bare(tmp_path, *COMMAND, "start", "work")
    assert started.returncode == 0, started.stderr
    folder = tmp_path / "work"
    check_started(folder)
    (folder / "store").mkdir()
    for words in (["plan", "params/quickstart.yaml"], ["store", "ls"], ["--help"], ["run", "--help"]):
        done = bare(folder, *COMMAND, *words)
        assert done.returncode == 0, done.stderr
    running = folder / "reports" / "quickstart" / ".cells" / "gdd" / "running.json"  # as a killed run leaves it
    running.parent.mkdir(parents=True)
    running.write_text('{"host": "here", "started": 0}')
    status = bare(folder, *COMMAND, "status", "params/quickstart.yaml")
    assert status.returncode == 0, status.stderr
    shutil.rmtree(folder / "reports")
    refused = bare(folder, *COMMAND, "run", "params/quickstart.yaml")
    assert refused.returncode == 2
    (line,) = refused.stderr.splitlines()
    assert line.endswith("pip install 'onestep-bench[grid]'")
    assert not (folder / "reports").exists()


SCRIPT = """
from onestep_bench import __file__, data, study

digits = data.load("digits")
model = study.train("edm", digits, size="0.05M", kimg=0.064, batch_size=8)
study.record(study.evaluate(model, digits, label="EDM", steps=[1], samples=64, seeds=[0]))
print(__file__)
"""


def test_a_plain_script_trains_scores_and_prints_a_table(bare, tmp_path):
    done = bare(tmp_path, "-c", SCRIPT)
    assert done.returncode == 0, done.stderr
    heading, _, line, file = done.stdout.splitlines()
    assert heading.split()[:4] == ["digits,", "test", "digits,", "train"]
    assert line.split()[:2] == ["EDM", "0.05M"]
    assert not file.startswith(str(ROOT))


# ---- all of it -------------------------------------------------------------------------------------------------------


@pytest.mark.slow  # installs torch
def test_from_a_wheel_in_an_empty_environment_to_a_report(wheel, tmp_path):
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    environment |= {"ONESTEP_STORE": str(tmp_path / "store")}
    bin_ = tmp_path / "venv" / "bin"
    folder = tmp_path / "work"

    def run(*words, cwd=tmp_path):
        subprocess.run(list(map(str, words)), cwd=cwd, env=environment, check=True)

    run(sys.executable, "-m", "venv", tmp_path / "venv")
    pinned = ["--constraint", ROOT / "constraints.txt"]
    run(bin_ / "python", "-m", "pip", "install", "--quiet", *pinned, f"onestep-bench[grid] @ {wheel.as_uri()}")
    assert not (bin_ / "jupyter-lab").exists()
    run(bin_ / "onestep-bench", "start", folder)
    grid = yaml.safe_load((ROOT / "tests" / "grid" / "quickstart.yaml").read_text())
    grid |= {"name": "one", "stages": {"teacher": grid["stages"]["teacher"]}}
    (folder / "params" / "one.yaml").write_text(yaml.safe_dump(grid))
    run(bin_ / "onestep-bench", "run", "params/one.yaml", cwd=folder)
    assert "teacher" in (folder / "reports" / "one" / "report.html").read_text()
