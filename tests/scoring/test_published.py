"""Scores against published statistics, beside those against images."""

import hashlib
from dataclasses import replace
from operator import itemgetter

import numpy as np
import pytest
from torch.nn import functional

from onestep_bench import data, study
from onestep_bench.data.pixels import to_unit
from onestep_bench.scoring import evaluation, judges, published
from onestep_bench.scoring.judges import FeatureExtractor

pytestmark = pytest.mark.usefixtures("store_folder")

ASKED = {"label": "EDM", "steps": [1], "seeds": [0], "samples": 32}


@pytest.fixture
def digits():
    whole = data.load("digits")
    return replace(whole, images=whole.images[:64], labels=whole.labels[:64], digest="0123456789abcdef", other=None)


@pytest.fixture
def model(digits):
    return study.train("edm", digits, size="0.01M", kimg=0.008, batch_size=8)


@pytest.fixture(autouse=True)
def inception(monkeypatch):
    """Four brightnesses in the place of the judge that needs a download."""

    def small(device):
        def network(images):
            return functional.adaptive_avg_pool2d(to_unit(images).double().mean(1, keepdim=True), 2).flatten(1), None

        digest = hashlib.sha256(b"small").hexdigest()
        return FeatureExtractor(
            "inception-legacy", network, device=device, batch=64, dim=4, digest=digest, protocol="small"
        )

    judges.names()  # imports those that it replaces
    monkeypatch.setitem(judges._EXTRACTORS, "inception-legacy", small)


@pytest.fixture
def reference(tmp_path, monkeypatch):
    monkeypatch.setenv("ONESTEP_DATA", str(tmp_path))
    np.savez(tmp_path / "faces.npz", mu=np.full(4, 0.5), sigma=np.eye(4))
    return "faces.npz"


def test_inception_scores_against_published_statistics_too(model, digits, reference, monkeypatch):
    features = ["inception-legacy", "pixels"]
    plain = study.evaluate(model, digits, features=features, **ASKED)
    drawn = []
    real = evaluation._score_seed
    monkeypatch.setattr(evaluation, "_score_seed", lambda *given: drawn.append(given) or real(*given))
    found = study.evaluate(model, digits, features=features, reference=reference, **ASKED)
    assert len(drawn) == len(ASKED["steps"]) * len(ASKED["seeds"])  # once, for all that judge
    what = itemgetter("features", "split", "protocol", "steps", "seed", "fid", "precision")
    assert [*map(what, found["rows"][:-1])] == [*map(what, plain["rows"])]  # as if nothing had been asked
    assert (found["rows"][-1]["features"], found["rows"][-1]["split"]) == ("inception-legacy", "all")
    assert found["rows"][-1]["protocol"].endswith("published statistics")
    assert found["rows"][-1]["fid"] != plain["rows"][0]["fid"]


def test_one_from_an_address_is_downloaded_into_the_data_folder(model, digits, reference, tmp_path, monkeypatch):
    content = (tmp_path / reference).read_bytes()

    def fetch(target, urls):
        assert urls == ["https://a.org/refs/faces.npz"]
        target.parent.mkdir(exist_ok=True)
        target.write_bytes(content)

    monkeypatch.setattr(published, "fetch", fetch)
    study.evaluate(model, digits, features="inception-legacy", reference="https://a.org/refs/faces.npz", **ASKED)
    assert (tmp_path / "references" / "faces.npz").exists()  # where a plan looks for it


def test_what_cannot_be_a_reference_is_one_line(model, digits, reference, refuses):
    with refuses("faces.npz is of Inception's features; name inception"):
        study.evaluate(model, digits, features=["pixels"], reference=reference, **ASKED)
    with refuses("no file of statistics nobody.npz", "correct the path"):
        study.evaluate(model, digits, features=["inception-legacy"], reference="nobody.npz", **ASKED)
