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
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from filelock import Timeout

from onestep_bench.errors import OnestepError
from onestep_bench.store import provenance
from onestep_bench.store.files import file_digest, own_folder, share, write_json
from onestep_bench.store.locks import acquired
from onestep_bench.store.notes import SCRATCH, note

META = "artifact.json"
CELLS = ".cells"  # folder of which cell used what
WAITING = "waiting"  # in a cell's scratch folder: the key of an artifact it would have to wait for
FRESH = "ONESTEP_FRESH"  # if set, what other source made is made again
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
        """recipe, parents (keys), cost {kimg, seconds, device}, files {name: sha256}.

        Of models and pairs, cost has also passes (thousands of images through a network), macs (multiply-accumulates of
        these) and busy (what else the machine did meanwhile, in cores), each None where it is not known.
        Since they are recorded also source {entries, definitions}, see `provenance`, and inherited {parent: `content`}.
        """
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

    @property
    def content(self) -> str:
        """Digest of the files. Those in JSON tell of it (a log has seconds), and count where there are no others."""
        files = self.meta["files"]
        data = {name: digest for name, digest in files.items() if not name.endswith(".json")} or files
        return hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()[:16]

    def outdated(self) -> str:
        """Why it is not what a run would make now, in words: other source, or a parent made again; '' if it is.

        What was made before these were recorded is taken as it is.
        """
        return _outdated(self.meta)

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
        """{kimg, seconds, passes, macs} summed over the whole lineage, and busy, its mean by seconds.

        The last three are None where one artifact of the lineage does not know its own: it was made before they were
        recorded, or elsewhere.
        """
        return total([artifact.meta["cost"] for artifact in self.lineage()])


def total(costs: Sequence[dict]) -> dict:
    """What costs come to, as `Artifact.cost` has it."""
    summed = {name: _sum(cost.get(name) for cost in costs) for name in ("kimg", "seconds", "passes", "macs")}
    weighed = [None if cost.get("busy") is None else cost["busy"] * cost["seconds"] for cost in costs]
    busy = _sum(weighed) / summed["seconds"] if None not in weighed and summed["seconds"] else None
    return summed | {"busy": busy}


def _sum(parts: Iterable[float | None]) -> float | None:
    parts = list(parts)
    # Rounded, so that the sum does not show in which order it was taken.
    return None if None in parts else round(sum(parts), 6)


def key_of(kind: str, recipe: dict, parents: Iterable[str]) -> str:
    """`kind-<16 hex digits>` of the recipe and the parents' keys."""
    text = json.dumps([kind, recipe, sorted(parents)], sort_keys=True)
    return f"{kind}-{hashlib.sha256(text.encode()).hexdigest()[:16]}"


_CANDIDATES = 8  # keys that a line lists


def one_key(start: str, keys: Iterable[str]) -> str | None:
    """The one of the keys that is this, or that alone begins like this; None if none does.

    Raises OnestepError, listing the first few, if several do.
    """
    found = sorted(key for key in keys if key.startswith(start))
    if start in found or len(found) < 2:
        return start if start in found else next(iter(found), None)
    raise OnestepError(f"{start} is the start of {len(found)} keys: {few(found)}; write more of it (see store ls)")


def few(keys: Sequence[str]) -> str:
    """The first few keys, in words."""
    return ", ".join(keys[:_CANDIDATES]) + (", ..." if len(keys) > _CANDIDATES else "")


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
    used = root() / CELLS / cell
    own_folder(used.parent)
    with open(used, "a", encoding="utf-8") as file:
        file.write(f"{folder.name}\n")
    share(used)


def memo(
    kind: str,
    recipe: dict,
    parents: Iterable[Artifact],
    make: Callable[[Path], dict],
    *,
    source: Iterable[str] = (),
    fresh: bool = False,
) -> Artifact:
    """The artifact of `recipe`, made by `make(folder)` if it is not there yet.

    kind: 'model', 'pairs', 'scores'; recipe: JSON-able, everything the result depends on besides its parents.
    make: writes files into the folder (which may hold those of a killed run) and returns the cost,
    {kimg, seconds, device}. A damaged artifact is set aside with a warning and made again.
    source: where the code that makes it begins, entries of `provenance.source_of`. fresh, or ONESTEP_FRESH in the
    environment: make again what other source made, or from parents that were made again since; what is current is
    found. Without it such an artifact is refused with an OnestepError.
    """
    parents, entries = list(parents), list(source)
    folder = root() / key_of(kind, recipe, (parent.key for parent in parents))
    partial = folder.with_name(folder.name + ".partial")
    with _our_turn(folder):
        with _writing(folder):
            _note_use(folder)
            fresh = fresh or bool(os.environ.get(FRESH))
            if folder.exists() and _whole(folder) and _current(folder, fresh):
                os.utime(folder / META)  # the time of its last use
                return _noted(Artifact(folder))
            made_by = _made_by(entries, parents)
            if not any(path.name != META for path in partial.glob("[!.]*")) or not _current(partial, fresh):
                shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir(exist_ok=True)
            share(partial)
            # A checkpoint of older source is refused too.
            write_json(partial / META, {"recipe": recipe, **made_by})
        cost = _made(make, partial)
        with _writing(folder):
            for torn in partial.glob(".*"):  # temporary files that a kill kept from their names
                torn.unlink()
            files = {path.name: file_digest(path) for path in sorted(partial.iterdir()) if path.name != META}
            meta = {"recipe": recipe, "parents": [parent.key for parent in parents], "cost": cost, "files": files}
            write_json(partial / META, meta | made_by)
            for path in partial.iterdir():
                share(path)
            _replace(folder, partial)
            return _noted(Artifact(folder))


def _made(make: Callable[[Path], dict], partial: Path) -> dict:
    """What `make` returns; OnestepError if somebody removed the folder meanwhile, whatever came of that."""
    try:
        cost = make(partial)
    except Exception as error:
        _check_kept(partial, error)
        raise
    _check_kept(partial, None)
    return cost


def _check_kept(partial: Path, error: Exception | None) -> None:
    if (partial / META).exists():
        return
    shutil.rmtree(partial, ignore_errors=True)  # what was written since has no beginning
    raise OnestepError(f"{partial} was removed while it was written; run again what makes it") from error


@contextmanager
def _writing(folder: Path):
    """OSErrors of this block tell of the store."""
    try:
        yield
    except OSError as error:
        raise _unwritable(folder.parent, error) from error


def _unwritable(store: Path, error: OSError) -> OnestepError:
    remedy = "free space, or set ONESTEP_STORE to a folder you can write"
    return OnestepError(f"cannot write to the store {store}: {error.strerror or error}; {remedy}")


def _noted(artifact: Artifact) -> Artifact:
    note(artifact=str(artifact.folder.absolute()), content=artifact.content)
    return artifact


def _made_by(entries: list[str], parents: Iterable[Artifact]) -> dict:
    """What a record says of the source and of the parents as they are now."""
    source = {"entries": entries, "definitions": provenance.source_of(entries)}
    return {"source": source, "inherited": {parent.key: parent.content for parent in parents}}


def _outdated(meta: dict) -> str:
    names = provenance.changed(meta.get("source", {}).get("definitions", {}))
    if names:
        more = f" and {len(names) - 3} more" if len(names) > 3 else ""
        version = f" and the version of {method} did not" if (method := meta["recipe"].get("method")) else ""
        return f"{', '.join(names[:3])}{more} changed since it was made{version}"
    for parent, content in meta.get("inherited", {}).items():
        if (folder := root() / parent).is_dir() and Artifact(folder).content != content:
            return f"{parent}, which it was made from, was made again since"
    return ""


def _current(folder: Path, fresh: bool) -> bool:
    """Whether what lies in the folder may be used as it is; if not, and nobody asked for it afresh, OnestepError."""
    try:
        meta = json.loads((folder / META).read_text())
    except (OSError, ValueError):  # a killed run's from before this was recorded
        return not fresh
    why = _outdated(meta)
    if fresh:
        return not why and "source" in meta
    if not why:
        return True
    key, half = folder.name.removesuffix(".partial"), " (half made)" * (folder.suffix == ".partial")
    version = "raise the version, or " * ("the version of" in why)
    raise OnestepError(
        f"{key}{half}: {why}; {version}make it again (fresh=True, or `onestep-bench run --fresh STAGE`), "
        f"or keep it as it would be made now (`onestep-bench store accept {key}`)"
    )


def accept(key: str) -> bool:
    """Take an artifact, or what a killed run left of it, for one of the present source and parents; remembered.

    Whether there was anything to accept.
    """
    folder = root() / key
    with locked(folder):
        accepted = False
        for place in (folder, folder.with_name(f"{key}.partial")):
            try:
                meta = json.loads((place / META).read_text())
            except (OSError, ValueError):
                continue
            if not _outdated(meta):
                continue
            parents = [Artifact(root() / parent) for parent in meta["inherited"] if (root() / parent).is_dir()]
            write_json(place / META, meta | _made_by(meta["source"]["entries"], parents))
            accepted = True
    return accepted


def _replace(folder: Path, partial: Path) -> None:
    """Give what is whole its name; what had it until now goes."""
    old = folder.with_name(f".{folder.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        os.replace(folder, old)
    os.replace(partial, folder)
    shutil.rmtree(old, ignore_errors=True)


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
        lock = acquired(lock_of(folder), timeout)  # another process is making the same artifact
    except Timeout:  # an OSError too
        raise
    except OSError as error:
        raise _unwritable(folder.parent, error) from error
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
