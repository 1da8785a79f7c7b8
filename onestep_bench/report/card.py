"""The card of a model that is shared: what it is, how it was trained, what it scores and what it cost."""

from collections import defaultdict

import numpy as np
import yaml

from onestep_bench.report.statistics import interval
from onestep_bench.units import count, duration

_PLACE = ("dataset", "split", "protocol", "sampler", "steps")


def card(name: str, facts: dict[str, str], told: dict, rows: list[dict], licence: str = "") -> str:
    """README.md, whose header the Hub reads.

    facts: of the network, see `pretrained.facts`. told: see `models.hub.about`. rows: score rows of a record, of which
    those of this model count, and for intervals its recipe's other training runs; rows of a search do not. licence: as
    the Hub names one.
    """
    lines = _scores(told, [row for row in rows if row["purpose"] != "search"])
    header = {"library_name": "onestep_bench", "tags": ["onestep-bench", "diffusion", "image-generation"]}
    header |= {"license": licence} if licence else {}
    finite = [_result(line) for line in lines if np.isfinite(line["fid"])]
    header |= {"model-index": [{"name": name, "results": finite}]} if finite else {}
    parts = [
        f"---\n{yaml.safe_dump(header, sort_keys=False)}---",
        f"# {name}",
        _origin(told) + _licence(told, licence),
        _table(("", ""), list(facts.items())),
        f"```\nonestep-bench pull REPOSITORY -o {name}\nonestep-bench sample {name}/{_asked(lines)} -o sheet.png\n```",
    ]
    if lines:
        parts += [
            "## Scores",
            _about_scores(lines),
            _table(_HEADINGS, [_cells(line) for line in lines]),
            _protocols(lines),
        ]
    if told.get("cost"):
        parts += ["## Cost", _cost(told["cost"])]
    if told.get("settings"):
        parts += ["## Settings", _table(("setting", "value"), sorted(told["settings"].items()))]
    return "\n\n".join(parts) + "\n"


def _origin(told: dict) -> str:
    if "method" in told and told["method"] != "foreign":
        return f"Trained by `{told['method']}` of onestep_bench (`{told['model']}` in the store it comes from)."
    source = told.get("source", {})
    return f"Read from `{source.get('file') or source.get('name', 'a file')}`."


def _licence(told: dict, licence: str) -> str:
    """What the header cannot say: whose licence binds weights that were made from somebody else's."""
    if "method" not in told or told["method"] == "foreign":
        return " Its weights stay under their own licence."
    if told.get("cost", {}).get("kimg", 0) is None:
        return " Part of its lineage was trained elsewhere, whose licence may bind these weights too."
    return "" if licence else " No licence was named for its weights."


def _scores(told: dict, rows: list[dict]) -> list[dict]:
    """A line for each judge, split, sampler and number of steps: means over sampling seeds, interval over runs."""
    own = [row for row in rows if row["model"] == told.get("model")]
    recipes = {row["recipe"] for row in own} - {None}
    places: dict[tuple, list[dict]] = defaultdict(list)
    for row in own:
        places[tuple(row[key] for key in _PLACE)].append(row)
    lines = []
    for place, found in sorted(places.items(), key=lambda item: tuple(map(str, item[0]))):
        runs: dict[str, list[float]] = defaultdict(list)
        for row in rows:
            if (
                row["recipe"] in recipes
                and tuple(row[key] for key in _PLACE) == place
                and row["size"] == found[0]["size"]
            ):
                runs[row["model"]].append(float(row["fid"]))  # JSON has no NaN: kernels write 'nan'
        bounds = interval([np.mean(values) for values in runs.values()])
        fids = [float(row["fid"]) for row in found]
        lines.append(found[0] | {"fid": float(np.mean(fids)), "seeds": len(fids), "runs": len(runs), "bounds": bounds})
    return lines


_HEADINGS = (
    "data set",
    "split",
    "judge",
    "sampler",
    "steps",
    "NFE",
    "samples",
    "Frechet distance",
    "floor",
    "95 % over runs",
)


def _cells(line: dict) -> tuple:
    low, high = line["bounds"]
    over = f"{low:.4g} to {high:.4g} ({line['runs']} runs)" if np.isfinite(low) else "one run"
    floor, nfe = ("" if line[name] is None else f"{float(line[name]):.4g}" for name in ("floor", "nfe"))
    shown = (line["dataset"], line["split"], line["features"], line["sampler"], line["steps"], nfe)
    return (*shown, line["samples"], f"{line['fid']:.4g}", floor, over)


def _about_scores(lines: list[dict]) -> str:
    seeds = sorted({line["seeds"] for line in lines})
    words = f"{' or '.join(map(str, seeds))} sampling seed{'s' * (seeds != [1])}"
    warnings = "".join(f" Warning: {text}." for text in dict.fromkeys(line["warning"] for line in lines) if text)
    return (
        f"Means over {words}; intervals over training runs of one recipe.{warnings} Floor: what real images of the "
        "other split score. Only rows of one protocol compare; the Frechet distance is FID only where the judge is "
        "Inception."
    )


def _protocols(lines: list[dict]) -> str:
    return "\n".join(f"- `{protocol}`" for protocol in dict.fromkeys(line["protocol"] for line in lines))


def _result(line: dict) -> dict:
    """Of the Hub's model-index."""
    metric = {"type": "frechet-distance", "value": line["fid"]}
    metric |= {"name": f"{line['features']}, {line['split']} split, {line['steps']} steps of {line['sampler']}"}
    return {
        "task": {"type": "image-generation"},
        "dataset": {"type": line["dataset"], "name": line["dataset"], "split": line["split"]},
        "metrics": [metric],
    }


def _asked(lines: list[dict]) -> str:
    if not lines:
        return ""
    best = min(lines, key=lambda line: line["steps"])
    return f" --sampler {best['sampler']} --steps {best['steps']}"


def _cost(cost: dict) -> str:
    if cost["kimg"] is None:
        return "Part of the lineage was trained elsewhere; what that cost is not known."
    passes = (
        "" if cost["passes"] is None else f", {count(1000 * cost['passes'])} network passes (a backward pass as two)"
    )
    return (
        f"Of the whole lineage, teachers and pairs too: {count(1000 * cost['kimg'])} images{passes}, measured "
        f"{duration(cost['seconds'])}."
    )


def _table(head: tuple, lines: list) -> str:
    rows = [head, ["---"] * len(head), *lines]
    return "\n".join(
        "| " + " | ".join(str(cell).replace("|", "\\|").replace("\n", " ") for cell in row) + " |" for row in rows
    )
