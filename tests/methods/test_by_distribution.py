"""Methods that ask for the right distribution, by `study.train`: what their generators start from, and of what size."""

from dataclasses import replace

import pytest
import torch

from onestep_bench import data, study
from onestep_bench.models import checkpoints

pytestmark = pytest.mark.usefixtures("store_folder")

COMMON = {"kimg": 0.032, "batch_size": 16, "lr": 1e-3}
METHODS = {
    "dmd2": ("score-distillation", {"fake_steps": 2}),
    "diff-instruct": (
        "score-distillation",
        {"normalise": False, "sigmas": "log-normal", "fake_steps": 1, "adversarial": 0, "init_sigma": 1.0},
    ),
    "f-distill": ("score-distillation", {"fake_steps": 1, "divergence": "js", "group": 8}),
    "sid": ("sid", {}),
    "sida": ("sid", {"alpha": 1.0, "adversarial": 0.01, "adversarial_after": 0, "group": 8}),
    "drifting": ("drifting", {"group": 8, "space": "pixels+teacher"}),
}


@pytest.fixture
def digits():
    whole = data.load("digits")
    return replace(whole, images=whole.images[:64], labels=whole.labels[:64], digest="0123456789abcdef")


@pytest.fixture
def teacher(digits):
    return study.train("edm", digits, size="0.05M", conditional=True, **COMMON)


@pytest.mark.parametrize("name", METHODS)
def test_generators_are_of_any_size_and_start_from_the_teacher_or_at_random(name, teacher, digits):
    method, options = METHODS[name]
    for start in ({"init": teacher}, {"size": "0.01M"}):
        student = study.train(method, digits, teacher=teacher, conditional=True, **start, **options, **COMMON)
        assert student.size == start.get("size", teacher.size)
        level = options.get("init_sigma", {"score-distillation": 80, "sid": 2.5, "drifting": 1}[method])
        assert student.denoiser.path.t_max == level
        assert study.sample(student, range(3)).isfinite().all()
        loaded = checkpoints.load(student.artifact.folder, "cpu")
        assert loaded.path == student.denoiser.path
    again = study.train(method, digits, teacher=teacher, conditional=True, **start, **options, **COMMON)
    assert again.artifact.key == student.artifact.key


@pytest.mark.parametrize("name", ["dmd2", "sida", "drifting"])
def test_a_small_generator_starts_from_a_slimflow_student(name, teacher, digits):
    """At the noise end of its own path, where alone it was taught to answer; the teacher is another network."""
    method, options = METHODS[name]
    pairs = study.make_pairs(teacher, 32, steps=2)
    small = study.train("annealing-reflow", pairs, size="0.01M", teacher=teacher, **COMMON)
    given = options | COMMON | {"init_sigma": None, "lr": 1e-9}
    student = study.train(method, digits, teacher=teacher, init=small, **given)
    assert (student.size, student.denoiser.path) == (small.size, small.denoiser.path)
    torch.testing.assert_close(study.sample(student, range(3)), study.sample(small, range(3)), rtol=1e-3, atol=1e-3)
