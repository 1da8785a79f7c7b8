"""Files are whole or absent, and what tells that data changed is not fooled."""

import os
from contextlib import suppress

import pytest

from onestep_bench.errors import OnestepError
from onestep_bench.store.downloads import fetch
from onestep_bench.store.files import data_digest, data_state, file_digest, replacing, same_data, write_text


def test_the_old_file_is_replaced_and_not_written_over(tmp_path):
    write_text(tmp_path / "a.txt", "old")
    os.link(tmp_path / "a.txt", tmp_path / "as it was")  # what a reader that opened it has
    write_text(tmp_path / "a.txt", "new")
    assert (tmp_path / "a.txt").read_text() == "new"
    assert (tmp_path / "as it was").read_text() == "old"
    assert {path.name for path in tmp_path.iterdir()} == {"a.txt", "as it was"}


def test_what_fails_half_way_leaves_the_old_file_and_no_other(tmp_path):
    write_text(tmp_path / "a.txt", "old")
    with suppress(KeyboardInterrupt), replacing(tmp_path / "a.txt") as temporary:
        temporary.write_text("half")
        raise KeyboardInterrupt
    assert (tmp_path / "a.txt").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]


def test_files_are_as_readable_as_others(tmp_path):
    umask = os.umask(0o027)
    try:
        write_text(tmp_path / "a.txt", "a")
    finally:
        os.umask(umask)
    assert (tmp_path / "a.txt").stat().st_mode & 0o777 == 0o640


def recorded(path):
    return data_state(path) | {"sha256": data_digest(path)}


@pytest.mark.parametrize("folder", [False, True])
def test_data_are_the_same_by_size_and_time_together_or_by_content(tmp_path, folder):
    path = tmp_path / "data"
    if folder:
        path.mkdir()
    file = path / "a.bin" if folder else path
    file.write_bytes(b"12345")
    before = recorded(path)
    assert same_data(path, before)
    os.utime(file, ns=(1, 1))
    assert same_data(path, before)  # touched, and read: of the same content
    file.write_bytes(b"54321")
    assert not same_data(path, before)  # of the same size
    file.write_bytes(b"123456")
    os.utime(file, ns=(before["mtime"], before["mtime"]))
    assert not same_data(path, before)  # of the same time


def test_a_folders_data_have_their_names(tmp_path):
    (tmp_path / "a").write_bytes(b"1")
    before = recorded(tmp_path)
    (tmp_path / "a").rename(tmp_path / "b")
    assert data_digest(tmp_path) != before["sha256"]


def test_a_file_that_is_there_is_believed_by_its_checksum_alone(tmp_path):
    file = tmp_path / "weights.bin"
    file.write_bytes(b"right")
    digest = file_digest(file)
    fetch(file, ["https://example.invalid/weights.bin"], digest, "sha256")
    file.write_bytes(b"wrong")
    with pytest.raises(OnestepError, match="checksum mismatch"):
        fetch(file, ["https://example.invalid/weights.bin"], digest, "sha256")
    assert file.read_bytes() == b"wrong"  # somebody's file is not replaced
