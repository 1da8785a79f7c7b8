"""A classifier trained by the suite itself on any labelled data set: the judge for MNIST or CIFAR-10 without downloads.

Its scores mean something only beside others of the same trained weights: their digest is part of the protocol.
"""

import os
from itertools import pairwise
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional

from onestep_bench.data.pixels import to_unit
from onestep_bench.errors import OnestepError
from onestep_bench.scoring import recipe
from onestep_bench.scoring.judges import FeatureExtractor
from onestep_bench.seeds import Draw, generator, seed_for
from onestep_bench.training import together
from onestep_bench.training.config import TrainConfig
from onestep_bench.training.loop import fit
from onestep_bench.training.source import Source
from onestep_bench.training.state import LogRow

DIM = 128
SURE = 0.9  # of CIFAR-10's held-out images; a judge of photographs that knows fewer says so
PATCH = 2  # a side
LOOKED_AT = 5000  # images, for their patches


class Classifier(nn.Module):
    """A small residual network; its features are the `DIM` units below the class layer.

    Of colour images it sees decorrelated patches, from a first layer that is not trained, its norms are those of the
    batch, and its first filters copy what they see, as in networks that learn CIFAR-10 within ten passes over it
    (Jordan 2024, arXiv:2404.00498). As a judge it answers with the mean over a colour image and its mirror.
    """

    def __init__(self, channels: int, classes: int):
        super().__init__()
        self.grey = channels == 1
        widths = recipe.recipe_for(channels).widths
        if self.grey:
            self.stages = nn.ModuleList(_Stage(a, b) for a, b in pairwise((channels, *widths)))
        else:
            dim = channels * PATCH**2
            self.register_buffer("patches", torch.zeros(dim, channels, PATCH, PATCH))
            self.stages = nn.ModuleList(_BatchStage(a, b) for a, b in pairwise((2 * dim, *widths)))
        self.features = nn.Linear(widths[-1], DIM)
        self.head = nn.Linear(DIM, classes)
        if not self.grey:  # a quarter faster on a CPU
            self.to(memory_format=torch.channels_last)

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Features (n, DIM) and logits (n, classes) of uint8 or already scaled images (n, c, h, w)."""
        x = to_unit(images) if images.dtype == torch.uint8 else images
        if self.grey or self.training:
            return self._seen(x)
        # A photograph and its mirror image are one thing to it, as they were while it learnt.
        one, other = self._seen(x), self._seen(x.flip(-1))
        return (one[0] + other[0]) / 2, (one[1] + other[1]) / 2

    def _seen(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        x = x if self.grey else self._whitened(x)
        for stage in self.stages:
            x = stage(x)
        features = functional.silu(self.features(x.mean((2, 3)) if self.grey else x.amax((2, 3))))
        return features, self.head(functional.dropout(features, 0.2, self.training))

    def look_at(self, images: torch.Tensor) -> None:
        """Let the first layer decorrelate the patches of uint8 images (n, c, h, w): it is not trained."""
        if self.grey:
            return
        patches = functional.unfold(to_unit(images[:LOOKED_AT].cpu()), PATCH).transpose(1, 2).flatten(0, 1).double()
        values, vectors = torch.linalg.eigh(torch.cov(patches.T))
        # Not below what one grey level of 255 makes of a patch: what is darker is no detail but rounding.
        scaled = vectors.T / values.clamp(min=(2 / 255) ** 2).sqrt()[:, None]
        self.patches.copy_(scaled.reshape(self.patches.shape))

    def _whitened(self, x: torch.Tensor) -> torch.Tensor:
        """Patches from each pixel on, by direction and its opposite, rectified: (n, 2 * c * PATCH**2, h, w)."""
        x = functional.conv2d(functional.pad(x, [0, PATCH - 1] * 2, mode="replicate"), self.patches)
        return functional.relu(torch.cat([x, -x], 1))


class _BatchStage(nn.Module):
    """A convolution, half the resolution, two residual convolutions there."""

    def __init__(self, channels_in: int, channels: int):
        super().__init__()
        self.first = nn.Conv2d(channels_in, channels, 3, padding=1, bias=False)
        self.second, self.third = (nn.Conv2d(channels, channels, 3, padding=1, bias=False) for _ in range(2))
        self.norms = nn.ModuleList(nn.BatchNorm2d(channels) for _ in range(3))
        # So that later stages see the image from the first step on.
        nn.init.dirac_(self.first.weight.data[:channels_in])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.first(x)
        x = functional.max_pool2d(x, 2) if min(x.shape[2:]) > 2 else x
        x = functional.silu(self.norms[0](x))
        inner = functional.silu(self.norms[1](self.second(x)))
        return x + functional.silu(self.norms[2](self.third(inner)))


class _Stage(nn.Module):
    """A convolution, half the resolution, a residual block there: at full resolution it would cost four times."""

    def __init__(self, channels_in: int, channels: int):
        super().__init__()
        self.first = nn.Conv2d(channels_in, channels, 3, padding=1)
        self.second, self.third = (nn.Conv2d(channels, channels, 3, padding=1) for _ in range(2))
        self.norms = nn.ModuleList(nn.GroupNorm(8, channels) for _ in range(3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.first(x)
        x = functional.max_pool2d(x, 2) if min(x.shape[2:]) > 2 else x
        x = functional.silu(self.norms[0](x))
        inner = functional.silu(self.norms[1](self.second(x)))
        return functional.silu(x + self.norms[2](self.third(inner)))


def train(
    images: torch.Tensor,
    labels: torch.Tensor,
    device: torch.device,
    checkpoint: Path | None = None,
    precision: str = "auto",
) -> tuple[Classifier, torch.Tensor, LogRow]:
    """A classifier of uint8 images (n, c, h, w) with labels (n,), rows of those it was not shown, its last log row.

    Its rate warms up and falls along a cosine; images are shifted, in colour mirrored and cut too. checkpoint: file
    from which a killed training goes on, to the same bits. precision: that of `TrainConfig`.
    Raises OnestepError for fewer than two classes or too few images.
    """
    classes, fewest = int(labels.max()) + 1, 10 * recipe.HELD_OUT
    if classes < 2 or len(images) < fewest:
        raise OnestepError(f"a classifier needs 2 classes and {fewest} images, not {classes} and {len(images)}")
    order = torch.randperm(len(images), generator=generator("classifier", "split"))
    count = recipe.held_from(len(images), images.shape[1])
    held, rest = order[:count], order[count:]
    with torch.random.fork_rng():
        torch.manual_seed(seed_for("classifier", "init"))
        network = Classifier(images.shape[1], classes)
        network.look_at(images[rest[:LOOKED_AT]])
        network = network.to(device)
        config = _config(len(images), images.shape[1], precision)
        last = _fit(network, Source(images[rest], labels[rest], None, device), config, checkpoint)
    return network.eval().requires_grad_(False), held, last


def accuracy(network: Classifier, *sets: tuple[torch.Tensor, torch.Tensor]) -> float:
    """Share of all uint8 images (n, c, h, w) of these sets whose label (n,) a trained classifier tells."""
    where, right = network.head.weight.device, 0
    for images, labels in sets:
        for some, told in zip(images.split(recipe.BATCH), labels.split(recipe.BATCH), strict=True):
            right += int((network(some.to(where))[1].argmax(1).cpu() == told).sum())
    return right / sum(len(labels) for _, labels in sets)


def _config(images: int, channels: int, precision: str) -> TrainConfig:
    kimg, how = recipe.steps_for(images, channels) * recipe.BATCH / 1000, recipe.recipe_for(channels)
    return TrainConfig(
        kimg,
        batch_size=recipe.BATCH,
        lr=how.rate,
        optimizer=how.optimizer,
        weight_decay=how.weight_decay,
        warmup_kimg=kimg * how.warmup,
        lr_decay="cosine",
        clip=how.clip,
        hflip=how.hflip,
        precision=precision,
    )


def _fit(network: Classifier, source: Source, config: TrainConfig, checkpoint: Path | None) -> LogRow:
    """Train in place; the last row of the log, whose seconds are those of all resumptions."""
    how = recipe.recipe_for(source.images.shape[1])

    def objective(batch, draw):
        _, logits = network(_cut(batch.images, draw, how.shift, how.sides))
        yield functional.cross_entropy(logits, batch.labels, label_smoothing=how.smoothing), "student"

    with together.bar(total=config.steps * config.batch_size, unit="img", unit_scale=True, desc="classifier") as bar:
        rows = fit(
            objective,
            {"student": network},
            source,
            config,
            seed=seed_for("classifier", "train"),
            checkpoint=checkpoint,
            checkpoint_seconds=float(os.environ.get("ONESTEP_CHECKPOINT_SECONDS", "60")),
            name="the classifier judge",
        )
        for row in rows:
            bar.update(row.step * config.batch_size - bar.n)
            bar.set_postfix(row.losses)
    return row


def _cut(images: torch.Tensor, draw: Draw, parts: int, shares: tuple[float, ...] = (1.0,)) -> torch.Tensor:
    """A square of each image, edges repeated up to one of so many parts of its side; its side is a share of theirs.

    Small squares come first: they cost less, and what they teach holds for larger ones.
    """
    share = shares[int(draw.progress * len(shares))]
    (height, width), reach = (round(share * side) for side in images.shape[2:]), images.shape[-1] // parts
    padded = functional.pad(images, [reach] * 4, mode="replicate")
    top, left = (
        draw.integers(name, 0, whole - kept + 1).reshape(-1, 1)
        for name, whole, kept in (("top", padded.shape[2], height), ("left", padded.shape[3], width))
    )
    down, across = (first + torch.arange(size, device=images.device) for first, size in ((top, height), (left, width)))
    rows = torch.arange(len(images), device=images.device).reshape(-1, 1, 1)
    return padded[rows, :, down[:, :, None], across[:, None, :]].permute(0, 3, 1, 2).contiguous()


def judge(network: Classifier, *, trained_on: str, accuracy: float, digest: str, shape: tuple, device: torch.device):
    """A trained classifier as a FeatureExtractor of images of `shape`; trained_on: the data set and its hash."""
    weak = f", a weak judge: below {SURE:.0%}" if shape[-1] >= 32 and accuracy < SURE else ""
    return FeatureExtractor(
        "classifier",
        network.to(device).eval().requires_grad_(False),
        device=device,
        batch=256,
        dim=DIM,
        digest=digest,
        protocol=f"classifier@{digest[:12]} of {trained_on}, {accuracy:.2%} right on held-out images{weak}; no resize",
        image_shape=tuple(shape),
    )
