"""Break the library one line at a time, in a copy, and see which test notices: `make mutants`.

What is broken stands in `mutants.yaml`: by file, a piece of a line as it is and as it becomes, the tests that are to
notice, and what would be wrong. The one that notices then passes in the unbroken copy, since a test that always fails
notices nothing. Exit code 1 where a mutant survives, where the line that it breaks is gone, or where that test fails.

    python scripts/mutants.py                    # all of them
    python scripts/mutants.py samplers "t inter" # those whose file or description holds one of these texts
"""

import argparse
import ast
import gc
import importlib
import multiprocessing
import os
import re
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest
import yaml

REPOSITORY = Path(__file__).resolve().parents[1]
LIST = REPOSITORY / "scripts" / "mutants.yaml"
# A broken loop may never end; a test that takes so long tells nothing either way.
LIMIT = 600.0
KEYS = {"breaks", "line", "becomes", "tests", "equivalent"}
# What most tests import sooner or later, and nothing of ours.
LIBRARIES = ("torch._dynamo", "torch.distributed", "pandas", "scipy.stats", "scipy.io", "sklearn.datasets")
LIBRARIES += ("PIL.Image", "hypothesis", "requests", "nbformat")
# No bytecode: it is believed by a file's size and second, in both of which a broken one may equal the whole.
OWN = {"PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1", "TQDM_DISABLE": "1"}


@dataclass(frozen=True)
class Mutant:
    """breaks: what is wrong with it, in words. tests: arguments of pytest; equivalent: why none can notice, or ''."""

    file: str
    breaks: str
    line: str
    becomes: str
    tests: str
    equivalent: str = ""

    def broken(self, source: str) -> str:
        """The source with the one line broken. Raises ValueError if it is not there once, or nothing is broken."""
        if (count := source.count(self.line)) != 1:
            raise ValueError(f"{self.file}: {self.line!r} is there {count} times, not once; mend scripts/mutants.yaml")
        broken = source.replace(self.line, self.becomes)
        ast.parse(broken)  # one that is no Python is noticed by everybody
        if self.line.split() == self.becomes.split():
            raise ValueError(f"{self.file}: {self.becomes!r} breaks nothing; mend scripts/mutants.yaml")
        return broken


def mutants() -> list[Mutant]:
    """All of `LIST`, in its order."""
    found = []
    for file, entries in yaml.safe_load(LIST.read_text(encoding="utf-8")).items():
        for entry in entries:
            if not entry.keys() <= KEYS:
                raise ValueError(f"{LIST.name}: {file} has a key that is none of {', '.join(sorted(KEYS))}")
            found.append(Mutant(file, **{"tests": "", **entry}))
    return found


def copied(folder: Path) -> None:
    """The working tree's tracked files, as they are now."""
    names = subprocess.run(["git", "ls-files"], cwd=REPOSITORY, capture_output=True, text=True, check=True).stdout
    for name in names.splitlines():
        if (source := REPOSITORY / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(source.read_bytes())


def noticed(folder: Path, tests: str) -> str:
    """The first test that fails in the copy, '' if all pass. Raises ValueError where none can be run."""
    notebooks = ["--nbval"] if ".ipynb" in tests else []
    words = ["-x", "-q", "-rfE", "--tb=no", "-p", "no:cacheprovider", "-m", "not slow", *notebooks, *shlex.split(tests)]
    with tempfile.NamedTemporaryFile("r", encoding="utf-8") as said:
        # A fork has imported already what takes longer to import than most of these tests to run.
        process = multiprocessing.get_context("fork").Process(target=_pytest, args=(folder, words, said.name))
        process.start()
        process.join(LIMIT)
        if process.is_alive():
            process.kill()
            process.join()
            raise ValueError(f"{tests}: still running after {LIMIT:.0f} s")
        if process.exitcode == 0:
            return ""
        output = said.read()
    found = re.search(r"^(?:FAILED|ERROR) (.+?)(?: - |$)", output, re.MULTILINE)
    if not found:
        raise ValueError(f"{tests}: pytest ran nothing ({output.strip()[-300:]})")
    return found[1]


def _pytest(folder: Path, words: list[str], said: str) -> None:
    """Run pytest in the copy and end with its exit code; what it says goes into a file."""
    descriptor = os.open(said, os.O_WRONLY)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    os.chdir(folder)
    sys.path.insert(0, str(folder))
    os.environ |= {"PYTHONPATH": str(folder), "ONESTEP_STORE": str(folder / ".store")}
    sys.exit(pytest.main(words))


def results(chosen: list[Mutant], folder: Path) -> Iterator[tuple[Mutant, str, float]]:
    """Each mutant, the test that noticed it, '' for a survivor, and the seconds that took."""
    fails = cache(lambda test: noticed(folder, shlex.quote(test)))
    for mutant in chosen:
        path = folder / mutant.file
        source = path.read_text(encoding="utf-8")
        began = time.monotonic()
        try:
            path.write_text(mutant.broken(source), encoding="utf-8")
            test = noticed(folder, mutant.tests)
        finally:
            path.write_text(source, encoding="utf-8")
        if test and fails(test):
            raise ValueError(f"{test} fails in the unbroken copy, and so can notice nothing")
        yield mutant, test, time.monotonic() - began


def main() -> int:
    """Run the mutants asked for and print a line for each; the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("texts", nargs="*", help="only those whose file or description holds one of these")
    texts = parser.parse_args().texts
    known = [one for one in mutants() if not texts or any(text in f"{one.file} {one.breaks}" for text in texts)]
    survivors = 0
    os.environ |= OWN
    sys.dont_write_bytecode = True
    for library in LIBRARIES:
        importlib.import_module(library)
    gc.freeze()  # pytest collects garbage at its end, and would look through all of this each time
    with tempfile.TemporaryDirectory(prefix="mutants-") as name:
        copied(Path(name))
        try:
            for one, test, seconds in results([one for one in known if not one.equivalent], Path(name)):
                survivors += not test
                where = one.file.removeprefix("onestep_bench/")
                print(f"{where:32} {one.breaks:62} {test or 'SURVIVED':90} {seconds:4.0f} s", flush=True)
        except ValueError as error:
            print(f"mutants: {error}", file=sys.stderr)
            return 1
    for one in known:
        if one.equivalent:
            print(f"{one.file.removeprefix('onestep_bench/'):32} {one.breaks:62} equivalent: {one.equivalent}")
    print(f"{len(known)} mutants, {survivors} survived")
    return 1 if survivors else 0


if __name__ == "__main__":
    sys.exit(main())
