"""A stream of images to a score: the same in any batches, in any number of processes, and without holding them."""

import hashlib
import json
import math
import os
import pickle
import subprocess
import sys
import textwrap
from dataclasses import replace
from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from onestep_bench import data, store, study
from onestep_bench.data.splits import SPLITS
from onestep_bench.denoiser import counting
from onestep_bench.models import sampling
from onestep_bench.models.sampling import sample_batches
from onestep_bench.scoring import evaluation, judging, metrics, qualities, real, references
from onestep_bench.scoring.judges import FeatureExtractor, load_extractor
from onestep_bench.scoring.rows import FIELDS, QUALITIES

SAMPLES = 300  # more than a network batch, and no multiple of it


@pytest.fixture(scope="module", autouse=True)
def store_folder(tmp_path_factory):
    """One store for all tests: judging references is most of the work."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ONESTEP_STORE", str(tmp_path_factory.mktemp("store")))
        yield


@pytest.fixture(scope="module")
def digits():
    return data.load("digits")


@pytest.fixture(scope="module")
def judge():
    return load_extractor("digits")


@pytest.fixture(scope="module")
def images(digits):
    """300 noisy digits."""
    noise = torch.randn(digits.images[:SAMPLES].shape, generator=torch.Generator().manual_seed(0))
    return (digits.images[:SAMPLES] + 30 * noise).clamp(0, 255).to(torch.uint8)


@pytest.fixture
def student(digits):
    return study.train("edm", digits, size="0.05M", kimg=0.064, batch_size=8)


class Stub(torch.nn.Module):
    """Features: the mean of each row of pixels, without rounding; logits: of two classes."""

    def forward(self, images):
        rows = images.double().mean((1, 3))
        return rows, rows[:, :2]


def stub(batch=64, shape=(1, 8, 8)):
    return FeatureExtractor(
        "stub", Stub(), dim=shape[1], digest="0", protocol="stub", device=torch.device("cpu"), batch=batch
    )


# ---- streaming


def test_judging_a_stream_is_judging_all_at_once(judge, images):
    features, logits = judge.judge(images)
    found = judging.judged(judge, images.split(77), len(images))
    mu, cov = metrics.moments(features.double())
    np.testing.assert_allclose(found.mu, mu, rtol=1e-12)
    np.testing.assert_allclose(found.cov, cov, rtol=1e-9, atol=1e-12)
    assert torch.equal(found.features, features)
    assert found.classes.inception_score == pytest.approx(metrics.inception_score(logits), rel=1e-12)
    assert found.classes.assigned.tolist() == torch.bincount(logits.argmax(1), minlength=10).tolist()


@pytest.mark.parametrize("size", [1, 7, 64, 1000])
def test_the_size_of_batches_changes_no_bit(judge, images, size, monkeypatch):
    monkeypatch.setattr(judging, "_BLOCK", 128)
    whole, parts = (judging.judged(judge, images.split(n), len(images)) for n in (len(images), size))
    assert np.array_equal(whole.mu, parts.mu)
    assert np.array_equal(whole.cov, parts.cov)
    assert torch.equal(whole.features, parts.features)


@given(st.lists(st.integers(1, 40), min_size=2, max_size=12), st.integers(1, 50))
def test_a_judge_is_shown_the_same_rows_as_many_at_a_time_as_it_takes(sizes, size):
    rows, shown = torch.arange(sum(sizes)), []

    def judge(batch):
        shown.append(batch)
        return batch[:, None].double(), None

    judging.judged(SimpleNamespace(batch=size, dim=1, judge=judge), rows.split(sizes), len(rows))
    assert torch.equal(torch.cat(shown), rows)
    full = len(rows) // size
    assert [len(batch) for batch in shown[:full]] == [size] * full
    assert sum(map(len, shown[full:])) < size


@given(st.integers(2, 40), st.integers(1, 40), st.integers(0, 2**32 - 1))
def test_moments_of_parts_add_up(n, m, seed):
    points = torch.randn(n + m, 5, generator=torch.Generator().manual_seed(seed)) + 100
    both = metrics.Moments.of(points[:n]) + metrics.Moments.of(points[n:])
    mu, cov = both.gaussian
    np.testing.assert_allclose(mu, points.double().mean(0).numpy(), rtol=1e-12)
    np.testing.assert_allclose(cov, np.cov(points.double().numpy(), rowvar=False), rtol=1e-9, atol=1e-9)


def test_only_so_many_features_are_kept_evenly_spaced(images):
    found = judging.judged(stub(), images.split(50), len(images), kept=4)
    assert torch.equal(found.features, stub()(images[[0, 99, 199, 299]]))
    assert found.n == SAMPLES
    none = judging.judged(stub(), images.split(50), len(images), kept=0)
    assert none.features is None
    assert np.array_equal(none.cov, found.cov)


def test_the_first_rows_of_a_stream_ask_for_no_more():
    asked = []

    def stream():
        for start in range(0, 100, 10):
            asked.append(start)
            yield torch.arange(start, start + 10)

    assert torch.cat(list(judging.head(stream(), 25))).tolist() == list(range(25))
    assert asked == [0, 10, 20]


def test_what_is_judged_can_be_kept_in_a_file(judge, images, tmp_path, refuses):
    found = judging.judged(judge, [images], len(images))
    judging.save(found, tmp_path / "judged.safetensors")
    again = judging.load(tmp_path / "judged.safetensors")
    assert qualities.score(again, found) == qualities.score(found, found)
    (tmp_path / "judged.safetensors").write_bytes(b"rubbish")
    with refuses("judged.safetensors is damaged"):
        judging.load(tmp_path / "judged.safetensors")


def test_moments_alone_still_give_a_distance(judge, images):
    whole = judging.judged(judge, [images], len(images))
    found = qualities.score(whole, judging.Judged(0, whole.mu, whole.cov))
    assert found["fid"] < 1e-6
    assert found["inception_score"] > 1
    assert [name for name in QUALITIES if found[name] is None] == [
        "kid",
        "precision",
        "recall",
        "density",
        "coverage",
        "class_gap",
    ]


def test_a_warning_says_when_n_is_small_for_the_width():
    assert "64 samples cannot span 64 features" in qualities.warning(64, 64)
    assert "10000 samples are few for 2048 features" in qualities.warning(10_000, 2048)
    assert qualities.warning(50_000, 2048) == ""


def test_streams_that_cannot_be_scored_are_one_clear_line(judge, images, refuses):
    with refuses("1 image cannot be scored", "at least 2"):
        judging.judged(judge, [images[:1]], 1)
    with refuses("300 images were announced and 299 came"):
        judging.judged(judge, [images[:299]], 300)
    broken = stub()
    broken._network = lambda batch: (torch.full((64, 8), math.nan), None)
    with refuses("features of 300 images hold NaN"):
        judging.judged(broken, [images], 300)
    with refuses("width 64 and 8 differ"):
        qualities.score(judging.judged(judge, [images], 300), judging.judged(stub(), [images], 300))


# ---- a model's score


def drawn(student, indices=range(SAMPLES)):
    return (data.to_uint8(batch) for batch in sample_batches(student, indices, steps=2))


def test_a_student_scored_in_any_batches_is_one_score(student, judge, digits):
    reference, images = references.reference(judge, digits), torch.cat(list(drawn(student)))
    found = [judging.judged(judge, images.split(size), SAMPLES) for size in (1, 7, 64, 1000)]
    fids = [qualities.score(one, reference)["fid"] for one in found]
    assert max(fids) - min(fids) < 1e-9


def test_noise_drawn_beside_the_network_is_the_same_noise(student):
    together = list(sample_batches(student, range(10), network_batch=4))
    alone = [next(sample_batches(student, part, network_batch=4)) for part in ([0, 1, 2, 3], [4, 5, 6, 7], [8, 9])]
    assert all(torch.equal(*pair) for pair in zip(together, alone, strict=True))


PROCESS = """
    import sys
    from pathlib import Path
    from onestep_bench import data, models, store
    from onestep_bench.scoring import judging
    from onestep_bench.scoring.judges import load_extractor

    model = models.Model(store.Artifact(Path(sys.argv[1])))
    indices = range(int(sys.argv[2]), int(sys.argv[3]))
    batches = [data.to_uint8(batch) for batch in models.sample_batches(model, indices, steps=2)]
    import numpy, torch
    numpy.save(sys.argv[4] + ".npy", torch.cat(batches).numpy())
    judging.save(judging.judged(load_extractor("digits"), batches, len(indices)), Path(sys.argv[4]))
"""


def test_two_processes_that_share_the_indices_give_the_same_images_and_score(student, judge, digits, tmp_path):
    cuts = (0, 113, SAMPLES)
    files = [tmp_path / f"part-{place}" for place in (0, 1)]
    command = [sys.executable, "-c", textwrap.dedent(PROCESS), student.artifact.folder]
    running = [
        subprocess.Popen([*command, str(low), str(high), file], env=os.environ)
        for (low, high), file in zip(pairwise(cuts), files, strict=True)
    ]
    assert [process.wait(timeout=120) for process in running] == [0, 0]
    apart = np.concatenate([np.load(f"{file}.npy") for file in files])
    together = torch.cat(list(drawn(student)))
    assert hashlib.sha256(apart.tobytes()).digest() == hashlib.sha256(together.numpy().tobytes()).digest()
    reference = references.reference(judge, digits)
    parts = qualities.score(judging.combined([judging.load(file) for file in files]), reference)
    whole = qualities.score(judging.judged(judge, [together], SAMPLES), reference)
    assert parts["fid"] == pytest.approx(whole["fid"], abs=1e-9)
    assert {name: parts[name] for name in ("kid", "precision", "recall")} == pytest.approx(
        {name: whole[name] for name in ("kid", "precision", "recall")}, abs=1e-12
    )


def test_evaluate_goes_on_after_a_kill(student, digits, monkeypatch):
    few = replace(digits, images=digits.images[:64], labels=digits.labels[:64], digest="0123456789abcdef")
    asked = dict(label="EDM", steps=[1], seeds=[0, 1, 2])
    monkeypatch.setattr(sampling, "BATCH", 64)
    undisturbed = study.evaluate(student, few, **asked, samples=65)["rows"]  # another recipe, the same kind of work
    score, calls, seats = evaluation.score, [], 4  # two judges, two splits

    def dying(*arguments):
        if len(calls) == 2 * seats:
            raise KeyboardInterrupt
        calls.append(arguments)
        return score(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(evaluation, "score", dying)
        with pytest.raises(KeyboardInterrupt):
            study.evaluate(student, few, **asked)
    calls.clear()
    monkeypatch.setattr(evaluation, "score", dying)
    rows = study.evaluate(student, few, **asked)["rows"]
    assert len(calls) == seats  # of the one seed that was not done
    assert [row["seed"] for row in rows] == [0, 1, 2] * seats
    assert rows[0].keys() == undisturbed[0].keys()


# ---- judges and splits

ONE = dict(label="EDM", steps=[2], seeds=[0], samples=SAMPLES)


def test_each_row_is_what_its_judge_alone_finds_of_the_same_images(student, digits):
    rows = study.evaluate(student, digits, **ONE)["rows"]
    assert [(row["split"], row["features"]) for row in rows] == [
        ("train", "digits"),
        ("train", "pixels"),
        ("test", "digits"),
        ("test", "pixels"),
    ]
    images = torch.cat(list(drawn(student)))
    for row in rows:
        against = digits.on(row["split"])
        judge = references.judge(row["features"], against)
        found = judging.judged(judge, [images], SAMPLES)
        alone = qualities.score(found, references.reference(judge, against))
        assert row["warning"] == alone.pop("warning")
        alone |= real.held_out(judge, against, found, SAMPLES)
        for name, value in alone.items():
            assert row[name] == (value if value is None else pytest.approx(value, rel=1e-9, abs=1e-9)), name
        assert row["dataset"] == "digits"
        assert f"digits/{row['split']}@{against.digest}" in row["protocol"]


def test_further_judges_and_splits_draw_no_further_images(student, digits):
    counts, rows = [], []
    for features, splits in ((["pixels", "digits"], ["test"]), (["random-features", "digits", "pixels"], SPLITS)):
        with counting(student.denoiser) as counter:
            rows.append(study.evaluate(student, digits, **ONE, features=features, splits=splits)["rows"])
        counts.append(counter.rows)
    assert counts[0] == counts[1]
    few, many = ({(row["split"], row["features"]): row["fid"] for row in found} for found in rows)
    assert len(few) == 2
    assert len(many) == 6
    assert {seat: many[seat] for seat in few} == few


@pytest.mark.parametrize(
    ("features", "splits", "judges"),
    [
        ("auto", ["test"], ["digits", "pixels"]),
        ("pixels", ["test"], ["pixels", "digits"]),
        (["random-features"], ["all"], ["random-features", "pixels"]),
        (["pixels", "auto", "digits"], ["test", "train"], ["pixels", "digits"]),
    ],
)
def test_a_judge_alone_has_another_beside_it(student, digits, features, splits, judges):
    rows = study.evaluate(student, digits, **ONE | {"seeds": [1]}, features=features, splits=splits)["rows"]
    assert [(row["split"], row["features"]) for row in rows] == [(split, judge) for split in splits for judge in judges]
    assert {row["split"] for row in rows if row["floor"] is not None} == set(splits) - {"all"}


def test_images_made_by_hand_are_one_reference(student, digits):
    whole = replace(digits, other=None)
    rows = study.evaluate(student, whole, **ONE)["rows"]
    assert [(row["split"], row["features"]) for row in rows] == [("all", "digits"), ("all", "pixels")]
    assert all(row["floor"] is row["nn_ratio"] is None for row in rows)


def test_splits_judges_and_purposes_that_cannot_be_are_refused(student, digits, refuses):
    before = sorted(store.root().glob("scores-*"))
    for wrong, said in (
        ({"splits": ["tset"]}, "unknown split 'tset'; did you mean 'test'?"),
        ({"splits": []}, "no split is named to score against"),
        ({"features": []}, "no judge is named"),
        ({"features": ["digits", "pixel"]}, "did you mean 'pixels'?"),
        ({"purpose": "serach"}, "purpose is 'result' or 'search', not 'serach'"),
        ({"seeds": []}, "at least one sampling seed"),
        ({"steps": []}, "one number of steps"),
    ):
        with refuses(said):
            study.evaluate(student, digits, **ONE | wrong)
    assert sorted(store.root().glob("scores-*")) == before


def test_a_purpose_is_of_the_row_and_not_of_the_score(student, digits, monkeypatch):
    asked = ONE | {"splits": ["train"], "features": "pixels"}
    result = study.evaluate(student, digits, **asked)["rows"]
    monkeypatch.setattr(evaluation, "sample_batches", None)
    search = study.evaluate(student, digits, **asked, purpose="search")["rows"]
    assert [row | {"purpose": "result"} for row in search] == result
    assert {row["purpose"] for row in search} == {"search"}


def test_a_snapshot_is_scored_as_a_model_of_that_budget(digits):
    asked = dict(size="0.05M", kimg=0.064, batch_size=8)
    model = study.train("edm", digits, **asked, snapshots=[0.032])
    (early,) = model.snapshots.values()
    alone = study.train("edm", digits, **asked | {"kimg": 0.032})
    bundles = [study.evaluate(each, digits, **ONE) for each in (early, alone, model)]
    for row, same, end in zip(*(bundle["rows"] for bundle in bundles), strict=True):
        assert row["fid"] == same["fid"] != end["fid"]
        assert (row["kimg"], row["passes"]) == (same["kimg"], pytest.approx(same["passes"]))
        assert row["model"] == f"{end['model']}#0.032"
        # The rest of a lineage is told as that of the whole training.
        assert all(row[name] == end[name] for name in ("label", "recipe", "saw", "train_seed", "size"))
    assert bundles[0]["recipes"] == bundles[2]["recipes"] == {model.recipe_hash: model.settings}
    assert [bundle["strips"][0]["kimg"] for bundle in bundles] == [0.032, 0.032, 0.064]


# ---- references


def test_a_reference_is_judged_once(judge, digits, monkeypatch):
    first = references.reference(judge, digits)
    monkeypatch.setattr(judging, "judged", None)
    again = references.reference(judge, digits)
    assert np.array_equal(first.cov, again.cov)
    assert torch.equal(first.features, again.features)
    with pytest.raises(TypeError):
        references.reference(judge, replace(digits, digest="fedcba9876543210"))


@pytest.fixture
def published(judge, digits):
    """Moments of the digits, and a function that writes them to a file and names it as a reference."""
    found = judging.judged(judge, [digits.images], len(digits))

    def write(path, **changed):
        values = {"mu": found.mu, "sigma": found.cov} | changed
        np.savez(path, **values)
        return references.Statistics("digits", path)

    return found, write


@pytest.mark.parametrize("protocol", [None, 4, 5])
def test_published_statistics_are_a_reference(judge, published, tmp_path, protocol):
    found, write = published
    statistics = write(tmp_path / "stats.npz")
    if protocol:
        statistics = references.Statistics("digits", tmp_path / "stats.pkl")
        statistics.path.write_bytes(pickle.dumps({"mu": found.mu, "sigma": found.cov}, protocol))
    read = references.reference(judge, statistics)
    assert np.array_equal(read.mu, found.mu)
    assert np.array_equal(read.cov, found.cov)
    assert read.features is read.classes is None
    assert references.protocol(judge, 10, statistics).endswith(f"digits@{statistics.digest}, published statistics")


def test_statistics_for_several_judges_are_told_apart(tmp_path):
    of_both = {"fid": {"mu": np.zeros(8), "sigma": np.eye(8)}, "fd_dinov2": {"mu": np.ones(8), "sigma": np.eye(8)}}
    path = tmp_path / "edm2.pkl"
    path.write_bytes(pickle.dumps(of_both))
    for name, mean in (("inception", 0), ("dinov2", 1)):
        judge = stub()
        judge.name = name
        assert references.reference(judge, references.Statistics("img64", path)).mu.tolist() == [mean] * 8


class Hostile:
    def __reduce__(self):
        return os.system, ("touch hacked",)


def test_bad_statistics_are_one_clear_line(judge, published, tmp_path, refuses, monkeypatch):
    monkeypatch.chdir(tmp_path)
    _, write = published
    (tmp_path / "hostile.pkl").write_bytes(pickle.dumps({"mu": Hostile()}))
    with refuses("hostile.pkl", "refused to unpickle", "system"):
        references.reference(judge, references.Statistics("digits", tmp_path / "hostile.pkl"))
    assert not (tmp_path / "hacked").exists()
    with refuses("width 64", "mu (3,)", "same judge"):
        references.reference(judge, write(tmp_path / "narrow.npz", mu=np.zeros(3)))
    with refuses("holds NaN"):
        references.reference(judge, write(tmp_path / "nan.npz", mu=np.full(64, np.nan)))
    np.savez(tmp_path / "other.npz", mean=np.zeros(64))
    with refuses("other.npz holds no mu and sigma"):
        references.reference(judge, references.Statistics("digits", tmp_path / "other.npz"))
    whole = write(tmp_path / "torn.npz").path.read_bytes()
    (tmp_path / "torn.npz").write_bytes(whole[: len(whole) // 2])
    with refuses("torn.npz is damaged"):
        references.reference(judge, references.Statistics("digits", tmp_path / "torn.npz"))
    with refuses("cannot read", "absent.npz"):
        references.reference(judge, references.Statistics("digits", tmp_path / "absent.npz"))


# ---- evaluating what was not trained here


def test_a_checkpoint_from_elsewhere_is_scored_like_our_own(student, digits, tmp_path):
    folder = tmp_path / "somebody's"
    folder.mkdir()
    for name in ("model.safetensors", "config.json"):
        (folder / name).write_bytes((student.artifact.folder / name).read_bytes())
    asked = dict(label="them", steps=[1], seeds=[0], samples=SAMPLES)
    models = student, study.pretrained(folder)
    ours, theirs = (study.evaluate(model, digits, **asked)["rows"] for model in models)
    same = ("split", "features", "fid", "nn_ratio", "params", "nfe")
    assert [[row[name] for name in same] for row in theirs] == [[row[name] for name in same] for row in ours]
    for name in ("kimg", "passes", "train_macs", "train_seconds", "train_seed", "teacher_seed", "saw"):
        assert all(row[name] is None for row in theirs), name
    assert study.pretrained(student.artifact.folder).spent == student.spent
    json.dumps(theirs)


def test_images_are_scored_against_published_statistics(judge, digits, published, tmp_path, refuses):
    _, write = published
    statistics = write(tmp_path / "stats.npz")
    images = data.Images("copies", len(digits), digits.shape, lambda: iter(digits.images.split(100)))
    (row,) = evaluation.evaluate_images(images, statistics, features="digits", samples=len(digits))["rows"]
    assert row["fid"] < 1e-6
    assert (row["split"], row["features"], row["label"], row["purpose"]) == ("all", "digits", "copies", "result")
    assert row["floor"] is row["nn_ratio"] is row["kid"] is row["method"] is row["kimg"] is None
    assert row.keys() == FIELDS.keys()
    with refuses("which judge made", "name it in place of 'auto'"):
        evaluation.evaluate_images(images, replace(statistics, name="others"), samples=64)


def test_models_of_another_resolution_and_single_samples_are_refused(student, digits, refuses):
    larger = replace(digits, images=torch.zeros(20, 1, 16, 16, dtype=torch.uint8), labels=None)
    with refuses("8x8x1 images, but the reference digits 16x16x1"):
        study.evaluate(student, larger, label="EDM")
    with refuses("1 samples cannot be scored", "at least 2"):
        study.evaluate(student, digits, label="EDM", samples=1)


def test_the_metrics_of_every_row_are_those_that_are_registered():
    registered = [name for known in qualities.METRICS for name in known.names]
    assert sorted(registered) == sorted(QUALITIES)
    assert qualities.further() == {}


def test_a_metric_says_which_is_better_and_takes_no_others_name(refuses):
    with refuses("'gap'", "'lower' or 'higher'"):
        qualities.metric("gap", better="smaller")
    with refuses("'kid'", "registered already"):
        qualities.metric("kid", better="lower")


def test_precision_is_of_the_samples_and_recall_of_the_reference():
    """Samples from the middle of the reference: each lies in it, and it is not covered."""
    draw = torch.Generator().manual_seed(0)
    reference, samples = torch.randn(200, 2, generator=draw), 0.1 * torch.randn(200, 2, generator=draw)
    judged = [judging.Judged(200, *metrics.moments(points), points) for points in (samples, reference)]
    found = qualities.score(*judged)
    assert (found["precision"], found["recall"]) == (1, pytest.approx(0, abs=0.1))
    expected = metrics.precision_recall(reference, samples, qualities.NEIGHBOURS)
    assert {name: found[name] for name in expected} == expected
