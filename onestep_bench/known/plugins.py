"""Methods, data sets, judges, metrics and samplers from outside the package.

A plug-in is a module that registers what it brings as the files of this package do (`methods.register`, `data.dataset`,
`scoring.extractor`, `scoring.metric`, `samplers.register`). It is found by the environment variable ONESTEP_PLUGINS,
which a grid's `plugins:` sets for its cells, or by an entry point of the group `onestep_bench.plugins`. The registries
ask for them as they are first asked for a name.
"""

import functools
import importlib
import importlib.util
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from importlib.metadata import entry_points
from pathlib import Path

from onestep_bench.errors import OnestepError

VARIABLE, GROUP = "ONESTEP_PLUGINS", "onestep_bench.plugins"


def use(names: Iterable[str]) -> None:
    """Name further plug-ins, for this process and those it starts."""
    os.environ[VARIABLE] = os.pathsep.join(dict.fromkeys([*named(), *names]))


def named() -> list[str]:
    """Modules by name, and files by path, that ONESTEP_PLUGINS names, separated as in PATH."""
    return [name for name in os.environ.get(VARIABLE, "").split(os.pathsep) if name]


_loaded: set[str] = set()


def load() -> None:
    """Import every plug-in that was not imported yet.

    Raises OnestepError, naming the plug-in, for one that is not there or fails as it is imported.
    """
    for name, find in _all():
        if name in _loaded:
            continue
        _loaded.add(name)  # before it is imported, since it may ask for a name itself
        try:
            find()
        except Exception as error:  # whatever somebody else's module raises
            _loaded.discard(name)
            reason = f"{type(error).__name__}: {error}".splitlines()[0]
            raise OnestepError(f"plug-in {name} cannot be imported ({reason}); mend it or leave it out") from error


def _all() -> Iterator[tuple[str, Callable[[], object]]]:
    for point in _points():
        yield point.value, point.load
    for name in named():
        yield name, functools.partial(_from_file if name.endswith(".py") else importlib.import_module, name)


@functools.cache
def _points() -> tuple:
    return tuple(entry_points(group=GROUP))


def _from_file(path: str) -> None:
    name = f"onestep_plugin_{Path(path).stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
