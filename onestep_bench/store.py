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
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from filelock import FileLock

from onestep_bench.errors import OnestepError
from onestep_bench.files import file_digest, write_json

META = "artifact.json"


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


def memo(kind: str, recipe: dict, parents: Iterable[Artifact], make: Callable[[Path], dict]) -> Artifact:
    """The artifact of `recipe`, made by `make(folder)` if it is not there yet.

    kind: 'model', 'pairs', 'scores'; recipe: JSON-able, everything the result depends on besides its parents.
    make: writes files into the folder (which may hold those of a killed run) and returns the cost,
    {kimg, seconds, device}. A damaged artifact is set aside with a warning and made again.
    """
    parents = list(parents)
    folder = root() / key_of(kind, recipe, (parent.key for parent in parents))
    with _locked(folder):
        if folder.exists() and _whole(folder):
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
def _locked(folder: Path):
    """Hold the artifact's lock. The kernel drops it when its holder dies, however it dies."""
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder.with_name(f".{folder.name}.lock"))
        lock.acquire()  # waits for another process that is making the same artifact
    except OSError as error:
        raise OnestepError(
            f"cannot write to the store {folder.parent}: {error.strerror}; set ONESTEP_STORE to a folder you can write"
        ) from error
    try:
        yield
    finally:
        lock.release()


def _whole(folder: Path) -> bool:
    """Whether the files are those recorded; if not, set the folder aside."""
    try:
        recorded = json.loads((folder / META).read_text())["files"]
        damaged = [name for name, digest in recorded.items() if file_digest(folder / name) != digest]
    except (OSError, ValueError, KeyError):
        damaged = [META]
    if not damaged:
        return True
    aside = folder.with_name(folder.name + ".damaged")
    shutil.rmtree(aside, ignore_errors=True)
    os.replace(folder, aside)
    warnings.warn(
        f"{folder.name}: {', '.join(damaged)} damaged; set aside as {aside.name} and made again", stacklevel=3
    )
    return False
