import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tiny import executed, grid_file, notebook

from onestep_bench import store
from onestep_bench.errors import OnestepError
from onestep_bench.grid.cells import STAMP, Cell, Status, executed_path, failed_path, status_of
from onestep_bench.grid.plan import read_grid
from onestep_bench.known.catalogue import known
from onestep_bench.store.files import data_digest, data_state, write_json

PARAMETERS = """
# papermill injects after this cell
dataset = "digits"
size: str = "0.2M"
kimg = 300
lr = 1e-3
ema = True
steps = [1, 2]
seed = 0
note = None
"""

STAGE = "stages: {t: {notebook: teacher.ipynb}}"


@pytest.fixture
def house(tmp_path: Path) -> Path:
    notebook(tmp_path / "notebooks" / "teacher.ipynb", PARAMETERS, "print(kimg)")
    notebook(tmp_path / "notebooks" / "slimflow.ipynb", 'dataset = "digits"\nsize = "0.2M"\nseed = 0', "print(size)")
    return tmp_path


def plan(house: Path, stages: str, head: str = "name: tiny"):
    return read_grid(grid_file(house, f"{head}\nstages:\n{stages}"))


def one(house: Path, stage: str) -> Cell:
    return plan(house, f"  teacher: {stage}").cells[0]


def test_names_of_one_axis_move_together(house):
    grid = plan(
        house,
        "  teacher: {notebook: teacher.ipynb, over: {seed: [1, 2]}}\n"
        "  student: {notebook: teacher.ipynb, needs: [teacher], over: {seed+kimg: [1, 2], size: [0.05M]}}",
    )
    students = [cell for cell in grid.cells if cell.stage == "student"]
    assert [(cell.parameters["seed"], cell.parameters["kimg"]) for cell in students] == [(1, 1), (2, 2)]
    assert [cell.needs for cell in students] == [("teacher-seed=1",), ("teacher-seed=2",)]


def test_one_value_for_a_list_is_a_list_of_it(house):
    assert one(house, "{notebook: teacher.ipynb, parameters: {steps: 4}}").parameters["steps"] == [4]
    assert one(house, "{notebook: teacher.ipynb, over: {steps: [4]}}").parameters["steps"] == [4]


def test_cells_are_the_product_of_the_axes_with_readable_ids(house):
    grid = plan(house, "  teacher: {notebook: teacher.ipynb, over: {size: [0.05M, 0.2M], seed: [0, 1]}}")
    assert [cell.id for cell in grid.cells] == [
        "teacher-size=0.05M-seed=0",
        "teacher-size=0.05M-seed=1",
        "teacher-size=0.2M-seed=0",
        "teacher-size=0.2M-seed=1",
    ]
    assert grid.cells[1].parameters == {"size": "0.05M", "seed": 1}
    assert grid.cells[0].notebook == house / "notebooks" / "teacher.ipynb"
    assert grid.out == house / "reports" / "tiny"


def test_ids_are_safe_in_a_file_system(house):
    cell = one(house, "{notebook: teacher.ipynb, over: {note: ['../a b'], steps: [[1, 2]], lr: [1.0e-4], ema: [true]}}")
    assert cell.id == "teacher-note=..%2Fa%20b-steps=1,2-lr=0.0001-ema=true"


def test_defaults_reach_only_the_notebooks_that_declare_them(house):
    stages = "  a: {notebook: teacher.ipynb, parameters: {kimg: 5}}\n  b: {notebook: slimflow.ipynb}"
    grid = plan(house, stages, "name: tiny\ndataset: cifar10\ndefaults: {kimg: 9, size: 0.8M}")
    assert grid.cells[0].parameters == {"kimg": 5, "size": "0.8M", "dataset": "cifar10"}
    assert grid.cells[1].parameters == {"size": "0.8M", "dataset": "cifar10"}


def test_needs_join_on_the_axes_both_stages_have(house):
    grid = plan(
        house,
        "  student: {notebook: slimflow.ipynb, needs: [teacher], over: {seed: [0, 1], size: [0.05M, 0.2M]}}\n"
        "  teacher: {notebook: teacher.ipynb, over: {seed: [0, 1], lr: [1.0, 2.0]}}",
    )
    needs = {cell.id: cell.needs for cell in grid.cells}
    assert [cell.stage for cell in grid.cells] == ["teacher"] * 4 + ["student"] * 4  # needed first, as a run wants it
    assert needs["student-seed=1-size=0.05M"] == ("teacher-seed=1-lr=1.0", "teacher-seed=1-lr=2.0")
    assert needs["teacher-seed=0-lr=1.0"] == ()


def test_an_int_serves_as_a_float(house):
    value = one(house, "{notebook: teacher.ipynb, parameters: {lr: 1}}").parameters["lr"]
    assert value == 1.0
    assert isinstance(value, float)


@pytest.mark.parametrize(
    ("stage", "message"),
    [
        ("{notebook: teacher.ipynb, parameters: {kimgs: 5}}", "no parameter 'kimgs'; did you mean 'kimg'?"),
        ("{notebook: teacher.ipynb, over: {sed: [1]}}", "no parameter 'sed'; did you mean 'seed'?"),
        ("{notebook: teacher.ipynb, parameters: {kimg: lots}}", "'kimg' must be int, not str 'lots'"),
        ("{notebook: teacher.ipynb, parameters: {kimg: true}}", "'kimg' must be int, not bool True"),
        ("{notebook: teacher.ipynb, parameters: {kimg: 1.5}}", "'kimg' must be int, not float 1.5"),
        ("{notebook: teacher.ipynb, parameters: {lr: 1e-4}}", "not str '1e-4'; YAML wants a point: 1.0e-4"),
        ("{notebook: teacher.ipynb, parameters: {size: no}}", "'size' must be str, not bool False; put the word in"),
        ("{notebook: teacher.ipynb, parameters: {steps: x}}", "'steps' must be a list of int, not str 'x'"),
        ("{notebook: teacher.ipynb, parameters: {steps: [1, x]}}", "'steps' must be a list of int, not list"),
        ("{notebook: teacher.ipynb, parameters: {note: 2020-01-01}}", "YAML reads .* as date; put it in quotes"),
        ("{notebook: teacher.ipynb, over: {seed: []}}", "over: 'seed' must be a list of one or more values"),
        ("{notebook: teacher.ipynb, over: {seed: 3}}", "over: 'seed' must be a list .* not int 3"),
        ("{notebook: teacher.ipynb, over: {seed: [1], seed+size: [2]}}", "'seed' stands in two axes"),
        ("{notebook: teacher.ipynb, over: {seed+sed: [1]}}", "no parameter 'sed'"),
        ("{notebook: teacher.ipynb, over: {seed: [1]}, parameters: {seed: 1}}", "in both `parameters` and `over`"),
        ("{notebook: teacher.ipynb, over: {seed: [1, 1]}}", "cells teacher-seed=1 and teacher-seed=1 are the same"),
        ("{notebook: teacher.ipynb, over: {note: [1, '1']}}", "cells teacher-note=1 and teacher-note=1 are the same"),
        (f"{{notebook: teacher.ipynb, over: {{note: [{'a' * 221}]}}}}", "has 234 characters"),
        ("{notebook: techer.ipynb}", "no notebook 'techer.ipynb' in .*; did you mean 'teacher.ipynb'?"),
        ("{over: {seed: [1]}}", "notebook must be text, not empty"),
        ("{notebook: teacher.ipynb, need: [x]}", "unknown key 'need'; did you mean 'needs'?"),
        ("{notebook: teacher.ipynb, needs: [techer]}", "needs unknown stage 'techer'; did you mean 'teacher'?"),
        ("{notebook: teacher.ipynb, needs: teacher}", "needs must be a list of stage names, not str 'teacher'"),
        ("{notebook: teacher.ipynb, gpus: 0}", "gpus must be a whole number of 1 or more, not int 0"),
        ("{notebook: teacher.ipynb, gpus: true}", "gpus must be a whole number of 1 or more, not bool True"),
        ("{notebook: teacher.ipynb, gpu: 2}", "unknown key 'gpu'; did you mean 'gpus'?"),
        ("{notebook: teacher.ipynb, limit: soon}", "limit must be seconds, or a time such as .* not str 'soon'"),
        ("{notebook: teacher.ipynb, limit: 0}", "limit must be seconds, .* not int 0"),
        ("{notebook: teacher.ipynb, memory: 8G}", "memory must be bytes, or a size such as .* not str '8G'"),
        ("", "stage 'teacher' must be a mapping"),
    ],
)
def test_a_mistake_in_a_stage_is_one_line_that_names_file_and_stage(house, stage, message):
    with pytest.raises(OnestepError, match=message) as error:
        one(house, stage)
    assert "\n" not in str(error.value)
    assert re.search(r"tiny.yaml: stage 'teacher'", str(error.value))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name: tiny\nstages: {}", "stages is empty"),
        ("name: tiny", "stages must be a mapping"),
        ("- a\n- b", "the file must be a mapping"),
        ("name: a/b\nstages: {t: {notebook: teacher.ipynb}}", "name must be letters, digits, .* not str 'a/b'"),
        ("stages: {t: {notebook: teacher.ipynb}}", "name must be .* not empty"),
        (f"name: tiny\nout: [a]\n{STAGE}", "tiny.yaml: out must be text, not list"),
        (f"name: tiny\nnotebooks:\n{STAGE}", "tiny.yaml: notebooks must be text, not empty"),
        (f"name: tiny\nnotebooks: nowhere\n{STAGE}", "no notebooks folder at .*params/nowhere; name another"),
        ("name: tiny\nstage: {}", "unknown key 'stage'; did you mean 'stages'?"),
        ("name: tiny\ngpus: 2\nstages: {t: {notebook: teacher.ipynb}}", "unknown key 'gpus'"),
        ("name: tiny\nlimit: []\nstages: {t: {notebook: teacher.ipynb}}", "tiny.yaml: limit must be seconds"),
        ("name: tiny\nname: tiny\nstages: {}", "tiny.yaml:2: duplicate key 'name'"),
        ("name: tiny\nstages:\n  t: {a: 1, a: 2}", "tiny.yaml:3: duplicate key 'a'"),
        ("name: tiny\nstages:\n  t: [\n", "tiny.yaml:4: "),
        (
            "name: tiny\ndefaults: {kimgs: 1}\nstages: {t: {notebook: teacher.ipynb}}",
            "no notebook declares 'kimgs'; did",
        ),
        (
            "name: tiny\ndefaults: {kimg: x}\nstages: {t: {notebook: teacher.ipynb}}",
            "stage 't': defaults: 'kimg' must be",
        ),
        ("name: t\ndataset: a\ndefaults: {dataset: b}\nstages: {t: {notebook: teacher.ipynb}}", "differ; keep one"),
        ("name: tiny\nstages: {../t: {notebook: teacher.ipynb}}", "stage name '../t' must be letters"),
        (
            "name: tiny\nstages:\n  a: {notebook: teacher.ipynb, needs: [b]}\n"
            "  b: {notebook: teacher.ipynb, needs: [c]}\n  c: {notebook: teacher.ipynb, needs: [a]}",
            "in a circle: (a needs b needs c needs a|b needs c needs a needs b|c needs a needs b needs c)",
        ),
        ("name: tiny\nstages: {a: {notebook: teacher.ipynb, needs: [a]}}", "in a circle: a needs a"),
        (
            "name: tiny\nstages:\n  a: {notebook: teacher.ipynb, over: {seed: [0]}}\n"
            "  b: {notebook: slimflow.ipynb, needs: [a], over: {seed: [0, 7]}}",
            "stage 'b': needs stage 'a', which has no cell with seed=7",
        ),
        (
            "name: tiny\nstages: {a: {notebook: teacher.ipynb}, b: {notebook: teacher.ipynb, parameters: {kimg: 300}}}",
            "cells a and b are the same run of teacher.ipynb",
        ),
    ],
)
def test_a_mistake_in_a_grid_is_one_line(house, text, message):
    with pytest.raises(OnestepError, match=message) as error:
        read_grid(grid_file(house, text))
    assert "\n" not in str(error.value)


def test_missing_files_are_named(house):
    grid_file(house, "name: tiny")
    with pytest.raises(OnestepError, match=r"tinny.yaml does not exist; did you mean 'tiny.yaml'"):
        read_grid(house / "params" / "tinny.yaml")
    path = grid_file(house, "name: tiny\nstages: {t: {notebook: teacher.ipynb}}")
    with pytest.raises(OnestepError, match=r"no notebooks folder at .*nowhere; name another with --notebooks"):
        read_grid(path, notebooks=house / "nowhere")


def kept_elsewhere(tmp_path, head="") -> Path:
    """A grid in a folder of its own, with no notebooks near."""
    path = tmp_path / "home" / "grids" / "x.yaml"
    path.parent.mkdir(parents=True)
    path.write_text(f"name: x\n{head}\n{STAGE}")
    return path


def test_a_grid_kept_anywhere_works_in_the_working_folder(house, tmp_path_factory, monkeypatch):
    path = kept_elsewhere(tmp_path_factory.mktemp("other"))
    monkeypatch.chdir(house)
    grid = read_grid(path)
    assert grid.cells[0].notebook == house / "notebooks" / "teacher.ipynb"
    assert grid.out == house / "reports" / "x"
    # Notebooks of something else, beside the folder of grids.
    notebook(path.parent.parent / "notebooks" / "taxes.ipynb", "", "print(1)")
    assert read_grid(path).out == house / "reports" / "x"
    # A grid in a house stays there, from wherever it is run.
    (path.parent / "notebooks").mkdir()
    monkeypatch.chdir(path.parent)
    grid = read_grid(grid_file(house, f"name: tiny\n{STAGE}"))
    assert (grid.out, grid.cells[0].notebook.parent) == (house / "reports" / "tiny", house / "notebooks")


def test_a_grid_says_where_its_notebooks_are_and_its_results_go(house, tmp_path_factory, monkeypatch):
    work = tmp_path_factory.mktemp("work")
    monkeypatch.chdir(work)
    grid = read_grid(grid_file(house, f"name: tiny\nnotebooks: ../notebooks\nout: ../results/one\n{STAGE}"))
    assert grid.cells[0].notebook == house / "notebooks" / "teacher.ipynb"
    assert grid.out == house / "results" / "one"
    # Named notebooks may be anybody's: without `out`, results land where one works.
    path = grid_file(house, f"name: tiny\nnotebooks: {house / 'notebooks'}\n{STAGE}")
    assert read_grid(path).out == work / "reports" / "tiny"
    path = grid_file(house, f"name: tiny\nnotebooks: nowhere\nout: there\n{STAGE}")
    grid = read_grid(path, notebooks=house / "notebooks", out="here")
    assert (grid.out, grid.cells[0].notebook.parent) == (work / "here", house / "notebooks")


def test_no_notebooks_anywhere_is_one_line_that_says_where_they_were_looked_for(tmp_path, monkeypatch, refuses):
    path = kept_elsewhere(tmp_path)
    monkeypatch.chdir(tmp_path)
    looked = f"no {tmp_path / 'home' / 'notebooks'} nor {tmp_path / 'notebooks'}"
    with refuses(f"{path}: ", looked, "--notebooks", "onestep-bench start"):
        read_grid(path)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("a = [i for i in range(3)]", "line 1: the default of 'a' is not a literal"),
        ("a = (1, 2)", "YAML cannot write the tuple in 'a'"),
        ("a = 1\na += 1", "line 2: only `name = literal` may stand here, not `a \\+= 1`"),
        ("import os", "line 1: only `name = literal`"),
        ("a, b = 1, 2", "line 1: only `name = literal`"),
        ("%matplotlib inline", "parameters cell, line 1: "),
    ],
)
def test_a_parameters_cell_holds_literals_only(house, source, message):
    notebook(house / "notebooks" / "odd.ipynb", source)
    with pytest.raises(OnestepError, match=f"odd.ipynb: .*{message}"):
        one(house, "{notebook: odd.ipynb}")


def test_a_notebook_without_parameters_takes_none(house):
    notebook(house / "notebooks" / "tour.ipynb", "", "print(1)")
    assert one(house, "{notebook: tour.ipynb}").parameters == {}
    with pytest.raises(OnestepError, match=r"tour.ipynb declares no parameter 'a'$"):
        one(house, "{notebook: tour.ipynb, parameters: {a: 1}}")


def test_a_file_that_is_no_notebook_is_named(house):
    (house / "notebooks" / "broken.ipynb").write_text("{")
    with pytest.raises(OnestepError, match=r"broken.ipynb is not a notebook"):
        one(house, "{notebook: broken.ipynb}")


def test_the_digest_follows_code_and_parameters_but_not_prose_or_outputs(house):
    path = house / "notebooks" / "slimflow.ipynb"
    digest = one(house, "{notebook: slimflow.ipynb}").digest
    assert one(house, "{notebook: slimflow.ipynb, parameters: {size: 0.2M}}").digest == digest  # the default, spelt out
    assert one(house, "{notebook: slimflow.ipynb, parameters: {size: 0.8M}}").digest != digest
    path.write_text(path.read_text().replace("# slimflow", "# SlimFlow, explained"))
    assert one(house, "{notebook: slimflow.ipynb}").digest == digest
    for old, new in (("print(size)", "# why\\nprint( size )"), ("seed = 0", "seed = 1  # not used")):
        path.write_text(path.read_text().replace(old, new))
        assert one(house, "{notebook: slimflow.ipynb}").digest == digest
    assert one(house, "{notebook: slimflow.ipynb, parameters: {seed: 5}}").digest == digest
    assert one(house, "{notebook: slimflow.ipynb, over: {seed: [0]}}").digest != digest  # an axis says it matters
    path.write_text(path.read_text().replace("print( size )", "print(size, seed)"))
    assert one(house, "{notebook: slimflow.ipynb}").digest != digest


def test_a_cell_of_magic_counts_as_it_stands(house):
    path = house / "notebooks" / "slimflow.ipynb"
    digests = []
    for code in ("%matplotlib inline", "%matplotlib inline\nprint(seed)"):
        notebook(path, "size = '0.2M'\nseed = 0", code)
        digests.append(one(house, "{notebook: slimflow.ipynb}").digest)
        digests.append(one(house, "{notebook: slimflow.ipynb, parameters: {seed: 1}}").digest)
    assert len(set(digests)) == 3


def test_a_cell_whose_data_or_artifacts_moved_on_is_outdated(house, store_folder):
    cell, folder = one(house, "{notebook: teacher.ipynb}"), house / "reports"
    zipped = house / "images.zip"
    zipped.write_text("images")

    def make(folder):
        write_json(folder / "text", "made")
        return {"kimg": 0, "seconds": 0, "device": "none"}

    artifact = store.memo("model", {"a": 1}, [], make, source=["networks.sizes:size_config"])
    data = {"data": str(zipped), **data_state(zipped), "sha256": data_digest(zipped)}
    used = [data, {"artifact": str(artifact.folder), "content": artifact.content}]
    put(executed_path(cell, folder), {"digest": cell.digest, "seconds": 2.5, "why": "", "used": used})
    assert status_of(cell, folder).state == "done"
    put(executed_path(cell, folder), {"digest": cell.digest[::-1], "seconds": 2.5, "why": "", "used": used})
    assert status_of(cell, folder) == Status(cell, "outdated", 2.5, "the code of teacher.ipynb changed since")
    put(executed_path(cell, folder), {"digest": cell.digest, "seconds": 2.5, "why": "", "used": used})
    os.utime(zipped, (1, 1))
    assert status_of(cell, folder).state == "done"  # the content counts
    zipped.write_text("imagos")
    assert status_of(cell, folder) == Status(cell, "outdated", 2.5, f"its data {zipped} have other content")
    zipped.unlink()
    assert status_of(cell, folder) == Status(cell, "outdated", 2.5, f"its data {zipped} are gone")
    zipped.write_text("images")
    record = artifact.folder / store.META
    kept = record.read_text()
    record.write_text(re.sub(r'"networks.sizes:size_config": "\w+"', '"networks.sizes:size_config": "0"', kept))
    assert f"{artifact.key}: networks.sizes:size_config changed since" in status_of(cell, folder).why
    record.write_text(kept.replace(artifact.meta["files"]["text"], "0"))
    assert status_of(cell, folder).why == f"{artifact.key} was made again since"
    record.unlink()
    assert status_of(cell, folder).state == "done"  # where the store was cleared, the notebook is the record


def test_how_a_cell_runs_is_no_part_of_its_digest(house):
    stages = "  a: {notebook: teacher.ipynb, gpus: 2, limit: 1.5h}\n  b: {notebook: slimflow.ipynb, memory: 1MB}"
    a, b = plan(house, stages, "name: tiny\nlimit: 90\nmemory: 8GB").cells
    assert (a.gpus, a.limit, a.memory) == (2, 5400, 8_000_000_000)
    assert (b.gpus, b.limit, b.memory) == (1, 90, 1_000_000)
    plain = one(house, "{notebook: teacher.ipynb}")
    assert (plain.gpus, plain.limit, plain.memory) == (1, None, None)
    assert plain.digest == a.digest


def test_status_counts_only_a_notebook_of_the_same_digest(house):
    cell, folder = one(house, "{notebook: teacher.ipynb}"), house / "reports"
    assert status_of(cell, folder) == Status(cell, "to do")
    stamp = {"digest": cell.digest, "seconds": 2.5, "why": ""}
    put(executed_path(cell, folder), {**stamp, "digest": "older"})
    assert status_of(cell, folder) == Status(cell, "outdated", 2.5, "the code of teacher.ipynb changed since")
    put(executed_path(cell, folder), {**stamp, "digest": "older", "parameters": {"seed": 7}})
    assert status_of(cell, folder) == Status(cell, "outdated", 2.5, "its parameters changed since")
    put(failed_path(cell, folder), {**stamp, "why": "ValueError: x"})
    assert status_of(cell, folder) == Status(cell, "failed", 2.5, "ValueError: x")
    put(executed_path(cell, folder), stamp)
    assert status_of(cell, folder) == Status(cell, "done", 2.5)


def put(path: Path, stamp: dict) -> None:
    executed(path, [], stamp={STAMP: stamp})


def test_a_thousand_cells_are_planned_in_a_second(house):
    ten = list(range(1, 11))
    axes = f"seed: {ten}, kimg: {ten}"
    sizes = list(known("sizes"))[:10]
    path = grid_file(
        house,
        f"name: tiny\nstages:\n  teacher: {{notebook: teacher.ipynb, over: {{size: {sizes}, {axes}}}}}\n"
        f"  student: {{notebook: slimflow.ipynb, needs: [teacher], over: {{size: {sizes}, seed: {ten}}}}}",
    )
    start = time.process_time()  # a busy machine is not the plan's fault
    grid = read_grid(path)
    statuses = [status_of(cell, grid.executed) for cell in grid.cells]
    assert time.process_time() - start < 1
    assert len(statuses) == 1100
    assert len(grid.cells[-1].needs) == 10


def test_planning_imports_nothing_heavy():
    code = "import sys, onestep_bench.grid, onestep_bench.cli; print(*sys.modules)"
    modules = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"torch", "pandas", "papermill", "numpy", "matplotlib"} & set(modules)
