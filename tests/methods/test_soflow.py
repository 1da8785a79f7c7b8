"""SoFlow: against arrays of the released code, and the exact map of Gaussian data.

Made with zlab-princeton/SoFlow 3b60d60f007b: of its two forms, Linear_Euler is a jump on FLOW and Trig_Trig one on
another path, which is ours to test the jump with and not to train on.
"""

import math

import pytest
import torch
from two_times import Velocity, exact_map, exact_velocity, flow_map, gaussian, holds, holds_gradients, reference

from onestep_bench.denoiser import Denoiser
from onestep_bench.flow_map import FlowMap, flow_time
from onestep_bench.losses import adaptive
from onestep_bench.methods.soflow import SoFlowConfig, nearer_level, quotient, quotient_errors, ratio_at
from onestep_bench.paths import FLOW, Path
from onestep_bench.samplers import push_forward

arrays = reference("flowmaps")
QUARTER = math.pi / 2
SCHEDULES = {"Exponent": "exponential", "Cosine": "cosine"}


class Trig(Path):
    """x_t = cos(pi t / 2) x0 + sin(pi t / 2) eps."""

    name, t_max = "trig", 1.0

    def alpha(self, t):
        return torch.cos(QUARTER * t)

    def sigma(self, t):
        return torch.sin(QUARTER * t)

    def dalpha(self, t):
        return -QUARTER * torch.sin(QUARTER * t)

    def dsigma(self, t):
        return QUARTER * torch.cos(QUARTER * t)

    def t_at(self, ratio):
        return torch.atan(ratio) / QUARTER


class TrigNative:
    """A network whose output is the velocity over pi / 2."""

    path, ratios = Trig(), (0.0, math.inf)

    def inputs(self, x, t):
        return x, t

    def __call__(self, net, x, t, labels):
        return "velocity", QUARTER * net(x, t, labels)


def of_form(arrays, form):
    """(flow map, b(t, s), by which the network's output is multiplied in a jump, and its slope in s at s = t)."""
    if form == "Linear_Euler":
        return flow_map(arrays), lambda t, s: s - t, 1.0
    assert form == "Trig_Trig"
    path = TrigNative.path

    def told(t, gap):  # which is in FLOW's time
        return t, t - path.t_at(FLOW.ratio(flow_time(path, t) - gap))

    flow = FlowMap(Denoiser(Velocity(arrays, told=told), TrigNative()))
    return flow, lambda t, s: torch.sin(QUARTER * (s - t)), QUARTER


FORMS = ["Linear_Euler", "Trig_Trig"]


@pytest.mark.parametrize("form", FORMS)
def test_losses_and_gradients_are_those_of_the_released_code(arrays, form):
    t, s, data, noise = arrays["soflow/t"], arrays["soflow/s"], arrays["x"], arrays["noise"]
    groups = arrays.groups(f"soflow/{form}/", "surrogate")
    assert groups
    for group in groups:
        settings, (flow, factor, _) = arrays[f"{group}/settings"], of_form(arrays, form)
        path = flow.denoiser.path
        x, velocity = path.mix(data, noise, t), path.velocity(data, noise, t)
        schedule = settings["first"], settings["last"], SCHEDULES[settings["schedule"]]
        level = nearer_level(t, s, ratio_at(settings["step"] / settings["total"], *schedule))
        torch.testing.assert_close(level, arrays[f"{group}/l"], rtol=1e-5, atol=0)
        q, b, (p, eps) = quotient(flow, x, t, level, s, velocity), factor(t, s), (settings["p"], settings["eps"])
        error = q.detach().square().mean((1, 2, 3))
        holds(error.mean(), arrays[f"{group}/mse"])
        weight = adaptive(error, p, eps) / error
        holds(weight.mean(), arrays[f"{group}/mean_weight"])
        # The released loss is another number of the same slope: the output, times the quotient held fixed.
        jump = flow.jump(x, t, s).detach()
        skipped = x if form == "Linear_Euler" else torch.cos(QUARTER * (s - t)).reshape(-1, 1, 1, 1) * x
        output = (jump - skipped) / b.reshape(-1, 1, 1, 1)
        surrogate = (b.sign() * weight * (output * q.detach()).mean((1, 2, 3))).mean()
        holds(surrogate, arrays[f"{group}/surrogate"])
        losses = quotient_errors(q, (t - level) / b.abs(), p, eps)
        holds_gradients(losses.mean(), flow.denoiser.net, arrays, group)


@pytest.mark.parametrize("form", FORMS)
def test_the_velocity_and_one_step_are_those_of_the_released_code(arrays, form):
    t, data, noise, group = arrays["soflow/t"], arrays["x"], arrays["noise"], f"soflow/{form}/velocity"
    flow, _, slope = of_form(arrays, form)
    path, (p, eps) = flow.denoiser.path, arrays["soflow/velocity_p_eps"].tolist()
    found = flow.denoiser(path.mix(data, noise, t), t, want="velocity")
    error = (found - path.velocity(data, noise, t)).square().mean((1, 2, 3))
    holds(error.mean().detach(), arrays[f"{group}/mse"])
    loss = (adaptive(error, p, eps) / slope).mean()
    holds(loss.detach(), arrays[f"{group}/loss"])
    holds_gradients(loss, flow.denoiser.net, arrays, group)
    made = push_forward(flow.denoiser, noise, torch.tensor([1.0, 0.0]))
    holds(made.detach(), arrays[f"soflow/{form}/one_step"])


def levels_of(t, s, ratio):
    level = nearer_level(t, s, ratio)
    return level, (t - level) / (t - s)


def on_the_trajectory(flow, x, t, level):
    """The velocity of the straight line that meets the exact trajectory through x again at `level`."""
    return flow.average(x, t, level).detach()


def test_the_exact_map_lands_at_one_place_from_every_point_of_a_trajectory():
    data, noise, t, s = gaussian()
    s = torch.minimum(s, t - 1e-3)
    flow, x = exact_map(), FLOW.mix(data, noise, t)
    level, share = levels_of(t, s, 0.3)
    velocity = on_the_trajectory(exact_map(), x, t, level)
    losses = quotient_errors(quotient(flow, x, t, level, s, velocity), share, 0.75, 1e-3)
    assert losses.max() < 1e-20
    assert torch.autograd.grad(losses.mean(), flow.denoiser.net.wrong)[0].abs() < 1e-9
    for wrong in (0.1, -0.1):
        flow.denoiser.net.wrong.data.fill_(wrong)
        losses = quotient_errors(quotient(flow, x, t, level, s, velocity), share, 0.75, 1e-3)
        assert losses.mean() > 1e-4
        assert torch.autograd.grad(losses.mean(), flow.denoiser.net.wrong)[0] * wrong > 0


def test_a_straight_line_leaves_the_exact_map_as_the_levels_draw_near():
    data, noise, t, s = gaussian()
    s = torch.minimum(s, t - 0.1).clamp(min=0)
    t = torch.maximum(t, s + 0.1)
    flow, x = exact_map(), FLOW.mix(data, noise, t)
    errors = []
    for ratio in (0.1, 0.01):
        level, _ = levels_of(t, s, ratio)
        errors.append(quotient(flow, x, t, level, s, exact_velocity(x, t)).square().mean().item())
    assert 0 < errors[1] < 0.02 * errors[0]


def test_levels_draw_near_in_the_course_of_the_training():
    for schedule in SCHEDULES.values():
        values = [ratio_at(progress, 1.0, 1e-2, schedule) for progress in (0.0, 0.5, 1.0)]
        assert values == sorted(values, reverse=True)
        assert [values[0], values[2]] == pytest.approx([1.0, 1e-2])
    t, s = torch.tensor([0.5, 2e-4]), torch.tensor([0.1, 0.0])
    assert nearer_level(t, s, 1e-6).tolist() == pytest.approx([0.5 - 1e-4, 1e-4])


@pytest.mark.parametrize("options", [{"last": 0.0}, {"first": 1.5}, {"eps": 0.0}, {"same": 2.0}])
def test_bad_options(options, refuses):
    with refuses(next(iter(options))):
        SoFlowConfig(**options)


def test_an_approach_is_named(refuses):
    with refuses("'cosin'", "did you mean 'cosine'?"):
        SoFlowConfig(approach="cosin")
