"""Mean flows: against arrays of the released code, and against the exact average velocity of Gaussian data.

meanflow.npz was made with Gsunshine/py-meanflow 1f6d72d94247, Gsunshine/meanflow d70cb55d298e, Lyy-iiis/imeanflow
bf60cd7cb653 and NVlabs/FastGen 34f30e8ff1a5; flowmap/* of flowmaps.npz with the authors' losses.py of 10/5/25.
"""

import pytest
import torch
from two_times import Arrays, exact_map, exact_velocity, flow_map, gaussian, holds, holds_gradients, turned

from onestep_bench.flow_map import total_derivative
from onestep_bench.losses import adaptive
from onestep_bench.methods.meanflow import (
    MeanFlowConfig,
    lagrangian_errors,
    squared_errors,
    target,
    two_levels,
)
from onestep_bench.paths import FLOW


@pytest.fixture(scope="module")
def arrays():
    return Arrays("meanflow")


def given(arrays):
    """x_t, v, t, r, and the times as broadcast over images."""
    data, noise, t, r = (arrays[name] for name in "xetr")
    return FLOW.mix(data, noise, t), noise - data, t, r


def test_the_target_is_that_of_the_released_code(arrays):
    x, v, t, r = given(arrays)
    flow = flow_map(arrays)
    holds(flow.average(x, t, r), arrays["meanflow/u"])
    holds(total_derivative(flow, x, t, r, v), arrays["meanflow/du_dt"])
    wanted = target(flow, x, t, r, v, v)
    holds(wanted, arrays["meanflow/target"])
    holds(squared_errors(flow.average(x, t, r), wanted), arrays["meanflow/squared_error"])


def test_losses_and_gradients_are_those_of_the_released_code(arrays):
    x, v, t, r = given(arrays)
    flow, groups = flow_map(arrays), arrays.groups("meanflow/p", "loss")
    assert groups
    for group in groups:
        p, c = (float(part[1:]) for part in group.removeprefix("meanflow/").split("_"))
        losses = adaptive(squared_errors(flow.average(x, t, r), target(flow, x, t, r, v, v)), p, c)
        holds(losses.detach(), arrays[f"{group}/per_sample"])
        holds(losses.mean().detach(), arrays[f"{group}/loss"])
        holds_gradients(losses.mean(), flow.denoiser.net, arrays, group)


def test_levels_are_those_of_the_released_samplers(arrays):
    for version in ("v0", "v1"):
        mean_t, std_t, mean_r, std_r, ratio = arrays[f"sampler/{version}/settings"]
        first, second = (
            torch.sigmoid(mean + std * arrays[f"sampler/normal_{name}"])
            for name, mean, std in (("t", mean_t, std_t), ("r", mean_r, std_r))
        )
        t, r = two_levels(first, second, arrays["sampler/uniform"] < 1 - ratio, swap=version == "v0")
        torch.testing.assert_close(t, arrays[f"sampler/{version}/t"], rtol=1e-5, atol=0)
        torch.testing.assert_close(r, arrays[f"sampler/{version}/r"], rtol=1e-5, atol=0)


def test_improved_mean_flow_is_that_of_the_released_code(arrays):
    """Its network has a head for the velocity beside; ours asks the network itself, which is `boundary`."""
    x, v, t, r = given(arrays)
    flow, p, c = flow_map(arrays), arrays["imf/p"], arrays["imf/c"]
    along = flow.average(x, t, t).detach()
    errors = squared_errors(flow.average(x, t, r), target(flow, x, t, r, v, along))
    holds(errors.detach(), arrays["imf/boundary/squared_error_u"])
    loss = adaptive(errors, p, c).mean()
    holds(loss.detach(), arrays["imf/boundary/loss_u"])
    holds_gradients(loss, flow.denoiser.net, arrays, "imf/boundary")


def test_the_head_of_improved_mean_flow_is_another_direction(arrays):
    x, v, t, r = given(arrays)
    flow, p, c = flow_map(arrays), arrays["imf/p"], arrays["imf/c"]

    def head(h):
        w, *rows = (arrays[f"net/v{name}"] for name in "wbpq")
        b, by_t, by_h = (row.reshape(-1, 1, 1) for row in rows)
        time = t.reshape(-1, 1, 1, 1)
        return (torch.einsum("ij,njhw->nihw", w, x) + b + by_t * time + by_h * h).tanh() - 0.2 * x * torch.cos(time)

    errors = squared_errors(flow.average(x, t, r), target(flow, x, t, r, v, head(0.0)))
    holds(errors.detach(), arrays["imf/head/squared_error_u"])
    second = squared_errors(head((t - r).reshape(-1, 1, 1, 1)), v)
    holds(second, arrays["imf/head/squared_error_v"])
    loss = adaptive(errors, p, c).mean()
    holds((loss + adaptive(second, p, c).mean()).detach(), arrays["imf/head/loss"])
    holds_gradients(loss, flow.denoiser.net, arrays, "imf/head")


def test_distillation_is_that_of_fastgen(arrays):
    x, _, t, r = given(arrays)
    teacher, checked = flow_map(arrays, "teacher"), 0
    v = teacher.average(x, t, t).detach()
    for group in arrays.groups("distill/", "loss"):
        settings, flow = arrays[f"{group}/settings"], flow_map(arrays)
        if settings["form"] != "l2":
            continue
        share = min(1.0, settings["step"] / settings["warmup_steps"]) if settings["warmup_steps"] else 1.0
        errors = squared_errors(flow.average(x, t, r), target(flow, x, t, r, v, v, share=share))
        losses = adaptive(errors, float(settings["norm"].removeprefix("poly_")), settings["c"])
        holds(losses.detach(), arrays[f"{group}/per_sample"])
        holds_gradients(losses.mean(), flow.denoiser.net, arrays, group)
        checked += 1
    assert checked


@pytest.mark.parametrize("kind", ["lagrangian", "lagrangian_teacher", "diagonal"])
def test_lagrangian_self_distillation_is_that_of_the_authors(kind):
    """Their time is 0 at noise: theirs s, t are ours 1 - s, 1 - t, and a velocity has the other sign."""
    arrays = Arrays("flowmaps")
    flow, known = turned(arrays, "net"), turned(arrays, "ema" if kind == "lagrangian_teacher" else "net")
    t, s = 1 - arrays["flowmap/s"], 1 - arrays["flowmap/t"]
    t = s if kind == "diagonal" else t
    data, noise = arrays["x"], arrays["noise"]
    x = FLOW.mix(data, noise, t)
    errors = lagrangian_errors(flow, known.denoiser, x, t, s, noise - data)
    log_weight = torch.stack([torch.ones_like(t), 1 - t, 1 - s], 1) @ arrays["flowmap/weight"]
    losses = (-log_weight).exp() * errors + log_weight
    holds(losses.detach(), arrays[f"flowmap/{kind}/per_sample"])
    holds_gradients(losses.mean(), flow.denoiser.net, arrays, f"flowmap/{kind}")


WAYS = ["meanflow", "improved", "lagrangian"]


def errors_of(loss, flow, x, t, s, velocity):
    if loss == "lagrangian":
        return lagrangian_errors(flow, flow.denoiser, x, t, s, velocity)
    with torch.no_grad():
        along = velocity if loss == "meanflow" else flow.average(x, t, t)
    return squared_errors(flow.average(x, t, s), target(flow, x, t, s, velocity, along))


@pytest.mark.parametrize("loss", WAYS)
def test_the_exact_map_has_no_error_and_another_has(loss):
    data, noise, t, s = gaussian()
    flow, x = exact_map(), FLOW.mix(data, noise, t)
    errors = errors_of(loss, flow, x, t, s, exact_velocity(x, t))
    assert errors.max() < 1e-20
    assert torch.autograd.grad(errors.mean(), flow.denoiser.net.wrong)[0].abs() < 1e-9
    flow.denoiser.net.wrong.data += 0.1
    assert errors_of(loss, flow, x, t, s, exact_velocity(x, t)).mean() > 1e-2


@pytest.mark.parametrize("loss", WAYS)
def test_the_gradient_on_data_vanishes_at_the_exact_map_alone(loss):
    """Data and noise drawn, their straight lines crossing: the error is not 0, but its gradient has mean 0."""
    data, noise, t, s = gaussian(40_000)
    same = torch.arange(len(t)) % 4 == 0
    s = torch.where(same, t, s)
    flow, x = exact_map(), FLOW.mix(data, noise, t)
    slopes = []
    for wrong in (0.0, 0.1):
        flow.denoiser.net.wrong.data.fill_(wrong)
        errors = errors_of(loss, flow, x, t, s, noise - data)
        assert errors.mean() > 0.1
        slopes.append(torch.autograd.grad(errors.mean(), flow.denoiser.net.wrong)[0].item())
    assert slopes[1] > 0
    assert abs(slopes[0]) < 0.1 * slopes[1]


@pytest.mark.parametrize("options", [{"same": 1.5}, {"warmup": -0.1}, {"c": 0.0}])
def test_bad_options(options, refuses):
    with refuses("shares between 0 and 1"):
        MeanFlowConfig(**options)


def test_a_loss_is_named(refuses):
    with refuses("'improve'", "did you mean 'improved'?"):
        MeanFlowConfig(loss="improve")
