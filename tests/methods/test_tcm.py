"""Truncated consistency models: against arrays of NVlabs/TCM b132239ef960, and data whose function is known."""

import pytest
import torch
from two_times import Arrays, edm, holds, holds_gradients

from onestep_bench import losses
from onestep_bench.methods.tcm import TCMConfig, distances, drawn, heavy_tailed, nearer_level
from onestep_bench.paths import VE

# By their names in the released code.
WEIGHTINGS = {"default": "gap", "cout_sq": "c-out-squared"}


@pytest.fixture(scope="module")
def arrays():
    return Arrays("consistency")


def test_the_nearer_level_is_that_of_the_released_code(arrays):
    stages = [name.rpartition("/")[2] for name in arrays.found if name.startswith("tcm/r/")]
    assert stages
    for stage in stages:
        found = nearer_level(arrays["ect/grid"], arrays[f"tcm/ratio/{stage}"])
        torch.testing.assert_close(found, arrays[f"tcm/r/{stage}"], rtol=1e-5, atol=0)


def test_levels_are_those_of_the_released_sampler(arrays):
    names = [name for name in arrays.found if name.startswith("tcm/sampler/t/")]
    assert names
    for name in names:
        parts = name.rpartition("/")[2].replace("from", "").replace("mean", "").replace("scale", "")
        mean, scale, df, low, high = map(float, parts.replace("df", "").replace("to", "").split("_"))
        found = drawn(heavy_tailed(df, mean, scale, low, high), arrays["tcm/sampler/uniform"])
        torch.testing.assert_close(found, arrays[name], rtol=1e-5, atol=0)


def test_the_loss_is_that_of_the_released_code(arrays):
    student, teacher = edm(arrays, "student"), edm(arrays, "teacher")
    t, boundary, cfg = arrays["tcm/loss/t"], arrays["tcm/loss/boundary"], TCMConfig()
    levels = heavy_tailed(cfg.df, cfg.mean, cfg.scale, arrays["tcm/loss/transition"], VE.t_max)
    torch.testing.assert_close(drawn(levels, arrays["tcm/loss/uniform"])[~boundary], t[~boundary], rtol=1e-5, atol=0)
    r = nearer_level(t, arrays["tcm/loss/ratio"])
    torch.testing.assert_close(r, arrays["tcm/loss/r"], rtol=1e-5, atol=0)
    given = arrays["x"], arrays["noise"], t, r, arrays["tcm/loss/transition"], arrays["tcm/loss/c"]
    weight = losses.weighting(WEIGHTINGS[arrays["tcm/loss/weighting"]])
    found = weight(t, r) * distances(student, teacher, *given)
    holds(found[~boundary].detach(), arrays["tcm/loss/per_sample"])
    holds(found[boundary].detach(), arrays["tcm/loss/per_sample_boundary"])
    loss = found[~boundary].mean() + arrays["tcm/loss/boundary_weight"] * found[boundary].mean()
    holds(loss.detach(), arrays["tcm/loss/loss"])
    holds_gradients(loss, student.net, arrays, "tcm/loss")


class ToOnePoint:
    """The exact consistency function of data that are one image."""

    def __init__(self, shift=0.0):
        self.shift = torch.tensor(shift, dtype=torch.float64, requires_grad=True)

    def __call__(self, x, t, labels=None, *, want="x0"):
        return 0.3 + self.shift * t.reshape(-1, 1, 1, 1) + torch.zeros_like(x)


def test_the_exact_function_has_no_loss_and_the_first_stage_decides_below():
    t, r = (torch.tensor(levels, dtype=torch.float64) for levels in ([1.0, 5.0, 5.0], [0.9, 0.9, 2.0]))
    data, eps = torch.full((3, 1, 2, 2), 0.3, dtype=torch.float64), torch.randn(3, 1, 2, 2, dtype=torch.float64)
    exact = ToOnePoint()
    found = distances(exact, exact, data, eps, t, r, 1.0, 1e-8)
    assert found.max() < 1e-8
    assert torch.autograd.grad(found.sum(), exact.shift)[0] == 0
    # A first stage that is off matters where the nearer level lies below the transition.
    off = distances(exact, ToOnePoint(0.1), data, eps, t, r, 1.0, 1e-8)
    torch.testing.assert_close(off.detach(), torch.tensor([0.18, 0.18, 0.0], dtype=torch.float64), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize(
    "options", [{"transition": 0.0}, {"ratio": 1.0}, {"every": 1}, {"c": 0.0}, {"weighting": "gab"}]
)
def test_bad_options(options, refuses):
    with refuses(next(iter(options))):
        TCMConfig(**options)
