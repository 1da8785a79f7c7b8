"""Spoilt files by the thousand, of every format that the package reads; a table of what came of them.

`make fuzz` runs it. Each file is a function of (seed, format, number), and one that finds something is kept in `--out`;
`--only FORMAT --index N` reads it again. Tallies are kept there after every chunk: a run that was stopped goes on where
it was. A chunk is a process of its own, bounded in memory; a file on which it dies is told like any other finding.
Exits with 1 if there are any.
"""

import argparse
import json
import multiprocessing
import os
import platform
import resource
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MPLBACKEND", "agg")

from fuzzing import SECONDS, attempt, seeds, spoilt
from hostile import FORMATS

CHUNK = 100
MEMORY = 2 << 30  # bytes of address space that reading may take beyond what the process has
_DEAD = {"ending": "other", "why": "the process died, or hung", "seconds": 0.0, "memory": 0.0}
_COLUMNS = ("inputs", "refused", "accepted", "other", "slowest s", "memory MB", "outside", "executed")


def main() -> int:
    """Read what the command line asks for; the exit code."""
    asked = _arguments()
    names = asked.only or list(FORMATS)
    if asked.index is not None:
        return _again(names[0], asked)
    ends = time.monotonic() + asked.minutes * 60 if asked.minutes else float("inf")
    asked.out.mkdir(parents=True, exist_ok=True)
    for name in names:
        seeds(name)
        whole = attempt(name, seeds(name)[0])  # loads what reading loads, before it is watched and measured
        if whole.ending != "accepted":
            raise SystemExit(f"the seed of {name} is not accepted: {whole.why}")
    tallies = {name: _kept(asked, name) for name in names}
    # In turn, so that whenever it is stopped all formats have had their share.
    while time.monotonic() < ends and any(tally["inputs"] < asked.each for tally in tallies.values()):
        for name, tally in tallies.items():
            if tally["inputs"] < asked.each and time.monotonic() < ends:
                _chunk(name, tally, asked)
                _file(asked, name).write_text(json.dumps(tally))
    _table(tallies)
    return int(any(tally["other"] or tally["outside"] or tally["executed"] for tally in tallies.values()))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--each", type=int, default=10_000, help="files of each format")
    parser.add_argument("--minutes", type=float, default=0, help="stop after so many; 0: when all are read")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", action="append", choices=list(FORMATS), help="a format; may be given again")
    parser.add_argument("--index", type=int, help="read this one file, and tell what came of it")
    parser.add_argument("--out", type=Path, default=Path("reports/fuzz"), help="where tallies and findings go")
    return parser.parse_args()


def _again(name: str, asked: argparse.Namespace) -> int:
    kept = _finding(asked, name, asked.index)
    outcome = attempt(name, kept.read_bytes() if kept.exists() else spoilt(name, asked.index, asked.seed))
    print(f"{outcome.ending} in {outcome.seconds:.2f} s", outcome.why, *outcome.executed, *outcome.outside, sep="\n")
    return int(outcome.bad)


def _file(asked: argparse.Namespace, name: str) -> Path:
    return asked.out / f"{name.replace(' ', '-')}-{asked.seed}.json"


def _finding(asked: argparse.Namespace, name: str, index: int) -> Path:
    return _file(asked, name).with_suffix(f".{index}")


def _kept(asked: argparse.Namespace, name: str) -> dict:
    file = _file(asked, name)
    return json.loads(file.read_text()) if file.exists() else dict.fromkeys(_COLUMNS, 0)


def _chunk(name: str, tally: dict, asked: argparse.Namespace) -> None:
    """Read the next files of a format in a process of their own, and add what came of them."""
    first = tally["inputs"]
    numbers = range(first, min(first + CHUNK, asked.each))
    ours, theirs = multiprocessing.get_context("fork").Pipe(duplex=False)
    process = multiprocessing.get_context("fork").Process(target=_read, args=(name, numbers, asked.seed, theirs))
    process.start()
    theirs.close()
    for number in numbers:
        try:
            # What holds the interpreter is not reached by its timer.
            found = ours.recv() if ours.poll(60 * SECONDS) else None
        except EOFError:
            found = None
        _add(tally, name, number, found or _DEAD, asked)
        if found is None:  # the files behind it are the next chunk's
            process.kill()
            break
    process.join()


def _read(name: str, numbers: range, seed: int, out) -> None:
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    sys.stderr = open(os.devnull, "w")  # noqa: SIM115  (warnings of torch and numpy)
    for number in numbers:
        outcome = attempt(name, spoilt(name, number, seed))
        grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
        out.send(vars(outcome) | {"memory": grown})


def _add(tally: dict, name: str, number: int, found: dict, asked: argparse.Namespace) -> None:
    tally["inputs"] = number + 1
    tally[found["ending"]] += 1
    tally["slowest s"] = max(tally["slowest s"], found["seconds"])
    tally["memory MB"] = max(tally["memory MB"], found["memory"])
    for what in ("outside", "executed"):
        tally[what] += bool(found.get(what))
    if found["ending"] == "other" or found.get("outside") or found.get("executed"):
        _finding(asked, name, number).write_bytes(spoilt(name, number, asked.seed))
        with open(asked.out / "findings.jsonl", "a", encoding="utf-8") as file:
            file.write(json.dumps({"format": name, "index": number, **found}) + "\n")


def _table(tallies: dict[str, dict]) -> None:
    print(f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}; processor seconds")
    print("format".ljust(14), *(column.rjust(9) for column in _COLUMNS))
    for name, tally in tallies.items():
        shown = (f"{tally[c]:.2f}" if c == "slowest s" else f"{tally[c]:.0f}" for c in _COLUMNS)
        print(name.ljust(14), *(text.rjust(9) for text in shown))


if __name__ == "__main__":
    sys.exit(main())
