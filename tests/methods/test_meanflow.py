"""Mean flows: against arrays of the released code, and against the exact average velocity of Gaussian data.

meanflow.npz was made with Gsunshine/py-meanflow 1f6d72d94247, Gsunshine/meanflow d70cb55d298e, Lyy-iiis/imeanflow
bf60cd7cb653 and NVlabs/FastGen 34f30e8ff1a5; flowmap/* of flowmaps.npz with the authors' losses.py of 10/5/25.
"""

import pytest
import torch
from two_times import (
    column,
    exact_map,
    exact_velocity,
    flow_map,
    gaussian,
    holds,
    holds_gradients,
    holds_self_distilled,
    reference,
    self_distilled,
)

from onestep_bench.flow_map import total_derivative
from onestep_bench.losses import adaptive
from onestep_bench.methods.meanflow import (
    MeanFlowConfig,
    eulerian_errors,
    guided,
    lagrangian_errors,
    squared_errors,
    step_errors,
    target,
    two_levels,
)
from onestep_bench.paths import FLOW

arrays, flowmaps = reference("meanflow"), reference("flowmaps")


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
    second = squared_errors(along, v)
    holds(second, arrays["imf/boundary/squared_error_v"])
    holds((loss + adaptive(second, p, c).mean()).detach(), arrays["imf/boundary/loss"])


class Head(torch.nn.Module):
    """imf's head beside u: v(x, t, h) = tanh(vw x + vb + vp t + vq h) - 0.2 x cos t."""

    def __init__(self, arrays):
        super().__init__()
        for name in ("vw", "vb", "vp", "vq"):
            setattr(self, name, torch.nn.Parameter(arrays[f"net/{name}"].clone()))

    def forward(self, x, t, h, inside=0.0):
        b, by_t, by_h = (row.reshape(-1, 1, 1) for row in (self.vb, self.vp, self.vq))
        shifted = torch.einsum("ij,njhw->nihw", self.vw, x) + b + by_t * column(t) + by_h * column(h) + inside
        return shifted.tanh() - 0.2 * x * torch.cos(column(t))


def test_the_head_of_improved_mean_flow_is_another_direction(arrays):
    x, v, t, r = given(arrays)
    flow, head, p, c = flow_map(arrays), Head(arrays), arrays["imf/p"], arrays["imf/c"]
    along = head(x, t, 0 * t).detach()
    errors = squared_errors(flow.average(x, t, r), target(flow, x, t, r, v, along))
    holds(errors.detach(), arrays["imf/head/squared_error_u"])
    second = squared_errors(head(x, t, t - r), v)
    holds(second.detach(), arrays["imf/head/squared_error_v"])
    loss = (adaptive(errors, p, c) + adaptive(second, p, c)).mean()
    holds(loss.detach(), arrays["imf/head/loss"])
    for net in (flow.denoiser.net, head):
        holds_gradients(loss, net, arrays, "imf/head")


def dropped_labels(arrays, classes):
    """(labels one-hot, the same of which the first rows have none, which rows those are) by the file's draws."""
    labels = torch.nn.functional.one_hot(arrays["labels"], classes).double()
    count = (arrays["guided/drop_uniform"] < arrays["guided/drop_probability"]).sum()
    dropped = torch.arange(len(labels)) < count
    return labels, labels * ~dropped[:, None], dropped


def test_guidance_inside_the_target_is_that_of_the_released_code(arrays):
    x, v, t, r = given(arrays)
    groups = arrays.groups("guided/omega", "loss")
    assert groups
    for group in groups:
        omega, kappa, within = group.removeprefix("guided/").split("_")
        omega, kappa = float(omega.removeprefix("omega")), float(kappa.removeprefix("kappa"))
        low, high = map(float, within.removeprefix("t").split("-"))
        flow = flow_map(arrays)
        flow.denoiser.net.give_classes(arrays)
        labels, given_labels, dropped = dropped_labels(arrays, flow.denoiser.num_classes)
        with torch.no_grad():
            without, with_label = (flow.average(x, t, t, told) for told in (0 * labels, labels))
        wanted = guided(v, without, with_label, omega, kappa, ~dropped & (low <= t) & (t <= high))
        wanted = target(flow, x, t, r, wanted, wanted, given_labels)
        loss = adaptive(squared_errors(flow.average(x, t, r, given_labels), wanted), 1.0, 0.01).mean()
        holds(loss.detach(), arrays[f"{group}/loss"])
        holds_gradients(loss, flow.denoiser.net, arrays, group)


def test_guidance_of_improved_mean_flow_is_that_of_the_released_code(arrays):
    """Its networks are told the guidance; ours are not, so that the test tells them. The mix is ours."""
    x, v, t, r = given(arrays)
    flow, head, p, c = flow_map(arrays), Head(arrays), arrays["imf/p"], arrays["imf/c"]
    net = flow.denoiser.net
    net.give_classes(arrays)
    labels, given_labels, dropped = dropped_labels(arrays, net.label_dim)
    omega, low, high = (arrays[f"imf/guided/{name}"] for name in ("omega", "t_min", "t_max"))
    low, high = (torch.where(r == t, end, level) for end, level in ((0.0, low), (1.0, high)))

    def told(scale, low, high):
        return column(0.1 * scale.log() + 0.05 * low + 0.05 * (1 - high))

    scale = torch.where((low <= t) & (t <= high), omega, 1.0)
    all_levels = torch.zeros_like(t), torch.ones_like(t)
    with torch.no_grad():
        within = head(x, t, 0 * t, told(scale, *all_levels) + net.of_classes(labels))
        without = head(x, t, 0 * t, told(torch.ones_like(t), *all_levels) + net.of_classes(0 * labels))
    velocity = guided(v, without, within, 1.0, 1 - 1 / column(scale), ~dropped)
    net.inside = told(omega, low, high)
    errors = squared_errors(flow.average(x, t, r, given_labels), target(flow, x, t, r, velocity, within, given_labels))
    second = squared_errors(head(x, t, t - r, net.inside + net.of_classes(given_labels)), velocity)
    loss = (adaptive(errors, p, c) + adaptive(second, p, c)).mean()
    holds(loss.detach(), arrays["imf/guided/loss"])
    for each in (net, head):
        holds_gradients(loss, each, arrays, "imf/guided")


def test_distillation_is_that_of_fastgen(arrays):
    x, _, t, r = given(arrays)
    teacher, checked = flow_map(arrays, "teacher"), 0
    v = teacher.average(x, t, t).detach()
    for group in arrays.groups("distill/", "loss"):
        settings, flow = arrays[f"{group}/settings"], flow_map(arrays)
        share = min(1.0, settings["step"] / settings["warmup_steps"]) if settings["warmup_steps"] else 1.0
        u, wanted = flow.average(x, t, r), target(flow, x, t, r, v, v, share=share)
        p, c = float(settings["norm"].removeprefix("poly_")), settings["c"]
        if settings["form"] == "l2":
            losses = adaptive(squared_errors(u, wanted), p, c)
        else:
            step = (wanted - u.detach()) / (x[0].numel() ** 0.5 if settings["per_dim"] else 1.0)
            losses = step_errors(u, step, p, c)
        holds(losses.detach(), arrays[f"{group}/per_sample"])
        holds(losses.mean().detach(), arrays[f"{group}/loss"])
        holds_gradients(losses.mean(), flow.denoiser.net, arrays, group)
        checked += 1
    assert checked


@pytest.mark.parametrize("kind", ["lagrangian", "lagrangian_teacher", "lagrangian_full"])
def test_lagrangian_self_distillation_is_that_of_the_authors(flowmaps, kind):
    flow, known, x, t, s, v = self_distilled(flowmaps, "ema" if kind.endswith("teacher") else "net")
    # Where nothing is stopped, what is known is the network itself.
    known = flow if kind.endswith("full") else known
    errors = lagrangian_errors(flow, known.denoiser, x, t, s, v, through=kind.endswith("full"))
    holds_self_distilled(errors, flow.denoiser.net, t, s, flowmaps, kind)


@pytest.mark.parametrize("kind", ["eulerian", "eulerian_convex"])
def test_eulerian_self_distillation_is_that_of_the_authors(flowmaps, kind):
    flow, _, x, t, s, _ = self_distilled(flowmaps)
    along = flow.average(x, t, t).detach()
    errors = eulerian_errors(flow, x, t, s, along, through=kind.endswith("convex"))
    holds_self_distilled(errors, flow.denoiser.net, t, s, flowmaps, kind)


@pytest.mark.parametrize("loss", ["lagrangian", "eulerian"])
def test_on_the_diagonal_self_distillation_is_flow_matching(flowmaps, loss):
    flow, known, _, _, s, v = self_distilled(flowmaps)
    x = FLOW.mix(flowmaps["x"], flowmaps["noise"], s)
    if loss == "lagrangian":
        errors = lagrangian_errors(flow, known.denoiser, x, s, s, v)
    else:
        errors = eulerian_errors(flow, x, s, s, v)
    holds_self_distilled(errors, flow.denoiser.net, s, s, flowmaps, "diagonal")


WAYS = ["meanflow", "improved", "lagrangian", "lagrangian through", "eulerian", "eulerian through"]


def errors_of(loss, flow, x, t, s, velocity):
    loss, _, through = loss.partition(" ")
    if loss == "lagrangian":
        return lagrangian_errors(flow, flow.denoiser, x, t, s, velocity, through=bool(through))
    if loss == "eulerian":
        along = torch.where(column(s == t), velocity, flow.average(x, t, t)).detach()
        return eulerian_errors(flow, x, t, s, along, through=bool(through))
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


def test_a_normalised_step_points_where_the_error_does_and_is_no_longer_than_1():
    data, noise, t, s = gaussian(8)
    flow, x = exact_map(), FLOW.mix(data, noise, t)
    flow.denoiser.net.wrong.data += 1e3
    u = flow.average(x, t, s)
    wanted = target(flow, x, t, s, noise - data, noise - data)
    errors = step_errors(u, (wanted - u).detach(), 1.0, 1e-3)
    assert (errors < 1).all()
    slopes = [torch.autograd.grad(e.mean(), u, retain_graph=True)[0] for e in (errors, squared_errors(u, wanted))]
    assert torch.cosine_similarity(*(slope.flatten(1) for slope in slopes)).min() > 1 - 1e-9


def test_guidance_of_1_is_none_and_a_row_that_is_not_guided_keeps_its_velocity():
    v, without, within, _ = (torch.randn(4, 1, 2, 2) for _ in range(4))
    guides = torch.tensor([True, True, False, False])
    assert torch.equal(guided(v, without, within, 1.0, 0.0, guides), v)
    found = guided(v, without, 0.0, 3.0, 0.0, guides)
    torch.testing.assert_close(found[:2], (without + 3 * (v - without))[:2])
    assert torch.equal(found[2:], v[2:])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"same": 1.5}, "shares between 0 and 1"),
        ({"warmup": -0.1}, "shares between 0 and 1"),
        ({"c": 0.0}, "shares between 0 and 1"),
        ({"explicit": True, "loss": "eulerian"}, "explicit is for losses meanflow and improved"),
        ({"through": True}, "through for lagrangian and eulerian"),
        ({"drop": 1.0}, "drop is a share below 1"),
        ({"drop": 0.1, "guide_from": 0.8, "guide_to": 0.2}, "guide_from is not above guide_to"),
        ({"omega": 2.0}, "a drop above 0"),
    ],
)
def test_bad_options(options, message, refuses):
    with refuses(message):
        MeanFlowConfig(**options)


def test_a_loss_is_named(refuses):
    with refuses("'improve'", "did you mean 'improved'?"):
        MeanFlowConfig(loss="improve")
