"""What older source made is not taken for what the present source would make, and nothing else is refused."""

import importlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import onestep_bench
from onestep_bench import store
from onestep_bench.cli import main
from onestep_bench.store import provenance
from onestep_bench.store.artifacts import memo
from onestep_bench.store.files import write_text

pytestmark = pytest.mark.usefixtures("store_folder")

PACKAGE = Path(onestep_bench.__file__).parent
LAB = '''
"""A method from outside."""
from onestep_bench.errors import OnestepError

WEIGHT = 2.0

def helper(x: int) -> int:
    """A docstring."""
    if x < 0:
        raise OnestepError(f"{x} is less than nothing")
    return WEIGHT * x

def loss(x):
    return helper(x) + 1

def other(x):
    return x

register("lab", loss)
'''
# What is written in place of what, and the definitions of `loss` and of what it calls that it changes.
EDITS = {
    "comment": ("    return helper(x) + 1", "    # why\n    return (\n        helper(x) + 1\n    )", []),
    "docstring": ('    """A docstring."""', '    """Another\n    one."""', []),
    "message": ('f"{x} is less than nothing"', 'f"{x} is negative"', []),
    "annotation": ("x: int) -> int", "x)", []),
    "another function": ("    return x\n", "    return 3 * x\n", []),
    "moved": ("def other(x):\n    return x\n", "", []),
    "appended": ('register("lab", loss)', 'def more(x):\n    return x\n\nregister("lab", loss)', []),
    "the loss": ("helper(x) + 1", "helper(x) + 2", ["loss"]),
    "a constant that it uses": ("2.0", "3.0", ["WEIGHT"]),
    "a sign in a condition": ("x < 0", "x <= 0", ["helper"]),
    "gone": ("def helper", "def helped", ["helper"]),
}


@pytest.fixture
def lab(tmp_path, monkeypatch):
    """A function that edits the imported module `lab` and loads it again."""
    file = tmp_path / "lab.py"
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    file.write_text("register = print\n" + LAB)
    module = importlib.import_module("lab")
    yield lambda old, new: (file.write_text(file.read_text().replace(old, new)), importlib.reload(module))
    del sys.modules["lab"]


@pytest.mark.parametrize("edit", EDITS.values(), ids=EDITS)
def test_only_what_decides_numbers_counts_and_only_if_it_is_reached(lab, edit):
    before = provenance.source_of(["lab:loss"])
    assert before.keys() == {"lab:loss", "lab:helper", "lab:WEIGHT"}
    old, new, names = edit
    lab(old, new)
    assert provenance.changed(before) == [f"lab:{name}" for name in names]


def test_names_are_followed_through_modules_and_faces():
    found = provenance.source_of(["methods.kd:register(kd)", "networks.sizes:SIZES[0.2M]", "study:_student"])
    for name in ("methods.kd:regression_loss", "losses:l1", "samplers:one_step", "networks.sizes:_ddpmpp"):
        assert name in found
    assert "networks.unet:SongUNet" in found  # by `networks.sized`, which the room's face hands on
    assert not any(name.startswith(("errors", "store", "samplers:heun", "networks.sizes:SIZES[3M]")) for name in found)
    assert not provenance.changed(found)


def test_what_a_methods_registry_line_only_tells_decides_no_number(lab):
    lab('register("lab", loss)', 'register = dict\nregister(name="lab", loss=loss, version=1)')
    before = provenance.source_of(["lab:register(lab)"])
    lab("version=1", "version=1, follows_teacher=True")
    assert provenance.changed(before) == []
    lab("version=1", "version=2")
    assert provenance.changed(before) == ["lab:register(lab)"]


def test_what_counts_passes_and_costs_decides_no_number():
    from onestep_bench import methods, study

    found = {
        name
        for method in methods.names()
        for name in provenance.source_of(study._source_of(methods.get(method), "0.2M"))
    }
    assert "training.loop:_step" in found
    assert not any(name.startswith(("training.passes", "models.cost", "models.s", "methods:Method")) for name in found)


def test_every_beginning_is_there():
    """A name that is not there would stand for its whole file."""
    from onestep_bench import methods, samplers, study
    from onestep_bench.models import sampling

    entries = [entry for name in samplers.SAMPLERS for entry in sampling.source_of(name)]
    entries += [entry for name in methods.names() for entry in study._source_of(methods.get(name), "0.2M")]
    entries += ["scoring.evaluation:_score_seed", "scoring.judges:FeatureExtractor", "scoring.judging:judged"]
    entries += [f"scoring.judges.classifier:{name}" for name in ("train", "judge", "Classifier")]
    for entry in entries:
        assert len(provenance._named(entry)) == 1, entry


class Maker:
    def __init__(self, text="made"):
        self.text, self.calls = text, 0

    def __call__(self, folder):
        self.calls += 1
        write_text(folder / "text", f"{self.text} {self.calls}")
        return {"kimg": 1.0, "seconds": 1.0, "device": "none"}


def ask(make, parents=(), name="lab", **how):
    return memo("model", {"method": name}, parents, make, source=["lab:loss"], **how)


def test_what_other_source_made_is_refused_in_one_line(lab, refuses):
    make = Maker()
    key = ask(make).key
    lab("helper(x) + 1", "helper(x) + 1  # the same")
    assert ask(make).key == key
    lab("helper(x) + 1", "helper(x) + 2")
    with refuses(key, "lab:loss changed since it was made and the version of lab did not", f"store accept {key}"):
        ask(make)
    assert make.calls == 1
    assert (store.root() / key / "text").read_text() == "made 1"


def test_fresh_makes_again_what_other_source_made_and_finds_what_is_current(lab, monkeypatch):
    make = Maker()
    artifact = ask(make)
    ask(make, fresh=True)
    assert make.calls == 1
    lab("helper(x) + 1", "helper(x) + 2")
    monkeypatch.setenv("ONESTEP_FRESH", "1")
    ask(make)
    monkeypatch.delenv("ONESTEP_FRESH")
    ask(make)
    assert (artifact.folder / "text").read_text() == "made 2"
    assert [path.name for path in store.root().iterdir() if path.is_dir()] == [artifact.key]


def test_a_child_of_what_was_made_again_is_refused(lab, refuses):
    make, child_make = Maker(), Maker("child")
    parent = ask(make)
    child = memo("pairs", {"sampler": "heun"}, [parent], child_make)
    lab("helper(x) + 1", "helper(x) + 2")
    parent = ask(make, fresh=True)
    with refuses(child.key, f"{parent.key}, which it was made from, was made again since"):
        memo("pairs", {"sampler": "heun"}, [parent], child_make)
    memo("pairs", {"sampler": "heun"}, [parent], child_make, fresh=True)
    memo("pairs", {"sampler": "heun"}, [parent], child_make)
    assert child_make.calls == 2


def test_accepting_is_remembered(lab, refuses, capsys):
    make = Maker()
    key = ask(make).key
    ask(make, name="another")
    lab("helper(x) + 1", "1 + helper(x)")
    assert main(["store", "accept", key[:-3]]) == 0
    assert f"accepted: {key}" in capsys.readouterr().out
    assert ask(make).key == key
    with refuses("version of another did not"):
        ask(make, name="another")
    assert main(["store", "accept", "--all"]) == 0
    assert "1 accepted, 1 were made by the present source" in capsys.readouterr().out
    ask(make, name="another")
    assert make.calls == 2
    assert main(["store", "accept", "model-"]) == 2
    assert main(["store", "accept", "pairs-"]) == 2


def test_a_checkpoint_of_other_source_is_not_gone_on_from(lab, refuses):
    def killed(folder):
        (folder / "part").write_text("half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ask(killed)
    lab("helper(x) + 1", "helper(x) + 2")
    with refuses("(half made): lab:loss changed"):
        ask(Maker())
    assert sorted(ask(Maker(), fresh=True).meta["files"]) == ["text"]


def test_what_was_made_before_source_was_recorded_is_taken_as_it_is(lab):
    make = Maker()
    memo("model", {"method": "lab"}, [], make)
    folder = next(path for path in store.root().iterdir() if path.is_dir())
    meta = store.Artifact(folder).meta
    store.write_json(folder / store.META, {name: meta[name] for name in ("recipe", "parents", "cost", "files")})
    ask(make)
    assert make.calls == 1
    ask(make, fresh=True)
    assert make.calls == 2


PROGRAM = """
from onestep_bench import data, study
from onestep_bench.errors import OnestepError
digits = data.load("digits")
tiny = {"size": "0.05M", "kimg": 0.064, "batch_size": 32}
for fresh in (False, True):
    try:
        teacher = study.train("edm", digits, **tiny)
        pairs = study.make_pairs(teacher, 32, steps=2)
        student = study.train("kd", pairs, teacher=teacher, **tiny, fresh=fresh)
        scores = study.evaluate(student, digits, label="KD", steps=[1], seeds=[0], samples=128)
        print(student.artifact.key)
    except OnestepError as error:
        print(error)
"""


def test_a_methods_loss_edited_in_the_package(tmp_path):
    shutil.copytree(PACKAGE, tmp_path / PACKAGE.name, ignore=shutil.ignore_patterns("__pycache__"))
    file = tmp_path / PACKAGE.name / "methods" / "kd.py"

    def told(old="", new=""):
        """The lines of a run without `fresh`, and of one with it."""
        file.write_text(file.read_text().replace(old, new) if old else file.read_text())
        settings = {**os.environ, "PYTHONPATH": str(tmp_path), "PYTHONDONTWRITEBYTECODE": "1"}
        command = [sys.executable, "-c", PROGRAM]
        run = subprocess.run(command, cwd=tmp_path, env=settings, capture_output=True, text=True, check=True)
        return run.stdout.splitlines()

    first, again = told()
    assert first.startswith("model-")
    assert again == first
    assert told('"""Objective: regression from pure noise."""', "# regression") == [first, first]
    refusal, of_scores = told("labels), data)", "labels), 2 * data)")
    changed = "methods.kd:regression_loss changed since it was made and the version of kd did not"
    assert refusal.startswith(f"{first}: {changed}; raise the version, or make it again")
    assert of_scores.startswith("scores-")
    assert f"{first}, which it was made from, was made again since; make it again" in of_scores
    raised, _ = told('"kd", 1', '"kd", 2')
    assert raised.startswith("model-")
    assert raised != first
