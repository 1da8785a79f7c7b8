"""Networks by the sizes of the papers: plain tables, so that a plan can check a name without torch."""

from collections.abc import Sequence
from typing import Any


def _ddpmpp(
    channels: int, blocks: int, mult: Sequence[int], dropout: float, attention: Sequence[int], **more: Any
) -> dict:
    arguments = {"model_channels": channels, "num_blocks": blocks, "channel_mult": mult, "attn_resolutions": attention}
    return {"arch": "SongUNet", **arguments, "dropout": dropout, **more}


def _adm(channels: int, blocks: int, mult: Sequence[int], dropout: float, attention: Sequence[int]) -> dict:
    return {**_ddpmpp(channels, blocks, mult, dropout, attention), "arch": "DhariwalUNet"}


_NCSNPP = {
    "embedding_type": "fourier",
    "encoder_type": "residual",
    "channel_mult_noise": 2,
    "resample_filter": (1, 3, 3, 1),
}

SIZES: dict[str, dict[str, Any]] = {
    # For 8x8 to 28x28 images, named by their parameters at 1x8x8. Of the shapes tried on a CPU, one block a level
    # trains the most images a second for its parameters. GroupNorm admits no width between 32 and 40, hence the wider
    # embedding.
    "0.01M": _ddpmpp(4, 1, (1, 2), 0.0, ()),
    "0.05M": _ddpmpp(8, 1, (1, 2), 0.0, ()),
    "0.1M": _ddpmpp(12, 1, (1, 2), 0.0, ()),
    "0.2M": _ddpmpp(16, 1, (1, 2), 0.0, ()),
    "0.8M": _ddpmpp(32, 1, (1, 2), 0.0, (), channel_mult_emb=7),
    "3M": _ddpmpp(64, 1, (1, 2), 0.0, ()),
    # The same for 28x28, where full resolution takes most of a CPU's time: cut into patches of 2x2, an image is 14x14
    # places. A training step of one core takes 0.8, 1.4, 2.8 and 3.7 ms an image, of "0.2M" 5.7. Three levels of 8, 16
    # and 32 channels without patches take 3.2. Patched networks want a higher learning rate: of 2e-3 and 6e-3 for
    # "0.2M-p2", the latter.
    "0.05M-p2": _ddpmpp(8, 1, (1, 2), 0.0, (), patch=2),
    "0.2M-p2": _ddpmpp(16, 1, (1, 2), 0.0, (), patch=2),
    "0.4M-p2": _ddpmpp(24, 1, (1, 2), 0.0, (), patch=2),
    "0.7M-p2": _ddpmpp(32, 1, (1, 2), 0.0, (), patch=2),
    # SlimFlow (arXiv 2407.12718).
    "3.4M": _ddpmpp(64, 1, (1, 1, 2), 0.15, (16,)),
    "7.0M": _ddpmpp(64, 2, (1, 2, 2), 0.15, (16,)),
    "15.7M": _ddpmpp(96, 2, (1, 2, 2), 0.15, (16,)),
    "27.9M": _ddpmpp(128, 2, (1, 2, 2), 0.15, (16,)),
    "61.8M": _ddpmpp(128, 4, (1, 2, 2, 2), 0.15, (16,)),
    "44.7M": _adm(128, 2, (1, 2, 2, 2), 0.13, (32, 16)),
    "80.7M": _adm(128, 2, (1, 2, 2, 4), 0.13, (32, 16)),
    # Nearest to SFDDM's (arXiv 2405.14961), whose released U-Net of 64 channels and multipliers 1, 2, 4, 8 has 35.7M
    # parameters at 3x32x32 and is no DDPM++: it widens one level later on the way down, modulates by scale and shift,
    # has linear attention at every level but the last, and ends in a 1x1 convolution without a normalisation.
    "44.5M": _ddpmpp(64, 1, (1, 2, 4, 8), 0.0, (16,)),
    # EDM (arXiv 2206.00364).
    "edm-ddpmpp": _ddpmpp(128, 4, (2, 2, 2), 0.13, (16,)),
    "edm-ncsnpp": _ddpmpp(128, 4, (2, 2, 2), 0.13, (16,)) | _NCSNPP,
    "adm": _adm(192, 3, (1, 2, 3, 4), 0.10, (32, 16, 8)),
}


def size_config(name: str, resolution: int) -> dict[str, Any]:
    """Architecture and arguments of a named size for images of a side."""
    config = SIZES[name] | {"img_resolution": resolution}
    if name.startswith("edm-") and resolution >= 64:
        config["channel_mult"] = (1, 2, 2, 2)  # as EDM has them on its 64 px sets
    return config
