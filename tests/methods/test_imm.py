"""Inductive moment matching: against arrays of the released preconditioning and the paper's formula.

Made with lumalabs/imm c9473e939591, of which the sampling alone was released.
"""

import pytest
import torch
from two_times import Arrays, exact_map, flow_map, gaussian, holds, holds_gradients

from onestep_bench.denoiser import EDM, Denoiser
from onestep_bench.flow_map import FlowMap
from onestep_bench.methods.imm import (
    DATA,
    IMMConfig,
    group_mmd,
    jump,
    nearer_level,
    network_share,
    sigma_of,
    weight,
)
from onestep_bench.paths import VE
from onestep_bench.samplers import push_forward


@pytest.fixture(scope="module")
def arrays():
    return Arrays("flowmaps")


def as_edm(arrays):
    """The toy as the network of EDM's preconditioning, told IMM's t and t - s; IMM's network has the other sign."""

    def told(label, gap):
        def imm_level(flow_time):
            sigma = flow_time / (1 - flow_time)
            return sigma / (DATA + sigma)

        now = torch.exp(4 * label) / (1 + torch.exp(4 * label))
        return imm_level(now), imm_level(now) - imm_level(now - gap)

    flow = flow_map(arrays, told=told)
    net = flow.denoiser.net
    answer = net.forward
    net.forward = lambda *given, **more: -answer(*given, **more)
    return FlowMap(Denoiser(net, EDM(DATA)))


@pytest.mark.parametrize("k", [10, 12, 15])
def test_the_nearer_level_is_that_of_the_released_code(arrays, k):
    t, s, low, high = (arrays[f"imm/{name}"] for name in ("t", "s", "eps", "T"))
    torch.testing.assert_close(nearer_level(t, s, low, high, k), arrays[f"imm/r/k{k}"], rtol=1e-6, atol=0)
    grid = arrays["imm/t_grid"]  # with s halfway between eps and t
    found = nearer_level(grid, (low + grid) / 2, low, high, k)
    torch.testing.assert_close(found, arrays[f"imm/r_grid/k{k}"], rtol=1e-6, atol=0)


def test_the_jump_is_that_of_the_released_preconditioning(arrays):
    t, s, x = (arrays[f"imm/{name}"] for name in ("t", "s", "x_t"))
    holds(jump(as_edm(arrays), x, t, s).detach(), arrays["imm/f/simple_edm_identity"])


@pytest.mark.parametrize("name", ["1", "2", "4", "4edm"])
def test_push_forward_makes_the_samples_of_the_released_code(arrays, name):
    """Theirs start from the data's deviation at T, and not from that of x_T; and end at eps, on their path."""
    times = arrays[f"imm/sample/times/{name}"]
    noise = arrays["imm/sample/noise"][0] / (DATA * times[0])
    made = push_forward(as_edm(arrays).denoiser, noise, sigma_of(times))
    holds((1 - times[-1]) * made, arrays[f"imm/sample/simple_edm/{name}"])


def test_the_loss_is_the_papers(arrays):
    low, high = arrays["imm/eps"], arrays["imm/T"]
    for group in arrays.groups("imm/paper_loss/", "loss"):
        settings = arrays[f"{group}/settings"]
        members = settings["group"]
        t, s = (arrays[f"imm/{name}"][::members].repeat_interleave(members) for name in "ts")
        r = nearer_level(t, s, low, high, settings["k"])
        holds(r[::members], arrays[f"{group}/group_r"], 1e-6)
        data, noise = arrays["x"], DATA * arrays["noise"]
        x_t, x_r = ((1 - level).reshape(-1, 1, 1, 1) * data + level.reshape(-1, 1, 1, 1) * noise for level in (t, r))
        if settings["parameterisation"] == "simple_edm":
            flow = as_edm(arrays)
            net, p, q = flow.denoiser.net, jump(flow, x_t, t, s), jump(flow, x_r, r, s).detach()
            share = network_share(t, s)
        else:
            net = flow_map(arrays).denoiser.net
            p, q = (euler_flow(net, *given, s) for given in ((x_t, t), (x_r, r)))
            share, q = DATA * (t - s), q.detach()
        p, q = (images.unflatten(0, (-1, members)) for images in (p, q))
        mmd = group_mmd(p, q, share[::members])
        holds(mmd.detach(), arrays[f"{group}/mmd"], 1e-4)
        weights = weight(t, settings["a"], settings["b"])[::members]
        holds(weights, arrays[f"{group}/weight"])
        holds((weights * mmd).mean().detach(), arrays[f"{group}/loss"], 1e-4)
        holds_gradients((weights * mmd).mean(), net, arrays, group, 1e-4)


def euler_flow(net, x, t, s):
    """IMM's other parameterisation, which we do not train."""
    scale = ((1 - t) ** 2 + t**2).sqrt().reshape(-1, 1, 1, 1)
    return x - DATA * (t - s).reshape(-1, 1, 1, 1) * net(x / (DATA * scale), t, second_labels=t - s)


def test_the_distance_of_moments_is_0_for_equal_groups_and_tells_others_apart():
    p = gaussian(8)[0].unflatten(0, (2, 4))
    share = torch.full((2,), 0.5, dtype=torch.float64)
    assert group_mmd(p, p[:, [2, 0, 3, 1]], share).abs().max() < 1e-12
    assert (group_mmd(p, p + 0.1, share) > 1e-5).all()
    moved = p.clone().requires_grad_()
    group_mmd(moved, p, share).sum().backward()
    assert moved.grad.isfinite().all()


def test_a_jump_of_no_length_has_a_finite_loss():
    p = gaussian(4)[0].unflatten(0, (1, 4)).requires_grad_()
    group_mmd(p, p.detach(), torch.zeros(1, dtype=torch.float64)).sum().backward()
    assert p.grad.isfinite().all()


def test_the_gradient_vanishes_at_the_exact_map_alone():
    """By hundreds of groups; a wrong one is pulled back, whichever way it is wrong."""
    members, cfg = 4, IMMConfig()
    data, noise, t, s = gaussian(8000)
    t, s = (level[::members].repeat_interleave(members) for level in (t.clamp(0.3, 0.9), (s * 0.3)))
    flow = exact_map()
    flow = FlowMap(flow.denoiser.on(VE))
    r = nearer_level(t, s, cfg.low, cfg.high, 10)
    x_t, x_r = ((1 - a).reshape(-1, 1, 1, 1) * data + (DATA * a).reshape(-1, 1, 1, 1) * noise for a in (t, r))
    slopes = []
    for wrong in (0.0, 0.3, -0.3):
        flow.denoiser.net.wrong.data.fill_(wrong)
        p, q = jump(flow, x_t, t, s), jump(flow, x_r, r, s).detach()
        found = group_mmd(*(images.unflatten(0, (-1, members)) for images in (p, q)), network_share(t, s)[::members])
        slopes.append(torch.autograd.grad(found.mean(), flow.denoiser.net.wrong)[0].item())
    assert slopes[2] < 0 < slopes[1]
    assert abs(slopes[0]) < 0.3 * min(slopes[1], -slopes[2])


@pytest.mark.parametrize("options", [{"members": 0}, {"low": 0.0}, {"low": 0.5, "high": 0.5}])
def test_bad_options(options, refuses):
    with refuses("member" if "members" in options else "low="):
        IMMConfig(**options)
