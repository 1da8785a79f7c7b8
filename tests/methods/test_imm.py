"""Inductive moment matching: against arrays of the released preconditioning and the paper's formula.

Made with lumalabs/imm c9473e939591, of which the sampling alone was released.
"""

import pytest
import torch
from two_times import Velocity, column, exact_map, flow_map, gaussian, holds, holds_gradients, opposite, reference

from onestep_bench.denoiser import EDM, Denoiser
from onestep_bench.flow_map import FlowMap
from onestep_bench.methods.imm import (
    DATA,
    IMMConfig,
    group_mmd,
    jump,
    log_snr,
    nearer_level,
    network_share,
    sigma_of,
    weight,
)
from onestep_bench.paths import VE
from onestep_bench.samplers import push_forward

arrays = reference("flowmaps")


def imm_level(sigma):
    return sigma / (DATA + sigma)


def told(sigma, gap):
    """IMM's t and t - s, of a level of VE and a gap in FLOW's time."""
    arrives = sigma / (1 + sigma) - gap
    return imm_level(sigma), imm_level(sigma) - imm_level(arrives / (1 - arrives))


def as_edm(arrays):
    """The toy as the network of EDM's preconditioning; IMM's network has the other sign."""
    flow = opposite(flow_map(arrays, told=lambda label, gap: told(torch.exp(4 * label), gap)))
    return FlowMap(Denoiser(flow.denoiser.net, EDM(DATA)))


class OtherNative:
    """IMM's other parameterisations, which we do not train: of the image itself, and of a straight line to it."""

    path, ratios = VE, (0.0, float("inf"))

    def __init__(self, kind):
        self.kind = kind

    def inputs(self, x, t):
        return x / (column(t) ** 2 + DATA**2).sqrt(), t

    def __call__(self, net, x, t, labels):
        output, level = net(*self.inputs(x, t), labels), column(imm_level(t))
        return "x0", output if self.kind == "identity" else (1 - level) * x - DATA * level * output


def of_kind(arrays, kind):
    """The toy under one of IMM's parameterisations."""
    if kind == "simple_edm":
        return as_edm(arrays)
    assert kind in ("identity", "euler_fm")
    return FlowMap(Denoiser(Velocity(arrays, told=told), OtherNative(kind)))


def ks(arrays):
    return [int(name.removeprefix("imm/r/k")) for name in arrays.names("imm/r/k")]


def test_the_nearer_level_is_that_of_the_released_code(arrays):
    t, s, low, high = (arrays[f"imm/{name}"] for name in ("t", "s", "eps", "T"))
    grid = arrays["imm/t_grid"]  # with s halfway between eps and t
    assert ks(arrays)
    for k in ks(arrays):
        torch.testing.assert_close(nearer_level(t, s, low, high, k), arrays[f"imm/r/k{k}"], rtol=1e-6, atol=0)
        found = nearer_level(grid, (low + grid) / 2, low, high, k)
        torch.testing.assert_close(found, arrays[f"imm/r_grid/k{k}"], rtol=1e-6, atol=0)


@pytest.mark.parametrize("k", [1, 4, 7, 15])
def test_however_long_its_step_the_nearer_level_lies_between_the_two(k):
    t = torch.linspace(0.01, 0.99, 99, dtype=torch.float64)
    r = nearer_level(t, t / 2, 0.006, 0.994, k)
    assert bool(((t / 2 <= r) & (r < t)).all())


def test_levels_are_those_of_the_released_path(arrays):
    grid = arrays["imm/t_grid"]
    torch.testing.assert_close(sigma_of(grid) / DATA, arrays["imm/eta"], rtol=1e-5, atol=0)
    torch.testing.assert_close(log_snr(grid), arrays["imm/logsnr"], rtol=1e-5, atol=1e-6)


def mixed(arrays, level):
    return column(1 - level) * arrays["x"] + column(DATA * level) * arrays["noise"]


def test_images_of_two_levels_share_their_noise_as_in_the_released_code(arrays):
    t, s, low, high = (arrays[f"imm/{name}"] for name in ("t", "s", "eps", "T"))
    holds(mixed(arrays, t), arrays["imm/x_t"])
    found = [mixed(arrays, nearer_level(t, s, low, high, k)) for k in ks(arrays)]
    # The file does not say of which k its x_r are.
    holds(min(found, key=lambda x: (x - arrays["imm/x_r"]).norm()), arrays["imm/x_r"])


def test_the_jump_is_that_of_the_released_preconditionings(arrays):
    t, s, x = (arrays[f"imm/{name}"] for name in ("t", "s", "x_t"))
    names = arrays.names("imm/f/")
    assert names
    for name in names:
        kind, _ = name.removeprefix("imm/f/").rsplit("_", 1)  # both ways to tell a network s are one for the toy
        holds(jump(of_kind(arrays, kind), x, t, s).detach(), arrays[name])


def sample_names(arrays):
    return [name.split("/")[2:] for name in arrays.names("imm/sample/") if name.count("/") == 3 and "times" not in name]


def test_push_forward_makes_the_samples_of_the_released_code(arrays):
    """Theirs start from the data's deviation at T, and not from that of x_T; and end at eps, on their path."""
    for kind, name in sample_names(arrays):
        if name.startswith("restart"):
            continue
        times = arrays[f"imm/sample/times/{name}"]
        noise = arrays["imm/sample/noise"][0] / (DATA * times[0])
        made = push_forward(of_kind(arrays, kind).denoiser, noise, sigma_of(times))
        holds((1 - times[-1]) * made, arrays[f"imm/sample/{kind}/{name}"])


def test_jumps_with_new_noise_between_make_the_restarted_samples_of_the_released_code(arrays):
    """Theirs jump to eps and take what is there for data; our sampler `re-noising` jumps to the data."""
    restarted = [each for each in sample_names(arrays) if each[1].startswith("restart")]
    assert restarted
    for kind, name in restarted:
        flow, noise = of_kind(arrays, kind), arrays["imm/sample/noise"]
        x, low = noise[0], torch.full((noise.shape[1],), arrays["imm/eps"], dtype=torch.float64)
        for step, t in enumerate(arrays[f"imm/sample/times/{name}"]):
            x = x if step == 0 else (1 - t) * x + t * noise[step]
            x = jump(flow, x, t.expand(len(x)), low).detach()
        holds(x, arrays[f"imm/sample/{kind}/{name}"])


def test_the_loss_is_the_papers(arrays):
    low, high = arrays["imm/eps"], arrays["imm/T"]
    for group in arrays.groups("imm/paper_loss/", "loss"):
        settings = arrays[f"{group}/settings"]
        members = settings["group"]
        t, s = (arrays[f"imm/{name}"][::members].repeat_interleave(members) for name in "ts")
        r = nearer_level(t, s, low, high, settings["k"])
        holds(r[::members], arrays[f"{group}/group_r"], 1e-6)
        flow = of_kind(arrays, settings["parameterisation"])
        p, q = jump(flow, mixed(arrays, t), t, s), jump(flow, mixed(arrays, r), r, s).detach()
        # By what the network's output is multiplied in the jump.
        share = network_share(t, s) if settings["parameterisation"] == "simple_edm" else DATA * (t - s)
        p, q = (images.unflatten(0, (-1, members)) for images in (p, q))
        mmd = group_mmd(p, q, share[::members])
        holds(mmd.detach(), arrays[f"{group}/mmd"], 1e-4)
        weights = weight(t, settings["a"], settings["b"])[::members]
        holds(weights, arrays[f"{group}/weight"])
        holds((weights * mmd).mean().detach(), arrays[f"{group}/loss"], 1e-4)
        holds_gradients((weights * mmd).mean(), flow.denoiser.net, arrays, group, 1e-4)


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
