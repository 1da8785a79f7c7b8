"""`onestep-bench`: the command line, one file a family of commands.

Each file has `add_commands`, which adds its sub-parsers; what takes long to import is imported by the command that
needs it, so that `plan` and `--help` answer at once.
"""

import argparse
import os
import signal
import sys
from collections.abc import Sequence

from onestep_bench import __version__
from onestep_bench.cli.endings import Endings
from onestep_bench.errors import OnestepError

# Exit codes: 0 all well, 1 some cells are not done (of compare: a score is worse), 2 a mistake in the input,
# 130 interrupted, 141 nobody reads what is printed, 143 ended by SIGTERM.


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code.

    An interrupt, or SIGTERM, ends whatever it does in one line, with all files whole or absent.
    """
    with Endings() as endings:
        try:
            options = _parser().parse_args(arguments)
            code = options.command(options)
            sys.stdout.flush()
            return code
        except BrokenPipeError:
            # Whoever reads, `head` say, has seen enough; and nothing may be flushed as the interpreter ends.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 141
        except KeyboardInterrupt as interrupt:
            return _told(interrupt, endings.came)
        except Exception as error:
            # In the middle of an import an interrupt may come out as any error at all.
            if endings.came:
                return _told(error, endings.came)
            if (line := _line(error)) is None:
                raise
            print(f"onestep-bench: error: {line}", file=sys.stderr)
            return 2


def _line(error: Exception) -> str | None:
    """A user's mistake in one line; None for one of ours. Also of a path that no system takes: one too long, say."""
    if isinstance(error, OnestepError):
        return str(error)
    if isinstance(error, OSError) and error.filename is not None:
        return f"{error.filename}: {error.strerror}; correct the path"
    return None


def _told(end: BaseException, came: int | None) -> int:
    """Say how to go on; the exit code. end: what the signal `came` raised, with a text of how far the work came."""
    far = f": {end}" if isinstance(end, KeyboardInterrupt) and end.args else "; run the same command again to go on"
    print(f"onestep-bench: {'ended' if came == signal.SIGTERM else 'interrupted'}{far}", file=sys.stderr)
    return 128 + (came or signal.SIGINT)


def _parser() -> argparse.ArgumentParser:
    # Here, so that an interrupt finds `main` at work.
    from onestep_bench.cli import compare, data, grids, listing, models, start, store

    parser = argparse.ArgumentParser(
        prog="onestep-bench", description="Run grids of notebooks and report their scores."
    )
    parser.add_argument("--version", action="version", version=f"onestep-bench {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for family in (start, grids, compare, models, data, listing, store):
        family.add_commands(commands)
    return parser
