"""What a grid's cell used: noted line by line in its scratch folder, for the stamp of its executed notebook."""

import json
import os
from pathlib import Path

from onestep_bench.errors import OnestepError

SCRATCH = "ONESTEP_SCRATCH"  # in a grid's cell: its folder for what is not whole
PROGRESS = "progress.json"  # in there: how far inside itself the cell is
RANKS = "ONESTEP_RANKS"  # in a cell of several ranks: the file by which these find each other
_FILE = "used.jsonl"


def note(**what) -> None:
    """In a grid's cell: leave a line about what it uses."""
    if scratch := os.environ.get(SCRATCH):
        try:
            with open(Path(scratch, _FILE), "a", encoding="utf-8") as file:
                file.write(json.dumps(what) + "\n")
        except OSError as error:
            raise OnestepError(f"cannot write to {scratch}: {error.strerror}; free space and run again") from error


def noted(scratch: Path) -> list[dict]:
    """What a cell noted, each once."""
    try:
        lines = (scratch / _FILE).read_text(encoding="utf-8").splitlines()
    except OSError:
        return []
    return [json.loads(line) for line in dict.fromkeys(lines)]
