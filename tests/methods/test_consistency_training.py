"""Consistency training: against openai/consistency_models e32b69ee436d, FastGen 34f30e8ff1a5, and iCT's formulas."""

import math

import pytest
import torch
from two_times import Arrays, ExactConsistency, edm, gaussian, holds, holds_gradients

from onestep_bench import losses, methods, networks
from onestep_bench.denoiser import Denoiser, Flow
from onestep_bench.methods.consistency_training import (
    GROWTHS,
    ConsistencyTrainingConfig,
    answers,
    decay_at,
    errors,
    probabilities,
)
from onestep_bench.paths import VE, spread
from onestep_bench.samplers import karras_intervals
from onestep_bench.seeds import Draw

BOUNDARY = 0.002
# By their names in FastGen.
WEIGHTINGS = {"default": "gap", "sqrt": "root-gap", "c_out": "c-out", "c_out_sq": "c-out-squared"}


@pytest.fixture(scope="module")
def arrays():
    return Arrays("consistency")


def on_a_line(arrays, t, r):
    """Points of the shared images and noise at both levels."""
    return (VE.mix(arrays["x"], arrays["noise"], level) for level in (t, r))


def assert_reproduced(rows, student, arrays, group):
    holds(rows.detach(), arrays[f"{group}/per_sample"])
    holds(rows.mean().detach(), arrays[f"{group}/loss"])
    holds_gradients(rows.mean(), student.net, arrays, group)


@pytest.mark.parametrize("distance", ["l2", "l1"])
def test_training_is_the_released_loss(arrays, distance):
    student, target = (edm(arrays, role, BOUNDARY) for role in ("student", "target"))
    levels = karras_intervals(arrays["cm/levels"] - 1)
    torch.testing.assert_close(levels, arrays["cm/sigmas"], rtol=1e-12, atol=0)
    t, r = (levels[arrays["cm/index"] + more] for more in (0, 1))
    found = errors(*answers(student, target, *on_a_line(arrays, t, r), t, r), distance)
    weight = losses.weighting(arrays["cm/weight"])(t, r)
    assert_reproduced(weight * found, student, arrays, f"cm/ct_{distance}")


def test_levels_and_decay_grow_as_in_the_released_code(arrays):
    groups = arrays.groups("cm/schedule/", "levels")
    assert groups
    for group in groups:
        start, ends = group.rpartition("/ema")[2].split("_s")
        first, last = map(int, ends.split("-"))
        found = [GROWTHS["root"](progress, first, last) for progress in arrays["cm/schedule/steps"].tolist()]
        assert [intervals + 1 for intervals in found] == arrays[f"{group}/levels"].tolist()
        holds([decay_at(float(start), first, intervals) for intervals in found], arrays[f"{group}/decay"])


def test_improved_training_is_the_papers_formula(arrays):
    student = edm(arrays, "student", BOUNDARY)
    levels, place = karras_intervals(len(arrays["ict/sigmas"]) - 1), arrays["ict/index"]
    torch.testing.assert_close(levels.flip(0), arrays["ict/sigmas"], rtol=1e-12, atol=0)
    # Theirs are counted from the lowest.
    t, r = (levels.flip(0)[place + more] for more in (1, 0))
    cfg = ConsistencyTrainingConfig()
    assert 0.00054 * math.sqrt(arrays["x"][0].numel()) == pytest.approx(arrays["ict/c"])
    found = errors(*answers(student, student, *on_a_line(arrays, t, r), t, r), cfg.distance)
    assert_reproduced(losses.weighting(cfg.weighting)(t, r) * found, student, arrays, "ict")
    holds(probabilities(levels, cfg.p_mean, cfg.p_std).flip(0), arrays["ict/probability"])


def test_levels_double_as_the_paper_has_it(arrays):
    first, last = arrays["ict/s0_s1"].tolist()
    stages = math.log2(last / first) + 1
    # The paper rounds a stage down to whole steps.
    whole = stages * math.floor(arrays["ict/total"] / stages)
    found = [GROWTHS["doubling"](step / whole, first, last) + 1 for step in arrays["ict/steps"].tolist()]
    assert found == arrays["ict/levels"].tolist()


def test_training_and_distillation_are_those_of_fastgen(arrays):
    t = arrays["fastgen/cm/t"]
    groups = arrays.groups("fastgen/cm/", "loss")
    assert groups
    for group in groups:
        settings, student = arrays[f"{group}/settings"], edm(arrays, "student")
        r = torch.clamp(t * (1 - (1 - settings["ratio"]) * (1 + 8 * torch.sigmoid(-t))), min=0.002)
        torch.testing.assert_close(r, arrays[f"{group}/r"], rtol=1e-5, atol=0)
        x_t, x_r = on_a_line(arrays, t, r)
        if settings["teacher"]:
            slope = edm(arrays, "teacher")(x_t, t, want="velocity").detach()
            x_r = x_t + spread(r - t, x_t) * slope
        out, wanted = answers(student, student, x_t, x_r, t, r)
        squared = (out - wanted).square().sum((1, 2, 3))
        found = squared if settings["squared"] else losses.pseudo_huber(out - wanted, settings["c"])
        weight = losses.weighting(WEIGHTINGS[settings["weighting"]])(t, r)
        assert_reproduced(weight * found, student, arrays, group)


def exact(wrong=0.0):
    """The consistency function of Gaussian data."""
    net = ExactConsistency()
    net.wrong.data.fill_(wrong)
    return Denoiser(net, Flow(plain=True)).on(VE)


def test_on_a_trajectory_the_exact_function_has_no_loss_and_another_has():
    """Along the exact trajectories of Gaussian data, x_t = 0.3 + z (0.25 + t^2)^(1/2)."""
    _, noise, _, _ = gaussian(16)
    t, r = torch.linspace(0.5, 20, 16).double(), torch.linspace(0.1, 15, 16).double()
    x_t, x_r = (0.3 + spread((0.25 + level**2).sqrt(), noise) * noise for level in (t, r))
    for wrong, distance in ((0.0, "pseudo-huber"), (0.1, "pseudo-huber"), (0.0, "l2"), (0.1, "l2")):
        student = exact(wrong)
        loss = errors(*answers(student, student, x_t, x_r, t, r), distance).mean()
        slope = torch.autograd.grad(loss, student.net.wrong)[0].abs()
        if wrong:
            assert loss > 1e-6
            assert slope > 1e-5
        else:
            assert loss < 1e-12
            assert slope < 1e-9


def test_no_gradient_comes_through_the_target():
    student = exact(0.1)
    t, r = torch.tensor([2.0]).double(), torch.tensor([1.0]).double()
    out, wanted = answers(student, student, *(torch.ones(1, 2, 4, 4).double() for _ in range(2)), t, r)
    assert out.requires_grad
    assert not wanted.requires_grad


def test_both_levels_drop_the_same():
    class Dropping(torch.nn.Module):
        def forward(self, x, t, labels=None, *, want="x0"):
            return torch.nn.functional.dropout(torch.ones_like(x))

    t, x = torch.tensor([1.0]), torch.zeros(1, 1, 8, 8)
    assert torch.equal(*answers(Dropping(), Dropping(), x, x, t, t / 2))


@pytest.mark.parametrize("p_std", [2.0, 0.0])
def test_levels_are_drawn_by_their_probabilities(p_std):
    """Of two intervals, as the objective draws them."""
    seen = []
    cfg = ConsistencyTrainingConfig(first=2, last=2, p_std=p_std)
    objective, nets = objective_of(cfg)
    nets.student.register_forward_pre_hook(lambda module, given: seen.append(given[1]))
    images, draw = torch.zeros(256, 1, 8, 8), Draw(0, 0, batch_size=256, rows=slice(256), progress=0.0)
    next(iter(objective(methods.Batch(images), draw)))
    r, t = seen  # the target is asked first
    levels = karras_intervals(2).float()
    places = [(t == level).float().mean().item() for level in levels[:2]]
    assert sum(places) == 1
    expected = probabilities(levels.double(), cfg.p_mean, cfg.p_std).tolist()
    assert places == pytest.approx(expected, abs=0.1)
    torch.testing.assert_close(r, torch.where(t == levels[0], levels[1], levels[2]))


def objective_of(cfg, native=None):
    torch.manual_seed(0)
    method = methods.get("consistency-training")
    nets = methods.Nets(method.student(cfg, networks.sized("0.05M", 8, 1), native, None))
    nets.auxiliary = method.auxiliary(nets, cfg)
    return method.objective(nets, cfg), nets


def test_a_target_follows_faster_while_levels_are_few():
    cfg = ConsistencyTrainingConfig(growth="root", first=2, last=150, p_std=0.0, distance="l2", target_decay=0.9)
    objective, nets = objective_of(cfg)
    led, follows = (next(net.parameters()).data for net in (nets.student, nets.auxiliary["target"]))
    kept = []
    for progress in (0.0, 0.5):
        led.fill_(1.0)
        follows.fill_(0.0)
        draw = Draw(0, 0, batch_size=4, rows=slice(4), progress=progress)
        next(iter(objective(methods.Batch(torch.zeros(4, 1, 8, 8)), draw)))
        kept.append(1 - follows.flatten()[0].item())
    assert kept == pytest.approx([0.81, decay_at(0.9, 2, GROWTHS["root"](0.5, 2, 150))], abs=1e-6)


def test_the_student_is_the_identity_at_the_lowest_level(refuses):
    _, nets = objective_of(ConsistencyTrainingConfig())
    x = torch.randn(2, 1, 8, 8)
    torch.testing.assert_close(nets.student(x, torch.full((2,), 0.002)), x)
    with refuses("needs an EDM network"):
        objective_of(ConsistencyTrainingConfig(), Flow())


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"growth": "doublin"}, "did you mean 'doubling'?"),
        ({"first": 20, "last": 10}, "first=20"),
        ({"p_std": -1.0}, "p_std"),
        ({"target_decay": 1.0}, "target_decay"),
        ({"weighting": "gab"}, "did you mean 'gap'?"),
        ({"distance": "l3"}, "'l3'"),
    ],
)
def test_bad_options(options, said, refuses):
    with refuses(said):
        ConsistencyTrainingConfig(**options)
