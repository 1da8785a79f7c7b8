"""Numbers that go wrong: of each, one clear line or the right number.

Losses that explode are in training/test_training.py, images that are not finite in test_study.py.
"""

import json
import math

import numpy as np
import pytest
import torch
from hostile import CONFIG, denoiser
from standins import edm_bytes, numbered, slimflow_content

from onestep_bench.data.loading import digest_of, load
from onestep_bench.data.registry import Dataset
from onestep_bench.data.streams import Images
from onestep_bench.denoiser import edm_denoiser
from onestep_bench.models import checkpoints
from onestep_bench.models.pretrained import load_pretrained
from onestep_bench.networks.build import build
from onestep_bench.scoring import evaluation, metrics, recipe
from onestep_bench.scoring.judges.classifier import Classifier


def spoilt(value):
    torch.manual_seed(0)
    net = build(CONFIG)
    with torch.no_grad():
        next(net.parameters()).view(-1)[0] = value
    return edm_denoiser(net.eval())


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_weights_that_are_no_numbers_are_refused_wherever_they_come_from(tmp_path, value, refuses):
    (tmp_path / "edm.pkl").write_bytes(edm_bytes(spoilt(value)))
    checkpoints.save(spoilt(value), tmp_path / "ours")
    net = build(CONFIG | {"resample_filter": [1, 1]})
    content = slimflow_content(numbered(net))
    content["ema"]["shadow_params"][0].view(-1)[0] = value
    torch.save(content, tmp_path / "slimflow.pth")
    for name in ("edm.pkl", "ours", "slimflow.pth"):
        with refuses(name, "holds NaN or infinity"):
            load_pretrained(tmp_path / name)


@pytest.mark.parametrize("attributes", [{"sigma_data": math.nan}, {"sigma_data": 0.0}, {"sigma_data": -0.5}])
def test_a_preconditioning_of_no_scale_is_refused(tmp_path, attributes, refuses, monkeypatch):
    from onestep_bench.data import pickles

    (tmp_path / "edm.pkl").write_bytes(edm_bytes(denoiser()))
    content = pickles.read(tmp_path / "edm.pkl")
    content["ema"].state.update(attributes)
    monkeypatch.setattr(pickles, "read", lambda path: content)
    with refuses("edm.pkl", "sigma_data"):
        load_pretrained(tmp_path / "edm.pkl")


# ---- sets in which nothing varies, or nothing differs

FLAT = np.full((40, 8), 0.25)
VARIED = np.random.default_rng(0).normal(size=(60, 8))


def test_the_distance_to_images_of_one_value_is_that_of_a_point():
    """|mean - point|^2 + trace: a covariance of zeros has no root to take part."""
    mean, cov = metrics.moments(VARIED)
    expected = ((mean - 0.25) ** 2).sum() + np.trace(cov)
    assert metrics.frechet_distance(FLAT, VARIED) == pytest.approx(expected)
    assert metrics.frechet_distance(VARIED, FLAT) == pytest.approx(expected)
    assert metrics.frechet_distance(FLAT, FLAT) == 0
    assert metrics.frechet_distance(FLAT, FLAT + 1) == pytest.approx(8)


def test_two_equal_sets_are_at_no_distance():
    assert metrics.frechet_distance(VARIED, VARIED) == pytest.approx(0, abs=1e-9)
    # Unbiased, it is below zero: of equal sets the pairs of a point with itself count on one side only.
    assert metrics.kid(VARIED, VARIED) <= 0
    found = metrics.precision_recall(VARIED, VARIED)
    assert [found[name] for name in ("precision", "recall", "coverage")] == [1, 1, 1]


def test_copies_of_one_image_have_balls_that_hold_nothing():
    """A ball is without its surface, so that of equal points is empty."""
    assert metrics.precision_recall(FLAT, FLAT) == {"precision": 0, "recall": 0, "density": 0, "coverage": 0}
    assert metrics.kid(FLAT, FLAT) == pytest.approx(0, abs=1e-9)


def test_the_neighbour_ratio_of_equal_sets_is_not_known_and_of_copies_zero():
    same = metrics.nearest(VARIED, VARIED)
    assert math.isnan(metrics.neighbour_ratio(torch.zeros(4), torch.zeros(4)))
    assert metrics.neighbour_ratio(torch.zeros(4), torch.ones(4)) == 0
    assert metrics.neighbour_ratio(torch.ones(4), torch.zeros(4)) == math.inf
    assert float(same.max()) < 1e-6


def test_a_classifier_can_look_at_images_of_one_value():
    network = Classifier(3, 2)
    network.look_at(torch.full((10, 3, 8, 8), 7, dtype=torch.uint8))
    features, logits = network.eval()(torch.full((2, 3, 8, 8), 7, dtype=torch.uint8))
    assert bool(network.patches.isfinite().all() and features.isfinite().all() and logits.isfinite().all())


def test_a_class_of_one_image_is_on_one_side_of_the_split_and_keeps_its_number(tmp_path):
    from PIL import Image

    rng = np.random.default_rng(0)
    for name, count in (("a", 30), ("b", 1), ("c", 30)):
        (tmp_path / "set" / name).mkdir(parents=True)
        for index in range(count):
            pixels = rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "set" / name / f"{index}.png")
    train, test, whole = (load(str(tmp_path / "set"), split=split) for split in ("train", "test", "all"))
    assert whole.class_counts == [30, 1, 30]
    assert sum((part.labels == 1).sum().item() for part in (train, test)) == 1
    assert train.class_counts[1] + test.class_counts[1] == 1
    assert train.num_classes == test.num_classes == 3


# ---- judged


@pytest.fixture
def quick(monkeypatch, store_folder):
    """A classifier of a few steps."""
    monkeypatch.setattr(recipe, "GREY", recipe.Recipe(0, (8, 8, 8), epochs=1, most=8, hflip=False))
    monkeypatch.setattr(recipe, "FEWEST", 8)


def split_by_hand(**parts) -> Dataset:
    """A data set of (images, labels) a split."""

    def on(split: str) -> Dataset:
        images, labels = parts[split]
        return Dataset("odd", images, labels, digest_of(images.shape, [images.numpy()], labels.numpy()), split, on)

    return on("train")


def scores(images: torch.Tensor, data: Dataset) -> dict[tuple[str, str], dict]:
    """Rows by (split, judge), which must be numbers that JSON knows."""
    stream = Images("made", len(images), tuple(images.shape[1:]), lambda: iter(images.split(64)))
    bundle = evaluation.evaluate_images(stream, data, features=["classifier", "pixels"])
    json.dumps(bundle, allow_nan=False)
    return {(row["split"], row["features"]): row for row in bundle["rows"]}


COPIES = "most test images of odd are among those to train on, or copies of each other"
DIGITS = load("digits").images
TWO = torch.arange(len(DIGITS)) % 2


@pytest.mark.parametrize("where", ["train", "test"])
def test_a_class_of_one_image_is_judged_wherever_the_split_put_it(quick, where):
    """In the test split it is the last class, of which the classifier that was trained knows nothing."""
    parts = {"train": (DIGITS[:150], TWO[:150].clone()), "test": (DIGITS[150:250], TWO[150:250].clone())}
    parts[where][1][7] = 2
    for (split, judge), row in scores(DIGITS[250:400], split_by_hand(**parts)).items():
        assert row["fid"] > 0
        assert "tells copies" not in row["warning"]
        assert (0 <= row["class_gap"] <= 1) if judge == "classifier" else row["class_gap"] is None
        assert (0 < row["nn_ratio"] < 10) if split == "test" else row["nn_ratio"] is None


def test_where_train_and_test_are_the_same_images_nothing_is_held_out(quick):
    same = DIGITS[:150], TWO[:150]
    for (split, judge), row in scores(same[0], split_by_hand(train=same, test=same)).items():
        assert row["fid"] == pytest.approx(0, abs=1e-6)
        assert row["floor"] == pytest.approx(0, abs=1e-6)
        assert row["nn_ratio"] is None
        assert (COPIES in row["warning"]) == (split == "test")
        assert judge == "pixels" or row["class_gap"] == 0


def test_images_of_one_value_have_scores_and_a_word(quick):
    """Against images of another value: the distance of two points."""
    flat, other = (torch.full((150, 1, 8, 8), value, dtype=torch.uint8) for value in (7, 9))
    found = scores(flat, split_by_hand(train=(flat, TWO[:150]), test=(other, TWO[:150])))
    assert found["train", "pixels"]["fid"] == 0
    assert found["test", "pixels"]["fid"] == pytest.approx(found["test", "pixels"]["floor"])
    assert found["test", "pixels"]["fid"] > 0
    assert all(row["nn_ratio"] is None for row in found.values())
    assert all("images of odd are alike" in row["warning"] for (split, _), row in found.items() if split == "test")


# ---- denormals


def test_a_storm_of_denormals_changes_no_answer():
    """Weights and inputs below the smallest normal number: what flushing them to zero would give, to rounding."""
    torch.manual_seed(0)
    net = build(CONFIG).eval().requires_grad_(False)
    for parameter in net.parameters():
        parameter.mul_(1e-39)
    x, level = torch.full((2, 1, 8, 8), 1e-40), torch.zeros(2)
    stormy = net(x, level, None)
    try:
        assert torch.set_flush_denormal(True)
        calm = net(x, level, None)
    finally:
        torch.set_flush_denormal(False)
    assert bool(stormy.isfinite().all())
    torch.testing.assert_close(stormy, calm, rtol=0, atol=1e-30)


def test_features_of_denormals_have_a_distance():
    tiny = VARIED * 1e-310
    assert metrics.frechet_distance(tiny, tiny) == 0
    assert metrics.frechet_distance(VARIED, tiny) == pytest.approx(metrics.frechet_distance(VARIED, 0 * VARIED))
