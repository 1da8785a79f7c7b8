"""Features of a network that was never trained, and so has the habits of no data set and needs no labels.

Naeem et al. 2020 (arXiv:2002.09797) judge by random features what trained ones are blind to. Its scores compare
methods with each other, on any images, offline.
"""

import hashlib

import numpy as np
import torch
from torch.nn import functional

from onestep_bench.data.pixels import to_unit
from onestep_bench.scoring.judges import FeatureExtractor, extractor

CHANNELS, SCALES, PLACES = 32, 4, 2
DIM = CHANNELS * SCALES * PLACES**2


@extractor("random-features")
def _random_features(device: torch.device) -> FeatureExtractor:
    signs = _signs()
    digest = hashlib.sha256(b"".join(weight.tobytes() for weight in signs)).hexdigest()
    # Double precision: rounded to float32, the features are the same on every device.
    weights = [torch.from_numpy(weight).double().to(device) * (2 / weight[0].size) ** 0.5 for weight in signs]

    def network(images: torch.Tensor) -> tuple[torch.Tensor, None]:
        return _features(to_unit(images).double(), weights), None

    return FeatureExtractor(
        "random-features",
        network,
        device=device,
        batch=64,  # more would fill the memory with large pictures, and save no time
        dim=DIM,
        digest=digest,
        protocol=f"random-features@{digest[:12]}; no resize",
    )


def _features(x: torch.Tensor, weights: list[torch.Tensor]) -> torch.Tensor:
    """(n, DIM): each channel's mean over each quarter of the picture, at every scale, the coarser twice as wide."""
    found = []
    for weight in weights:
        # Edges repeated: a frame of zeros would be the same grey line round every picture.
        x = functional.relu(functional.conv2d(functional.pad(x, [1] * 4, mode="replicate"), weight))
        found.append(functional.adaptive_avg_pool2d(x, PLACES).flatten(1))
        x = functional.avg_pool2d(x, 2) if min(x.shape[2:]) > 2 else x
    return torch.cat(found, 1)


def _signs() -> list[np.ndarray]:
    """Weights -1 and 1, int8 (out, in, 3, 3), of every scale.

    Bits of a hash and not of a random generator: they are the same with every version of every library.
    """
    made = []
    for scale in range(SCALES):
        shape = (CHANNELS, CHANNELS if scale else 3, 3, 3)
        stream = hashlib.shake_256(f"random-features/{scale}".encode()).digest(-(-int(np.prod(shape)) // 8))
        bits = np.unpackbits(np.frombuffer(stream, np.uint8))[: np.prod(shape)]
        made.append(2 * bits.reshape(shape).astype(np.int8) - 1)
    return made
