"""A small TorchScript network with the interface of inception-2015-12-05.pt, to check what surrounds the real one."""

from pathlib import Path

import torch
from torch import nn
from torch.nn import functional

NAME = "inception-2015-12-05.pt"


class StandIn(nn.Module):
    """`layers`: (n, 3, 299, 299) in about [-1, 1] to (n, 2048). `forward`: uint8 or float 0..255 of any size."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(3, 4, 5, stride=32), nn.Tanh(), nn.Flatten(), nn.Linear(400, 2048))
        self.output = nn.Linear(2048, 1008)

    def forward(
        self,
        img: torch.Tensor,
        return_features: bool = False,
        use_fp16: bool = False,
        no_output_bias: bool = False,
    ) -> torch.Tensor:
        x = functional.interpolate(img.to(torch.float32), size=[299, 299], mode="bilinear", align_corners=False)
        features = self.layers((x - 127.5) / 127.5)
        if return_features:
            return features
        bias = None if no_output_bias else self.output.bias
        return functional.linear(features, self.output.weight, bias).softmax(1)


def write(folder: Path) -> Path:
    """Write the stand-in, the same one every time, under the real one's name."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = StandIn().eval().requires_grad_(False)
    path = folder / NAME
    torch.jit.script(network).save(str(path))
    return path
