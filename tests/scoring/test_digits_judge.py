import pytest
import torch

from onestep_bench.data.loading import load
from onestep_bench.errors import OnestepError
from onestep_bench.scoring.judges import digits as digits_judge
from onestep_bench.scoring.judges import load_extractor
from onestep_bench.scoring.metrics import frechet_distance


@pytest.fixture(scope="module")
def digits():
    return load("digits")


@pytest.fixture(scope="module")
def judge():
    return load_extractor("digits")


@pytest.fixture(scope="module", params=["train", "test"])
def crossed(request):
    """(the judge against a split, the images of this split, the images it was fitted on)."""
    other = {"train": "test", "test": "train"}[request.param]
    judge = load_extractor("digits", split=request.param)
    assert f"fitted on {other};" in judge.protocol
    return judge, load("digits", split=request.param), load("digits", split=other)


def test_features_and_logits_have_the_promised_form(judge, digits):
    images = digits.images[:7]
    assert judge(images).shape == (7, judge.dim) == (7, 64)
    assert judge(images).dtype == judge.logits(images).dtype == torch.float32
    assert judge.logits(images).shape == (7, 10)
    assert judge(images[:0]).shape == (0, 64)
    assert not judge(images).requires_grad


def test_says_which_weights_judged(judge):
    assert judge.digest == digits_judge.DIGITS_SHA256
    assert judge.protocol == f"digits-cnn@{judge.digest[:12]} fitted on test; no resize"
    assert load_extractor("digits", split="all").protocol == judge.protocol
    assert load_extractor("digits", split="test").protocol != judge.protocol


def test_features_do_not_depend_on_the_batch(judge, digits):
    images = digits.images[:600]
    together = judge(images)
    torch.testing.assert_close(judge(images.flip(0)).flip(0), together, rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(judge(images[:1]), together[:1], rtol=1e-6, atol=1e-7)


def test_knows_digits_that_it_never_saw(crossed):
    judge, unseen, _ = crossed
    assert (judge.logits(unseen.images).argmax(1) == unseen.labels).double().mean() > 0.98


def test_it_learned_from_the_half_that_it_says(crossed):
    judge, unseen, seen = crossed
    losses = [torch.nn.functional.cross_entropy(judge.logits(half.images), half.labels) for half in (seen, unseen)]
    assert losses[0] < 0.8 * losses[1]


def test_features_of_unseen_digits_are_of_one_scale(crossed):
    judge, unseen, _ = crossed
    assert judge(unseen.images).double().var(0).sum().item() == pytest.approx(judge.dim, rel=1e-4)


def test_distance_grows_with_damage(judge, digits):
    random = torch.Generator().manual_seed(0)
    noise = torch.randn(digits.images.shape, generator=random)
    reference = judge(digits.images)
    distances = [
        frechet_distance(judge((digits.images + level * noise).clamp(0, 255).to(torch.uint8)), reference)
        for level in (0, 20, 60, 120)
    ]
    assert distances == sorted(distances)
    assert distances[0] < 1e-6 < distances[1]


@pytest.mark.parametrize(
    ("images", "given"),
    [
        (torch.zeros(4, 3, 32, 32, dtype=torch.uint8), r"uint8 \(4, 3, 32, 32\)"),
        (torch.zeros(4, 1, 8, 8), r"float32 \(4, 1, 8, 8\)"),
        (torch.zeros(1, 8, 8, dtype=torch.uint8), r"uint8 \(1, 8, 8\)"),
    ],
)
def test_other_images_are_refused(judge, images, given):
    with pytest.raises(
        OnestepError, match=rf"'digits' judge takes only images like.*\(n, 1, 8, 8\) and was given {given}"
    ):
        judge(images)


def test_unknown_extractor_hints_at_the_known_one():
    with pytest.raises(OnestepError, match="did you mean 'digits'"):
        load_extractor("digit")


def test_damaged_or_missing_weights_are_one_clear_line(monkeypatch, tmp_path):
    weights = tmp_path / "weights.safetensors"
    monkeypatch.setattr(digits_judge, "DIGITS_WEIGHTS", weights)
    with pytest.raises(OnestepError, match=r"cannot read .*weights.safetensors.*reinstall"):
        load_extractor("digits")
    weights.write_bytes(b"rubbish")
    with pytest.raises(OnestepError, match=r"weights.safetensors is damaged.*reinstall"):
        load_extractor("digits")
