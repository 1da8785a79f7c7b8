"""Options of a training, as a notebook is given them: unknown names, wrong types and impossible values stop a plan."""

import dataclasses
import json
import subprocess
import sys
from dataclasses import dataclass

import pytest
from tiny import grid_file, notebook

from onestep_bench import methods
from onestep_bench.errors import OnestepError
from onestep_bench.known.types import is_of
from onestep_bench.known.values import check

KD = {"method": "kd"}
SEVERAL = {"methods": ["meanflow", "shortcut"]}


def checked(name, options, **others):
    check({name: options}, others | {name: options}, {name: {}}, None)


@pytest.mark.parametrize(
    ("name", "options", "others", "message"),
    [
        (
            "options",
            {"batchsize": 3},
            KD,
            "'options' must be a dict of options of kd, not 'batchsize'; did you mean 'ba",
        ),
        ("options", {"batch_size": "3"}, KD, "'options' must be a dict whose 'batch_size' is int, not '3'"),
        ("options", {"batch_size": True}, KD, "is int, not True"),
        ("options", {"weight_decay": "1e-4"}, KD, "is float, not '1e-4'; YAML wants a point"),
        ("options", {"betas": [0.9]}, KD, r"'betas' is tuple\[float, float\], not \[0.9\]"),
        ("options", {"emas": [0, "x"]}, KD, r"'emas' is tuple\[float, ...\]"),
        ("options", {"emas": [0, -1.0]}, KD, "'emas' is 0 or more, not -1.0"),
        ("options", {"dropout": 1.0}, KD, "'dropout' is a share"),
        ("options", {"precision": {"student": "half"}}, KD, "'precision' is one of auto, bf16, tf32, fp32, not 'half'"),
        ("options", {"optimizer": "radm"}, KD, "not 'radm'; did you mean 'radam'?"),
        ("options", {"distance": "l2+lpips@x"}, KD, "'distance' is one of .*, not 'lpips@x'"),
        ("options", {"kimg": 5}, KD, "a dict without 'kimg', which other parameters set"),
        ("options", {"variant": "gdd"}, {"variants": ["gdd"]}, "a dict without 'variant'"),
        ("options", {"first_stop": 1}, {"student_levels": [1]}, "of sfddm, not 'first_stop'"),
        ("teacher_options", {"p_meen": 0.0}, {"teacher": "edm"}, "of edm, not 'p_meen'; did you mean 'p_mean'?"),
        ("progressive_options", {"steps": 2}, {}, "a dict without 'steps'"),
        ("reflow_options", {"lr_decay": "linera"}, {}, "did you mean 'linear'?"),
        ("distill_options", {"tau_lo": 0.1}, {}, "of flow-guided-distillation, not 'tau_lo'; did you mean 'tau_low'?"),
        ("cd_options", {"target_dekay": 0.0}, {}, "did you mean 'target_decay'?"),
        ("ect_options", {"folds": 1.5}, {}, "'folds' is int, not 1.5"),
        ("gdd_options", {"r1_intervall": 1}, {}, "did you mean 'r1_interval'?"),
        (
            "options",
            {"meanflw": {}},
            SEVERAL,
            "'options' must be a dict by method, not 'meanflw'; did you mean 'meanflow'",
        ),
        ("options", {"lr": 1e-3}, SEVERAL, "'options' must be a dict by method, not 'lr'"),
        ("options", {"imm": 3}, SEVERAL, "'options' must be a dict whose 'imm' is a dict of its options, not 3"),
        ("options", {"shortcut": {"evry": 2}}, SEVERAL, "of shortcut, not 'evry'; did you mean 'every'?"),
        ("options", {"shortcut": {"kimg": 2.0}}, SEVERAL, "a dict without 'kimg'"),
    ],
)
def test_an_option_that_cannot_be_is_refused_in_one_line(name, options, others, message):
    with pytest.raises(OnestepError, match=message) as error:
        checked(name, options, **others)
    assert "\n" not in str(error.value)


PUBLISHED = {
    "optimizer": "radam",
    "weight_decay": 0.01,
    "warmup_kimg": 0,
    "ema_halflife_kimg": 0,
    "emas": [50, 500.0],
    "betas": [0.0, 0.99],
    "dropout": None,
    "precision": {"student": "bf16", "critic": "fp32"},
    "lr": 1,
    "distance": "lpips@224+l2",
}


@pytest.mark.parametrize(
    ("name", "options", "others"),
    [
        ("options", PUBLISHED, KD),
        ("options", {"variant": "gdd-i", "precision": "tf32", "dropout": 0}, {"method": "gdd"}),
        ("options", {"map": "custom", "indices": [1, 7]}, {"method": "sfddm"}),
        ("teacher_options", {"p_mean": -1}, {"teacher": "edm"}),
        ("teacher_options", {"anything": 1}, {"teacher": "edm-cifar10-32x32-cond-vp"}),  # it is what it is
        ("options", {"anything": 1}, {}),  # of a notebook that is not ours
        ("other_options", {"anything": 1}, {}),
        ("options", {"shortcut": {"every": 2, "lr": 1e-3}, "imm": {}}, SEVERAL),  # of methods not asked for, too
    ],
)
def test_what_a_training_can_do_is_let_through(name, options, others):
    checked(name, options, **others)


def test_options_of_a_plug_ins_method_are_those_of_its_config(monkeypatch):
    @dataclass
    class Config:
        heat: float = 1.0

    method = methods.Method("lab", 1, Config, lambda nets, cfg: None, None)
    monkeypatch.setitem(methods._registry, "lab", method)
    checked("options", {"heat": 2, "lr": 1e-3}, method="lab")
    with pytest.raises(OnestepError, match=r"of lab, not 'heet'; did you mean 'heat'?"):
        checked("options", {"heet": 2}, method="lab")


def test_types_as_they_are_written():
    fine = {"int | None": None, "Sequence[int]": [1, 2], "dict[str, str]": {}, "tuple[int, str]": [1, "a"], "Odd[3]": 3}
    assert all(is_of(value, told) for told, value in fine.items())
    wrong = {
        "int": 1.5,
        "float": True,
        "list[int]": [1, "2"],
        "str": None,
        "tuple[int, str]": [1],
        "dict[str, str]": [],
    }
    assert not any(is_of(value, told) for told, value in wrong.items())


PLAN = """
import sys
from pathlib import Path
from onestep_bench.errors import OnestepError
from onestep_bench.grid.plan import read_grid
try:
    read_grid(Path(sys.argv[1]))
except OnestepError as error:
    print(error)
assert "torch" not in sys.modules
"""


def test_a_plan_refuses_them_without_torch(tmp_path):
    cell = 'method: str = "kd"\noptions: dict = {}\nteacher_options: dict = {}\nteacher: str = "edm"'
    notebook(tmp_path / "notebooks" / "method.ipynb", cell, "print(method, options)")
    given = json.dumps({"options": {"levels": 4}, "teacher_options": {"optimiser": "adam"}})
    text = f"name: tiny\nstages:\n  a: {{notebook: method.ipynb, over: {{method: [gdd]}}, parameters: {given}}}"
    ran = [sys.executable, "-c", PLAN, str(grid_file(tmp_path, text))]
    told = subprocess.run(ran, capture_output=True, text=True, check=True).stdout
    assert "tiny.yaml: stage 'a': 'options' must be a dict of options of gdd, not 'levels'" in told
    grid_file(tmp_path, text.replace('"levels": 4', '"critic_lr": 2'))
    told = subprocess.run(ran, capture_output=True, text=True, check=True).stdout
    assert "of options of edm, not 'optimiser'; did you mean 'optimizer'?" in told


@pytest.mark.parametrize("name", methods.names())
def test_what_is_an_option_by_default_may_be_given(name):
    """No option shares its name with a notebook's parameter of another meaning."""

    config = methods.get(name).config
    fields = [field for field in dataclasses.fields(config) if field.default is not dataclasses.MISSING]
    given = {field.name: field.default for field in fields if field.default is not None}
    given = {key: list(value) if isinstance(value, tuple) else value for key, value in given.items()}
    checked("options", given, method=name)
