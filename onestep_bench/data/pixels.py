"""Pixels: uint8 at the edges, float32 in [-1, 1] inside."""

import torch


def to_unit(images: torch.Tensor) -> torch.Tensor:
    """Map uint8 images 0..255 to float32 in [-1, 1], any shape, on their device."""
    return images.to(torch.float32) / 127.5 - 1


def to_uint8(images: torch.Tensor) -> torch.Tensor:
    """Map float images in [-1, 1] to uint8 0..255, clamped, any shape, on their device.

    The rounding is that of NVlabs/edm, and the inverse of `to_unit`.
    """
    return (images * 127.5 + 128).clamp(0, 255).to(torch.uint8)
