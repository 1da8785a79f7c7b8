"""Images of a model: sample `i` is a function of the model, the seed and `i`, and of nothing else."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from onestep_bench import samplers
from onestep_bench.data.streams import ahead
from onestep_bench.errors import OnestepError
from onestep_bench.models.model import Model
from onestep_bench.seeds import sample_labels, sample_noise
from onestep_bench.store import origin
from onestep_bench.training.ranks import device

# Networks are always called with this many images, the last batch padded: the arithmetic of a row depends on the
# shape of its batch, and a sample must not.
BATCH = 256


def source_of(sampler: str) -> list[str]:
    """Where the source that makes images with a sampler begins, for `store.memo`."""
    natives = (f"denoiser:{name}" for name in ("Denoiser", "EDM", "Flow", "DDPM"))
    begin = "models.sampling:sample_batches", "networks.build:ARCHITECTURES"
    return [origin(samplers.sampler(sampler)), *begin, *natives]


def sample(model: Model, indices: Sequence[int], **asked) -> Tensor:
    """Images (len(indices), c, h, w) float32 in about [-1, 1], on the CPU: all batches of `sample_batches` together.

    asked: sampler, steps, seed and purpose, as `sample_batches` takes them.
    """
    return torch.cat([batch.cpu() for batch in sample_batches(model, indices, **asked)])


def sample_batches(
    model: Model,
    indices: Sequence[int],
    *,
    sampler: str = "euler",
    steps: int = 1,
    seed: int = 0,
    purpose: str = "sample",
    network_batch: int | None = None,
) -> Iterator[Tensor]:
    """Images (up to network_batch, c, h, w) float32 in about [-1, 1], on `device()`, in the order of the indices.

    Image i is a function of (model, sampler, steps, seed, purpose, indices[i]) and of nothing else in its batch, so
    that any split of the indices over calls, processes or devices of one type gives the same images, bit for bit. In
    its last bits it is also a function of network_batch, with which the network is always called, padding the last
    batch: by default `BATCH`; another number is for timing, not for scores. Labels of a conditional model are drawn in
    the proportions of its training data.
    Raises OnestepError if the sampler is unknown, there are no indices, or an image is not finite.
    """
    if not len(indices):
        raise OnestepError("asked for no images at all; ask for at least 1")
    step = samplers.sampler(sampler)
    times = samplers.times_of(sampler, model.denoiser.path, steps)
    network_batch = network_batch or BATCH

    def draws():
        for start in range(0, len(indices), network_batch):
            asked = indices[start : start + network_batch]
            padded = [*asked, *[asked[0]] * (network_batch - len(asked))]
            noise = sample_noise(seed, padded, model.shape, purpose)
            yield len(asked), noise, sample_labels(seed, padded, model.class_counts, purpose)

    def batches():
        # A single batch has nothing to be drawn beside, and its latency should not be that of a thread's start.
        for count, noise, labels in ahead(draws()) if len(indices) > network_batch else draws():
            noise, labels = noise.to(device()), None if labels is None else labels.to(device())
            images = step(model.denoiser, noise, times, labels)[:count]
            if not images.isfinite().all():
                raise OnestepError(f"{model.name} made images that are not finite with {sampler}, {steps} steps")
            yield images

    return batches()
