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
from functools import cache, partial
from pathlib import Path

from onestep_bench.errors import OnestepError, near_miss
from onestep_bench.known import plugins
from onestep_bench.known.catalogue import known, training_fields
from onestep_bench.known.material import check_data, data_path
from onestep_bench.known.types import Misfit, fit, is_of

# (value, all values, folder that relative paths start from) -> None, or raises `Misfit`
Check = Callable[[object, dict, Path], None]


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
    check_data(everything, folder, where)


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
    """A learning rate; 0 is the method's own where methods are named."""
    (_not_negative if {"method", "methods"} & everything.keys() else _positive)(value, everything, folder)


def _distance(value: object, everything: dict, folder: Path) -> None:
    for part in value.split("+") if isinstance(value, str) else ():
        name, _, side = part.partition("@")  # lpips@224 sees images of that side
        _among(name if name == "lpips" and side.isdecimal() else part, list(known("distances")))


def _critic(value: object, everything: dict, folder: Path) -> None:
    for part in value.split("+") if isinstance(value, str) else ():
        if part != "teacher" and not part.startswith("timm:"):
            raise Misfit("'teacher', 'timm:NAME', or several of them joined by '+'", value=part)


def _dataset(value: object, everything: dict, folder: Path) -> None:
    if isinstance(value, str) and value not in known("datasets") and not data_path(value, folder):
        wanted = f"one of {', '.join(known('datasets'))}, or the path of a zip, tar or folder that is there"
        hint = _hint(value, known("datasets"), "datasets") if "/" not in value else "; correct the path"
        raise Misfit(wanted, hint)


def _teacher(value: object, everything: dict, folder: Path) -> None:
    if not isinstance(value, str) or value.startswith("https://") or _STORED.fullmatch(value):
        return
    able = [name for name, entry in known("methods").items() if entry.data == "images" and not entry.needs_teacher]
    names = [*able, *known("zoo")]
    if value in names or (value and os.path.exists(folder / Path(value).expanduser())):
        return
    unable = value in known("methods")
    hint = f"; {value} itself needs a teacher or pairs" if unable else _hint(value, names, "methods")
    raise Misfit(f"a method without a teacher ({', '.join(able)}), or the path or zoo name of a model", hint)


_STORED = re.compile(r"(model-)?[0-9a-f]{4,16}")  # a key of the store, or how one starts: only the store can tell


def _precision(value: object, everything: dict, folder: Path) -> None:
    for one in value.values() if isinstance(value, dict) else [value]:
        _among(one, list(known("precisions")))


# The first name that matches counts. Whole names, or patterns where several parameters are of one kind.
_TABLE: tuple[tuple[str, Check], ...] = (
    ("dataset", _dataset),
    ("teacher", _teacher),
    ("size|teacher_size", _one_of("sizes")),
    ("method|first_stage", _one_of("methods")),
    ("methods", _some("methods", _one_of("methods"))),
    ("sampler|pair_sampler", _one_of("samplers")),
    ("samplers", _some("samplers", _one_of("samplers"))),
    ("features", _some("judges", _one_of("judges", "auto"))),
    ("splits", _some("splits", _choice("train", "test", "all"))),
    ("reals", _choice("data", "teacher")),
    ("purpose", _choice("result", "search")),
    ("variants", _each(_one_of("variants"))),
    ("map|other_maps", _each(_one_of("maps"))),
    ("schedule", _one_of("schedules", "karras")),  # which is progressive's alone
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
    ("optimizer", _one_of("optimizers")),
    ("lr_decay", _one_of("decays")),
    ("precision", _precision),
    ("emas|(warmup|ema_halflife)_kimg|weight_decay|clip|ema_rampup", _each(_not_negative)),
    ("dropout", _number("a share from 0 to below 1", lambda value: 0 <= value < 1)),
    ("augment", _number("a probability", lambda value: 0 <= value <= 1)),
    ("distill_from", _choice("average", "raw")),
    ("lr", _rate),
    (r"\w+_lr|(\w+_)?kimg", _positive),
    ("batch_size|accumulate|pairs|pair_steps|many_steps|levels|cd_levels", _count),
    ("critic_channels", _number("a multiple of 8", lambda value: value > 0 and value % 8 == 0)),
    ("first_steps|r1_gamma|guidance", _not_negative),
)


@cache
def _test_of(name: str) -> Check | None:
    if name == "options" or name.endswith("_options"):
        return partial(_options, name)
    return next((test for pattern, test in _TABLE if re.fullmatch(pattern, name)), None)


# ---- options of a training -------------------------------------------------------------------------------------------

# Whose options `X_options` are, where X is no method's name itself.
_SHORT = {
    "reflow": "annealing-reflow",
    "distill": "flow-guided-distillation",
    "cd": "consistency-distillation",
    "ect": "easy-consistency-tuning",
}
# A notebook about one method has, in the place of `method`, a parameter of its own; what it sets itself.
_ABOUT = {"variants": "gdd", "student_levels": "sfddm"}
_SWEPT = {
    "gdd": ("variant",),
    "sfddm": ("student_levels", "map", "levels", "schedule"),
    "progressive": ("steps",),
    "annealing-reflow": ("anneal", "constant"),
    "flow-guided-distillation": ("guidance",),
}


def _options(name: str, value: object, everything: dict, folder: Path) -> None:
    """Fields of a method's config or of TrainConfig, but for those that the notebook sets itself.

    Those of a teacher that is taken from elsewhere, and of a notebook that is not ours, may be anything.
    """
    if name == "options" and "methods" in everything:
        return _options_by_method(value, everything, folder)
    method = _method_of(name, everything)
    if not isinstance(value, dict) or method is None:
        return
    if method not in known("methods"):
        plugins.load()  # which may know it
    entry = known("methods").get(method)
    if entry is None or entry.fields is None:
        return
    fields = entry.fields | training_fields()
    for own in ("kimg", *(() if name == "options" and "method" in everything else _SWEPT.get(method, ()))):
        if own in value:
            raise Misfit(f"a dict without {own!r}, which other parameters set")
        fields.pop(own, None)
    for option, given in value.items():
        if option not in fields:
            raise Misfit(f"a dict of options of {method}", near_miss(str(option), fields), option)
        if not is_of(given, fields[option]):
            hint = "; YAML wants a point: 1.0e-4" if fields[option] == "float" and isinstance(given, str) else ""
            raise Misfit(f"a dict whose {option!r} is {fields[option]}", hint, given)
        test = _test_of(option)
        # A custom map has its indices beside it; '' is none of what there may be, where that is an option.
        if test is None or option == "map" or given == "":
            continue
        if misfit := _misfit(test, given, everything | {"method": method}, folder):
            raise Misfit(
                f"a dict whose {option!r} is {misfit}", misfit.hint, given if misfit.value is None else misfit.value
            )


def _options_by_method(value: object, everything: dict, folder: Path) -> None:
    """A dict of options for each method, of those that are not asked for too, in a notebook that trains several."""
    alone = {name: given for name, given in everything.items() if name != "methods"}
    for method, own in value.items() if isinstance(value, dict) else ():
        try:
            _one_of("methods")(method, everything, folder)
        except Misfit as misfit:
            raise Misfit("a dict by method", misfit.hint, method) from misfit
        if not isinstance(own, dict):
            raise Misfit(f"a dict whose {method!r} is a dict of its options", value=own)
        _options("options", own, alone | {"method": method}, folder)


def _method_of(name: str, everything: dict) -> str | None:
    """The method whose options are given by the parameter of this name."""
    if name == "options":
        about = (method for sign, method in _ABOUT.items() if sign in everything)
        return everything.get("method") or next(about, None)
    short = name.removesuffix("_options")
    return everything.get(short) if short in ("teacher", "first_stage") else _SHORT.get(short, short)


# ---- the first cell of a notebook ------------------------------------------------------------------------------------

_INJECTED = "# Parameters\n"  # how the cell begins that papermill puts after the notebook's own
_BUDGET = re.compile(r"(\w+_)?kimg|budgets")
_LEARNS = 20.0  # kimg, more than any notebook's own; what is given by hand replaces those where they stand
_SMOKE = (
    "These budgets are a smoke run of seconds: expect noise in its pictures, and no meaning in its scores. Raise the "
    "kimg, or see params/ for runs that learn something."
)


def begin() -> None:
    """Check the parameters of the notebook this is called in, before anything is loaded or trained.

    A name that papermill was given (`-p`) and the notebook does not declare is refused, and so is a value of another
    type or one that `check` refuses; one value for a list becomes a list of it. Where all budgets (kimg) are as
    small as the notebooks' own, a line says that this is a smoke run. Outside a kernel nothing happens.
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
    given = [value for name, value in values.items() if _BUDGET.fullmatch(name)]
    budgets = [budget for value in given for budget in (value if isinstance(value, list) else [value])]
    if budgets and max(budgets) < _LEARNS:
        print(_SMOKE)


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
