"""What a model says of how it was trained: settings without seeds, whom it learnt from, and what that saw."""

import json
from dataclasses import replace

import pytest
import torch

from onestep_bench import data, methods, store, study
from onestep_bench.models import sampling
from onestep_bench.models.model import Model
from onestep_bench.training.source import Source

pytestmark = pytest.mark.usefixtures("store_folder")

TINY = {"kimg": 0.008, "batch_size": 8}


@pytest.fixture(scope="module")
def digits():
    """The first 64 digits."""
    whole = data.load("digits")
    return replace(whole, images=whole.images[:64], labels=whole.labels[:64], digest="0123456789abcdef")


@pytest.fixture(autouse=True)
def small_batches(monkeypatch):
    monkeypatch.setattr(sampling, "BATCH", 8)


def chain(digits, *, seeds=(0, 0, 0, 0), lr=1e-3, steps=2):
    """SlimFlow's: teacher, pairs, 2-flow, student."""
    teacher = study.train("edm", digits, size="0.05M", seed=seeds[0], **TINY)
    pairs = study.make_pairs(teacher, 16, steps=steps, seed=seeds[1])
    flow = study.train("annealing-reflow", pairs, size="0.05M", seed=seeds[2], **TINY)
    return study.train("flow-guided-distillation", pairs, teacher=flow, init=flow, seed=seeds[3], lr=lr, **TINY)


def test_settings_are_strict_json_of_a_bound_that_is_infinite_too(digits):
    found = study.train("alpha-flow", digits, size="0.05M", **TINY).settings
    assert found["alpha-flow.cut"] == "inf"
    json.dumps(found, allow_nan=False)


def test_settings_are_those_of_the_lineage_and_the_same_for_all_seeds(digits):
    student = chain(digits)
    found = student.settings
    assert found["flow-guided-distillation.lr"] == 1e-3
    assert found["flow-guided-distillation.teacher"] == found["flow-guided-distillation.init"] == "annealing-reflow"
    assert found["flow-guided-distillation.data"] == found["annealing-reflow.data"] == "pairs"
    assert (found["pairs.n"], found["pairs.steps"], found["pairs.teacher"]) == (16, 2, "edm")
    assert (found["edm.size"], found["edm.data"], found["edm.version"]) == ("0.05M", digits.digest, 1)
    assert (found["edm.kimg"], found["edm.p_mean"], found["edm.classes"]) == (0.008, -1.2, 0)
    assert not any("seed" in name or "snapshot" in name for name in found)
    assert len(student.recipe_hash) == 10
    for place in range(4):
        seeds = [int(each == place) for each in range(4)]
        again = chain(digits, seeds=seeds)
        assert again.settings == found
        assert again.recipe_hash == student.recipe_hash
        assert again.artifact.key != student.artifact.key
        assert again.teacher_seed == seeds[0]
    assert chain(digits, lr=1e-4).recipe_hash != student.recipe_hash
    assert chain(digits, steps=3).recipe_hash != student.recipe_hash


def test_ancestors_of_one_method_are_numbered_and_a_snapshot_is_its_training(digits):
    model = study.train("edm", digits, size="0.05M", seed=3, **TINY)
    plain = study.train("progressive", digits, teacher=model, init=model, steps=4, **TINY)
    last = study.train("progressive", digits, teacher=plain, init=plain, steps=2, snapshots=[0.008], **TINY)
    found = last.settings
    assert (found["progressive.steps"], found["progressive2.steps"]) == (2, 4)
    assert (found["progressive.teacher"], found["progressive2.teacher"]) == ("progressive2", "edm")
    assert last.teacher_seed == 3
    without = study.train("progressive", digits, teacher=plain, init=plain, steps=2, **TINY)
    assert {without.recipe_hash, last.snapshots[0.008].recipe_hash} == {last.recipe_hash}


def test_a_model_tells_what_its_training_saw(digits):
    teacher = study.train("edm", digits, size="0.05M", seed=5, **TINY)
    pairs = study.make_pairs(teacher, 16, steps=2)
    given = {"teacher": teacher, "init": teacher, **TINY}
    assert teacher.saw == "data"
    assert teacher.teacher_seed == 5
    assert study.train("gdd", digits, **given).saw == "data"
    assert study.train("kd", pairs, **given).saw == "teacher images"
    assert study.train("gdd", pairs, **given).saw == "teacher images"
    assert study.train("consistency-distillation", digits, **given).saw == "both"
    assert study.train("consistency-distillation", pairs, **given).saw == "teacher images"
    assert study.train("sid", digits, **given).saw == "teacher"
    assert study.train("sid", pairs, **given).saw == "teacher"
    assert study.train("sid", digits, adversarial=0.01, group=8, **given).saw == "both"
    assert {name for name in methods.names() if methods.get(name).follows_teacher} == {
        "consistency-distillation",
        "facm-distillation",
        "meanflow-distillation",
        "moment-matching",
        "progressive",
        "scd",
        "score-distillation",
        "sfddm",
        "sid",
    }


def test_pairs_of_real_images_are_data(digits):
    """As made by going from an image to its noise; and a method of a plug-in that is not installed here."""

    def made(kind, recipe, *parents):
        return store.memo(kind, recipe | {"seed": 7, "class_counts": []}, parents, lambda folder: {})

    teacher = made("model", {"method": "edm", "data": "d1"})
    pairs = made("pairs", {"n": 4, "images": "d1"}, teacher)
    told = {"kd": "data", "sfddm": "both", "of a plug-in": "data"}
    for method, saw in told.items():
        assert Model(made("model", {"method": method, "data": "pairs"}, pairs, teacher)).saw == saw
    assert Model(made("model", {"method": "kd", "data": "pairs"}, pairs, teacher)).settings["pairs.images"] == "d1"


def test_a_model_from_elsewhere_tells_nothing_of_its_training(digits, tmp_path, monkeypatch):
    folder = study.train("edm", digits, size="0.05M", seed=5, **TINY).artifact.folder
    monkeypatch.setenv("ONESTEP_STORE", str(tmp_path / "another"))
    teacher = study.pretrained(folder, digits)
    assert (teacher.saw, teacher.teacher_seed) == (None, None)
    assert teacher.settings["foreign.size"] == "0.05M"
    student = study.train("gdd", digits, teacher=teacher, init=teacher, **TINY)
    assert (student.saw, student.teacher_seed) == ("data", None)
    assert student.settings["gdd.teacher"] == "foreign"


def test_a_method_of_images_is_given_those_of_pairs_without_their_noise(digits, monkeypatch):
    teacher = study.train("edm", digits, size="0.05M", conditional=True, **TINY)
    pairs = study.make_pairs(teacher, 16, steps=2)
    seen = []

    def spied(*given):
        seen.append(given)
        return Source(*given)

    monkeypatch.setattr(study, "Source", spied)
    student = study.train("gdd", pairs, teacher=teacher, init=teacher, **TINY)
    ((images, labels, noise, _),) = seen
    assert torch.equal(images, pairs.images)
    assert torch.equal(labels, pairs.labels)
    assert noise is None
    assert student.artifact.key != study.train("gdd", digits, teacher=teacher, init=teacher, **TINY).artifact.key
    assert pairs.artifact.key in student.artifact.meta["parents"]
