"""What a notebook calls: train, make_pairs, evaluate, record. What takes long is memoised in the store.

Ranks (see `ranks`) call the same functions and work on the same artifact: rank 0 holds its lock, writes and commits.
"""

import copy
import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, fields
from pathlib import Path

import torch

from onestep_bench import methods, networks, store
from onestep_bench.data.registry import Dataset
from onestep_bench.denoiser import Denoiser
from onestep_bench.errors import OnestepError, near_miss
from onestep_bench.models import checkpoints, cost, zoo
from onestep_bench.models.model import FOREIGN, Model, Pairs, check_whole
from onestep_bench.models.pairing import invert_pairs, make_pairs  # noqa: F401  (a notebook calls them here)
from onestep_bench.models.pretrained import find, is_key, load_pretrained
from onestep_bench.models.sampling import sample  # noqa: F401
from onestep_bench.models.snapshots import average_weights, checked, kept_at
from onestep_bench.scoring import references
from onestep_bench.scoring.evaluation import evaluate_images  # noqa: F401
from onestep_bench.scoring.published import evaluate  # noqa: F401  (a notebook calls study.evaluate)
from onestep_bench.scoring.rows import MIME, bundle
from onestep_bench.seeds import seed_for
from onestep_bench.store.files import file_digest, write_json
from onestep_bench.training import augment, ranks, together
from onestep_bench.training.config import TrainConfig
from onestep_bench.training.loop import fit
from onestep_bench.training.ranks import device
from onestep_bench.training.source import Source
from onestep_bench.training.state import LogRow

# See `train`: a row of the log, and the student's averaged denoiser at that moment.
Track = Callable[[LogRow, Denoiser], None]


def train(
    method: str,
    data: Dataset | Pairs,
    *,
    kimg: float,
    size: str | None = None,
    seed: int = 0,
    teacher: Model | None = None,
    init: Model | None = None,
    conditional: bool | None = None,
    snapshots: Sequence[float] = (),
    fresh: bool = False,
    track: Track | None = None,
    **options,
) -> Model:
    """Train a model, or find it in the store.

    method: a name of `methods.names()`. data: images, or pairs for a method that trains on pairs; one that trains on
    images and is given pairs sees their images (a teacher's, in place of real ones) and not their noise. kimg:
    thousands of images seen. size: named network size, by default that of `init`. init: a model whose averaged weights
    the student starts from; `Model.averages` has others. conditional: whether it is told classes; by default as its
    teacher is, or the teacher of the pairs.
    snapshots: kimg, rising to at most the budget, at which averaged weights are kept as well, for `Model.snapshots`.
    fresh: train again what other source trained, see `store.memo`; without it such a model is refused.
    track: called `track(row, student)` on rank 0 with each row of the log (of a run that goes on, first those there
    were) and the student's average of that moment: what draws a live figure (`explore.watch`) or feeds a tracker, as in
    params/README.md. One with a `close` is closed as the training ends or is interrupted. A model that is found is not
    tracked; what it raises ends the training, which can go on.
    options: fields of the method's config and of `TrainConfig`.
    Raises OnestepError for an unknown method, size or option, for data or a teacher that does not fit the method, and
    for a method that would look through a network that judges.
    """
    chosen = methods.get(method)
    if conditional is None:
        conditional = bool((teacher or data).class_counts) if teacher or isinstance(data, Pairs) else False
    _check_inputs(chosen, data, size, teacher, init, conditional)
    # A share of a budget, 307.2 / 12 say, is the same artifact as 25.6 is.
    config, training = _configs(chosen, options | {"kimg": float(f"{kimg:.12g}")})
    _check_independence(chosen, config)
    _check_augment(chosen, training, init)
    size = size or init.size
    class_counts = init.class_counts if init else _class_counts(data, conditional)
    recipe = {
        "method": chosen.name,
        "version": chosen.version,
        "size": size,
        "class_counts": class_counts,
        "config": asdict(config),
        "training": asdict(training) | {"betas": list(training.betas), "emas": list(training.emas)},
        "seed": seed,
        "data": data.digest if isinstance(data, Dataset) else "pairs",
        "role": {key: model.held for key, model in (("teacher", teacher), ("init", init)) if model},
    }
    kept = checked(snapshots, training)
    recipe |= {"snapshots": kept} if kept else {}
    given = [data if isinstance(data, Pairs) else None, teacher, init]
    parents = {item.artifact.key: item.artifact for item in given if item}.values()

    def make(folder: Path) -> dict:
        student = _student(chosen, config, training, data, size, class_counts, seed, init, teacher)
        nets = methods.Nets(student, teacher.denoiser if teacher else None)
        torch.manual_seed(seed_for(seed, "auxiliary"))
        nets.auxiliary = {name: net.to(device()) for name, net in chosen.auxiliary(nets, config).items()}
        averages = _averages(student, training)
        rows = _fit_with_bar(chosen, nets, config, training, data, seed, folder, kept, averages, track)
        if ranks.leads():
            checkpoints.save(averages.pop(training.ema_halflife_kimg), folder)
            for halflife, average in averages.items():
                checkpoints.save_weights(average, folder / average_weights(halflife))
            write_json(folder / "log.json", [asdict(row) for row in rows])
            (folder / "checkpoint.pt").unlink(missing_ok=True)
        note = {"data": data.name} if isinstance(data, Dataset) else {}  # for people: the recipe has its digest
        work = cost.work(_asked(nets), rows[-1].passes, data.shape) | {"busy": cost.mean_busy(row.busy for row in rows)}
        return together.spent(training.steps * training.batch_size / 1000, rows[-1].seconds, **work) | note

    source = _source_of(chosen, None if init else size)
    return Model(together.memo("model", recipe, parents, make, source=source, fresh=fresh))


def _source_of(method: methods.Method, size: str | None) -> list[str]:
    """Where the source that trains begins: the method, what every step does, and the network that is made."""
    loop = ["training.loop:_step", "training.loop:_update_averages", "training.precision:casting"]
    common = ["training.state:Run", "training.source:Source", "training.config:TrainConfig", "study:_student"]
    sizes = [f"networks.sizes:SIZES[{size}]"] if size else []
    return [f"{method.objective.__module__}:register({method.name})", *loop, *common, *sizes]


def pretrained(source: str | Path, data: Dataset | None = None, *, resolution: int | None = None) -> Model:
    """A model that was not trained here, as an artifact of the store: for `teacher=`, `init=`, pairs and scores.

    source: as `models.load_pretrained` takes it; a model of this store is that model, with its cost. Of any other
    the cost of training is not known and counts as nothing. data: the images it is to be used on, which it must fit;
    samples of a conditional model are labelled in their proportions, else evenly. resolution: see `load_pretrained`,
    by default that of data.
    """
    path = find(source)
    if (path / store.META).exists() and path.resolve().parent == store.root().resolve():
        return Model(store.Artifact(store.root() / path.resolve().name))
    denoiser = load_pretrained(path, resolution=resolution or (data.resolution if data else None))
    digest = file_digest(path / checkpoints.WEIGHTS if path.is_dir() else path)
    recipe = {
        "method": FOREIGN,
        "version": 1,
        "source": digest,
        "model": denoiser.spec(),
        "size": networks.size_of(denoiser.net),
        "class_counts": _import_counts(denoiser.num_classes, data),
        "seed": None,
    }

    def make(folder: Path) -> dict:
        checkpoints.save(denoiser, folder)
        write_json(folder / "log.json", [])
        note = "trained elsewhere; what that cost is not known"
        return together.spent(0.0, 0.0) | {"note": note}

    model = Model(store.memo("model", recipe, [], make))
    if data:
        _check_fit(model, data, "the model")
    return model


def _import_counts(classes: int, data: Dataset | None) -> list[int]:
    if not classes or data is None or not data.class_counts:
        return [1] * classes
    if data.num_classes != classes:
        raise OnestepError(f"the model knows {classes} classes and {data.name} has {data.num_classes}; use other data")
    return data.class_counts


def teacher(
    method: str, data: Dataset, *, size: str, kimg: float, seed: int = 0, conditional: bool = False, **options
) -> Model:
    """The teacher that a notebook's parameters name: trained by a method, or taken from where `pretrained` takes it.

    method: a name of `methods.names()`, or the path, address, store key or known name of a model, for which all else
    says nothing, since it is what it is. options: as `train` takes them. Raises OnestepError for what is neither.
    """
    if method in methods.names():
        return train(method, data, size=size, kimg=kimg, seed=seed, conditional=conditional, **options)
    if method in zoo.NAMES or "/" in method or is_key(method) or os.path.exists(method):
        return pretrained(method, data)
    known = [*methods.names(), *zoo.NAMES]
    raise OnestepError(f"teacher {method!r} is neither a method nor the path of a model{near_miss(method, known)}")


def _check_fit(model: Model, data: Dataset | Pairs, what: str) -> None:
    if tuple(model.shape) != tuple(data.shape):
        made, given = ("x".join(map(str, shape)) for shape in (model.shape, data.shape))
        raise OnestepError(f"{what} makes images of {made} and the data have {given}; use data of its size")


def _check_inputs(method, data, size, teacher, init, conditional) -> None:
    if method.data == "pairs" and not isinstance(data, Pairs):
        raise OnestepError(f"{method.name} trains on pairs, not on images; see make_pairs")
    if method.needs_teacher and teacher is None:
        raise OnestepError(f"{method.name} needs a teacher; pass teacher=")
    if size is None and init is None:
        raise OnestepError(f"{method.name} needs a size or an init model; known sizes: {', '.join(networks.SIZES)}")
    for model in (teacher, init):
        check_whole(model)
        if model and model.class_counts and not data.class_counts:
            raise OnestepError(f"{model.artifact.key} is conditional, and the data have no labels; use labelled data")
        if model and model.class_counts and len(model.class_counts) != len(data.class_counts):
            raise OnestepError(
                f"{model.artifact.key} knows {len(model.class_counts)} classes and the data have "
                f"{len(data.class_counts)}; use other data"
            )
        if model:
            _check_fit(model, data, model.artifact.key)
    if teacher and not init and bool(teacher.class_counts) != conditional:
        wanted = "a conditional" if teacher.class_counts else "an unconditional"
        raise OnestepError(f"the teacher wants {wanted} student; pass conditional={bool(teacher.class_counts)}")
    if init and size not in (None, init.size):
        raise OnestepError(f"size {size} differs from the init model's {init.size}; leave size out")


def _check_independence(method, config) -> None:
    """A method on the judge's own features would mark its own homework."""
    for network in method.looks_through(config):
        if judge := references.judge_in(network):
            raise OnestepError(
                f"{method.name} would look through {network!r}, which is what the {judge!r} judge of samples sees, so "
                "its scores would mean nothing; choose another network"
            )


def _check_augment(method, training: TrainConfig, init: Model | None) -> None:
    if not training.augment:
        return
    if not (method.augments and method.data == "images"):
        raise OnestepError(
            f"{method.name} does not tell its network of augmentation, and so would learn to make augmented images; "
            "leave augment at 0"
        )
    if init and init.denoiser.augment_dim != augment.LABELS:
        raise OnestepError(
            f"{init.artifact.key} was not built to be told of augmentation; leave augment at 0, or init out"
        )


def _configs(method, options: dict) -> tuple[object, TrainConfig]:
    own = {field.name for field in fields(method.config)}
    common = {field.name for field in fields(TrainConfig)}
    for name in options:
        if name not in own | common:
            raise OnestepError(f"{method.name} has no option {name!r}{near_miss(name, own | common)}")
    # 200 and 200.0 are one budget, and must be one key.
    floats = {field.name for field in (*fields(method.config), *fields(TrainConfig)) if field.type in (float, "float")}
    try:
        options = {name: float(value) if name in floats else value for name, value in options.items()}
    except (TypeError, ValueError) as error:
        raise OnestepError(f"{method.name}: {error}; a number is needed") from error
    config = method.config(**{name: value for name, value in options.items() if name in own})
    training = method.training | {name: value for name, value in options.items() if name in common}
    return config, TrainConfig(**training)


def _class_counts(data: Dataset | Pairs, conditional: bool) -> list[int]:
    if not conditional:
        return []
    if not data.class_counts:
        raise OnestepError("conditional training needs labels, and the data have none")
    return data.class_counts


def _student(method, config, training, data, size, class_counts, seed, init, teacher) -> Denoiser:
    if init:
        start = checkpoints.load(init.artifact.folder, str(device()), init.file, training.dropout)
        net, native = start.net.requires_grad_(True), start.native
    else:
        shape = data.shape
        torch.manual_seed(seed_for(seed, "init"))
        told = augment.LABELS if training.augment else 0
        classes, dropout = len(class_counts), training.dropout
        net = networks.sized(size, shape[-1], shape[0], classes, dropout, augment_dim=told).to(device())
        native = None
    if method.two_times and not net.two_times:
        torch.manual_seed(seed_for(seed, "second time"))
        net.add_second_time()
    return method.student(config, net, native, teacher.denoiser if teacher else None).train()


def _asked(nets: methods.Nets) -> dict[str, torch.nn.Module]:
    """All networks of a run, by name."""
    return {"student": nets.student, **nets.auxiliary} | ({"teacher": nets.teacher} if nets.teacher else {})


def _averages(student: Denoiser, training: TrainConfig) -> dict[float, Denoiser]:
    """What becomes the student's averages, by half-life, the model's own first; that of 0 is the student itself."""
    return {
        halflife: copy.deepcopy(student).eval().requires_grad_(False) if halflife else student
        for halflife in (training.ema_halflife_kimg, *training.emas)
    }


def _fit_with_bar(method, nets, config, training, data, seed, folder, snapshots, averages, track) -> list[LogRow]:
    labels = data.labels if nets.student.num_classes else None
    source = Source(data.images, labels, data.noise if method.data == "pairs" else None, device())
    rows = []
    images = training.steps * training.batch_size
    # smoothing=0: by the mean speed, since rows of earlier runs come all at once.
    with together.bar(total=images, unit="img", unit_scale=True, smoothing=0, desc=method.name) as bar:
        objective = method.objective(nets, config)
        steps = fit(
            objective,
            {"student": nets.student, **nets.auxiliary},
            source,
            training,
            seed=seed_for(seed, "train"),
            adams=method.adams(config, training.betas),
            averages={halflife: average for halflife, average in averages.items() if halflife},
            group=method.group(config),
            networks=_asked(nets),
            after=kept_at(averages[training.ema_halflife_kimg], folder, snapshots, training),
            checkpoint=folder / "checkpoint.pt",
            checkpoint_seconds=float(seconds) if (seconds := os.environ.get("ONESTEP_CHECKPOINT_SECONDS")) else None,
            name=method.name,
        )
        try:
            for row in steps:
                rows.append(row)
                bar.start_t = time.time() - row.seconds  # those of earlier runs too, whose images these are
                bar.update(row.step * training.batch_size - bar.n)
                bar.set_postfix(row.losses)
                if track and ranks.leads():
                    track(row, averages[training.ema_halflife_kimg])
        except KeyboardInterrupt as interrupt:  # that came between two steps: `fit` keeps what it has
            try:
                steps.throw(interrupt)
            finally:
                _close(track)
    _close(track)
    return rows


def _close(track: Track | None) -> None:
    if ranks.leads() and hasattr(track, "close"):
        track.close()


def record(*bundles: dict) -> None:
    """Show score bundles as a table; in a notebook, leave them in its output: an executed notebook is the record."""
    import pandas as pd

    rows = [row for bundle in bundles for row in bundle["rows"]]
    strips = [strip for bundle in bundles for strip in bundle["strips"]]
    metrics, recipes = (
        {name: value for bundle in bundles for name, value in bundle.get(key, {}).items()}
        for key in ("metrics", "recipes")
    )
    table = _table(pd.DataFrame(rows), ["nn_ratio", "precision", "recall", "class_gap", *metrics])
    text = table.round(2).to_string()
    # Where a notebook or a shell of IPython runs, it is imported.
    if "IPython" not in sys.modules or sys.modules["IPython"].get_ipython() is None:
        print(text)
        return
    from IPython.display import display

    record = bundle(rows, strips, metrics, recipes)
    display({MIME: record, "text/plain": text, "text/html": table.round(2).to_html()}, raw=True)


def _table(rows, qualities: list[str]):
    """A line for each model, sampler and number of steps: means over sampling seeds.

    Distances have a column for each judge and split; qualities are as the first judge sees them.
    """
    import pandas as pd

    keys = ["label", "size", "kimg", "passes", "sampler", "steps", "nfe", "model"]
    # What a judge cannot tell, or a model from elsewhere has not, is None, which has no mean; NaN has.
    rows = rows.astype(dict.fromkeys([*qualities, "kimg", "passes"], float))
    first = rows["features"].iloc[0]
    columns = {}
    for (judge, split), group in sorted(
        rows.groupby(["features", "split"]), key=lambda item: (item[0][0] != first, item[0])
    ):
        columns[f"{judge}, {split}"] = group.groupby(keys, sort=False, dropna=False)["fid"].mean()
    split = "test" if "test" in set(rows["split"]) else rows["split"].iloc[0]
    seen = rows[(rows["features"] == first) & (rows["split"] == split)].groupby(keys, sort=False, dropna=False)
    columns["±"] = seen["fid"].std()
    columns |= {name: seen[name].mean() for name in qualities}
    lines = rows.groupby(keys, sort=False, dropna=False)["fid"].mean().index
    return pd.DataFrame(columns).reindex(lines).droplevel("model")
