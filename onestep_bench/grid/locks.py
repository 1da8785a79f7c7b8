"""Whether another run has a cell, told by a lock."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import Timeout

from onestep_bench.errors import OnestepError
from onestep_bench.store.locks import acquired

_PATIENCE = 2.0  # seconds to wait for a cell that another run executes before trying others


@contextmanager
def held(path: Path, patience: float = _PATIENCE) -> Iterator[bool]:
    """Hold a lock; yields False if another process holds it for longer than `patience` seconds.

    Raises OnestepError if there can be no lock.
    """
    try:
        lock = acquired(path, patience)
    except Timeout:  # an OSError too
        yield False
        return
    except OSError as error:
        raise OnestepError(f"cannot write {path}: {error.strerror}; choose another folder with --out") from error
    try:
        yield True
    finally:
        lock.release()


def is_held(path: Path) -> bool:
    """Whether a live process, on any machine that sees the file, holds this lock."""
    with held(path, patience=0) as free:
        return not free
