"""Regression on pairs."""

import torch

from onestep_bench.denoiser import IdealDenoiser
from onestep_bench.methods.kd import regression_loss


def test_the_loss_is_the_distance_of_the_one_step_image():
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(5, 1, 4, 4, generator=generator, dtype=torch.float64)
    noise = torch.randn(8, 1, 4, 4, generator=generator, dtype=torch.float64)
    student = IdealDenoiser(images)  # from pure noise it can only answer about the mean image
    data = images[torch.arange(8) % 5]
    made = student(80 * noise, 80.0)
    assert torch.equal(regression_loss(student, noise, data, "l2"), (made - data).square().mean())
    assert torch.equal(regression_loss(student, noise, data, "l1"), (made - data).abs().mean())
    assert regression_loss(student, noise, made, "l2").item() == 0
