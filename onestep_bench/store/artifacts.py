"""Content-addressed artifacts: work that is never done twice.

An artifact is a folder named by the hash of its recipe: what made it, with which parameters, from which parents. It
appears by a rename when it is whole; until then it lives in `<id>.partial`, which a killed run finds again. A file
lock makes a second process wait for the first instead of doing the same work.
"""

import hashlib
import json
import os
import shutil
import warnings
from collections.abc import Callable, Iterable
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from filelock import FileLock, Timeout

from onestep_bench.errors import OnestepError
from onestep_bench.store.files import file_digest, write_json

META = "artifact.json"
CELLS = ".cells"  # folder of which cell used what
# In a grid's cell: its folder for what is not whole, and in there the key of an artifact it would have to wait for.
SCRATCH, WAITING = "ONESTEP_SCRATCH", "waiting"
PROGRESS = "progress.json"  # in there too: how far inside itself the cell is
_PATIENCE = 10.0  # seconds that a cell waits for another process; less than it takes to begin again


def root() -> Path:
    """The store's folder: ONESTEP_STORE, else ~/.cache/onestep_bench/store."""
    return Path(os.environ.get("ONESTEP_STORE") or Path.home() / ".cache" / "onestep_bench" / "store")


@dataclass(frozen=True)
class Artifact:
    """A finished piece of work: its folder, and what its record says."""

    folder: Path

    @cached_property
    def meta(self) -> dict:
        """recipe, parents (keys), cost {kimg, seconds, device}, files {name: sha256}."""
        try:
            return json.loads((self.folder / META).read_text())
        except (OSError, ValueError) as error:
            raise OnestepError(f"{self.folder} is no whole artifact; run again what made it") from error

    @property
    def key(self) -> str:
        """Name of the folder: kind and hash of the recipe."""
        return self.folder.name

    @property
    def recipe(self) -> dict:
        """What was asked for, with every default written out."""
        return self.meta["recipe"]

    def lineage(self) -> list["Artifact"]:
        """This artifact and all it was made from, each once."""
        found: dict[str, Artifact] = {}
        open_ = [self]
        while open_:
            artifact = open_.pop()
            if artifact.key in found:
                continue
            found[artifact.key] = artifact
            open_ += [Artifact(self.folder.parent / key) for key in artifact.meta["parents"]]
        return list(found.values())

    def cost(self) -> dict:
        """{kimg, seconds} summed over the whole lineage."""
        costs = [artifact.meta["cost"] for artifact in self.lineage()]
        # Rounded, so that the sum does not show in which order it was taken.
        return {name: round(sum(cost[name] for cost in costs), 6) for name in ("kimg", "seconds")}


def key_of(kind: str, recipe: dict, parents: Iterable[str]) -> str:
    """`kind-<16 hex digits>` of the recipe and the parents' keys."""
    text = json.dumps([kind, recipe, sorted(parents)], sort_keys=True)
    return f"{kind}-{hashlib.sha256(text.encode()).hexdigest()[:16]}"


def used_by(cell: str) -> list[str]:
    """Keys of the artifacts that runs of a grid's cell (named by its digest) made or found here, whole or not."""
    try:
        return list(dict.fromkeys((root() / CELLS / cell).read_text().split()))
    except OSError:
        return []


def _note_use(folder: Path) -> None:
    """Remember which cell asked: a later plan can then say what a run of it would find here."""
    cell = os.environ.get("ONESTEP_CELL")
    if not cell:
        return
    (root() / CELLS).mkdir(exist_ok=True)
    with open(root() / CELLS / cell, "a", encoding="utf-8") as file:
        file.write(f"{folder.name}\n")


def memo(kind: str, recipe: dict, parents: Iterable[Artifact], make: Callable[[Path], dict]) -> Artifact:
    """The artifact of `recipe`, made by `make(folder)` if it is not there yet.

    kind: 'model', 'pairs', 'scores'; recipe: JSON-able, everything the result depends on besides its parents.
    make: writes files into the folder (which may hold those of a killed run) and returns the cost,
    {kimg, seconds, device}. A damaged artifact is set aside with a warning and made again.
    """
    parents = list(parents)
    folder = root() / key_of(kind, recipe, (parent.key for parent in parents))
    with _our_turn(folder):
        _note_use(folder)
        if folder.exists() and _whole(folder):
            os.utime(folder / META)  # the time of its last use
            return Artifact(folder)
        partial = folder.with_name(folder.name + ".partial")
        partial.mkdir(parents=True, exist_ok=True)
        cost = make(partial)
        for torn in partial.glob(".*"):  # temporary files that a kill kept from their names
            torn.unlink()
        files = {path.name: file_digest(path) for path in sorted(partial.iterdir()) if path.name != META}
        meta = {"recipe": recipe, "parents": [parent.key for parent in parents], "cost": cost, "files": files}
        write_json(partial / META, meta)
        os.replace(partial, folder)
        return Artifact(folder)


@contextmanager
def _our_turn(folder: Path):
    """Hold the artifact's lock. A grid's cell does not wait long for it: its worker has other cells to execute."""
    scratch = os.environ.get(SCRATCH)
    with ExitStack() as stack:
        try:
            stack.enter_context(locked(folder, _PATIENCE if scratch else -1))
        except Timeout as error:
            Path(scratch, WAITING).write_text(folder.name)
            raise OnestepError(
                f"another process makes {folder.name}; this cell begins again when it is there"
            ) from error
        yield


def lock_of(folder: Path) -> Path:
    """The file whose lock a process holds while it makes the artifact of this folder."""
    return folder.with_name(f".{folder.name}.lock")


@contextmanager
def locked(folder: Path, timeout: float = -1):
    """Hold the artifact's lock, after waiting for at most `timeout` seconds (then filelock.Timeout), or for ever.

    The kernel drops it when its holder dies, however it dies.
    """
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(lock_of(folder))
        lock.acquire(timeout)  # another process is making the same artifact
    except Timeout:  # an OSError too
        raise
    except OSError as error:
        raise OnestepError(
            f"cannot write to the store {folder.parent}: {error.strerror}; set ONESTEP_STORE to a folder you can write"
        ) from error
    try:
        yield
    finally:
        lock.release()


def damaged_files(folder: Path) -> list[str]:
    """Names of the files of an artifact that are not as recorded, or that of its record; empty if all is well."""
    try:
        recorded = json.loads((folder / META).read_text())["files"]
    except (OSError, ValueError, KeyError):
        return [META]
    return [
        name
        for name, digest in recorded.items()
        if not (folder / name).is_file() or file_digest(folder / name) != digest
    ]


def _whole(folder: Path) -> bool:
    """Whether the files are those recorded; if not, set the folder aside."""
    damaged = damaged_files(folder)
    if not damaged:
        return True
    aside = folder.with_name(folder.name + ".damaged")
    shutil.rmtree(aside, ignore_errors=True)
    os.replace(folder, aside)
    warnings.warn(
        f"{folder.name}: {', '.join(damaged)} damaged; set aside as {aside.name} and made again", stacklevel=3
    )
    return False
