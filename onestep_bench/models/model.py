"""Trained models and pairs as a notebook holds them: an artifact, and what can be asked of it."""

import json
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property

from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from onestep_bench import paths, store
from onestep_bench.denoiser import Denoiser
from onestep_bench.errors import OnestepError
from onestep_bench.models import checkpoints, cost, settings, snapshots
from onestep_bench.models.settings import FOREIGN
from onestep_bench.seeds import sample_labels, sample_noise
from onestep_bench.training.ranks import device
from onestep_bench.training.state import LogRow


@dataclass(frozen=True)
class Model:
    """A trained model: its artifact, and what a notebook asks of it.

    path: the one it is seen on, if not its own. snapshot: kimg at which its weights were kept, if not those of the end.
    average: half-life of their average in kimg, 0 for none, if not that of its training.
    """

    artifact: store.Artifact
    path: paths.Path | None = None
    snapshot: float | None = None
    average: float | None = None

    @cached_property
    def denoiser(self) -> Denoiser:
        """The weights' average (EMA), on `device()`, in eval mode."""
        denoiser = checkpoints.load(self.artifact.folder, str(device()), self.file)
        return denoiser.on(self.path).eval() if self.path else denoiser

    def unload(self) -> None:
        """Give back the memory of the weights; `denoiser` loads them again."""
        self.__dict__.pop("denoiser", None)  # where cached_property keeps it

    @property
    def file(self) -> str:
        """Name of the file of its weights, in the artifact's folder."""
        if self.snapshot is not None:
            return snapshots.weights(self.snapshot)
        return checkpoints.WEIGHTS if self.average is None else snapshots.average_weights(self.average)

    def on(self, path: paths.Path) -> "Model":
        """The same model seen, sampled and scored on another path."""
        return replace(self, path=path)

    @property
    def snapshots(self) -> dict[float, "Model"]:
        """The model as it was when training had come so far, by kimg, as `study.train` was asked to keep it."""
        return {kimg: replace(self, snapshot=kimg, average=None) for kimg in self.artifact.recipe.get("snapshots", ())}

    @property
    def averages(self) -> dict[float, "Model"]:
        """The model as further averages of the same training have it, by half-life in kimg (`TrainConfig.emas`).

        Each is what a training of that `ema_halflife_kimg` would have ended in; 0 is the weights as they are.
        """
        return {halflife: replace(self, snapshot=None, average=halflife) for halflife in self._training.get("emas", ())}

    @property
    def _training(self) -> dict:
        """Fields of its `TrainConfig`; of a model from elsewhere none."""
        return self.artifact.recipe.get("training", {})

    @property
    def weights(self) -> str:
        """What a score row says of them: 'ema', an average, or 'last', the weights as training left them."""
        own = self._training.get("ema_halflife_kimg") if self.average is None else self.average
        return "last" if own == 0 else "ema"

    @property
    def held(self) -> str:
        """The store key, with a snapshot's kimg ('model-1a2b#16') or an average's half-life ('model-1a2b~0')."""
        if self.snapshot is not None:
            return f"{self.artifact.key}#{self.snapshot:.12g}"
        return self.artifact.key if self.average is None else f"{self.artifact.key}~{self.average:.12g}"

    @property
    def name(self) -> str:
        """What a score row is a score of: `held`, and a digest of the path if it is seen on another than its own."""
        return f"{self.held}@{settings.path_name(self.path.spec())}" if self.path else self.held

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

    @cached_property
    def settings(self) -> dict:
        """Every setting of the whole lineage by its name ('kd.lr', 'edm.kimg'), without seeds: see `models.settings`.

        Those of a snapshot are those of its training, and of an average those of a training that has it for its own.
        """
        return settings.settings(self.artifact, self.average)

    @property
    def recipe_hash(self) -> str:
        """Ten hexadecimal digits of `settings`: the same for all seeds, also of teachers and pairs."""
        return settings.recipe_hash(self.settings)

    @property
    def saw(self) -> str | None:
        """What its training showed it: 'data', 'teacher images', 'both' or 'teacher'; None if not trained here."""
        return settings.saw(self.artifact)

    @property
    def teacher_seed(self) -> int | None:
        """Seed of its first teacher's training; its own if it has none; None of one from elsewhere."""
        return settings.teacher_seed(self.artifact)

    @property
    def spent(self) -> dict:
        """`Artifact.cost` of the whole lineage, of a snapshot up to it; None each where part was not trained here."""
        lineage = self.artifact.lineage()
        own = self.artifact.meta["cost"] if self.snapshot is None else self._spent_by_then()
        spent = store.total([own, *(artifact.meta["cost"] for artifact in lineage[1:])])
        foreign = any(artifact.recipe.get("method") == FOREIGN for artifact in lineage)
        return dict.fromkeys(spent) if foreign else spent

    def _spent_by_then(self) -> dict:
        """What the training itself had cost when it came to the snapshot, from the log's row of that step."""
        whole, last = self.artifact.meta["cost"], self.history[-1]
        step = next((row.step for row in self.history if row.kimg >= self.snapshot), last.step)
        rows = [row for row in self.history if row.step <= step]
        # The log has seconds of one rank, the record those of all.
        seconds = rows[-1].seconds * whole["seconds"] / last.seconds if last.seconds else 0.0
        passes = cost.summed(rows[-1].passes, whole.get("macs_of_one"))
        busy = cost.mean_busy(row.busy for row in rows)
        return {"kimg": rows[-1].kimg, "seconds": seconds, **passes, "busy": busy}

    @property
    def shape(self) -> tuple[int, int, int]:
        """(channels, height, width) of its images."""
        config = checkpoints.describe(self.artifact.folder)["network"]
        return config["in_channels"], config["img_resolution"], config["img_resolution"]

    def labels(self, indices: Sequence[int], seed: int = 0) -> Tensor | None:
        """Classes (n,) int64 that `sample` gives the images of these indices; None for an unconditional model.

        For a notebook that calls `denoiser` itself.
        """
        labels = sample_labels(seed, indices, self.class_counts, "sample")
        return None if labels is None else labels.to(device())


def stored() -> list[Model]:
    """Every whole model of the store, the last used first."""
    used = {}
    for folder in (path for path in store.root().glob("model-*") if "." not in path.name):
        with suppress(OSError):  # it is damaged, or was removed meanwhile
            used[folder] = (folder / store.META).stat().st_mtime_ns
    return [Model(store.Artifact(folder)) for folder in sorted(used, key=used.get, reverse=True)]


def check_whole(model: Model | None) -> None:
    """Raise OnestepError for a snapshot where a whole model is needed."""
    if model and model.snapshot is not None:
        raise OnestepError(f"{model.name} is a snapshot, which is only sampled; train a model of that budget instead")


@dataclass(frozen=True)
class Pairs:
    """Pairs (noise, image): of a teacher, or of real images and the noise that its ODE finds for them."""

    artifact: store.Artifact

    @cached_property
    def _stored(self) -> dict[str, Tensor]:
        return load_file(self.artifact.folder / "images.safetensors")

    @property
    def images(self) -> Tensor:
        """(n, c, h, w) float32, as the sampler left them."""
        return self._stored["images"]

    @cached_property
    def shape(self) -> tuple[int, int, int]:
        """(channels, height, width) of an image."""
        with safe_open(self.artifact.folder / "images.safetensors", "pt") as file:
            return tuple(file.get_slice("images").get_shape()[1:])

    @property
    def of_data(self) -> bool:
        """Whether the images are real ones, and not a teacher's."""
        return "images" in self.artifact.recipe

    @property
    def noise(self) -> Tensor:
        """(n, c, h, w) standard normal: stored where it was found, else made again from the seed."""
        if self.of_data:
            return self._stored["noise"]
        return sample_noise(self.artifact.recipe["seed"], range(len(self.images)), self.images.shape[1:], "pairs")

    @property
    def class_counts(self) -> list[int]:
        """As `Model.class_counts`, of the teacher."""
        return self.artifact.recipe["class_counts"]

    @property
    def labels(self) -> Tensor | None:
        """(n,) int64, or None for an unconditional teacher."""
        if self.of_data:
            return self._stored.get("labels")
        return sample_labels(self.artifact.recipe["seed"], range(len(self.images)), self.class_counts, "pairs")
