"""Two runs of a grid, cell by cell: what changed by more than its noise.

A cell is one model (label, what it saw, size, budget) drawn in one way (sampler, steps, weights) and scored in one
(data set, split, judge). The unit of its noise is the training run, as everywhere in a report.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy import stats

from onestep_bench.errors import OnestepError
from onestep_bench.report.recipes import results
from onestep_bench.report.statistics import RUN, difference

SCORED = ["dataset", "split", "features"]
DRAWN = ["label", "saw", "variant", "size", "sampler", "steps", "weights"]
CELL = [*SCORED, *DRAWN, "kimg"]
FIELDS = [name for name in CELL if name != "variant"]  # those that rows have
_COLUMNS = ["before", "after", "change", "low", "high", "p", "p_holm", "error", "freedom", "paired", "runs", "verdict"]
_COSTS = ["passes", "passes_after", "seconds", "seconds_after", "busy"]


class Changes(NamedTuple):
    """What two runs have in common and what not.

    cells: a line per cell of both: `CELL`, mean scores `before` and `after` over training runs, `change` (after less
    before: below 0 is better) with its t interval at `level`, p and p by Holm's correction, whether runs were paired,
    their numbers, `verdict`, and costs. Verdicts: 'worse' and 'better' by the corrected p; 'perhaps worse' and
    'perhaps better' where the cell's own interval excludes 0 but the correction takes it back; 'within' noise; 'same',
    equal to the last digit and so not tested; 'unknown' where there is no noise to compare with, of a single run.
    only_before, only_after: lines of `CELL`. refused: what cannot be compared, one sentence each.
    """

    cells: pd.DataFrame
    only_before: pd.DataFrame
    only_after: pd.DataFrame
    refused: list[str]
    level: float

    @property
    def tested(self) -> int:
        """How many cells the correction is for."""
        return int(self.cells["p"].notna().sum())

    def count(self, verdict: str) -> int:
        """How many cells have a verdict."""
        return int((self.cells["verdict"] == verdict).sum())

    def visible(self) -> float:
        """The least relative change that half of the cells would have shown after the correction; NaN of no cells."""
        known = self.cells[self.cells["p"].notna() & (self.cells["error"] > 0)]
        tail = (1 - self.level) / (2 * max(1, self.tested))
        return float((stats.t.isf(tail, known["freedom"]) * known["error"] / known["before"]).median())


def changes(before: pd.DataFrame, after: pd.DataFrame, level: float = 0.95) -> Changes:
    """Compare two runs' rows of scores; see `Changes`.

    Tests are t tests of normal differences: paired over training runs that share their seeds where two or more do, else
    Welch's. Holm's correction is over all cells tested, whatever their dependence. A model whose score is no number
    any more is worse, without a test. Where a cell has one budget in each run, it is the same cell at any budget.
    Raises OnestepError if they have nothing to compare.
    """
    before, after = _named(before), _named(after)
    before, after, refused = _comparable(before, after)
    ours, theirs = _cells(before), _cells(after)
    pairs = list(_matched(ours, theirs))
    if not pairs:
        why = "; ".join(refused) or "they have no cell in common"
        raise OnestepError(f"nothing to compare: {why}")
    lines = [dict(zip(CELL, one, strict=True)) | _compared(ours[one], theirs[other], level) for one, other in pairs]
    cells = _corrected(pd.DataFrame(lines, columns=[*CELL, *_COLUMNS, *_COSTS]), level)
    left = [key for key in ours if key not in {one for one, _ in pairs}]
    new = [key for key in theirs if key not in {other for _, other in pairs}]
    return Changes(cells, pd.DataFrame(left, columns=CELL), pd.DataFrame(new, columns=CELL), refused, level)


def _named(rows: pd.DataFrame) -> pd.DataFrame:
    """Results, each with its recorded label, and in `variant` what `results` adds where one run has several recipes.

    A recipe that changed between two runs must not keep their cells from finding each other.
    """
    kept = results(rows)
    kept = kept.assign(variant=kept["label"], label=rows.loc[kept.index, "label"])
    # Of images that others made little is known; what is not must still be equal to itself.
    kept = kept.fillna(dict.fromkeys(("saw", "size", "sampler", "weights"), "") | {"steps": 0, "kimg": 0.0, "seed": 0})
    place = ["dataset", "label", "saw", "size", "sampler", "steps", "kimg"]
    several = kept.fillna({"recipe": ""}).groupby(place, dropna=False)["recipe"].transform("nunique") > 1
    crowded = several.groupby([kept["label"], kept["saw"]]).transform("any")
    return kept.assign(variant=kept["variant"].where(crowded, ""))


def _comparable(before: pd.DataFrame, after: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame, list[str]]:
    """Rows without those that only other protocols judge in the other run, and a sentence for each of these."""
    ours, theirs = (dict(list(rows.groupby(SCORED)["protocol"].agg(set).items())) for rows in (before, after))
    refused = []
    for key in sorted(ours.keys() & theirs.keys()):
        old, new = ours[key] - theirs[key], theirs[key] - ours[key]
        if not (old and new):
            continue
        dataset, split, judge = key
        refused.append(
            f"{dataset}, {judge}, {split}: of two protocols, not compared (A: {' | '.join(sorted(old))}; "
            f"B: {' | '.join(sorted(new))})"
        )
        before, after = (
            rows[~(rows["protocol"].isin(odd) & (rows[SCORED] == list(key)).all(axis=1))]
            for rows, odd in ((before, old), (after, new))
        )
    return before, after, refused


def _cells(rows: pd.DataFrame) -> dict[tuple, pd.DataFrame]:
    return dict(list(rows.groupby(CELL, dropna=False, sort=True)))


def _matched(ours: dict, theirs: dict) -> Iterator[tuple[tuple, tuple]]:
    """Pairs of keys: of equal cells, and of those that have one budget each."""
    for place, budgets in _budgets(ours).items():
        others = _budgets(theirs).get(place, [])
        if len(budgets) == len(others) == 1:
            yield (*place, *budgets), (*place, *others)
        else:
            yield from (((*place, kimg), (*place, kimg)) for kimg in budgets if kimg in others)


def _budgets(cells: dict) -> dict[tuple, list[float]]:
    found: dict[tuple, list[float]] = {}
    for *place, kimg in cells:
        found.setdefault(tuple(place), []).append(kimg)
    return found


def _compared(before: pd.DataFrame, after: pd.DataFrame, level: float) -> dict:
    old, new = (
        rows.assign(**rows[RUN].fillna(-1)).groupby([*RUN, "seed"])["fid"].mean().unstack() for rows in (before, after)
    )
    found = difference(new, old, level)
    if old.equals(new):  # found in the store, or repeated to the bit: no chance was in it
        found |= {"p": np.nan, "verdict": "same"}
    means = [table.mean(axis=1, skipna=False).mean(skipna=False) for table in (old, new)]
    line = {"before": means[0], "after": means[1], "change": found.pop("difference")} | found
    line["verdict"] = _own_verdict(line)
    for name, rows in (("", before), ("_after", after)):
        line[f"passes{name}"] = rows["passes"].mean()
        line[f"seconds{name}"] = rows["train_seconds"].median()
    return line | {"busy": pd.concat([before["busy"], after["busy"]]).max()}


def _own_verdict(line: dict) -> str:
    """Of one cell by itself, before any correction."""
    sound = [np.isfinite(line[name]) for name in ("before", "after")]
    if sound[0] != sound[1]:
        return "worse" if sound[0] else "better"
    if line["verdict"] != "larger":
        return line["verdict"]
    return "perhaps worse" if line["change"] > 0 else "perhaps better"


def _corrected(cells: pd.DataFrame, level: float) -> pd.DataFrame:
    """With p by Holm's step-down procedure (Holm 1979), and the verdicts it bears out."""
    adjusted = _holm(cells["p"])
    sure = (adjusted < 1 - level) & cells["verdict"].str.startswith("perhaps")
    verdict = cells["verdict"].where(~sure, cells["verdict"].str.removeprefix("perhaps "))
    return cells.assign(p_holm=adjusted, verdict=verdict)


def _holm(p: pd.Series) -> pd.Series:
    ordered = p.dropna().sort_values()
    steps = ordered * np.arange(len(ordered), 0, -1)
    return steps.cummax().clip(upper=1.0).reindex(p.index)
