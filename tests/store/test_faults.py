"""A disk that is full, a folder that somebody removes, a file system without locks: each is one line."""

import errno
import os
import resource
import shutil

import filelock._unix
import pytest
import torch
from safetensors.torch import save_file

from onestep_bench import store
from onestep_bench.errors import OnestepError
from onestep_bench.grid.locks import held
from onestep_bench.store import memo
from onestep_bench.store.files import replacing
from onestep_bench.store.locks import check_locks

TENSORS = {"a": torch.zeros(1 << 18)}


@pytest.fixture
def small_files():
    """No file grows beyond half a megabyte: torch meets that as it does a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 19, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.usefixtures("small_files")
def test_torch_hides_a_full_disk_and_is_seen_through(tmp_path, refuses):
    (tmp_path / "checkpoint.pt").write_text("the last good one")
    with refuses("cannot write", "checkpoint.pt", "File too large"), replacing(tmp_path / "checkpoint.pt") as temporary:
        torch.save(TENSORS, temporary)
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint.pt"]
    assert (tmp_path / "checkpoint.pt").read_text() == "the last good one"


@pytest.mark.usefixtures("small_files")
def test_so_does_safetensors(tmp_path, refuses):
    with refuses("cannot write", "pairs", "File too large"), replacing(tmp_path / "pairs.safetensors") as temporary:
        save_file(TENSORS, temporary)
    assert not list(tmp_path.iterdir())


def test_other_errors_stay_what_they_are(tmp_path):
    with pytest.raises(ZeroDivisionError), replacing(tmp_path / "a"):
        raise ZeroDivisionError
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("fails", [False, True])
def test_a_store_removed_while_an_artifact_is_made(store_folder, refuses, fails):
    def make(folder):
        shutil.rmtree(store_folder)
        store.write_text(folder / "late", "the early part is gone")
        if fails:
            raise ZeroDivisionError
        return {"kimg": 0, "seconds": 0, "device": "none"}

    def whole(folder):
        assert not (folder / "late").exists()
        store.write_text(folder / "text", "whole")
        return {"kimg": 0, "seconds": 0, "device": "none"}

    with refuses(".partial was removed while it was written", "run again"):
        memo("model", {"a": 1}, [], make)
    assert not list(store_folder.glob("model-*"))
    assert sorted(memo("model", {"a": 1}, [], whole).meta["files"]) == ["text"]


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS])
def test_a_file_system_without_locks_is_told_at_the_start(tmp_path, monkeypatch, refuses, number):
    def flock(descriptor, operation):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(filelock._unix.fcntl, "flock", flock)
    with refuses("has no file locks", os.strerror(number), "use --out"):
        check_locks(tmp_path, "use --out")
    with pytest.raises(OnestepError, match="has no file locks"), held(tmp_path / "a.lock"):
        pass
    monkeypatch.setenv("ONESTEP_STORE", str(tmp_path))
    with refuses("has no file locks"):
        memo("model", {"a": 1}, [], lambda folder: {})


def test_looking_for_locks_leaves_nothing(tmp_path):
    check_locks(tmp_path / "new", "use --out")
    assert not list((tmp_path / "new").iterdir())


def test_a_folder_that_cannot_be_written_is_told_with_its_remedy(tmp_path, refuses):
    (tmp_path / "file").write_text("")
    with refuses("cannot write", "Not a directory", "use --out"):
        check_locks(tmp_path / "file" / "below", "use --out")
