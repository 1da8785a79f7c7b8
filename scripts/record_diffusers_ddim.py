"""Record what diffusers' DDIMScheduler does step by step on a toy eps function, for tests/test_samplers.py.

pip install 'onestep-bench[benchmark]' && python scripts/record_diffusers_ddim.py
"""

from pathlib import Path

import numpy as np
import torch

from onestep_bench.compat import import_torchvision
from onestep_bench.paths import alphas_cumprod

LEVELS, STEPS = 1024, 8


def toy_eps(x: torch.Tensor, level: float) -> torch.Tensor:
    """A function of the noisy image and its level index, with no meaning but smoothness."""
    return torch.tanh(x) * 0.7 + 0.3 * x * float(np.cos(3 * level / LEVELS))


def main() -> None:
    """Write tests/reference/diffusers_ddim.npz."""
    import_torchvision()
    from diffusers import DDIMScheduler

    betas = 1 - alphas_cumprod("sigmoid", LEVELS)[1:] / alphas_cumprod("sigmoid", LEVELS)[:-1]
    betas = np.concatenate([[1 - alphas_cumprod("sigmoid", LEVELS)[0].item()], betas.numpy()])
    noise = torch.randn(3, 2, 4, 4, generator=torch.Generator().manual_seed(0))
    arrays = {"noise": noise.numpy()}
    for clip in (True, False):
        scheduler = DDIMScheduler(LEVELS, trained_betas=betas, clip_sample=clip, timestep_spacing="trailing")
        scheduler.set_timesteps(STEPS)
        x = noise
        states = []
        for level in scheduler.timesteps:
            eps = toy_eps(x, level.item())
            # eps derived again from the clipped x0, as SFDDM's sampler and ours do
            x = scheduler.step(eps, level, x, eta=0.0, use_clipped_model_output=clip).prev_sample
            states.append(x.numpy())
        arrays[f"levels_{clip}"], arrays[f"states_{clip}"] = scheduler.timesteps.numpy(), np.stack(states)
    np.savez(Path(__file__).parent.parent / "tests/reference/diffusers_ddim.npz", **arrays)


if __name__ == "__main__":
    main()
