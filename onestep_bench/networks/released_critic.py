"""The projected critic as GDD's released code has it, which is StyleGAN-XL's (Sauer et al. 2022): `layout="released"`.

Four maps of each backbone, finest first, of images at 224 pixels; widths at 64 channels, as released:

    vgg16_bn                112   56   28   14   last map before the second, third, fourth and fifth pooling
    tf_efficientnet_lite0    56   28   14    7   its last four stages
    DeiT, reassembled        56   28   14    7   blocks 3, 6, 9, 12 of a 14x14 grid; 96, 192, 384, 768 channels
    1x1, fixed               64  128  256  512   each map by itself
    1x1, fixed               64   64  128  256   coarse to fine: added to what comes up from below, twice the size
    heads                     4    3    2    1   times halved, up to 512 channels; then logits by a 4x4 convolution

Of the 4x4 convolution without padding 16 logits of a map are left, at 7x7, and 121 of vgg16_bn's, whose heads end at
14x14. Maps are taken for 256 pixels there, whence the "8x8" at which they are said to end.

Sources: Zyriix/GDD at 653c983 (projector.py, discriminator.py, vit.py, loss.py, training_loop.py), and for what is not
in that repository (blocks.py, pretrained_builder.py) autonomousvision/stylegan-xl, from which it comes. The papers have
3x3 convolutions across scales; both codes have 1x1. Not checked: the width of the class table, 320 after the last stage
of lite0, whose mean features of ImageNet's classes the table starts with in the release (also for CIFAR-10, whose ten
classes get the first ten rows). That file cannot be had, and ours starts at random, as an option of the release does.
"""

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import spectral_norm

from onestep_bench.errors import OnestepError

CHANNELS_MIXED = (1, 2, 4, 8)  # widths after the mixing of channels, in units of `channels`
WIDTHS = (1, 1, 2, 4, 8)  # widths after the mixing of scales, and down from there in the heads
CLASS_FEATURES = 320


class Reassembly(nn.Module):
    """A transformer's four maps, all (n, c, h, w), as a pyramid of 4, 2, 1 and 1/2 of their size (Ranftl et al. 2021).

    Fixed and random as in the release, which leaves the class tokens out; channels c/8, c/4, c/2 and c.
    """

    def __init__(self, channels: int):
        super().__init__()
        widths = (channels // 8, channels // 4, channels // 2, channels)
        resize = (
            nn.ConvTranspose2d(widths[0], widths[0], 4, stride=4),
            nn.ConvTranspose2d(widths[1], widths[1], 2, stride=2),
            nn.Identity(),
            nn.Conv2d(channels, channels, 3, stride=2, padding=1),
        )
        pairs = zip(widths, resize, strict=True)
        self.levels = nn.ModuleList(nn.Sequential(nn.Conv2d(channels, width, 1), to) for width, to in pairs)
        self.widths = widths

    def forward(self, features: Sequence[Tensor]) -> list[Tensor]:
        """Four maps of one size -> four maps, finest first."""
        return [level(x) for level, x in zip(self.levels, features, strict=True)]


class Mixing(nn.Module):
    """Fixed random 1x1 mixing of channels, then of scales, coarse into fine, each map coming out twice as large.

    shapes: (c, h, w) of each of four maps, finest first; all of one size are reassembled first. Maps come out with
    `channels` times 1, 1, 2 and 4 channels. Raises OnestepError for maps that are no pyramid.
    """

    def __init__(self, shapes: Sequence[tuple[int, int, int]], channels: int):
        super().__init__()
        self.reassembly = None
        inputs = [shape[0] for shape in shapes]
        sizes = [shape[1:] for shape in shapes]
        if len(set(shapes)) == 1 and len(shapes) == len(CHANNELS_MIXED):
            self.reassembly = Reassembly(inputs[0])
            inputs = self.reassembly.widths
        elif len(shapes) != len(CHANNELS_MIXED) or any(fine != (2 * h, 2 * w) for fine, (h, w) in pairwise(sizes)):
            told = ", ".join(f"{h}x{w}" for h, w in sizes)
            raise OnestepError(
                f"critic layout 'released' mixes four maps, each of twice the size of the next, not {told}; "
                "name other backbones, or use layout='ours'"
            )
        mixed, out = ([channels * times for times in widths] for widths in (CHANNELS_MIXED, WIDTHS))
        self.across_channels = nn.ModuleList(nn.Conv2d(a, b, 1) for a, b in zip(inputs, mixed, strict=True))
        self.across_scales = nn.ModuleList(nn.Conv2d(a, b, 1) for a, b in zip(mixed, out, strict=False))
        self.requires_grad_(False)

    def forward(self, features: Sequence[Tensor]) -> list[Tensor]:
        """(n, c_k, h_k, w_k) each -> (n, m_k, 2 h_k, 2 w_k) each."""
        if self.reassembly is not None:
            features = self.reassembly(features)
        x: Tensor | float = 0.0
        mixed = []
        for level in reversed(range(len(features))):
            # The release enlarges and then mixes: the same numbers, at four times the work.
            x = self.across_scales[level](x + self.across_channels[level](features[level]))
            x = F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=True)
            mixed.append(x)
        return mixed[::-1]


class BatchNorm(nn.Module):
    """Normalisation by the statistics of every `group` images in turn, never by running ones. (n, c, h, w) to the same.

    Fewer images than that are one group.
    """

    def __init__(self, channels: int, group: int):
        super().__init__()
        self.group = group
        self.weight, self.bias = nn.Parameter(torch.ones(channels)), nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        groups = x.split(self.group)
        return torch.cat([F.batch_norm(each, None, None, self.weight, self.bias, training=True) for each in groups])


class ClassEmbedding(nn.Module):
    """One-hot labels (n, num_classes) -> (n, channels): a trained table of class features, and one layer.

    The layer is StyleGAN2's: scaled by its fan-in when it is used, leaky ReLU, gain of sqrt(2).
    """

    def __init__(self, num_classes: int, channels: int):
        super().__init__()
        self.table = nn.Parameter(torch.randn(num_classes, CLASS_FEATURES))
        self.weight = nn.Parameter(torch.randn(channels, CLASS_FEATURES))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, labels: Tensor) -> Tensor:
        x = F.linear(labels @ self.table, self.weight / math.sqrt(CLASS_FEATURES), self.bias)
        return math.sqrt(2) * F.leaky_relu(x, 0.2)


class Head(nn.Module):
    """Logits of one mixed map: halved `len(WIDTHS) - 1 - level` times by 4x4 convolutions, then one more 4x4.

    Convolutions are spectrally normalised. With classes, the last map, of `channels` channels, is projected onto the
    embedding of the label.
    """

    def __init__(self, level: int, channels: int, num_classes: int, group: int):
        super().__init__()
        widths = [channels * times for times in WIDTHS[level:]]
        layers: list[nn.Module] = []
        for inputs, outputs in pairwise(widths):
            halving = spectral_norm(nn.Conv2d(inputs, outputs, 4, stride=2, padding=1))
            layers += [halving, BatchNorm(outputs, group), nn.LeakyReLU(0.2)]
        self.trunk = nn.Sequential(*layers)
        self.logits = spectral_norm(nn.Conv2d(widths[-1], channels if num_classes else 1, 4, bias=False))
        self.embedding = ClassEmbedding(num_classes, channels) if num_classes else None

    def forward(self, x: Tensor, labels: Tensor | None) -> Tensor:
        """x (n, c, h, w), labels one-hot (n, num_classes) or None -> (n, positions)."""
        x = self.logits(self.trunk(x))
        if self.embedding is not None:
            x = (x * self.embedding(labels)[:, :, None, None]).sum(1) / math.sqrt(x.shape[1])
        return x.flatten(1)
