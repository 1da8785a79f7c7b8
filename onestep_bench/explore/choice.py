"""Which models there are to look at: of the store, or of a report, by names that a person can tell apart."""

from collections.abc import Iterable
from pathlib import Path

from onestep_bench.data import Dataset
from onestep_bench.errors import OnestepError
from onestep_bench.models import Model, stored
from onestep_bench.report.tables import executed_in, is_teacher, read_rows


def of_store(images: Dataset) -> dict[str, Model]:
    """Models of the store that make images like these, by name, the last used first.

    Left out are those of another shape, those that are known to be trained on other data, and damaged ones.
    """
    return _named((_in_words(model), model) for model in stored() if _makes(model, images) and _of_data(model, images))


def of_report(folder: Path | str, images: Dataset) -> dict[str, Model]:
    """Those models that a report's rows are scores of and that are in the store, by the names its figures give them.

    Snapshots, further averages and models seen on another path are left out: they are asked of their model. Raises
    OnestepError where none of them is in the store, or none makes images of this shape.
    """
    rows = read_rows(notebooks_of(folder)).drop_duplicates("model")
    here = {model.artifact.key: model for model in stored()}
    known = [(_label(row.label, row.size), here[row.model]) for row in rows.itertuples() if row.model in here]
    if not known:
        raise OnestepError(f"no model of {folder} is in the store; run its grid here, or name another report")
    fitting = [(name, model) for name, model in known if _makes(model, images)]
    if not fitting:
        shape = "x".join(map(str, images.shape))
        raise OnestepError(f"no model of {folder} makes images of {shape}, as {images.name} are; name its data set")
    return _named(fitting)


def notebooks_of(folder: Path | str) -> Path:
    """The folder of executed notebooks of a report's folder, or that itself. Raises OnestepError if it has none."""
    folder = Path(folder).expanduser()
    inner = folder / "notebooks"
    found = inner if inner.is_dir() else folder
    if not found.is_dir() or not executed_in(found):
        raise OnestepError(f"there are no executed notebooks in {folder}; name the folder of a report")
    return found


def _makes(model: Model, images: Dataset) -> bool:
    """Whether its images have this shape; not so of one that is damaged, or was removed meanwhile."""
    try:
        return tuple(model.shape) == images.shape
    except OnestepError:
        return False


def _of_data(model: Model, images: Dataset) -> bool:
    """Whether it, or a teacher of it, was trained on these images; true also where that is not known."""
    try:
        seen = {artifact.recipe.get("data") for artifact in model.artifact.lineage()} - {"pairs", None}
    except OnestepError:  # what it was made from is gone
        return True
    return not seen or images.digest in seen


def _in_words(model: Model) -> str:
    recipe = model.artifact.recipe
    name = recipe.get("config", {}).get("variant") or recipe["method"]
    budget = f", {recipe['training']['kimg']:g} kimg" if "training" in recipe else ""  # not of one from elsewhere
    return f"{name} {model.size}{budget}"


def _label(label: str, size: str) -> str:
    """A teacher has a label for each of its samplers, which here a slider chooses."""
    return f"{'teacher' if is_teacher(label) else label} {size}"


def _named(models: Iterable[tuple[str, Model]]) -> dict[str, Model]:
    """By name and as many letters of their keys as tell them apart, four at least."""
    found: dict[str, Model] = {}
    for name, model in models:
        key = model.artifact.key.removeprefix("model-")
        names = (f"{name} · {key[:letters]}" for letters in range(4, len(key) + 1))
        found[next(one for one in names if one not in found)] = model
    return found
