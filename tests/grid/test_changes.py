"""What `--scale` and `--set` make of a grid."""

import pytest
from tiny import grid_file, notebook

from onestep_bench.grid.changes import Changes
from onestep_bench.grid.plan import read_grid

DECLARED = {"kimg": 1.0, "batch_size": 64, "pairs": 9, "samples": 9, "options": {}, "snapshots": [1.0], "lr": 0.1}


def scaled(scale=0.001, **given):
    return Changes.of(scale).applied(given, DECLARED)


def test_budgets_shrink_and_nothing_else():
    given = {"kimg": 400000.0, "pairs": 100000, "reflow_kimg": 1000.0, "lr": 0.1, "label": "x"}
    assert scaled(**given) == {"kimg": 400.0, "pairs": 100, "reflow_kimg": 1.0, "lr": 0.1, "label": "x"}


def test_no_budget_falls_below_one_batch_or_what_it_was():
    assert scaled(kimg=5.0, samples=50000, pairs=3) == {"kimg": 0.064, "samples": 64, "pairs": 3}
    assert scaled(kimg=5.0, batch_size=8)["kimg"] == 0.008
    assert scaled(kimg=5.0, options={"batch_size": 16})["kimg"] == 0.016
    assert scaled(reflow_kimg=5.0, reflow_options={"batch_size": 32})["reflow_kimg"] == 0.032
    assert scaled(kimg=5.0, folds=[4, 2, 1])["kimg"] == 0.192  # a chain has a step for each


def test_snapshots_keep_their_places_and_meet_at_the_first_batch():
    assert scaled(kimg=1000.0, snapshots=[1.0, 2.0, 500.0]) == {"kimg": 1.0, "snapshots": [0.064, 0.5]}


def test_half_lives_and_warm_ups_shrink_with_the_budget_they_belong_to():
    options = {"warmup_kimg": 640.0, "ema_halflife_kimg": 500.0, "emas": [0, 100.0], "clip": 1.0}
    assert scaled(options=options)["options"] == {
        "warmup_kimg": 0.64,
        "ema_halflife_kimg": 0.5,
        "emas": [0, 0.1],
        "clip": 1.0,
    }


def test_set_reaches_what_declares_it_and_keys_where_they_stand():
    changes = Changes.of(1.0, ["lr=0.5", "size=0.05M", "options.critic=teacher", "folds=[2, 1]", "label="])
    given = {"options": {"critic": "timm:vgg16_bn", "variant": "gdd"}}
    found = changes.applied(given, DECLARED | {"label": "x"})
    assert found == {"lr": 0.5, "options": {"critic": "teacher", "variant": "gdd"}, "label": ""}
    assert changes.applied({"options": {}}, {"options": {}}) == {"options": {}}


@pytest.mark.parametrize("text", ["size", "=3", "size=[1"])
def test_a_set_that_cannot_be_read_is_refused_in_one_line(text, refuses):
    with refuses("--set"):
        Changes.of(1.0, [text])


@pytest.mark.parametrize("scale", [0, -1, float("nan"), float("inf")])
def test_a_scale_that_is_none_is_refused(scale, refuses):
    with refuses("--scale is a factor above 0"):
        Changes.of(scale)


# ---- through a grid


@pytest.fixture
def path(tmp_path):
    notebook(tmp_path / "notebooks" / "model.ipynb", "size = '3M'\nkimg = 1.0\nseed = 0", "print(size, kimg, seed)")
    stages = "  a: {notebook: model.ipynb, over: {size: [0.2M, 0.05M]}, parameters: {kimg: 1000.0}, takes: 9h}\n"
    stages += "  b: {notebook: model.ipynb, needs: [a], over: {size: [0.2M, 0.05M]}, parameters: {seed: 1}}"
    return grid_file(tmp_path, f"name: tiny\nstages:\n{stages}")


def read(path, *given):
    return read_grid(path, changes=Changes.of(*given))


def test_a_changed_grid_has_cells_and_results_of_its_own(path):
    plain, small, other = read(path), read(path, 0.5), read(path, 0.5, ["seed=3"])
    assert len({grid.out.name for grid in (plain, small, other, read(path, 0.5, ["seed=4"]))}) == 4
    assert small.out.name == small.name == "tiny-scale0.5"
    assert not {cell.digest for cell in plain.cells} & {cell.digest for cell in small.cells if cell.stage == "a"}
    assert [cell.parameters["kimg"] for cell in small.cells if cell.stage == "a"] == [500.0, 500.0]
    assert all(cell.takes is None for cell in small.cells)  # nobody foresaw that


def test_what_is_set_on_an_axis_leaves_one_cell_of_it(path):
    grid = read(path, 1.0, ["size=0.1M"])
    assert [(cell.id, cell.needs) for cell in grid.cells] == [("a-size=0.1M", ()), ("b-size=0.1M", ("a-size=0.1M",))]


def test_what_is_made_equal_runs_once_each(path):
    assert [cell.id for cell in read(path, 1.0, ["seed=1", "kimg=2.0", "size=0.1M"]).cells] == [
        "a-size=0.1M",
        "b-size=0.1M",
    ]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("sise=0.1M", "no notebook declares 'sise'; did you mean 'size'?"),
        ("kimg=lots", "stage 'a': --set: 'kimg' must be float, not str 'lots'"),
        ("size=9M", "stage 'a': 'size' must be one of"),
    ],
)
def test_a_mistake_in_what_is_set_is_one_line(path, text, told, refuses):
    with refuses(told):
        read(path, 1.0, [text])
