"""What a notebook calls, on networks too small to learn anything: it is done once, exactly, or refused in one line."""

import base64
import io
import json
import math
import os
import time
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from tiny import row as score_row

from onestep_bench import data, methods, models, samplers, study
from onestep_bench.denoiser import counting
from onestep_bench.models import cost, pairing, sampling
from onestep_bench.paths import VP, alphas_cumprod
from onestep_bench.scoring import evaluation
from onestep_bench.scoring.rows import FIELDS, MEASURED, QUALITIES, bundle, bundles_in
from onestep_bench.seeds import sample_labels, sample_noise
from onestep_bench.store.notes import PROGRESS, SCRATCH
from onestep_bench.training import together
from onestep_bench.training.config import TrainConfig

pytestmark = pytest.mark.usefixtures("store_folder")

TINY = {"size": "0.05M", "kimg": 0.064, "batch_size": 8}


class Killed(Exception):
    pass


@pytest.fixture(scope="module")
def digits():
    """The first 64 digits, which have no held-out ones."""
    whole = data.load("digits")
    few = dict(images=whole.images[:64], labels=whole.labels[:64], digest="0123456789abcdef")
    return replace(whole, **few, other=None)


@pytest.fixture
def small_batches(monkeypatch):
    monkeypatch.setattr(sampling, "BATCH", 8)


@pytest.fixture
def teacher(digits):
    return study.train("edm", digits, **TINY)


@pytest.fixture
def conditional(digits):
    return study.train("edm", digits, conditional=True, **TINY)


def forbid(monkeypatch, *names, room=study):
    """Let the call of a function of `room` be an error."""

    def forbidden(*_, **__):
        raise AssertionError("this was to be found, not made")

    for name in names:
        monkeypatch.setattr(room, name, forbidden)


def test_an_image_is_the_same_whatever_it_is_asked_with(teacher):
    among_many = study.sample(teacher, range(300), steps=2)
    shuffled = torch.randperm(300, generator=torch.Generator().manual_seed(0)).tolist()
    assert torch.equal(study.sample(teacher, shuffled, steps=2), among_many[shuffled])
    assert torch.equal(study.sample(teacher, [290, 3], steps=2), among_many[[290, 3]])
    assert torch.equal(study.sample(teacher, range(257), steps=2), among_many[:257])
    torch.testing.assert_close(study.sample(teacher, [3], steps=2), among_many[[3]], rtol=1e-4, atol=1e-4)


def test_images_are_those_of_the_sampler(teacher, conditional):
    for model in (teacher, conditional):
        noise = sample_noise(5, range(10), (1, 8, 8))
        labels = sample_labels(5, range(10), model.class_counts) if model.class_counts else None
        expected = samplers.heun(model.denoiser, noise, samplers.karras_times(2), labels)
        images = study.sample(model, range(10), sampler="heun", steps=2, seed=5)
        torch.testing.assert_close(images, expected, rtol=1e-4, atol=1e-4)


def test_a_model_tells_the_classes_of_its_samples(teacher, conditional):
    assert teacher.labels(range(4)) is None
    assert torch.equal(conditional.labels([3, 1], seed=5), sample_labels(5, [3, 1], conditional.class_counts))


def test_a_seed_and_a_purpose_make_other_images(teacher):
    images = study.sample(teacher, range(2))
    assert not torch.equal(study.sample(teacher, range(2), seed=1), images)
    assert not torch.equal(study.sample(teacher, range(2), purpose="pairs"), images)


def test_images_that_are_not_finite_are_refused(teacher, refuses):
    teacher.denoiser.net.map_layer0.weight.fill_(math.nan)
    with refuses(teacher.artifact.key, "not finite", "euler"):
        study.sample(teacher, range(2))


def test_a_model_tells_what_it_is(teacher, conditional):
    assert teacher.size == "0.05M"
    assert teacher.shape == (1, 8, 8)
    assert teacher.class_counts == []
    assert sum(conditional.class_counts) == 64
    assert conditional.denoiser.num_classes == 10
    assert [row.step for row in teacher.history] == [*range(1, 9)]
    assert teacher.artifact.cost()["kimg"] == 0.064
    assert sorted(file.name for file in teacher.artifact.folder.iterdir()) == [
        "artifact.json",
        "config.json",
        "log.json",
        "model.safetensors",
    ]


def test_conditional_images_depend_on_their_class(conditional):
    # A network this young hardly looks at its label yet.
    torch.nn.init.normal_(conditional.denoiser.net.map_label.weight)
    torch.nn.init.normal_(conditional.denoiser.net.dec["8x8_aux_conv"].weight)
    x = torch.randn(1, 1, 8, 8).expand(2, -1, -1, -1)
    zero, one = conditional.denoiser(x, 1.0, torch.tensor([0, 1]))
    assert not torch.allclose(zero, one)


def test_training_is_found_again_and_not_repeated(digits, monkeypatch):
    first = study.train("edm", digits, **TINY)
    forbid(monkeypatch, "fit")
    assert study.train("edm", digits, **TINY).artifact.key == first.artifact.key
    assert study.train("edm", digits, **TINY, lr=1e-3, p_mean=-1.2).artifact.key == first.artifact.key  # the defaults
    for changed in ({"seed": 1}, {"lr": 1e-4}, {"p_mean": -1.0}, {"conditional": True}, {"kimg": 0.008}):
        with pytest.raises(AssertionError):
            study.train("edm", digits, **TINY | changed)
    with pytest.raises(AssertionError):
        study.train("edm", replace(digits, digest="fedcba9876543210"), **TINY)


def test_equal_numbers_are_one_recipe(digits, monkeypatch):
    study.train("edm", digits, size="0.05M", kimg=1, batch_size=500, warmup_kimg=0)
    forbid(monkeypatch, "fit")
    study.train("edm", digits, size="0.05M", kimg=1.0, batch_size=500, warmup_kimg=0.0)
    study.train("edm", digits, size="0.05M", kimg=0.7 + 0.2 + 0.1, batch_size=500, warmup_kimg=0)  # 0.99999...


@pytest.mark.parametrize("name", ["edm", "meanflow"])
def test_a_random_start_is_its_seeds_and_no_others(digits, name):
    method, training = methods.get(name), TrainConfig(1.0)
    asked = (method, method.config(), training, digits, "0.01M", [])
    starts = [dict(study._student(*asked, seed, None, None).net.named_parameters()) for seed in (0, 0, 1)]
    drawn = [key for key, weight in starts[0].items() if weight.ndim > 1 and weight.any()]
    assert drawn
    for key in drawn:
        assert torch.equal(starts[0][key], starts[1][key])
        assert not torch.equal(starts[0][key], starts[2][key])


def test_a_student_starts_from_the_average_of_its_init(digits, teacher):
    student = study.train("edm", digits, init=teacher, kimg=0.008, batch_size=8, lr=1e-30)
    state = teacher.denoiser.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in student.denoiser.state_dict().items())
    assert student.artifact.meta["parents"] == [teacher.artifact.key]
    assert student.artifact.cost()["kimg"] == pytest.approx(0.064 + 0.008)


def test_training_leaves_init_and_teacher_as_they_were(teacher, small_batches):
    before = {name: value.clone() for name, value in teacher.denoiser.state_dict().items()}
    pairs = study.make_pairs(teacher, 16, steps=2)
    study.train("flow-guided-distillation", pairs, teacher=teacher, init=teacher, kimg=0.016, batch_size=8)
    assert all(torch.equal(value, before[name]) for name, value in teacher.denoiser.state_dict().items())
    assert not teacher.denoiser.training


def killed_after(parts):
    """`study.sample` that dies when it is asked for one part too many."""
    sample, calls = study.sample, []

    def dying(*arguments, **options):
        if len(calls) == parts:
            raise Killed
        calls.append(arguments)
        return sample(*arguments, **options)

    return dying, calls


def test_pairs_go_on_after_a_kill(teacher, small_batches, monkeypatch):
    with monkeypatch.context() as patch:
        dying, _ = killed_after(2)
        patch.setattr(pairing, "sample", dying)
        with pytest.raises(Killed):
            study.make_pairs(teacher, 300, sampler="euler", steps=1)
    with monkeypatch.context() as patch:
        counted, calls = killed_after(99)
        patch.setattr(pairing, "sample", counted)
        pairs = study.make_pairs(teacher, 300, sampler="euler", steps=1)
    assert [list(indices) for _, indices in calls] == [[*range(256, 300)]]
    assert torch.equal(pairs.images, study.sample(teacher, range(300), purpose="pairs"))
    assert sorted(file.name for file in pairs.artifact.folder.iterdir()) == ["artifact.json", "images.safetensors"]


def test_pairs_are_noise_and_what_the_teacher_makes_of_it(conditional, small_batches):
    pairs = study.make_pairs(conditional, 20, steps=2, seed=3)
    assert pairs.class_counts == conditional.class_counts
    assert torch.equal(pairs.noise, sample_noise(3, range(20), (1, 8, 8), "pairs"))
    made = samplers.heun(conditional.denoiser, pairs.noise, samplers.karras_times(2), pairs.labels)
    torch.testing.assert_close(pairs.images, made, rtol=1e-4, atol=1e-4)


def test_passes_and_their_macs_are_those_of_the_lineage(digits, teacher, small_batches):
    macs = cost.macs(teacher.denoiser, teacher.shape)
    assert teacher.spent["passes"] == pytest.approx(3 * 0.064)
    # Two steps of Heun's are three evaluations; 20 images are three batches of 8, whose padding does not count.
    pairs = study.make_pairs(teacher, 20, steps=2)
    assert pairs.artifact.meta["cost"]["passes"] == pytest.approx(3 * 0.02)
    student = study.train("flow-guided-distillation", pairs, teacher=teacher, init=teacher, kimg=0.016, batch_size=8)
    passes = 3 * 0.064 + 3 * 0.02 + 7 * 0.016
    assert student.spent["passes"] == pytest.approx(passes)
    assert student.spent["macs"] == pytest.approx(1000 * passes * macs)
    assert student.history[-1].passes == {"student": pytest.approx(6 * 0.016), "teacher": pytest.approx(0.016)}
    gdd = study.train("gdd", digits, teacher=teacher, init=teacher, kimg=0.016, batch_size=8, r1_interval=2)
    assert gdd.artifact.meta["cost"]["passes"] == pytest.approx((4 + 9 + 7 / 2) * 0.016)
    assert gdd.artifact.meta["cost"]["macs"] > 1000 * 4 * 0.016 * macs


@pytest.mark.parametrize("tells", [True, False])
def test_what_else_the_machine_did_is_load_beyond_the_runs_own_threads(digits, monkeypatch, tells):
    threads = torch.get_num_threads()
    loads = iter(threads + extra for extra in (-0.5, 0.5, *[1.5] * 6))

    def told():
        if not tells:
            raise OSError
        return next(loads), 0.0, 0.0

    monkeypatch.setattr(os, "getloadavg", told)
    model = study.train("edm", digits, **TINY)
    assert model.spent["busy"] == (pytest.approx((0.5 + 6 * 1.5) / 8, rel=1e-3) if tells else None)


def test_pairs_are_found_again_and_not_repeated(teacher, small_batches, monkeypatch):
    first = study.make_pairs(teacher, 16, steps=2)
    forbid(monkeypatch, "sample", room=pairing)
    assert study.make_pairs(teacher, 16, steps=2).artifact.key == first.artifact.key
    for changed in ({"n": 17}, {"steps": 3}, {"seed": 1}, {"sampler": "euler"}):
        with pytest.raises(AssertionError):
            study.make_pairs(teacher, **{"n": 16, "steps": 2} | changed)


def test_a_killed_training_goes_on(digits, monkeypatch):
    monkeypatch.setenv("ONESTEP_CHECKPOINT_SECONDS", "0")
    undisturbed = study.train("edm", digits, **TINY)
    fit, started = study.fit, []

    def dying(*arguments, **options):
        for row in fit(*arguments, **options):
            started.append(row.step)
            yield row
            if row.step == 5:
                raise Killed

    monkeypatch.setenv("ONESTEP_STORE", str(undisturbed.artifact.folder.parent) + "-2")
    with monkeypatch.context() as patch:
        patch.setattr(study, "fit", dying)
        with pytest.raises(Killed):
            study.train("edm", digits, **TINY)
    model = study.train("edm", digits, **TINY)
    assert [row.losses for row in model.history] == [row.losses for row in undisturbed.history]
    files = model.artifact.meta["files"], undisturbed.artifact.meta["files"]
    assert files[0]["model.safetensors"] == files[1]["model.safetensors"]


SNAPSHOTS = {"snapshots": (0.01, 0.04)}


def test_snapshots_are_the_average_as_it_was(digits, teacher):
    model = study.train("edm", digits, **TINY | SNAPSHOTS)
    assert list(model.snapshots) == [0.01, 0.04]
    early, late = model.snapshots.values()
    # 0.01 is reached by the second step of eight images. The budget decides no weights of EDM's.
    for snapshot, kimg in ((early, 0.016), (late, 0.04)):
        same = study.train("edm", digits, **TINY | {"kimg": kimg})
        state = same.denoiser.state_dict()
        assert all(torch.equal(value, state[name]) for name, value in snapshot.denoiser.state_dict().items())
        assert snapshot.spent["passes"] == pytest.approx(same.spent["passes"])
        assert snapshot.spent["macs"] == same.spent["macs"]
        assert snapshot.spent["kimg"] == kimg
    assert early.spent["seconds"] < late.spent["seconds"] < model.spent["seconds"]
    assert early.name == f"{model.name}#0.01"
    assert early.on(VP(alphas_cumprod("linear", 10))).name.startswith(f"{early.name}@vp")
    assert torch.equal(study.sample(early, range(2)), sampling.sample(early, range(2)))
    assert not torch.equal(study.sample(early, range(2)), study.sample(late, range(2)))
    # Nothing else is another: not the weights at the end, nor the key of a model without them.
    state = teacher.denoiser.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in model.denoiser.state_dict().items())
    assert model.artifact.key != teacher.artifact.key
    assert study.train("edm", digits, **TINY, snapshots=()).artifact.key == teacher.artifact.key
    assert teacher.snapshots == {}


def test_a_snapshots_cost_has_its_parents(digits, teacher, small_batches):
    student = study.train("gdd", digits, teacher=teacher, init=teacher, **{**TINY, "size": None} | SNAPSHOTS)
    early = student.snapshots[0.01]
    assert early.spent["kimg"] == pytest.approx(0.064 + 0.016)
    own = student.artifact.meta["cost"]
    passes = {"student": 4 * 16, "critic": 9 * 16 + 7 * 8}  # R1 at the first step
    assert early.spent["passes"] == pytest.approx(teacher.spent["passes"] + sum(passes.values()) / 1000)
    macs = sum(count * own["macs_of_one"][name] for name, count in passes.items())
    assert early.spent["macs"] == teacher.spent["macs"] + macs


def test_a_killed_training_has_the_same_snapshots(digits, monkeypatch):
    undisturbed = study.train("edm", digits, **TINY | SNAPSHOTS)
    monkeypatch.setenv("ONESTEP_STORE", str(undisturbed.artifact.folder.parent) + "-2")
    monkeypatch.setenv("ONESTEP_CHECKPOINT_SECONDS", "0")
    fit = study.fit

    def dying(*arguments, **options):
        for row in fit(*arguments, **options):
            yield row
            if row.step == 3:
                raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(study, "fit", dying)
        with pytest.raises(Killed):
            study.train("edm", digits, **TINY | SNAPSHOTS)
    model = study.train("edm", digits, **TINY | SNAPSHOTS)
    files = model.artifact.meta["files"], undisturbed.artifact.meta["files"]
    kept = ["model.safetensors", "snapshot-0.01.safetensors", "snapshot-0.04.safetensors"]
    assert [name for name in files[0] if name.endswith(".safetensors")] == kept
    assert all(files[0][name] == files[1][name] for name in kept)


def test_snapshots_that_cannot_be_are_refused_and_no_teachers(digits, refuses):
    for wrong in ((0.04, 0.01), (0.01, 0.01), (0.1,), (0.0,), ("much",), 8.0):
        with refuses("snapshots must rise", "kimg=0.064"):
            study.train("edm", digits, **TINY, snapshots=wrong)
    early = study.train("edm", digits, **TINY | SNAPSHOTS).snapshots[0.01]
    with refuses(early.name, "only sampled"):
        study.train("gdd", digits, teacher=early, init=early, kimg=0.064)
    with refuses(early.name, "only sampled"):
        study.make_pairs(early, 8)
    with refuses(early.name, "is a snapshot"):
        study.pretrained(early.name)


EMAS = {"ema_halflife_kimg": 0.02, "emas": [0, 0.1]}


def test_a_training_keeps_several_averages_each_a_model(digits, small_batches):
    model = study.train("edm", digits, **TINY, **EMAS)
    assert list(model.averages) == [0.0, 0.1]
    for halflife, average in {0.02: model, **model.averages}.items():
        same = study.train("edm", digits, **TINY, ema_halflife_kimg=halflife)
        state = same.denoiser.state_dict()
        assert all(torch.equal(value, state[name]) for name, value in average.denoiser.state_dict().items())
        assert average.recipe_hash == same.recipe_hash
        assert average.spent["kimg"] == same.spent["kimg"]
    raw = model.averages[0.0]
    assert (raw.weights, model.weights, same.weights) == ("last", "ema", "ema")
    assert raw.name == f"{model.name}~0"
    assert raw.on(VP(alphas_cumprod("linear", 10))).name.startswith(f"{raw.name}@vp")
    assert not torch.equal(study.sample(raw, range(2)), study.sample(model, range(2)))
    assert raw.snapshots == {}
    options = {"samples": 16, "seeds": [0], "steps": [1], "features": ["pixels"]}
    scores = [study.evaluate(one, digits, label="edm", **options)["rows"][0] for one in (model, raw)]
    assert [(row["model"], row["weights"]) for row in scores] == [(model.name, "ema"), (raw.name, "last")]
    assert scores[0]["fid"] != scores[1]["fid"]
    assert scores[0]["recipe"] != scores[1]["recipe"]


def test_an_average_may_be_where_a_training_starts_and_its_teacher(digits, small_batches, refuses):
    model = study.train("edm", digits, **TINY, **EMAS)
    raw = model.averages[0.0]
    still = {"kimg": 0.008, "batch_size": 8, "lr": 1e-30}
    students = [study.train("progressive", digits, teacher=one, init=one, **still) for one in (model, raw)]
    for student, start in zip(students, (model, raw), strict=True):
        state = start.denoiser.state_dict()
        assert all(torch.equal(value, state[name]) for name, value in student.denoiser.state_dict().items())
    assert students[0].artifact.key != students[1].artifact.key
    assert [student.settings["progressive.teacher"] for student in students] == ["edm", "edm~0"]
    pairs = [study.make_pairs(one, 8, steps=2) for one in (model, raw)]
    assert not torch.equal(pairs[0].images, pairs[1].images)
    with refuses(raw.name, "another average", "`averages`"):
        study.pretrained(raw.name)


def test_a_student_may_have_a_dropout_of_its_own(digits, teacher):
    def rates(model):
        config = model.denoiser.spec()["network"]
        return {
            config["dropout"],
            *(block.style.dropout for block in model.denoiser.net.modules() if hasattr(block, "style")),
        }

    assert rates(teacher) == {0.0}
    fresh = study.train("edm", digits, **TINY, dropout=0.3)
    tuned = study.train("edm", digits, init=teacher, kimg=0.008, batch_size=8, dropout=0.2)
    assert (rates(fresh), rates(tuned)) == ({0.3}, {0.2})
    assert rates(study.train("edm", digits, init=tuned, kimg=0.008, batch_size=8)) == {0.2}
    assert (fresh.size, fresh.settings["edm.dropout"]) == ("0.05M", 0.3)
    assert not torch.equal(study.sample(fresh, range(1)), study.sample(teacher, range(1)))  # it was dropped in training


def test_a_teacher_takes_the_options_of_its_training(digits):
    model = study.teacher("edm", digits, **TINY, optimizer="radam", p_mean=-1.0)
    assert (model.settings["edm.optimizer"], model.settings["edm.p_mean"]) == ("radam", -1.0)


def test_a_tracker_is_told_each_row_and_sees_the_average(digits, monkeypatch, tmp_path):
    seen = []

    def track(row, student):
        time.sleep(0.05)
        seen.append((row, student(torch.ones(1, 1, 8, 8), 1.0).mean().item()))

    model = study.train("edm", digits, **TINY, track=track)
    assert [row for row, _ in seen] == model.history
    assert seen[-1][1] == pytest.approx(model.denoiser(torch.ones(1, 1, 8, 8), 1.0).mean().item(), abs=1e-5)
    assert len({value for _, value in seen}) > 1
    calm = model.history[-1].seconds
    study.train("edm", digits, **TINY, track=lambda *_: pytest.fail("nothing is trained"))
    monkeypatch.setenv("ONESTEP_STORE", str(tmp_path / "other"))
    slow = study.train("edm", digits, **TINY, track=lambda *_: time.sleep(0.5))
    # The seconds of the record are of the training: what a tracker takes is none of them.
    assert slow.history[-1].seconds < calm + 0.5 * len(seen) / 2


def test_an_interrupt_of_any_stored_work_is_one_line(digits, monkeypatch):
    model = study.train("edm", digits, **TINY)

    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("onestep_bench.models.pairing.sampling.sample_batches", interrupt)
    monkeypatch.setattr("onestep_bench.scoring.evaluation.sample_batches", interrupt)
    for what, work in (
        ("making pairs", lambda: study.make_pairs(model, 8)),
        ("scoring", lambda: study.evaluate(model, digits, label="edm", samples=8)),
    ):
        with pytest.raises(KeyboardInterrupt, match=f"^{what} stopped; run this again") as caught:
            work()
        assert type(caught.value) is KeyboardInterrupt  # a grid, papermill and a shell still see it
        assert caught.value._render_traceback_() == [str(caught.value)]


def test_training_in_a_cell_tells_how_far_it_is_and_an_interrupt_anywhere_goes_on(digits, monkeypatch, tmp_path):
    undisturbed = study.train("edm", digits, **TINY)
    monkeypatch.setenv("ONESTEP_STORE", str(tmp_path / "other"))
    monkeypatch.setenv(SCRATCH, str(tmp_path))
    monkeypatch.setattr(together._ToldBar, "every", 0.0)
    told = []

    def between(bar, losses):  # two steps, where `fit` is not
        told.append(json.loads((tmp_path / PROGRESS).read_text()))
        if len(told) == 5:
            raise KeyboardInterrupt

    monkeypatch.setattr(together._ToldBar, "set_postfix", between)
    with pytest.raises(KeyboardInterrupt, match=r"^training stopped at 0\.04 of 0\.06 kimg; run this again"):
        study.train("edm", digits, **TINY)
    assert [(known["what"], known["done"], known["total"]) for known in told] == [
        ("edm", count, 64) for count in (8, 16, 24, 32, 40)
    ]
    model = study.train("edm", digits, **TINY)
    assert told[5]["done"] == 8  # rows of the first run, at its speed
    assert told[5]["left"] == pytest.approx(7 * model.history[0].seconds, rel=0.5, abs=0.2)
    files = model.artifact.meta["files"], undisturbed.artifact.meta["files"]
    assert files[0]["model.safetensors"] == files[1]["model.safetensors"]


@pytest.fixture
def evaluated(teacher, digits, monkeypatch):
    monkeypatch.setattr(sampling, "BATCH", 64)
    return study.evaluate(teacher, digits, label="EDM", steps=[1, 2], sampler="heun", seeds=[0, 1])


def test_a_bundle_says_everything_once(evaluated, teacher, digits):
    rows = evaluated["rows"]
    assert all(row.keys() == FIELDS.keys() for row in rows)
    assert [(row["steps"], row["nfe"], row["features"], row["seed"]) for row in rows] == [
        (steps, nfe, judge, seed)
        for steps, nfe in ((1, 1), (2, 3))
        for judge in ("digits", "pixels")
        for seed in (0, 1)
    ]
    row = rows[0]
    assert (row["label"], row["method"], row["size"], row["dataset"]) == ("EDM", "edm", "0.05M", "digits")
    assert (row["samples"], row["kimg"], row["model"]) == (64, 0.064, teacher.artifact.key)
    assert (row["split"], row["saw"], row["purpose"]) == ("all", "data", "result")
    assert (row["recipe"], row["teacher_seed"], row["train_seed"]) == (teacher.recipe_hash, 0, 0)
    assert (row["passes"], row["train_macs"]) == (pytest.approx(3 * 0.064), teacher.spent["macs"])
    assert evaluated["recipes"] == {teacher.recipe_hash: teacher.settings}
    assert digits.digest in row["protocol"]
    measured = [name for name in MEASURED if name not in ("busy", "throughput", "peak_memory_mb")]
    assert all(math.isfinite(row[name]) and row[name] > 0 for row in rows for name in ("fid", *measured))
    assert all(row["busy"] >= 0 for row in rows)  # 0 where nothing else runs
    # 64 images are too few for the first, and pixels tell no classes.
    unknown = {"digits": ("fd_infinity",), "pixels": ("fd_infinity", "inception_score", "class_gap")}
    for judged in rows:
        assert tuple(name for name in QUALITIES if judged[name] is None) == unknown[judged["features"]]
        assert all(math.isfinite(judged[name]) for name in QUALITIES if judged[name] is not None)
    assert row["warning"].startswith("64 samples cannot span 64 features")
    json.dumps(evaluated)


def test_scores_of_a_snapshot_are_its_own_and_a_padded_batch_counts_no_evaluations(digits, monkeypatch):
    """40 images of 64 that the network is given: 3 evaluations each, and none for the rest of the batch."""
    monkeypatch.setattr(sampling, "BATCH", 64)
    model = study.train("edm", digits, **TINY | SNAPSHOTS)
    asked = {"label": "EDM", "steps": [2], "sampler": "heun", "seeds": [0], "samples": 40, "features": "pixels"}
    found = [study.evaluate(one, digits, **asked)["rows"][0] for one in model.snapshots.values()]
    assert len({row["fid"] for row in found}) == len({row["model"] for row in found}) == 2
    assert [row["nfe"] for row in found] == [3, 3]


def test_a_strip_shows_the_first_samples(evaluated, teacher):
    for strip in evaluated["strips"]:
        shown = Image.open(io.BytesIO(base64.b64decode(strip["png"])))
        assert shown.size == (evaluation.STRIP * 8, 8)
        images = data.to_uint8(study.sample(teacher, range(evaluation.STRIP), sampler="heun", steps=strip["steps"]))
        assert np.array_equal(np.asarray(shown), torch.cat(list(images[:, 0]), dim=-1).numpy())


def test_scores_are_found_again_and_not_repeated(evaluated, teacher, digits, monkeypatch):
    forbid(monkeypatch, "sample_batches", "score", room=evaluation)
    again = study.evaluate(teacher, digits, label="EDM", steps=[1, 2], sampler="heun", seeds=[0, 1])
    assert again == evaluated
    renamed = study.evaluate(teacher, digits, label="Teacher", steps=[2], sampler="heun", seeds=[0, 1])
    assert [row["fid"] for row in renamed["rows"]] == [row["fid"] for row in evaluated["rows"][4:]]
    for changed in ({"steps": [3]}, {"seeds": [0]}, {"sampler": "euler"}, {"samples": 32}):
        with pytest.raises(AssertionError):
            study.evaluate(
                teacher, digits, **{"label": "EDM", "steps": [1], "sampler": "heun", "seeds": [0, 1]} | changed
            )


def test_a_plain_script_prints_what_it_records(evaluated, capsys):
    study.record(evaluated)
    heading, names, *lines = (line.split() for line in capsys.readouterr().out.splitlines())
    assert " ".join(heading) == "digits, all pixels, all ± nn_ratio precision recall class_gap"
    assert names == ["label", "size", "kimg", "passes", "sampler", "steps", "nfe"]
    assert [line[-8] for line in lines] == ["1.0", "3.0"]  # NFE, a line for each number of steps


def scores(fid, judges=("pixels", "digits"), splits=("train", "test"), **given):
    """A bundle of rows at two sampling seeds, whose distances rise by 1 with the seed, the judge and the split."""
    seats = [(split, judge) for split in splits for judge in judges]
    rows = [
        score_row(split=split, features=judge, seed=seed, fid=fid + seed + place, **given)
        for place, (split, judge) in enumerate(seats)
        for seed in (0, 1)
    ]
    return bundle(rows, [])


def recorded(*bundles):
    return study._table(pd.DataFrame([row for scores in bundles for row in scores["rows"]]), ["precision"])


def test_a_record_has_a_line_for_each_model_and_a_column_for_each_judge_and_split():
    table = recorded(scores(10, label="KD", model="m1"), scores(20, label="GDD", model="m2"))
    assert list(table) == ["pixels, test", "pixels, train", "digits, test", "digits, train", "±", "precision"]
    assert list(table.index.get_level_values("label")) == ["KD", "GDD"]  # as they were given
    assert table.iloc[0].tolist()[:4] == [12.5, 10.5, 13.5, 11.5]
    assert table["±"].tolist() == [pytest.approx(math.sqrt(0.5))] * 2  # over sampling seeds


def test_a_record_never_averages_two_models():
    table = recorded(scores(10, model="m1", recipe="r1"), scores(20, model="m2", recipe="r2"))
    assert table["pixels, train"].tolist() == [10.5, 20.5]
    assert "model" not in table.index.names


def test_a_record_of_one_split_or_of_several_is_whole():
    (line,) = recorded(scores(10, splits=["train"])).to_dict("records")
    assert line == {"pixels, train": 10.5, "digits, train": 11.5, "±": pytest.approx(math.sqrt(0.5)), "precision": 0.7}
    table = recorded(scores(10, label="KD"), scores(20, splits=["train"], label="GDD"))
    assert table["digits, train"].tolist() == [11.5, 21.5]
    assert math.isnan(table["digits, test"].iloc[1])


def test_a_record_of_what_was_made_elsewhere_is_whole():
    unknown = dict.fromkeys(["size", "kimg", "passes", "sampler", "steps", "nfe", "precision"])
    table = recorded(scores(10, label="KD"), scores(20, label="theirs", **unknown))
    assert table["pixels, test"].tolist() == [12.5, 22.5]
    assert list(table.index.get_level_values("label")) == ["KD", "theirs"]
    assert math.isnan(table["precision"].iloc[1])


def test_what_is_recorded_can_be_read_back(evaluated, monkeypatch, tmp_path):
    shown = []
    monkeypatch.setattr("IPython.get_ipython", object)
    monkeypatch.setattr("IPython.display.display", lambda data, raw: shown.append((data, raw)))
    study.record(evaluated, evaluated)
    ((data, raw),) = shown
    assert raw
    assert "EDM" in data["text/plain"]
    notebook = {"cells": [{"outputs": [{"data": json.loads(json.dumps(data))}]}]}
    (tmp_path / "executed.ipynb").write_text(json.dumps(notebook))
    (read,) = bundles_in(tmp_path / "executed.ipynb")
    assert read["rows"] == evaluated["rows"] * 2


def test_evaluations_are_counted_through_the_model(teacher):
    with counting(teacher.denoiser) as counter:
        next(models.sample_batches(teacher, [0], sampler="heun", steps=3, network_batch=1))
    assert counter.rows == 5


def test_mistakes_are_named_before_anything_is_made(digits, teacher, small_batches, monkeypatch, refuses):
    pairs = study.make_pairs(teacher, 16, steps=2)
    unlabelled = replace(digits, labels=None)
    forbid(monkeypatch, "fit", "sample")
    with refuses("'edn'", "did you mean 'edm'?"):
        study.train("edn", digits, **TINY)
    with refuses("edm has no option 'bacth_size'", "did you mean 'batch_size'?"):
        study.train("edm", digits, size="0.05M", kimg=1, bacth_size=8)
    with refuses("edm has no option 'pmean'", "did you mean 'p_mean'?"):
        study.train("edm", digits, **TINY, pmean=1)
    with refuses("'0.5M'", "'0.05M'"):
        study.train("edm", digits, size="0.5M", kimg=1)
    with refuses("annealing-reflow trains on pairs, not on images", "make_pairs"):
        study.train("annealing-reflow", digits, **TINY)
    with refuses("flow-guided-distillation needs a teacher"):
        study.train("flow-guided-distillation", pairs, **TINY)
    with refuses("needs a size or an init model"):
        study.train("edm", digits, kimg=1)
    with refuses("size 0.2M differs from the init model's 0.05M"):
        study.train("edm", digits, init=teacher, **TINY | {"size": "0.2M"})
    with refuses("needs labels"):
        study.train("edm", unlabelled, conditional=True, **TINY)
    with refuses("must be positive"):
        study.train("edm", digits, **TINY | {"kimg": 0})
    with refuses("'huen'", "did you mean 'heun'?"):
        study.make_pairs(teacher, 16, sampler="huen")
    with refuses("did you mean 'digits'?"):
        study.evaluate(teacher, digits, label="EDM", features="digit")


def test_mistakes_in_sampling_are_named(teacher, refuses):
    with refuses("'eular'", "did you mean 'euler'?"):
        study.sample(teacher, [0], sampler="eular")
    with refuses("at least 1 step, not 0"):
        study.sample(teacher, [0], steps=0)


def test_a_model_on_another_path_is_another_row(teacher, digits):
    here, there = teacher, teacher.on(VP(alphas_cumprod("sigmoid", 64)))
    assert here.name != there.name != teacher.on(VP(alphas_cumprod("linear", 64))).name
    asked = dict(label="teacher", steps=[2], sampler="ddim", seeds=[0], samples=64)
    ours, theirs = (study.evaluate(model, digits, **asked)["rows"][0] for model in (here, there))
    assert (ours["model"], theirs["model"]) == (here.name, there.name)
    assert ours["fid"] != theirs["fid"]
