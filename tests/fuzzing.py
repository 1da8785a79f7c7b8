"""One spoilt file read under watch: what came out, how long it took, whether anything ran or was written elsewhere."""

import os
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from hostile import FORMATS, seeds_of
from mutations import CANARY, spoil

from onestep_bench.errors import OnestepError

SECONDS = 20.0  # of processor time that one file may take
_RUNS = (
    "os.system",
    "os.exec",
    "os.posix_spawn",
    "os.spawn",
    "os.fork",
    "subprocess.Popen",
    "pty.spawn",
    "socket.connect",
)
_CHANGES = ("os.mkdir", "os.rename", "os.link", "os.symlink", "os.remove", "os.rmdir", "os.truncate")
_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC


@dataclass
class Outcome:
    """ending: 'refused', 'accepted' or 'other'. seconds: of processor time. why: the message, or the traceback."""

    ending: str
    why: str
    seconds: float
    executed: list[str] = field(default_factory=list)
    outside: list[str] = field(default_factory=list)

    @property
    def bad(self) -> bool:
        return self.ending == "other" or bool(self.executed or self.outside)


class _TooLong(BaseException):
    """No Exception, so that no reader takes it for damage."""


class _Watch:
    """An audit hook, which cannot be taken off again: it looks only while a file is read."""

    def __init__(self) -> None:
        self.yard: Path | None = None
        self.executed: list[str] = []
        self.outside: list[str] = []
        sys.addaudithook(self._hook)

    def _hook(self, event: str, arguments: tuple) -> None:
        if self.yard is None:
            return
        if event in _RUNS:
            self.executed.append(f"{event} {arguments!r}"[:200])
        elif event == "open":
            path, mode, flags = arguments
            writes = any(letter in mode for letter in "wax+") if isinstance(mode, str) else bool(flags & _WRITES)
            if writes and isinstance(path, str | bytes | os.PathLike):
                self._check(path)
        elif event in _CHANGES and isinstance(arguments[0], str | bytes | os.PathLike):
            self._check(arguments[0])

    def _check(self, path) -> None:
        place = os.path.abspath(os.fsdecode(path))
        if not place.startswith(f"{self.yard}/") and place != "/dev/null":
            self.outside.append(place)


_watch: _Watch | None = None


@contextmanager
def _watched(yard: Path):
    """Within: temporary files and caches are the yard's, and it is the working folder."""
    global _watch
    _watch = _watch or _Watch()
    here, environment, temporary = os.getcwd(), dict(os.environ), tempfile.tempdir
    # What is imported while a file is read is compiled, as it always is, and that is not the file's doing.
    compiled, sys.dont_write_bytecode = sys.dont_write_bytecode, True
    for name in ("tmp", "work", "built", "cache"):
        (yard / name).mkdir()
    os.chdir(yard / "work")
    os.environ["ONESTEP_CACHE"], tempfile.tempdir = str(yard / "cache"), str(yard / "tmp")
    _watch.yard, _watch.executed, _watch.outside = yard, [], []
    try:
        yield _watch
    finally:
        _watch.yard = None
        os.chdir(here)
        os.environ.clear()
        os.environ.update(environment)  # a grid names plug-ins in it
        tempfile.tempdir, sys.dont_write_bytecode = temporary, compiled


def seeds(name: str) -> list[bytes]:
    """Whole files of a format, made once."""
    return seeds_of(FORMATS[name].seeds)


def spoilt(name: str, index: int, seed: int = 0) -> bytes:
    """File number `index` of a format: the same bytes every time, but for addresses that torch writes in pickles."""
    random_ = random.Random(f"{seed} {name} {index}")
    return spoil(random_, random_.choice(seeds(name)), FORMATS[name].name, seeds(name))


def attempt(name: str, content: bytes) -> Outcome:
    """Read a file of this content as the package does."""
    yard = Path(tempfile.mkdtemp(prefix="fuzz-"))
    file = yard / "given" / FORMATS[name].name
    file.parent.mkdir()
    file.write_bytes(content)
    try:
        return _attempt(name, file, yard)
    finally:
        shutil.rmtree(yard, ignore_errors=True)


def _attempt(name: str, file: Path, yard: Path) -> Outcome:
    def stop(*_: object) -> None:
        raise _TooLong

    before = signal.signal(signal.SIGPROF, stop)
    began = time.process_time()
    with _watched(yard) as watch:
        try:
            signal.setitimer(signal.ITIMER_PROF, SECONDS)
            FORMATS[name].read(file)
            ending, why = "accepted", ""
        except OnestepError as error:
            ending, why = "refused", str(error)
            if "\n" in why:
                ending, why = "other", f"several lines: {why}"
        except (Exception, _TooLong):
            ending, why = "other", traceback.format_exc()
        finally:
            signal.setitimer(signal.ITIMER_PROF, 0)
            signal.signal(signal.SIGPROF, before)
    outcome = Outcome(ending, why, time.process_time() - began, watch.executed, watch.outside)
    kept = {"tmp", "work", "given", "built", "cache"}
    outcome.outside += [entry.name for entry in yard.iterdir() if entry.name not in kept]
    outcome.executed += [str(entry) for entry in yard.rglob(CANARY)]
    return outcome
