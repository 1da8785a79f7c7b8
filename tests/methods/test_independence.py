"""The network that judges is never one that a method looks through."""

from dataclasses import replace

import pytest

from onestep_bench import data, methods, study
from onestep_bench.scoring import judges
from onestep_bench.training import together

pytestmark = pytest.mark.usefixtures("store_folder")

TINY = {"kimg": 0.016, "batch_size": 8}


@pytest.fixture
def digits():
    """The first 32 digits."""
    whole = data.load("digits")
    return replace(whole, images=whole.images[:32], labels=whole.labels[:32], digest="0123456789abcdef")


@pytest.fixture
def teacher(digits):
    return study.train("edm", digits, size="0.05M", **TINY)


@pytest.fixture
def no_work(monkeypatch):
    """From here on, to train or store anything is an error."""

    def forbidden(*_, **__):
        raise AssertionError("this was to be refused")

    for room, name in ((study, "fit"), (together, "memo")):
        monkeypatch.setattr(room, name, forbidden)


@pytest.mark.parametrize(
    ("critic", "judge"),
    [
        ("digits", "digits"),
        ("classifier", "classifier"),
        ("inception", "inception"),
        ("timm:inception_v3", "inception"),
        ("timm:Inception-V3", "inception"),
        ("timm:vit_base_patch16_clip_224", "clip"),
        ("timm:vit_base_patch14_dinov2", "dinov2"),
        ("timm:vit_base_patch14_dino_v2", "dinov2"),
        ("teacher+timm:vit_base_patch32_clip_224", "clip"),
    ],
)
def test_a_critic_that_judges_is_refused_before_any_work(digits, teacher, no_work, refuses, critic, judge):
    with refuses("gdd", repr(critic.removeprefix("teacher+")), repr(judge)):
        study.train("gdd", digits, teacher=teacher, init=teacher, critic=critic, **TINY)


@pytest.mark.parametrize(
    "critic", ["teacher", "timm:vgg16_bn+timm:tf_efficientnet_lite0", "timm:deit_base_patch16_224"]
)
def test_other_critics_go_to_work(digits, teacher, no_work, critic):
    with pytest.raises(AssertionError, match="refused"):
        study.train("gdd", digits, teacher=teacher, init=teacher, critic=critic, **TINY)


def test_a_new_judge_is_covered_by_its_name(digits, teacher, no_work, monkeypatch, refuses):
    monkeypatch.setitem(judges._EXTRACTORS, "vgg16-bn", None)
    with refuses("'timm:vgg16_bn'", "'vgg16-bn'"):
        study.train("gdd", digits, teacher=teacher, init=teacher, critic="timm:vgg16_bn", **TINY)


def test_any_method_says_what_it_looks_through(digits, teacher, no_work, monkeypatch, refuses):
    looking = replace(methods.get("edm"), name="edm-clip", looks_through=lambda config: ["ViT-B-32, CLIP"])
    monkeypatch.setitem(methods._registry, "edm-clip", looking)
    with refuses("edm-clip", "'ViT-B-32, CLIP'", "'clip'"):
        study.train("edm-clip", digits, size="0.05M", **TINY)
