"""File locks between runs, which the kernel drops when their holder dies, however it dies."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import filelock

from onestep_bench.store.files import file_lock, own_folder

_PATIENCE = 2.0  # seconds to wait for a cell that another run executes before trying others


@contextmanager
def held(path: Path, patience: float = _PATIENCE) -> Iterator[bool]:
    """Hold a lock; yields False if another process holds it for longer than `patience` seconds."""
    own_folder(path.parent)
    lock = file_lock(path)
    try:
        lock.acquire(timeout=patience)
    except filelock.Timeout:
        yield False
        return
    try:
        yield True
    finally:
        lock.release()


def is_held(path: Path) -> bool:
    """Whether a live process, on any machine that sees the file, holds this lock."""
    with held(path, patience=0) as free:
        return not free
