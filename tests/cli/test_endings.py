"""Commands that are ended from outside: one line, an exit code that tells, nothing half-written, no traceback."""

import signal
import subprocess
import sys

import pytest

from onestep_bench import cli
from onestep_bench.cli import data
from onestep_bench.errors import stopped

# A command that begins to write a file and is then ended by itself, as soon as it is in the middle.
WRITING = """
import os, signal, sys, threading
from onestep_bench import cli
from onestep_bench.cli import data
from onestep_bench.store.files import replacing

def command(options):
    with replacing(options.source) as file:
        file.write_text("half")
        try:
            os.kill(os.getpid(), {number})
        except KeyboardInterrupt as interrupt:
            {then}
        threading.Event().wait(60)

data._dataset = command
sys.exit(cli.main(["dataset", sys.argv[1], "--check"]))
"""
ENDS = [
    (signal.SIGINT, "raise", "interrupted", 130),
    (signal.SIGTERM, "raise", "ended", 143),
    (signal.SIGINT, "raise ImportError('half of a module') from interrupt", "interrupted", 130),
]


def run(script, folder):
    """The script, ended; it was to write a file in the folder."""
    command = [sys.executable, "-c", script, str(folder / "out.zip")]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.parametrize(("number", "then", "said", "code"), ENDS)
def test_what_is_ended_says_one_line_and_leaves_nothing(tmp_path, number, then, said, code):
    script = WRITING.format(number=int(number), then=then)
    ended = run(script, tmp_path)
    assert ended.stderr == f"onestep-bench: {said}; run the same command again to go on\n"
    assert ended.returncode == code
    assert list(tmp_path.iterdir()) == []


def test_the_second_interrupt_does_not_wait(tmp_path):
    then = f"os.kill(os.getpid(), {int(signal.SIGINT)})"
    script = WRITING.format(number=int(signal.SIGINT), then=then)
    ended = run(script, tmp_path)
    assert ended.returncode == -signal.SIGINT
    assert ended.stderr == ""


def test_how_far_the_work_came_is_said_and_handlers_are_as_before(monkeypatch, capsys):
    def interrupted(options):
        raise stopped("training stopped at 1 of 2 kimg; run this again to go on from there")

    monkeypatch.setattr(data, "_dataset", interrupted)
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    assert cli.main(["dataset", "mnist", "--check"]) == 130
    assert capsys.readouterr().err == (
        "onestep-bench: interrupted: training stopped at 1 of 2 kimg; run this again to go on from there\n"
    )
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


def test_a_mistake_of_ours_keeps_its_traceback(monkeypatch):
    monkeypatch.setattr(data, "_dataset", lambda options: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        cli.main(["dataset", "mnist", "--check"])
