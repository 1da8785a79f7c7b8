"""The page's data: plain functions of rows, and what may stand in a page whatever notebooks say."""

import gzip
import json
import re
from urllib.parse import unquote

import numpy as np
import pytest
from synthetic import comparison, frame
from tiny import executed, notebook, page_data, row, strip

from onestep_bench import report
from onestep_bench.errors import OnestepError
from onestep_bench.report import charts, headline, kept, points, recipes, samples, tables
from onestep_bench.report.executed import as_pages

NASTY = "</script><script>alert(1)</script><!--"


def lines(table):
    """Rows of a page's table, by key."""
    keys = [column["key"] for column in table["columns"]]
    return [dict(zip(keys, values, strict=True)) for values in table["rows"]]


@pytest.fixture(scope="module")
def rows():
    given = comparison(sizes=("0.05M", "0.2M"), seeds=2)
    return recipes.results(frame(given))


# ---- scores


def test_a_score_is_one_row_a_protocol_with_what_the_summary_says(rows):
    table = points.score_table(rows)
    summary = tables.summarise(rows)
    assert len(table["rows"]) == len(summary)
    assert [(place["features"], place["split"]) for place in table["places"][:2]] == [
        ("classifier", "test"),
        ("classifier", "train"),
    ]
    best = lines(table)[0]
    own = summary[summary["protocol"] == table["places"][0]["protocol"]]
    assert best["fid"] == pytest.approx(own["fid_mean"].min(), rel=1e-4)
    assert best["interval"] == pytest.approx(own.loc[own["fid_mean"].idxmin(), ["fid_low", "fid_high"]], rel=1e-3)
    assert set(table["looks"]) == set(rows["label"])
    json.dumps(table, allow_nan=False)


def test_a_smaller_budget_is_told_from_the_largest_and_kimg_stands_early(rows):
    table = points.score_table(rows)
    budgets = {
        line["kimg"]: line["last"] for line in lines(table) if line["label"] == "GDD (data)" and line["size"] == "0.2M"
    }
    assert budgets == {125: 0, 250: 0, 500: 1}
    assert next(column["rank"] for column in table["columns"] if column["key"] == "kimg") == 1


def test_swept_settings_are_columns_and_others_are_not():
    given = frame([row(recipe="a", model="a", fid=1.0), row(recipe="b", model="b", fid=2.0)])
    common = {"flow-guided-distillation.batch_size": 128, "edm.lr": 0.001}
    given.attrs["recipes"] = {
        name: common | {"flow-guided-distillation.lr": lr} for name, lr in {"a": 0.01, "b": 0.02}.items()
    }
    table = points.score_table(given)
    assert [line["set lr"] for line in lines(table)] == [0.01, 0.02]
    assert [column["title"] for column in table["columns"] if column["key"].startswith("set ")] == ["lr"]


def test_only_inception_gives_an_fid():
    assert points.score_table(frame([row()]))["places"][0]["name"] == "Fréchet distance"
    assert points.score_table(frame([row(features="inception")]))["places"][0]["name"] == "FID"


def test_what_diverged_is_nothing_and_no_number(tmp_path):
    executed(tmp_path / "a.ipynb", [row(fid="nan"), row(steps=4)])
    table = points.score_table(tables.read_rows(tmp_path))
    assert [line["fid"] for line in lines(table)] == [100, None]


# ---- headline


def lead(scores):
    """The headline's first cell, of scores by label and training run."""
    given = [row(label=a, model=f"{a}{i}", train_seed=i, fid=f) for a, own in scores.items() for i, f in enumerate(own)]
    return headline.headline(recipes.results(frame(given)))["places"][0]["cells"][0]


def test_the_headline_names_the_lowest_mean_and_whether_its_lead_is_larger_than_noise():
    cell = lead({"A": [1.0, 1.1, 1.2], "B": [2.0, 2.2, 2.1], "teacher (heun)": [0.1, 0.1, 0.1]})
    assert (cell["winner"], cell["score"], cell["verdict"], cell["level"]) == ("A", "1.10", "larger", "")
    assert cell["lead"].startswith("1.00 (0.7")
    assert cell["lead"].endswith(") before B")


def test_a_lead_within_its_interval_is_called_that():
    cell = lead({"B": [1.0, 3.0, 2.0], "A": [1.5, 2.5, 2.9]})
    assert (cell["winner"], cell["verdict"], cell["level"]) == ("B", "within", "A")


def test_single_runs_have_no_interval():
    cell = lead({"A": [1.0], "B": [2.0]})
    assert (cell["verdict"], cell["interval"], cell["runs"]) == ("unknown", "", 1)


def test_a_model_is_no_rival_of_its_own_other_weights():
    fids = {"ema": 1.0, "last": 2.0}
    given = [row(weights=name, fid=fid, train_seed=i, model=f"m{i}") for name, fid in fids.items() for i in (0, 1)]
    cell = headline.headline(recipes.results(frame(given)))["places"][0]["cells"][0]
    assert (cell["score"], cell["verdict"]) == ("1.00", "alone")


def test_the_headline_of_teachers_alone_is_theirs():
    assert lead({"teacher (heun)": [1.0, 2.0]})["winner"] == "teacher (heun)"


# ---- samples


def test_strips_go_by_their_model_and_those_of_a_search_are_left_out(tmp_path):
    rows = [row(recipe=name, model=name, saw="data", fid=1.0) for name in ("aa", "bb")]
    rows.append(row(recipe="cc", model="cc", purpose="search"))
    strips = [
        strip("SlimFlow", "0.2M", 1, recipe=name, saw=saw)
        for name, saw in (("aa", "data"), ("bb", "data"), ("cc", "both"))
    ]
    executed(tmp_path / "a.ipynb", rows, strips)
    read = tables.read_rows(tmp_path)
    named = samples.named(tables.read_strips(tmp_path), recipes.extended(read))
    assert [one["label"] for one in named] == ["SlimFlow (recipe aa)", "SlimFlow (recipe bb)"]
    assert samples.on_page(named)[0] | {"png": ""} == {
        **{"dataset": "digits", "label": "SlimFlow (recipe aa)", "size": "0.2M", "steps": 1, "sampler": "euler"},
        **{"train_seed": 0, "png": "", "nearest": None, "count": 4, "side": 8},
        **{"name": "SlimFlow (recipe aa), 0.2M, 1 step"},
    }


def test_an_older_strip_learns_its_recipe_from_the_rows_beside_it(tmp_path):
    executed(tmp_path / "a.ipynb", [row(recipe="aa", saw="data")], [strip("SlimFlow", "0.2M", 1)])
    (one,) = tables.read_strips(tmp_path)
    assert (one["recipe"], one["saw"], one["kimg"]) == ("aa", "data", 500.0)


# ---- the page


def test_names_cannot_leave_their_place(tmp_path):
    strips = [strip(NASTY, "0.2M", 1)]
    executed(tmp_path / "a.ipynb", [row(label=NASTY), row(label="KD", fid=90.0, model="m1")], strips)
    page = report.render(tmp_path).read_text()
    assert "<script>alert" not in page
    assert page_data(page)["strips"][0]["label"] == NASTY
    assert page.count("<script") == page.count("</script>") == 3  # data, Vega, ours


def test_the_page_needs_nothing_else(tmp_path):
    executed(tmp_path / "a.ipynb", [row()])
    page = report.render(tmp_path).read_text()
    scripts = page.index("<script")
    assert 'src="' not in page[:scripts]
    assert "@import" not in page[:scripts]
    assert 8e5 < len(page) < 1.2e6


def test_specifications_hold_no_data_and_name_their_rows():
    for figure in charts.figures():
        for scale in ("log", "linear"):
            named = {layer["data"]["name"] for layer in figure[scale]["layer"]}
            assert named == {"floor", "points"}
            assert "datasets" not in figure[scale]


def test_pages_may_load_nothing(tmp_path):
    """A browser holds them to it, whatever notebooks bring along."""
    executed(tmp_path / "a.ipynb", [row()])
    report.render(tmp_path)
    for page in (tmp_path / "report.html", tmp_path / "executed" / "a.html"):
        (policy,) = re.findall(r'Content-Security-Policy"\s+content="([^"]+)"', page.read_text())
        assert policy.startswith("default-src 'none'; ")
        assert "http" not in policy


@pytest.mark.parametrize("where", ["png", "nearest"])
def test_a_picture_is_a_picture_and_nothing_else(where):
    """What stands in the page's styles could end them, or make a browser fetch something."""
    one = strip("SlimFlow", "0.2M", 1)
    bad = one["png"] + '"),url(http://example.org/'
    given = {"png": bad} if where == "png" else {"nearest": {"png": bad, "index": [0]}}
    with pytest.raises(OnestepError, match="a sample strip is damaged"):
        samples.on_page([one | {"dataset": "digits"} | given])


def test_strips_that_differ_in_their_budget_alone_say_it():
    strips = [strip("KD", "0.2M", 1, dataset="digits", kimg=kimg) for kimg in (8.0, 16.0)]
    assert [one["name"] for one in samples.on_page(strips)] == ["KD, 0.2M, 1 step, 8 kimg", "KD, 0.2M, 1 step, 16 kimg"]


def test_each_part_tells_its_data_set(tmp_path):
    """By which the page finds the judge and split that its figures show."""
    given = [row(dataset=name, split=split, model=name) for name in ("digits", "mnist") for split in ("train", "test")]
    executed(tmp_path / "a.ipynb", given)
    parts = page_data(report.render(tmp_path).read_text())["parts"]
    assert [part["dataset"] for part in parts if part["pair"]] == ["digits", "mnist"]


def test_models_of_one_size_are_not_drawn_over_parameters(tmp_path):
    executed(tmp_path / "a.ipynb", [row(label=label, model=label) for label in "AB"])
    figures = page_data(report.render(tmp_path).read_text())["figures"]
    assert [figure["x"] for figure in figures] == ["nfe", "passes", "latency_ms"]
    assert not list(tmp_path.glob("fid_vs_params*"))


# ---- what a repository keeps


def few(*sizes):
    """Rows that suffice for every figure of one judge."""
    rows = comparison(sizes=sizes, train_seeds=2, seeds=1)
    return [one for one in rows if one["label"] in ("GDD", "KD") and one["features"] == "classifier"]


def links(page):
    return re.findall(r'(?:href|src)="([^"#]+)"', re.sub(r"<script.*?</script>", "", page, flags=re.DOTALL))


@pytest.mark.parametrize("lean", [False, True])
def test_every_link_of_a_page_leads_to_a_file(tmp_path, lean):
    executed(tmp_path / "notebooks" / "seed=0.ipynb", few("0.05M", "0.2M"))
    page = report.render(tmp_path / "notebooks", tmp_path, lean=lean).read_text()
    found = {unquote(link) for link in links(page)}
    assert all((tmp_path / link).is_file() for link in found)
    assert {"results.csv.gz" if lean else "results.csv", "fid_vs_params-digits-classifier-test.png"} <= found
    assert ("notebooks/seed=0.ipynb" if lean else "executed/seed=0.html") in found
    assert any(link.endswith(".svg") for link in found) != lean


def test_a_lean_report_takes_the_place_of_another_(tmp_path):
    executed(tmp_path / "notebooks" / "a.ipynb", [row()])
    found = []
    for lean in (False, True):
        report.render(tmp_path / "notebooks", tmp_path, lean=lean)
        found.append({str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()})
    assert found[0] - found[1] == {"results.csv", "executed/a.html", *(one for one in found[0] if one.endswith(".svg"))}
    assert found[1] - found[0] == {"results.csv.gz"}


def test_a_table_of_results_alone_makes_the_same_page_but_for_what_only_notebooks_know(tmp_path):
    executed(tmp_path / "a.ipynb", [row(), row(model="m1", train_seed=1, fid=90.0)], [strip("SlimFlow", "0.2M", 1)])
    whole = page_data(report.render(tmp_path, tmp_path / "one", lean=True).read_text())
    table = kept.results_in(tmp_path / "one")
    before = table.read_bytes()
    page = report.render(tmp_path / "one", lean=True).read_text()
    assert f"Rendered from {table.name}, without the executed notebooks" in page
    assert table.read_bytes() == before
    again = page_data(page)
    assert (again["scores"], again["parts"]) == (whole["scores"], whole["parts"])
    # A report that is kept without its notebooks has more of what they recorded.
    assert again["strips"] == whole["strips"]


def test_a_lean_report_keeps_a_search_that_its_notebooks_take_along(tmp_path):
    rows = [row(recipe=name, model=name, fid=fid, purpose="search") for name, fid in (("a", 3.0), ("b", 2.0))]
    recipes_of = {name: {"edm.lr": lr} for name, lr in (("a", 0.1), ("b", 0.2))}
    executed(tmp_path / "a.ipynb", [row(), *rows], recipes=recipes_of)
    parts = [
        page_data(report.render(source, tmp_path / "out", lean=True).read_text())["parts"]
        for source in (tmp_path, tmp_path / "out")
    ]
    assert parts[0] == parts[1]
    assert "lr 0.2" in json.dumps(parts[1])


# Named, since a gzip file holds the second it was made in, and two workers must call one test by the same name.
@pytest.mark.parametrize(
    "damaged",
    [b"x", gzip.compress(b"{")[:-4], gzip.compress(b"{}"), gzip.compress(b"[")],
    ids=["no gzip file", "cut off", "empty", "no JSON"],
)
def test_a_damaged_record_is_one_line(tmp_path, damaged):
    (tmp_path / "record.json.gz").write_bytes(damaged)
    with pytest.raises(OnestepError, match=r"record.json.gz (is damaged|holds scores that nobody recorded so)"):
        kept.read_record(tmp_path)


# ---- notebooks as pages


def test_a_notebook_becomes_a_page_once_and_its_page_goes_with_it(tmp_path):
    path = notebook(tmp_path / "a.ipynb", "seed = 0", "print(seed)")
    pages = as_pages([path], tmp_path / "executed")
    (page,) = pages.values()
    text = page.read_text()
    assert "<h1" in text
    assert "print" in text
    assert len(text) < 20_000
    before = page.stat().st_mtime_ns
    as_pages([path], tmp_path / "executed")
    assert page.stat().st_mtime_ns == before
    notebook(path, "seed = 1")
    as_pages([path], tmp_path / "executed")
    assert page.read_text() != text
    (tmp_path / "executed" / "mine.html").write_text("a page of somebody else")
    as_pages([], tmp_path / "executed")
    assert [file.name for file in (tmp_path / "executed").iterdir()] == ["mine.html"]


def test_outputs_cannot_run(tmp_path):
    import nbformat

    bad = (
        f'<p onclick="alert(1)">kept{NASTY}</p><img src="https://example.org/x.png"><a href="javascript:alert(1)">x</a>'
    )
    cell = nbformat.v4.new_code_cell("1", outputs=[nbformat.v4.new_output("display_data", {"text/html": bad})])
    path = tmp_path / "a.ipynb"
    nbformat.write(nbformat.v4.new_notebook(cells=[cell, nbformat.v4.new_markdown_cell(bad)]), path)
    (page,) = as_pages([path], tmp_path).values()
    text = page.read_text()
    assert text.count("<p>kept") == 2
    for word in ("<script", "onclick=", 'href="javascript', 'src="http'):
        assert word not in text


def test_a_nearest_neighbour_is_itself_where_it_is_in_the_set():
    import torch

    from onestep_bench.data.registry import Dataset
    from onestep_bench.scoring import evaluation
    from onestep_bench.scoring.nearest import images_of, nearest_training

    for channels in (1, 3):
        made = torch.from_numpy(np.random.default_rng(0).integers(0, 255, (9, channels, 8, 8), dtype=np.uint8))
        strip = made[[4, 2, 7]]
        assert torch.equal(images_of(evaluation._png_strip(strip)), strip)
        changed = strip.clone()
        changed[:, :, 0, 0] ^= 3
        images, index = nearest_training(changed, Dataset("ours", made, None, "0" * 16))
        assert index == [4, 2, 7]
        assert torch.equal(images, strip)
