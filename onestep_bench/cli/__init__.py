"""`onestep-bench`: the command line, one file a family of commands.

Each file has `add_commands`, which adds its sub-parsers; what takes long to import is imported by the command that
needs it, so that `plan` and `--help` answer at once.
"""

import argparse
import os
import sys
from collections.abc import Sequence

from onestep_bench import __version__
from onestep_bench.cli import compare, data, grids, listing, models, start, store
from onestep_bench.errors import OnestepError

# Exit codes: 0 all well, 1 some cells are not done (of compare: a score is worse), 2 a mistake in the input,
# 130 interrupted, 141 nobody reads what is printed.


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    options = _parser().parse_args(arguments)
    try:
        code = options.command(options)
        sys.stdout.flush()
        return code
    except BrokenPipeError:
        # Whoever reads, `head` say, has seen enough; and nothing may be flushed as the interpreter ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except OnestepError as error:
        print(f"onestep-bench: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("onestep-bench: interrupted; the same command goes on from here", file=sys.stderr)
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="onestep-bench", description="Run grids of notebooks and report their scores."
    )
    parser.add_argument("--version", action="version", version=f"onestep-bench {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for family in (start, grids, compare, models, data, listing, store):
        family.add_commands(commands)
    return parser
