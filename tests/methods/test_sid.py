"""SiD and SiDA: losses against the released code, through what the gradient flows, and what a step is.

tests/reference/score_distillation.npz: mingyuanzhou/SiD 01fbb13cf184, and a5510fdfb1b2 of its branch sida.
"""

import pytest
import torch
from two_times import Arrays, edm, holds, holds_gradients

from onestep_bench import networks
from onestep_bench.denoiser import edm_denoiser
from onestep_bench.methods import Batch, Nets, get
from onestep_bench.methods.sid import (
    SCALE,
    SiDConfig,
    adversarial_loss,
    critic_loss,
    fake_loss,
    identity_loss,
    level,
)
from onestep_bench.paths import VE
from onestep_bench.samplers import one_step
from onestep_bench.seeds import Draw


@pytest.fixture(scope="module")
def arrays():
    return Arrays("score_distillation")


@pytest.fixture
def toys(arrays):
    """(generator, teacher, fake), fresh ones."""
    return [edm(arrays, role) for role in ("generator", "real", "fake")]


def made(arrays, generator):
    """The generator's images, with their graph."""
    s0 = arrays["s0"]
    return generator(s0 * arrays["z"], torch.tensor(s0, dtype=torch.float64), want="x0")


def level_of(arrays):
    return level(arrays["sid/uniform"], arrays["sid/tmax"] / 1000)


def logits(fake, o, images, noise, sigma):
    """The toy's map of logits, (n, h w): what stands inside its preconditioning, summed by `o`."""
    inside = fake.net(*fake.native.inputs(VE.mix(images, noise, sigma), sigma))
    return (o.reshape(1, -1, 1, 1) * inside).sum(1).flatten(1)


def alphas(arrays):
    return [(group, float(group.removeprefix("sid/alpha"))) for group in arrays.groups("sid/alpha", "loss")]


def test_levels_are_those_of_the_released_code(arrays):
    torch.testing.assert_close(level_of(arrays), arrays["sid/sigma"].flatten(), rtol=1e-6, atol=0)


def test_the_generators_loss_is_sids(arrays, toys):
    """Its divisor is float32 there."""
    generator, teacher, fake = toys
    for group, alpha in alphas(arrays):
        x = made(arrays, generator)
        found, _ = identity_loss(teacher, fake, x, arrays["sid/noise"], level_of(arrays), alpha)
        holds(found.detach(), arrays[f"{group}/per_image"])
        holds(found.mean().detach(), arrays[f"{group}/loss"])
        (slope,) = torch.autograd.grad(found.mean(), x, retain_graph=True)
        holds(slope, arrays[f"{group}/grad_x"])
        holds_gradients(found.mean(), generator.net, arrays, group)


def test_a_noised_image_that_is_detached_gives_dmds_gradient(arrays, toys):
    """Of (R - F)(R - x) then only x has a slope: F - R, by the same divisor, and that of no released array."""
    _, teacher, fake = toys
    for group, alpha in alphas(arrays):
        x, eps, sigma = arrays["x"].clone().requires_grad_(), arrays["sid/noise"], level_of(arrays)
        y = VE.mix(x, eps, sigma).detach()

        def asked(network, y=y):
            return lambda noised, t, labels, want: network(y, t, labels, want=want)

        found, unit = identity_loss(asked(teacher), asked(fake), x, eps, sigma, alpha)
        (slope,) = torch.autograd.grad(found.mean(), x)
        difference = (fake(y, sigma, want="x0") - teacher(y, sigma, want="x0")).detach()
        holds(slope, difference / unit.reshape(-1, 1, 1, 1) / len(x))
        assert (slope - arrays[f"{group}/grad_x"]).norm() > 0.1 * slope.norm()


def test_the_fake_score_is_trained_as_edm(arrays, toys):
    fake, x = toys[2], made(arrays, toys[0]).detach()
    sigma = (1.2 * arrays["diff_instruct/fake/normal"] - 1.2).exp()
    loss = fake_loss(fake, x, arrays["diff_instruct/fake/noise"], sigma).mean()
    holds(loss.detach(), arrays["sid/fake/loss"])
    holds_gradients(loss, fake.net, arrays, "sid/fake")


def test_the_generators_loss_is_sidas(arrays, toys):
    generator, teacher, fake = toys
    x, sigma, noise = made(arrays, generator), level_of(arrays), arrays["sid/noise"]
    o = arrays["fake/o"] * arrays["sida/logit_scale"]
    found, unit = identity_loss(teacher, fake, x, noise, sigma, arrays["sida/alpha"])
    holds(found.mean().detach(), arrays["sida/generator/sid_loss"])
    adversarial = adversarial_loss(logits(fake, o, x, noise, sigma), unit)
    holds(adversarial.detach(), arrays["sida/generator/gan_per_image"])
    gan = x[0].numel() * adversarial.mean()
    holds(gan.detach(), arrays["sida/generator/gan_loss"])
    holds(torch.autograd.grad(gan, x, retain_graph=True)[0], arrays["sida/generator/gan_grad_x"])
    loss = (SCALE * found.mean() + SiDConfig(adversarial=0.01).adversarial * gan) / 2
    holds(loss.detach(), arrays["sida/generator/loss"])
    (slope,) = torch.autograd.grad(loss, x, retain_graph=True)
    holds(slope, arrays["sida/generator/grad_x"])
    holds_gradients(loss, generator.net, arrays, "sida/generator")


def test_the_critics_loss_is_sidas(arrays, toys):
    fake, x = toys[2], made(arrays, toys[0]).detach()
    noise, sigma = arrays["diff_instruct/fake/noise"], (1.2 * arrays["diff_instruct/fake/normal"] - 1.2).exp()
    fake.net.o = torch.nn.Parameter(arrays["fake/o"] * arrays["sida/logit_scale"])
    score = fake_loss(fake, x, noise, sigma).mean()
    seen = (logits(fake, fake.net.o, images, noise, sigma) for images in (arrays["data"], x))
    critic = critic_loss(*seen, sigma).mean()
    holds(score.detach(), arrays["sida/fake/score_loss"])
    holds(critic.detach(), arrays["sida/fake/critic_loss"])
    holds((score + critic).detach(), arrays["sida/fake/loss"])
    holds_gradients(score + critic, fake.net, arrays, "sida/fake")


# ---- the objective ---------------------------------------------------------------------------------------------------


def net():
    torch.manual_seed(3)
    made = networks.sized("0.05M", 8, 1)
    for parameter in made.parameters():  # fresh networks answer 0
        parameter.data += 0.05 * torch.randn_like(parameter)
    return made


@pytest.fixture(scope="module")
def teacher():
    return edm_denoiser(net()).eval().requires_grad_(False)


def nets_of(teacher, **options):
    method, config = get("sid"), SiDConfig(**options)
    nets = Nets(method.student(config, net(), teacher.native, teacher), teacher)
    torch.manual_seed(0)
    nets.auxiliary = method.auxiliary(nets, config)
    for parameter in nets.auxiliary["fake"].parameters():  # which has moved away from the teacher
        parameter.data += 0.05 * torch.randn_like(parameter)
    return nets, method.objective(nets, config)


SIDA = {"alpha": 1.0, "adversarial": 0.01, "adversarial_after": 0.016, "group": 4}


def images(count=8):
    return torch.randint(0, 256, (count, 1, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(5))


def draw(step, rows=slice(0, 8)):
    return Draw(0, step, batch_size=8, rows=rows, progress=0.0)


@pytest.mark.parametrize(("options", "auxiliary"), [({}, {"fake"}), (SIDA, {"fake", "critic"})])
def test_every_loss_reaches_its_own_networks_alone(teacher, options, auxiliary):
    nets, objective = nets_of(teacher, **options)
    everything = {"student": nets.student, **nets.auxiliary, "teacher": teacher}
    named = []
    for loss, which in objective(Batch(images() / 127.5 - 1), draw(3)):
        for module in everything.values():
            module.zero_grad(set_to_none=True)
        loss.backward()
        reached = {name for name, module in everything.items() if any(p.grad is not None for p in module.parameters())}
        assert reached == ({"student"} if which == "student" else auxiliary)
        named.append(which)
    assert named == [tuple(nets.auxiliary), "student"]


def test_data_are_seen_by_the_critic_alone_and_it_by_the_generator_after_a_while(teacher):
    def losses(step, shown, **options):
        _, objective = nets_of(teacher, **options)
        return [loss.item() for loss, _ in objective(Batch(shown / 127.5 - 1), draw(step))]

    shown, other = images(), 255 - images()
    assert losses(0, shown) == losses(0, other)
    assert losses(0, shown, **SIDA)[0] != losses(0, other, **SIDA)[0]
    early, late = SIDA | {"adversarial": 1.0}, SIDA | {"adversarial": 1.0, "adversarial_after": 0.0}
    assert losses(1, shown, **early)[1] == losses(1, shown, **SIDA)[1] != losses(1, shown, **late)[1]
    assert losses(2, shown, **early)[1] == losses(2, shown, **late)[1]


def test_micro_batches_of_whole_groups_are_the_whole(teacher):
    data = images() / 127.5 - 1

    def losses(*places):
        parts = [[loss.item() for loss, _ in nets_of(teacher, **SIDA)[1](Batch(data[p]), draw(3, p))] for p in places]
        return [sum(each) / len(each) for each in zip(*parts, strict=True)]

    assert losses(slice(0, 4), slice(4, 8)) == pytest.approx(losses(slice(0, 8)), rel=1e-5)
    assert (get("sid").group(SiDConfig(**SIDA)), get("sid").group(SiDConfig())) == (4, 1)


def test_the_generator_is_asked_at_its_level(teacher):
    nets, _ = nets_of(teacher)
    z = torch.randn(4, 1, 8, 8)
    torch.testing.assert_close(one_step(nets.student, z), teacher(2.5 * z, 2.5, want="x0"))


def test_the_critic_starts_as_the_mean_of_channels(teacher):
    nets, _ = nets_of(teacher, **SIDA)
    y = torch.randn(3, 1, 8, 8)
    features = nets.auxiliary["fake"].encode(y, 1.0)[-1]
    found = nets.auxiliary["critic"](y, None, torch.ones(3))
    torch.testing.assert_close(found, features.mean(1).flatten(1))


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"share": 0.0}, "share"),
        ({"group": 0}, "group"),
        ({"adversarial": -1.0}, "adversarial"),
        ({"init_sigma": -1.0}, "a level of noise is a positive number"),
    ],
)
def test_bad_options(options, told, refuses):
    with refuses(told):
        SiDConfig(**options)
