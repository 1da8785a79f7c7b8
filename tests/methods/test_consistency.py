"""Consistency distillation and tuning: the exact consistency function is their fixed point."""

import math
from contextlib import nullcontext

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from two_times import Arrays, edm, holds, holds_gradients

from onestep_bench import losses, methods, networks
from onestep_bench.denoiser import EDM, Denoiser, Flow, IdealDenoiser
from onestep_bench.errors import OnestepError
from onestep_bench.methods import consistency
from onestep_bench.methods.consistency import (
    DistillationConfig,
    TuningConfig,
    distillation_loss,
    heun_step,
    nearer_level,
    tuning_loss,
)
from onestep_bench.paths import VE
from onestep_bench.samplers import heun, karras_times
from onestep_bench.training.config import TrainConfig
from onestep_bench.training.loop import fit
from onestep_bench.training.source import Source

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


@pytest.fixture(scope="module")
def arrays():
    """Arrays that the authors' code made (locuslab/ect, openai/consistency_models), float64."""
    return Arrays("consistency")


def assert_reproduced(loss, student, arrays, group):
    """The loss, a function of the rows that it is to see, and its gradients are those of the group."""
    every = slice(None)
    rows = torch.stack([loss(slice(row, row + 1)) for row in range(len(arrays["x"]))])
    holds(rows.detach(), arrays[f"{group}/per_sample"])
    holds(loss(every).detach(), arrays[f"{group}/loss"])
    holds_gradients(loss(every), student.net, arrays, group)


def test_tuning_is_the_released_loss(arrays):
    data, noise = arrays["x"], arrays["noise"]
    t = (2 * arrays["ect/normal"] - 1.1).exp()
    torch.testing.assert_close(t, arrays["ect/t"])
    groups = arrays.groups("ect/loss/", "loss")
    assert groups
    for group in groups:
        stage, c = group.rpartition("/stage")[2].split("_c")
        student, r = edm(arrays, "student"), nearer_level(t, 2.0 ** -(int(stage) + 1))
        torch.testing.assert_close(r, arrays[f"{group}/r"], rtol=1e-12, atol=0)

        def loss(of, student=student, r=r, c=float(c)):
            return tuning_loss(student, data[of], noise[of], t[of], r[of], c)

        assert_reproduced(loss, student, arrays, group)


def test_the_nearer_level_is_the_released_one(arrays):
    names = [name for name in arrays.found if name.startswith("ect/r/")]
    assert names
    for name in names:
        *numbers, kind, stage = name.rpartition("/")[2].split("_")
        q, k, b = (float(number[1:]) for number in numbers)
        shrink = q ** -(int(stage.removeprefix("stage")) + 1.0)
        found = nearer_level(arrays["ect/grid"], shrink, k if kind == "sigmoid" else 0.0, b)
        torch.testing.assert_close(found, arrays[name], rtol=1e-12, atol=0)


@pytest.mark.parametrize("distance", ["l2", "l1"])
def test_distillation_is_the_released_loss(arrays, distance):
    student, target = (edm(arrays, role, boundary=0.002) for role in ("student", "target"))
    teacher, levels, place = edm(arrays, "teacher"), karras_times(arrays["cm/levels"]), arrays["cm/index"]
    torch.testing.assert_close(levels[:-1], arrays["cm/sigmas"], rtol=1e-12, atol=0)
    t, t_next = levels[place], levels[place + 1]
    weight = losses.weighting(arrays["cm/weight"])(t, t_next)

    def loss(of):
        rows = zip(arrays["x"][of, None], arrays["noise"][of, None], t[of, None], t_next[of, None], strict=True)
        found = [distillation_loss(student, target, teacher, *row, distance) for row in rows]
        return (weight[of] * torch.stack(found)).mean()

    assert_reproduced(loss, student, arrays, f"cm/cd_{distance}")


class Dropping(torch.nn.Module):
    """Answers dropout of ones, plus 0.01 times the level."""

    def forward(self, x, t, labels=None, *, want="x0"):
        return torch.nn.functional.dropout(torch.ones_like(x)) + 0.01 * t.reshape(-1, 1, 1, 1)


def test_both_levels_of_tuning_drop_the_same():
    t, r = rows([5.0, 1.0]), rows([5.0 - 1e-4, 1.0 - 1e-3])
    # The masks cancel, and |f(t) - f(r)| / (t - r) of a slope 0.01 in 16 pixels is left; other masks would make it 1e4.
    found = [tuning_loss(Dropping(), noise(2), noise(2), t, r, 0.0).item() for _ in range(2)]
    assert found == pytest.approx([0.01 * 4] * 2, rel=1e-5)


def distilled(dropout, **options):
    """The student of three steps of consistency distillation on noise, and the names of what was trained."""
    torch.manual_seed(0)
    nets = [networks.sized("0.05M", 8, 1, dropout=dropout) for _ in range(2)]
    for parameter in (parameter for net in nets for parameter in net.parameters()):
        parameter.data += 0.05 * torch.randn_like(parameter)
    method, config = methods.get("consistency-distillation"), DistillationConfig(**options)
    student = method.student(config, nets[0], None, None).train()
    made = methods.Nets(student, Denoiser(nets[1], EDM()).eval().requires_grad_(False))
    made.auxiliary = method.auxiliary(made, config)
    source = Source(torch.randint(0, 256, (8, 1, 8, 8), dtype=torch.uint8), None, None, "cpu")
    trained = {"student": student, **made.auxiliary}
    training = TrainConfig(kimg=0.024, batch_size=8, accumulate=2)
    rows = list(fit(method.objective(made, config), trained, source, training, seed=0))
    return rows, set(trained)


def test_without_decay_the_target_is_the_student_itself():
    rows, names = distilled(0.0, target_decay=0.0)
    followed, names_then = distilled(0.0, target_decay=1e-12)
    assert names == {"student"}
    assert names_then == {"student", "target"}
    assert [row.loss for row in rows] == pytest.approx([row.loss for row in followed], rel=1e-6)
    assert rows[-1].passes == {"student": 0.024 * (3 + 1)}


def test_the_student_that_is_its_own_target_drops_the_same(monkeypatch):
    with_dropout, without = (distilled(dropout, target_decay=0.0)[0] for dropout in (0.5, 0.0))
    monkeypatch.setattr(consistency.losses, "same_dropout", lambda device: nullcontext())
    apart = distilled(0.5, target_decay=0.0)[0]
    assert with_dropout[0].loss < 3 * without[0].loss < apart[0].loss


def test_a_boundary_is_where_a_student_is_the_identity():
    net, as_distilled = networks.sized("0.05M", 8, 1), methods.get("consistency-distillation").student
    student = as_distilled(DistillationConfig(boundary=0.002), net, EDM(0.7), None)
    assert student.native == EDM(0.7, boundary=0.002)
    assert as_distilled(DistillationConfig(), net, EDM(0.7, 0.002), None).native.boundary == 0.002
    with pytest.raises(OnestepError, match="only an EDM network"):
        as_distilled(DistillationConfig(boundary=0.002), net, Flow(), None)


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


@pytest.mark.parametrize("options", [{"levels": 1}, {"target_decay": 1.0}, {"boundary": -0.1}])
def test_bad_options_of_distillation(options):
    with pytest.raises(OnestepError, match=next(iter(options))):
        DistillationConfig(**options)


@pytest.mark.parametrize("options", [{"q": 1.0}, {"folds": 0}, {"c": -0.1}])
def test_bad_options_of_tuning(options):
    with pytest.raises(OnestepError, match="q must be above 1"):
        TuningConfig(**options)
