"""The training images nearest to the few samples that a score bundle shows: whether they are copies, to look at."""

import base64
import io

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from onestep_bench.data.registry import Dataset

_CHUNK = 4096  # images compared at a time


def nearest_training(strip: Tensor, train: Dataset) -> tuple[Tensor, list[int]]:
    """Of each image (n, c, h, w), uint8, the nearest image of a data set, by the Euclidean distance of pixels, and its
    index.
    """
    wanted = strip.flatten(1).float()
    least = torch.full((len(strip),), torch.inf)
    index = torch.zeros(len(strip), dtype=torch.long)
    for start in range(0, len(train), _CHUNK):
        # Not by matrix products, which lose the small differences that tell a copy.
        how = "donot_use_mm_for_euclid_dist"
        apart = torch.cdist(wanted, train.images[start : start + _CHUNK].flatten(1).float(), compute_mode=how)
        near, where = apart.min(1)
        index = torch.where(near < least, where + start, index)
        least = torch.minimum(near, least)
    return train.images[index], index.tolist()


def images_of(png: str) -> Tensor:
    """The images (n, c, h, w), uint8, that stand side by side in a base64 PNG."""
    pixels = np.asarray(Image.open(io.BytesIO(base64.b64decode(png))))
    pixels = pixels[:, :, None] if pixels.ndim == 2 else pixels
    return torch.from_numpy(pixels.copy()).permute(2, 0, 1).unflatten(2, (-1, pixels.shape[0])).permute(2, 0, 1, 3)
