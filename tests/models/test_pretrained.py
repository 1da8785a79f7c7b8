"""Models that were not trained here do what those trained here do."""

from dataclasses import replace

import pytest
import torch
from standins import edm_bytes

from onestep_bench import data, networks, study
from onestep_bench.denoiser import edm_denoiser
from onestep_bench.models import checkpoints
from onestep_bench.networks.build import size_of, sized
from onestep_bench.networks.sizes import SIZES
from onestep_bench.report import plots
from onestep_bench.store import upkeep

pytestmark = pytest.mark.usefixtures("store_folder")

TINY = {"kimg": 0.024, "batch_size": 8}


@pytest.fixture(scope="module")
def digits():
    """The first 64 digits."""
    whole = data.load("digits")
    return replace(whole, images=whole.images[:64], labels=whole.labels[:64], digest="0123456789abcdef")


def pickled(path, label_dim=0, side=8):
    torch.manual_seed(0)
    path.write_bytes(edm_bytes(edm_denoiser(sized("0.05M", side, 1, label_dim=label_dim))))
    return str(path)


@pytest.mark.parametrize("label_dim", [0, 10])
def test_a_pickle_is_a_teacher_and_a_start(tmp_path, digits, label_dim):
    teacher = study.teacher(pickled(tmp_path / "m.pkl", label_dim), digits, size="0.2M", kimg=9, lr=9)
    conditional = bool(label_dim)
    assert teacher.class_counts == (digits.class_counts if conditional else [])
    assert (teacher.size, teacher.shape, teacher.history) == ("0.05M", (1, 8, 8), [])
    assert teacher.artifact.cost() == {"kimg": 0, "seconds": 0, "passes": None, "macs": None, "busy": None}
    plots.losses({"teacher": teacher})
    pairs = study.make_pairs(teacher, 16, steps=2)
    assert pairs.shape == (1, 8, 8)
    flow = study.train("annealing-reflow", pairs, size="0.05M", **TINY)
    student = study.train("sfddm", digits, teacher=teacher, init=teacher, student_levels=4, **TINY)
    for model in (flow, student):
        assert model.class_counts == teacher.class_counts
        assert teacher.artifact.key in {artifact.key for artifact in model.artifact.lineage()}
        assert study.sample(model, [0]).isfinite().all()
    rows = study.evaluate(teacher, digits, label="teacher", steps=[1], seeds=[0], samples=16)["rows"]
    assert rows[0]["method"] == "foreign"


def test_a_student_is_told_what_its_teacher_is(tmp_path, digits):
    told = study.pretrained(pickled(tmp_path / "a.pkl", 10), digits)
    untold = study.pretrained(pickled(tmp_path / "b.pkl"), digits)
    for teacher in (told, untold):
        student = study.train("progressive", digits, teacher=teacher, size="0.05M", **TINY)
        assert student.class_counts == teacher.class_counts
    pairs = study.make_pairs(told, 8, steps=1)
    assert study.train("annealing-reflow", pairs, size="0.05M", conditional=False, **TINY).class_counts == []
    assert study.train("edm", digits, size="0.05M", **TINY).class_counts == []


def test_an_import_is_found_again_and_follows_the_file(tmp_path, digits):
    first = study.pretrained(pickled(tmp_path / "a.pkl"), digits)
    (tmp_path / "b.pkl").write_bytes((tmp_path / "a.pkl").read_bytes())
    assert study.pretrained(tmp_path / "b.pkl").artifact.key == first.artifact.key
    assert study.pretrained(pickled(tmp_path / "a.pkl", 10), digits).artifact.key != first.artifact.key
    assert study.pretrained(first.artifact.folder).artifact == first.artifact
    checkpoints.save(first.denoiser, tmp_path / "folder")
    state = study.pretrained(tmp_path / "folder", digits).denoiser.net.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in first.denoiser.net.state_dict().items())


def test_a_model_of_this_store_keeps_its_cost(digits):
    model = study.train("edm", digits, size="0.05M", **TINY)
    assert study.teacher(str(model.artifact.folder), digits, size="", kimg=0, lr=0).artifact.cost()["kimg"] == 0.024
    assert study.pretrained(model.artifact.key[:9]).artifact == model.artifact
    (kept,) = upkeep.entries()
    told = {"method": "edm", "size": "0.05M", "data": "digits", "kimg": "0.024", "seed": "0"}
    assert kept.what == told  # the data by name, of which the recipe has the hash


def test_a_method_is_a_teacher_as_before(digits):
    asked = {"size": "0.05M", "kimg": 0.024, "lr": 1e-3}
    assert study.teacher("edm", digits, **asked).artifact == study.train("edm", digits, **asked).artifact


def test_what_does_not_fit_is_refused(tmp_path, digits, refuses):
    asked = {"size": "0.05M", "kimg": 0.024, "lr": 1e-3}
    with refuses("teacher 'emd'", "did you mean 'edm'?"):
        study.teacher("emd", digits, **asked)
    with refuses("1x16x16", "1x8x8"):
        study.pretrained(pickled(tmp_path / "m.pkl", side=16), digits)
    four = study.pretrained(pickled(tmp_path / "m.pkl", 4))
    with refuses("knows 4 classes", "have 10"):
        study.train("sfddm", digits, teacher=four, size="0.05M", **TINY)
    with refuses("knows 4 classes", "has 10"):
        study.pretrained(pickled(tmp_path / "m.pkl", 4), digits)
    large = study.pretrained(pickled(tmp_path / "m.pkl", side=16))
    with refuses("1x16x16", "1x8x8"):
        study.train("sfddm", digits, teacher=large, size="0.05M", **TINY)
    with refuses("1x16x16", "1x8x8"):
        study.train(
            "annealing-reflow", study.make_pairs(study.pretrained(pickled(tmp_path / "n.pkl")), 8), init=large, **TINY
        )


@pytest.mark.parametrize("name", SIZES)
def test_a_size_is_recognised(name):
    with torch.device("meta"):
        net = sized(name, 32, 3, label_dim=7, dropout=0.5)
        odd = networks.build(net.config | {"channel_mult_emb": 2})
    assert size_of(net) == name
    assert size_of(odd).endswith("M")
    assert size_of(odd) not in SIZES
