"""The one exception type that stands for a user's mistake, what often stands in its text, and a calm interrupt."""

import difflib
import sys
from collections.abc import Iterable
from importlib.util import find_spec


class OnestepError(Exception):
    """Bad input or a failed run, explained in one line that names the thing and the remedy.

    The command line prints it without a traceback and exits non-zero; a notebook shows that line alone.
    """

    def __str__(self) -> str:
        """The line, whatever names from strangers' files stand in it: what cannot be printed is spelt out."""
        return "".join(sign if sign.isprintable() else ascii(sign)[1:-1] for sign in super().__str__())

    def _render_traceback_(self) -> list[str]:
        """What IPython shows; `%debug` still goes to the place."""
        return [f"{type(self).__name__}: {self}"]


def stopped(text: str) -> KeyboardInterrupt:
    """A KeyboardInterrupt to raise where work was interrupted: a notebook and a plain script show `text` alone.

    No class of its own: for KeyboardInterrupt itself, and no subclass, Python ends a script as by SIGINT, which is
    how a shell's loop knows that it is to end too.
    """
    error, show = KeyboardInterrupt(text), sys.excepthook
    error._render_traceback_ = lambda: [text]

    def hook(kind, value, traceback):
        if value is error:
            print(text, file=sys.stderr)
        else:
            show(kind, value, traceback)

    sys.excepthook = hook
    return error


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
