"""Two users, and a third, at one store: what a group shares it may use, and what nobody shares nobody else sees.

Needs to be root, to make three users of whom two share a group (removed at the end). Each user's part is a process of
that user's, with the usual umask. Exits with 1 if anything is not as it should be.
"""

import multiprocessing
import os
import pwd
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

from onestep_bench.errors import OnestepError
from onestep_bench.grid.locks import held, is_held
from onestep_bench.store import memo, upkeep
from onestep_bench.store.files import write_text

GROUP, FIRST, SECOND, STRANGER = "onestep-lab", "onestep-one", "onestep-two", "onestep-three"
# Forks, with all they need imported: root's Python need not be one that others may read.
fork = multiprocessing.get_context("fork")


class Killed(Exception):
    """In the middle of making an artifact."""


def ask(store: Path, number: int, *, die: bool = False) -> str:
    """Ask a store for an artifact: 'made' or 'found'."""
    os.environ["ONESTEP_STORE"], os.environ["ONESTEP_CELL"] = str(store), "cell"
    told = ["found"]

    def make(folder: Path) -> dict:
        told[0] = "made" if not (folder / "checkpoint").exists() else "went on"
        write_text(folder / "checkpoint", "half")
        if die:
            raise Killed
        (folder / "raw").write_text("as a library writes it")
        write_text(folder / "text", "whole")
        return {"kimg": 0, "seconds": 0.5, "device": "none"}

    artifact = memo("model", {"number": number}, [], make)
    return f"{told[0]} {(artifact.folder / 'text').read_text()}"


def damage(store: Path) -> str:
    """Write into a file of every artifact."""
    for text in store.glob("model-*/text"):
        text.write_text("x")
    return "done"


def clear(store: Path) -> str:
    """Remove everything."""
    os.environ["ONESTEP_STORE"] = str(store)
    return " ".join("removed" if upkeep.remove(entry) else "kept" for entry in upkeep.entries())


def hold(lock: Path, let_go) -> str:
    """Hold a cell's lock until told to let go; tells as it has it."""
    with held(lock) as ours:
        let_go.send("ours" if ours else "theirs")
        let_go.recv()
    return "let go"


def look(lock: Path) -> str:
    """Whether somebody holds it."""
    return "held" if is_held(lock) else "free"


def _child(user: str, answer, act: Callable[..., str], *given, **named) -> None:
    entry = pwd.getpwnam(user)
    os.initgroups(user, entry.pw_gid)
    os.setgid(entry.pw_gid)
    os.setuid(entry.pw_uid)
    os.umask(0o022)
    try:
        answer.send(act(*given, **named))
    except (OnestepError, OSError, Killed) as error:
        answer.send(f"{type(error).__name__} {error}")


def said(user: str, act: Callable[..., str], *given, **named) -> str:
    """What comes of an act by a user."""
    ours, theirs = fork.Pipe()
    process = fork.Process(target=_child, args=(user, theirs, act, *given), kwargs=named)
    process.start()
    theirs.close()
    try:
        return ours.recv()
    except EOFError:
        return "died"
    finally:
        process.join()


def trial(folder: Path) -> list[tuple[str, str, bool]]:
    """(what was tried, what came of it, whether that is right)."""
    shared, private, out = folder / "shared", folder / "places" / "private", folder / "out"
    for place in (shared, out):
        place.mkdir()
        shutil.chown(place, FIRST, GROUP)
        place.chmod(0o2770)
    private.parent.mkdir()
    private.parent.chmod(0o777)
    told = []

    def tried(what: str, expected: str, user: str, *act, **named) -> None:
        came = said(user, *act, **named)
        told.append((what, came, came.startswith(expected)))

    tried("one makes an artifact", "made whole", FIRST, ask, shared, 1)
    tried("two asks for it", "found whole", SECOND, ask, shared, 1)
    tried("one dies while it makes another", "Killed", FIRST, ask, shared, 2, die=True)
    tried("two asks for that", "went on whole", SECOND, ask, shared, 2)
    tried("one asks for it again", "found whole", FIRST, ask, shared, 2)
    tried("two damages both", "done", SECOND, damage, shared)
    tried("one asks for two's", "made whole", FIRST, ask, shared, 2)
    tried("two asks for one's", "made whole", SECOND, ask, shared, 1)
    tried("three asks", "OnestepError cannot write to the store", STRANGER, ask, shared, 1)
    lock = out / ".cells" / "cell.lock"
    ours, theirs = fork.Pipe()
    answer = fork.Pipe()
    holder = fork.Process(target=_child, args=(FIRST, answer[1], hold, lock, theirs))
    holder.start()
    told.append(("one takes a cell's lock", came := ours.recv(), came == "ours"))
    tried("two looks at it", "held", SECOND, look, lock)
    ours.send("let go")
    holder.join()
    tried("two looks when one let go", "free", SECOND, look, lock)
    tried("two clears the store", "removed removed", SECOND, clear, shared)
    tried("one makes a store without a word", "made whole", FIRST, ask, private, 1)
    tried("two asks there", "OnestepError cannot write to the store", SECOND, ask, private, 1)
    return told


def main() -> int:
    """Make the users, try, remove them; the exit code."""
    if os.getuid() or not shutil.which("useradd"):
        sys.exit("shared_store: needs root and useradd, to try with several users; nothing was tried")
    with tempfile.TemporaryDirectory(prefix="onestep-users-") as name, ExitStack() as stack:
        Path(name).chmod(0o755)
        ask(Path(name, "warm"), 0)  # whatever is imported late is imported now
        subprocess.run(["groupadd", GROUP], check=True)
        stack.callback(subprocess.run, ["groupdel", GROUP], check=False)
        for user in (FIRST, SECOND, STRANGER):
            member = [] if user == STRANGER else ["--groups", GROUP]
            subprocess.run(["useradd", "--no-create-home", *member, user], check=True)
            stack.callback(subprocess.run, ["userdel", user], check=False)
        told = trial(Path(name))
    for what, came, right in told:
        print(f"{'ok   ' if right else 'WRONG'}  {what}: {came}")
    return 0 if all(right for *_, right in told) else 1


if __name__ == "__main__":
    sys.exit(main())
