"""What ranks do together, and one process alone just does: an artifact made once, its cost, a progress bar."""

from collections.abc import Callable, Iterable
from pathlib import Path

from tqdm import tqdm

from onestep_bench import store
from onestep_bench.training import ranks
from onestep_bench.training.ranks import device_name


def memo(kind: str, recipe: dict, parents: Iterable[store.Artifact], make: Callable[[Path], dict]) -> store.Artifact:
    """`store.memo`, by all ranks together: rank 0 asks the store, and if `make` is needed all of them call it."""

    def make_together(folder: Path) -> dict:
        ranks.shared(folder)
        return make(folder)

    parents = list(parents)
    with ranks.bound():
        if ranks.leads():
            artifact = store.memo(kind, recipe, parents, make_together)
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
    """A progress bar, on rank 0."""
    return tqdm(**options) if ranks.leads() else tqdm(**options, disable=True)
