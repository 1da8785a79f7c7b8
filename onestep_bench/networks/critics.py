"""The projected critic: frozen features, fixed random mixing, small trained heads (Sauer et al. 2021, 2022).

A discriminator that looks at the features of a network trained for something else, and learns only how to read
them. `critic("teacher", ...)` looks through the encoder of the diffusion teacher, which needs no download and suits
any data; `critic("timm:vgg16_bn+timm:tf_efficientnet_lite0", ...)` has the backbones of GDD's for CIFAR-10, and is
it with `layout="released"`, which stands in `released_critic`. Below is ours, for backbones of any shape and without
batch statistics.
"""

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import spectral_norm

from onestep_bench.denoiser import Denoiser
from onestep_bench.errors import OnestepError, near_miss, needs_extra
from onestep_bench.networks import released_critic
from onestep_bench.networks.layers import GroupNorm
from onestep_bench.paths import VE, spread

LAYOUTS = ("ours", "released")
LEVELS = 4  # feature maps taken from each backbone, as in the papers
FINEST = 4  # a head halves its map until no side is longer


@dataclass(frozen=True)
class Backbone:
    """Frozen features. maps: images (n, c, h, w) in [-1, 1] and one-hot labels or None -> feature maps, finest first.

    networks: what computes them, other than the teacher, which is known elsewhere.
    """

    maps: Callable[[Tensor, Tensor | None], list[Tensor]]
    networks: tuple[nn.Module, ...] = ()

    def __call__(self, images: Tensor, labels: Tensor | None) -> list[Tensor]:
        return self.maps(images, labels)


def teacher_backbone(teacher: Denoiser, ratio: float) -> Backbone:
    """The encoder of a diffusion network asked at a low noise-to-signal `ratio`; nothing is added to the images."""
    frozen = teacher.eval().requires_grad_(False)
    return Backbone(lambda images, labels: _spread_over(frozen.encode(images, ratio, labels)))


def _spread_over(features: Sequence[Tensor]) -> list[Tensor]:
    """`LEVELS` of the features at even distances, the last one included; all of them if there are fewer."""
    count = min(LEVELS, len(features))
    return [features[(place + 1) * len(features) // count - 1] for place in range(count)]


def _taps(name: str, layout: str) -> dict[str, tuple[int, ...]]:
    """Which of a timm network's maps are taken: by default those it has, of which the last four are used."""
    if name.startswith(("deit", "vit")):
        return {"out_indices": (2, 5, 8, 11)}  # every third block of a base-size transformer
    if name.startswith("vgg") and layout == "released":
        return {"out_indices": (1, 2, 3, 4)}  # all but the first and the last, which is after the last pooling
    return {}


def timm_backbone(name: str, device: torch.device, layout: str = "ours") -> Backbone:
    """An ImageNet network of the timm library, its weights from timm's hub; images are resized to 224 pixels.

    Raises OnestepError without the timm package, for a name it does not know, and where the weights cannot be had.
    """
    from onestep_bench.compat import import_torchvision

    import_torchvision()
    needs_extra("critics", f"critic 'timm:{name}'", "timm")
    import timm

    known = timm.list_models(pretrained=True, include_tags=False)
    if name not in known:
        raise OnestepError(f"timm has no pretrained network {name!r}{near_miss(name, known)}")
    try:
        network = timm.create_model(name, pretrained=True, features_only=True, **_taps(name, layout))
    except OSError as error:  # the hub's errors are OSErrors
        hub = timm.get_pretrained_cfg(name).hf_hub_id
        raise OnestepError(
            f"the weights of critic 'timm:{name}' could not be downloaded; put {hub} of huggingface.co into the cache "
            "(HF_HOME), or use critic='teacher', which needs no download"
        ) from error
    network = network.to(device).eval().requires_grad_(False)
    config = timm.get_pretrained_cfg(name)
    mean, std = (torch.tensor(value, device=device).reshape(1, 3, 1, 1) for value in (config.mean, config.std))

    def features(images: Tensor, labels: Tensor | None) -> list[Tensor]:
        images = images.expand(-1, 3, -1, -1)
        images = F.interpolate(images, size=(224, 224), mode="bilinear", antialias=True)
        return network(((images + 1) / 2 - mean) / std)[-LEVELS:]

    return Backbone(features, (network,))


def _backbone(name: str, teacher: Denoiser, ratio: float, layout: str) -> Backbone:
    kind, _, network = name.partition(":")
    if name == "teacher":
        return teacher_backbone(teacher, ratio)
    if kind == "timm" and network:
        return timm_backbone(network, next(teacher.parameters()).device, layout)
    raise OnestepError(f"unknown critic {name!r}: 'teacher', 'timm:NAME', or several of them joined by '+'")


class Mixing(nn.Module):
    """Fixed random 1x1 mixing of channels and 3x3 mixing of scales, coarse into fine (Sauer et al. 2021).

    shapes: (c, h, w) of each map, finest first. Maps come out with `channels` channels each, same order.
    """

    def __init__(self, shapes: Sequence[tuple[int, int, int]], channels: int):
        super().__init__()
        self.across_channels = nn.ModuleList(nn.Conv2d(shape[0], channels, 1) for shape in shapes)
        self.across_scales = nn.ModuleList(nn.Conv2d(channels, channels, 3, padding=1) for _ in shapes)
        for convolution in (*self.across_channels, *self.across_scales):
            nn.init.kaiming_normal_(convolution.weight, nonlinearity="linear")
            nn.init.zeros_(convolution.bias)
        self.requires_grad_(False)

    def forward(self, features: Sequence[Tensor]) -> list[Tensor]:
        """(n, c_k, h_k, w_k) each -> (n, channels, h_k, w_k) each."""
        mixed: list[Tensor] = []
        for level in reversed(range(len(features))):
            x = self.across_channels[level](features[level])
            if mixed:
                coarser = F.interpolate(mixed[-1], size=x.shape[-2:], mode="bilinear", align_corners=False)
                x = (x + coarser) * math.sqrt(0.5)
            mixed.append(self.across_scales[level](x))
        return mixed[::-1]


class Head(nn.Module):
    """Logits of one feature map (channels, h, w): spectrally normalised convolutions, halving down to 4x4.

    With classes, the last map is projected onto an embedding of the label (Miyato and Koyama 2018).
    Normalised by groups and not by batch: an image's logit depends on nothing else in its batch.
    """

    def __init__(self, channels: int, size: int, num_classes: int):
        super().__init__()
        layers: list[nn.Module] = []
        while size > FINEST:
            layers += _head_layer(channels, nn.Conv2d(channels, channels, 4, stride=2, padding=1))
            size //= 2
        layers += _head_layer(channels, nn.Conv2d(channels, channels, 3, padding=1))
        self.trunk = nn.Sequential(*layers)
        self.logits = spectral_norm(nn.Conv2d(channels, channels if num_classes else 1, 1))
        self.embedding = spectral_norm(nn.Linear(num_classes, channels, bias=False)) if num_classes else None

    def forward(self, x: Tensor, labels: Tensor | None) -> Tensor:
        """x (n, channels, h, w), labels one-hot (n, num_classes) or None -> (n, positions)."""
        x = self.logits(self.trunk(x))
        if self.embedding is not None:
            x = (x * self.embedding(labels)[:, :, None, None]).sum(1) / math.sqrt(x.shape[1])
        return x.flatten(1)


def _head_layer(channels: int, convolution: nn.Conv2d) -> list[nn.Module]:
    return [spectral_norm(convolution), GroupNorm(channels, 1e-5, min(8, channels)), nn.LeakyReLU(0.2)]


# (c, h, w) of each map of a backbone -> what mixes them, and a head for each.
Parts = Callable[[Sequence[tuple[int, int, int]]], tuple[nn.Module, Sequence[nn.Module]]]


class Critic(nn.Module):
    """Logits of images: (n, k) of each backbone, k being all positions of all its heads.

    backbones: kept out of the module's parameters and state: they are frozen, and a checkpoint need not hold them.
    image_shape: (c, h, w); num_classes: 0 for unconditional. parts: what a backbone's maps are read with.
    """

    def __init__(
        self,
        backbones: Sequence[Backbone],
        image_shape: tuple[int, int, int],
        num_classes: int,
        parts: Parts,
        device: torch.device,
    ):
        super().__init__()
        self._backbones, self.num_classes = tuple(backbones), num_classes
        images = torch.zeros(1, *image_shape, device=device)
        labels = torch.zeros(1, num_classes, device=device) if num_classes else None
        with torch.no_grad():
            shapes = [[tuple(map_.shape[1:]) for map_ in backbone(images, labels)] for backbone in backbones]
        mixing, heads = zip(*map(parts, shapes), strict=True)
        self.mixing, self.heads = nn.ModuleList(mixing), nn.ModuleList(map(nn.ModuleList, heads))

    @property
    def frozen_networks(self) -> list[nn.Module]:
        """The backbones that are networks of their own, not the teacher's: neither trained nor in the state."""
        return [network for backbone in self._backbones for network in backbone.networks]

    def forward(self, images: Tensor, labels: Tensor | None = None) -> list[Tensor]:
        """images (n, c, h, w) in [-1, 1]; labels (n,) integers, or None for an unconditional critic."""
        one_hot = F.one_hot(labels.long(), self.num_classes).to(images.dtype) if self.num_classes else None
        logits = []
        for backbone, mixing, heads in zip(self._backbones, self.mixing, self.heads, strict=True):
            features = mixing(backbone(images, one_hot))
            found = [head(x, one_hot) for head, x in zip(heads, features, strict=True)]
            logits.append(torch.cat(found, dim=1))
        return logits


class BottleneckCritic(nn.Module):
    """Logits of noised images, read off the last map of the encoder of a network that is trained along with it.

    DMD2's (Yin et al. 2024, arXiv:2405.14867), whose network is the fake score. It is no part of this module, and what
    steps the critic steps both: so its encoder learns from the critic's loss too.
    denoiser: on any path. head: `(channels, side) -> module` that makes logits (n, 1, h, w) of a map.
    """

    def __init__(self, denoiser: Denoiser, head: Callable[[int, int], nn.Module]):
        super().__init__()
        self._denoiser = (denoiser,)  # in a tuple, where torch does not look for modules
        self.num_classes = denoiser.num_classes
        config, device = denoiser.net.config, next(denoiser.parameters()).device
        side = config["img_resolution"]
        with torch.no_grad():
            images = torch.zeros(1, config["in_channels"], side, side, device=device)
            labels = torch.zeros(1, dtype=torch.int64, device=device) if self.num_classes else None
            _, channels, _, side = self._bottleneck(images, labels, None).shape
        self.head = head(channels, side).to(device)

    def forward(self, images: Tensor, labels: Tensor | None = None, sigma: Tensor | None = None) -> Tensor:
        """images (n, c, h, w), on VE at levels sigma (n,) (None: at the network's lowest); labels (n,): (n, places)."""
        return self.head(self._bottleneck(images, labels, sigma)).flatten(1)

    def _bottleneck(self, images: Tensor, labels: Tensor | None, sigma: Tensor | None) -> Tensor:
        (denoiser,) = self._denoiser
        native, path = denoiser.native, denoiser.native.path
        sigma = images.new_zeros(len(images)) if sigma is None else sigma
        t = path.t_at(sigma.clamp(*native.ratios))
        scaled, told = native.inputs(images * spread(path.alpha(t), images), t)
        one_hot = F.one_hot(labels.long(), self.num_classes).to(images.dtype) if self.num_classes else None
        return denoiser.net.encode(scaled, told, one_hot)[-1]


def fake_and_critic(teacher: Denoiser, head: Callable[[int, int], nn.Module] | None = None) -> dict[str, nn.Module]:
    """'fake', a copy of the teacher on VE that is trained; given a head, 'critic' too, on the fake's bottleneck."""
    fake = copy.deepcopy(teacher).on(VE).requires_grad_(True)
    return {"fake": fake} | ({"critic": BottleneckCritic(fake, head)} if head else {})


def convolutions(channels: int, side: int) -> nn.Module:
    """A head of a `BottleneckCritic`: that of `Critic` without classes, of which its network is told."""
    head = Head(channels, side, 0)
    return nn.Sequential(head.trunk, head.logits)


def mean_of_channels(channels: int, side: int) -> nn.Module:
    """A head of a `BottleneckCritic` that starts as the mean of its channels, which SiDA's is and stays."""
    head = nn.Conv2d(channels, 1, 1)
    nn.init.constant_(head.weight, 1 / channels)
    nn.init.zeros_(head.bias)
    return head


def backbones_in(names: str) -> list[str]:
    """The backbones that a critic's name joins by '+'."""
    return names.split("+")


def critic(
    names: str, teacher: Denoiser, *, channels: int, ratio: float, layout: str = "ours", group: int = 64
) -> Critic:
    """The critic for a teacher's images that sees through `names`: 'teacher', 'timm:NAME', or several joined by '+'.

    channels: width of its mixing and heads, the released one's least. ratio: noise-to-signal ratio at which the
    teacher's encoder is asked. group: images that share the batch statistics of the layout 'released', in the order
    they come; ours has none. Its random weights come from torch's global generator. Raises OnestepError for an unknown
    backbone, one that cannot be had, and one whose maps do not suit the layout.
    """
    backbones = [_backbone(name, teacher, ratio, layout) for name in backbones_in(names)]
    config = teacher.net.config
    shape = (config["in_channels"], config["img_resolution"], config["img_resolution"])
    device = next(teacher.parameters()).device
    classes = teacher.num_classes

    def ours(shapes):
        return Mixing(shapes, channels), [Head(channels, min(shape[1:]), classes) for shape in shapes]

    def released(shapes):
        heads = [released_critic.Head(level, channels, classes, group) for level in range(len(shapes))]
        return released_critic.Mixing(shapes, channels), heads

    parts = {"ours": ours, "released": released}[layout]
    return Critic(backbones, shape, classes, parts, device).to(device)
