"""The one exception type that stands for a user's mistake, and the near-miss hint in its text."""

import difflib
from collections.abc import Iterable


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
