"""What a notebook declares in its `parameters` cell, and whether a value given in YAML fits it.

Reads notebook JSON with `ast` only, so that planning stays fast and runs nothing.
"""

import ast
import json
import re
import reprlib
from dataclasses import dataclass
from pathlib import Path

from onestep_bench.errors import OnestepError, near_miss
from onestep_bench.known.values import Misfit, fit

# A value's text can be as long as its writer likes, and with YAML's aliases longer than memory.
_SHORT = reprlib.Repr()
_SHORT.maxlevel, _SHORT.maxstring, _SHORT.maxlong, _SHORT.maxother = 3, 100, 100, 100
_LITERALS = (str, int, float, bool, list, dict, type(None))


def read_notebook(path: Path) -> dict:
    """The JSON of a notebook. Raises OnestepError if it cannot be read or is none."""
    try:
        notebook = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(notebook["metadata"], dict):
            raise TypeError
        for cell in notebook["cells"]:
            # An old or foreign notebook's cells may lack an output, never these.
            if not (isinstance(cell["cell_type"], str) and isinstance(_source(cell), str)):
                raise TypeError
            if not isinstance(cell.get("metadata", {}).get("tags", []), list):
                raise TypeError
    except OSError as error:
        raise OnestepError(f"cannot read {path}: {error.strerror}") from error
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise OnestepError(f"{path} is not a notebook of format 4") from error
    return notebook


def _source(cell: dict) -> str:
    return "".join(cell["source"])  # nbformat allows one string or a list of lines


@dataclass(frozen=True)
class Notebook:
    """A notebook as planning sees it: its code cells' sources and the parameters it declares."""

    path: Path
    code: list[str]
    declared: dict  # parameter name -> default value

    @classmethod
    def read(cls, path: Path) -> "Notebook":
        """Read the file. Raises OnestepError for two tagged cells or a default that is no literal."""
        cells = [cell for cell in read_notebook(path)["cells"] if cell["cell_type"] == "code"]
        tagged = [cell for cell in cells if "parameters" in cell.get("metadata", {}).get("tags", ())]
        if len(tagged) > 1:
            raise OnestepError(f"{path}: {len(tagged)} cells are tagged 'parameters'; papermill wants one")
        declared = _declared(_source(tagged[0]), path) if tagged else {}
        return cls(path, [_source(cell) for cell in cells], declared)


def _declared(source: str, path: Path) -> dict:
    try:
        statements = ast.parse(source).body
    except SyntaxError as error:
        raise OnestepError(f"{path}: parameters cell, line {error.lineno}: {error.msg}") from error
    except (ValueError, RecursionError, MemoryError) as error:  # a null byte; brackets in brackets
        raise OnestepError(f"{path}: the parameters cell is no Python; write `name = literal` lines") from error
    return dict(_assignment(statement, path) for statement in statements)


def _assignment(statement: ast.stmt, path: Path) -> tuple[str, object]:
    where = f"{path}: parameters cell, line {statement.lineno}"
    targets = statement.targets if isinstance(statement, ast.Assign) else [getattr(statement, "target", None)]
    value = getattr(statement, "value", None)
    if isinstance(statement, ast.AugAssign) or len(targets) != 1 or not isinstance(targets[0], ast.Name) or not value:
        raise OnestepError(
            f"{where}: only `name = literal` may stand here, not `{ast.unparse(statement).splitlines()[0]}`"
        )
    try:
        default = ast.literal_eval(value)
    except (ValueError, TypeError, SyntaxError, RecursionError, MemoryError) as error:
        raise OnestepError(f"{where}: the default of {targets[0].id!r} is not a literal") from error
    if not isinstance(default, _LITERALS):
        raise OnestepError(
            f"{where}: YAML cannot write the {type(default).__name__} in {targets[0].id!r}; make it a list"
        )
    return targets[0].id, default


def checked(key: object, value: object, declared: dict, file: str, where: str) -> object:
    """`value` in the type of the declared default."""
    if key not in declared:
        raise OnestepError(f"{where}{file} declares no parameter {key!r}{near_miss(str(key), declared)}")
    try:
        fitted = fit(value, declared[key])
    except Misfit as misfit:
        hint = _yaml_trap(value, declared[key])
        raise OnestepError(f"{where}{key!r} must be {misfit}, not {kind(value)}{hint}") from misfit
    if not _is_plain(fitted):
        raise OnestepError(f"{where}{key!r}: YAML reads {value!r} as {type(value).__name__}; put it in quotes")
    return fitted


def _yaml_trap(value: object, default: object) -> str:
    """YAML 1.1 reads 1e-4 as text, on and no as booleans."""
    if isinstance(default, float) and isinstance(value, str) and re.fullmatch(r"[-+]?\d+[eE][-+]?\d+", value):
        return f"; YAML wants a point: {value.lower().replace('e', '.0e')}"
    return "; put the word in quotes" if isinstance(default, str) and isinstance(value, bool) else ""


def _is_plain(value: object) -> bool:
    if isinstance(value, dict):
        return all(isinstance(key, str) and _is_plain(item) for key, item in value.items())
    return all(map(_is_plain, value)) if isinstance(value, list) else isinstance(value, _LITERALS)


def kind(value: object) -> str:
    """What a value of YAML is, for an error message."""
    return "empty" if value in (None, "") else f"{type(value).__name__} {_SHORT.repr(value)}"
