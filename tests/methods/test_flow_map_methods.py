"""Every method of consistency and flow maps by `study.train`: from random weights, from a teacher's, with classes."""

from dataclasses import replace

import pytest
import torch

from onestep_bench import data, methods, study
from onestep_bench.errors import OnestepError
from onestep_bench.flow_map import FlowMap
from onestep_bench.training.config import TrainConfig

pytestmark = pytest.mark.usefixtures("store_folder")

COMMON = {"kimg": 0.064, "batch_size": 16, "lr": 1e-3}
METHODS = {
    "meanflow": {"drop": 0.25, "omega": 2.0, "kappa": 0.5, "guide_to": 0.9},
    "meanflow-distillation": {"loss": "lagrangian"},
    "alpha-flow": {},
    "shortcut": {},
    "progressive-self-distillation": {},
    "imm": {},
    "soflow": {"same": 0.25},
    "facm": {},
    "facm-distillation": {},
    "sct": {},
    "scd": {},
    "consistency-training": {"first": 2, "last": 8},
    "truncated-consistency": {},
    "2-rf++": {},
}
TWO_TIMES = [name for name in METHODS if methods.get(name).two_times]


@pytest.fixture
def digits():
    whole = data.load("digits")
    return replace(whole, images=whole.images[:64], labels=whole.labels[:64], digest="0123456789abcdef")


@pytest.fixture
def teacher(digits):
    return study.train("edm", digits, size="0.01M", conditional=True, **COMMON)


def given(name, teacher, digits):
    material = study.make_pairs(teacher, 16, steps=2) if methods.get(name).data == "pairs" else digits
    return material, teacher if methods.get(name).needs_teacher else None


@pytest.mark.parametrize("name", METHODS)
def test_students_start_from_the_teachers_weights_and_are_sampled_in_any_number_of_steps(name, teacher, digits):
    material, asked = given(name, teacher, digits)
    student = study.train(name, material, teacher=asked, init=teacher, conditional=True, **METHODS[name], **COMMON)
    assert student.size == teacher.size
    assert student.denoiser.two_times == (name in TWO_TIMES)
    for sampler in ("push-forward", "re-noising"):
        for steps in (1, 3):
            assert study.sample(student, range(3), sampler=sampler, steps=steps).isfinite().all()


@pytest.mark.parametrize("name", TWO_TIMES)
def test_students_of_two_times_start_from_random_weights_too(name, teacher, digits):
    material, asked = given(name, teacher, digits)
    student = study.train(name, material, teacher=asked, size="0.01M", conditional=True, **METHODS[name], **COMMON)
    again = study.train(name, material, teacher=asked, size="0.01M", conditional=True, **METHODS[name], **COMMON)
    assert again.artifact.key == student.artifact.key
    x, t = torch.randn(2, 1, 8, 8), torch.tensor([0.9, 0.6])
    labels = torch.tensor([1, 2])
    near, far = (FlowMap(student.denoiser).jump(x, t, t * share, labels) for share in (0.9, 0.0))
    assert not torch.allclose(near, far)
    assert student.denoiser.net.map_second.map_layer1.weight.abs().max() > 0


def test_a_student_is_its_teacher_before_it_is_trained(teacher, digits):
    torch.manual_seed(0)
    method, training = methods.get("meanflow"), TrainConfig(1.0)
    counts = teacher.class_counts
    student = study._student(method, method.config(), training, digits, "0.01M", counts, 0, teacher, None)
    x, t, labels = torch.randn(2, 1, 8, 8), torch.tensor([0.9, 0.6]), torch.tensor([1, 2])
    found = FlowMap(student.eval()).average(x, t, t / 2, labels)
    torch.testing.assert_close(found, teacher.denoiser.on(student.path)(x, t, labels, want="velocity"))


def test_only_students_with_classes_leave_them_out(digits):
    with pytest.raises(OnestepError, match="this student is told none; train it with conditional=True"):
        study.train("meanflow", digits, size="0.01M", drop=0.1, **COMMON)


def test_groups_must_fit_the_batch(digits):
    with pytest.raises(OnestepError, match=r"imm: batch_size=16 .* whole groups of 3; make it a multiple of 3"):
        study.train("imm", digits, size="0.01M", members=3, **COMMON)
