"""Commands that look after the store."""

import argparse
import time
from pathlib import Path

from onestep_bench import store
from onestep_bench.cli.terminal import print_table, use_store
from onestep_bench.errors import OnestepError
from onestep_bench.units import duration, size


def add_commands(commands) -> None:
    """Add store ls, verify, accept and gc."""
    text = "what lies in the store: list it, verify it, accept it under changed source, clear it of garbage"
    inner = commands.add_parser("store", help=text, description=text).add_subparsers(required=True, metavar="COMMAND")
    for name, command, text in (
        ("ls", _store_ls, "list artifacts, the largest first"),
        ("verify", _store_verify, "check every file against its checksum; exit 1 if one is damaged"),
        (
            "accept",
            _store_accept,
            "keep what older source made as if the present source had made it, as after a refactor",
        ),
        ("gc", _store_gc, "remove damaged artifacts, and unfinished ones that nobody touched for a week"),
    ):
        sub = inner.add_parser(name, help=text, description=text)
        sub.set_defaults(command=command)
        sub.add_argument("--store", type=Path, metavar="DIR", help="default: ONESTEP_STORE")
        if command is _store_accept:
            sub.add_argument("keys", nargs="*", metavar="KEY", help="an artifact, by its key or a unique start of it")
            sub.add_argument("--all", action="store_true", help="all that other source made")
        if command is _store_gc:
            unused = "also remove whole artifacts that nobody asked for in so many days"
            sub.add_argument("--unused", type=float, metavar="DAYS", help=unused)
            sub.add_argument("--dry-run", action="store_true", help="only say what would go")


def _store_ls(options: argparse.Namespace) -> int:
    use_store(options)
    from onestep_bench.store import upkeep

    found = upkeep.entries()
    lines = [
        # Of the time its largest unit is enough, and lets a line stay within 120 columns.
        (entry.key, *_what(entry), size(entry.bytes), " ".join(duration(time.time() - entry.used).split()[:2]))
        for entry in found
    ]
    print_table([("artifact", *upkeep.WHAT, "bytes", "unused"), *lines])
    print(f"\n{len(found)} artifacts, {size(sum(entry.bytes for entry in found))} in {store.root()}")
    return 0


def _what(entry) -> list[str]:
    """What it is; of one that is not whole nothing is known but that."""
    from onestep_bench.store.upkeep import WHAT

    words = entry.what if entry.state == "whole" else {"method": f"({entry.state})"}
    return [words.get(name, "-") for name in WHAT]


def _store_verify(options: argparse.Namespace) -> int:
    use_store(options)
    from onestep_bench.store import upkeep

    damages = list(upkeep.damages())
    for entry, wrong in damages:
        print(f"damaged: {entry.key}: {', '.join(wrong) or 'set aside earlier'}")
    print(f"{len(upkeep.entries())} artifacts, {len(damages)} damaged; a run makes again what it needs of them")
    return 1 if damages else 0


def _store_accept(options: argparse.Namespace) -> int:
    use_store(options)
    from onestep_bench.store import upkeep

    if bool(options.keys) == options.all:
        raise OnestepError("name the artifacts to accept, as a refusal does, or say --all")
    keys = list(dict.fromkeys(entry.key for entry in upkeep.entries() if entry.state != "damaged"))
    chosen = keys if options.all else [_key(start, keys) for start in options.keys]
    accepted = [key for key in chosen if store.accept(key)]
    for key in accepted:
        print(f"accepted: {key}")
    print(f"{len(accepted)} accepted, {len(chosen) - len(accepted)} were made by the present source")
    return 0


def _key(start: str, keys: list[str]) -> str:
    if found := store.one_key(start, keys):
        return found
    raise OnestepError(f"no artifact in {store.root()} begins with {start!r}; see onestep-bench store ls")


def _store_gc(options: argparse.Namespace) -> int:
    use_store(options)
    from onestep_bench.store import upkeep

    useless = upkeep.garbage(options.unused)
    gone = [entry for entry in useless if options.dry_run or upkeep.remove(entry)]
    for entry in gone:
        print(f"{entry.state}: {entry.key}, {size(entry.bytes)}")
    verb = "would go" if options.dry_run else "removed"
    print(f"{len(gone)} {verb}, {size(sum(entry.bytes for entry in gone))}")
    return 0
