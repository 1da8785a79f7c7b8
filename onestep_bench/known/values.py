"""What the values of a notebook's parameters must be: one table by name, for `plan` and for a notebook's first cell.

A parameter of a name that does not stand here may be anything of its type.
"""

import ast
import difflib
import math
import os
import re
import sys
from collections.abc import Callable, Iterable
from functools import cache
from pathlib import Path

from onestep_bench.errors import OnestepError, near_miss
from onestep_bench.known import plugins
from onestep_bench.known.catalogue import known

# (value, all values, folder that relative paths start from) -> None, or raises `Misfit`
Check = Callable[[object, dict, Path], None]


class Misfit(Exception):
    """A value that is not what it must be. Its text says what that is; hint: how to mend it."""

    def __init__(self, wanted: str, hint: str = "", value: object = None):
        super().__init__(wanted)
        self.hint, self.value = hint, value


def check(given: dict, everything: dict, declared: dict, folder: Path, where: str = "") -> None:
    """Refuse values that no notebook of ours could use, in one line that begins with `where`.

    given: the values to look at. everything: these and all others of the notebook. declared: its defaults; an empty one
    ('' or 0, for 'not asked') may be given again, and a parameter whose default would be refused means something else
    in that notebook. folder: where relative paths start. Raises OnestepError.
    """
    for name, value in given.items():
        test, default = _test_of(name), declared.get(name)
        if test is None or (not value and name in declared and not default):
            continue
        if default and _misfit(test, default, everything, folder):
            continue
        if misfit := _misfit(test, value, everything, folder):
            wrong = value if misfit.value is None else misfit.value
            raise OnestepError(f"{where}{name!r} must be {misfit}, not {wrong!r}{misfit.hint}")
    _check_data(everything, folder, where)


def _misfit(test: Check, value: object, everything: dict, folder: Path) -> Misfit | None:
    try:
        test(value, everything, folder)
    except Misfit as misfit:
        return misfit
    return None


# ---- kinds of values -------------------------------------------------------------------------------------------------


def _one_of(kind: str, *more: str) -> Check:
    """A name of the catalogue's kind, or one of more."""

    def test(value: object, everything: dict, folder: Path) -> None:
        if isinstance(value, str) and value not in known(kind):
            plugins.load()  # which may know it
        _among(value, [*known(kind), *more], kind)

    return test


def _choice(*names: str) -> Check:
    return lambda value, everything, folder: _among(value, names)


def _among(value: object, names: Iterable[str], kind: str = "") -> None:
    if isinstance(value, str) and value not in names:
        raise Misfit(f"one of {', '.join(names)}", _hint(value, names, kind), value)


def _hint(value: str, names: Iterable[str], kind: str) -> str:
    """A near miss, or where to look."""
    if difflib.get_close_matches(value, names, n=1):
        return near_miss(value, names)
    return f"; see `onestep-bench list {kind}`" if kind in LISTED else ""


LISTED = ("methods", "sizes", "judges", "datasets", "samplers")


def _each(test: Check) -> Check:
    """Of a list, each element; of anything else, itself."""

    def tests(value: object, everything: dict, folder: Path) -> None:
        for element in value if isinstance(value, list) else [value]:
            test(element, everything, folder)

    return tests


def _some(what: str, test: Check) -> Check:
    """One or more different values that pass the test, or a single one."""
    each = _each(test)

    def tests(value: object, everything: dict, folder: Path) -> None:
        if isinstance(value, list) and not value:
            raise Misfit(f"a list of one or more {what}")
        each(value, everything, folder)
        twins = [item for item in value if value.count(item) > 1] if isinstance(value, list) else []
        if twins:
            raise Misfit(f"a list of different {what}", f"; {twins[0]!r} stands there twice")

    return tests


def _number(what: str, fits: Callable[[float], bool]) -> Check:
    def test(value: object, everything: dict, folder: Path) -> None:
        if type(value) in (int, float) and not (math.isfinite(value) and fits(value)):
            raise Misfit(what, value=value)

    return test


_positive = _number("positive", lambda value: value > 0)
_not_negative = _number("0 or more", lambda value: value >= 0)
_count = _number("a whole number of 1 or more", lambda value: value >= 1 and value == int(value))
_any_number = _number("a finite number", lambda value: True)


def _rate(value: object, everything: dict, folder: Path) -> None:
    """A learning rate; 0 is the method's own where a method is named."""
    (_not_negative if "method" in everything else _positive)(value, everything, folder)


def _distance(value: object, everything: dict, folder: Path) -> None:
    for part in value.split("+") if isinstance(value, str) else ():
        _among(part, list(known("distances")))


def _critic(value: object, everything: dict, folder: Path) -> None:
    for part in value.split("+") if isinstance(value, str) else ():
        if part != "teacher" and not part.startswith("timm:"):
            raise Misfit("'teacher', 'timm:NAME', or several of them joined by '+'", value=part)


def _dataset(value: object, everything: dict, folder: Path) -> None:
    if isinstance(value, str) and value not in known("datasets") and not _data_path(value, folder):
        wanted = f"one of {', '.join(known('datasets'))}, or the path of a zip, tar or folder that is there"
        hint = _hint(value, known("datasets"), "datasets") if "/" not in value else "; correct the path"
        raise Misfit(wanted, hint)


def _data_path(name: str, folder: Path) -> Path | None:
    """The file or folder of a data set that is no registered name: where `data.load` would find it."""
    root = Path(os.environ.get("ONESTEP_DATA") or "~/.cache/onestep_bench/data").expanduser()
    paths = (folder / Path(name).expanduser(), root / name)
    return next((path for path in paths if name and path.exists()), None)


def _teacher(value: object, everything: dict, folder: Path) -> None:
    if not isinstance(value, str) or value.startswith("https://") or _STORED.fullmatch(value):
        return
    able = [name for name, entry in known("methods").items() if entry.data == "images" and not entry.needs_teacher]
    names = [*able, *known("zoo")]
    if value in names or (value and (folder / Path(value).expanduser()).exists()):
        return
    unable = value in known("methods")
    hint = f"; {value} itself needs a teacher or pairs" if unable else _hint(value, names, "methods")
    raise Misfit(f"a method without a teacher ({', '.join(able)}), or the path or zoo name of a model", hint)


_STORED = re.compile(r"(model-)?[0-9a-f]{4,16}")  # a key of the store, or how one starts: only the store can tell

# The first name that matches counts. Whole names, or patterns where several parameters are of one kind.
_TABLE: tuple[tuple[str, Check], ...] = (
    ("dataset", _dataset),
    ("teacher", _teacher),
    ("size|teacher_size", _one_of("sizes")),
    ("method", _one_of("methods")),
    ("sampler|pair_sampler", _one_of("samplers")),
    ("samplers", _some("samplers", _one_of("samplers"))),
    ("features", _some("judges", _one_of("judges", "auto"))),
    ("splits", _some("splits", _choice("train", "test", "all"))),
    ("reals", _choice("data", "teacher")),
    ("purpose", _choice("result", "search")),
    ("variants", _each(_one_of("variants"))),
    ("map|other_maps", _each(_one_of("maps"))),
    ("schedule", _one_of("schedules")),
    ("anneal", _one_of("anneals")),
    ("distance|kd_distance|cd_distance", _distance),
    ("critic", _critic),
    ("start", _choice("teacher", "random")),
    ("first_step", _choice("student", "teacher")),
    ("condition", _choice("index", "noise")),
    ("predicts", _choice("v", "eps")),
    ("steps|student_levels", _some("numbers of steps", _count)),
    ("seeds", _some("seeds", _any_number)),
    ("budgets|snapshots", _some("budgets", _positive)),
    ("folds", _each(_count)),
    ("samples", _number("2 or more, which a distance needs", lambda value: value >= 2)),
    ("lr", _rate),
    (r"\w+_lr|(\w+_)?kimg", _positive),
    ("batch_size|pairs|pair_steps|many_steps|levels|cd_levels", _count),
    ("critic_channels", _number("a multiple of 8", lambda value: value > 0 and value % 8 == 0)),
    ("first_steps|r1_gamma|guidance", _not_negative),
)


@cache
def _test_of(name: str) -> Check | None:
    return next((test for pattern, test in _TABLE if re.fullmatch(pattern, name)), None)


# ---- what the data must have -----------------------------------------------------------------------------------------


def _check_data(everything: dict, folder: Path, where: str) -> None:
    """Refuse what the data set cannot give, where that can be told without decoding it."""
    dataset, features = everything.get("dataset"), everything.get("features")
    if not isinstance(dataset, str):
        return
    judges = features if isinstance(features, list) else [features]
    side = known("datasets")[dataset].side if dataset in known("datasets") else None
    if "digits" in judges and side not in (None, 8):
        raise OnestepError(
            f"{where}'features' must be auto or another judge: {dataset} has {side}x{side}, and digits 8x8"
        )
    asking = ["features: classifier"] * ("classifier" in judges) + ["conditional: True"] * (
        everything.get("conditional") is True
    )
    if asking and _unlabelled(dataset, folder):
        raise OnestepError(f"{where}{asking[0]!r} needs labels, and {dataset} has none; give it a dataset.json")


def _unlabelled(dataset: str, folder: Path) -> bool:
    """Whether a data set certainly has no labels: a zip or folder of images without dataset.json and sub-folders."""
    path = None if dataset in known("datasets") else _data_path(dataset, folder)
    if path is None or (path.is_file() and path.suffix != ".zip"):
        return False
    return not _labels_in(path, path.stat().st_mtime_ns)


@cache
def _labels_in(path: Path, changed: int) -> bool:
    import zipfile  # here, because few plans need it

    try:
        if path.is_dir():
            return (path / "dataset.json").exists() or any(entry.is_dir() for entry in path.iterdir())
        with zipfile.ZipFile(path) as archive:
            return any(name == "dataset.json" or "/" in name for name in archive.namelist())
    except (OSError, zipfile.BadZipFile):
        return True  # whoever reads it will say what is wrong with it


# ---- types -----------------------------------------------------------------------------------------------------------


def fit(value: object, default: object) -> object:
    """`value` as the type of `default`. Raises Misfit.

    An int serves as a float, one value for a list as a list of it; None as a default takes anything.
    """
    if default is None:
        return value
    if isinstance(default, list) and not isinstance(value, list):
        value = [value]
    if isinstance(default, float) and type(value) is int:
        return float(value)
    if type(value) is not type(default):
        raise Misfit(type(default).__name__)
    if isinstance(default, list) and default:
        return [_fit_element(element, default) for element in value]
    return value


def _fit_element(element: object, defaults: list) -> object:
    for default in defaults:
        try:
            return fit(element, default)
        except Misfit:
            continue
    raise Misfit("a list of " + " or ".join(dict.fromkeys(type(default).__name__ for default in defaults)))


# ---- the first cell of a notebook ------------------------------------------------------------------------------------

_INJECTED = "# Parameters\n"  # how the cell begins that papermill puts after the notebook's own


def begin() -> None:
    """Check the parameters of the notebook this is called in, before anything is loaded or trained.

    A name that papermill was given (`-p`) and the notebook does not declare is refused, and so is a value of another
    type or one that `check` refuses; one value for a list becomes a list of it. Outside a kernel nothing happens.
    Raises OnestepError.
    """
    shell = sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None
    if shell is None:
        return
    cells = [cell for cell in shell.user_ns.get("In", ()) if isinstance(cell, str)]
    declared: dict = {}
    for cell in cells:
        declared |= _declared(cell)
    if not declared:  # whoever runs cells in an order of their own has no parameters yet
        return
    for cell in cells:
        for name in _assigned(cell) if cell.startswith(_INJECTED) else ():
            if name not in declared:
                raise OnestepError(f"this notebook has no parameter {name!r}{near_miss(name, declared)}")
    values = {name: _fitted(name, shell.user_ns[name], declared[name]) for name in declared if name in shell.user_ns}
    shell.user_ns.update(values)
    empty = {name: default for name, default in declared.items() if not default}
    check(values, values, empty, Path.cwd())


def _assigned(cell: str) -> dict[str, ast.AnnAssign | ast.Assign]:
    """Assignments by name of a cell that is nothing else; of any other cell none."""
    try:
        statements = ast.parse(cell).body
    except SyntaxError:
        return {}
    found = {}
    for statement in statements:
        target = statement.targets[0] if isinstance(statement, ast.Assign) else getattr(statement, "target", None)
        if not isinstance(statement, ast.Assign | ast.AnnAssign) or not isinstance(target, ast.Name):
            return {}
        found[target.id] = statement
    return found


def _declared(cell: str) -> dict:
    """Name to default of a cell of parameters, which holds literals only and is not papermill's."""
    if cell.startswith(_INJECTED):
        return {}
    try:
        return {name: _default(statement) for name, statement in _assigned(cell).items()}
    except (ValueError, TypeError):
        return {}


def _default(statement: ast.Assign | ast.AnnAssign) -> object:
    value = ast.literal_eval(statement.value)
    listed = isinstance(statement, ast.AnnAssign) and ast.unparse(statement.annotation).startswith("list")
    return value if isinstance(value, list) or not listed else [value]


def _fitted(name: str, value: object, default: object) -> object:
    try:
        return fit(value, default)
    except Misfit as misfit:
        # As papermill passes what it would take for something else.
        hints = {str: f"; -r {name} ... passes text", list: f"; -y '{name}: [...]' passes a list"}
        hint = hints.get(type(default), "")
        raise OnestepError(f"{name!r} must be {misfit}, not {type(value).__name__} {value!r}{hint}") from None
