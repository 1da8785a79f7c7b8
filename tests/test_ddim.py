"""DDIM against diffusers' DDIMScheduler, step by step; scripts/record_diffusers_ddim.py made the arrays."""

from pathlib import Path

import numpy as np
import pytest
import torch

from onestep_bench.denoiser import ddpm_denoiser
from onestep_bench.paths import alphas_cumprod
from onestep_bench.samplers import ddim, ddim_times

RECORDED = np.load(Path(__file__).parent / "reference/diffusers_ddim.npz")


class Toy(torch.nn.Module):
    """The script's toy eps function."""

    def forward(self, x, level, labels=None):
        return torch.tanh(x) * 0.7 + 0.3 * x * torch.cos(3 * level / 1024).reshape(-1, 1, 1, 1)


@pytest.mark.parametrize("clip", [True, False])
def test_every_step_agrees_with_diffusers(clip):
    states = torch.from_numpy(RECORDED[f"states_{clip}"])
    times = ddim_times(len(states), 1024)
    assert (times[:-1] - 1).tolist() == RECORDED[f"levels_{clip}"].tolist()
    denoiser = ddpm_denoiser(Toy(), alphas_cumprod("sigmoid", 1024))
    for count, expected in enumerate(states, start=1):
        x = ddim(denoiser, torch.from_numpy(RECORDED["noise"]), times[: count + 1], clip=clip)
        torch.testing.assert_close(x, expected, rtol=1e-5, atol=1e-5 * expected.abs().max().item())
