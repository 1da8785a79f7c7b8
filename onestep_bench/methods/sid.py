"""Score identity distillation: SiD (Zhou et al. 2024, arXiv:2404.04057) and SiDA (Zhou et al. 2024, arXiv:2410.14919).

As score distillation, with a fake score network that keeps learning what the one-step generator makes; but the
generator minimises the Fisher divergence between the noised distributions, of which the difference of scores is the
error and not the slope. The gradient flows through the noised image into both frozen networks: stopped there, it is
DMD's. No data are asked for.
SiDA (`alpha=1, adversarial=0.01`) adds a critic at every place of the fake network's bottleneck, which looks at data:
there the mean of the channels is the logit; here that is where its weights start.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from onestep_bench.denoiser import Denoiser
from onestep_bench.errors import OnestepError
from onestep_bench.methods import Adam, Method, Nets, generator_at, register
from onestep_bench.networks import critics
from onestep_bench.paths import VE, ve_up_to
from onestep_bench.samplers import one_step

RHO = 7
# The generator's losses in the released loop: SiD's alone is taken a hundredfold, and half of that beside SiDA's other.
SCALE = 100


def level(uniform: Tensor, share: float) -> Tensor:
    """Levels (n,) of uniform draws (n,): Karras' grid between 0.002 and 80, walked from its low end for a share."""
    low, high = 0.002 ** (1 / RHO), VE.t_max ** (1 / RHO)
    return (high + (1 - share * uniform) * (low - high)) ** RHO


def weight(sigma: Tensor) -> Tensor:
    """EDM's, (sigma^2 + 0.5^2) / (0.5 sigma)^2."""
    return (sigma**2 + 0.25) / (0.5 * sigma) ** 2


def identity_loss(
    teacher, fake, x: Tensor, eps: Tensor, sigma: Tensor, alpha: float, labels: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Sum over pixels of (R - F) ((R - x) - alpha (R - F)) / w at y = x + sigma eps, and w: each (n,).

    teacher R and fake F on VE, asked for the image, both with gradients to y; x, eps (n, c, h, w), sigma (n,).
    w = sg max(mean |x - R|, 1e-5) of each image (SiD, Algorithm 1).
    """
    y = VE.mix(x, eps, sigma)
    real = teacher(y, sigma, labels, want="x0")
    gap = real - fake(y, sigma, labels, want="x0")
    unit = (x - real).detach().abs().mean((1, 2, 3)).clamp(min=1e-5)
    return (gap * (real - x - alpha * gap)).sum((1, 2, 3)) / unit, unit


def fake_loss(fake, x: Tensor, eps: Tensor, sigma: Tensor, labels: Tensor | None = None) -> Tensor:
    """EDM's denoising loss of the generator's images, (n,): weight times the sum over pixels of (F - x)^2."""
    found = fake(VE.mix(x, eps, sigma), sigma, labels, want="x0")
    return weight(sigma) * (found - x).square().sum((1, 2, 3))


def adversarial_loss(logits: Tensor, unit: Tensor) -> Tensor:
    """The mean of softplus(-l) over places and images, over each image's w: (n,) of logits (n, k), cut to +-10.

    As in `critic_loss`, that mean couples the images: SiDA's is over what one GPU holds.
    """
    return F.softplus(-logits.clamp(-10, 10)).mean() / unit


def critic_loss(real: Tensor, fake: Tensor, sigma: Tensor) -> Tensor:
    """EDM's weight times half the means of softplus(-l) of real and softplus(l) of generated images: (n,).

    logits (n, k) each, of which a row's two were noised alike, to sigma (n,).
    """
    return weight(sigma) * (F.softplus(-real).mean() + F.softplus(fake).mean()) / 2


@dataclass(frozen=True)
class SiDConfig:
    """alpha: 1.2 in SiD, 1 in SiDA. share: of Karras' grid, from its low end, on which the generator is asked.

    init_sigma: the level at which the generator is asked, a noise-to-signal ratio; None is the noise end of the path of
    the model that it starts from. fake_lr: learning rate of the fake network, and of its critic, over the generator's.
    adversarial: SiDA's weight of the critic, 0.01, in the generator's loss: 0 for no critic and no look at data.
    adversarial_after: thousands of images that the generator sees before it is shown the critic, 200 in SiDA. group:
    images over which its means are taken, those on one GPU.
    """

    alpha: float = 1.2
    share: float = 0.8
    init_sigma: float | None = 2.5
    fake_lr: float = 1.0
    adversarial: float = 0.0
    adversarial_after: float = 200.0
    group: int = 64

    def __post_init__(self):
        if self.init_sigma is not None:
            ve_up_to(self.init_sigma)  # which refuses what is no level
        if not 0 < self.share <= 1:
            raise OnestepError(f"share is a part of a grid, above 0 and at most 1, not {self.share}")
        if self.group < 1:
            raise OnestepError(f"group is a number of images, at least 1, not {self.group}")
        if not (self.fake_lr > 0 and self.adversarial >= 0 and self.adversarial_after >= 0):
            raise OnestepError("fake_lr must be positive, adversarial and adversarial_after not negative")


def sid(nets: Nets, cfg: SiDConfig):
    """Objective of SiD and SiDA: a step of the fake score, and of its critic, then the generator's."""
    generator, teacher = nets.student, nets.teacher.on(VE)
    fake, critic = nets.auxiliary["fake"], nets.auxiliary.get("critic")
    generator.eval()  # no dropout

    def in_groups(loss, *given):
        parts = zip(*(each.split(cfg.group) for each in given), strict=True)
        return torch.cat([loss(*part) for part in parts]).mean()

    def objective(batch, draw):
        shape, labels = batch.images.shape[1:], batch.labels
        for net in nets.auxiliary.values():
            net.requires_grad_(True)
        with torch.no_grad():
            x = one_step(generator, draw.normal("fake noise", shape), labels)
        sigma, eps = (1.2 * draw.normal("fake level", ()) - 1.2).exp(), draw.normal("fake eps", shape)
        loss = fake_loss(fake, x, eps, sigma, labels).mean()
        if critic:
            seen = (critic(VE.mix(images, eps, sigma), labels, sigma) for images in (batch.images, x))
            loss = loss + in_groups(critic_loss, *seen, sigma)
        yield loss, tuple(nets.auxiliary)

        for net in nets.auxiliary.values():
            net.requires_grad_(False)  # the generator's step needs no gradient of theirs
        x = one_step(generator, draw.normal("generator noise", shape), labels)
        sigma, eps = level(draw.uniform("generator level"), cfg.share), draw.normal("generator eps", shape)
        found, unit = identity_loss(teacher, fake, x, eps, sigma, cfg.alpha, labels)
        loss = SCALE * found.mean()
        if critic and draw.step * draw.batch_size >= 1000 * cfg.adversarial_after:
            logits = critic(VE.mix(x, eps, sigma), labels, sigma)
            loss = (loss + cfg.adversarial * x[0].numel() * in_groups(adversarial_loss, logits, unit)) / 2
        yield loss, "student"

    return objective


def _generator(cfg: SiDConfig, net: nn.Module, native, teacher: Denoiser) -> Denoiser:
    return generator_at(cfg.init_sigma, net, native or teacher.native)


def _auxiliary(nets: Nets, cfg: SiDConfig) -> dict[str, nn.Module]:
    return critics.fake_and_critic(nets.teacher, critics.mean_of_channels if cfg.adversarial else None)


register(
    Method(
        "sid",
        1,
        SiDConfig,
        sid,
        _generator,
        needs_teacher=True,
        auxiliary=_auxiliary,
        training={"lr": 1e-5, "betas": (0.0, 0.999), "batch_size": 256, "ema_rampup": 0.05},
        adams=lambda cfg, betas: dict.fromkeys(("fake", "critic"), Adam(cfg.fake_lr, betas)),
        looks_through=lambda cfg: ["teacher"] if cfg.adversarial else [],
        follows_teacher=True,
        looks_at_data=lambda cfg: cfg.adversarial > 0,
        group=lambda cfg: cfg.group if cfg.adversarial else 1,
    )
)
