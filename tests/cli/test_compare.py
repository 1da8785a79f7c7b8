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
    assert "Holm's correction (1 cell)" in printed
    assert main(["compare", after, before]) == 0
    assert "0 worse, 1 better" in capsys.readouterr().out
    assert main(["compare", before, before]) == 0
    assert "not shown: 1 cell in which nothing changed" in capsys.readouterr().out


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


@pytest.mark.parametrize("where", ["steps=2", "kimg=250"])
def test_where_keeps_cells_of_a_kind(folder, capsys, where):
    before = folder("a", [*rows(), *rows(label="KD", steps=2, kimg=250.0)])
    assert main(["compare", before, before, "--where", where, "--all"]) == 0
    printed = capsys.readouterr().out
    assert "KD" in printed
    assert "GDD" not in printed


def test_a_table_of_results_is_the_same_to_the_last_digit(folder, tmp_path, capsys):
    """Numbers that a fast reader of decimals gets wrong by one in the last place."""
    rng = np.random.default_rng(0)
    scores = [row(train_seed=i, model=f"m{i}", fid=float(rng.normal(5, 1))) for i in range(200)]
    report.read_rows(tmp_path.joinpath(folder("a", scores))).to_csv(tmp_path / "results.csv", index=False)
    assert main(["compare", str(tmp_path / "a"), str(tmp_path / "results.csv")]) == 0
    assert "1 same" in capsys.readouterr().out


def test_of_two_runs_it_is_told_that_hardly_anything_can_be(folder, capsys):
    main(["compare", folder("a", rows()[:2]), folder("b", rows(1.5, spread=0.03)[:2])])
    printed = capsys.readouterr().out
    assert "In half of them no change of less than" in printed
    assert "Two runs: in 1 cell of 1 tested a side has no more" in printed
    assert "is 12.7 standard errors to each side (of three pairs 4.3, of five 2.8)" in printed
    main(["compare", folder("c", rows()[:3]), folder("d", rows(1.5)[:3])])
    assert "Two runs" not in capsys.readouterr().out


def test_what_diverged_stands_first(folder, capsys):
    lost = [one | {"fid": "nan"} for one in rows(label="KD")]
    assert main(["compare", folder("a", [*rows(), *rows(label="KD")]), folder("b", [*rows(1.5), *lost])]) == 1
    printed = capsys.readouterr().out
    assert printed.index("KD") < printed.index("GDD")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["{a}", "{a}/nowhere"], "is not there; name a report folder"),
        (["{a}", "{a}/empty"], "holds neither executed notebooks nor a results.csv"),
        (["{a}", "{a}/other.csv"], "is no results.csv of a report: it has no column dataset, device"),
        (["{a}", "{a}", "--where", "steps"], "--where takes FIELD=VALUE, not 'steps'"),
        (["{a}", "{a}", "--where", "step=1"], "--where knows no field 'step'; did you mean 'steps'?"),
        (["{a}", "{a}", "--where", "variant=x"], "--where knows no field 'variant'"),
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
