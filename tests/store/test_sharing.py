"""Whose files they are: the user's alone, unless a group works in their folder.

`scripts/shared_store.py` tries it with several users.
"""

import os
import stat
import tempfile

import pytest

from onestep_bench.grid.locks import held
from onestep_bench.store.artifacts import lock_of, memo
from onestep_bench.store.files import own_folder, own_temporary, share, write_text


@pytest.fixture(autouse=True)
def _usual_umask():
    before = os.umask(0o022)
    yield
    os.umask(before)


def mode(path) -> str:
    return stat.filemode(path.stat().st_mode)


def make(folder):
    write_text(folder / "text", "whole")
    (folder / "raw").write_text("as a library writes it")
    return {"kimg": 0, "seconds": 0.5, "device": "none"}


def test_a_store_is_its_users_alone(store_folder):
    memo("model", {"a": 1}, [], make)
    assert mode(store_folder) == "drwx------"


def test_a_store_that_is_there_stays_as_open_as_it_was(store_folder):
    store_folder.mkdir(mode=0o755)
    folder = memo("model", {"a": 1}, [], make).folder
    assert mode(store_folder) == "drwxr-xr-x"
    assert mode(folder / "text") == "-rw-r--r--"
    assert mode(folder) == "drwxr-xr-x"


def test_in_a_shared_store_the_group_may_do_what_the_user_may(store_folder, monkeypatch):
    monkeypatch.setenv("ONESTEP_CELL", "cell")
    store_folder.mkdir()
    store_folder.chmod(0o2770)
    folder = memo("model", {"a": 1}, [], make).folder
    assert mode(folder) == "drwxrwsr-x"  # in a store that others may not enter
    assert {mode(path) for path in folder.iterdir()} == {"-rw-rw-r--"}
    assert mode(lock_of(folder)) == "-rw-rw----"
    assert mode(store_folder / ".cells") == "drwxrws---"
    assert mode(store_folder / ".cells" / "cell") == "-rw-rw-r--"


@pytest.mark.parametrize(
    ("given", "scratch", "lock"), [(0o755, "drwx------", "-rw-r--r--"), (0o2775, "drwxrws---", "-rw-rw----")]
)
def test_scratch_and_locks_of_cells_are_as_the_folder_of_results(tmp_path, given, scratch, lock):
    out = tmp_path / "out"
    out.mkdir()
    out.chmod(given)
    with held(out / ".cells" / "a.lock") as ours:
        assert ours
    own_folder(out / ".cells" / "a")
    assert (mode(out / ".cells"), mode(out / ".cells" / "a")) == (scratch, scratch)
    assert mode(out / ".cells" / "a.lock") == lock


def test_a_place_for_temporary_files_that_others_may_enter_is_not_used(tmp_path, monkeypatch, refuses):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    folder = own_temporary()
    assert mode(folder) == "drwx------"
    assert own_temporary() == folder
    folder.chmod(0o777)
    with refuses(str(folder), "not yours alone", "TMPDIR"):
        own_temporary()
    folder.rmdir()
    folder.symlink_to(tmp_path)
    with refuses("not yours alone"):
        own_temporary()


def test_what_a_link_in_a_shared_folder_leads_to_stays_closed(tmp_path, store_folder):
    """Whoever may write there could have put it."""
    secret = tmp_path / "secret"
    secret.touch(mode=0o600)
    store_folder.mkdir()
    store_folder.chmod(0o2770)

    def lured(folder):
        (folder / "link").symlink_to(secret)
        return make(folder)

    memo("model", {"a": 1}, [], lured)
    assert mode(secret) == "-rw-------"
    own = store_folder / "own"
    own.touch(mode=0o600)
    share(own)
    assert mode(own) == "-rw-rw----"


def test_no_thread_sees_another_umask_while_a_file_is_written(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "umask", None)
    write_text(tmp_path / "text", "whole")
    monkeypatch.undo()
    assert mode(tmp_path / "text") == "-rw-r--r--"
