"""Two runs of a grid against each other: compare."""

import argparse
import json
from pathlib import Path

from onestep_bench.cli.terminal import print_table
from onestep_bench.errors import OnestepError, near_miss

_ABOUT = """compare two runs of a grid cell by cell: scores, intervals, passes, seconds

A and B are folders of executed notebooks, report folders (NAME/notebooks or NAME/results.csv), or results.csv files,
packed (.gz) or not.
Cells of equal label, data seen, size, budget, sampler, steps, judge and split are compared, if of one protocol."""
_EXIT = """exit codes: 0 nothing in B is worse beyond noise; 1 something is, or has diverged; 2 bad input, or nothing to
compare. Cells of a single run have no noise to compare with: they are told, and do not count as worse. Cells of two
runs have next to none: what is printed says how large a change would have had to be, and 0 says no more than that."""
_WHAT = "{} in both. Scores: Fréchet distance, mean over training runs; change: B less A, below 0 B is better."
_SURE = ("worse", "better")
_SHOWN = (*_SURE, "perhaps worse", "perhaps better")
_DEARER = 0.01  # by which share passes differ before a cell is shown for that alone


def add_commands(commands) -> None:
    """Add compare."""
    sub = commands.add_parser(
        "compare",
        help="compare two runs of a grid cell by cell; exit 1 if a score is worse beyond noise",
        description=_ABOUT,
        epilog=_EXIT,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    sub.set_defaults(command=_compare)
    for name, text in (("A", "the run before"), ("B", "the run after")):
        sub.add_argument(name.lower(), type=Path, metavar=name, help=text)
    where = "only cells of this kind, such as features=digits or steps=1; may be repeated. Fewer cells, sharper tests"
    sub.add_argument("--where", action="append", default=[], metavar="FIELD=VALUE", help=where)
    sub.add_argument("--all", action="store_true", help="print every cell, not only those in which something changed")
    sub.add_argument("--json", action="store_true", help="print one JSON object, of all cells")


def _compare(options: argparse.Namespace) -> int:
    from onestep_bench.report.changes import changes

    wanted = [_condition(text) for text in options.where]
    rows = [_chosen(_rows(source), wanted, source) for source in (options.a, options.b)]
    found = changes(*rows)
    code = int(found.count("worse") > 0)
    if options.json:
        print(json.dumps(_record(found, options, code), indent=1, allow_nan=False))
        return code
    _print(found, options)
    return code


def _rows(source: Path):
    from onestep_bench.report.kept import read_results, results_in
    from onestep_bench.report.tables import executed_in, read_rows

    if source.is_file():
        return read_results(source)
    for folder in (source, source / "notebooks"):
        if folder.is_dir() and (notebooks := executed_in(folder)):
            return read_rows(notebooks)
    if source.is_dir() and (table := results_in(source)):
        return read_results(table)
    what = "holds neither executed notebooks nor a results.csv" if source.is_dir() else "is not there"
    raise OnestepError(f"{source} {what}; name a report folder, a folder of executed notebooks, or a results.csv")


def _condition(text: str) -> tuple[str, str]:
    from onestep_bench.report.changes import FIELDS

    name, equals, value = text.partition("=")
    if not equals:
        raise OnestepError(f"--where takes FIELD=VALUE, not {text!r}")
    if name not in FIELDS:
        raise OnestepError(f"--where knows no field {name!r}{near_miss(name, FIELDS)}")
    return name, value


def _chosen(rows, wanted: list[tuple[str, str]], source: Path):
    for name, value in wanted:
        texts = rows[name].map(_name_of)
        kept = rows[texts == value]
        if kept.empty:
            there = near_miss(value, set(texts))
            raise OnestepError(f"{source} has no scores of {name}={value}{there}")
        rows = kept
    return rows


def _name_of(value: object) -> str:
    """A field's value as a person writes it: 500, not 500.0."""
    return f"{value:.12g}" if isinstance(value, float) else str(value)


# ---- for a program ---------------------------------------------------------------------------------------------------


def _record(found, options: argparse.Namespace, code: int) -> dict:
    def lines(frame) -> list[dict]:
        return json.loads(frame.to_json(orient="records", double_precision=15))  # its NaN is null

    return {
        "a": str(options.a),
        "b": str(options.b),
        "level": found.level,
        "correction": "holm",
        "tested": found.tested,
        "exit": code,
        "cells": lines(found.cells),
        "only_a": lines(found.only_before),
        "only_b": lines(found.only_after),
        "refused": found.refused,
    }


# ---- for a person ----------------------------------------------------------------------------------------------------


def _print(found, options: argparse.Namespace) -> None:
    cells = found.cells
    print(f"A: {options.a}\nB: {options.b}\n")
    print("\n".join(_assumed(found)) + "\n")
    shown = cells if options.all else cells[cells["verdict"].isin(_SHOWN) | _dearer(cells)]
    # What was said of all cells is told once; worst first, before all those that diverged, which need no test.
    untested = shown["p_holm"].isna() & shown["verdict"].isin(_SURE)
    ranked = shown.assign(p_holm=shown["p_holm"].mask(untested, -1.0)).sort_values(["p_holm", "p"], kind="stable")
    shown = shown.loc[ranked.index]
    if len(shown):
        print_table(_table(shown, cells))
        print()
    if len(shown) < len(cells):
        print(f"not shown: {_count(len(cells) - len(shown))} in which nothing changed; --all prints them")
    for name, frame in (("A", found.only_before), ("B", found.only_after)):
        for line in _only(frame):
            print(f"only in {name}: {line}")
    for line in found.refused:
        print(f"refused: {line}")
    print(", ".join(_counts(found)))


def _assumed(found) -> list[str]:
    cells = found.cells
    paired, percent = int((cells["paired"] & cells["p"].notna()).sum()), f"{100 * found.level:g} %"
    what = _WHAT.format(_count(len(cells)))
    if not found.tested:
        return [what, "No cell has noise to compare with: scores are equal, or of single runs."]
    lines = [
        what,
        f"Noise: {percent} t intervals over training runs, for normal differences; paired where two or more runs share "
        f"their seeds ({_count(paired)}), else Welch's ({found.tested - paired}).",
        f"Worse and better are by p after Holm's correction ({_count(found.tested)}): if nothing had changed, "
        f"one such word or more would stand here for at most {100 * (1 - found.level):g} of 100 pairs of runs.",
        "Perhaps: outside the cell's own interval, but not after that correction.",
    ]
    if (least := found.visible()) > 0:
        share = f"{100 * least:.2g} %" if least < 1 else f"a factor of {1 + least:.2g}"
        lines.append(
            f"In half of them no change of less than {share} could have been told from noise; more training "
            "seeds, or fewer cells (--where), would sharpen this."
        )
    return lines + _of_two_runs(found)


def _of_two_runs(found) -> list[str]:
    """What cannot be told where one side has two runs: the spread of two numbers is hardly known."""
    from scipy import stats

    tested = found.cells[found.cells["p"].notna()]
    few = int(tested["runs"].map(lambda runs: min(map(int, runs.split(", ")))).eq(2).sum())
    if not few:
        return []
    reach = {runs: stats.t.ppf((1 + found.level) / 2, runs - 1) for runs in (2, 3, 5)}
    return [
        f"Two runs: in {_count(few)} of {found.tested} tested a side has no more, and of two runs the spread is hardly "
        f"known: an interval is {reach[2]:.3g} standard errors to each side (of three pairs {reach[3]:.2g}, of five "
        f"{reach[5]:.2g}), before any correction. Only a change many times the noise can be told; that nothing is "
        "called worse does not say that nothing got worse. Take three runs or more, better five, to decide anything."
    ]


def _count(cells: int) -> str:
    return f"{cells} cell{'s' * (cells != 1)}"


def _dearer(cells):
    return (cells["passes_after"] / cells["passes"] - 1).abs() > _DEARER


def _table(shown, cells) -> list[tuple[str, ...]]:
    """Lines for `print_table`, without the columns of a cell's place in which all cells agree."""
    place = {"label": "model", "saw": "saw", "size": "size", "kimg": "kimg", "sampler": "sampler", "steps": "steps"}
    place |= {"weights": "weights", "dataset": "data", "features": "judge", "split": "split"}
    kept = [name for name in place if name == "label" or cells[name].nunique() > 1]
    heading = (*(place[name] for name in kept), "A", "B", "change", "interval", "runs", "p", "p Holm", "verdict")
    lines = [(*heading, "passes (k)", "seconds")]
    for cell in shown.to_dict("records"):
        words = [cell["variant"] or cell["label"], *(_text(cell[name]) for name in kept[1:])]
        interval = f"{_text(cell['low'])} to {_text(cell['high'])}" if cell["p"] == cell["p"] else "-"
        words += [*(_text(cell[name]) for name in ("before", "after", "change")), interval]
        words += [cell["runs"] + " pairs" * cell["paired"], _text(cell["p"], 2), _text(cell["p_holm"], 2)]
        words += [cell["verdict"], _both(cell, "passes"), _both(cell, "seconds") + "*" * (cell["busy"] > _busy())]
        lines.append(tuple(words))
    return lines


def _busy() -> float:
    from onestep_bench.report.tables import BUSY

    return BUSY


def _text(value: object, digits: int = 3) -> str:
    if not isinstance(value, float):
        return str(value)
    return f"{value:.{digits}g}" if value == value else "-"


def _both(cell: dict, name: str) -> str:
    before, after = _text(cell[name]), _text(cell[f"{name}_after"])
    return before if before == after else f"{before} -> {after}"


def _only(cells) -> list[str]:
    """One line a model of which the other run has nothing, with its steps and judges."""
    lines = []
    for key, own in cells.groupby(["label", "variant", "size"], sort=True):
        steps = ", ".join(map(str, sorted(set(own["steps"]))))
        judges = sorted(set(own["features"] + "/" + own["split"]))
        lines.append(f"{key[1] or key[0]}, {key[2]}, steps {steps} ({len(own)} cells; {', '.join(judges)})")
    return lines


def _counts(found) -> list[str]:
    numbers = {word: found.count(word) for word in (*_SHOWN, "within", "same", "unknown")}
    words = {"within": "within noise", "unknown": "unknown (single runs have no noise to compare with)"}
    return [f"{number} {words.get(word, word)}" for word, number in numbers.items() if number or word in _SURE]
