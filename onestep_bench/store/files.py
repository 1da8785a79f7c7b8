"""Files that are either whole or absent, and their checksums."""

import errno
import hashlib
import json
import os
import re
import secrets
import shutil
import stat
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from onestep_bench.errors import OnestepError


@contextmanager
def replacing(path: Path | str) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on success it is synced and renamed into place.

    On any error the temporary file is removed and `path` is left as it was.
    Raises OnestepError when the disk is full or the folder cannot be written.
    """
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = _beside(path)
    except OSError as error:
        raise OnestepError(f"cannot write {path}: {error.strerror}; free space or choose another folder") from error
    try:
        try:
            yield temporary
        except Exception as error:
            _tell_hidden(error, temporary)
            raise
        share(temporary)
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise OnestepError(f"cannot write {path}: {error.strerror}; free space or choose another folder") from error
    finally:
        temporary.unlink(missing_ok=True)


def _beside(path: Path) -> Path:
    """A new file beside `path`, empty and hidden, as readable as any other file that the user makes.

    None of tempfile's: those are private, and who opens them up must ask for the umask, by setting it for all threads.
    """
    beside = path.with_name(f".{path.name}.{secrets.token_hex(4)}{path.suffix}")
    os.close(os.open(beside, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
    return beside


def _tell_hidden(error: Exception, temporary: Path) -> None:
    """Raise the OSError behind an error that a library gave a type of its own, if the disk is what failed.

    torch says of a full disk 'unexpected pos', safetensors '... (os error 28)'.
    """
    if found := re.search(r"\(os error (\d+)\)", str(error)):
        raise OSError(int(found[1]), os.strerror(int(found[1]))) from error
    with open(temporary, "ab", buffering=0) as file:
        file.write(bytes(1 << 20))  # what did not fit before, does not now


def is_shared(folder: Path) -> bool:
    """Whether a group works in this folder: it may write, and what is made there is the group's (`chmod g+rwxs`)."""
    mode = folder.stat().st_mode
    return bool(mode & stat.S_ISGID and mode & stat.S_IWGRP)


def own_folder(folder: Path) -> None:
    """Make a folder that nobody else may enter, unless the one it is made in is shared: then its group may.

    One that is there already stays as it is.
    """
    if folder.parent.is_file():  # which mkdir would call a folder that exists
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(folder.parent))
    folder.parent.mkdir(parents=True, exist_ok=True)
    try:
        folder.mkdir(mode=0o700)
    except FileExistsError:
        return
    share(folder)


def share(path: Path) -> None:
    """Let the group work with a file or folder as its owner does, if it is ours and lies in a shared folder.

    What a link leads to lies elsewhere, and stays as it is: whoever writes here could have put the link.
    """
    state = path.lstat()
    if stat.S_ISLNK(state.st_mode) or state.st_uid != os.getuid() or not is_shared(path.parent):
        return
    handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    try:
        mode = os.fstat(handle).st_mode
        os.fchmod(handle, stat.S_IMODE(mode) | (mode & 0o700) >> 3 | (stat.S_ISGID if stat.S_ISDIR(mode) else 0))
    finally:
        os.close(handle)


def own_temporary(place: str | None = None) -> Path:
    """This user's folder for temporary files, onestep-UID, made if need be. place: of it, by default tempfile's.

    Raises OnestepError if somebody else made it, or may enter it: names in /tmp are for the first who comes.
    """
    folder = Path(place or tempfile.gettempdir(), f"onestep-{os.getuid()}")
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        state = folder.lstat()
    except OSError as error:
        raise OnestepError(f"cannot make {folder}: {error.strerror}; set TMPDIR to a folder of yours") from error
    if not stat.S_ISDIR(state.st_mode) or state.st_uid != os.getuid() or state.st_mode & 0o077:
        raise OnestepError(f"{folder} is not yours alone; remove it, or set TMPDIR to a folder of yours")
    return folder


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """Yield an empty folder; on success it is `path`, or fills it if that is an empty folder already.

    On any error nothing is left of it. Raises OnestepError where `path` is there and no empty folder, and when the disk
    is full or the folder cannot be written.
    """
    try:
        exists = path.exists()
        if exists and (not path.is_dir() or any(path.iterdir())):
            raise OnestepError(f"{path} is there already, and is no empty folder; choose another name")
        # An empty one may be where a shell stands, or a mounted disk: it is filled, not replaced.
        beside = path if exists else path.absolute().parent
        beside.mkdir(parents=True, exist_ok=True)
        temporary = beside / f".new-{uuid.uuid4().hex}"
        temporary.mkdir()
        try:
            yield temporary
            if not exists:
                temporary.rename(path)
                return
            for entry in sorted(temporary.iterdir()):
                entry.rename(path / entry.name)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    except OSError as error:
        why = error.strerror or error
        raise OnestepError(f"cannot write {path}: {why}; free space or choose another folder") from error


def write_text(path: Path | str, text: str) -> None:
    """Write `text` (UTF-8) so that `path` is either the old file or the whole new one."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path | str, value: object) -> None:
    """Write `value` as indented JSON, atomically."""
    write_text(path, json.dumps(value, indent=1, sort_keys=True) + "\n")


def data_state(path: Path) -> dict:
    """{size, mtime} of a file, or of all files below a folder: what tells at a glance that nothing changed."""
    stats = [file.stat() for file in _files(path)]
    return {"size": sum(stat.st_size for stat in stats), "mtime": max((stat.st_mtime_ns for stat in stats), default=0)}


def data_digest(path: Path) -> str:
    """SHA-256 of a file, or of the names and contents of all files below a folder."""
    if path.is_file():
        return file_digest(path)
    named = [f"{file.relative_to(path)} {file_digest(file)}" for file in _files(path)]
    return hashlib.sha256("\n".join(named).encode()).hexdigest()


def same_data(path: Path, recorded: dict) -> bool:
    """Whether they are as `recorded`: {size, mtime, sha256}. Read only if size or time differ."""
    state = data_state(path)
    return all(recorded[key] == state[key] for key in state) or recorded["sha256"] == data_digest(path)


def _files(path: Path) -> list[Path]:
    return [path] if path.is_file() else sorted(file for file in path.rglob("*") if file.is_file())


def file_digest(path: Path | str) -> str:
    """SHA-256 of a file's bytes, hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
