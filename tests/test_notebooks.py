"""The notebook for any method, on budgets too small to learn anything: what it is asked for is what is scored."""

import json
from pathlib import Path

import papermill
import pytest

from onestep_bench.scoring.rows import bundles_in

NOTEBOOK = Path(__file__).parents[1] / "notebooks" / "method.ipynb"
TINY = {
    "teacher_kimg": 0.128,
    "kimg": 0.064,
    "batch_size": 32,
    "pairs": 32,
    "pair_steps": 2,
    "samples": 16,
    "seeds": [0],
    "steps": [1],
    "features": ["pixels", "random-features"],
    "splits": ["test"],
}


@pytest.fixture
def recorded(tmp_path, monkeypatch):
    """Function that runs the notebook with these parameters and gives the bundle it left."""

    def run(**given):
        monkeypatch.setenv("ONESTEP_STORE", str(tmp_path / "store"))
        papermill.execute_notebook(str(NOTEBOOK), str(tmp_path / "out.ipynb"), TINY | given, progress_bar=False)
        (bundle,) = bundles_in(tmp_path / "out.ipynb")
        return bundle

    return run


def rows_of(bundle, label):
    rows = [row for row in bundle["rows"] if row["label"] == label]
    assert [row["features"] for row in rows if row["kimg"] == rows[0]["kimg"]] == TINY["features"]
    return rows


@pytest.mark.slow
def test_a_method_of_pairs_is_shown_data(recorded):
    bundle = recorded(method="kd", reals="data", purpose="search", snapshots=[0.032])
    assert {row["split"] for row in bundle["rows"]} == {"test"}
    assert {row["purpose"] for row in bundle["rows"]} == {"search"}
    rows = rows_of(bundle, "kd")
    assert {row["saw"] for row in rows} == {"data"}  # and the noise that the teacher finds for it
    assert [row["kimg"] for row in rows] == pytest.approx([0.192, 0.192, 0.16, 0.16])
    assert [row["model"].endswith("#0.032") for row in rows] == [False, False, True, True]
    json.dumps(bundle["recipes"])


@pytest.mark.slow
def test_folds_are_a_chain_of_students(recorded):
    bundle = recorded(method="progressive", folds=[2, 1], kimg=0.128, label="PD")
    row, _ = rows_of(bundle, "PD")
    assert row["kimg"] == pytest.approx(0.128 + 0.128)
    teacher, _ = rows_of(bundle, "teacher (euler)")
    assert row["passes"] > teacher["passes"] + 3 * 0.128  # its teachers are asked twice a step
    assert row["recipe"] != teacher["recipe"]
