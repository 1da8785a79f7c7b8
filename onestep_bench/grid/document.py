"""YAML files as a person writes them: read so that a mistake is one line, and asked for what must be there."""

from pathlib import Path

import yaml

from onestep_bench.errors import OnestepError, near_miss
from onestep_bench.grid.parameters import kind


class _Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):
    """PyYAML keeps the last of two equal keys without a word; here that is an error."""

    def construct_mapping(self, node, deep=False):
        seen = set()
        for key in (key for key, _ in node.value if isinstance(key, yaml.ScalarNode)):
            if key.value in seen:
                raise yaml.MarkedYAMLError(problem=f"duplicate key {key.value!r}", problem_mark=key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep)


def read_yaml(path: Path) -> dict:
    """The mapping that a file holds. Raises OnestepError, with the line where there is one."""
    try:
        document = _constructed(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        hint = near_miss(path.name, names_in(path.parent, "*.yaml"))
        raise OnestepError(f"{path} does not exist{hint}") from error
    except OSError as error:
        raise OnestepError(f"cannot read {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise OnestepError(f"{path} is not UTF-8 text: {error.reason} at byte {error.start}") from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{path}:{mark.line + 1}" if mark else f"{path}"
        raise OnestepError(f"{where}: {getattr(error, 'problem', None) or error}") from error
    # 2024-13-41 is no date; what is tagged !!timestamp or !!bool is looked up without a check.
    except (ValueError, TypeError, LookupError, AttributeError, OverflowError, RecursionError) as error:
        raise OnestepError(f"{path} holds a value that YAML cannot read ({error}); put it in quotes") from error
    return mapping(document, f"{path}: the file")


_DEEPEST, _LARGEST = 100, 1_000_000  # levels, and nodes once its aliases are written out


def _constructed(text: str) -> object:
    """The document; a few lines of aliases of aliases can stand for more than any memory holds."""
    # The loader in C has no bound of its own to the depth, and would take the interpreter down with it.
    depth = 0
    for event in yaml.parse(text, _Loader):
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > _DEEPEST:
            raise yaml.MarkedYAMLError(problem=f"more than {_DEEPEST} levels", problem_mark=event.start_mark)
    loader = _Loader(text)
    try:
        node = loader.get_single_node()
        if node is None:
            return None
        if _size(node, {}) > _LARGEST:
            raise yaml.MarkedYAMLError(problem="its aliases stand for too much", problem_mark=node.start_mark)
        return loader.construct_document(node)
    finally:
        loader.dispose()


def _size(node: yaml.Node, known: dict[int, float]) -> float:
    """Nodes in a node, as often as aliases refer to them; infinite of one that holds itself."""
    if isinstance(node, yaml.ScalarNode):
        return 1
    if id(node) not in known:
        known[id(node)] = float("inf")
        parts = (part for pair in node.value for part in (pair if isinstance(pair, tuple) else [pair]))
        known[id(node)] = 1 + sum(_size(part, known) for part in parts)
    return known[id(node)]


def names_in(folder: Path, pattern: str) -> list[str]:
    """Names of the files of a folder that are not hidden, for near misses."""
    return [path.name for path in folder.glob(pattern) if not path.name.startswith(".")]


def mapping(value: object, what: str) -> dict:
    """The value, if it is a mapping; else raises OnestepError about `what`."""
    if not isinstance(value, dict):
        raise OnestepError(f"{what} must be a mapping (key: value), not {kind(value)}")
    return value


def text_of(value: object, what: str) -> str:
    """The value, if it is text that says something; else raises OnestepError about `what`."""
    if not isinstance(value, str) or not value.strip():
        raise OnestepError(f"{what} must be text, not {kind(value)}")
    return value


def refuse_unknown(given: dict, known: tuple[str, ...], where: str) -> None:
    """Raise OnestepError at the first key that nobody knows."""
    for key in given:
        if key not in known:
            raise OnestepError(f"{where}unknown key {key!r}{near_miss(str(key), known)}")
