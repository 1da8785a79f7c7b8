"""The ways to set the project up say the same."""

import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import yaml
from packaging.requirements import Requirement

from onestep_bench.grid import read_grid

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def listed(extra):
    """What an extra brings, with the extras that it names."""
    found = []
    for text in PROJECT["optional-dependencies"][extra]:
        inner = Requirement(text)
        found += (
            [one for name in sorted(inner.extras) for one in listed(name)] if inner.name == PROJECT["name"] else [text]
        )
    return found


def test_conda_environment_has_the_same_dependencies():
    *_, pip = yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"]
    editable, *dependencies = pip["pip"]
    assert editable == "--editable .[dev]"
    assert dependencies == PROJECT["dependencies"] + listed("dev")


def test_constraints_pin_a_version_that_each_dependency_accepts():
    pins = dict(
        line.split("==") for line in (ROOT / "constraints.txt").read_text().splitlines() if line and line[0] != "#"
    )
    for text in PROJECT["dependencies"] + listed("dev"):
        wanted = Requirement(text)
        assert wanted.specifier.contains(pins[wanted.name.lower()]), text


def test_version_is_stated_once_in_truth():
    import onestep_bench

    assert onestep_bench.__version__ == PROJECT["version"]
    assert f"version: {PROJECT['version']}" in (ROOT / "CITATION.cff").read_text()


def test_the_library_alone_brings_neither_grid_nor_lab():
    brought = {Requirement(text).name for text in PROJECT["dependencies"]}
    assert not brought & {Requirement(text).name for text in listed("grid") + listed("lab")}


def test_all_is_every_extra_that_the_library_can_use():
    (everything,) = PROJECT["optional-dependencies"]["all"]
    assert Requirement(everything).extras == PROJECT["optional-dependencies"].keys() - {"all", "benchmark", "dev"}


def test_make_lab_opens_copies_that_see_the_reports(tmp_path):
    """With stand-ins for the two commands of .venv that it calls."""
    shutil.copyfile(ROOT / "Makefile", tmp_path / "Makefile")
    (tmp_path / "reports" / "mine").mkdir(parents=True)
    commands = {"onestep-bench": f'{sys.executable} -m onestep_bench.cli "$@"', "jupyter": 'echo "$@"'}
    for name, command in commands.items():
        (tmp_path / "bin" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "bin" / name).write_text(f"#!/bin/sh\n{command}\n")
        (tmp_path / "bin" / name).chmod(0o755)

    def lab():
        words = ["make", "lab", "BIN=bin", "--old-file=.venv/lab"]
        return subprocess.run(words, cwd=tmp_path, env=environment, check=True, capture_output=True, text=True).stdout

    # Of a make that runs the tests, this one knows nothing.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}
    environment["PYTHONPATH"] = str(ROOT)
    opened = "lab --notebook-dir=. --LabApp.default_url=/lab/tree/lab/notebooks/tour.ipynb"
    assert lab().splitlines()[-1] == opened
    tour = tmp_path / "lab" / "notebooks" / "tour.ipynb"
    assert tour.read_bytes() == (ROOT / "notebooks" / "tour.ipynb").read_bytes()
    assert (tmp_path / "lab" / "reports" / "mine").is_dir()
    grid = read_grid(tmp_path / "lab" / "params" / "quickstart.yaml")
    assert grid.out.parent.resolve() == tmp_path / "reports"
    tour.write_text("changed")
    assert lab().splitlines()[-1] == opened
    assert tour.read_text() == "changed"
