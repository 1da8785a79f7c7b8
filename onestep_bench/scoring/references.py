"""Who judges, and against what: extractors by name, and references judged once and kept in the store."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from onestep_bench import store
from onestep_bench.data import arrays, pickles
from onestep_bench.data.registry import Dataset
from onestep_bench.data.splits import WHOLE
from onestep_bench.errors import OnestepError, near_miss
from onestep_bench.models import cost
from onestep_bench.scoring import judges, judging
from onestep_bench.scoring.judges import FeatureExtractor, classifier, clip, dinov2
from onestep_bench.scoring.judges.weights import at_hand
from onestep_bench.scoring.judging import Judged
from onestep_bench.scoring.recipe import recipe_for, steps_for
from onestep_bench.store.files import file_digest, replacing
from onestep_bench.training import ranks, together
from onestep_bench.training.ranks import device, device_name

# What EDM2's reference files call the statistics of each judge; EDM's older files hold those of Inception alone.
_KEYS = {"inception": "fid", "inception-legacy": "fid", "dinov2": "fd_dinov2"}

_MODERN = {"clip": clip.URL, "dinov2": dinov2.URL}

_DIGITS = (1, 8, 8)
_CLASSIFIER = "scoring.judges.classifier"  # its file, to the store


def names() -> list[str]:
    """All judges."""
    return sorted([*judges.names(), "classifier"])


def judge_in(network: str) -> str | None:
    """The judge that a network's name tells of, 'clip' in 'timm:vit_base_patch16_clip_224'; None if there is none."""
    return next((judge for judge in names() if _folded(judge) in _folded(network)), None)


def _folded(name: str) -> str:
    return name.lower().replace("-", "").replace("_", "")


@dataclass(frozen=True)
class Statistics:
    """A file of published reference statistics (mu, sigma), in place of the images of a data set.

    name: the data set. path: .npz, or .pkl of numpy arrays, as NVlabs/edm and edm2 publish them.
    """

    name: str
    path: Path

    @cached_property
    def digest(self) -> str:
        """16 hexadecimal digits of the file."""
        return _readable(file_digest, self.path)[:16]


def source_of(extractor: FeatureExtractor) -> list[str]:
    """Where the source of what a judge finds begins, for `store.memo`."""
    maker = judges.maker(extractor.name)
    made = [store.origin(maker)] if maker else [f"{_CLASSIFIER}:judge", f"{_CLASSIFIER}:Classifier"]
    return [*made, "scoring.judges:FeatureExtractor", "scoring.judging:judged"]


def judge(name: str, against: Dataset | Statistics, *, fresh: bool = False) -> FeatureExtractor:
    """The judge of that name on `device()`, such as it is against the split of `against`.

    `classifier` is trained, or found in the store: on the images to train on, whichever split it judges against.
    `auto` is the judge that fits `against` and needs no download: that of the digits, else `classifier` where there are
    labels, else `random-features`. fresh: as `store.memo` takes it.
    Raises OnestepError for an unknown name, damaged or missing weights, and a classifier without labelled images.
    """
    name = _fitting(against) if name == "auto" else name
    if name not in names():
        raise OnestepError(f"unknown feature extractor {name!r}{near_miss(name, names())}")
    if name == "classifier":
        return _classifier(against, fresh)
    if isinstance(against, Statistics):
        return judges.load_extractor(name, device(), split=WHOLE)
    return judges.load_extractor(name, device(), split=against.split, channels=against.channels)


def panel(features: Sequence[str], against: Dataset | Statistics) -> list[str]:
    """Names of the judges that score: those named, `auto` as in `judge`, and where that is one alone, a second.

    A second that is no kin of the first: `pixels`, or the one that fits where `pixels` was named; beside Inception,
    whose classes are ImageNet's, those of CLIP and DINOv2 that are at hand. Published statistics are of one judge, and
    have no second.
    Raises OnestepError where none is named, and as `judge` does for `auto`.
    """
    named = list(dict.fromkeys(_fitting(against) if name == "auto" else name for name in features))
    if not named:
        raise OnestepError("no judge is named; name one, or 'auto'")
    if len(named) > 1 or isinstance(against, Statistics):
        return named
    if named == ["pixels"]:
        return [*named, _fitting(against)]
    modern = [name for name, url in _MODERN.items() if at_hand(url)] if inceptions(named[:1]) else []
    return [*named, *(modern or ["pixels"])]


def inceptions(names: Sequence[str]) -> list[str]:
    """Those of the names that are Inception's, whose statistics are what is published."""
    return [name for name in names if name.startswith("inception")]


def _fitting(against: Dataset | Statistics) -> str:
    if against.name == "digits" and getattr(against, "shape", _DIGITS) == _DIGITS:
        return "digits"
    if isinstance(against, Statistics):
        raise OnestepError(f"which judge made {against.path} it does not say; name it in place of 'auto'")
    if against.labels is not None:
        return "classifier"
    if "random-features" in names():
        return "random-features"
    raise OnestepError(
        f"{against.name} has no labels, so no judge can be trained for it here; features: inception may do"
    )


def _classifier(data: Dataset | Statistics, fresh: bool) -> FeatureExtractor:
    if not isinstance(data, Dataset) or data.labels is None:
        raise OnestepError(f"the 'classifier' judge learns from labelled images, and {data.name} has no labels here")
    data = data.on("train") if data.splits else data
    recipe = {
        "method": "judge",
        "version": recipe_for(data.channels).version,
        "data": data.digest,
        "steps": steps_for(len(data), data.channels),
    }

    def make(folder: Path) -> dict:
        checkpoint = folder / "checkpoint.pt"
        network, held, last = classifier.train(data.images, data.labels, device(), checkpoint)
        unseen = [(data.images[held], data.labels[held])]
        if data.splits:
            test = data.on("test")
            unseen.append((test.images, test.labels))
        if ranks.leads():
            accuracy = classifier.accuracy(network, *unseen)
            state = {key: value.cpu().contiguous() for key, value in network.state_dict().items()}
            with replacing(folder / "classifier.safetensors") as temporary:
                save_file(state | {"accuracy": torch.tensor(accuracy, dtype=torch.float64)}, temporary)
            checkpoint.unlink(missing_ok=True)
        return together.spent(last.kimg, last.seconds)

    source = [f"{_CLASSIFIER}:train"]
    path = together.memo("judge", recipe, [], make, source=source, fresh=fresh).folder / "classifier.safetensors"
    state = load_file(path)
    accuracy = state.pop("accuracy").item()
    network = classifier.Classifier(data.channels, data.num_classes)
    network.load_state_dict(state)
    return classifier.judge(
        network,
        trained_on=_told(data),
        accuracy=accuracy,
        digest=file_digest(path),
        shape=data.shape,
        device=device(),
    )


def reference(extractor: FeatureExtractor, against: Dataset | Statistics, *, fresh: bool = False) -> Judged:
    """What the judge makes of the reference. That of images is kept in the store by the hashes of both.

    fresh: as `store.memo` takes it.

    Raises OnestepError for statistics that are damaged or of another width.
    """
    if isinstance(against, Statistics):
        return _published(extractor, against)
    recipe = {"version": 3, "extractor": extractor.digest, "protocol": extractor.protocol, "data": against.digest}
    recipe |= {"kept": judging.KEPT, "device": device().type}

    def make(folder: Path) -> dict:
        clock = cost.Stopwatch()
        found = judging.judged(extractor, against.images.split(extractor.batch), len(against))
        judging.save(found, folder / "reference.safetensors")
        return {"kimg": 0.0, "seconds": clock.seconds, "device": device_name()}

    artifact = store.memo("reference", recipe, [], make, source=source_of(extractor), fresh=fresh)
    return judging.load(artifact.folder / "reference.safetensors")


def protocol(extractor: FeatureExtractor, samples: int, against: Dataset | Statistics) -> str:
    """What two scores must share to be comparable, in one line."""
    what = f"{len(against)} images" if isinstance(against, Dataset) else "published statistics"
    return f"{extractor.protocol}; {samples} samples; reference {_told(against)}, {what}"


def _told(data: Dataset | Statistics) -> str:
    """Name, split where there are several, and hash: digits/test@0123456789abcdef."""
    split = f"/{data.split}" if isinstance(data, Dataset) and data.splits else ""
    return f"{data.name}{split}@{data.digest}"


def _published(extractor: FeatureExtractor, statistics: Statistics) -> Judged:
    values = _readable(_read_npz if statistics.path.suffix == ".npz" else _read_pickle, statistics.path)
    if isinstance(values.get(_KEYS.get(extractor.name)), dict):
        values = values[_KEYS[extractor.name]]
    try:
        mu, cov = (np.asarray(values[key], np.float64) for key in ("mu", "sigma"))
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise OnestepError(f"{statistics.path} holds no mu and sigma for {extractor.name}; use another file") from error
    if mu.shape != (extractor.dim,) or cov.shape != (extractor.dim, extractor.dim):
        raise OnestepError(
            f"{statistics.path} has mu {mu.shape} and sigma {cov.shape}, but {extractor.name} features have width "
            f"{extractor.dim}; use statistics of the same judge"
        )
    if not (np.isfinite(mu).all() and np.isfinite(cov).all()):
        raise OnestepError(f"{statistics.path} holds NaN or infinity; fetch it again")
    if not np.allclose(cov, cov.T, atol=1e-6 * abs(cov).max()) or cov.diagonal().min() < 0:
        raise OnestepError(f"{statistics.path}: sigma is no covariance, which is symmetric; fetch it again")
    return Judged(0, mu, cov)  # of how many images, the file does not say


def _read_npz(path: Path) -> dict:
    return arrays.read_npz(path)


def _read_pickle(path: Path) -> dict:
    return dict(pickles.read(path))


def _readable(read, path: Path):
    try:
        return read(path)
    except OnestepError:
        raise
    except OSError as error:
        raise OnestepError(f"cannot read {path}: {error.strerror or error}; correct the path") from error
    except Exception as error:  # damaged pickles and zips can raise anything
        raise OnestepError(f"{path} is damaged ({type(error).__name__}); fetch it again") from error
