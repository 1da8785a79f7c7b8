"""What families of commands share: tables, and the option that names the store."""

import argparse
import os
from collections.abc import Sequence


def print_table(lines: Sequence[tuple[str, ...]]) -> None:
    """Print rows of equal length, the first one the heading, in columns as wide as their widest text."""
    # Not tabulate: it takes 0.1 s to import, a third of what planning a grid may take, and would save two lines.
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for line in lines:
        print("  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)).rstrip())


def use_store(options: argparse.Namespace) -> None:
    """Let `--store`, if given, name the store of this process and of those it starts."""
    if options.store:
        os.environ["ONESTEP_STORE"] = str(options.store.absolute())


def add_source(commands, name: str, run, text: str, argument: str, about: str) -> argparse.ArgumentParser:
    """A command of one positional argument, `source`."""
    sub = commands.add_parser(name, help=text, description=text)
    sub.set_defaults(command=run)
    sub.add_argument("source", metavar=argument, help=about)
    return sub
