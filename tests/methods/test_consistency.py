"""Consistency distillation and tuning: the exact consistency function is their fixed point."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from onestep_bench.denoiser import EDM, IdealDenoiser
from onestep_bench.errors import OnestepError
from onestep_bench.methods.consistency import (
    DistillationConfig,
    TuningConfig,
    distillation_loss,
    heun_step,
    nearer_level,
    tuning_loss,
)
from onestep_bench.paths import VE
from onestep_bench.samplers import heun

POINT = torch.full((1, 1, 4, 4), 0.3, dtype=torch.float64)


class ToOnePoint(torch.nn.Module):
    """The exact consistency function, denoiser and all, of data that are a single image."""

    path, native = VE, EDM()

    def forward(self, x, t, labels=None, *, want="x0"):
        x0 = POINT.expand_as(x)
        return x0 if want == "x0" else VE.velocity(x0, VE.from_x0(x, x0, torch.as_tensor(t)), torch.as_tensor(t))


class Biased(ToOnePoint):
    def forward(self, x, t, labels=None, *, want="x0"):
        return super().forward(x, t, want="x0") + 0.01 * torch.as_tensor(t).reshape(-1, 1, 1, 1)


def rows(values):
    return torch.tensor(values, dtype=torch.float64)


def noise(count):
    return torch.randn(count, 1, 4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def test_the_exact_function_has_no_loss_and_a_biased_one_has():
    t, t_next = rows([80.0, 1.0, 0.1]), rows([40.0, 0.5, 0.05])
    data, eps, exact = POINT.expand(3, -1, -1, -1), noise(3), ToOnePoint()
    assert distillation_loss(exact, exact, exact, data, eps, t, t_next, "l2").item() == pytest.approx(0, abs=1e-20)
    biased = distillation_loss(Biased(), exact, exact, data, eps, t, t_next, "l2").item()
    assert biased == pytest.approx((0.01 * t).square().mean().item())
    assert tuning_loss(exact, data, eps, t, t_next, 0.0).item() == pytest.approx(0, abs=1e-6)
    # |f(t) - f(r)| / (t - r) of a bias 0.01 t in 16 pixels
    assert tuning_loss(Biased(), data, eps, t, t_next, 0.0).item() == pytest.approx(0.01 * 4)


def test_at_level_0_tuning_asks_the_image_itself():
    t, r = rows([0.5, 2.0]), rows([0.0, 0.0])
    data = noise(2)
    expected = (Biased()(data, t) - data).flatten(1).norm(dim=1) / t
    assert tuning_loss(Biased(), data, noise(2), t, r, 0.0).item() == pytest.approx(expected.mean().item())


def test_the_pseudo_huber_norm():
    t, r, c = rows([1.0]), rows([0.0]), 0.3
    distance = (POINT - noise(1)).norm().item()
    loss = tuning_loss(ToOnePoint(), noise(1), noise(1), t, r, c).item()
    assert loss == pytest.approx(math.hypot(distance, c) - c)


def test_no_gradient_is_nan_where_the_student_agrees_with_itself():
    bias = torch.zeros((), dtype=torch.float64, requires_grad=True)

    class Agreeing(ToOnePoint):
        def forward(self, x, t, labels=None, *, want="x0"):
            return super().forward(x, t) + bias

    tuning_loss(Agreeing(), POINT, noise(1), rows([2.0]), rows([1.0]), 0.0).backward()
    assert bias.grad.isfinite()


def test_the_teachers_step_is_heuns():
    teacher = IdealDenoiser(noise(6).float())
    eps = noise(4).float()
    # The sampler starts from t eps; its first step of two is the whole of Heun's method.
    levels = torch.tensor([5.0, 2.0, 1.0], dtype=torch.float64)
    seen = []

    class Watched:
        path = VE

        def __call__(self, x, t, labels=None, *, want="x0"):
            seen.append((x, float(t)))
            return teacher(x, t, labels, want=want)

    heun(Watched(), eps, levels)
    after_one = next(x for x, t in seen[2:] if t == 2.0)
    stepped = heun_step(teacher, 5 * eps.double(), torch.full((4,), 5.0).double(), torch.full((4,), 2.0).double())
    torch.testing.assert_close(stepped, after_one)


@given(t=st.floats(1e-3, 80), fold=st.integers(1, 12))
def test_the_nearer_level_lies_below_and_comes_closer(t, fold):
    levels = [nearer_level(rows([t]), 2.0**-a).item() for a in (fold, fold + 1)]
    assert 0 <= levels[0] <= levels[1] < t


def test_the_nearer_level_is_its_formula():
    t, shrink = 2.0, 1 / 16
    expected = t * (1 - shrink * (1 + 8 / (1 + math.exp(t))))
    assert nearer_level(rows([t]), shrink).item() == pytest.approx(expected)
    assert nearer_level(rows([0.1]), 0.5).item() == 0  # the start of training is plain denoising


@pytest.mark.parametrize("options", [{"levels": 1}, {"target_decay": 1.0}])
def test_bad_options_of_distillation(options):
    with pytest.raises(OnestepError, match=next(iter(options))):
        DistillationConfig(**options)


@pytest.mark.parametrize("options", [{"q": 1.0}, {"folds": 0}, {"c": -0.1}])
def test_bad_options_of_tuning(options):
    with pytest.raises(OnestepError, match="q must be above 1"):
        TuningConfig(**options)
