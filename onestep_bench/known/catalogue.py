"""What is known by name, and a line on each: methods, sizes, samplers, judges, data sets, and choices of options.

Read from the sources with `ast`: importing what registers the names takes seconds and this takes milliseconds, so that
plans, `onestep-bench list` and the first cell of a notebook can ask. What registers itself at run time is known as soon
as it has been imported.
"""

import ast
import dataclasses
import re
import runpy
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from inspect import formatannotation
from pathlib import Path

_PACKAGE = Path(__file__).parents[1]


@dataclass(frozen=True)
class Entry:
    """What the sources say of a name. text: a line of their own.

    data: what a method trains on, 'images' or 'pairs'. needs_teacher: of a method. fields: of its config, with their
    types as they are written; None where they are not known. side: pixels of a data set's images, images: their number,
    None each where its line does not tell; channels: 1 where its line calls them grey.
    """

    text: str = ""
    data: str = "images"
    needs_teacher: bool = False
    fields: dict[str, str] | None = None
    side: int | None = None
    images: int | None = None
    channels: int = 3


def known(kind: str) -> dict[str, Entry]:
    """Every known name of a kind (a key of `KINDS`): in the order of the sources, then what else is registered."""
    return _read(kind) | {name: entry for name, entry in _registered(KINDS[kind]) if name not in _read(kind)}


@dataclass(frozen=True)
class _Kind:
    """Where names of a kind stand. read: from the sources; module, register: the dict of those that are imported."""

    read: Callable[[], dict[str, Entry]]
    module: str = ""
    register: str = ""


@cache
def _read(kind: str) -> dict[str, Entry]:
    return KINDS[kind].read()


def _registered(kind: _Kind) -> Iterator[tuple[str, Entry]]:
    module = sys.modules.get(f"onestep_bench.{kind.module}")
    for name, item in getattr(module, kind.register, {}).items() if kind.register else ():
        yield name, _entry_of(item)


def _entry_of(item: object) -> Entry:
    """Of what registered itself: a size, a method, or a function whose docstring tells of it."""
    if isinstance(item, dict):
        return Entry(_shape_of(item))
    if hasattr(item, "objective"):
        types = {field.name: field.type for field in dataclasses.fields(item.config)}
        written = {
            name: _plain(type_ if isinstance(type_, str) else formatannotation(type_)) for name, type_ in types.items()
        }
        return Entry(_line(item.objective.__doc__), item.data, item.needs_teacher, written)
    told = _line(item.__doc__)
    return _of_images(told)


# ---- from the sources ------------------------------------------------------------------------------------------------


def _files(*parts: str) -> list[Path]:
    return sorted(_PACKAGE.joinpath(*parts).glob("*.py"))


@cache
def _tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def _line(text: str | None) -> str:
    return re.sub("^Objective(:| of) ", "", (text or "").strip().split("\n")[0])


def _of_images(text: str) -> Entry:
    """What the line of a data set tells of its images; that of anything else tells nothing."""
    count = re.search(r"\b\d[\d,]{2,}\b", text)
    images = int(count[0].replace(",", "")) if count else None
    return Entry(text, side=_side(text), images=images, channels=1 if " grey " in text else 3)


def _side(text: str) -> int | None:
    found = re.search(r"\b(\d+)x\1\b", text)
    return int(found[1]) if found else None


def _docs(tree: ast.Module) -> dict[str, str]:
    functions = (node for node in tree.body if isinstance(node, ast.FunctionDef))
    return {node.name: _line(ast.get_docstring(node)) for node in functions}


def _calls(node: ast.AST, name: str) -> Iterator[ast.Call]:
    """Calls of a function by that name whose first argument is a text."""
    for call in (call for call in ast.walk(node) if isinstance(call, ast.Call) and call.args):
        if getattr(call.func, "id", None) == name and isinstance(getattr(call.args[0], "value", None), str):
            yield call


def _methods() -> dict[str, Entry]:
    return {name: entry for path in _files("methods") for name, entry in _methods_in(_tree(path))}


def _methods_in(tree: ast.Module) -> Iterator[tuple[str, Entry]]:
    docs = _docs(tree)
    for call in (call for node in tree.body if isinstance(node, ast.Expr) for call in _calls(node, "Method")):
        named = {keyword.arg: keyword.value for keyword in call.keywords}
        objective = call.args[3] if len(call.args) > 3 else named.get("objective")
        config = call.args[2] if len(call.args) > 2 else named.get("config")
        facts = {name: named[name].value for name in ("data", "needs_teacher") if name in named}
        facts["fields"] = _fields(tree, getattr(config, "id", ""))
        yield call.args[0].value, Entry(docs.get(getattr(objective, "id", ""), ""), **facts)


def _fields(tree: ast.Module, name: str) -> dict[str, str] | None:
    """Of a dataclass of this file, those that it inherits among them; None if it, or its base, stands elsewhere."""
    found = next((node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == name), None)
    inherited = [_fields(tree, getattr(base, "id", "")) for base in found.bases] if found else [None]
    if None in inherited:
        return None
    own = {
        node.target.id: _plain(ast.unparse(node.annotation)) for node in found.body if isinstance(node, ast.AnnAssign)
    }
    return {key: told for fields in inherited for key, told in fields.items()} | own


def _plain(annotation: str) -> str:
    """A type as it is written, without the modules of its names."""
    return re.sub(r"\b(\w+\.)+(?=\w)", "", annotation)


def training_fields() -> dict[str, str]:
    """Fields of `TrainConfig` and their types, as they are written."""
    return _fields(_tree(_PACKAGE / "training" / "config.py"), "TrainConfig")


def _decorated(mark: str, paths: list[Path]) -> dict[str, Entry]:
    """Functions marked `@mark("name")`; of one without a docstring, that of its file tells."""
    found = {}
    for path in paths:
        tree = _tree(path)
        for node in (node for node in tree.body if isinstance(node, ast.FunctionDef)):
            for call in (call for decorator in node.decorator_list for call in _calls(decorator, mark)):
                told = _line(ast.get_docstring(node) or ast.get_docstring(tree))
                found[call.args[0].value] = _of_images(told)
    return found


def _judges() -> dict[str, Entry]:
    folder = ("scoring", "judges")
    told = ast.get_docstring(_tree(_PACKAGE.joinpath(*folder, "classifier.py")))
    return _decorated("extractor", _files(*folder)) | {"classifier": Entry(_line(told))}


def _sizes() -> dict[str, Entry]:
    sizes = runpy.run_path(str(_PACKAGE / "networks" / "sizes.py"))["SIZES"]  # plain tables
    return {name: Entry(_shape_of(config)) for name, config in sizes.items()}


def _shape_of(config: dict) -> str:
    residual = config.get("encoder_type") == "residual"
    arch = "ADM" if config["arch"] == "DhariwalUNet" else "NCSN++" if residual else "DDPM++"
    widths = ", ".join(str(config["model_channels"] * mult) for mult in config["channel_mult"])
    sides = " and ".join(map(str, config["attn_resolutions"]))
    blocks = f"{config['num_blocks']} block{'s' * (config['num_blocks'] > 1)} a level"
    attention = f"attention at {sides} px" if sides else "no attention"
    patch = f", on patches of {config['patch']}x{config['patch']} px" if "patch" in config else ""
    return f"{arch}, {widths} channels, {blocks}, {attention}{patch}"


def _value(name: str, *parts: str) -> ast.expr:
    """What a file assigns to a name at its top."""
    for node in _tree(_PACKAGE.joinpath(*parts)).body:
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        if getattr(targets[0], "id", None) == name:
            return node.value
    raise LookupError(f"{'/'.join(parts)} assigns no {name}")


def _keys(name: str, *parts: str) -> dict[str, Entry]:
    return {key.value: Entry() for key in _value(name, *parts).keys}


def _texts(name: str, *parts: str) -> dict[str, Entry]:
    return {text: Entry() for text in ast.literal_eval(_value(name, *parts))}


def _zoo() -> dict[str, Entry]:
    # Our own constant, written as a loop; importing its module would bring torch along.
    code = compile(ast.Expression(_value("NAMES", "models", "zoo", "__init__.py")), "NAMES", "eval")
    return {name: Entry() for name in eval(code, {"__builtins__": {}})}


KINDS: dict[str, _Kind] = {
    "methods": _Kind(_methods, "methods", "_registry"),
    "sizes": _Kind(_sizes, "networks.sizes", "SIZES"),
    "samplers": _Kind(lambda: _decorated("register", [_PACKAGE / "samplers.py"]), "samplers", "SAMPLERS"),
    "judges": _Kind(_judges, "scoring.judges", "_EXTRACTORS"),
    "datasets": _Kind(lambda: _decorated("dataset", _files("data", "sets")), "data.registry", "LOADERS"),
    "distances": _Kind(lambda: _keys("DISTANCES", "losses.py"), "losses", "DISTANCES"),
    "variants": _Kind(lambda: _keys("VARIANTS", "methods", "gdd.py")),
    "maps": _Kind(lambda: _keys("_MAPS", "methods", "sfddm.py")),
    "schedules": _Kind(lambda: _keys("_SCHEDULES", "paths.py")),
    "anneals": _Kind(lambda: _keys("_SCHEDULES", "methods", "slimflow.py") | {"constant": Entry()}),
    "optimizers": _Kind(lambda: _texts("OPTIMIZERS", "training", "config.py")),
    "decays": _Kind(lambda: _texts("DECAYS", "training", "config.py")),
    "precisions": _Kind(lambda: _texts("PRECISIONS", "training", "config.py")),
    "zoo": _Kind(_zoo),
}
