"""What a report says first: what was compared, and who has the lowest distance at 1, 2 and 4 steps."""

import numpy as np
import pandas as pd

from onestep_bench.report.comparisons import at_one_place
from onestep_bench.report.points import distance_name, weight
from onestep_bench.report.statistics import differences
from onestep_bench.report.tables import PROTOCOL, brief, is_teacher, measured, size_order, split_words, summarise

STEPS = (1, 2, 4)
_FEW = 4  # names of methods that are spelled out


def headline(rows: pd.DataFrame) -> dict:
    """{compared: sentences, means: how a number came about, steps, places}, of rows as `results` returns them.

    places: of each data set, judge and split {words, cells: of each number of steps {winner, score, lead, verdict} or
    None}. Students alone win; teachers are told beside them. verdict: 'larger' than its interval, 'within' or
    'unknown'. A cell is None where no student has a score there that is a number.
    """
    if rows.empty:
        return {"compared": [], "means": "", "steps": [], "places": []}
    students = rows[~rows["label"].map(is_teacher).astype(bool)]
    raced = students if len(students) else rows
    steps = [count for count in STEPS if count in set(raced["steps"])] or [int(raced["steps"].min())]
    places = sorted((own for _, own in rows.groupby(PROTOCOL)), key=weight)
    found = [_place(own, raced.loc[raced.index.intersection(own.index)], steps) for own in places]
    return {"compared": _compared(rows), "means": _means(rows), "steps": steps, "places": found}


def _compared(rows: pd.DataFrame) -> list[str]:
    """Who and what, in sentences."""
    labels = sorted(set(rows["label"]), key=str.casefold)
    students = [label for label in labels if not is_teacher(label)]
    teachers = [label for label in labels if is_teacher(label)]
    who = f"{_count(len(students), 'method')}: {'; '.join(students)}" if students else "no student yet"
    beside = f", beside their teacher in {_count(len(teachers), 'way')} of sampling it" if teachers else ""
    sizes = ", ".join(sorted(set(rows["size"]), key=size_order))
    runs = rows.groupby(["label", "size"])[["teacher_seed", "train_seed"]].apply(lambda own: len(own.drop_duplicates()))
    trained = _range(int(runs.min()), int(runs.max()))
    seeds = rows.groupby(["label", "size", "model"], dropna=False)["seed"].nunique()
    drawn = _range(int(seeds.min()), int(seeds.max()))
    return [
        f"{who}{beside}.",
        f"On {', '.join(sorted(set(rows['dataset'])))}, at {'sizes' if ',' in sizes else 'size'} {sizes}; "
        f"{trained} training run{'s' * (trained != '1')} of each, {drawn} sampling seed{'s' * (drawn != '1')} a run.",
    ]


def _means(rows: pd.DataFrame) -> str:
    name = distance_name(set(rows["features"]))
    return (
        f"{name}, lower is better. Each number is a mean over training runs, each the mean over its sampling seeds; in "
        "brackets its 95 % t interval over runs. First is the lowest mean among students of one size, each at its "
        "largest budget. A lead is over the next method, and counts where it is larger than the 95 % interval of the "
        "difference; intervals are not corrected for the number of comparisons."
    )


def _place(rows: pd.DataFrame, raced: pd.DataFrame, steps: list[int]) -> dict:
    first = rows.iloc[0]
    split = split_words(first["split"])
    return {
        "dataset": first["dataset"],
        "judge": first["features"],
        "split": split,
        "cells": [_winner(raced[raced["steps"] == count]) for count in steps],
        "teacher": _teacher(rows),
    }


def _winner(rows: pd.DataFrame) -> dict | None:
    """Of rows of one protocol and number of steps."""
    if rows.empty:
        return None
    rows = at_one_place(rows)
    lines = summarise(rows)
    lines = lines[np.isfinite(lines["fid_mean"])].sort_values(["fid_mean", "label"], kind="stable")
    if lines.empty:
        return None
    first = lines.iloc[0]
    bounds = f"{measured(first.fid_low)} to {measured(first.fid_high)}" if np.isfinite(first.fid_low) else ""
    cell = {"winner": first["label"], "size": first["size"], "score": measured(first["fid_mean"]), "interval": bounds}
    return cell | {"runs": int(first["runs"])} | _lead(rows, lines)


def _lead(rows: pd.DataFrame, lines: pd.DataFrame) -> dict:
    """How far the first line is before the second, and from whom it cannot be told."""
    samplers = rows.groupby("label")["sampler"].nunique()
    own, *others = dict.fromkeys(_called(line, samplers) for _, line in lines.iterrows())
    if not others:
        return {"lead": "the only one", "verdict": "alone", "level": ""}
    ahead = {
        (pair.second if pair.first == own else pair.first): _ahead(pair, own)
        for pair in differences(rows, of=own).itertuples(index=False)
    }
    gap, low, high, verdict = ahead[others[0]]
    interval = f" ({measured(low)} to {measured(high)})" if verdict != "unknown" else ""
    level = sorted(name for name, (*_, told) in ahead.items() if told == "within")
    words = "; ".join(level[:_FEW]) + (f" and {len(level) - _FEW} more" if len(level) > _FEW else "")
    return {"lead": f"{measured(gap)}{interval} before {others[0]}", "verdict": verdict, "level": words}


def _ahead(pair, own: str) -> tuple[float, float, float, str]:
    """By how much the other of a pair scores more than `own`, with the bounds of that."""
    if pair.first == own:
        return -pair.difference, -pair.high, -pair.low, pair.verdict
    return pair.difference, pair.low, pair.high, pair.verdict


def _called(line: pd.Series, samplers: pd.Series) -> str:
    """A line's name as `differences` has it: of a label with several samplers it tells which."""
    return f"{line['label']}, {line['sampler']}" if samplers[line["label"]] > 1 else line["label"]


def _teacher(rows: pd.DataFrame) -> str:
    """The best of the teachers, at any number of steps, in words."""
    own = rows[rows["label"].map(is_teacher).astype(bool)]
    lines = summarise(own) if len(own) else own
    if lines.empty or not np.isfinite(lines["fid_mean"]).any():
        return ""
    best = lines.loc[lines["fid_mean"].idxmin()]
    spent = f"{brief(best['nfe'])} evaluations" if np.isfinite(best["nfe"]) else f"{best['steps']} steps"
    return f"{measured(best['fid_mean'])}: {best['label']}, {best['size']}, {spent}"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'s' * (number != 1)}"


def _range(low: int, high: int) -> str:
    return str(low) if low == high else f"{low} to {high}"
