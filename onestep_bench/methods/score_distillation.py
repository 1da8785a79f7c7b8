"""Score distillation: Diff-Instruct (Luo et al. 2023, arXiv:2305.18455), DMD2 (Yin et al. 2024, arXiv:2405.14867).

A one-step generator moves its images by the difference of two scores at a random noise level: the teacher's, of the
data, and that of a fake score network, which is the teacher's copy and keeps learning what the generator makes. That
is the gradient of the reverse KL divergence between the two noised distributions. No image is asked for, nor any data.
DMD2 divides the difference by how far the teacher is from the image, steps the fake network five times as often, and
adds a critic on the fake network's bottleneck, which does look at data. Diff-Instruct does none of this:
`normalise=False, sigmas="log-normal", fake_steps=1, adversarial=0`.
f-distill (Xu et al. 2025, arXiv:2502.15681) weighs each image by a density ratio read off that critic, which turns the
reverse KL into another divergence.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from onestep_bench.denoiser import Denoiser
from onestep_bench.errors import OnestepError, near_miss
from onestep_bench.losses import moved
from onestep_bench.methods import Adam, Method, Nets, generator_at, register
from onestep_bench.networks import critics
from onestep_bench.paths import VE, spread, ve_up_to
from onestep_bench.samplers import karras_times, one_step

LEVELS = 1000  # of DMD2's table
CUT = (20, 980)  # the generator is asked at none beyond: 2 % from either end
SIGMAS = ("karras", "log-normal")
BINS = 10  # of levels, in which density ratios are compared
# h(r), by which f-distill weighs an image whose density under the data is r times that under the generator.
DIVERGENCES = {
    "reverse-kl": None,
    "kl": lambda r: r,
    "js": lambda r: 1 - 1 / (1 + r),
    "softened-reverse-kl": lambda r: 1 / (1 + r),
    "neyman": lambda r: 1 / r,
    "squared-hellinger": lambda r: r.sqrt(),
    "jeffreys": lambda r: 1 + r,
}


def score_difference(
    teacher,
    fake,
    x: Tensor,
    eps: Tensor,
    sigma: Tensor,
    labels: Tensor | None = None,
    *,
    normalise: bool = True,
    added: float = 1e-6,
) -> Tensor:
    """F(y) - R(y) at y = x + sigma eps: what takes x (n, c, h, w) away from the data. No gradient goes through it.

    teacher R and fake F on VE, asked for the image; eps as x, sigma (n,). normalise: divided by the mean of |x - R(y)|
    over each image (DMD2), to which FastGen's code adds 1e-6.
    """
    with torch.no_grad():
        y = VE.mix(x, eps, sigma)
        wanted = teacher(y, sigma, labels, want="x0")
        found = fake(y, sigma, labels, want="x0") - wanted
        return found / ((x - wanted).abs().mean((1, 2, 3), keepdim=True) + added) if normalise else found


def fake_loss(fake, x: Tensor, eps: Tensor, sigma: Tensor, labels: Tensor | None = None) -> Tensor:
    """EDM's denoising loss of the generator's images: mean of (1/sigma^2 + 1/0.5^2) (F(x + sigma eps) - x)^2."""
    found = fake(VE.mix(x, eps, sigma), sigma, labels, want="x0")
    return (spread(sigma**-2 + 4, x) * (found - x).square()).mean()


def generator_logistic(logits: Tensor) -> Tensor:
    """mean softplus(-l) of an image's mean logit; logits (n, k)."""
    return F.softplus(-logits.mean(1)).mean()


def critic_logistic(real: Tensor, fake: Tensor) -> Tensor:
    """mean softplus(l) of generated plus mean softplus(-l) of real images; logits (n, k) each."""
    return generator_logistic(-fake) + generator_logistic(real)


def density_ratio(logits: Tensor) -> Tensor:
    """exp of an image's mean logit, kept between 0.1 and 20: (n,) of logits (n, k)."""
    return logits.mean(1).clamp(-10, 10).exp().clamp(0.1, 20)


def relative(ratio: Tensor, sigma: Tensor, means: Tensor, rate: float = 0.0) -> tuple[Tensor, Tensor]:
    """Density ratios (n,) over the mean of their bin, and the means (bins,) after them.

    Bins have equal widths in sigma, from 0.002 to 80. A bin's mean keeps `rate` of what it was where it is hit.
    """
    bins, low = len(means), 0.002
    place = ((sigma - low) / (VE.t_max - low) * bins).long().clamp(0, bins - 1)
    member = F.one_hot(place, bins).to(ratio)
    count = member.sum(0)
    new = ratio @ member / (count + 1e-6)
    means = torch.where(count > 0, rate * means + (1 - rate) * new, means)
    return ratio / (member @ means + 1e-6), means


def divergence_weight(divergence: str, ratio: Tensor) -> Tensor:
    """h(r) over its mean: (n,)."""
    h = DIVERGENCES[divergence](ratio)
    return h / (h.mean() + 1e-6)


@dataclass(frozen=True)
class ScoreDistillationConfig:
    """init_sigma: the level at which the generator is asked, a noise-to-signal ratio; None is the noise end of the path
    of the model that it starts from (80 for EDM's).

    normalise: see `score_difference`. sigmas: 'karras', DMD2's table, or 'log-normal', of mean -1.2 and deviation 1.2.
    fake_steps: steps of the fake network, and of the critic, for one of the generator; all on the same real images, and
    the first on the images of the generator's own step. fake_lr: their learning rate over the generator's.
    adversarial: weight of the critic in the generator's loss, 0 for no critic and no look at data; critic_weight: of
    the critic's loss in that of the fake network, whose encoder they share.
    divergence: see `DIVERGENCES`; other than 'reverse-kl' needs the critic, and compares images in groups of `group`.
    """

    init_sigma: float | None = None
    normalise: bool = True
    sigmas: str = "karras"
    fake_steps: int = 5
    fake_lr: float = 1.0
    adversarial: float = 1e-3
    critic_weight: float = 1e-2
    divergence: str = "reverse-kl"
    group: int = 64

    def __post_init__(self):
        for name, known in (("sigmas", SIGMAS), ("divergence", DIVERGENCES)):
            if (value := getattr(self, name)) not in known:
                raise OnestepError(f"unknown {name} {value!r}{near_miss(value, known)}")
        if self.init_sigma is not None:
            ve_up_to(self.init_sigma)  # which refuses what is no level
        if self.fake_steps < 1 or self.group < 1:
            raise OnestepError("fake_steps and group are whole numbers, at least 1")
        if not (self.fake_lr > 0 and self.adversarial >= 0 and self.critic_weight > 0):
            raise OnestepError("fake_lr and critic_weight must be positive, adversarial not negative")
        if self.divergence != "reverse-kl" and not self.adversarial:
            raise OnestepError(f"divergence {self.divergence!r} is read off the critic; give adversarial a weight")


def score_distillation(nets: Nets, cfg: ScoreDistillationConfig):
    """Objective of Diff-Instruct and DMD2: a generator moved by two scores, then the fake score and the critic."""
    generator, teacher = nets.student, nets.teacher.on(VE)
    fake, critic = nets.auxiliary["fake"], nets.auxiliary.get("critic")
    generator.eval()  # no dropout
    table = karras_times(LEVELS)[:-1].flip(0).to(next(generator.parameters()))

    def level(draw, purpose, ends=(0, LEVELS - 1)):
        if cfg.sigmas == "log-normal":
            return (1.2 * draw.normal(purpose, ()) - 1.2).exp()
        return table[draw.integers(purpose, ends[0], ends[1] + 1)]

    def logits(images, draw, what, labels):
        sigma, eps = level(draw, f"{what} level"), draw.normal(f"{what} eps", images.shape[1:])
        return critic(VE.mix(images, eps, sigma), labels, sigma)

    def weights(x, eps, sigma, labels):
        with torch.no_grad():
            ratio = density_ratio(critic(VE.mix(x, eps, sigma), labels, sigma))
        groups = zip(ratio.split(cfg.group), sigma.split(cfg.group), strict=True)
        found = [divergence_weight(cfg.divergence, relative(*each, each[0].new_ones(BINS))[0]) for each in groups]
        return torch.cat(found)

    def objective(batch, draw):
        shape, labels = batch.images.shape[1:], batch.labels
        for net in nets.auxiliary.values():
            net.requires_grad_(False)  # the generator's step needs no gradient of theirs
        x = one_step(generator, draw.normal("generator noise", shape), labels)
        sigma, eps = level(draw, "generator level", CUT), draw.normal("generator eps", shape)
        direction = score_difference(teacher, fake, x, eps, sigma, labels, normalise=cfg.normalise)
        if cfg.divergence != "reverse-kl":
            direction = direction * spread(weights(x, eps, sigma, labels), x)
        loss = moved(x, direction)
        if critic:
            loss = loss + cfg.adversarial * generator_logistic(logits(x, draw, "adversarial", labels))
        yield loss, "student"

        for net in nets.auxiliary.values():
            net.requires_grad_(True)
        x = x.detach()
        for step in range(cfg.fake_steps):
            if step:
                with torch.no_grad():
                    x = one_step(generator, draw.normal(f"noise {step}", shape), labels)
            eps, sigma = draw.normal(f"fake eps {step}", shape), level(draw, f"fake level {step}")
            loss = fake_loss(fake, x, eps, sigma, labels)
            if critic:
                real = logits(batch.images, draw, f"real {step}", labels)
                loss = loss + cfg.critic_weight * critic_logistic(real, logits(x, draw, f"made {step}", labels))
            yield loss, tuple(nets.auxiliary)

    return objective


def _generator(cfg: ScoreDistillationConfig, net: nn.Module, native, teacher: Denoiser) -> Denoiser:
    return generator_at(cfg.init_sigma, net, native or teacher.native)


def _auxiliary(nets: Nets, cfg: ScoreDistillationConfig) -> dict[str, nn.Module]:
    return critics.fake_and_critic(nets.teacher, critics.convolutions if cfg.adversarial else None)


register(
    Method(
        "score-distillation",
        1,
        ScoreDistillationConfig,
        score_distillation,
        _generator,
        needs_teacher=True,
        auxiliary=_auxiliary,
        training={"lr": 1e-4, "batch_size": 256},
        adams=lambda cfg, betas: dict.fromkeys(("fake", "critic"), Adam(cfg.fake_lr, betas)),
        looks_through=lambda cfg: ["teacher"] if cfg.adversarial else [],
        follows_teacher=True,
        looks_at_data=lambda cfg: cfg.adversarial > 0,
        group=lambda cfg: 1 if cfg.divergence == "reverse-kl" else cfg.group,
    )
)
