"""Which models there are to look at: of the store, or of a report, by names that a person can tell apart."""

from collections.abc import Iterable, Sequence
from pathlib import Path

from onestep_bench.errors import OnestepError
from onestep_bench.models import Model, stored
from onestep_bench.report.tables import executed_in, read_rows


def of_store(shape: Sequence[int]) -> dict[str, Model]:
    """Models of the store whose images are of this shape (c, h, w), by name, the last used first."""
    return _named((f"{model.artifact.recipe['method']} {model.size}", model) for model in _fitting(stored(), shape))


def of_report(folder: Path | str, shape: Sequence[int]) -> dict[str, Model]:
    """Those models that a report's rows are scores of and that are in the store, by the names its figures give them.

    Snapshots, further averages and models seen on another path are left out: they are asked of their model. Raises
    OnestepError where none of them is in the store.
    """
    rows = read_rows(notebooks_of(folder)).drop_duplicates("model")
    here = {model.artifact.key: model for model in stored()}
    known = [(f"{row.label} {row.size}", here[row.model]) for row in rows.itertuples() if row.model in here]
    if not known:
        raise OnestepError(f"no model of {folder} is in the store; run its grid here, or name another report")
    fitting = _fitting((model for _, model in known), shape)
    return _named((name, model) for name, model in known if model in fitting)


def notebooks_of(folder: Path | str) -> Path:
    """The folder of executed notebooks of a report's folder, or that itself. Raises OnestepError if it has none."""
    folder = Path(folder).expanduser()
    inner = folder / "notebooks"
    found = inner if inner.is_dir() else folder
    if not found.is_dir() or not executed_in(found):
        raise OnestepError(f"there are no executed notebooks in {folder}; name the folder of a report")
    return found


def _fitting(models: Iterable[Model], shape: Sequence[int]) -> list[Model]:
    return [model for model in models if tuple(model.shape) == tuple(shape)]


def _named(models: Iterable[tuple[str, Model]]) -> dict[str, Model]:
    """By name and the first letters of their keys, which tell seeds and budgets apart."""
    return {f"{name} · {model.artifact.key.removeprefix('model-')[:4]}": model for name, model in models}
