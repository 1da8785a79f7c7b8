"""CONTRIBUTING.md: its picture is the tower, and each of its walks goes from one file to a row in a figure."""

import csv
import json
import re
import shlex
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import papermill
import pytest
import yaml
from test_architecture import TOWER

import onestep_bench
from onestep_bench.grid.parameters import Notebook, checked

PACKAGE = Path(onestep_bench.__file__).parent
ROOT = PACKAGE.parent
PAGE = (ROOT / "CONTRIBUTING.md").read_text()

# Budgets at which a notebook runs through in seconds. The judge `classifier` would take longer.
TINY = {
    "teacher_kimg": 0.064,
    "kimg": 0.064,
    "batch_size": 32,
    "pairs": 32,
    "pair_steps": 2,
    "samples": 128,
    "seeds": [0],
    "steps": [1],
    "features": ["digits"],
    "splits": ["test"],
}

# Imports every room where a walk may add something, tells what is there, and renders the report as the shell would.
PROGRAM = """
import json, sys
import onestep_bench
from onestep_bench import cli, data, methods, samplers, scoring
names = {"method": methods.names(), "data set": data.names(), "judge": scoring.names(), "sampler": [*samplers.SAMPLERS]}
code = cli.main(sys.argv[1:])
print(json.dumps({"file": onestep_bench.__file__, "code": code, "names": names}))
"""


@dataclass(frozen=True)
class Walk:
    """One walk of the page. file: path below the root; append: whether the code goes to its end."""

    kind: str
    file: str
    append: bool
    code: str
    commands: list[list[str]]

    @property
    def folder(self) -> str:
        """Where its notebooks and its report go."""
        return self.commands[-1][-1]


def blocks(section, language):
    return re.findall(rf"^```{language}\n(.*?)^```$", section, re.M | re.S)


def walk(section):
    (code,), (shell,) = blocks(section, "python"), blocks(section, "sh")
    first, rest = code.split("\n", 1)
    file, append = re.fullmatch(r"# (\S+\.py)(, at the end)?", first).groups()
    kind = re.match(r"Add a (.*)", section)[1]
    return Walk(kind, file, bool(append), rest, [shlex.split(line) for line in shell.splitlines()])


WALKS = {made.kind: made for made in map(walk, re.findall(r"^## (Add a .*?)(?=^## |\Z)", PAGE, re.M | re.S))}
# Kind: what its walk adds, and the column of a row of results.csv that says so.
ADDED = {
    "method": ("fresh-kd", "method"),
    "data set": ("shapes", "dataset"),
    "judge": ("edges", "features"),
    "sampler": ("midpoint", "sampler"),
}


def papermills(walk):
    """(notebook, executed notebook, parameters) of each papermill command of a walk."""
    for command, *arguments in walk.commands:
        if command == "papermill":
            notebook, out, *options = arguments
            yield notebook, out, dict(parameters(options))


def parameters(options):
    """As papermill reads `-p NAME VALUE` and `-y YAML`."""
    while options:
        if options[0] == "-p":
            yield options[1], yaml.safe_load(options[2])
            options = options[3:]
        else:
            assert options[0] == "-y"
            yield from yaml.safe_load(options[1]).items()
            options = options[2:]


def contents(folder):
    files = (path for path in folder.rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    return {path.relative_to(folder.parent).as_posix(): path.read_bytes() for path in files}


def test_the_picture_of_the_rooms_is_the_tower():
    picture = re.search(r"^## The rooms$.*?^```\n(.*?)^```$", PAGE, re.M | re.S)[1]
    floors = [set(line.split("  ")[0].split()) for line in picture.splitlines()]
    assert floors == TOWER[::-1]


def test_there_are_four_walks_and_the_links_lead_to_them():
    assert WALKS.keys() == ADDED.keys()
    headings = {heading.lower().replace(" ", "-") for heading in re.findall(r"^## (.*)$", PAGE, re.M)}
    assert set(re.findall(r"\]\(#(.*?)\)", PAGE)) <= headings


def test_files_and_targets_that_the_page_names_exist():
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M)
    assert set(re.findall(r"\bmake ([a-z-]+)", PAGE)) - {"no"} <= set(targets)
    for name in re.findall(r"`([\w/]+/[\w.]+\.(?:py|ipynb))`", PAGE):
        made = name in {walk.file for walk in WALKS.values()}
        assert made or any((root / name).exists() for root in (ROOT, PACKAGE, PACKAGE / "data", PACKAGE / "scoring")), (
            name
        )


@pytest.mark.parametrize("kind", ADDED)
def test_commands_give_notebooks_what_they_declare(kind):
    folder = WALKS[kind].folder
    assert WALKS[kind].commands[0] == ["mkdir", "-p", folder]
    assert WALKS[kind].commands[-1] == ["onestep-bench", "report", folder]
    runs = list(papermills(WALKS[kind]))
    assert len(runs) == len(WALKS[kind].commands) - 2 > 0
    for notebook, out, given in runs:
        assert Path(out).parent == Path(folder)
        declared = Notebook.read(ROOT / notebook).declared
        for name, value in given.items():
            several = isinstance(declared[name], list) and not isinstance(value, list)  # which a notebook makes a list
            checked(name, [value] if several else value, declared, notebook, "")  # raises for what does not fit


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """For all walks: they train one teacher."""
    return tmp_path_factory.mktemp("store")


@pytest.mark.parametrize("kind", ADDED)
def test_one_file_leads_to_a_row_in_a_figure(kind, store, tmp_path, monkeypatch):
    walk, (added, column) = WALKS[kind], ADDED[kind]
    for folder in (PACKAGE, ROOT / "notebooks"):
        shutil.copytree(folder, tmp_path / folder.name)
    before, file = contents(tmp_path / PACKAGE.name), tmp_path / walk.file
    assert file.exists() == walk.append
    file.write_text((file.read_text() + "\n\n" if walk.append else "") + walk.code)
    for check in (["check"], ["format", "--check"]):
        python("-m", "ruff", *check, "--config", str(ROOT / "pyproject.toml"), str(file), cwd=tmp_path)

    monkeypatch.setenv("ONESTEP_STORE", str(store))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    (tmp_path / walk.folder).mkdir(parents=True)
    for notebook, out, given in papermills(walk):
        if added not in str(given):  # a rival, to compare with
            continue
        declared = Notebook.read(ROOT / notebook).declared.keys() - ({"features"} if kind == "judge" else set())
        given = given | {name: value for name, value in TINY.items() if name in declared}
        files = (str(tmp_path / name) for name in (notebook, out))
        papermill.execute_notebook(*files, given, cwd=str(tmp_path), progress_bar=False)
    told = json.loads(python("-c", PROGRAM, *walk.commands[-1][1:], cwd=tmp_path).splitlines()[-1])
    assert told["code"] == 0
    assert Path(told["file"]).parent == tmp_path / PACKAGE.name
    assert added in told["names"][kind]

    report = tmp_path / walk.folder
    rows = list(csv.DictReader((report / "results.csv").open()))
    own = [row for row in rows if row[column] == added]
    assert own
    assert all(float(row["fid"]) > 0 for row in own)
    assert own[0]["label"] in (report / "report.html").read_text()
    figures = list(report.glob("fid_vs_steps*.png"))  # one for each judge and split
    assert figures
    assert all(figure.stat().st_size > 0 for figure in figures)
    after = contents(tmp_path / PACKAGE.name)
    assert {name for name in before | after if before.get(name) != after.get(name)} == {walk.file}


def python(*arguments, cwd):
    """What Python prints; a failure shows what it said."""
    done = subprocess.run([sys.executable, *arguments], cwd=cwd, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return done.stdout
