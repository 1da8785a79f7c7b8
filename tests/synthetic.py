"""Score rows of a comparison that nobody ran: many methods, sizes, seeds, judges and splits, to draw and to test."""

import numpy as np
import pandas as pd
from tiny import row

from onestep_bench.scoring.rows import FIELDS

MODELS = [("teacher (euler)", "0.2M", 2000.0), ("teacher (heun)", "0.2M", 1500.0), ("SlimFlow", "0.05M", 90.0)]
SIZES = {"0.05M": 45_000, "0.2M": 180_000, "0.8M": 700_000, "3M": 2_800_000}
# Label: what it saw, its FID at the smallest size, its steps, its passes in thousands; the teachers' samplers apart.
STUDENTS = {
    ("GDD", "data"): (1.6, (1,), 2600),
    ("GDD", "teacher images"): (3.2, (1,), 2600),
    ("GDD-I", "data"): (1.9, (1,), 2600),
    ("KD", "teacher images"): (3.3, (1,), 1300),
    ("KD", "data"): (2.9, (1,), 1300),
    ("SlimFlow", "both"): (3.6, (1, 2), 2100),
    ("2-flow", "teacher images"): (4.6, (1, 2, 4), 1500),
    ("CD", "data"): (3.4, (1, 2, 4), 2400),
    ("SFDDM", "data"): (5.2, (1, 2, 4, 8), 2200),
    ("Progressive", "data"): (4.4, (1, 2, 4, 8), 2000),
    ("DMD", "both"): (2.2, (1,), 3900),
    ("MeanFlow", "data"): (3.1, (1, 2), 2800),
    ("Shortcut", "data"): (3.9, (1, 2, 4), 3000),
}
TEACHERS = {"ddim": (30.0, 1.7), "dpmpp_2m": (45.0, 1.5), "heun": (60.0, 1.1)}  # FID at 1 step; the floor it falls to
JUDGES = {"classifier": 1.0, "pixels": 0.11}
FLOORS = {"train": 0.45, "test": 0.43}


def comparison(sizes=tuple(SIZES), train_seeds=5, seeds=3, copier=False) -> list[dict]:
    """One dict per score, as `tiny.row` makes them; equal every time. copier: add a method that returns the data."""
    rng = np.random.default_rng(0)
    rows = []
    for size in sizes:
        for (label, saw), (fid, steps, passes) in STUDENTS.items():
            for budget in (0.25, 0.5, 1.0) if label in ("GDD", "KD") and size == "0.2M" else (1.0,):
                student = fid * (0.6 + 0.4 / budget**0.5)
                given = {"label": label, "saw": saw, "size": size, "kimg": 500 * budget, "passes": passes * budget}
                rows += _scores(rng, student, steps, 0.35, train_seeds, seeds, "euler", given)
        for sampler, (fid, least) in TEACHERS.items():
            given = {"label": f"teacher ({sampler})", "saw": "data", "size": size, "kimg": 200, "passes": 600}
            rows += _scores(rng, fid, (1, 2, 4, 8, 16), 1.2, train_seeds, seeds, sampler, given, least)
    if copier:
        rows += _scores(rng, 0.45, (1,), 0, train_seeds, seeds, "euler", {"label": "Copier", "size": "0.2M"})
    return rows


def _scores(rng, fid, steps, falls, train_seeds, seeds, sampler, given, least=0.6) -> list[dict]:
    size = SIZES[given["size"]]
    name = f"{given['label']}, {given.get('saw')}, {given['size']}, {given.get('kimg')}"
    odd = np.exp(rng.normal(0, 0.35))  # pixels see another order
    rows = []
    for train_seed in range(train_seeds):
        of_run = np.exp(rng.normal(0, 0.06))
        for count in steps:
            for seed in range(seeds):
                mean = least + fid * (45_000 / size) ** 0.12 * count**-falls
                score = mean * of_run * np.exp(rng.normal(0, 0.015))
                rows += _judged(score, name, odd, train_seed, count, seed, sampler, size, given)
    return rows


def _judged(score, name, odd, train_seed, count, seed, sampler, size, given) -> list[dict]:
    rows = []
    for judge, scale in JUDGES.items():
        for split, floor in FLOORS.items():
            copied = given["label"] == "Copier"
            fid = score + 0.3 * (split == "test") if not copied else (0.01 if split == "train" else floor)
            fid *= scale * (odd if judge == "pixels" and not copied else 1)
            rows.append(
                row(
                    **given,
                    split=split,
                    features=judge,
                    protocol=f"{judge}@0a1b2c3d; no resize; 1024 samples; reference digits {split}@4e5f6a7b",
                    fid=fid,
                    floor=floor * scale,
                    fd_infinity=0.97 * fid,
                    nn_ratio=((0.01 if copied else 0.9 + 0.02 * score) if split == "test" else None),
                    steps=count,
                    sampler=sampler,
                    seed=seed,
                    train_seed=train_seed,
                    teacher_seed=train_seed,
                    model=f"{name}, {train_seed}",
                    recipe=name,
                    params=size,
                    macs=25 * size,
                    train_macs=75 * size * given.get("passes", 1500.0) * 1e3,
                    train_seconds=300.0 + 10 * train_seed,
                    busy=0.9 if train_seed == 4 else 0.0,
                    latency_ms=1.8 * count * (2 if sampler == "heun" else 1) * (size / 45_000) ** 0.2,
                    precision=0.7 if judge == "classifier" else None,
                    recall=0.4 if judge == "classifier" else None,
                    class_gap=0.05 if judge == "classifier" else None,
                )
            )
    return rows


def scores(**given) -> list[dict]:
    """A few rows: two teachers and a student, at two numbers of steps."""
    return [
        row(
            **given
            | {"label": label, "size": size, "params": SIZES[size], "steps": steps, "seed": seed, "model": label}
        )
        | {"fid": fid / steps + seed, "kimg": fid}
        for label, size, fid in MODELS
        for steps in (1, 4)
        for seed in (0, 1, 2)
    ]


def frame(rows: list[dict]) -> pd.DataFrame:
    """Rows as `read_rows` has them."""
    return pd.DataFrame(rows, columns=list(FIELDS)).astype({"train_seconds": float})
