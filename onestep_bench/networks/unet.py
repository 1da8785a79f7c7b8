"""The U-Nets of the EDM model zoo, by parameter name, and the named sizes this benchmark compares.

`SongUNet` is DDPM++ and NCSN++ (Song et al. 2021, arXiv 2011.13456), `DhariwalUNet` is ADM (Dhariwal and Nichol 2021,
arXiv 2105.05233), both as configured in EDM (Karras et al. 2022, arXiv 2206.00364). Parameter names are those of the
released weights, which therefore load with `load_state_dict(strict=True)`.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from onestep_bench.errors import OnestepError, near_miss
from onestep_bench.networks.layers import (
    BlockStyle,
    Conv2d,
    FourierEmbedding,
    GroupNorm,
    Init,
    Linear,
    PositionalEmbedding,
    UNetBlock,
)
from onestep_bench.networks.second_time import SecondTime


class _UNet(nn.Module):
    """What the two architectures share: levels, forward pass and checks; a subclass embeds, and owns the output head.

    `config`: the constructor's arguments as plain JSON values, with "arch", from which `build` makes the network again.
    """

    def __init__(self, arguments: Mapping[str, Any]):
        super().__init__()
        plain = {key: value for key, value in arguments.items() if key not in ("self", "__class__")}
        self.config = {"arch": type(self).__name__, **plain}
        self.config |= {key: list(value) for key, value in plain.items() if isinstance(value, tuple | list)}
        self.label_dim, self.augment_dim = self.config["label_dim"], self.config["augment_dim"]
        self.patch = self.config.get("patch", 1)
        resolution, halvings = self.config["img_resolution"], len(self.config["channel_mult"]) - 1
        if self.patch < 1 or resolution % self.patch:
            raise OnestepError(
                f"{resolution}x{resolution} images cannot be cut into patches of side {self.patch}; "
                "give a patch that divides their side, or pad the images"
            )
        self.side = resolution // self.patch
        if halvings < 0 or self.side < 1 or self.side % 2**halvings:
            raise OnestepError(
                f"{self.side}x{self.side} {'images' if self.patch == 1 else 'patches'} cannot be halved {halvings} "
                "times exactly; give channel_mult another number of entries, or pad the images"
            )

    def _levels(self) -> list[tuple[str, int, bool]]:
        """(name, width, attention?) from the full resolution down."""
        config, levels = self.config, []
        for level, mult in enumerate(config["channel_mult"]):
            resolution = self.side >> level
            attention = resolution in config["attn_resolutions"]
            levels.append((f"{resolution}x{resolution}", config["model_channels"] * mult, attention))
        return levels

    def _add_encoder(self, style: BlockStyle, channels: int, residual: bool = False) -> list[int]:
        """Make `enc`, its first convolution `channels` wide; returns the channels of the skips.

        `residual`: at each level the encoder also takes in a downsampled stream of the image (NCSN++).
        """
        aux_channels, skips = self.config["in_channels"] * self.patch**2, [channels]
        self.enc = nn.ModuleDict()
        for level, (name, width, attention) in enumerate(self._levels()):
            if level == 0:
                self.enc[f"{name}_conv"] = Conv2d(aux_channels, channels, 3, style.init)
            else:
                self.enc[f"{name}_down"] = UNetBlock(channels, channels, style, "down")
                skips.append(channels)
            if level and residual:
                aux = Conv2d(aux_channels, channels, 3, style.init, "down", style.resample_filter, fused=True)
                self.enc[f"{name}_aux_residual"] = aux
                aux_channels = channels
            for index in range(self.config["num_blocks"]):
                self.enc[f"{name}_block{index}"] = UNetBlock(channels, width, style, attention=attention)
                channels = width
                skips.append(channels)
        return skips

    def _add_decoder(self, style: BlockStyle, skips: list[int], attend_all: bool) -> int:
        """Make `dec`; returns the channels that leave it.

        `attend_all`: attention in every block of a level that has it, not only in the last.
        """
        channels, blocks = skips[-1], self.config["num_blocks"] + 1
        self.dec = nn.ModuleDict()
        for level, (name, width, attention) in enumerate(reversed(self._levels())):
            if level == 0:
                self.dec[f"{name}_in0"] = UNetBlock(channels, channels, style, attention=True)
                self.dec[f"{name}_in1"] = UNetBlock(channels, channels, style)
            else:
                self.dec[f"{name}_up"] = UNetBlock(channels, channels, style, "up")
            for index in range(blocks):
                attend = attention and (attend_all or index == blocks - 1)
                self.dec[f"{name}_block{index}"] = UNetBlock(channels + skips.pop(), width, style, attention=attend)
                channels = width
        return channels

    @property
    def two_times(self) -> bool:
        """Whether the network takes a second noise label."""
        return self.config.get("second_time", False)

    def add_second_time(self) -> None:
        """Let the network take a second noise label, of which its answers do not depend as long as it is not trained.

        Draws the first weights of the embedding from the global generator.
        """
        channels, device = self.config["model_channels"], next(self.parameters()).device
        self.map_second = SecondTime(channels, channels * self.config["channel_mult_emb"]).to(device)
        self.config["second_time"] = True

    def forward(
        self,
        x: Tensor,
        noise_labels: Tensor,
        class_labels: Tensor | None = None,
        augment_labels: Tensor | None = None,
        second_labels: Tensor | None = None,
    ) -> Tensor:
        """Raw network output (n, out_channels, h, w), in the dtype of x.

        x (n, in_channels, h, w); noise_labels (n,), or (1,) for all; class_labels (n, label_dim), one-hot;
        augment_labels (n, augment_dim) or None for none; second_labels as noise_labels, of a network with a second
        time, None for 0. Raises OnestepError for any other shape.
        """
        self._check(x, noise_labels, class_labels)
        emb = self._embedded(noise_labels, class_labels, augment_labels, second_labels)
        skips = self._encode(x, emb)
        h = skips[-1]
        for name, block in self.dec.items():
            if "_aux_" not in name:
                h = block(torch.cat([h, skips.pop()], dim=1) if "_block" in name else h, emb)
        return self._joined(self._head(h)).to(x.dtype)

    def encode(self, x: Tensor, noise_labels: Tensor, class_labels: Tensor | None = None) -> list[Tensor]:
        """The encoder's activations, finest resolution first, each (n, c, h, w): every block's, in order.

        Arguments and errors as in `forward`.
        """
        self._check(x, noise_labels, class_labels)
        return self._encode(x, self._embedded(noise_labels, class_labels))

    def _embedded(
        self,
        noise_labels: Tensor,
        class_labels: Tensor | None,
        augment_labels: Tensor | None = None,
        second_labels: Tensor | None = None,
    ) -> Tensor:
        emb = self._embed(_precise(noise_labels), class_labels, augment_labels)
        if self.two_times:
            return emb + self.map_second(_precise(noise_labels * 0 if second_labels is None else second_labels))
        if second_labels is not None:
            raise OnestepError("this network takes one time; build it with second_time=True for two")
        return emb

    def _encode(self, x: Tensor, emb: Tensor) -> list[Tensor]:
        x = self._cut(x)
        h, skips, aux = x, [], x
        for name, block in self.enc.items():
            if name.endswith("_aux_residual"):
                h = skips[-1] = aux = (h + block(aux)) * math.sqrt(0.5)
                continue
            h = block(h) if name.endswith("_conv") else block(h, emb)
            skips.append(h)
        return skips

    def _cut(self, x: Tensor) -> Tensor:
        return x if self.patch == 1 else F.pixel_unshuffle(x, self.patch)

    def _joined(self, x: Tensor) -> Tensor:
        return x if self.patch == 1 else F.pixel_shuffle(x, self.patch)

    def _check(self, x: Tensor, noise_labels: Tensor, class_labels: Tensor | None) -> None:
        channels, resolution, labels = (self.config[key] for key in ("in_channels", "img_resolution", "label_dim"))
        if x.ndim != 4 or tuple(x.shape[1:]) != (channels, resolution, resolution):
            expected = f"(n, {channels}, {resolution}, {resolution})"
            raise OnestepError(f"this network takes images of shape {expected}, not {tuple(x.shape)}")
        # x.shape[0] and not len(x), and in this order, so that an exported network takes any number of images.
        if noise_labels.numel() not in (x.shape[0], 1):
            raise OnestepError(
                f"{noise_labels.numel()} noise labels for {len(x)} images; give one each, or one for all"
            )
        if labels and class_labels is None:
            raise OnestepError(f"this network is conditional: give class_labels, one-hot of shape (n, {labels})")
        if class_labels is not None and tuple(class_labels.shape) != (x.shape[0], labels):
            wanted = f"one-hot class_labels of shape ({len(x)}, {labels})" if labels else "no class_labels"
            raise OnestepError(f"this network takes {wanted}, not {tuple(class_labels.shape)}")

    def _kept(self, class_labels: Tensor) -> Tensor:
        """In training, whole labels are zeroed at the rate label_dropout, for classifier-free guidance."""
        rate = self.config["label_dropout"]
        if not (self.training and rate):
            return class_labels
        return class_labels * (torch.rand(len(class_labels), 1, device=class_labels.device) >= rate)


class SongUNet(_UNet):
    """DDPM++ (the defaults) and NCSN++ (fourier, residual, channel_mult_noise 2, resample_filter [1, 3, 3, 1]).

    `patch`: patches of that side are cut from the image, each a pixel of patch**2 times the channels, and put together
    again at the end (the space-to-depth of Shi et al. 2016, arXiv 1609.05158, turned round). Levels, their names and
    attn_resolutions then count patches, as do the maps of `encode` and what enters the head. 1, as released: none.
    Raises OnestepError for images that cannot be cut or halved exactly and for encoder or decoder types EDM did not
    release.
    """

    def __init__(
        self,
        img_resolution: int,
        in_channels: int,
        out_channels: int,
        label_dim: int = 0,
        augment_dim: int = 0,
        model_channels: int = 128,
        channel_mult: Sequence[int] = (1, 2, 2, 2),
        channel_mult_emb: int = 4,
        num_blocks: int = 4,
        attn_resolutions: Sequence[int] = (16,),
        dropout: float = 0.10,
        label_dropout: float = 0.0,
        embedding_type: str = "positional",
        channel_mult_noise: int = 1,
        encoder_type: str = "standard",
        decoder_type: str = "standard",
        resample_filter: Sequence[int] = (1, 1),
        patch: int = 1,
        second_time: bool = False,
    ):
        super().__init__(locals())
        _check_choice("embedding_type", embedding_type, ("positional", "fourier"))
        _check_choice("encoder_type", encoder_type, ("standard", "residual"))
        _check_choice("decoder_type", decoder_type, ("standard",))
        init, last, qkv = Init(xavier=True), Init(xavier=True, gain=1e-5), Init(xavier=True, gain=math.sqrt(0.2))
        emb_channels, noise_channels = model_channels * channel_mult_emb, model_channels * channel_mult_noise
        style = BlockStyle(
            emb_channels, dropout, tuple(resample_filter), init, last, qkv, eps=1e-6, skip_scale=math.sqrt(0.5)
        )
        fourier = embedding_type == "fourier"
        self.map_noise = (
            FourierEmbedding(noise_channels) if fourier else PositionalEmbedding(noise_channels, endpoint=True)
        )
        self.map_label = Linear(label_dim, noise_channels, init) if label_dim else None
        self.map_augment = Linear(augment_dim, noise_channels, init, bias=False) if augment_dim else None
        self.map_layer0 = Linear(noise_channels, emb_channels, init)
        self.map_layer1 = Linear(emb_channels, emb_channels, init)
        skips = self._add_encoder(style, model_channels, residual=encoder_type == "residual")
        channels = self._add_decoder(style, skips, attend_all=False)
        self.head = f"{self.side}x{self.side}_aux"
        self.dec[f"{self.head}_norm"] = GroupNorm(channels, style.eps)
        self.dec[f"{self.head}_conv"] = Conv2d(channels, out_channels * patch**2, 3, last)
        if second_time:
            self.add_second_time()

    def _embed(self, noise_labels: Tensor, class_labels: Tensor | None, augment_labels: Tensor | None) -> Tensor:
        cosines, sines = self.map_noise(noise_labels).chunk(2, dim=1)
        emb = torch.cat([sines, cosines], dim=1)
        if self.map_label is not None:
            emb = emb + self.map_label(self._kept(class_labels) * math.sqrt(self.config["label_dim"]))
        if self.map_augment is not None and augment_labels is not None:
            emb = emb + self.map_augment(augment_labels)
        return F.silu(self.map_layer1(F.silu(self.map_layer0(emb))))

    @property
    def head_norm(self) -> GroupNorm:
        """The normalisation that begins the output head: what enters it are the network's features."""
        return self.dec[f"{self.head}_norm"]

    def _head(self, h: Tensor) -> Tensor:
        return self.dec[f"{self.head}_conv"](F.silu(self.dec[f"{self.head}_norm"](h)))


class DhariwalUNet(_UNet):
    """ADM, with attention in every block of the levels in attn_resolutions and 64 channels a head.

    Raises OnestepError for images that cannot be halved exactly.
    """

    def __init__(
        self,
        img_resolution: int,
        in_channels: int,
        out_channels: int,
        label_dim: int = 0,
        augment_dim: int = 0,
        model_channels: int = 192,
        channel_mult: Sequence[int] = (1, 2, 3, 4),
        channel_mult_emb: int = 4,
        num_blocks: int = 3,
        attn_resolutions: Sequence[int] = (32, 16, 8),
        dropout: float = 0.10,
        label_dropout: float = 0.0,
        second_time: bool = False,
    ):
        super().__init__(locals())
        init, zero = Init(xavier=False, gain=math.sqrt(1 / 3), bias_gain=math.sqrt(1 / 3)), Init(xavier=False, gain=0.0)
        emb_channels = model_channels * channel_mult_emb
        style = BlockStyle(
            emb_channels, dropout, (1, 1), init, zero, init, scale_shift=True, project_resampled=False, head_channels=64
        )
        self.map_noise = PositionalEmbedding(model_channels, endpoint=False)
        self.map_augment = Linear(augment_dim, model_channels, zero, bias=False) if augment_dim else None
        self.map_layer0 = Linear(model_channels, emb_channels, init)
        self.map_layer1 = Linear(emb_channels, emb_channels, init)
        self.map_label = Linear(label_dim, emb_channels, init, bias=False) if label_dim else None
        if self.map_label is not None:
            nn.init.normal_(self.map_label.weight)  # one-hot input: each class starts as a standard normal vector
        skips = self._add_encoder(style, model_channels * channel_mult[0])
        channels = self._add_decoder(style, skips, attend_all=True)
        self.out_norm = GroupNorm(channels, style.eps)
        self.out_conv = Conv2d(channels, out_channels, 3, zero)
        if second_time:
            self.add_second_time()

    def _embed(self, noise_labels: Tensor, class_labels: Tensor | None, augment_labels: Tensor | None) -> Tensor:
        emb = self.map_noise(noise_labels)
        if self.map_augment is not None and augment_labels is not None:
            emb = emb + self.map_augment(augment_labels)
        emb = self.map_layer1(F.silu(self.map_layer0(emb)))
        if self.map_label is not None:
            emb = emb + self.map_label(self._kept(class_labels))
        return F.silu(emb)

    @property
    def head_norm(self) -> GroupNorm:
        """As in SongUNet."""
        return self.out_norm

    def _head(self, h: Tensor) -> Tensor:
        return self.out_conv(F.silu(self.out_norm(h)))


def _precise(noise_labels: Tensor) -> Tensor:
    """(n,), in float32 at least: a derivative in time is told from rounding in float64 alone."""
    return noise_labels.reshape(-1).to(torch.promote_types(noise_labels.dtype, torch.float32))


def _check_choice(argument: str, value: str, known: Sequence[str]) -> None:
    if value not in known:
        raise OnestepError(f"{argument} {value!r} is not supported{near_miss(str(value), known)}")
