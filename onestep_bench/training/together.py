"""What ranks do together, and one process alone just does: an artifact made once, its cost, a progress bar."""

import os
from collections.abc import Callable, Iterable
from pathlib import Path

from tqdm.auto import tqdm

from onestep_bench import store
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
    with ranks.bound():
        if ranks.leads():
            artifact = store.memo(kind, recipe, parents, make_together, **made)
            ranks.shared(None)
            return artifact
        while folder := ranks.shared(None):
            make(folder)
        return store.Artifact(store.root() / store.key_of(kind, recipe, (parent.key for parent in parents)))


def spent(kimg: float, seconds: float) -> dict:
    """The cost of an artifact; of ranks, the seconds of all of them."""
    name = device_name() if ranks.count() == 1 else f"{ranks.count()} x {device_name()}"
    return {"kimg": kimg, "seconds": seconds * ranks.count(), "device": name}


def bar(**options) -> tqdm:
    """A progress bar, on rank 0: JupyterLab's own in a notebook, text in a terminal, nothing in a file."""
    return tqdm(**options, disable=_silent())


def _silent() -> bool | None:
    if not ranks.leads() or os.environ.get("TQDM_DISABLE"):
        return True
    in_notebook = any(base.__module__ == "tqdm.notebook" for base in tqdm.__mro__)
    return False if in_notebook else None  # None: where there is no terminal
