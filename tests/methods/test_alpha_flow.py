"""alpha-Flow and shortcut models: against arrays of the released code, and the exact map of Gaussian data.

Made with snap-research/alphaflow b0fef77d8bf1 and kvfrans/shortcut-models 601004348667.
"""

import math

import pytest
import torch
from two_times import (
    exact_map,
    exact_velocity,
    flow_map,
    gaussian,
    holds,
    holds_gradients,
    holds_self_distilled,
    reference,
    self_distilled,
    turned,
)

from onestep_bench.methods.alpha_flow import (
    AlphaFlowConfig,
    ProgressiveConfig,
    ShortcutConfig,
    alpha_at,
    alpha_flow_loss,
    composed,
    parted,
    shortcut_target,
)
from onestep_bench.paths import FLOW

arrays = reference("flowmaps")


def test_alpha_flow_is_that_of_the_released_code(arrays):
    groups = [group for group in arrays.groups("alphaflow/", "loss")]
    assert {arrays[f"{group}/alpha"] > 0 for group in groups} == {True, False}
    for group in groups:
        flow = flow_map(arrays)
        t, r, alpha = (arrays[f"{group}/{name}"] for name in ("t", "r", "alpha"))
        data, noise = arrays["alphaflow/x"], arrays["alphaflow/noise"]
        x, v = FLOW.mix(data, noise, t), noise - data
        assert ((t == r).nonzero().flatten() == torch.arange(arrays[f"{group}/flow_rows"])).all()
        eps, cut = arrays[f"{group}/eps"], arrays[f"{group}/clip"]
        losses = alpha_flow_loss(flow, flow.average(x, t, r), x, t, r, v, alpha, eps, cut)
        holds(losses.detach(), arrays[f"{group}/per_sample"])
        holds_gradients(losses.mean(), flow.denoiser.net, arrays, group)
        if alpha:
            between = r < t
            wanted = composed(flow, x, t, r, v, alpha).clamp(-cut, cut)
            holds(wanted[between], arrays[f"{group}/target"][between])


def test_the_curriculum_is_that_of_the_released_code(arrays):
    groups = arrays.groups("alphaflow/schedule/", "alpha")
    assert groups
    for group in groups:
        settings = arrays[f"{group}/settings"]
        span = settings["change_init_steps"], settings["change_end_steps"]
        shape = settings["clamp_value"], settings["gamma"], settings["scheduler"]
        found = [alpha_at(k.item(), *span, *shape) for k in arrays[f"{group}/step"]]
        if "discrete_training" in settings:  # as the objective does where there is no derivative to hand over to
            found = [alpha or settings["clamp_value"] for alpha in found]
        assert found == pytest.approx(arrays[f"{group}/alpha"].tolist(), rel=1e-5)


def test_shortcut_targets_and_losses_are_those_of_the_released_code(arrays):
    for group in arrays.groups("shortcut/", "loss"):
        settings = arrays[f"{group}/settings"]
        flow, teacher = turned(arrays, "net"), turned(arrays, settings["target"])
        rows = settings["bootstrap_rows"]
        t, x = 1 - arrays[f"{group}/t"], arrays[f"{group}/x_t"]
        gap = 0.5 ** arrays[f"{group}/log2_inverse_step"]
        made = shortcut_target(teacher, x[:rows], t[:rows], gap[:rows])
        holds(made, -arrays[f"{group}/target"][:rows])
        flow_rows = slice(rows, None)
        count = len(x) - rows
        velocity = arrays[f"{group}/noise_flow"][:count] - arrays[f"{group}/x"][:count]
        holds(velocity, -arrays[f"{group}/target"][flow_rows], 2e-5)
        assert (gap[flow_rows] == 1 / settings["levels"]).all()
        losses = (flow.average(x, t, t - gap) - torch.cat([made, velocity])).square().mean((1, 2, 3))
        holds(losses.detach(), arrays[f"{group}/per_sample"], 2e-5)
        holds_gradients(losses.mean(), flow.denoiser.net, arrays, group, 2e-5)


@pytest.mark.parametrize("kind", ["midpoint", "uniform"])
def test_a_jump_of_two_jumps_is_the_progressive_self_distillation_of_flow_maps(arrays, kind):
    """By their authors' losses.py of 10/5/25; h is the share of the second jump."""
    flow, _, x, t, s, _ = self_distilled(arrays)
    share = 1 - arrays["flowmap/h"] if kind == "uniform" else torch.full_like(t, 0.5)
    if kind == "uniform":
        holds(t - share * (t - s), 1 - arrays["flowmap/u"])
    errors = (flow.average(x, t, s) - parted(flow, x, t, s, share)).square().sum((1, 2, 3))
    holds_self_distilled(errors, flow.denoiser.net, t, s, arrays, f"progressive_{kind}")


@pytest.mark.parametrize("alpha", [1.0, 0.5, 0.1, 0.0])
def test_the_exact_map_has_no_error_where_two_parts_make_the_whole(alpha):
    """alpha 1 and 0 of the exact velocities, between them by the first part's own average velocity."""
    data, noise, t, s = gaussian()
    flow, x = exact_map(), FLOW.mix(data, noise, t)
    first = flow.average(x, t, t - alpha * (t - s)).detach()
    if alpha:
        torch.testing.assert_close(composed(flow, x, t, s, first, alpha), flow.average(x, t, s).detach())
    losses = alpha_flow_loss(flow, flow.average(x, t, s), x, t, s, first, alpha, 1e-3)
    assert losses.max() < 1e-20
    assert torch.autograd.grad(losses.mean(), flow.denoiser.net.wrong)[0].abs() < 1e-9


def test_two_halves_of_the_exact_map_make_the_whole():
    data, noise, t, s = gaussian()
    flow, x = exact_map(), FLOW.mix(data, noise, t)
    torch.testing.assert_close(shortcut_target(flow, x, t, t - s), flow.average(x, t, s).detach())
    flow.denoiser.net.wrong.data += 0.1
    assert (shortcut_target(flow, x, t, t - s) - flow.average(x, t, s)).abs().max() > 1e-3


def test_two_parts_of_the_exact_map_make_the_whole_wherever_it_is_parted():
    data, noise, t, s = gaussian()
    flow, x, share = exact_map(), FLOW.mix(data, noise, t), torch.linspace(0, 1, len(t), dtype=torch.float64)
    torch.testing.assert_close(parted(flow, x, t, s, share), flow.average(x, t, s).detach())
    flow.denoiser.net.wrong.data += 0.1
    assert (parted(flow, x, t, s, share) - flow.average(x, t, s))[len(t) // 2].abs().max() > 1e-3


def test_alpha_flow_leaves_the_exact_map_as_alpha_leaves_zero():
    """On the exact velocity of the first instant: the error of the composed target falls with alpha."""
    data, noise, t, s = gaussian()
    flow, x = exact_map(), FLOW.mix(data, noise, t)
    v = exact_velocity(x, t)
    exact = flow.average(x, t, s)
    errors = [(composed(flow, x, t, s, v, alpha) - exact).square().mean().item() for alpha in (0.2, 0.02)]
    assert 0 < errors[1] < 0.02 * errors[0]


def test_the_curriculum_goes_from_flow_matching_to_mean_flow():
    values = [alpha_at(progress, 0.0, 1.0, 5e-3) for progress in (0.0, 0.25, 0.4, 0.5, 0.75, 1.0)]
    assert values == [1.0, 1.0, pytest.approx(1 / (1 + math.exp(-2.5))), 0.5, 0.0, 0.0]
    assert alpha_at(-1e6, 0.0, 1.0, 5e-3) == 1.0
    assert alpha_at(1e6, 0.0, 1.0, 5e-3) == 0.0


@pytest.mark.parametrize("options", [{"same": 2.0}, {"start": 1.0}, {"least": 0.0}, {"eps": 0.0}])
def test_bad_options_of_alpha_flow(options, refuses):
    with refuses(next(iter(options))):
        AlphaFlowConfig(**options)


def test_a_curve_is_named(refuses):
    with refuses("'linaer'", "did you mean 'linear'?"):
        AlphaFlowConfig(curve="linaer")
    with refuses("same"):
        ProgressiveConfig(same=1.5)


@pytest.mark.parametrize("options", [{"halvings": 0}, {"every": 0}, {"target_decay": 1.0}])
def test_bad_options_of_shortcuts(options, refuses):
    with refuses(next(iter(options))):
        ShortcutConfig(**options)
