"""Work is done once, whatever happens to the process or to the files."""

import subprocess
import sys
import time

import pytest

from onestep_bench import store
from onestep_bench.store import artifacts
from onestep_bench.store.artifacts import key_of, memo
from onestep_bench.store.files import write_json, write_text

pytestmark = pytest.mark.usefixtures("store_folder")

ASK = """
import pathlib, sys, time
from onestep_bench.store import memo
def make(folder):
    print("making")
    while not pathlib.Path(sys.argv[1]).exists():
        time.sleep(0.01)
    (folder / "text").write_text("whole")
    return {"kimg": 0, "seconds": 0.5, "device": "none"}
artifact = memo("model", {"a": 1}, [], make)
print((artifact.folder / "text").read_text())
"""


class Maker:
    """Writes one file, and counts how often it had to."""

    def __init__(self, kimg=1.0):
        self.kimg, self.calls = kimg, 0

    def __call__(self, folder):
        self.calls += 1
        write_text(folder / "text", f"made {self.calls}")
        return {"kimg": self.kimg, "seconds": 10 * self.kimg, "device": "none"}


def make_one(recipe, parents=(), kimg=1.0):
    return memo("model", recipe, parents, Maker(kimg))


def test_made_once():
    make = Maker()
    first = memo("model", {"a": 1}, [], make)
    again = memo("model", {"a": 1}, [], make)
    assert (again.folder, make.calls) == (first.folder, 1)
    assert again.recipe == {"a": 1}
    assert again.cost() == {"kimg": 1.0, "seconds": 10.0, "passes": None, "macs": None, "busy": None}
    assert sorted(file.name for file in again.folder.iterdir()) == ["artifact.json", "text"]


def test_the_key_is_the_recipe_and_the_parents():
    keys = [
        key_of("model", {"a": 1}, []),
        key_of("model", {"a": 2}, []),
        key_of("model", {"b": 1}, []),
        key_of("pairs", {"a": 1}, []),
        key_of("model", {"a": 1}, ["x"]),
        key_of("model", {"a": 1}, ["x", "y"]),
    ]
    assert len(set(keys)) == len(keys)
    assert key_of("model", {"a": 1, "b": 2}, ["x", "y"]) == key_of("model", {"b": 2, "a": 1}, ["y", "x"])


def test_the_content_of_an_artifact_is_that_of_its_data_and_not_of_its_log():
    def content(name, **files):
        def make(folder):
            for file, text in files.items():
                write_text(folder / file.replace("_", "."), text)
            return {"kimg": 0, "seconds": 0, "device": "none"}

        return memo("model", {"a": name}, [], make).content

    one = content("one", weights_bin="1", log_json="3 s")
    assert content("two", weights_bin="1", log_json="4 s") == one
    assert content("three", weights_bin="2", log_json="3 s") != one
    assert content("four", scores_json="1") != content("five", scores_json="2")


def flip_a_byte(folder):
    content = bytearray((folder / "text").read_bytes())
    content[0] ^= 1
    (folder / "text").write_bytes(content)


DAMAGES = {
    "flipped byte": flip_a_byte,
    "lost file": lambda folder: (folder / "text").unlink(),
    "lost record": lambda folder: (folder / store.META).unlink(),
    "torn record": lambda folder: (folder / store.META).write_text('{"files": '),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_artifact_is_set_aside_and_made_again(damage):
    make = Maker()
    artifact = memo("model", {"a": 1}, [], make)
    damage(artifact.folder)
    with pytest.warns(UserWarning, match="damaged; set aside"):
        again = memo("model", {"a": 1}, [], make)
    assert (again.folder, make.calls) == (artifact.folder, 2)
    assert artifact.folder.with_name(artifact.folder.name + ".damaged").exists()
    memo("model", {"a": 1}, [], make)
    assert make.calls == 2


def test_what_a_killed_run_left_is_found_again():
    def killed(folder):
        (folder / "part").write_text("half")
        raise KeyboardInterrupt

    def goes_on(folder):
        assert (folder / "part").read_text() == "half"
        return Maker()(folder)

    with pytest.raises(KeyboardInterrupt):
        memo("model", {"a": 1}, [], killed)
    artifact = memo("model", {"a": 1}, [], goes_on)
    assert {file.name for file in artifact.folder.iterdir()} == {"artifact.json", "part", "text"}
    assert [path.name for path in store.root().glob("*.partial")] == []


def test_a_run_killed_at_its_very_end_leaves_nothing_that_looks_damaged(monkeypatch):
    make = Maker()

    def record_and_die(path, value):
        write_json(path, value)
        if "files" in value:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(artifacts, "write_json", record_and_die)
        with pytest.raises(KeyboardInterrupt):
            memo("model", {"a": 1}, [], make)
    memo("model", {"a": 1}, [], make)
    memo("model", {"a": 1}, [], make)
    assert make.calls == 2


def test_half_written_temporary_files_do_not_stay():
    def make(folder):
        (folder / ".model.safetensors.ab12.safetensors").write_text("torn off by a kill")
        return Maker()(folder)

    artifact = memo("model", {"a": 1}, [], make)
    assert sorted(file.name for file in artifact.folder.iterdir()) == ["artifact.json", "text"]
    assert list(artifact.meta["files"]) == ["text"]


def test_a_shared_ancestor_is_paid_once():
    teacher = make_one({"a": "teacher"}, kimg=100.0)
    pairs = make_one({"a": "pairs"}, [teacher], kimg=0.0)
    reflow = make_one({"a": "reflow"}, [pairs, teacher], kimg=20.0)
    student = make_one({"a": "student"}, [pairs, reflow], kimg=3.0)
    assert {artifact.key for artifact in student.lineage()} == {a.key for a in (teacher, pairs, reflow, student)}
    assert len(student.lineage()) == 4
    cost = student.cost()
    assert (cost["kimg"], cost["seconds"]) == (123.0, 1230.0)


def test_passes_and_what_else_the_machine_did_are_of_the_whole_lineage_or_of_nothing():
    def made(name, parents=(), **cost):
        return memo("model", {"a": name}, parents, lambda folder: Maker()(folder) | cost)

    teacher = made("teacher", passes=300.0, macs=9_000_000, busy=0.2)
    student = made("student", [teacher], passes=0.1, macs=1000, busy=1.1, seconds=20.0)
    found = student.cost()
    assert (found["passes"], found["macs"]) == (300.1, 9_001_000)
    assert found["busy"] == pytest.approx((10 * 0.2 + 20 * 1.1) / 30)
    before = made("from before they were recorded")
    found = made("its student", [teacher, before], passes=1.0, macs=1, busy=0.0).cost()
    assert (found["passes"], found["macs"], found["busy"]) == (None, None, None)


def test_two_processes_make_it_once(tmp_path):
    command = [sys.executable, "-u", "-c", ASK, str(tmp_path / "go on")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as first:
        assert first.stdout.readline() == "making\n"
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as second:
            time.sleep(1)  # long enough for the second to come to the lock; if not, it finds the artifact whole
            (tmp_path / "go on").touch()
            assert first.communicate(timeout=60)[0] == "whole\n"
            assert second.communicate(timeout=60)[0] == "whole\n"


def test_a_killed_holder_holds_nothing(tmp_path):
    command = [sys.executable, "-u", "-c", ASK, str(tmp_path / "go on")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as first:
        assert first.stdout.readline() == "making\n"
        first.kill()
    (tmp_path / "go on").touch()
    assert subprocess.run(command, capture_output=True, text=True, timeout=60).stdout == "making\nwhole\n"


def test_a_cell_is_remembered_with_what_it_used(monkeypatch, store_folder):
    assert store.used_by("abc") == []
    make_one({"a": 0})
    monkeypatch.setenv("ONESTEP_CELL", "abc")
    used = [make_one({"a": 1}).key, make_one({"a": 2}).key]
    make_one({"a": 1})
    assert store.used_by("abc") == used
    assert [path.name for path in (store_folder / store.CELLS).iterdir()] == ["abc"]


def test_a_store_that_cannot_be_says_so(tmp_path, monkeypatch, refuses):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("ONESTEP_STORE", str(tmp_path / "file" / "store"))
    with refuses("cannot write to the store", "ONESTEP_STORE"):
        make_one({"a": 1})


def test_a_lost_ancestor_is_named(refuses):
    teacher = make_one({"a": "teacher"})
    student = make_one({"a": "student"}, [teacher])
    (teacher.folder / store.META).unlink()
    with refuses(teacher.key):
        student.cost()


def test_the_store_is_where_the_environment_says(monkeypatch, tmp_path):
    assert store.root() == tmp_path / "store"
    monkeypatch.delenv("ONESTEP_STORE")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert store.root() == tmp_path / ".cache" / "onestep_bench" / "store"


def test_json_is_replaced_whole(tmp_path):
    write_json(tmp_path / "a.json", {"b": 1})
    with pytest.raises(TypeError):
        write_json(tmp_path / "a.json", {"b": object()})
    assert (tmp_path / "a.json").read_text() == '{\n "b": 1\n}\n'
    assert [file.name for file in tmp_path.iterdir()] == ["a.json"]


def test_a_grids_cell_does_not_wait_long_for_what_another_process_makes(tmp_path, store_folder, monkeypatch, refuses):
    folder = store_folder / key_of("model", {"a": 1}, [])
    monkeypatch.setenv(artifacts.SCRATCH, str(tmp_path))
    monkeypatch.setattr(artifacts, "_PATIENCE", 0.05)
    with artifacts.locked(folder), refuses("another process makes", folder.name):
        memo("model", {"a": 1}, [], Maker())
    assert (tmp_path / artifacts.WAITING).read_text() == folder.name
    memo("model", {"a": 1}, [], Maker())  # nobody holds it any more
