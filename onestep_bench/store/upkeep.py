"""What lies in the store: listed, verified, and cleared of what nobody will ask for."""

import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import filelock

from onestep_bench.errors import OnestepError
from onestep_bench.store.artifacts import Artifact, damaged_files, locked, root

_DAY = 86400.0
# What a person knows a model by. Of pairs and scores the variant is how they were drawn, the rest that of their model.
WHAT = ("method", "variant", "size", "data", "kimg", "seed")
_PAIRS = "pairs"  # as the data of what was trained on pairs


@dataclass(frozen=True)
class Entry:
    """One folder of the store.

    state: 'whole', 'partial' (in the making, or left by a killed run, which the next one goes on from) or 'damaged'
    (set aside, or without a record). bytes: of its files. used: when it was last asked for or written, in seconds since
    the epoch. what: texts under names of `WHAT`, as far as its record, or that of what it was made from, says. named:
    hash and name of the data it was trained on, if noted. parents: keys of what it was made from.
    """

    folder: Path
    state: str
    bytes: int
    used: float
    what: dict[str, str]
    named: tuple[str, str] | None
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
    return _told(sorted((entry for entry in found if entry), key=lambda entry: (-entry.bytes, entry.key)))


def _entry(folder: Path) -> Entry | None:
    try:
        stats = [path.stat() for path in folder.rglob("*") if path.is_file()]
        # The record of a whole artifact is touched whenever somebody asks for it.
        used = max((stat.st_mtime for stat in stats), default=folder.stat().st_mtime)
    except FileNotFoundError:  # renamed or removed by a run, meanwhile
        return None
    state, meta = folder.suffix.removeprefix("."), {"recipe": {}, "parents": [], "cost": {}}
    if not state:
        try:
            state, meta = "whole", Artifact(folder).meta
        except OnestepError:
            state = "damaged"
    # What was trained on images notes their name beside its cost; recipes know their hash alone.
    named = (meta["recipe"].get("data"), meta["cost"]["data"]) if "data" in meta["cost"] else None
    size = sum(stat.st_size for stat in stats)
    return Entry(folder, state, size, used, _what(meta), named, tuple(meta["parents"]))


def _what(meta: dict) -> dict[str, str]:
    """What the record itself says, under the names of `WHAT`."""
    recipe = meta["recipe"]
    said = {
        "method": recipe.get("method") or recipe.get("protocol", "").partition("@")[0],  # of a reference: its judge
        "variant": recipe.get("config", {}).get("variant"),
        "size": recipe.get("size"),
        "data": recipe.get("data"),
        "kimg": recipe.get("training", {}).get("kimg"),
        "seed": recipe.get("seed"),
    }
    if "sampler" in recipe:  # of pairs and scores, which are of a model
        said["variant"] = f"{recipe['sampler']} {recipe.get('steps')}"
    return {name: _text(value) for name, value in said.items() if value not in (None, "")}


def _text(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _told(found: list[Entry]) -> list[Entry]:
    """The entries, with what only the lineage knows: which model pairs and scores are of, what a student's data are."""
    whole = {entry.key: entry for entry in found if entry.state == "whole"}
    known: dict[str, dict[str, str]] = {}

    def what(entry: Entry) -> dict[str, str]:
        if entry.key in known:
            return known[entry.key]
        said, known[entry.key] = dict(entry.what), entry.what  # the latter against circles, which no run makes
        for parent in (what(whole[key]) for key in entry.parents if key in whole):
            if "method" not in entry.what:
                of = " ".join(parent[name] for name in ("method", "variant") if name in parent)
                said = parent | {"method": of} | said
            elif said.get("data") in (None, _PAIRS) and "data" in parent:
                said["data"] = parent["data"]
        known[entry.key] = said
        return said

    names = dict(entry.named for entry in whole.values() if entry.named)
    return [replace(entry, what=_with_name(what(entry), names)) for entry in found]


def _with_name(what: dict[str, str], names: dict[str, str]) -> dict[str, str]:
    """With the name of the data where it is known, else with the beginning of their hash."""
    if "data" not in what:
        return what
    return what | {"data": names.get(what["data"], what["data"][:8])}


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
