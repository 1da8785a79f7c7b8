"""Locks between processes, which the kernel drops when their holder dies, however it dies."""

import errno
from pathlib import Path

from filelock import FileLock

from onestep_bench.errors import OnestepError
from onestep_bench.store.files import is_shared, own_folder

_NONE_HERE = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)


def acquired(path: Path, timeout: float, remedy: str = "use a folder on another") -> FileLock:
    """The lock of a file, held; for as long as it takes if `timeout`, in seconds, is negative.

    Raises filelock.Timeout if another process holds it for longer, OSError if the file cannot be written, and
    OnestepError, ending in `remedy`, on a file system without locks: a file in their place would outlive a killed
    holder.
    """
    own_folder(path.parent)
    # In a shared folder the group may write it: who cannot, cannot hold it.
    shared = {"mode": 0o660} if is_shared(path.parent) else {}
    lock = FileLock(path, fallback_to_soft=False, **shared)
    try:
        lock.acquire(timeout)
    except OSError as error:
        if error.errno not in _NONE_HERE:
            raise
        raise OnestepError(
            f"the file system of {path.parent} has no file locks ({error.strerror}), "
            f"by which two runs keep out of each other's way; {remedy}"
        ) from error
    return lock


def check_locks(folder: Path, remedy: str) -> None:
    """Raise OnestepError, ending in `remedy`, if files in a folder cannot be written, or cannot be locked."""
    probe = folder / ".probe.lock"
    try:
        acquired(probe, -1, remedy).release()
        probe.unlink(missing_ok=True)
    except OSError as error:
        raise OnestepError(f"cannot write {folder}: {error.strerror}; {remedy}") from error
