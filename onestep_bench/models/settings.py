"""How a model was trained, over its whole lineage and without seeds: what runs that differ in luck alone share."""

import hashlib
import json
import math
from types import SimpleNamespace

from onestep_bench import methods, store

FOREIGN = "foreign"  # in place of a method's name: a model that was not trained here
_PAIRS = "pairs"  # kind of an artifact, and what a recipe says of its data


def settings(artifact: store.Artifact, average: float | None = None) -> dict:
    """Every setting of the lineage by its name, {"kd.lr": 0.0002, "pairs.n": 8192, "edm.kimg": 400.0}: JSON-able.

    Each artifact has its method's name (pairs 'pairs'), and a number if one that is nearer has the same: 'progressive',
    'progressive2'. By these names they also say of each other who was the teacher. Seeds are left out, and snapshots
    and further averages, which decide no weights. average: half-life (kimg) of the one that is meant, if not its own.
    """
    names = _names(artifact)
    found = {
        f"{names[one.key]}.{setting}": _as_json(value)
        for one in artifact.lineage()
        for setting, value in _own(one, names).items()
    }
    return found if average is None else found | {f"{names[artifact.key]}.ema_halflife_kimg": average}


def recipe_hash(found: dict) -> str:
    """Ten hexadecimal digits of `settings`: the same for all seeds."""
    return hashlib.sha256(json.dumps(found, sort_keys=True).encode()).hexdigest()[:10]


def _names(artifact: store.Artifact) -> dict[str, str]:
    """By key, the name of each artifact of the lineage."""
    names: dict[str, str] = {}
    counts: dict[str, int] = {}
    for one in artifact.lineage():
        plain = one.recipe.get("method") or _kind(one.key)
        counts[plain] = counts.get(plain, 0) + 1
        names[one.key] = plain if counts[plain] == 1 else f"{plain}{counts[plain]}"
    return names


def _own(artifact: store.Artifact, names: dict[str, str]) -> dict:
    """Settings of one artifact."""
    given = dict(artifact.recipe)
    left_out = ("method", "seed", "snapshots", "role", "model", "class_counts", "config", "training")
    found = {name: value for name, value in given.items() if name not in left_out}
    found |= given.get("config", {}) | given.get("training", {})
    found.pop("emas", None)
    found |= {role: _told(held, names) for role, held in given.get("role", {}).items()}
    found["classes"] = len(given.get("class_counts", ()))
    if "path" in given:
        found["path"] = path_name(given["path"])
    if given.get("data") == _PAIRS:
        found["data"] = names[_pairs_of(artifact)]
    if _kind(artifact.key) == _PAIRS:
        found["teacher"] = names[artifact.meta["parents"][0]]
    return found


def _as_json(value: object) -> object:
    """JSON has no infinity: a bound that is none is 'inf'."""
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def _told(held: str, names: dict[str, str]) -> str:
    """The name of a model by `Model.held`, with the half-life of its average if that is not its own ('edm~0')."""
    key, mark, average = held.partition("~")
    return f"{names[key]}{mark}{average}"


def path_name(spec: dict) -> str:
    """Name of a path and a digest of what `Path.spec` says: a VP path has as many numbers as levels."""
    digest = hashlib.sha256(json.dumps(spec, sort_keys=True).encode()).hexdigest()[:8]
    return f"{spec['name']}-{digest}"


def saw(artifact: store.Artifact) -> str | None:
    """What the training of a model showed it: 'data', 'teacher images', 'both' or 'teacher'; None if not trained here.

    'teacher' of one that was shown no image of either, and asked its teacher of its own.
    Pairs made of real images are data. A method that asks its teacher along the way has seen what that knows, too.
    """
    recipe = artifact.recipe
    if recipe["method"] == FOREIGN:
        return None
    method = methods.get(recipe["method"]) if recipe["method"] in methods.names() else None  # of a missing plug-in
    # As it was kept: of what is read of it, all is there, and no more is checked again.
    if method and not method.looks_at_data(SimpleNamespace(**recipe.get("config", {}))):
        return "teacher"
    if recipe["data"] == _PAIRS and "images" not in _sibling(artifact, _pairs_of(artifact)).recipe:
        return "teacher images"
    return "both" if method and method.follows_teacher else "data"


def teacher_seed(artifact: store.Artifact) -> int | None:
    """Seed of the training that all began with: of the teacher's teacher, or its own; None of one from elsewhere."""
    while parents := artifact.meta["parents"]:
        artifact = _sibling(artifact, parents[0])  # the pairs, or the teacher, or the model it started from
    return artifact.recipe["seed"]


def _kind(key: str) -> str:
    return key.split("-")[0]


def _pairs_of(artifact: store.Artifact) -> str:
    return next(key for key in artifact.meta["parents"] if _kind(key) == _PAIRS)


def _sibling(artifact: store.Artifact, key: str) -> store.Artifact:
    return store.Artifact(artifact.folder.parent / key)
