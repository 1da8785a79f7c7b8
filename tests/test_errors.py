"""What a person sees of a mistake or an interrupt: one line, in a notebook and in a script."""

import signal
import subprocess
import sys

import nbformat
from nbclient import NotebookClient

STOPPED = "from onestep_bench.errors import stopped\nraise stopped('at 1 of 2 kimg; run this again')"


def test_a_notebook_shows_one_line():
    mistake = "from onestep_bench.errors import OnestepError\nraise OnestepError('no size 9M; known: 1M')"
    cells = [nbformat.v4.new_code_cell(code) for code in (mistake, STOPPED, "1 / 0")]
    book = nbformat.v4.new_notebook(cells=cells)
    NotebookClient(book, allow_errors=True, kernel_name="python3").execute()
    shown = [cell.outputs[0].traceback for cell in book.cells]
    assert shown[0] == ["OnestepError: no size 9M; known: 1M"]
    assert shown[1] == ["at 1 of 2 kimg; run this again"]
    assert len(shown[2]) > 1  # anything else is not ours to shorten
    assert [cell.outputs[0].ename for cell in book.cells] == ["OnestepError", "KeyboardInterrupt", "ZeroDivisionError"]


def test_a_script_ends_with_one_line_and_as_by_ctrl_c():
    ended = subprocess.run([sys.executable, "-c", STOPPED], capture_output=True, text=True, check=False)
    assert ended.stderr == "at 1 of 2 kimg; run this again\n"
    assert ended.returncode == -signal.SIGINT
