"""Trained models and pairs as a notebook holds them: an artifact, and what can be asked of it."""

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from onestep_bench import checkpoints, paths, samplers, store
from onestep_bench.denoiser import Denoiser
from onestep_bench.errors import OnestepError
from onestep_bench.ranks import device
from onestep_bench.seeds import sample_labels, sample_noise
from onestep_bench.training import LogRow

# Networks are always called with this many images, the last batch padded: the arithmetic of a row depends on the
# shape of its batch, and a sample must not.
BATCH = 256
FOREIGN = "foreign"  # in place of a method's name: a model that was not trained here


def device_name() -> str:
    """What a score row says of the device."""
    return torch.cuda.get_device_name() if torch.cuda.is_available() else f"CPU, {torch.get_num_threads()} threads"


@dataclass(frozen=True)
class Model:
    """A trained model: its artifact, and what a notebook asks of it. path: the one it is seen on, if not its own."""

    artifact: store.Artifact
    path: paths.Path | None = None

    @cached_property
    def denoiser(self) -> Denoiser:
        """The weights' average (EMA), on `device()`, in eval mode."""
        denoiser = checkpoints.load(self.artifact.folder, str(device()))
        return denoiser.on(self.path).eval() if self.path else denoiser

    def on(self, path: paths.Path) -> "Model":
        """The same model seen, sampled and scored on another path."""
        return Model(self.artifact, path)

    @property
    def name(self) -> str:
        """Store key, and a digest of the path if it is seen on another than its own: what a score row is a score of."""
        if not self.path:
            return self.artifact.key
        spec = json.dumps(self.path.spec(), sort_keys=True).encode()
        return f"{self.artifact.key}@{self.path.name}-{hashlib.sha256(spec).hexdigest()[:8]}"

    @cached_property
    def history(self) -> list[LogRow]:
        """Log rows of the training run."""
        return [LogRow(**row) for row in json.loads((self.artifact.folder / "log.json").read_text())]

    @property
    def size(self) -> str:
        """Named network size."""
        return self.artifact.recipe["size"]

    @property
    def class_counts(self) -> list[int]:
        """Images of each class it was trained on, in whose proportion samples are labelled; empty if unconditional."""
        return self.artifact.recipe["class_counts"]

    @property
    def spent(self) -> dict:
        """{kimg, seconds} of the whole lineage; None each where part of it was not trained here."""
        if any(artifact.recipe.get("method") == FOREIGN for artifact in self.artifact.lineage()):
            return {"kimg": None, "seconds": None}
        return self.artifact.cost()

    @property
    def shape(self) -> tuple[int, int, int]:
        """(channels, height, width) of its images."""
        config = checkpoints.describe(self.artifact.folder)["network"]
        return config["in_channels"], config["img_resolution"], config["img_resolution"]

    def labels(self, indices: Sequence[int], seed: int = 0) -> Tensor | None:
        """Classes (n,) int64 that `sample` gives the images of these indices; None for an unconditional model.

        For a notebook that calls `denoiser` itself.
        """
        labels = _labels(seed, indices, self.class_counts, "sample")
        return None if labels is None else labels.to(device())


@dataclass(frozen=True)
class Pairs:
    """Pairs (noise, image) of a teacher."""

    artifact: store.Artifact

    @cached_property
    def images(self) -> Tensor:
        """(n, c, h, w) float32, as the sampler left them."""
        return load_file(self.artifact.folder / "images.safetensors")["images"]

    @cached_property
    def shape(self) -> tuple[int, int, int]:
        """(channels, height, width) of an image."""
        with safe_open(self.artifact.folder / "images.safetensors", "pt") as file:
            return tuple(file.get_slice("images").get_shape()[1:])

    @property
    def noise(self) -> Tensor:
        """(n, c, h, w) standard normal: made again from the seed, so it need not be stored."""
        return sample_noise(self.artifact.recipe["seed"], range(len(self.images)), self.images.shape[1:], "pairs")

    @property
    def class_counts(self) -> list[int]:
        """As `Model.class_counts`, of the teacher."""
        return self.artifact.recipe["class_counts"]

    @property
    def labels(self) -> Tensor | None:
        """(n,) int64, or None for an unconditional teacher."""
        return _labels(self.artifact.recipe["seed"], range(len(self.images)), self.class_counts, "pairs")


def _labels(seed: int, indices: Sequence[int], class_counts: list[int], purpose: str) -> Tensor | None:
    return sample_labels(seed, indices, class_counts, purpose) if class_counts else None


def sample(
    model: Model,
    indices: Sequence[int],
    *,
    sampler: str = "euler",
    steps: int = 1,
    seed: int = 0,
    purpose: str = "sample",
) -> Tensor:
    """Images (len(indices), c, h, w) float32 in about [-1, 1], on the CPU: all batches of `sample_batches` together."""
    batches = sample_batches(model, indices, sampler=sampler, steps=steps, seed=seed, purpose=purpose)
    return torch.cat([batch.cpu() for batch in batches])


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
    times = samplers.default_times(model.denoiser.path, steps)
    network_batch = network_batch or BATCH

    def batches():
        for start in range(0, len(indices), network_batch):
            asked = indices[start : start + network_batch]
            padded = [*asked, *[asked[0]] * (network_batch - len(asked))]
            noise = sample_noise(seed, padded, model.shape, purpose).to(device())
            labels = _labels(seed, padded, model.class_counts, purpose)
            images = step(model.denoiser, noise, times, None if labels is None else labels.to(device()))[: len(asked)]
            if not images.isfinite().all():
                raise OnestepError(f"{model.name} made images that are not finite with {sampler}, {steps} steps")
            yield images

    return batches()
