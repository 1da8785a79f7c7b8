"""What ranks do together, and one process alone just does: an artifact made once, its cost, a progress bar."""

import io
import json
import os
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from tqdm import std
from tqdm.auto import tqdm

from onestep_bench import store
from onestep_bench.errors import stopped
from onestep_bench.store.notes import PROGRESS, SCRATCH
from onestep_bench.training import ranks
from onestep_bench.training.ranks import device_name


def memo(
    kind: str, recipe: dict, parents: Iterable[store.Artifact], make: Callable[[Path], dict], **made
) -> store.Artifact:
    """`store.memo`, by all ranks together: rank 0 asks the store, and if `make` is needed all of them call it.

    made: `source` and `fresh`, as `store.memo` takes them.
    """

    def make_together(folder: Path) -> dict:
        ranks.shared(folder)
        return make(folder)

    parents = list(parents)
    with ranks.bound(), _calm_interrupt(kind):
        if ranks.leads():
            artifact = store.memo(kind, recipe, parents, make_together, **made)
            ranks.shared(None)
            return artifact
        while folder := ranks.shared(None):
            make(folder)
        return store.Artifact(store.root() / store.key_of(kind, recipe, (parent.key for parent in parents)))


@contextmanager
def _calm_interrupt(kind: str) -> Iterator[None]:
    """An interrupt is one line that says how to go on: a newcomer who presses Stop needs no traceback of torch."""
    try:
        yield
    except KeyboardInterrupt as interrupt:
        if interrupt.args:  # said already, by `fit`, and how far it came
            raise
        raise stopped(f"{_MAKING[kind]} stopped; run this again to go on from what is done") from None


_MAKING = {"model": "training", "pairs": "making pairs", "scores": "scoring", "judge": "training the judge"}


def spent(kimg: float, seconds: float, **more) -> dict:
    """The cost of an artifact; of ranks, seconds of all. more: passes, macs, busy, as `Artifact.meta` has them."""
    name = device_name() if ranks.count() == 1 else f"{ranks.count()} x {device_name()}"
    return {"kimg": kimg, "seconds": seconds * ranks.count(), "device": name} | more


def bar(**options) -> tqdm:
    """A progress bar, on rank 0: JupyterLab's own in a notebook, text in a terminal, nothing in a file.

    In a grid's cell it is silent, and `status` tells how far it is.
    """
    scratch = os.environ.get(SCRATCH)
    if scratch and ranks.leads():
        return _ToldBar(Path(scratch), **options)
    return tqdm(**options, disable=_silent())


class _ToldBar(std.tqdm):
    """A bar without a terminal: what it would show is in a file of the cell's scratch folder, as long as it is open."""

    monitor_interval = 0  # a thread that looks for late redraws: nobody watches this closely
    every = 1.0  # seconds between two files, at least

    def __init__(self, scratch: Path, **options):
        self.place, self.told = scratch / PROGRESS, -self.every
        self.began = time.time()
        super().__init__(**options, file=io.StringIO(), disable=False, miniters=0, mininterval=0)

    def display(self, *_, **__) -> None:
        """Write the file, if the last one is not too new."""
        now = time.monotonic()
        if now - self.told < self.every:
            return
        self.told = now
        told = {
            "what": self.desc.removesuffix(": "),
            "done": self.n,
            "total": self.total,
            "unit": self.unit,
            "began": self.began,
            "at": time.time(),
            "left": (self.total - self.n) / self.n * self.format_dict["elapsed"] if self.n else None,
        }
        # Not write_json: this is not worth waiting for the disk every second, and a full one must not end a training.
        beside = self.place.with_suffix(".new")
        with suppress(OSError):
            beside.write_text(json.dumps(told))
            os.replace(beside, self.place)

    def close(self) -> None:
        """Nothing is under way any more. Also called when the bar is forgotten, which must not touch the next one's."""
        if not self.disable:
            super().close()
            self.place.unlink(missing_ok=True)


def _silent() -> bool | None:
    if not ranks.leads() or os.environ.get("TQDM_DISABLE"):
        return True
    in_notebook = any(base.__module__ == "tqdm.notebook" for base in tqdm.__mro__)
    return False if in_notebook else None  # None: where there is no terminal
