"""Counter-based randomness: every draw is a function of (run seed, purpose, step or sample index).

Nothing here keeps state, so a resumed run draws what the uninterrupted one would have drawn, and sample
`i` gets the same noise at any batch size.
"""

import hashlib
from collections.abc import Iterable, Sequence

import torch


def seed_for(*parts: object) -> int:
    """A 63-bit seed from any printable parts, e.g. `seed_for(run_seed, "noise", step)`."""
    digest = hashlib.blake2b("/".join(map(str, parts)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def generator(*parts: object, device: torch.device | str = "cpu") -> torch.Generator:
    """A fresh generator seeded by `seed_for(*parts)`."""
    return torch.Generator(device).manual_seed(seed_for(*parts))


def sample_noise(seed: int, indices: Iterable[int], shape: Sequence[int], purpose: str = "sample") -> torch.Tensor:
    """Standard normal noise (len(indices), *shape), float32, on the CPU.

    Row i depends on (seed, purpose, indices[i]) alone. It is drawn on the CPU on purpose: the noise is then the same
    on every device, and it costs a thousandth of sampling with it.
    """
    return torch.stack([torch.randn(*shape, generator=generator(seed, purpose, index)) for index in indices])


def sample_labels(
    seed: int, indices: Iterable[int], class_counts: Sequence[int], purpose: str = "sample"
) -> torch.Tensor | None:
    """Class labels (len(indices),) int64, drawn in proportion to `class_counts`; row i as in `sample_noise`.

    None without classes.
    """
    if not class_counts:
        return None
    weights = torch.tensor(class_counts, dtype=torch.float64)
    draws = [torch.multinomial(weights, 1, generator=generator(seed, purpose, "label", index)) for index in indices]
    return torch.cat(draws)


class Draw:
    """The random numbers of one training step.

    All tensors are drawn for the whole batch of `batch_size` and then cut to `rows`, so that micro-batches see
    together, on however many ranks, exactly what one large batch would have seen.

    Attributes: step (0-based), progress (fraction of the budget done, in [0, 1)), first (whether these are the first
    rows of the step in this process: the moment for what an objective does once a step).
    """

    def __init__(
        self,
        seed: int,
        step: int,
        *,
        batch_size: int,
        rows: slice,
        progress: float,
        first: bool = True,
        device: torch.device | str = "cpu",
    ):
        self.seed, self.step, self.batch_size = seed, step, batch_size
        self.rows, self.progress, self.first, self.device = rows, progress, first, torch.device(device)

    def _generator(self, purpose: str) -> torch.Generator:
        return generator(self.seed, purpose, self.step, device=self.device)

    def normal(self, purpose: str, shape: Sequence[int]) -> torch.Tensor:
        """Standard normal (rows, *shape)."""
        full = torch.randn(self.batch_size, *shape, generator=self._generator(purpose), device=self.device)
        return full[self.rows]

    def uniform(self, purpose: str, low: float = 0.0, high: float = 1.0) -> torch.Tensor:
        """Uniform on [low, high), one number a sample: (rows,)."""
        full = torch.rand(self.batch_size, generator=self._generator(purpose), device=self.device)
        return (low + (high - low) * full)[self.rows]

    def integers(self, purpose: str, low: int, high: int) -> torch.Tensor:
        """Uniform integers in [low, high), one a sample: (rows,) int64."""
        full = torch.randint(low, high, (self.batch_size,), generator=self._generator(purpose), device=self.device)
        return full[self.rows]
