"""Of the rows of a report those that belong into one figure: of one data set, judge, split and protocol."""

import pandas as pd

from onestep_bench.errors import OnestepError
from onestep_bench.report.comparisons import judge_order


def judged_by(rows: pd.DataFrame, *, judge: str = "", split: str = "test", dataset: str = "") -> pd.DataFrame:
    """Rows by one judge against one split of one data set; of several protocols that of the most rows.

    judge: by default the first that knows classes. dataset: by default the first. Raises OnestepError, with what there
    is, where there are none such.
    """
    if rows.empty:
        raise OnestepError("there are no scores; name a folder of notebooks that end in `record(scores)`")
    judge, dataset = judge or min(rows["features"], key=judge_order), dataset or rows["dataset"].iloc[0]
    own = rows[(rows["features"] == judge) & (rows["split"] == split) & (rows["dataset"] == dataset)]
    if own.empty:
        known = rows[["dataset", "features", "split"]].drop_duplicates().sort_values(["dataset", "features", "split"])
        there = "; ".join(f"{name} by {by}, {part}" for name, by, part in known.itertuples(index=False))
        wanted = f"{dataset} by {judge!r} against its {split!r} split"
        raise OnestepError(f"there are no scores of {wanted}; there are: {there}")
    return own[own["protocol"] == own["protocol"].mode()[0]]
