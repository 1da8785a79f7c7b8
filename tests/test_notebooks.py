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
    """Function that runs the notebook, or another one, with these parameters and gives the bundle it left."""

    def run(notebook=NOTEBOOK, **given):
        monkeypatch.setenv("ONESTEP_STORE", str(tmp_path / "store"))
        declared = papermill.inspect_notebook(str(notebook))
        given = {name: value for name, value in TINY.items() if name in declared} | given
        papermill.execute_notebook(str(notebook), str(tmp_path / "out.ipynb"), given, progress_bar=False)
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
def test_averages_of_the_options_are_scored_beside_the_model(recorded):
    options = {"emas": [0], "precision": {"student": "bf16"}}
    bundle = recorded(method="kd", options=options, teacher_options={"optimizer": "radam", "emas": [0]})
    rows = [row for row in bundle["rows"] if row["label"] == "kd"]
    assert [row["weights"] for row in rows] == ["ema", "ema", "last", "last"]
    assert [row["model"].endswith("~0") for row in rows] == [False, False, True, True]
    own, raw = (bundle["recipes"][row["recipe"]] for row in rows[1:3])
    assert (own["kd.ema_halflife_kimg"], raw["kd.ema_halflife_kimg"]) == (500.0, 0.0)
    assert own["edm.optimizer"] == "radam"


@pytest.mark.slow
def test_slimflows_student_may_start_from_the_raw_weights_with_options_of_its_own(recorded):
    bundle = recorded(
        NOTEBOOK.with_name("slimflow.ipynb"),
        **{"reflow_kimg": 0.064, "distill_kimg": 0.064, "distill_from": "raw", "ablation": False, "hflip": True},
        reflow_options={"optimizer": "adamw", "emas": [0.1]},
        distill_options={"hflip": False, "warmup_kimg": 0.032},
    )
    (row, *_) = rows_of(bundle, "SlimFlow")
    recipe = bundle["recipes"][row["recipe"]]
    told = {name: recipe[f"flow-guided-distillation.{name}"] for name in ("init", "teacher", "hflip", "optimizer")}
    assert told == {"init": "annealing-reflow~0", "teacher": "annealing-reflow~0", "hflip": False, "optimizer": "adam"}
    assert (recipe["annealing-reflow.hflip"], recipe["annealing-reflow.optimizer"]) == (True, "adamw")


@pytest.mark.slow
def test_folds_are_a_chain_of_students(recorded):
    bundle = recorded(method="progressive", folds=[2, 1], kimg=0.128, label="PD")
    row, _ = rows_of(bundle, "PD")
    assert row["kimg"] == pytest.approx(0.128 + 0.128)
    teacher, _ = rows_of(bundle, "teacher (euler)")
    assert row["passes"] > teacher["passes"] + 3 * 0.128  # its teachers are asked twice a step
    assert row["recipe"] != teacher["recipe"]


@pytest.mark.slow
def test_flow_maps_have_their_options_by_method_and_the_teacher_as_many_evaluations(recorded):
    bundle = recorded(
        NOTEBOOK.with_name("flowmaps.ipynb"),
        methods=["shortcut", "sct"],
        steps=[1, 2],
        samplers=["heun"],
        options={"shortcut": {"every": 4}, "meanflow": {"loss": "improved"}},
    )
    walks = {(row["label"], row["sampler"], row["steps"], row["nfe"]) for row in bundle["rows"]}
    students = {
        (label, how, n, n) for label, how in (("shortcut", "push-forward"), ("sct", "re-noising")) for n in (1, 2)
    }
    assert walks == {*students, ("teacher (heun)", "heun", 1, 1)}
    recipe = next(bundle["recipes"][row["recipe"]] for row in bundle["rows"] if row["label"] == "shortcut")
    assert recipe["shortcut.every"] == 4


@pytest.mark.slow
def test_a_small_generator_starts_from_a_denoiser_of_its_size(recorded):
    small = {"size": "0.01M", "start": "random", "edm_kimg": 0.064, "edm_options": {"p_mean": -1.0}}
    bundle = recorded(method="drifting", options={"group": 16}, **small)
    row, _ = rows_of(bundle, "drifting")
    recipe = bundle["recipes"][row["recipe"]]
    assert {"edm.kimg", "drifting.kimg"} <= recipe.keys()
    assert row["size"] == "0.01M"


@pytest.mark.slow
def test_a_small_generator_starts_from_a_slimflow_of_its_size(recorded):
    small = {"size": "0.01M", "start": "random", "reflow_kimg": 0.064, "distill_kimg": 0.064}
    bundle = recorded(method="gdd", options={"critic_channels": 32}, **small)
    row, _ = rows_of(bundle, "gdd")
    recipe = bundle["recipes"][row["recipe"]]
    assert {"annealing-reflow.kimg", "flow-guided-distillation.kimg", "gdd.kimg"} <= recipe.keys()
    assert row["size"] == "0.01M"
    assert row["kimg"] == pytest.approx(0.128 + 3 * 0.064)  # of the teacher and three trainings from it
