"""onestep-bench compare: what it reads, prints and exits with."""

import json

import numpy as np
import pytest
from tiny import executed, row

from onestep_bench import report
from onestep_bench.cli import main


def rows(change=1.0, spread=0.02, label="GDD", **given):
    rng = np.random.default_rng(7)
    return [
        row(label=label, fid=5 * (change + rng.normal(0, spread)), train_seed=seed, model=f"{label}{seed}", **given)
        for seed in range(4)
    ]


@pytest.fixture
def folder(tmp_path):
    """Function that writes a run's notebooks and returns its folder."""

    def make(name, found):
        executed(tmp_path / name / "cell.ipynb", found)
        return str(tmp_path / name)

    return make


def test_a_worse_score_is_exit_1_an_equal_or_better_one_0(folder, capsys):
    before, after = folder("a", rows()), folder("b", rows(1.5, spread=0.03))
    assert main(["compare", before, after]) == 1
    printed = capsys.readouterr().out
    assert "GDD" in printed
    assert "1 worse, 0 better" in printed
    assert "Holm's correction for 1 comparisons" in printed
    assert main(["compare", after, before]) == 0
    assert "0 worse, 1 better" in capsys.readouterr().out
    assert main(["compare", before, before]) == 0
    assert "1 cells in which nothing changed are not shown" in capsys.readouterr().out


def test_a_report_folder_and_its_table_of_results_say_the_same(folder, tmp_path, capsys):
    before, after = folder("a/notebooks", rows()), folder("b", rows(1.5, spread=0.03))
    found = report.read_rows(tmp_path / "b")
    found.to_csv(tmp_path / "results.csv", index=False)
    assert main(["compare", before.removesuffix("/notebooks"), after, "--json"]) == 1
    by_notebooks = json.loads(capsys.readouterr().out)
    assert main(["compare", before, str(tmp_path / "results.csv"), "--json"]) == 1
    by_table = json.loads(capsys.readouterr().out)
    assert by_notebooks["cells"] == by_table["cells"]
    assert (by_table["exit"], by_table["tested"], by_table["correction"]) == (1, 1, "holm")
    assert main(["compare", before, str(tmp_path), "--json"]) == 1  # a folder that has the table alone


def test_what_is_in_one_run_only_or_of_another_protocol_is_told(folder, capsys):
    pixels = {"features": "pixels"}
    before = folder("a", [*rows(), *rows(label="KD"), *rows(**pixels, protocol="p1")])
    after = folder("b", [*rows(), *rows(label="CD"), *rows(**pixels, protocol="p2")])
    assert main(["compare", before, after]) == 0
    printed = capsys.readouterr().out
    assert "only in A: KD, 0.2M, steps 1 (1 cells; digits/train)" in printed
    assert "only in B: CD, 0.2M, steps 1 (1 cells; digits/train)" in printed
    assert "refused: digits, pixels, train: of two protocols, not compared (A: p1; B: p2)" in printed


def test_where_keeps_cells_of_a_kind(folder, capsys):
    before = folder("a", [*rows(), *rows(label="KD", steps=2)])
    assert main(["compare", before, before, "--where", "steps=2", "--all"]) == 0
    printed = capsys.readouterr().out
    assert "KD" in printed
    assert "GDD" not in printed


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["{a}", "{a}/nowhere"], "is not there; name a report folder"),
        (["{a}", "{a}/empty"], "holds neither executed notebooks nor a results.csv"),
        (["{a}", "{a}/other.csv"], "is no results.csv of a report: it has no column dataset, device"),
        (["{a}", "{a}", "--where", "steps"], "--where takes FIELD=VALUE, not 'steps'"),
        (["{a}", "{a}", "--where", "step=1"], "--where knows no field 'step'; did you mean 'steps'?"),
        (["{a}", "{a}", "--where", "label=KD"], "has no scores of label=KD"),
    ],
)
def test_bad_input_is_one_line_and_exit_2(folder, tmp_path, capsys, arguments, words):
    place = folder("a", rows())
    (tmp_path / "a" / "empty").mkdir()
    (tmp_path / "a" / "other.csv").write_text("x,y\n1,2\n")
    assert main(["compare", *(text.format(a=place) for text in arguments)]) == 2
    error = capsys.readouterr().err
    assert words in error
    assert error.count("\n") == 1
