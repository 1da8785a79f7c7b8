"""How models were trained: unequal recipes get unequal labels, and the searches that chose a setting a table."""

import json
import re
from collections import Counter

import pandas as pd

from onestep_bench.report.statistics import run_means

_PLACE = ["dataset", "size", "sampler", "steps", "kimg", "saw"]
_MOST = 3  # settings that a label names
_SAW = re.compile(r"(,? +(on|from|saw))?[ ,(]+(data|teacher images|both)\)?$")


def results(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows that say something of a method: without those of searches, and no label of two recipes.

    Where models of one label, size, budget, sampler and number of steps differ in what they saw or in their recipe, the
    label is extended by what differs, from `attrs["recipes"]` ('KD (lr 0.001)'), or by the recipe's hash. A budget
    (kimg) alone is no difference: curves over it are drawn. Column `family` is the label without what was seen, so that
    'GDD, data' and 'GDD, teacher images' find each other. Rows that went through here come back as
    they are.
    """
    if "family" in rows:
        return rows
    kept = rows[rows["purpose"] != "search"].copy()
    kept.attrs = {"metrics": rows.attrs.get("metrics", {})}
    labels = extended(rows)
    kept["family"] = kept["label"].map(lambda label: _SAW.sub("", label))
    keys = zip(kept["label"], kept["saw"].fillna(""), kept["recipe"].fillna(""), strict=True)
    kept["label"] = [labels[label][saw, recipe] for label, saw, recipe in keys]
    return kept


def extended(rows: pd.DataFrame) -> dict[str, dict[tuple[str, str], str]]:
    """By label, and by (saw, recipe), each '' where it is not known: what `results` calls such a model."""
    kept = rows[rows["purpose"] != "search"]
    recipes = rows.attrs.get("recipes", {})
    return {label: _extended(label, own, recipes) for label, own in kept.groupby("label", sort=False)}


def _extended(label: str, own: pd.DataFrame, recipes: dict[str, dict]) -> dict[tuple[str, str], str]:
    """Of one label: the label of each (saw, recipe)."""
    own.attrs = {}  # pandas copies them, whole, at every step
    own = own.fillna({"saw": "", "recipe": ""})
    crowds = [set(recipe) for _, recipe in own.groupby(_PLACE, dropna=False)["recipe"] if recipe.nunique() > 1]
    settings = differing(sorted(set().union(*crowds)), recipes, set(own["method"]))
    texts = {recipe: described(recipe, settings, recipes) for recipe in set(own["recipe"])} if crowds else {}
    for crowd in crowds:
        often = Counter(texts[recipe] for recipe in crowd)
        texts |= {recipe: _hashed(recipe) for recipe in crowd if often[texts[recipe]] > 1}
    saws = set(own["saw"]) - {""}
    found = {}
    for saw, recipe in own[["saw", "recipe"]].drop_duplicates().itertuples(index=False):
        parts = [saw if len(saws) > 1 and not label.endswith((saw, f"{saw})")) else "", texts.get(recipe, "")]
        more = ", ".join(filter(None, parts))
        found[saw, recipe] = f"{label} ({more})" if more else label
    return found


def differing(hashes: list[str], recipes: dict[str, dict], methods: set[str]) -> list[str]:
    """Names of the settings in which recipes differ, those of the methods themselves first, without their budgets."""
    known = [recipes[one] for one in hashes if one in recipes]
    names = sorted(set().union(*known)) if len(known) > 1 else []
    own = {f"{method}.kimg" for method in methods}
    found = [name for name in names if len({_text(recipe.get(name)) for recipe in known}) > 1 and name not in own]
    return sorted(found, key=lambda name: (name.rpartition(".")[0] not in methods, name))


def described(recipe: str, settings: list[str], recipes: dict[str, dict]) -> str:
    """What a recipe has for these settings, in a few words; its hash if that is not known."""
    if recipe not in recipes or not settings:
        return _hashed(recipe)
    last = Counter(name.rpartition(".")[2] for name in settings)
    short = {name: name.rpartition(".")[2] for name in settings}
    words = [
        f"{short[name] if last[short[name]] == 1 else name} {_text(recipes[recipe].get(name))}"
        for name in settings[:_MOST]
    ]
    return ", ".join(words) + ("..." if len(settings) > _MOST else "")


def _hashed(recipe: str) -> str:
    return f"recipe {recipe[:8]}" if recipe else "recipe unknown"


def _text(value: object) -> str:
    if isinstance(value, float):
        return f"{value:g}"
    return value if isinstance(value, str) else "none" if value is None else json.dumps(value, sort_keys=True)


def _order(recipes: dict[str, dict], recipe: str, name: str) -> tuple[bool, float, str]:
    """Sort key of a setting: numbers by their size, before all else."""
    value = recipes.get(recipe, {}).get(name)
    number = isinstance(value, int | float)
    return not number, value if number else 0.0, str(value)


def search_table(rows: pd.DataFrame) -> pd.DataFrame:
    """What was tried to choose a setting: a line per recipe with its mean score, and which was chosen, the best.

    Columns: dataset, features, label, size, steps, setting (what differs between the recipes tried), fid (mean over
    runs of the means over sampling seeds), runs, chosen. Only scores against the training split count: a search sees
    no other.
    """
    searched = rows[(rows["purpose"] == "search") & (rows["split"] != "test")].fillna({"recipe": ""})
    recipes = rows.attrs.get("recipes", {})
    columns = ["dataset", "features", "label", "size", "steps", "setting", "fid", "runs", "chosen"]
    lines = []
    place = ["dataset", "features", "protocol", "label", "size", "sampler", "steps"]
    for (dataset, features, _, label, size, _, steps), own in searched.groupby(place, sort=True):
        settings = differing(sorted(set(own["recipe"])), recipes, set())
        runs = run_means(own, ["recipe"]).groupby("recipe")["fid"]
        means = runs.agg(lambda values: values.mean(skipna=False))
        if len(means) < 2:  # a teacher beside what was searched
            continue
        for recipe, fid in sorted(
            means.items(), key=lambda item: [_order(recipes, item[0], name) for name in settings]
        ):
            setting = described(recipe, settings, recipes)
            chosen = bool(fid == means.min())
            lines.append([dataset, features, label, size, steps, setting, fid, int(runs.size()[recipe]), chosen])
    return pd.DataFrame(lines, columns=columns)
