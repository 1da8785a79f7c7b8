"""onestep_bench: one-step and few-step diffusion under one teacher, data set, budget and FID protocol."""

__version__ = "0.1.0"
