"""EDM's augmentation of training images, of which the network is told (Karras et al. 2022, App. F.2).

Each image is mirrored, turned over, scaled, turned, stretched and shifted, each with a probability of its own, by one
affine warp as in StyleGAN2-ADA (Karras et al. 2020, arXiv:2006.06676, App. B): resampled twice as fine by an orthogonal
wavelet's low-pass filter, read off at the warped places, and resampled back. Without a warp the two filters undo each
other exactly. What was done goes to the network as nine labels, all 0 for nothing, which is what samplers ask for.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from onestep_bench.seeds import Draw

# Labels that tell a network of its augmentation.
LABELS = 9

# Low-pass filter of the symlet of order 6 (Daubechies 1992), as ADA and EDM have it.
_SYM6 = (
    *(0.015404109327027373, 0.0034907120842174702, -0.11799011114819057, -0.048311742585633),
    *(0.4910559419267466, 0.787641141030194, 0.3379294217276218, -0.07263752278646252),
    *(-0.021060292512300564, 0.04472490177066578, 0.0017677118642428036, -0.007800708325034148),
)
_CENTRE = 5  # the tap that falls on a pixel's own place, which is the largest
_MARGIN = len(_SYM6) // 4  # pixels beyond each edge that the filter reaches into on the way back
_SHIFT = 0.125  # standard deviation of a shift, in sides of the image
_OCTAVES = 0.2  # that of the binary logarithm of a scale and of a stretch


@dataclass(frozen=True)
class Warp:
    """What is done to each of n images: (n,) each.

    mirrored, upended: whether left and right, top and bottom change places. scale, stretch, right, down: standard
    normal, or 0 for nothing. angle: of a turn, in radians. direction: in which it is stretched, in radians.
    """

    mirrored: Tensor
    upended: Tensor
    scale: Tensor
    angle: Tensor
    stretch: Tensor
    direction: Tensor
    right: Tensor
    down: Tensor

    def labels(self) -> Tensor:
        """What the network is told: (n, 9) float32, in the order of EDM's released networks."""
        columns = (
            *(self.mirrored, self.upended, self.scale, self.angle.cos() - 1, self.angle.sin()),
            *(self.stretch * self.direction.cos(), self.stretch * self.direction.sin(), self.right, self.down),
        )
        return torch.stack([column.float() for column in columns], 1)


def drawn(draw: Draw, probability: float) -> Warp:
    """The warps of the rows of `draw`: mirrored by 1/2, all else with `probability` (of an upended image 1/2 of that).

    EDM's settings (App. F.2), whose probability is 0.12 on CIFAR-10 and 0.15 on FFHQ and AFHQv2.
    """
    sizes = draw.normal("augment/sizes", (4,))
    asked = [draw.uniform(f"augment/{what}") < probability for what in ("scale", "turn", "stretch", "shift")]
    turn, direction = (draw.uniform(f"augment/{what}", -math.pi, math.pi) for what in ("angle", "direction"))
    scale, stretch, right, down = sizes.unbind(1)
    return Warp(
        mirrored=draw.uniform("augment/mirrored") < (0.5 if probability else 0.0),
        upended=draw.uniform("augment/upended") < probability / 2,
        scale=scale * asked[0],
        angle=turn * asked[1],
        stretch=stretch * asked[2],
        direction=direction * (draw.uniform("augment/slanted") < 0.5),
        right=right * asked[3],
        down=down * asked[3],
    )


class Augment:
    """Augmentation of images of one size on a device, whose resampling filters it keeps."""

    def __init__(self, height: int, width: int, device: torch.device | str):
        self.sides = height, width
        # Half of the (width, height) that is resampled, and of what is read off it, where `affine_grid` has 1.
        self.source, self.out = (
            torch.tensor([reach(width), reach(height)], dtype=torch.float32, device=device)
            for reach in (lambda side: 3 * side - 2, lambda side: side + 2 * _MARGIN)
        )
        self.finer = [_finer(side).to(device) for side in self.sides]
        self.coarser = [_coarser(side).to(device) for side in self.sides]

    def __call__(self, images: Tensor, warp: Warp) -> Tensor:
        """The warped images, (n, c, h, w) float32 as those given. Beyond an edge lies its reflection, one side deep."""
        images = torch.where(warp.mirrored.reshape(-1, 1, 1, 1), images.flip(3), images)
        images = torch.where(warp.upended.reshape(-1, 1, 1, 1), images.flip(2), images)
        fine = _along_both(images, self.finer)
        out = [2 * (side + 2 * _MARGIN) for side in self.sides]
        places = F.affine_grid(self._read(warp), [*images.shape[:2], *out], align_corners=False)
        return _along_both(F.grid_sample(fine, places, align_corners=False), self.coarser)

    def _read(self, warp: Warp) -> Tensor:
        """Where the places of the warped images are read off those given, as `affine_grid` has it: (n, 2, 3).

        The inverse of what is seen to happen: scaled by s, an image is read off at 1/s of each place.
        """
        stretch = _OCTAVES * torch.stack([-warp.stretch, warp.stretch], 1)
        linear = _turn(warp.angle - warp.direction) * stretch.exp2()[:, None] @ _turn(warp.direction)
        linear = linear * (-_OCTAVES * warp.scale).exp2().reshape(-1, 1, 1)
        height, width = self.sides
        shift = 2 * _SHIFT * torch.stack([width * warp.right, height * warp.down], 1)
        # An image's pixels fall on even places, so that its middle is half a place before that of all places.
        origin = linear @ (0.5 - shift)[:, :, None] - 0.5
        return torch.cat([linear * self.out, origin], 2) / self.source[:, None]


def _turn(angle: Tensor) -> Tensor:
    """Rotations (n, 2, 2) by angles (n,)."""
    cos, sin = angle.cos(), angle.sin()
    return torch.stack([torch.stack([cos, -sin], 1), torch.stack([sin, cos], 1)], 1)


def _along_both(images: Tensor, filters: Sequence[Tensor]) -> Tensor:
    """Images (n, c, h, w) resampled by matrices for their columns (h', h) and rows (w', w): (n, c, h', w')."""
    vertical, horizontal = filters
    return vertical @ images @ horizontal.T


def _finer(side: int) -> Tensor:
    """Upsampling of a line of pixels, reflected once about either end, to twice as many places: (6 side - 4, side)."""
    matrix = torch.zeros(2 * (3 * side - 2), side)
    for padded in range(3 * side - 2):
        pixel = abs(padded - (side - 1))
        pixel = min(pixel, 2 * (side - 1) - pixel)
        for tap, weight in enumerate(_SYM6):
            if 0 <= (place := 2 * padded + tap - _CENTRE) < len(matrix):
                matrix[place, pixel] += weight
    return matrix


def _coarser(side: int) -> Tensor:
    """Back to pixels, from two places for each and for `_MARGIN` more at either end: (side, 2 side + 12)."""
    matrix = torch.zeros(side, 2 * (side + 2 * _MARGIN))
    for pixel in range(side):
        first = 2 * (pixel + _MARGIN) - _CENTRE
        matrix[pixel, first : first + len(_SYM6)] = torch.tensor(_SYM6)
    return matrix
