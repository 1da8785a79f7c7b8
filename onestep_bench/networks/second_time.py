"""The embedding of a second noise label: what a network needs to be a map between two levels, and not a denoiser only.

Added to the embedding of the first, with a last layer of zeros: a network that is given it answers as before, so that
a flow map can start from a teacher's weights.
"""

import torch.nn.functional as F
from torch import Tensor, nn

from onestep_bench.networks.layers import Init, Linear, PositionalEmbedding


class SecondTime(nn.Module):
    """Second noise labels (n,) to what is added to the embedding (n, emb_channels); zero until it is trained."""

    def __init__(self, channels: int, emb_channels: int):
        super().__init__()
        self.map_noise = PositionalEmbedding(channels, endpoint=True)
        self.map_layer0 = Linear(channels, emb_channels, Init(xavier=True))
        self.map_layer1 = Linear(emb_channels, emb_channels, Init(xavier=True, gain=0.0))

    def forward(self, second_labels: Tensor) -> Tensor:
        """(n,) -> (n, emb_channels)."""
        return self.map_layer1(F.silu(self.map_layer0(self.map_noise(second_labels))))
