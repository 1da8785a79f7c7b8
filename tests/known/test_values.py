"""Values of parameters, by name: what `plan` refuses, and what the first cell of a notebook refuses and mends."""

import json
import re
import sys
import zipfile
from pathlib import Path

import papermill
import pytest
from IPython.core.interactiveshell import InteractiveShell
from tiny import grid_file, notebook

from onestep_bench import samplers
from onestep_bench.errors import OnestepError
from onestep_bench.grid.parameters import Notebook
from onestep_bench.grid.plan import read_grid
from onestep_bench.known.values import begin, check

NOTEBOOKS = sorted((Path(__file__).parents[2] / "notebooks").glob("*.ipynb"))
PARAMETERS = """
dataset: str = "digits"  # name, or path
teacher: str = "edm"
size: str = "0.05M"
teacher_size: str = ""
steps: list[int] = [1, 2]
seeds: list[int] = [0]
samples: int = 64
kimg: float = 2.0
lr: float = 1e-3
conditional: bool = False
features: list[str] = ["auto"]
splits: list[str] = ["train", "test"]
reals: str = ""
purpose: str = "result"
snapshots: list[float] = []
folds: list[int] = []
"""
DECLARED = {"dataset": "digits", "teacher": "edm", "size": "0.05M", "steps": [1], "features": ["auto"]}


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("size", "9M", "'size' must be one of .*, 0.05M, .*, adm, not '9M'; see `onestep-bench list sizes`"),
        ("teacher_size", "0.5M", "not '0.5M'; did you mean '0.05M'?"),
        ("features", "foo", "'features' must be one of clip, .*, auto, not 'foo'; see `onestep-bench list judges`"),
        ("features", "clasifier", "did you mean 'classifier'?"),
        ("features", ["digits", "pixel"], "not 'pixel'; did you mean 'pixels'?"),
        ("features", [], "'features' must be a list of one or more judges, not \\[\\]"),
        ("features", ["pixels", "pixels"], "a list of different judges, .*; 'pixels' stands there twice"),
        ("splits", ["train", "tset"], "'splits' must be one of train, test, all, not 'tset'; did you mean 'test'?"),
        ("splits", [], "one or more splits"),
        ("reals", "teachers", "'reals' must be one of data, teacher, not 'teachers'; did you mean 'teacher'?"),
        ("purpose", "choice", "'purpose' must be one of result, search, not 'choice'"),
        ("snapshots", [1.0, -4.0], "'snapshots' must be positive, not -4.0"),
        ("snapshots", [1.0, 1.0], "different budgets, .*; 1.0 stands there twice"),
        ("folds", [4, 0], "'folds' must be a whole number of 1 or more, not 0"),
        ("steps", [], "'steps' must be a list of one or more numbers of steps, not \\[\\]"),
        ("steps", [1, 0], "'steps' must be a whole number of 1 or more, not 0"),
        ("steps", [4, 4], "a list of different numbers of steps, .*; 4 stands there twice"),
        ("seeds", [], "one or more seeds"),
        ("seeds", [0, 0], "different seeds, .*; 0 stands there twice"),
        ("teacher", "edn", "'teacher' must be a method without a teacher .*, not 'edn'; did you mean 'edm'?"),
        ("teacher", "gdd", "gdd itself needs a teacher or pairs"),
        ("teacher", "models/none", "or the path or zoo name of a model, not 'models/none'"),
        ("dataset", "mnst", "'dataset' must be one of .*, not 'mnst'; did you mean 'mnist'?"),
        ("dataset", "data/none.zip", "path of a zip, tar or folder that is there, not 'data/none.zip'; correct the"),
        ("samples", 1, "'samples' must be 2 or more, .*, not 1"),
        ("method", "nothing", "'method' must be one of .*; see `onestep-bench list methods`"),
        ("methods", ["meanflow", "meanflo"], "'methods' must be one of .*, not 'meanflo'; did you mean 'meanflow'?"),
        ("methods", [], "'methods' must be a list of one or more methods, not \\[\\]"),
        ("sampler", "heum", "did you mean 'heun'?"),
        ("samplers", ["euler", "heum"], "not 'heum'; did you mean 'heun'?"),
        ("variants", ["gdd", "gdd-x"], "not 'gdd-x'; did you mean"),
        ("other_maps", ["uneven"], "did you mean 'even'?"),
        ("distance", "l2+lpisp", "not 'lpisp'; did you mean 'lpips'?"),
        ("critic", "teacher+vgg", "'critic' must be 'teacher', 'timm:NAME', .*, not 'vgg'"),
        ("start", "scratch", "'start' must be one of teacher, random, not 'scratch'"),
        ("reflow_kimg", -1.0, "'reflow_kimg' must be positive, not -1.0"),
        ("budgets", [0.0], "'budgets' must be positive, not 0.0"),
        ("lr", 0.0, "'lr' must be positive, not 0.0"),
        ("lr", float("nan"), "'lr' must be positive, not nan"),
        ("batch_size", 0, "'batch_size' must be a whole number of 1 or more, not 0"),
        ("pairs", 0, "'pairs' must be a whole number of 1 or more, not 0"),
        ("critic_channels", 12, "'critic_channels' must be a multiple of 8, not 12"),
    ],
)
def test_a_value_that_cannot_work_is_refused_in_one_line(name, value, message, tmp_path):
    with pytest.raises(OnestepError, match=message) as error:
        check({name: value}, DECLARED | {name: value}, DECLARED, tmp_path, "here: ")
    assert "\n" not in str(error.value)
    assert str(error.value).startswith("here: ")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("teacher", "edm-cifar10-32x32-cond-vp"),
        ("teacher", "https://example.org/model.pkl"),
        ("teacher", "model-0123456789abcdef"),
        ("distance", "lpips+l2"),
        ("critic", "teacher+timm:resnet18"),
        ("other_maps", []),
        ("features", "auto"),
        ("features", ["auto", "random-features"]),
        ("splits", ["all"]),
        ("folds", [2, 2, 1]),
        ("size", 64),  # of another type: not our size
        ("widgets", []),  # a name of the user's
        ("steps", 1),
    ],
)
def test_what_works_and_what_we_do_not_know_is_let_through(name, value, tmp_path):
    check({name: value}, DECLARED | {name: value}, {}, tmp_path)


def test_a_default_says_what_a_notebook_means_by_a_name(tmp_path):
    check({"size": "large"}, {"size": "large"}, {"size": "small"}, tmp_path)  # not one of ours
    check({"size": ""}, {"size": ""}, {"size": ""}, tmp_path)  # by default another's
    check({"lr": 0.0}, {"lr": 0.0, "method": "kd"}, {"lr": 1e-3}, tmp_path)  # the method's own
    check({"lr": 0.0}, {"lr": 0.0, "methods": ["kd"]}, {"lr": 1e-3}, tmp_path)  # of each its own
    with pytest.raises(OnestepError, match="not ''"):
        check({"size": ""}, {"size": ""}, {"size": "3M"}, tmp_path)


def test_paths_of_data_and_teachers_start_at_the_notebook_or_the_data_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("ONESTEP_DATA", str(tmp_path / "data"))
    for folder in (tmp_path / "data" / "cats", tmp_path / "here" / "dogs"):
        folder.mkdir(parents=True)
    for given in ({"dataset": "cats"}, {"dataset": "dogs"}, {"dataset": str(tmp_path)}, {"teacher": "dogs"}):
        check(given, given, {}, tmp_path / "here")
    with pytest.raises(OnestepError, match="not 'dogs'"):
        check({"dataset": "dogs"}, {"dataset": "dogs"}, {}, tmp_path)


@pytest.mark.parametrize("what", [{"conditional": True}, {"features": ["classifier"]}])
def test_data_that_certainly_have_no_labels_are_not_asked_for_them(tmp_path, what):
    def images(name, *files):
        with zipfile.ZipFile(tmp_path / name, "w") as archive:
            for file in files:
                archive.writestr(file, "")

    images("plain.zip", "a.png")
    images("edm.zip", "00/a.png", "dataset.json")
    (tmp_path / "plain").mkdir()
    (tmp_path / "classes" / "cat").mkdir(parents=True)
    for name in ("plain.zip", "plain"):
        with pytest.raises(OnestepError, match=f"needs labels, and {name} has none; give it a dataset.json"):
            check(what, {"dataset": name} | what, {}, tmp_path)
    for name in ("edm.zip", "classes", "mnist"):
        check(what, {"dataset": name} | what, {}, tmp_path)


def test_the_digits_judge_is_refused_for_images_of_another_size(tmp_path):
    for features in ("digits", ["pixels", "digits"]):
        with pytest.raises(OnestepError, match=r"'features' must be auto .*: mnist has 28x28, and digits 8x8"):
            check({}, {"dataset": "mnist", "features": features}, {}, tmp_path)
        check({}, {"dataset": "digits", "features": features}, {}, tmp_path)


def test_what_a_plug_in_registered_is_not_refused(tmp_path, monkeypatch):
    monkeypatch.setitem(samplers.SAMPLERS, "midway", samplers.euler)
    check({"sampler": "midway"}, {"sampler": "midway"}, {"sampler": "euler"}, tmp_path)


# ---- plan


@pytest.mark.parametrize(
    "given",
    [
        {"size": "9M"},
        {"features": ["foo"]},
        {"steps": []},
        {"teacher": "edn"},
        {"dataset": "mnst"},
        {"samples": 1},
        {"splits": ["tset"]},
        {"reals": "teachers"},
        {"purpose": "choice"},
        {"folds": [0]},
    ],
    ids=str,
)
@pytest.mark.parametrize("where", ["parameters: {}", "over: {}", "defaults: {}"])
def test_plan_refuses_the_value_and_says_where(tmp_path, given, where):
    notebook(tmp_path / "notebooks" / "model.ipynb", PARAMETERS, "print(size)")
    (name, value), kind = *given.items(), where.split(":")[0]
    text = json.dumps({name: [value] if kind == "over" else value})
    stage = f"  a: {{notebook: model.ipynb{'' if kind == 'defaults' else f', {kind}: {text}'}}}"
    path = grid_file(tmp_path, f"name: tiny\n{f'defaults: {text}' if kind == 'defaults' else ''}\nstages:\n{stage}")
    with pytest.raises(OnestepError, match=f"tiny.yaml: stage 'a': '{name}' must be ") as error:
        read_grid(path)
    assert "\n" not in str(error.value)


# ---- the first cell


@pytest.fixture
def cells(monkeypatch):
    """Function that runs cells in a shell of IPython; returns its names, and raises what the last cell raised."""
    # The shell puts a module of its own in the place of the main one.
    monkeypatch.setitem(sys.modules, "__main__", sys.modules["__main__"])
    shell = InteractiveShell.instance()
    shell.reset()

    def run(*sources):
        for source in sources:
            result = shell.run_cell(source, store_history=True)
        if result.error_in_exec:
            raise result.error_in_exec
        return shell.user_ns

    yield run
    InteractiveShell.clear_instance()


BEGIN = "from onestep_bench.known import begin\n\nbegin()"


def test_one_value_for_a_list_becomes_a_list_and_an_int_serves_as_a_float(cells):
    names = cells(PARAMETERS, "# Parameters\nsteps = 4\nseeds = [3]\nkimg = 5\n", BEGIN)
    assert (names["steps"], names["seeds"]) == ([4], [3])
    assert isinstance(names["kimg"], float)
    assert cells(PARAMETERS.replace("[1, 2]", "1"), BEGIN)["steps"] == [1]  # edited in JupyterLab


@pytest.mark.parametrize(
    ("injected", "message"),
    [
        ("step = 4", "this notebook has no parameter 'step'; did you mean 'steps'?"),
        ("dataset = 'mnist'\nsise = '3M'", "no parameter 'sise'; did you mean 'size'?"),
        ("size = '9M'", "'size' must be one of"),
        ("teacher = 'edn'", "did you mean 'edm'?"),
        ("dataset = 'mnist'\nfeatures = 'digits'", "'features' must be auto"),
        ("splits = 'tset'", "'splits' must be one of train, test, all, not 'tset'"),
        ("reals = 'teachers'", "did you mean 'teacher'?"),
        ("purpose = ''", "'purpose' must be one of result, search, not ''"),
        ("samples = 'many'", "'samples' must be int, not str 'many'"),
        ("steps = '1,2'", r"'steps' must be a list of int, not str '1,2'; -y 'steps: \[...\]' passes a list"),
        ("features = 5", r"'features' must be a list of str, not int 5; -y 'features: \[...\]' passes a list"),
        ("purpose = 5", "'purpose' must be str, not int 5; -r purpose ... passes text"),
        ("conditional = 'true'", "'conditional' must be bool, not str 'true'"),
    ],
)
def test_a_mistake_stops_in_the_first_cell(cells, injected, message):
    with pytest.raises(OnestepError, match=message) as error:
        cells(PARAMETERS, f"# Parameters\n{injected}\n", BEGIN)
    assert "\n" not in str(error.value)


def test_an_edited_default_is_checked_too(cells):
    with pytest.raises(OnestepError, match="not '9M'"):
        cells(PARAMETERS.replace("0.05M", "9M"), BEGIN)
    assert cells(PARAMETERS, BEGIN)["teacher_size"] == ""  # empty by default, and so it may stay


def test_cells_run_in_any_order_do_no_harm(cells):
    cells(BEGIN)
    assert cells("size = 5; other = print", "steps = [", BEGIN)["size"] == 5
    names = cells(PARAMETERS, "for size in (1, 2):\n    pass", "size = 'x'.upper()", "size = '3M'", BEGIN, BEGIN)
    assert names["size"] == "3M"


def test_small_budgets_are_called_a_smoke_run(cells, capsys):
    cells(PARAMETERS, "# Parameters\nseeds = [3]\n", BEGIN)
    assert "smoke run" in capsys.readouterr().out
    for other in ("# Parameters\nkimg = 50\n", "kimg: float = 50.0"):
        cells(PARAMETERS, other, BEGIN)
        assert capsys.readouterr().out == ""


def test_outside_a_kernel_nothing_happens():
    begin()


def test_papermill_by_hand_stops_in_the_first_cell(tmp_path):
    path = notebook(tmp_path / "model.ipynb", PARAMETERS, BEGIN, "print(steps)")
    told = papermill.execute_notebook(str(path), str(tmp_path / "out.ipynb"), {"steps": 4}, progress_bar=False)
    assert told.cells[-1].outputs[0].text == "[4]\n"
    with pytest.raises(papermill.PapermillExecutionError, match=r"no parameter 'kimgs'; did you mean 'kimg'?"):
        papermill.execute_notebook(str(path), str(tmp_path / "out.ipynb"), {"kimgs": 4}, progress_bar=False)


# ---- our notebooks


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_our_notebooks_begin_with_the_check_and_pass_it(path):
    read = Notebook.read(path)
    check(
        read.declared, read.declared, {name: value for name, value in read.declared.items() if not value}, path.parent
    )
    first = 1 + ("google.colab" in read.code[0])  # what installs the package there stands before the parameters
    assert re.search(r"^begin\(\)", read.code[first], re.M)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_every_parameter_has_a_type_and_a_comment(path):
    told = papermill.inspect_notebook(str(path))
    assert told.keys() == Notebook.read(path).declared.keys()
    for name, parameter in told.items():
        assert parameter["inferred_type_name"] != "None", name
        assert len(parameter["help"]) > 5, name
