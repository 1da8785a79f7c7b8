"""sCT and sCD: against arrays of NVlabs/FastGen 34f30e8ff1a5, and the exact consistency function of Gaussian data."""

import math

import pytest
import torch
from two_times import Arrays, ExactConsistency, edm, exact_map, gaussian, holds, holds_gradients

from onestep_bench.denoiser import Denoiser, Flow
from onestep_bench.methods.scm import DATA, SCMConfig, normalised, tangent, trig_output, weighted
from onestep_bench.paths import VE


@pytest.fixture(scope="module")
def arrays():
    return Arrays("consistency")


def test_sct_and_scd_are_those_of_fastgen(arrays):
    t, sigma, noise = (arrays[f"scm/{name}"] for name in ("t", "sigma", "noise"))
    torch.testing.assert_close(t, torch.atan(sigma / DATA))
    cos, sin = (value.reshape(-1, 1, 1, 1) for value in (t.cos(), t.sin()))
    data, z = arrays["x"], DATA * noise
    x = cos * data + sin * z
    holds(x, arrays["scm/x_t"])
    for group in arrays.groups("scm/", "loss"):
        settings, student = arrays[f"{group}/settings"], edm(arrays, "student")
        moves = cos * z - sin * data
        if settings["teacher"]:
            moves = DATA * trig_output(edm(arrays, "teacher"), x, t).detach()
        holds(moves, arrays[f"{group}/dxdt"])
        share = min(1.0, settings["step"] / settings["warmup_steps"])
        assert share == arrays[f"{group}/r"]
        g, change = tangent(student, x, t, moves, share)
        holds(change, arrays[f"{group}/tangent"])
        dim = data[0].numel()
        # The root of the sum is sqrt(dim) times that of the mean.
        whole = 1.0 if settings["rms_norm"] else math.sqrt(dim)
        g = normalised(g, settings["c"] / whole) / whole
        output = trig_output(student, x, t)
        holds(output.detach(), arrays[f"{group}/F"])
        error = (output - output.detach() - g).square().mean((1, 2, 3))
        holds(error.detach(), arrays[f"{group}/unweighted"])
        learned = arrays["scm/logvar"].clone().requires_grad_()
        log_variance = learned[0] + learned[1] * sigma.log() / 4
        prior = 1 / sigma if settings["prior_weight"] else 1.0
        losses = weighted(error / (dim if settings["divide_by_dim"] else 1), log_variance, prior)
        holds(losses.detach(), arrays[f"{group}/per_sample"])
        holds(losses.mean().detach(), arrays[f"{group}/loss"])
        holds_gradients(losses.mean(), student.net, arrays, group)
        holds(torch.autograd.grad(losses.mean(), learned)[0], arrays[f"{group}/grad_logvar"])


def exact(wrong=0.0):
    """The consistency function of Gaussian data as a denoiser on VE."""
    net = ExactConsistency()
    net.wrong.data.fill_(wrong)
    return Denoiser(net, Flow(plain=True)).on(VE)


def on_trig(rows):
    data, noise, t, _ = gaussian(rows)
    t = torch.atan(t / (1 - t) / DATA)
    cos, sin = (value.reshape(-1, 1, 1, 1) for value in (t.cos(), t.sin()))
    return cos * data + sin * DATA * noise, cos * DATA * noise - sin * data, t


def test_the_exact_function_has_no_tangent_and_another_has():
    x, _, t = on_trig(64)
    moves = DATA * trig_output(exact_map().denoiser.on(VE), x, t).detach()
    assert tangent(exact(), x, t, moves, 1.0)[0].abs().max() < 1e-9
    assert tangent(exact(0.1), x, t, moves, 1.0)[0].square().mean() > 1e-5
    assert tangent(exact(), x, t, moves, 0.5)[0].square().mean() > 1e-5


def test_on_data_the_gradient_vanishes_at_the_exact_function_alone():
    """Without the normalisation, under which a mean is no longer one."""
    x, moves, t = on_trig(40_000)
    slopes = []
    for wrong in (0.0, 0.1, -0.1):
        student = exact(wrong)
        g = tangent(student, x, t, moves, 1.0)[0]
        output = trig_output(student, x, t)
        loss = (output - output.detach() - g).square().mean()
        slopes.append(torch.autograd.grad(loss, student.net.wrong)[0].item())
    assert abs(slopes[0]) < 0.2 * min(map(abs, slopes[1:]))
    assert slopes[1] * slopes[2] < 0


def test_the_tangent_has_unit_size():
    g = torch.randn(3, 2, 4, 4, dtype=torch.float64) * torch.tensor([1e-3, 1.0, 1e3]).reshape(-1, 1, 1, 1)
    sizes = normalised(g, 0.1).square().mean((1, 2, 3)).sqrt()
    assert sizes[0] < 0.02
    assert 0.85 < sizes[1] < 0.95
    assert sizes[2] == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize("options", [{"p_std": 0.0}, {"c": -1.0}, {"warmup": 2.0}])
def test_bad_options(options, refuses):
    with refuses(next(iter(options))):
        SCMConfig(**options)
