"""GDD: what is frozen, the losses, R1, and the objective's three steps."""

import copy
import math

import pytest
import torch
from torch.nn import functional as F

from onestep_bench import networks
from onestep_bench.denoiser import edm_denoiser, flow_denoiser
from onestep_bench.errors import OnestepError
from onestep_bench.methods import Batch, Nets, get
from onestep_bench.methods.gdd import (
    GDDConfig,
    critic_loss,
    frozen_parameters,
    generator_loss,
    layer_activity,
    r1_penalty,
)
from onestep_bench.networks import critics
from onestep_bench.paths import VE
from onestep_bench.samplers import euler, karras_times, one_step, uniform_times
from onestep_bench.seeds import Draw
from onestep_bench.training.config import TrainConfig
from onestep_bench.training.loop import fit
from onestep_bench.training.source import Source
from onestep_bench.training.speed import compile_hearts


def shares(size, resolution, variant="gdd-i", label_dim=0):
    with torch.device("meta"):
        net = networks.sized(size, resolution, 3, label_dim=label_dim)
    counts = {name: parameter.numel() for name, parameter in net.named_parameters()}
    frozen = frozen_parameters(net, variant)
    assert frozen <= counts.keys()
    return sum(counts[name] for name in frozen), sum(counts.values())


def test_what_gdd_i_freezes_is_what_the_paper_counts():
    assert shares("edm-ncsnpp", 32) == (47_597_568, 56_395_523)
    for size, resolution, label_dim, published in (
        ("edm-ncsnpp", 32, 0, 84.4),
        ("edm-ncsnpp", 64, 0, 83.8),
        ("adm", 64, 1000, 78.8),
    ):
        frozen, total = shares(size, resolution, label_dim=label_dim)
        assert round(100 * frozen / total, 1) == published


def test_variants_freeze_more_and_gdd_nothing():
    counts = [shares("7.0M", 32, variant)[0] for variant in ("gdd", "gdd-i", "gdd-i+skips", "gdd-i+qkv+skips")]
    assert counts[0] == 0
    assert counts == sorted(set(counts))
    net = networks.sized("7.0M", 32, 3)
    more = frozen_parameters(net, "gdd-i+qkv") - frozen_parameters(net, "gdd-i")
    assert more
    assert all(".qkv." in name for name in more)


def test_an_unknown_variant_is_refused(refuses):
    with refuses("'gddi'", "did you mean 'gdd-i'?"):
        frozen_parameters(torch.nn.Identity(), "gddi")
    with refuses("'gddi'"):
        GDDConfig(variant="gddi")


def test_losses_are_non_saturating_and_means_over_all_logits():
    real, fake = torch.tensor([[0.0, 2.0], [-1.0, 3.0]]), torch.tensor([[1.0, 0.0]])
    assert generator_loss([fake]).item() == pytest.approx((math.log1p(math.exp(-1)) + math.log(2)) / 2)
    expected = (math.log1p(math.exp(1)) + math.log(2)) / 2 + F.softplus(-real).mean().item()
    assert critic_loss([real], [fake]).item() == pytest.approx(expected)


def test_backbones_have_equal_votes_however_many_logits_they_have():
    few, many = torch.full((3, 1), 2.0), torch.full((3, 9), -1.0)
    expected = (math.log1p(math.exp(-2)) + math.log1p(math.exp(1))) / 2
    assert generator_loss([few, many]).item() == pytest.approx(expected)


def test_r1_of_a_linear_critic_is_its_closed_form():
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(3, 2 * 4 * 4, generator=generator, dtype=torch.float64)
    images = torch.randn(5, 2, 4, 4, generator=generator, dtype=torch.float64)
    penalty = r1_penalty(lambda x: list((x.flatten(1) @ weight.T).split([1, 2], 1)), images, gamma=0.7)
    # Of three logits, of two backbones, the sum is differentiated.
    assert penalty.item() == pytest.approx(0.7 / 2 * weight.sum(0).square().sum().item(), rel=1e-12)


def test_r1_of_a_quadratic_critic_is_a_mean_over_images_and_has_the_right_gradient():
    images = torch.randn(6, 1, 3, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    scale = torch.tensor(1.5, dtype=torch.float64, requires_grad=True)
    penalty = r1_penalty(lambda x: [scale * x.square().sum((1, 2, 3))[:, None]], images, gamma=2.0)
    energy = (2 * images).square().sum((1, 2, 3)).mean().item()
    assert penalty.item() == pytest.approx(1.5**2 * energy)
    penalty.backward()
    assert scale.grad.item() == pytest.approx(2 * 1.5 * energy)


@pytest.fixture(scope="module")
def teacher():
    torch.manual_seed(3)
    net = networks.sized("0.05M", 8, 1)
    for parameter in net.parameters():  # fresh networks answer 0
        parameter.data += 0.05 * torch.randn_like(parameter)
    return edm_denoiser(net).eval().requires_grad_(False)


def nets_of(teacher, **options):
    config = GDDConfig(critic_channels=8, **options)
    method = get("gdd")
    torch.manual_seed(0)
    net = networks.sized("0.05M", 8, 1)
    net.load_state_dict(teacher.net.state_dict())
    nets = Nets(method.student(config, net, teacher.native, teacher), teacher)
    nets.auxiliary = method.auxiliary(nets, config)
    return nets, method.objective(nets, config), config


def images(count=64):
    return torch.randint(0, 256, (count, 1, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(5))


def draw(step, batch_size=8):
    return Draw(0, step, batch_size=batch_size, rows=slice(0, batch_size), progress=0.0)


@pytest.mark.parametrize("make", [edm_denoiser, flow_denoiser], ids=["edm", "flow"])
def test_one_step_is_eulers(make):
    torch.manual_seed(0)
    net = networks.sized("0.05M", 8, 1)
    net.dec["8x8_aux_conv"].weight.data.normal_(std=0.05)
    denoiser, noise = make(net), torch.randn(4, 1, 8, 8)
    times = karras_times(1) if denoiser.path == VE else uniform_times(1)
    made = one_step(denoiser, noise)
    torch.testing.assert_close(made, euler(denoiser, noise, times), rtol=1e-5, atol=1e-5)
    assert made.requires_grad


def test_a_step_is_generator_then_critic_and_r1_now_and_then(teacher):
    _, objective, _ = nets_of(teacher, r1_interval=4)
    batch = Batch(images(8) / 127.5 - 1)
    named = [[which for _, which in objective(batch, draw(step))] for step in range(5)]
    assert named == [["student", "critic", "critic"], *[["student", "critic"]] * 3, ["student", "critic", "critic"]]


def test_the_generator_is_trained_without_dropout(teacher):
    """The sizes for digits have none; those of CIFAR-10 do, and a generator that drops out is another generator."""
    method, config = get("gdd"), GDDConfig(critic_channels=8)
    net = networks.sized("0.05M", 8, 1, dropout=0.5)
    net.load_state_dict(teacher.net.state_dict())
    student = method.student(config, net, teacher.native, teacher).train()  # as `study.train` hands it over
    nets = Nets(student, teacher)
    torch.manual_seed(0)
    nets.auxiliary = method.auxiliary(nets, config)
    config_of_run = TrainConfig(kimg=0.016, batch_size=8, betas=(0.0, 0.99), lr=1e-9)
    source = Source(images(), None, None, "cpu")
    everything = {"student": student, **nets.auxiliary}
    list(fit(method.objective(nets, config), everything, source, config_of_run, seed=0, ema=copy.deepcopy(student)))
    noise, seen = torch.randn(4, 1, 8, 8), []
    for seed in (1, 2):
        torch.manual_seed(seed)
        seen.append(one_step(student, noise))
    assert torch.equal(*seen)
    torch.testing.assert_close(seen[0], one_step(teacher, noise), rtol=1e-4, atol=1e-4)


def test_lazy_r1_is_right_in_expectation(teacher):
    """Over one interval, the lazy penalties sum to what the penalty at every step would have come to."""
    batch = Batch(images(8) / 127.5 - 1)

    def total(interval):
        _, objective, _ = nets_of(teacher, r1_gamma=100.0, r1_interval=interval)
        return sum(loss.item() for step in range(6) for loss, _ in list(objective(batch, draw(step)))[2:])

    # The critic stands still here, so that every step's penalty is the same; spectral norms settle over the calls.
    assert total(6) == pytest.approx(total(1), rel=0.1)


class Toy(torch.nn.Module):
    """A critic of two backbones, with 3 and 5 logits an image, that keeps what it was shown."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(1)
        self.heads, self.seen = torch.nn.ModuleList(torch.nn.Linear(64, k) for k in (3, 5)), []

    def forward(self, images, labels=None):
        self.seen.append(images.detach())
        return [head(images.flatten(1)).tanh() for head in self.heads]


def gradient(loss, network):
    network.zero_grad()
    loss.backward()
    return torch.cat([parameter.grad.flatten() for parameter in network.parameters()])


def test_r1_is_to_the_adversarial_loss_what_it_is_in_the_released_code(teacher):
    """There, of 64 images: sums over images and backbones of a mean over logits, and a mean over images for R1."""
    gamma, interval = 0.3, 4
    nets, _, config = nets_of(teacher, r1_gamma=gamma, r1_interval=interval)
    toy = nets.auxiliary["critic"] = Toy()
    real = images(64) / 127.5 - 1
    losses = get("gdd").objective(nets, config)(Batch(real), draw(0, 64))
    next(losses)  # the generator's
    ours = [gradient(loss, toy) for loss, _ in losses]
    _, shown, fake, _ = toy.seen  # the generator's step, then the critic's on real and fake images apart, then R1
    assert torch.equal(shown, real)

    adversarial = sum(F.softplus(row).mean() for logits in toy(fake) for row in logits)
    adversarial = adversarial + sum(F.softplus(-row).mean() for logits in toy(real) for row in logits)
    pixels = real.clone().requires_grad_(True)
    (slope,) = torch.autograd.grad(sum(logits.sum() for logits in toy(pixels)), pixels, create_graph=True)
    r1 = interval * (slope.square().sum([1, 2, 3]) * gamma / 2).mean()
    released = gradient(adversarial, toy), gradient(r1, toy)
    for found, expected in zip(ours, released, strict=True):
        torch.testing.assert_close(found * 64 * 2, expected, rtol=1e-4, atol=1e-5)


def test_every_loss_reaches_its_own_network_alone(teacher):
    nets, objective, _ = nets_of(teacher, variant="gdd-i")
    critic, frozen = nets.auxiliary["critic"], frozen_parameters(nets.student.net)
    for index, (loss, which) in enumerate(objective(Batch(images(8) / 127.5 - 1), draw(0))):
        for module in (nets.student, critic, teacher):
            module.zero_grad(set_to_none=True)
        loss.backward()
        moved = {name for name, parameter in nets.student.net.named_parameters() if parameter.grad is not None}
        heads = [parameter.grad is not None for parameter in critic.heads.parameters()]
        assert which == ("student" if index == 0 else "critic")
        if index == 0:
            assert moved == {name for name, _ in nets.student.net.named_parameters()} - frozen
        # The last biases of the heads leave R1's gradient alone.
        assert not any(heads) if index == 0 else any(heads) and not moved
        assert all(parameter.grad is None for parameter in critic.mixing.parameters())
        assert all(parameter.grad is None for parameter in teacher.parameters())


@pytest.mark.parametrize("variant", ["gdd", "gdd-i"])
def test_training_moves_what_the_variant_trains(teacher, variant):
    nets, objective, config = nets_of(teacher, variant=variant)
    before = {name: parameter.clone() for name, parameter in nets.student.net.named_parameters()}
    training = TrainConfig(kimg=0.024, batch_size=8, lr=1e-3, betas=(0.0, 0.99))
    adams = get("gdd").adams(config, training.betas)
    source = Source(images(), None, None, "cpu")
    list(fit(objective, {"student": nets.student, **nets.auxiliary}, source, training, seed=0, adams=adams))
    frozen = frozen_parameters(nets.student.net, variant)
    moved = {
        name for name, parameter in nets.student.net.named_parameters() if not torch.equal(parameter, before[name])
    }
    assert moved == before.keys() - frozen


class Killed(Exception):
    pass


@pytest.mark.parametrize("kill_at", [(1, 1), (3, 2), (5, 1)], ids=["between", "before r1", "at the end"])
def test_a_killed_run_ends_in_the_same_generator_and_critic(teacher, tmp_path, kill_at):
    """Killed after some of a step's losses: generator, critic and its spectral norms go on to the same bits."""

    def run(checkpoint, kill_at=None):
        nets, objective, config = nets_of(teacher, r1_interval=3)
        training = TrainConfig(kimg=0.048, batch_size=8, lr=1e-3, betas=(0.0, 0.99))

        def watched(batch, draw):
            for place, item in enumerate(objective(batch, draw)):
                if (draw.step, place) == kill_at:
                    raise Killed
                yield item

        trained = {"student": nets.student, **nets.auxiliary}
        options = {"adams": get("gdd").adams(config, training.betas), "checkpoint_seconds": 0}
        list(
            fit(
                watched,
                trained,
                Source(images(), None, None, "cpu"),
                training,
                seed=0,
                checkpoint=checkpoint,
                **options,
            )
        )
        return {name: net.state_dict() for name, net in trained.items()}

    expected = run(tmp_path / "undisturbed.pt")
    with pytest.raises(Killed):
        run(tmp_path / "killed.pt", kill_at)
    found = run(tmp_path / "killed.pt")
    for name, state in expected.items():
        assert all(torch.equal(found[name][key], value) for key, value in state.items()), name
    assert any(key.endswith("_u") for key in expected["critic"])


@pytest.mark.slow
def test_r1_goes_through_a_compiled_critic(teacher):
    """As `fit` compiles it on a GPU; with the backend that needs no compiler, but the same differentiation."""
    nets, objective, _ = nets_of(teacher)
    compile_hearts(nets.auxiliary.values(), "aot_eager")
    for loss, _ in objective(Batch(images(8) / 127.5 - 1), draw(0)):
        loss.backward()


def test_lazy_r1_slows_the_critics_adam():
    adam = get("gdd").adams(GDDConfig(critic_lr=2.0, r1_interval=16), (0.0, 0.99))["critic"]
    assert adam.rate == pytest.approx(2 * 16 / 17)
    assert adam.betas == pytest.approx((0.0, 0.99 ** (16 / 17)))
    assert get("gdd").adams(GDDConfig(r1_gamma=0.0), (0.0, 0.99))["critic"].betas == (0.0, 0.99)


def pyramid(images, labels):
    """Four maps of 56, 28, 14 and 7 pixels, as of an ImageNet network."""
    images = F.interpolate(images, size=(56, 56), mode="bilinear")
    return [F.avg_pool2d(images.expand(-1, 2 + k, -1, -1), 2**k) for k in range(4)]


@pytest.fixture
def released(teacher, monkeypatch):
    """Function to networks and objective with the released critic, looking through pyramids."""
    monkeypatch.setattr(critics, "timm_backbone", lambda name, device, layout: critics.Backbone(pyramid))
    return lambda **options: nets_of(teacher, layout="released", critic="timm:one+timm:two", **options)


def test_the_released_critic_trains_the_generator(released):
    nets, objective, _ = released(gpu_batch=4)
    before = copy.deepcopy(nets.auxiliary["critic"].state_dict())
    training = TrainConfig(kimg=0.016, batch_size=8, lr=1e-3, betas=(0.0, 0.99))
    trained = {"student": nets.student, **nets.auxiliary}
    rows = list(fit(objective, trained, Source(images(), None, None, "cpu"), training, seed=0))
    assert all(math.isfinite(loss) for row in rows for loss in row.losses.values())
    after = nets.auxiliary["critic"].state_dict()
    moved = {name.split(".")[0] for name, value in before.items() if not torch.equal(value, after[name])}
    assert moved == {"heads"}


def test_micro_batches_of_whole_groups_see_the_batch_statistics_of_the_whole(released):
    nets, objective, _ = released(gpu_batch=4, r1_gamma=0.0)
    nets.auxiliary["critic"].eval()  # spectral norms stand still
    batch = images(8) / 127.5 - 1

    def losses(*places):
        draws = [Draw(0, 1, batch_size=8, rows=rows, progress=0.0) for rows in places]
        parts = [[loss.item() for loss, _ in objective(Batch(batch[each.rows]), each)] for each in draws]
        return [sum(each) / len(each) for each in zip(*parts, strict=True)]

    assert losses(slice(0, 4), slice(4, 8)) == pytest.approx(losses(slice(0, 8)), rel=1e-5)


def test_the_released_critics_groups_are_kept_whole():
    backbones = "timm:vgg16_bn+timm:tf_efficientnet_lite0"
    assert get("gdd").group(GDDConfig(critic=backbones, layout="released", gpu_batch=128)) == 128
    assert get("gdd").group(GDDConfig()) == 1


def test_the_released_layout_is_of_imagenets_networks(refuses):
    for critic in ("teacher", "teacher+timm:vgg16_bn"):
        with refuses("'released'", repr(critic), "timm:vgg16_bn+timm:tf_efficientnet_lite0"):
            GDDConfig(layout="released", critic=critic)
    with refuses("'releasd'", "did you mean 'released'?"):
        GDDConfig(layout="releasd")


@pytest.mark.parametrize(
    "options", [{"r1_interval": 0}, {"critic_channels": 12}, {"critic_lr": 0.0}, {"r1_gamma": -1.0}, {"gpu_batch": 0}]
)
def test_bad_options_are_refused(options):
    with pytest.raises(OnestepError, match=next(iter(options))):
        GDDConfig(**options)


def test_layer_activity_is_each_blocks_branch_at_each_level(teacher):
    data = images(4) / 127.5 - 1
    noise = torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    activity = layer_activity(teacher, data, noise, [0.1, 80.0])
    assert next(iter(activity)) == "enc.8x8_block0"
    assert all(len(levels) == 2 and min(levels) > 0 for levels in activity.values())
    silent = edm_denoiser(networks.sized("0.05M", 8, 1))
    silent.net.dec["8x8_block1"].conv1.weight.data.zero_()
    silent.net.dec["8x8_block1"].conv1.bias.data.fill_(-0.25)
    assert layer_activity(silent, data, noise, [1.0])["dec.8x8_block1"] == [0.25]
    assert not silent.net.dec["8x8_block1"].conv1._forward_hooks
