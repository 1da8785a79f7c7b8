"""What lies in the store: listed, verified, and cleared of what nobody will ask for."""

import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import filelock

from onestep_bench.errors import OnestepError
from onestep_bench.store.artifacts import Artifact, damaged_files, locked, root

_DAY = 86400.0


@dataclass(frozen=True)
class Entry:
    """One folder of the store.

    state: 'whole', 'partial' (in the making, or left by a killed run, which the next one goes on from) or 'damaged'
    (set aside, or without a record). bytes: of its files. used: when it was last asked for or written, in seconds since
    the epoch. what: method, sampler and size, as far as its recipe says. parents: keys of what it was made from.
    """

    folder: Path
    state: str
    bytes: int
    used: float
    what: str
    parents: tuple[str, ...]

    @property
    def key(self) -> str:
        """Name of the artifact."""
        return self.folder.name.removesuffix(f".{self.state}")


def entries() -> list[Entry]:
    """Everything in the store, the largest first. Raises OnestepError if there is no store."""
    if not root().is_dir():
        raise OnestepError(f"no store at {root()}; name another with --store or ONESTEP_STORE")
    found = [_entry(folder) for folder in root().iterdir() if folder.is_dir() and not folder.name.startswith(".")]
    return sorted((entry for entry in found if entry), key=lambda entry: (-entry.bytes, entry.key))


def _entry(folder: Path) -> Entry | None:
    try:
        stats = [path.stat() for path in folder.rglob("*") if path.is_file()]
        # The record of a whole artifact is touched whenever somebody asks for it.
        used = max((stat.st_mtime for stat in stats), default=folder.stat().st_mtime)
    except FileNotFoundError:  # renamed or removed by a run, meanwhile
        return None
    state, meta = folder.suffix.removeprefix("."), {"recipe": {}, "parents": []}
    if not state:
        try:
            state, meta = "whole", Artifact(folder).meta
        except OnestepError:
            state = "damaged"
    words = [meta["recipe"].get(name) for name in ("method", "sampler", "size")]
    what = " ".join(str(word) for word in words if word)
    return Entry(folder, state, sum(stat.st_size for stat in stats), used, what, tuple(meta["parents"]))


def damages() -> Iterator[tuple[Entry, list[str]]]:
    """Every artifact whose files are not as recorded, with their names; one that lost a parent names that."""
    found = entries()
    keys = {entry.key for entry in found if entry.state == "whole"}
    for entry in found:
        if entry.state == "partial":
            continue
        wrong = damaged_files(entry.folder) or [f"its parent {key}" for key in entry.parents if key not in keys]
        if entry.state == "damaged" or wrong:
            yield entry, wrong


def garbage(unused_days: float | None = None, *, partial_days: float = 7.0) -> list[Entry]:
    """What can go: damaged artifacts, and those in the making that nobody touched for `partial_days`.

    unused_days: also whole artifacts that nobody asked for in so many days, unless one that stays was made from them
    (its cost is counted over all its ancestors).
    """
    found, now = entries(), time.time()
    age = {entry.folder: (now - entry.used) / _DAY for entry in found}
    useless = [
        entry
        for entry in found
        if entry.state == "damaged" or (entry.state == "partial" and age[entry.folder] > partial_days)
    ]
    if unused_days is None:
        return useless
    whole = {entry.key: entry for entry in found if entry.state == "whole"}
    open_ = [key for key, entry in whole.items() if age[entry.folder] <= unused_days]
    kept: set[str] = set()
    while open_:
        key = open_.pop()
        if key in kept or key not in whole:
            continue
        kept.add(key)
        open_ += whole[key].parents
    return useless + [entry for key, entry in whole.items() if key not in kept]


def remove(entry: Entry) -> bool:
    """Remove a folder of the store, unless a process holds it; whether it is gone."""
    try:
        with locked(entry.folder.with_name(entry.key), timeout=0):
            shutil.rmtree(entry.folder)
    except filelock.Timeout:
        return False
    return True
