"""Time the Frechet distance of clean-fid and of onestep_bench at the width of Inception features.

python benchmarks/frechet.py [WIDTH]

Once of more samples than dimensions, once of fewer, whose covariances are singular.
"""

import sys
import time

import numpy as np
import torch

from onestep_bench.scoring.metrics import frechet_from_moments, moments


def clean_fid_frechet_distance():
    """clean-fid's function; without its operators torchvision fails to import beside some builds of torch."""
    library = torch.library.Library("torchvision", "FRAGMENT")
    for schema in (
        "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
        "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    ):
        library.define(schema)
    from cleanfid.fid import frechet_distance

    return frechet_distance


def main() -> None:
    """Print both times, their ratio, and both values."""
    width = int(sys.argv[1]) if len(sys.argv) > 1 else 2048
    libraries = {"clean-fid": clean_fid_frechet_distance(), "onestep_bench": frechet_from_moments}
    for samples in (2 * width, width // 2):
        compare(libraries, samples, width)


def compare(libraries: dict, samples: int, width: int) -> None:
    """Of so many samples a set."""
    random = np.random.default_rng(0)
    # Features of falling variance, mixed: as ill-conditioned as real ones.
    mixing = random.standard_normal((width, width)) * np.geomspace(1, 1e-2, width) / np.sqrt(width)
    real, fake = (random.standard_normal((samples, width)) @ mixing + shift for shift in (0.0, 0.01))
    arguments = (*moments(real), *moments(fake))
    seconds = {}
    for name, function in libraries.items():
        start = time.perf_counter()
        value = float(function(*arguments))
        seconds[name] = time.perf_counter() - start
        print(f"{name:14} {seconds[name]:7.2f} s   distance {value:.9f}", flush=True)
    print(f"ratio {seconds['clean-fid'] / seconds['onestep_bench']:.1f}, {samples} samples of {width} dimensions")


if __name__ == "__main__":
    main()
