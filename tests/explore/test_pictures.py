"""Images under the sliders: the samples that the library draws, and the noise between them."""

import pytest
import torch

from onestep_bench import study
from onestep_bench.explore import pictures
from onestep_bench.paths import FLOW
from onestep_bench.seeds import sample_noise


def test_rows_are_the_samples_of_the_library_from_one_noise(tiny_models):
    rows = pictures.side_by_side(tiny_models, number=3, sampler="heun", steps=2, seed=5)
    for name, model in tiny_models.items():
        # The last bits depend on the size of a batch.
        drawn = study.sample(model, range(3), sampler="heun", steps=2, seed=5)
        torch.testing.assert_close(rows[name], drawn, atol=1e-4, rtol=1e-4)


def test_a_class_is_told_to_who_knows_classes(tiny_models, refuses):
    three, four = (pictures.side_by_side(tiny_models, sampler="euler", steps=1, number=2, label=k) for k in (3, 4))
    assert torch.equal(three["flow"], four["flow"])
    assert not torch.equal(three["edm"], four["edm"])
    with refuses("knows 10 classes", "class 10"):
        pictures.side_by_side(tiny_models, number=1, label=10)
    with refuses("no model is chosen"):
        pictures.side_by_side({})


def test_the_way_between_two_noises_begins_and_ends_in_their_samples(tiny_models):
    flow = {"flow": tiny_models["flow"]}
    how = {"sampler": "euler", "steps": 1, "seed": 1}
    way = pictures.between(flow, first=2, second=0, number=5, **how)["flow"]
    ends = pictures.side_by_side(flow, number=3, **how)["flow"][[2, 0]]
    torch.testing.assert_close(way[[0, -1]], ends, atol=1e-4, rtol=1e-4)
    assert len(way) == 5


def test_slerp_stays_on_the_circle():
    start, end = sample_noise(0, range(2), (3, 16, 16))
    start, end = start / start.norm(), end / end.norm()
    for share in (0.0, 0.3, 1.0):
        point = pictures.slerp(start, end, share)
        assert point.norm().item() == pytest.approx(1, abs=1e-5)
        angle = torch.arccos((start * end).sum())
        assert torch.arccos((start * point).sum().clamp(-1, 1)).item() == pytest.approx(share * angle.item(), abs=2e-3)
    torch.testing.assert_close(pictures.slerp(start, start, 0.5), start)


def test_a_level_shows_what_a_denoiser_answers_there(tiny_models):
    images, labels = torch.rand(2, 1, 8, 8) * 2 - 1, torch.tensor([3, 4])
    rows = pictures.level({"edm": tiny_models["edm"]}, images, 0.25, seed=2, labels=labels)
    noised, x0, velocity = rows.values()
    torch.testing.assert_close(noised, 0.75 * images + 0.25 * sample_noise(2, range(2), (1, 8, 8)))
    asked = tiny_models["edm"].denoiser.on(FLOW)(noised, 0.25, labels)
    torch.testing.assert_close(x0, asked)
    torch.testing.assert_close(noised - 0.25 * 2 * velocity, x0, atol=1e-4, rtol=1e-4)


def test_each_model_is_asked_as_it_is_made_for(tiny_models, as_if):
    rows = pictures.side_by_side(tiny_models | {"kd": as_if("kd")}, number=2, steps=3)
    assert list(rows) == ["edm, heun 3", "flow, heun 3", "kd, 1 step"]
    assert pictures.walk(as_if("meanflow"), "", 8) == ("push-forward", 1)
    assert pictures.walk(as_if("kd"), "euler", 8) == ("euler", 8)


def test_classes_that_a_model_does_not_know_and_images_that_are_none_are_told(tiny_models, refuses, monkeypatch):
    images = torch.zeros(2, 1, 8, 8)
    for labels in (None, torch.tensor([3, 10])):
        with refuses("edm is told one of 10 classes"):
            pictures.level({"edm": tiny_models["edm"]}, images, 0.5, labels=labels)
    monkeypatch.setitem(pictures.samplers.SAMPLERS, "euler", lambda denoiser, noise, *_: noise * torch.nan)
    with refuses("not finite with euler, 1 steps"):
        pictures.side_by_side(tiny_models, sampler="euler", steps=1)
