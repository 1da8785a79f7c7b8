"""Pairs of real images and the noise that the teacher's ODE finds for them."""

import pytest
import torch

from onestep_bench import data, samplers, study
from onestep_bench.models import sampling

pytestmark = pytest.mark.usefixtures("store_folder")


@pytest.fixture(scope="module")
def digits():
    return data.load("digits")


@pytest.fixture(autouse=True)
def _small_batches(monkeypatch):
    monkeypatch.setattr(sampling, "BATCH", 8)


def teacher_of(digits, **more):
    return study.train("edm", digits, size="0.05M", kimg=0.064, batch_size=16, **more)


def test_real_images_and_the_noise_that_leads_to_them(digits):
    teacher = teacher_of(digits)
    pairs = study.invert_pairs(teacher, digits, 20, steps=60)
    assert pairs.of_data
    assert torch.equal(pairs.images, data.to_unit(digits.images[:20]))
    again = samplers.heun(teacher.denoiser, pairs.noise, samplers.karras_times(60))
    assert (again - pairs.images).abs().mean() < 0.02
    assert study.invert_pairs(teacher, digits, 20, steps=60).artifact.key == pairs.artifact.key
    assert pairs.artifact.meta["cost"]["passes"] == pytest.approx(20 * (2 * 60 - 2) / 1000)
    assert study.train("kd", pairs, teacher=teacher, init=teacher, kimg=0.02, batch_size=10).artifact


def test_an_image_that_comes_again_has_other_noise(digits):
    few = data.Dataset("few", digits.images[:5], digits.labels[:5], "0" * 16)
    pairs = study.invert_pairs(teacher_of(digits), few, 12, steps=3)
    assert torch.equal(pairs.images[:5], pairs.images[5:10])
    assert not torch.equal(pairs.noise[:5], pairs.noise[5:10])


def test_a_conditional_teacher_walks_up_with_the_labels(digits, refuses):
    teacher = teacher_of(digits, conditional=True)
    pairs = study.invert_pairs(teacher, digits, 10, steps=3)
    assert torch.equal(pairs.labels, digits.labels[:10])
    unlabelled = data.Dataset("few", digits.images[:5], None, "0" * 16)
    with refuses("conditional", "few has no labels"):
        study.invert_pairs(teacher, unlabelled, 10)


def test_images_of_another_size_are_refused(digits, refuses):
    larger = data.Dataset("large", torch.zeros(4, 1, 16, 16, dtype=torch.uint8), None, "0" * 16)
    with refuses("the teacher makes images of", "large"):
        study.invert_pairs(teacher_of(digits), larger, 4)
