"""Flow-anchored consistency models: against arrays of the released code, and the exact map of Gaussian data.

Made with ali-vilab/FACM 9be03f75b794, by its expanded time: one network of one time, told 2 - t where it is asked for
the velocity.
"""

import pytest
import torch
from two_times import (
    exact_map,
    exact_velocity,
    flow_map,
    gaussian,
    holds,
    holds_gradients,
    opposite,
    reference,
    turned,
)

from onestep_bench.flow_map import total_derivative
from onestep_bench.methods.facm import FACMConfig, anchor_errors, consistency_errors
from onestep_bench.paths import FLOW

arrays = reference("flowmaps")


def test_losses_and_gradients_are_those_of_the_released_code(arrays):
    groups = arrays.groups("facm/", "loss")
    assert {group.endswith("distilled") for group in groups} == {True, False}
    for group in groups:
        # Their time is 1 at the data, and beyond it where the gap is 0.
        flow = opposite(flow_map(arrays, told=lambda t, h: (torch.where(h == 0, 1 + t, 1 - t), 0 * h)))
        t, data, noise = 1 - arrays["facm/t"], arrays["x"], arrays["noise"]
        x, velocity = FLOW.mix(data, noise, t), noise - data
        if group.endswith("distilled"):
            velocity = turned(arrays, "ema").average(x, t, t).detach()
        end = torch.zeros_like(t)
        anchor = anchor_errors(flow.average(x, t, t), velocity).mean()
        holds(anchor.detach(), arrays[f"{group}/flow"])
        change = total_derivative(flow, x, t, end, velocity)
        errors = consistency_errors(flow.average(x, t, end), velocity, change, t, arrays[f"{group}/p"]).mean()
        holds(errors.detach(), arrays[f"{group}/consistency"])
        holds((errors + anchor).detach(), arrays[f"{group}/loss"])
        holds_gradients(errors + anchor, flow.denoiser.net, arrays, group)


def losses_of(flow, x, t, velocity):
    end = torch.zeros_like(t)
    change = total_derivative(flow, x, t, end, velocity)
    errors = consistency_errors(flow.average(x, t, end), velocity, change, t, 0.5)
    return errors, anchor_errors(flow.average(x, t, t), velocity)


def test_the_exact_map_has_no_error_and_another_has():
    data, noise, t, _ = gaussian()
    flow, x = exact_map(), FLOW.mix(data, noise, t)
    velocity = exact_velocity(x, t)
    errors, anchor = losses_of(flow, x, t, velocity)
    assert errors.max() < 1e-20
    assert anchor.abs().max() < 1e-12
    assert torch.autograd.grad((errors + anchor).mean(), flow.denoiser.net.wrong)[0].abs() < 1e-9
    flow.denoiser.net.wrong.data += 0.1
    assert all(found.mean() > 1e-3 for found in losses_of(flow, x, t, velocity))


def test_a_wrong_map_is_pulled_back_whichever_way_it_is_wrong():
    data, noise, t, _ = gaussian()
    flow, x = exact_map(), FLOW.mix(data, noise, t)
    for wrong in (0.1, -0.1):
        flow.denoiser.net.wrong.data.fill_(wrong)
        for found in losses_of(flow, x, t, exact_velocity(x, t)):
            assert torch.autograd.grad(found.mean(), flow.denoiser.net.wrong)[0] * wrong > 0


def test_an_error_moves_the_map_less_near_the_data_and_never_by_more_than_it_is_cut_to():
    t = torch.tensor([0.01, 0.99], dtype=torch.float64)
    u = torch.full((2, 1, 2, 2), 50.0, dtype=torch.float64, requires_grad=True)
    errors = consistency_errors(u, torch.zeros_like(u), torch.zeros_like(u), t, 0.5)
    slopes = torch.autograd.grad(errors.sum(), u)[0].abs().amax((1, 2, 3))
    assert slopes[0] < 0.02 * slopes[1]
    assert (errors <= torch.sin(torch.pi / 2 * t)).all()


@pytest.mark.parametrize("options", [{"std": 0.0}, {"p": 0.0}])
def test_bad_options(options, refuses):
    with refuses("positive"):
        FACMConfig(**options)
