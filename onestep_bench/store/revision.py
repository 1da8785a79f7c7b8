"""The git revision of the package, where it runs from a checkout."""

import subprocess
from functools import cache
from pathlib import Path

_CHECKOUT = Path(__file__).parents[2]


@cache
def revision() -> str:
    """Ten digits of the commit, with '+' behind them if tracked files differ from it; '' outside a checkout."""
    # A virtual environment may lie inside somebody else's repository, whose revision tells nothing of this package.
    if _git("rev-parse", "--show-toplevel") != str(_CHECKOUT.resolve()):
        return ""
    changed = _git("status", "--porcelain", "--untracked-files=no")
    return _git("rev-parse", "--short=10", "HEAD") + "+" * bool(changed)


def _git(*words: str) -> str:
    """What a git command prints; '' where there is no git, or no repository."""
    try:
        told = subprocess.run(["git", "-C", _CHECKOUT, *words], capture_output=True, text=True, check=False)
    except OSError:
        return ""
    return told.stdout.strip()
