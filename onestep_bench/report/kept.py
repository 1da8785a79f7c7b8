"""A report as it is kept: its table of scores, and what its notebooks recorded where they are not kept along."""

import gzip
import json
import zlib
from pathlib import Path

import pandas as pd

from onestep_bench.errors import OnestepError
from onestep_bench.report.tables import NUMBERS
from onestep_bench.scoring.rows import FIELDS, LATER, bundle, shaped
from onestep_bench.store.files import replacing

RESULTS = ("results.csv", "results.csv.gz")  # the table of scores, as it is and packed
RECORD = "record.json.gz"  # the rest of what notebooks recorded


def results_in(folder: Path) -> Path | None:
    """The table of scores that a report left in this folder, if there is one."""
    return next((path for name in RESULTS if (path := folder / name).is_file()), None)


def read_results(path: Path) -> pd.DataFrame:
    """The rows of a results.csv, packed or not, to the last digit as `read_rows` gave them.

    What their recipes were, and which is better of further metrics, is known only if there is a `RECORD` beside it.
    Raises OnestepError for a file that is no such table, or no such record.
    """
    try:
        rows = pd.read_csv(path, dtype=str, keep_default_na=False, na_values=[""])
    except (ValueError, OSError, EOFError, zlib.error) as error:
        raise OnestepError(f"{path} cannot be read as a table of scores: {error}") from error
    missing = sorted(FIELDS.keys() - LATER.keys() - set(rows))
    if missing:
        raise OnestepError(f"{path} is no results.csv of a report: it has no column {', '.join(missing)}")
    rows = rows.assign(**{name: value for name, value in LATER.items() if name not in rows})
    further = [name for name in rows if name not in FIELDS]
    try:
        numbers = {name: pd.to_numeric(rows[name].map(_number)) for name in [*NUMBERS, *further]}
    except ValueError as error:
        raise OnestepError(f"{path} cannot be read as a table of scores: {error}") from error
    rows = rows[[*FIELDS, *further]].assign(**numbers)
    rows["warning"] = rows["warning"].fillna("")
    kept = read_record(path.parent)
    rows.attrs.update(metrics=kept.get("metrics", {}), recipes=kept.get("recipes", {}))
    return rows


def _number(text: object) -> object:
    """What a table's text says, to the last digit: pandas' own reader is quick, and was not always exact."""
    if not isinstance(text, str):
        return text
    return int(text) if text.isdigit() else float(text)


def read_record(folder: Path) -> dict:
    """A bundle without rows, of a report that is kept without its notebooks: strips, recipes, metrics.

    Without strips where there is none. Raises OnestepError for a damaged one.
    """
    path = folder / RECORD
    if not path.is_file():
        return {"rows": [], "strips": []}
    try:
        found = json.loads(gzip.decompress(path.read_bytes()))
    except (ValueError, OSError, EOFError, zlib.error, RecursionError) as error:
        raise OnestepError(f"{path} is damaged ({error}); fetch it again, or delete it to do without") from error
    return shaped(found, path)


def write(rows: pd.DataFrame, strips: list[dict], out: Path, *, packed: bool, record: bool) -> str:
    """Write every score, and remove what an earlier rendering wrote the other way; the file's name.

    record: write the rest of what notebooks recorded too, so that the page can be made again without them.
    """
    name, other = RESULTS[::-1] if packed else RESULTS
    _write(out / name, rows.to_csv(index=False, lineterminator="\n"), packed=packed)
    (out / other).unlink(missing_ok=True)
    if record:
        rest = bundle([], strips, rows.attrs.get("metrics"), rows.attrs.get("recipes"))
        _write(out / RECORD, json.dumps(rest, ensure_ascii=False, sort_keys=True), packed=True)
    return name


def _write(path: Path, text: str, *, packed: bool) -> None:
    with replacing(path) as temporary:
        # Packed without a time: equal rows give equal bytes.
        temporary.write_bytes(gzip.compress(text.encode(), mtime=0) if packed else text.encode())
