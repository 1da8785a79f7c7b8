"""The one exception type that stands for a user's mistake, and what often stands in its text."""

import difflib
from collections.abc import Iterable
from importlib.util import find_spec


class OnestepError(Exception):
    """Bad input or a failed run, explained in one line that names the thing and the remedy.

    The command line prints it without a traceback and exits non-zero.
    """


def near_miss(name: str, known: Iterable[str]) -> str:
    """`"; did you mean 'kimg'?"` when a known name is close, else the list of known names."""
    known = sorted(known)
    close = difflib.get_close_matches(name, known, n=1)
    if close:
        return f"; did you mean {close[0]!r}?"
    return f"; known: {', '.join(known)}" if known else ""


def needs_extra(extra: str, what: str, *packages: str) -> None:
    """Raise OnestepError, naming the extra of this package to install, unless these packages can be imported.

    what: that needs them, as the message begins. Imports none of them: a package that is there but broken tells more.
    """
    missing = [name for name in packages if find_spec(name) is None]
    if missing:
        raise OnestepError(f"{what} needs {', '.join(missing)}: pip install 'onestep-bench[{extra}]'")
