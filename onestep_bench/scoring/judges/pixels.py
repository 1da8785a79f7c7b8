"""Pixels, in blocks: no network at all, blind to what is fine, but with no habit. Takes grey and colour of any size.

A picture is seen as the means of 8x8 blocks, which overlap by a pixel where its side is no multiple of 8.
The Frechet distance between such features is that of the pictures' own means and covariances.
"""

import hashlib

import torch
from torch.nn import functional

from onestep_bench.data.pixels import to_unit
from onestep_bench.scoring.judges import FeatureExtractor, extractor

SIDE = 8
VERSION = 1  # a change of what is computed raises it


@extractor("pixels")
def _pixels(device: torch.device, channels: int) -> FeatureExtractor:
    colour = "colour" if channels == 3 else "grey"
    digest = hashlib.sha256(f"pixels/{VERSION}/{SIDE}/{colour}".encode()).hexdigest()
    return FeatureExtractor(
        "pixels",
        _blocks,
        device=device,
        batch=256,
        dim=channels * SIDE**2,
        channels=channels,
        digest=digest,
        protocol=f"pixels@{digest[:12]}, {colour}; means of {SIDE}x{SIDE} blocks",
    )


def _blocks(images: torch.Tensor) -> tuple[torch.Tensor, None]:
    """Features (n, channels * SIDE**2); in double precision the same on every device and in every batch."""
    return functional.adaptive_avg_pool2d(to_unit(images).double(), SIDE).flatten(1), None
