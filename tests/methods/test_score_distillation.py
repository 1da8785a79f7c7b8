"""Diff-Instruct, DMD2 and f-distill: losses against the released code, and the gradient of a divergence that is known.

tests/reference/score_distillation.npz: tianweiy/DMD2 8d8fa55633d4, NVlabs/FastGen 34f30e8ff1a5 and
pkulwj1994/diff_instruct 0c37389fbfb1, run on toy networks.
"""

import math

import pytest
import torch
from two_times import Arrays, edm, holds, holds_gradients

from onestep_bench import networks
from onestep_bench.denoiser import edm_denoiser, flow_denoiser
from onestep_bench.methods import Batch, Nets, get
from onestep_bench.methods.score_distillation import (
    DIVERGENCES,
    LEVELS,
    ScoreDistillationConfig,
    critic_logistic,
    density_ratio,
    divergence_weight,
    fake_loss,
    generator_logistic,
    moved,
    relative,
    score_difference,
)
from onestep_bench.paths import VE
from onestep_bench.samplers import default_times, euler, karras_times, one_step
from onestep_bench.seeds import Draw
from onestep_bench.training.config import TrainConfig
from onestep_bench.training.loop import fit
from onestep_bench.training.source import Source

# FastGen's names of the divergences.
NAMES = {
    "kl": "kl",
    "js": "js",
    "sf": "softened-reverse-kl",
    "neyman": "neyman",
    "sh": "squared-hellinger",
    "jf": "jeffreys",
}


@pytest.fixture(scope="module")
def arrays():
    return Arrays("score_distillation")


@pytest.fixture
def toys(arrays):
    """(generator, teacher, fake), fresh ones, whose gradients nobody has asked for."""
    return [edm(arrays, role) for role in ("generator", "real", "fake")]


def made(arrays, generator):
    """The generator's images, with their graph."""
    s0 = arrays["s0"]
    return generator(s0 * arrays["z"], torch.tensor(s0, dtype=torch.float64), want="x0")


def logits(fake, o, y, sigma):
    """The toy's map of logits, (n, h w): what stands inside its preconditioning, summed by `o`."""
    inside = fake.net(*fake.native.inputs(y, sigma))
    return (o.reshape(1, -1, 1, 1) * inside).sum(1).flatten(1)


def test_levels_are_dmd2s_table(arrays):
    sigmas = karras_times(LEVELS)[:-1].flip(0)
    torch.testing.assert_close(sigmas, arrays["dmd2/sigmas"], rtol=1e-6, atol=0)


def holds_for_generator(loss, x, generator, arrays, group, rtol=1e-5):
    (found,) = torch.autograd.grad(loss, x, retain_graph=True)
    holds(found, arrays[f"{group}/grad_x"], rtol)
    if f"{group}/grad_w" in arrays:
        holds_gradients(loss, generator.net, arrays, group, rtol)


def of_dmd2(arrays, toys, x, **options):
    _, teacher, fake = toys
    sigma = arrays["dmd2/sigmas"][arrays["dmd2/generator/index"]]
    return score_difference(teacher, fake, x, arrays["dmd2/generator/noise"], sigma, **options)


def test_dmd2s_generator_is_that_of_the_released_code(arrays, toys):
    x = made(arrays, toys[0])
    holds(x.detach(), arrays["x"])
    direction = of_dmd2(arrays, toys, x, added=0.0)
    holds(direction, arrays["dmd2/generator/direction"])
    loss = moved(x, direction)
    holds(loss.detach(), arrays["dmd2/generator/loss"])
    holds_for_generator(loss, x, toys[0], arrays, "dmd2/generator")


def test_and_that_of_fastgen(arrays, toys):
    """With f-distill's weights too."""
    x = made(arrays, toys[0])
    direction = of_dmd2(arrays, toys, x)
    weights = arrays["f_distill/vsd/h"].reshape(-1, 1, 1, 1)
    for group, pulled in (("fastgen/vsd", direction), ("f_distill/vsd", direction * weights)):
        loss = moved(x, pulled)
        holds(loss.detach(), arrays[f"{group}/loss"])
        holds_for_generator(loss, x, toys[0], arrays, group)


def test_the_fake_score_is_trained_as_dmd2s(arrays, toys):
    fake, x = toys[2], made(arrays, toys[0]).detach()
    sigma = arrays["dmd2/sigmas"][arrays["dmd2/fake/index"]]
    loss = fake_loss(fake, x, arrays["dmd2/fake/noise"], sigma)
    holds(loss.detach(), arrays["dmd2/fake/loss"])
    holds_gradients(loss, fake.net, arrays, "dmd2/fake")


def test_diff_instruct_is_that_of_the_released_code(arrays, toys):
    """There sums over pixels; its scalar is the product of the difference and the image."""
    generator, teacher, fake = toys
    x = made(arrays, generator)
    sigma = (1.2 * arrays["diff_instruct/normal"] - 1.2).exp()
    direction = score_difference(teacher, fake, x, arrays["diff_instruct/noise"], sigma, normalise=False)
    holds((direction * x).sum().detach() / len(x), arrays["diff_instruct/generator/loss"])
    dim = x[0].numel()
    holds_for_generator(moved(x, direction) * dim, x, generator, arrays, "diff_instruct/generator")
    sigma = (1.2 * arrays["diff_instruct/fake/normal"] - 1.2).exp()
    loss = dim * fake_loss(fake, x.detach(), arrays["diff_instruct/fake/noise"], sigma)
    holds(loss.detach(), arrays["diff_instruct/fake/loss"])
    holds_gradients(loss, fake.net, arrays, "diff_instruct/fake")


def test_the_critic_is_dmd2s(arrays, toys):
    """Its logits are float32 there."""
    generator, _, fake = toys
    x, o = made(arrays, generator), arrays["fake/o"].clone().requires_grad_()

    def seen(images, what):
        sigma, noise = (arrays[f"dmd2/gan/{what}_{each}"] for each in ("index", "noise"))
        sigma = arrays["dmd2/sigmas"][sigma]
        return logits(fake, o, VE.mix(images, noise, sigma), sigma)

    loss = generator_logistic(seen(x, "generator"))
    holds(loss.detach(), arrays["dmd2/gan/generator_loss"], 1e-6)
    holds_for_generator(loss, x, generator, arrays, "dmd2/gan")
    loss = critic_logistic(seen(arrays["data"], "real"), seen(x.detach(), "fake"))
    holds(loss.detach(), arrays["dmd2/gan/critic_loss"], 1e-6)
    fake.net.o = torch.nn.Parameter(o.detach())  # beside its other weights, as `grad_o` is beside theirs
    names = [name for name in "wbp"]
    found = torch.autograd.grad(loss, [*(getattr(fake.net, name) for name in names), o])
    for name, gradient in zip([*names, "o"], found, strict=True):
        holds(gradient, arrays[f"dmd2/gan/critic_grad_{name}"])


@pytest.mark.parametrize("name", NAMES)
def test_weights_of_divergences_are_fastgens(arrays, name):
    """It computes them in float32."""
    given, sigma, rate = arrays["f_distill/logits"], arrays["f_distill/t"], arrays["f_distill/ema_rate"]
    ratio = density_ratio(given)
    holds(divergence_weight(NAMES[name], ratio), arrays[f"f_distill/plain/{name}"])
    means = torch.ones(arrays["f_distill/bins"], dtype=torch.float64)
    for call, again, kept in ((ratio, "", "one"), (density_ratio(given.flip(0)), "_second_call", "two")):
        found, means = relative(call, sigma, means, rate)
        torch.testing.assert_close(means, arrays[f"f_distill/binned/bins_after_{kept}"], rtol=1e-5, atol=0)
        holds(divergence_weight(NAMES[name], found), arrays[f"f_distill/binned/{name}{again}"])


def test_every_weight_of_fastgens_is_an_option():
    assert {*NAMES.values(), "reverse-kl"} == DIVERGENCES.keys()


# ---- a plane in which all is known -----------------------------------------------------------------------------------


class GaussianScore(torch.nn.Module):
    """The exact denoiser of N(mean, A A^T) in the plane, on VE; images are (n, 2, 1, 1)."""

    path = VE

    def __init__(self, mean, a):
        super().__init__()
        self.mean, self.a = mean, a

    def forward(self, x, t, labels=None, *, want):
        cov = self.a @ self.a.T
        noised = cov + t.reshape(-1, 1, 1) ** 2 * torch.eye(2, dtype=x.dtype)
        away = torch.linalg.solve(noised, (x.flatten(1) - self.mean)[..., None])
        return (self.mean + (cov @ away)[..., 0]).reshape(x.shape)


def reverse_kl(mean, a, wanted_mean, wanted_a, sigma):
    """KL(N(mean, A A^T + sigma^2) || N(wanted ...)), closed form."""
    noise = sigma**2 * torch.eye(2, dtype=mean.dtype)
    ours, theirs = a @ a.T + noise, wanted_a @ wanted_a.T + noise
    gap = wanted_mean - mean
    trace = torch.linalg.solve(theirs, ours).trace() + gap @ torch.linalg.solve(theirs, gap)
    return (trace - 2 + theirs.logdet() - ours.logdet()) / 2


def test_diff_instructs_gradient_is_that_of_the_reverse_kl():
    """At a level sigma: F - R is sigma^2 times the difference of the scores."""
    draw, rows = torch.Generator().manual_seed(0), 200_000
    mean, a = torch.tensor([0.4, -0.2], dtype=torch.float64), torch.tensor([[0.5, 0.1], [-0.2, 0.3]]).double()
    data = torch.tensor([-0.3, 0.1], dtype=torch.float64), torch.tensor([[0.3, 0.0], [0.25, 0.6]]).double()
    z, eps = torch.randn(2, rows, 2, generator=draw, dtype=torch.float64)
    for sigma in (0.1, 0.3, 1.0):
        weights = mean.clone().requires_grad_(), a.clone().requires_grad_()
        x = (weights[0] + z @ weights[1].T).reshape(rows, 2, 1, 1)
        levels = torch.full((rows,), sigma, dtype=torch.float64)
        scores = GaussianScore(*data), GaussianScore(mean, a)
        direction = score_difference(*scores, x, eps.reshape(x.shape), levels, normalise=False)
        # Of `moved`, a mean over pixels as well.
        found = [2 * each for each in torch.autograd.grad(moved(x, direction), weights)]
        exact = torch.autograd.grad(sigma**2 * reverse_kl(*weights, *data, sigma), weights)
        # The Monte Carlo error of each: of the direction for the mean, of its products with z for A.
        flat = direction.flatten(1)
        errors = flat.std(0), (flat[:, :, None] * z[:, None]).std(0)
        for one, other, error in zip(found, exact, errors, strict=True):
            assert ((one - other).abs() < 4.5 * error / math.sqrt(rows)).all()
            assert (other.abs() > 10 * error / math.sqrt(rows)).any()


def test_a_generator_that_is_the_data_stays_where_it_is():
    mean, a = torch.tensor([0.4, -0.2], dtype=torch.float64), torch.tensor([[0.5, 0.1], [-0.2, 0.3]]).double()
    score, x = GaussianScore(mean, a), torch.randn(8, 2, 1, 1, dtype=torch.float64)
    assert not score_difference(score, score, x, torch.randn_like(x), torch.ones(8).double()).any()


# ---- the objective ---------------------------------------------------------------------------------------------------


def net(size="0.05M"):
    torch.manual_seed(3)
    made = networks.sized(size, 8, 1)
    for parameter in made.parameters():  # fresh networks answer 0
        parameter.data += 0.05 * torch.randn_like(parameter)
    return made


@pytest.fixture(scope="module")
def teacher():
    return edm_denoiser(net()).eval().requires_grad_(False)


def nets_of(teacher, native=None, size="0.05M", **options):
    method, config = get("score-distillation"), ScoreDistillationConfig(**options)
    nets = Nets(method.student(config, net(size), native, teacher), teacher)
    torch.manual_seed(0)
    nets.auxiliary = method.auxiliary(nets, config)
    for parameter in nets.auxiliary["fake"].parameters():  # which has moved away from the teacher
        parameter.data += 0.05 * torch.randn_like(parameter)
    return nets, method.objective(nets, config), config


def images(count=8):
    return torch.randint(0, 256, (count, 1, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(5))


def draw(step, rows=slice(0, 8)):
    return Draw(0, step, batch_size=8, rows=rows, progress=0.0)


def test_a_step_is_the_generators_then_several_of_the_fake_score(teacher):
    for options, fake in (({"fake_steps": 3}, ("fake", "critic")), ({"fake_steps": 2, "adversarial": 0}, ("fake",))):
        nets, objective, config = nets_of(teacher, **options)
        assert tuple(nets.auxiliary) == fake
        named = [which for _, which in objective(Batch(images() / 127.5 - 1), draw(0))]
        assert named == ["student", *[fake] * config.fake_steps]


def test_every_loss_reaches_its_own_networks_alone(teacher):
    nets, objective, _ = nets_of(teacher, fake_steps=2)
    everything = {"student": nets.student, **nets.auxiliary, "teacher": teacher}
    for loss, which in objective(Batch(images() / 127.5 - 1), draw(0)):
        for module in everything.values():
            module.zero_grad(set_to_none=True)
        loss.backward()
        reached = {name for name, module in everything.items() if any(p.grad is not None for p in module.parameters())}
        assert reached == ({"student"} if which == "student" else {"fake", "critic"})


def test_the_critic_trains_the_fake_networks_encoder_and_the_generator(teacher):
    """By itself: the other losses do without it."""
    nets, _, _ = nets_of(teacher)
    fake, critic = nets.auxiliary["fake"], nets.auxiliary["critic"]
    x, sigma = torch.randn(4, 1, 8, 8, requires_grad=True), torch.tensor([0.1, 1.0, 10.0, 40.0])
    found = critic(x, None, sigma)
    assert found.shape == (4, 16)
    found.sum().backward()
    assert x.grad.flatten(1).abs().sum(1).gt(0).all()
    reached = {name.split(".")[1] for name, p in fake.named_parameters() if p.grad is not None and p.grad.any()}
    assert "enc" in reached
    assert "dec" not in reached
    assert not {id(p) for p in fake.parameters()} & {id(p) for p in critic.parameters()}


def test_the_critic_asks_the_encoder_as_the_network_is_asked(teacher):
    """On VE at a level, whatever path the network was trained on."""
    seen = []
    for make in (edm_denoiser, flow_denoiser):
        denoiser = make(net()).eval()
        nets, _, _ = nets_of(denoiser)
        fake, critic = nets.auxiliary["fake"], nets.auxiliary["critic"]
        assert fake.path == VE
        handle = fake.net.enc["8x8_conv"].register_forward_hook(lambda module, given, out: seen.append(given[0]))
        y, sigma = torch.randn(3, 1, 8, 8), torch.tensor([0.1, 1.0, 10.0])
        fake(y, sigma, want="x0")
        critic(y, None, sigma)
        handle.remove()
        torch.testing.assert_close(seen[-1], seen[-2])


def test_without_a_critic_no_data_are_seen(teacher):
    losses = []
    for shown in (images(), 255 - images()):
        _, objective, _ = nets_of(teacher, adversarial=0, fake_steps=2)
        losses.append([loss.item() for loss, _ in objective(Batch(shown / 127.5 - 1), draw(0))])
    assert losses[0] == losses[1]


@pytest.mark.parametrize("divergence", ["kl", "js"])
def test_a_divergence_weighs_images_in_whole_groups(teacher, divergence):
    options = {"divergence": divergence, "group": 4, "fake_steps": 1}
    nets, objective, _ = nets_of(teacher, **options)
    for module in nets.auxiliary.values():
        module.eval()  # spectral norms stand still
    data = images() / 127.5 - 1
    (whole, _), *_ = objective(Batch(data), draw(0))
    halves = [next(objective(Batch(data[rows]), draw(0, rows)))[0] for rows in (slice(0, 4), slice(4, 8))]
    assert sum(halves).item() / 2 == pytest.approx(whole.item(), rel=1e-5)
    (other, _), *_ = nets_of(teacher, fake_steps=1)[1](Batch(data), draw(0))
    assert whole.item() != pytest.approx(other.item(), rel=1e-3)
    assert get("score-distillation").group(ScoreDistillationConfig(**options)) == 4


def test_a_generator_is_asked_at_its_level(teacher):
    """So are samplers; and `None` is the end of the path that its weights were trained on."""
    nets, _, _ = nets_of(teacher, teacher.native, init_sigma=2.5)
    z = torch.randn(4, 1, 8, 8)
    expected = teacher(2.5 * z, 2.5, want="x0")
    torch.testing.assert_close(one_step(nets.student, z), expected)
    torch.testing.assert_close(euler(nets.student, z, default_times(nets.student.path, 1)), expected)
    flow = flow_denoiser(net())
    nets, _, _ = nets_of(teacher, flow.native)
    assert nets.student.path == flow.path
    torch.testing.assert_close(one_step(nets.student, z), one_step(flow, z))


def trained(teacher, checkpoint, kill_at=None, **options):
    """Weights of all networks after six steps, or as far as they came."""
    nets, objective, config = nets_of(teacher, **options)
    training = TrainConfig(kimg=0.048, batch_size=8, lr=1e-3)

    def watched(batch, draw):
        for place, item in enumerate(objective(batch, draw)):
            if (draw.step, place) == kill_at:
                raise InterruptedError
            yield item

    everything = {"student": nets.student, **nets.auxiliary}
    adams = get("score-distillation").adams(config, training.betas)
    source, more = Source(images(64), None, None, "cpu"), {"checkpoint": checkpoint, "checkpoint_seconds": 0}
    list(fit(watched, everything, source, training, seed=0, adams=adams, **more))
    return {name: module.state_dict() for name, module in everything.items()}


@pytest.mark.parametrize("kill_at", [(1, 1), (3, 2)])
def test_a_run_killed_inside_a_cycle_ends_in_the_same_bits(teacher, tmp_path, kill_at):
    expected = trained(teacher, tmp_path / "undisturbed.pt", fake_steps=2)
    with pytest.raises(InterruptedError):
        trained(teacher, tmp_path / "killed.pt", kill_at, fake_steps=2)
    found = trained(teacher, tmp_path / "killed.pt", fake_steps=2)
    for name, state in expected.items():
        assert all(torch.equal(found[name][key], value) for key, value in state.items()), name


def test_the_fake_scores_adam_has_its_own_rate():
    adams = get("score-distillation").adams(ScoreDistillationConfig(fake_lr=2.0), (0.9, 0.999))
    assert {name: (adam.rate, adam.betas) for name, adam in adams.items()} == dict.fromkeys(
        ("fake", "critic"), (2.0, (0.9, 0.999))
    )


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"sigmas": "karas"}, "did you mean 'karras'"),
        ({"divergence": "klx"}, "did you mean 'kl'"),
        ({"divergence": "kl", "adversarial": 0}, "give adversarial a weight"),
        ({"fake_steps": 0}, "fake_steps"),
        ({"fake_lr": 0.0}, "fake_lr"),
        ({"init_sigma": 0.0}, "a level of noise is a positive number"),
    ],
)
def test_bad_options(options, told, refuses):
    with refuses(told):
        ScoreDistillationConfig(**options)
