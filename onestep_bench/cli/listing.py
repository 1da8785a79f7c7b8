"""What is known by name: list methods, sizes, judges, datasets, samplers."""

import argparse

from onestep_bench.cli.terminal import print_table
from onestep_bench.known.catalogue import Entry, known
from onestep_bench.known.values import LISTED


def add_commands(commands) -> None:
    """Add list."""
    text = "what is known by name, a line each, for parameters of notebooks and options of commands"
    sub = commands.add_parser("list", help=text, description=text)
    sub.set_defaults(command=_list)
    sub.add_argument("kind", choices=LISTED, help=", ".join(LISTED), metavar="KIND")


def _list(options: argparse.Namespace) -> int:
    facts = _method if options.kind == "methods" else lambda entry: ()
    heading = ("method", "trains on", "teacher") if options.kind == "methods" else (options.kind.rstrip("s"),)
    lines = [(name, *facts(entry), entry.text) for name, entry in known(options.kind).items()]
    print_table([(*heading, ""), *lines])
    return 0


def _method(entry: Entry) -> tuple[str, str]:
    return entry.data, "yes" if entry.needs_teacher else "no"
