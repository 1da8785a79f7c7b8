"""Which source made a result, definition by definition, so that what older code made does not pass for new.

A definition is a function, a class or an assignment at the top of a module, a registry line (`methods.kd:register(kd)`)
or an item of a table (`networks.sizes:SIZES[0.2M]`). Its digest is of its syntax tree without what decides no number:
comments and layout, which no tree has, docstrings, annotations, and what an error says. A result remembers all that is
reached from where it began, name by name. So a sampler more in a file, or a definition moved up, touches nothing.

Read with `ast` alone: nothing is imported for it, and a plan needs no torch. A name that only running would tell
(`getattr`, a method of an object that was passed in) is not followed; who asks names such beginnings too.
"""

import ast
import hashlib
import sys
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path

_PACKAGE = Path(__file__).parents[1]
_NAME = _PACKAGE.name

# What decides numbers. The rest of the package says, keeps, shows and shares: errors and units, the store, checkpoints,
# ranks, progress bars, costs, rows, grids and reports. Data sets count by the digest of their images, in the recipe.
_COUNTED = (
    *(
        "paths",
        "denoiser",
        "flow_map",
        "samplers",
        "losses",
        "networks",
        "methods",
        "seeds",
        "data.pixels",
        "models.sampling",
        "models.pairing",
    ),
    *(f"training.{room}" for room in ("loop", "source", "augment", "state", "config", "precision")),
    *("scoring.metrics", "scoring.qualities", "scoring.judging", "scoring.judges", "scoring.real"),
)
# In these files, and yet: `fit` keeps, logs and ends what `_step` computes; the watch ends it, and the log only tells.
# SIZES holds every size, of which a model has one. Registers and containers of methods hold, and compute nothing.
_LEFT_OUT = {
    *("training.loop:fit", "training.state:LossWatch", "training.state:LogRow", "networks.sizes:SIZES"),
    *("networks.build:size_of", "samplers:SAMPLERS", "samplers:register", "samplers:sampler"),
    *(f"methods:{name}" for name in ("Adam", "Batch", "Method", "Nets", "get", "names", "register", "_registry")),
    *(f"scoring.qualities:{name}" for name in ("METRICS", "Metric", "metric", "further", "sources")),
    *(f"scoring.judges:{name}" for name in ("extractor", "names", "load_extractor", "_EXTRACTORS")),
}

# What a call of these names tells of a method, and gives to nothing that computes.
_TELLING = {"follows_teacher", "looks_at_data", "augments"}

_Node = tuple[str, str]  # module, definition in it


@dataclass(frozen=True)
class _Module:
    """definitions: by name, what binds it. imports: names of this module, as (module, name in it or '')."""

    definitions: dict[str, list[ast.AST]]
    imports: dict[str, tuple[str, str]]
    digests: dict[str, str] = field(default_factory=dict)

    def digest(self, name: str) -> str:
        """Of a definition; '' if it is not there."""
        if name not in self.digests:
            text = "\n".join(map(_text, self.definitions.get(name, ())))
            self.digests[name] = hashlib.sha256(text.encode()).hexdigest()[:16] if text else ""
        return self.digests[name]


def origin(thing: object) -> str:
    """Where a function or class stands, as an entry of `source_of`."""
    while isinstance(thing, partial):
        thing = thing.func
    return f"{thing.__module__}:{thing.__qualname__.split('.')[0]}"


def source_of(entries: Iterable[str]) -> dict[str, str]:
    """{"methods.kd:regression_loss": digest} of the entries and all that they reach.

    entries: 'module:name', of this package or of a module that was imported; a name that is not there, and '*', is all
    of the module. A module without a file (a notebook's own) has no source.
    """
    _inner_file.cache_clear()
    found: dict[str, str] = {}
    open_ = [node for entry in entries for node in _named(entry)]
    while open_:
        node = open_.pop()
        if _told(node) in found:
            continue
        if items := _items(node):  # a table with one item more is the same to whoever knows the others
            open_ += items
            continue
        found[_told(node)] = _module(node[0]).digest(node[1])
        open_ += [used for used in _uses(node) if _counts(used)]
    return dict(sorted(found.items()))


def changed(source: Mapping[str, str]) -> list[str]:
    """Names of those definitions in what `source_of` gave that are others now, or gone.

    Those of a module from outside that is not imported are taken to be as they were.
    """
    _inner_file.cache_clear()
    modules = {name: _module(_split(f"{name}:")[0]) for name in {name.partition(":")[0] for name in source}}
    present = ((name, digest, modules[name.partition(":")[0]]) for name, digest in source.items())
    return [name for name, digest, known in present if known and known.digest(name.partition(":")[2]) != digest]


def normal(tree: ast.AST) -> str:
    """A syntax tree as text, without what decides no number: equal for equal code, on every version of Python."""
    return _text(_Bare().visit(tree))


# ---- names -----------------------------------------------------------------------------------------------------------


def _told(node: _Node) -> str:
    return f"{node[0].removeprefix(f'{_NAME}.')}:{node[1]}"


def _split(name: str) -> _Node:
    module, _, definition = name.partition(":")
    inner = module.split(".")[0] != _NAME and _file(f"{_NAME}.{module}")
    return (f"{_NAME}.{module}" if inner else module), definition


def _named(entry: str) -> list[_Node]:
    module, name = _split(entry)
    known = _module(module)
    if known is None:
        return []
    return [(module, name)] if name in known.definitions else [(module, each) for each in known.definitions]


def _items(node: _Node) -> list[_Node]:
    module, name = node
    return [(module, each) for each in _module(module).definitions if each.startswith(f"{name}[")]


def _counts(node: _Node) -> bool:
    name = _told(node)
    if not node[0].startswith(f"{_NAME}."):
        return True
    room = name.partition(":")[0]
    return name not in _LEFT_OUT and any(room == counted or room.startswith(f"{counted}.") for counted in _COUNTED)


def _uses(node: _Node) -> Iterator[_Node]:
    """The definitions that one names."""
    for statement in _module(node[0]).definitions[node[1]]:
        for part in ast.walk(statement):
            if isinstance(part, ast.Name | ast.Attribute) and (used := _meant(node[0], part)) and used[1]:
                yield used


def _meant(module: str, part: ast.AST) -> _Node | None:
    """What a name, or a module's attribute, stands for: ('module', '') of a module, None of what is not ours."""
    if isinstance(part, ast.Name):
        return _resolved(module, part.id)
    within = _meant(module, part.value) if isinstance(part, ast.Name | ast.Attribute) else None
    return _resolved(within[0], part.attr) if within and not within[1] else None


def _resolved(module: str, name: str) -> _Node | None:
    known = _module(module)
    if known is None or not name:
        return (module, "") if known else None
    if name in known.definitions:
        return module, name
    if name in known.imports:
        return _resolved(*known.imports[name])
    if _module(f"{module}.{name}"):
        return f"{module}.{name}", ""
    file = _file(module)
    if file.name != "__init__.py":
        return None
    # A room's face hands on what stands in its files.
    rooms = (f"{module}.{path.stem}" for path in sorted(file.parent.glob("*.py")) if path != file)
    return next(((room, name) for room in rooms if name in _module(room).definitions), None)


# ---- files -----------------------------------------------------------------------------------------------------------

_read: dict[Path, tuple[object, int, _Module]] = {}


def _file(module: str) -> Path | None:
    """The file of a module of this package, or of one from outside that was imported and is nobody's library."""
    top, *inner = module.split(".")
    if top == _NAME:
        return _inner_file(*inner)
    if top in sys.stdlib_module_names:
        return None
    file = Path(getattr(sys.modules.get(module), "__file__", None) or "")
    return file if file.suffix == ".py" and not {"site-packages", "dist-packages"} & set(file.parts) else None


@cache
def _inner_file(*parts: str) -> Path | None:
    # Asked for every name of every definition. What looks up a source anew forgets the answers: a file may have come.
    path = _PACKAGE.joinpath(*parts)
    return next((file for file in (path / "__init__.py", path.with_suffix(".py")) if file.is_file()), None)


def _module(name: str) -> _Module | None:
    file = _file(name)
    if file is None:
        return None
    # What runs is what was imported, whatever became of the file since; a reload brings another `__spec__`.
    spec = getattr(sys.modules.get(name), "__spec__", None)
    written = 0 if spec else file.stat().st_mtime_ns
    known = _read.get(file)
    if known is None or known[0] is not spec or known[1] != written:
        known = _read[file] = spec, written, _parsed(file)
    return known[2]


def _parsed(file: Path) -> _Module:
    tree = _Bare().visit(ast.parse(file.read_bytes()))
    definitions, imports = defaultdict(list), {}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and not node.level:
            imports |= {alias.asname or alias.name: (node.module, alias.name) for alias in node.names}
        elif isinstance(node, ast.Import):
            imports |= {alias.asname: (alias.name, "") for alias in node.names if alias.asname}
    for statement in tree.body:
        for name in _bound(statement):
            definitions[name].append(statement)
            if isinstance(value := getattr(statement, "value", None), ast.Dict):
                items = zip(value.keys, value.values, strict=True)
                definitions |= {f"{name}[{key.value}]": [item] for key, item in items if isinstance(key, ast.Constant)}
    return _Module(dict(definitions), imports)


def _bound(statement: ast.stmt) -> set[str]:
    """The names that a statement at the top of a module gives a meaning; of a call, its function and first text."""
    if isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        return {statement.name}
    if isinstance(statement, ast.Import | ast.ImportFrom):
        return set()
    if isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Call):
        texts = [part.value for part in ast.walk(statement) if isinstance(getattr(part, "value", None), str)]
        return {f"{ast.unparse(statement.value.func)}({texts[0] if texts else ''})"}
    parts = list(ast.walk(statement))
    named = {part.id for part in parts if isinstance(part, ast.Name) and isinstance(part.ctx, ast.Store)}
    return named | {part.name for part in parts if isinstance(part, ast.FunctionDef | ast.ClassDef)}


class _Bare(ast.NodeTransformer):
    """Takes from a tree what decides no number."""

    def visit_Expr(self, node):
        lone = isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
        return None if lone else self.generic_visit(node)

    def visit_keyword(self, node):
        return None if node.arg in _TELLING else self.generic_visit(node)

    def visit_Raise(self, node):
        return ast.Raise()

    def visit_arg(self, node):
        return ast.arg(node.arg)

    def visit_AnnAssign(self, node):
        node.annotation = None
        return self.generic_visit(node)

    def visit_FunctionDef(self, node):
        node.returns = None
        return self.generic_visit(node)


def _text(node: object) -> str:
    """A tree as text. `ast.dump` writes another one in each version of Python; what is empty is left out here."""
    if isinstance(node, list):
        return f"[{', '.join(map(_text, node))}]"
    if not isinstance(node, ast.AST):
        return repr(node)
    given = ((name, value) for name, value in ast.iter_fields(node) if value is not None and value != [])
    fields = (f"{name}={_text(value)}" for name, value in given if name not in ("ctx", "kind", "type_comment"))
    return f"{type(node).__name__}({', '.join(fields)})"
