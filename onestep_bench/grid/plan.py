"""`params/*.yaml` to cells: which notebooks run with which parameters, and which of them already did.

Planning reads YAML and notebook JSON only: no torch, no pandas, no papermill, so that a thousand cells are planned, and
every mistake in them found, in less than a second and before anything runs.
"""

import ast
import hashlib
import itertools
import json
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from urllib.parse import quote

from onestep_bench import __version__
from onestep_bench.errors import OnestepError, near_miss
from onestep_bench.grid.cells import Cell, Grid, Stage
from onestep_bench.grid.changes import Changes
from onestep_bench.grid.cost import Passes, read_passes, read_rate
from onestep_bench.grid.document import mapping, names_in, read_yaml, refuse_unknown, text_of
from onestep_bench.grid.files import awaited
from onestep_bench.grid.parameters import Notebook, checked, kind
from onestep_bench.known import plugins
from onestep_bench.known.values import check
from onestep_bench.store.provenance import normal
from onestep_bench.units import bytes_of, seconds_of

_TOP_KEYS = (
    *("name", "title", "dataset", "defaults", "notebooks", "out", "plugins"),
    *("limit", "memory", "rate", "stages"),
)
_STAGE_KEYS = (
    *("notebook", "needs", "over", "parameters", "gpus", "limit", "memory", "takes"),
    *("passes", "once", "published"),
)
_PUBLISHED_KEYS = ("fid", "at", "source")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")
# File names hold 255 bytes; the partial file adds a dot and '.partial.ipynb', its replacement a random suffix.
_LONGEST_ID = 200


def read_grid(
    path: Path | str,
    *,
    notebooks: Path | str | None = None,
    out: Path | str | None = None,
    changes: Changes | None = None,
) -> Grid:
    """Plan the grid that a YAML file describes.

    notebooks: folder of the notebooks; by default what the grid's key `notebooks` names, else `notebooks` beside the
    YAML's folder or that folder's, else in the working folder. out: where results go; by default what its key `out`
    names, else `reports/NAME` beside the notebooks that were found, or in the working folder if they were named. Paths
    in the YAML are relative to its own folder. changes: of budgets and parameters, which make it a grid with results
    of its own. Its plug-ins are named to this process and to those it starts. A file that is not there yet is no
    mistake: see `files.needed`.
    Raises OnestepError, naming file, stage and key, at the first mistake.
    """
    path = Path(path)
    document = read_yaml(path)
    refuse_unknown(document, _TOP_KEYS, f"{path}: ")
    named = Path(notebooks).absolute() if notebooks else _named_folder(document, "notebooks", path)
    plugins.use(_read_plugins(document.get("plugins", []), path))
    house = Path.cwd() if named else _house(document, path)
    stages = _read_stages(document, path, named or house / "notebooks")
    changes = changes or Changes()
    changes.check({key for stage in stages.values() for key in stage.notebook.declared}, f"{path}: ")
    name = _folder_name(document.get("name"), path)
    if named_out := _named_folder(document, "out", path):
        named_out = named_out.with_name(named_out.name + changes.suffix)
    return Grid(
        name=name + changes.suffix,
        title=text_of(document.get("title", name), f"{path}: title"),
        path=path,
        out=(Path(out).absolute() if out else named_out) or house / "reports" / (name + changes.suffix),
        cells=tuple(_cells(stages, _read_defaults(document, stages, path), changes)),
        stages={stage.name: Stage(stage.notebook.declared, stage.passes, stage.published) for stage in stages.values()},
        rate=read_rate(document.get("rate"), f"{path}: "),
    )


def _read_plugins(listed: object, path: Path) -> list[str]:
    """Modules by name, and files by path, those of the YAML relative to its own folder."""
    if not isinstance(listed, list) or not all(isinstance(one, str) and one for one in listed):
        raise OnestepError(f"{path}: plugins must be a list of modules or .py files, not {kind(listed)}")
    found = [str(path.absolute().parent / one) if one.endswith(".py") else one for one in listed]
    for file in found:
        if file.endswith(".py") and not os.path.isfile(file):
            raise OnestepError(f"{path}: plugins: there is no file {file}; correct the path")
    return found


def _named_folder(document: dict, key: str, path: Path) -> Path | None:
    if key not in document:
        return None
    named = Path(text_of(document[key], f"{path}: {key}")).expanduser()
    return Path(os.path.abspath(path.parent / named))


def _house(document: dict, path: Path) -> Path:
    """The folder that `notebooks` and `reports` stand in: round the grid's folder, or the one a person works in."""
    houses = (*list(Path(os.path.abspath(path)).parents)[1:3], Path.cwd())
    found = [house for house in houses if (house / "notebooks").is_dir()]
    if not found:
        looked = " nor ".join(dict.fromkeys(str(house / "notebooks") for house in houses))
        raise OnestepError(
            f"{path}: no notebooks folder: there is no {looked}; name one with --notebooks or the key `notebooks`, or "
            "make a folder to work in with onestep-bench start"
        )
    # A grid may be kept where somebody else's notebooks happen to stand beside its folder.
    stages = document.get("stages")
    stages = stages.values() if isinstance(stages, dict) else ()
    files = [stage.get("notebook") for stage in stages if isinstance(stage, dict)]
    return next((house for house in found if _has_any(house / "notebooks", files)), found[0])


def _has_any(folder: Path, files: list) -> bool:
    return any(os.path.isfile(folder / file) for file in files if isinstance(file, str))


def _folder_name(name: object, path: Path) -> str:
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise OnestepError(f"{path}: name must be letters, digits, '-' and '_' (it names a folder), not {kind(name)}")
    return name


# ---- stages ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Stage:
    name: str
    where: str  # how an error message begins
    notebook: Notebook
    needs: tuple[str, ...]
    parameters: dict
    over: list[list[dict]]  # of each axis its points, each the values of one name, or of several that move together
    bounds: dict  # gpus, limit, memory and takes of its cells
    passes: Passes
    published: tuple[dict, ...]
    cells: list[Cell] = field(default_factory=list)

    @property
    def points(self) -> Iterator[dict]:
        """One dict per point of the cartesian product of the axes."""
        return (
            {key: value for part in parts for key, value in part.items()} for parts in itertools.product(*self.over)
        )

    @property
    def varied(self) -> list[str]:
        """The names that the axes give values to."""
        return [name for axis in self.over for name in axis[0]]


def _read_stages(document: dict, path: Path, folder: Path) -> dict[str, _Stage]:
    """Stages by name, each after those it needs."""
    raw = mapping(document.get("stages"), f"{path}: stages")
    if not raw:
        raise OnestepError(f"{path}: stages is empty; name at least one")
    if not folder.is_dir():
        raise OnestepError(f"{path}: no notebooks folder at {folder}; name another with --notebooks")
    notebooks: dict[str, Notebook] = {}
    common = _read_bounds(document, f"{path}: ")
    stages = {name: _read_stage(name, value, path, folder, notebooks, common) for name, value in raw.items()}
    for stage in stages.values():
        for need in stage.needs:
            if need not in stages:
                raise OnestepError(f"{stage.where}needs unknown stage {need!r}{near_miss(str(need), stages)}")
    try:
        order = list(TopologicalSorter({name: stage.needs for name, stage in stages.items()}).static_order())
    except CycleError as error:
        # graphlib lists each stage before the one that needs it.
        circle = " needs ".join(reversed(error.args[1]))
        raise OnestepError(f"{path}: stages need each other in a circle: {circle}") from error
    return {name: stages[name] for name in order}


def _read_stage(name: object, value: object, path: Path, folder: Path, notebooks: dict, common: dict) -> _Stage:
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise OnestepError(f"{path}: stage name {name!r} must be letters, digits, '-' and '_' (it names files)")
    where = f"{path}: stage {name!r}: "
    value = mapping(value, f"{path}: stage {name!r}")
    refuse_unknown(value, _STAGE_KEYS, where)
    file = text_of(value.get("notebook"), f"{where}notebook")
    if not os.path.isfile(folder / file):
        raise OnestepError(f"{where}no notebook {file!r} in {folder}{near_miss(file, names_in(folder, '*.ipynb'))}")
    if file not in notebooks:
        notebooks[file] = Notebook.read(folder / file)
    declared = notebooks[file].declared
    parameters = mapping(value.get("parameters", {}), f"{where}parameters")
    over = mapping(value.get("over", {}), f"{where}over")
    varied = [name for key in over for name in str(key).split("+")]
    if twice := next((name for name in varied if varied.count(name) > 1), None):
        raise OnestepError(f"{where}over: {twice!r} stands in two axes; keep one")
    return _Stage(
        name=name,
        where=where,
        notebook=notebooks[file],
        needs=_read_needs(value.get("needs", []), where),
        parameters={key: checked(key, given, declared, file, where) for key, given in parameters.items()},
        over=[_read_axis(key, values, parameters, declared, file, where) for key, values in over.items()],
        bounds={**common, **_read_bounds(value, where)},
        passes=read_passes(value, declared, where),
        published=_read_published(value.get("published", []), where),
    )


def _read_published(listed: object, where: str) -> tuple[dict, ...]:
    """The figures a stage is to meet: [{fid, at, source}]."""
    if not isinstance(listed, list):
        raise OnestepError(f"{where}published must be a list of {{fid, at, source}}, not {kind(listed)}")
    for figure in listed:
        refuse_unknown(mapping(figure, f"{where}published"), _PUBLISHED_KEYS, f"{where}published: ")
        if type(figure.get("fid")) not in (int, float):
            raise OnestepError(f"{where}published: fid must be a number, not {kind(figure.get('fid'))}")
        for key in ("at", "source"):
            text_of(figure.get(key), f"{where}published: {key}")
    return tuple(listed)


def _read_bounds(mapping: dict, where: str) -> dict:
    """gpus, limit, memory and takes, of those that stand in the mapping."""
    bounds = {}
    for key, read, wanted in (
        ("gpus", _whole_number, "a whole number of 1 or more"),
        ("limit", seconds_of, "seconds, or a time such as 90s, 10min, 2h"),
        ("memory", bytes_of, "bytes, or a size such as 800MB, 8GB"),
        ("takes", seconds_of, "seconds, or a time such as 90s, 10min, 2h"),
    ):
        if key not in mapping:
            continue
        bounds[key] = read(mapping[key])
        if bounds[key] is None:
            raise OnestepError(f"{where}{key} must be {wanted}, not {kind(mapping[key])}")
    return bounds


def _whole_number(value: object) -> int | None:
    return value if type(value) is int and value > 0 else None


def _read_needs(needs: object, where: str) -> tuple[str, ...]:
    if not isinstance(needs, list):
        raise OnestepError(f"{where}needs must be a list of stage names, not {kind(needs)}")
    return tuple(dict.fromkeys(str(need) for need in needs))


def _read_axis(key: str, values: object, parameters: dict, declared: dict, file: str, where: str) -> list[dict]:
    """The points of an axis. A key `a+b` gives each value to both."""
    if not isinstance(values, list) or not values:
        raise OnestepError(f"{where}over: {key!r} must be a list of one or more values, not {kind(values)}")
    names = str(key).split("+")
    for name in names:
        if name in parameters:
            raise OnestepError(f"{where}{name!r} stands in both `parameters` and `over`; keep one")
    return [{name: checked(name, value, declared, file, where) for name in names} for value in values]


def _read_defaults(document: dict, stages: dict[str, _Stage], path: Path) -> dict:
    """The parameters for every stage whose notebook declares them; `dataset: x` at the top is short for one of them."""
    defaults = dict(mapping(document.get("defaults", {}), f"{path}: defaults"))
    if "dataset" in document and defaults.setdefault("dataset", document["dataset"]) != document["dataset"]:
        raise OnestepError(f"{path}: `dataset` and `defaults: dataset` differ; keep one")
    declared = {key for stage in stages.values() for key in stage.notebook.declared}
    for key in defaults:
        if key not in declared:
            raise OnestepError(f"{path}: defaults: no notebook declares {key!r}{near_miss(str(key), declared)}")
    return defaults


# ---- cells -----------------------------------------------------------------------------------------------------------


def _cells(stages: dict[str, _Stage], defaults: dict, changes: Changes) -> Iterator[Cell]:
    twins: dict[str, str] = {}
    for stage in stages.values():
        declared, file = stage.notebook.declared, stage.notebook.path.name
        common = {
            key: checked(key, value, declared, file, f"{stage.where}defaults: ")
            for key, value in defaults.items()
            if key in declared
        }
        needed = [_by_shared_axes(stages[need], stage) for need in stage.needs]
        code = _code(stage.notebook)
        for parameters, point in _changed(stage, common, changes):
            cell = _cell(stage, parameters, point, needed, code)
            # Equal digests would do the same work twice; equal ids (text '1' and number 1) would share one file.
            # What the command line made equal is not worth refusing: the second finds what the first made.
            twin = (changes == Changes() and twins.get(cell.digest)) or twins.get(cell.id)
            if twin:
                raise OnestepError(f"{stage.where}cells {twin} and {cell.id} are the same run of {file}; remove one")
            twins[cell.digest] = twins[cell.id] = cell.id
            stage.cells.append(cell)
            yield cell if changes == Changes() else replace(cell, takes=None)  # which is that of the grid as it stands


def _changed(stage: _Stage, common: dict, changes: Changes) -> Iterator[tuple[dict, dict]]:
    """The parameters of each cell as the command line changes them, and what they are on the axes: each point once."""
    declared, file, where = stage.notebook.declared, stage.notebook.path.name, f"{stage.where}--set: "
    known = []
    for point in stage.points:
        given = {**common, **stage.parameters, **point}
        parameters = changes.applied(given, declared)
        for key, value in parameters.items():
            if value != given.get(key):
                parameters[key] = checked(key, value, declared, file, where)
        changed = {key: parameters[key] for key in point}
        if changed == point or changed not in known:
            known.append(changed)
            yield parameters, changed


@dataclass(frozen=True)
class _Code:
    """What a notebook computes: its code without comments, layout and defaults, and the words that occur in it."""

    text: list[str]
    words: frozenset[str]


def _code(notebook: Notebook) -> _Code:
    parsed = [_parsed(source) for source in notebook.code]
    # The parameters' values count as they end up.
    kept = [part for part in parsed if not (notebook.declared and _assigned(part) == list(notebook.declared))]
    text = [part if isinstance(part, str) else normal(part) for part in kept]
    return _Code(text, frozenset(word for part in text for word in re.findall(r"\w+", part)))


def _parsed(source: str) -> ast.Module | str:
    try:
        return ast.parse(source)
    except SyntaxError:  # a magic command: as it stands
        return source


def _assigned(part: ast.Module | str) -> list[str]:
    """The names that a cell gives values to, if it does nothing else."""
    if isinstance(part, str) or not all(isinstance(each, ast.Assign | ast.AnnAssign) for each in part.body):
        return []
    targets = (each.target if isinstance(each, ast.AnnAssign) else each.targets[0] for each in part.body)
    return list(dict.fromkeys(getattr(target, "id", "") for target in targets))


def _cell(stage: _Stage, parameters: dict, point: dict, needed: list["_Needed"], code: _Code) -> Cell:
    declared, folder = stage.notebook.declared, stage.notebook.path.parent  # where its kernel starts
    given = {name: value for name, value in parameters.items() if not awaited(name, value, folder)}
    check(given, {**declared, **parameters}, declared, folder, stage.where)
    name = "-".join([stage.name, *(f"{key}={_file_text(value)}" for key, value in point.items())])
    if len(name) > _LONGEST_ID:
        raise OnestepError(f"{stage.where}cell id {name[:60]}... has {len(name)} characters; use fewer or shorter axes")
    needs = tuple(cell_id for table in needed for cell_id in table.matching(point, stage.where))
    # Cells along an axis are different runs, whether or not the code makes use of it.
    values = {**stage.notebook.declared, **parameters}
    values = {key: value for key, value in values.items() if key in code.words or key in point}
    everything = [__version__, code.text, values]
    digest = hashlib.sha256(json.dumps(everything, sort_keys=True).encode()).hexdigest()
    return Cell(stage.name, stage.notebook.path, parameters, needs, name, digest, **stage.bounds)


@dataclass(frozen=True)
class _Needed:
    """Cells of a needed stage, by their values on the axes it shares with the stage that needs it."""

    stage: str
    shared: tuple[str, ...]
    ids: dict[str, list[str]]

    def matching(self, point: dict, where: str) -> list[str]:
        key = _shared_key(point, self.shared)
        if key not in self.ids:
            values = ", ".join(f"{axis}={point[axis]!r}" for axis in self.shared)
            raise OnestepError(f"{where}needs stage {self.stage!r}, which has no cell with {values}")
        return self.ids[key]


def _by_shared_axes(needed: _Stage, needy: _Stage) -> _Needed:
    shared = tuple(name for name in needed.varied if name in needy.varied)
    ids: dict[str, list[str]] = {}
    for cell in needed.cells:
        ids.setdefault(_shared_key(cell.parameters, shared), []).append(cell.id)
    return _Needed(needed.name, shared, ids)


def _shared_key(values: dict, shared: tuple[str, ...]) -> str:
    return json.dumps([values[axis] for axis in shared], sort_keys=True)


def _file_text(value: object) -> str:
    """Readable, unique and safe in a file name and a URL path alike."""
    if isinstance(value, list):
        return ",".join(_file_text(element) for element in value)
    return quote(value if isinstance(value, str) else json.dumps(value, sort_keys=True), safe="")
