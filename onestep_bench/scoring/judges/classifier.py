"""A classifier trained by the suite itself on any labelled data set: the judge for MNIST or CIFAR-10 without downloads.

Its scores mean something only beside others of the same trained weights: their digest is part of the protocol.
"""

import math
from itertools import pairwise

import torch
from torch import nn
from torch.nn import functional

from onestep_bench.data.pixels import to_unit
from onestep_bench.errors import OnestepError
from onestep_bench.scoring.judges import FeatureExtractor
from onestep_bench.seeds import generator

VERSION = 1  # of the recipe; a change makes every classifier train again
EPOCHS, BATCH, RATE = 8, 128, 2e-3
STEPS = (600, 3000)  # at least and at most, whatever the epochs come to
WIDTHS, DIM = (32, 64, 128), 128
HELD_OUT = 10  # one image in so many is not trained on


class Classifier(nn.Module):
    """A small residual network; its features are the `DIM` units below the class layer."""

    def __init__(self, channels: int, classes: int):
        super().__init__()
        widths = (channels, *WIDTHS)
        self.stages = nn.ModuleList(_Stage(a, b) for a, b in pairwise(widths))
        self.features = nn.Linear(WIDTHS[-1], DIM)
        self.head = nn.Linear(DIM, classes)

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Features (n, DIM) and logits (n, classes) of uint8 or already scaled images (n, c, h, w)."""
        x = to_unit(images) if images.dtype == torch.uint8 else images
        for stage in self.stages:
            x = stage(x)
        features = functional.silu(self.features(x.mean((2, 3))))
        return features, self.head(functional.dropout(features, 0.2, self.training))


class _Stage(nn.Module):
    """Two convolutions, a residual block, half the resolution."""

    def __init__(self, channels_in: int, channels: int):
        super().__init__()
        self.first = nn.Conv2d(channels_in, channels, 3, padding=1)
        self.second, self.third = (nn.Conv2d(channels, channels, 3, padding=1) for _ in range(2))
        self.norms = nn.ModuleList(nn.GroupNorm(8, channels) for _ in range(3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = functional.silu(self.norms[0](self.first(x)))
        inner = functional.silu(self.norms[1](self.second(x)))
        x = functional.silu(x + self.norms[2](self.third(inner)))
        return functional.avg_pool2d(x, 2) if min(x.shape[2:]) > 2 else x


def train(images: torch.Tensor, labels: torch.Tensor, device: torch.device) -> tuple[Classifier, float]:
    """A classifier of uint8 images (n, c, h, w) with labels (n,), and its accuracy on the tenth it was not trained on.

    Adam with a rate that warms up and falls along a cosine; images are shifted by up to an eighth.
    Raises OnestepError for fewer than two classes or too few images.
    """
    classes = int(labels.max()) + 1
    if classes < 2 or len(images) < 10 * HELD_OUT:
        raise OnestepError(f"a classifier needs 2 classes and {10 * HELD_OUT} images, not {classes} and {len(images)}")
    order = torch.randperm(len(images), generator=generator("classifier", "split"))
    held, rest = order[: len(order) // HELD_OUT], order[len(order) // HELD_OUT :]
    with torch.random.fork_rng():
        torch.manual_seed(0)  # initial weights and dropout
        network = Classifier(images.shape[1], classes).to(device)
        _fit(network, images[rest], labels[rest], device)
    network.eval().requires_grad_(False)
    right = sum(
        int((network(images[rows].to(device))[1].argmax(1).cpu() == labels[rows]).sum()) for rows in held.split(BATCH)
    )
    return network, right / len(held)


def steps_for(images: int) -> int:
    """Training steps on a data set of so many images."""
    return min(max(EPOCHS * images // BATCH, STEPS[0]), STEPS[1])


def _fit(network: Classifier, images: torch.Tensor, labels: torch.Tensor, device: torch.device) -> None:
    random = generator("classifier", "batches")
    optimiser = torch.optim.AdamW(network.parameters(), lr=RATE, weight_decay=1e-2)
    steps = steps_for(len(images))
    for step in range(steps):
        warm = min(1, 20 * (step + 1) / steps)
        optimiser.param_groups[0]["lr"] = warm * RATE * (1 + math.cos(math.pi * step / steps)) / 2
        rows = torch.randint(len(images), (BATCH,), generator=random)
        batch = _shifted(to_unit(images[rows].to(device)), random)
        _, logits = network(batch)
        loss = functional.cross_entropy(logits, labels[rows].to(device), label_smoothing=0.05)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()


def _shifted(images: torch.Tensor, random: torch.Generator) -> torch.Tensor:
    """The batch moved by up to an eighth of the image, edges repeated. Not mirrored: a mirrored digit is no digit."""
    reach = images.shape[-1] // 8
    top, left = torch.randint(2 * reach + 1, (2,), generator=random).tolist()
    padded = functional.pad(images, [reach] * 4, mode="replicate")
    return padded[..., top : top + images.shape[-2], left : left + images.shape[-1]]


def judge(network: Classifier, *, trained_on: str, accuracy: float, digest: str, shape: tuple, device: torch.device):
    """A trained classifier as a FeatureExtractor of images of `shape`; trained_on: the data set and its hash."""
    return FeatureExtractor(
        "classifier",
        network.to(device).eval().requires_grad_(False),
        device=device,
        batch=256,
        dim=DIM,
        digest=digest,
        protocol=f"classifier@{digest[:12]} of {trained_on}, {accuracy:.2%} right on held-out images; no resize",
        image_shape=tuple(shape),
    )
