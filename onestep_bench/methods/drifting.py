"""Drifting models (Deng et al. 2026, arXiv:2602.04770): a generator whose samples drift towards data as it trains.

No teacher's image, no score, no critic and no noise level: each generated sample is drawn to real ones and pushed away
from other generated ones, near ones more than far ones, and the generator is asked for where that takes it. The field
is antisymmetric, so that it vanishes where the two distributions are equal. Nearness is measured between pixels, which
do for small images, or between features of the frozen teacher's own encoder, which never judges.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from onestep_bench.denoiser import Denoiser
from onestep_bench.errors import OnestepError, near_miss
from onestep_bench.methods import Method, Nets, generator_at, register
from onestep_bench.networks import critics
from onestep_bench.paths import ve_up_to
from onestep_bench.samplers import one_step

SPACES = ("pixels", "teacher")
FAR = 100.0  # added to a sample's distance from itself, in units of the mean distance


def drift(
    gen: Tensor,
    positives: Tensor,
    radii: Sequence[float],
    *,
    negatives: Tensor | None = None,
    weights: Tensor | None = None,
    apart: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """(field (b, g, d), unit): how generated samples (b, g, d) are to move, in units of a typical distance over sqrt d.

    positives (b, p, d) attract, negatives (b, n, d) push away as other generated ones do. weights (b, g + n + p): of
    all of these in this order. apart (g, g + n + p): pairs that do not know each other, as of two classes.
    For each radius R, affinities are sqrt(softmax over targets x softmax over samples of -distance/R), distances in
    units of their mean over all groups b; and what comes of it is divided by its root mean square. Fields are summed.
    """
    with torch.no_grad():
        targets = torch.cat([gen, *([] if negatives is None else [negatives]), positives], 1)
        count, others = gen.shape[1], targets.shape[1] - positives.shape[1]
        known = torch.ones_like(targets[:1, :1, 0]) if apart is None else (~apart).to(gen)[None]
        weights = known if weights is None else weights[:, None] * known
        # Not by products of the two, of which little is left of a small distance in float32.
        distance = torch.cdist(gen, targets, compute_mode="donot_use_mm_for_euclid_dist").clamp(min=1e-4)
        weighed = weights.expand_as(distance)
        scale = (distance * weighed).mean() / weighed.mean()
        unit = (scale / math.sqrt(gen.shape[2])).clamp(min=1e-3)
        itself = FAR * torch.eye(count, targets.shape[1], dtype=gen.dtype, device=gen.device)
        nearness = -(distance / scale + itself)
        if apart is not None:
            nearness = nearness.masked_fill(apart, -1e9)
        field = torch.zeros_like(gen)
        for radius in radii:
            logits = nearness / radius
            affinity = (logits.softmax(2) * logits.softmax(1)).clamp(min=1e-6).sqrt() * weighed
            pushing, drawing = affinity.split([others, targets.shape[1] - others], 2)
            pushed, drawn = pushing.sum(2, keepdim=True), drawing.sum(2, keepdim=True)
            pull = torch.cat([-pushing * drawn, drawing * pushed], 2)  # of no sum: the sample's own place drops out
            moves = pull @ ((targets - targets.mean(1, keepdim=True)) / unit)
            field += moves / moves.square().mean().sqrt().clamp(min=1e-12)
        return field, unit


def drift_loss(gen: Tensor, field: Tensor, unit: Tensor) -> Tensor:
    """mean (x/unit - sg(x/unit + V))^2 over samples and features: (b,). Its value is that of V and tells nothing."""
    x = gen / unit
    return (x - (x + field).detach()).square().mean((1, 2))


def as_samples(features: Tensor) -> Tensor:
    """Maps (n, c, h, w) as samples of c features, a group for each place: (h w, n, c)."""
    return features.flatten(2).permute(2, 0, 1)


class Encoder(nn.Module):
    """The frozen teacher's encoder as a network of its own, whose passes are counted: maps of images (n, c, h, w)."""

    def __init__(self, teacher: Denoiser, ratio: float):
        super().__init__()
        self.teacher, self.num_classes = teacher, teacher.num_classes
        self._maps = critics.teacher_backbone(teacher, ratio)

    def forward(self, images: Tensor, labels: Tensor | None = None) -> list[Tensor]:
        return self._maps(images, labels)


@dataclass(frozen=True)
class DriftingConfig:
    """init_sigma: the level at which the generator's network is asked, a noise-to-signal ratio; None is the noise end
    of the path of the model that it starts from. There a denoiser answers nearly the same image to any noise, and
    samples that are alike drift alike: none of them leaves the others.
    space: 'pixels', 'teacher' (maps of its encoder, a group of samples at each place) or both, joined by '+'.

    ratio: noise-to-signal ratio at which the encoder looks at images. radii: see `drift`. group: generated samples that
    see each other and as many real ones; told classes, they see those of their own alone.
    """

    init_sigma: float | None = 1.0
    space: str = "pixels"
    ratio: float = 0.05
    radii: tuple[float, ...] = (0.02, 0.05, 0.2)
    group: int = 64

    def __post_init__(self):
        object.__setattr__(self, "radii", tuple(self.radii))  # JSON and YAML know lists only
        if self.init_sigma is not None:
            ve_up_to(self.init_sigma)  # which refuses what is no level
        for space in self.space.split("+"):
            if space not in SPACES:
                raise OnestepError(f"unknown space {space!r}{near_miss(space, SPACES)}")
        if not (self.radii and min(self.radii) > 0 and self.ratio >= 0):
            raise OnestepError("radii are one or more positive numbers, and ratio is not negative")
        if self.group < 2:
            raise OnestepError(f"group is a number of samples that see each other, at least 2, not {self.group}")


def drifting(nets: Nets, cfg: DriftingConfig):
    """Objective of a drifting model: where each generated image is drawn and pushed to, in one step from noise."""
    generator, encoder = nets.student, nets.auxiliary.get("encoder")
    generator.eval()  # no dropout

    def seen(images, labels):
        flat = [images.flatten(1)[None]] if "pixels" in cfg.space else []
        return flat + ([as_samples(each) for each in encoder(images, labels)] if encoder else [])

    def objective(batch, draw):
        labels = batch.labels
        made = seen(one_step(generator, draw.normal("noise", batch.images.shape[1:]), labels), labels)
        with torch.no_grad():
            real = seen(batch.images, labels)
        losses = []
        for start in range(0, len(batch.images), cfg.group):
            rows = slice(start, start + cfg.group)
            apart = None if labels is None else (labels[rows, None] != labels[rows]).repeat(1, 2)
            for gen, positives in zip(made, real, strict=True):
                field, unit = drift(gen[:, rows], positives[:, rows], cfg.radii, apart=apart)
                losses.append(drift_loss(gen[:, rows], field, unit).mean())
        yield torch.stack(losses).mean(), "student"

    return objective


def _generator(cfg: DriftingConfig, net: nn.Module, native, teacher: Denoiser) -> Denoiser:
    return generator_at(cfg.init_sigma, net, native or teacher.native)


register(
    Method(
        "drifting",
        1,
        DriftingConfig,
        drifting,
        _generator,
        needs_teacher=True,
        auxiliary=lambda nets, cfg: {"encoder": Encoder(nets.teacher, cfg.ratio)} if "teacher" in cfg.space else {},
        training={"lr": 2e-4, "betas": (0.9, 0.95), "optimizer": "adamw", "weight_decay": 0.01, "batch_size": 256},
        looks_through=lambda cfg: ["teacher"] if "teacher" in cfg.space else [],
        group=lambda cfg: cfg.group,
    )
)
