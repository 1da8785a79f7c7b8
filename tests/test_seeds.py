"""What a random number depends on, and nothing else."""

import pytest
import torch

from onestep_bench.seeds import Draw, generator, sample_labels, sample_noise, seed_for

SHAPE = (1, 2, 2)
COUNTS = [1] * 1000


def draw(seed=0, step=0, batch_size=6, rows=None):
    return Draw(seed, step, batch_size=batch_size, rows=rows or slice(0, batch_size), progress=0.0)


DRAWN = {
    "normal": lambda of, purpose="a": of.normal(purpose, SHAPE),
    "uniform": lambda of, purpose="a": of.uniform(purpose),
    "integers": lambda of, purpose="a": of.integers(purpose, 0, 10**9),
}


@pytest.mark.parametrize("drawn", DRAWN.values(), ids=DRAWN)
def test_a_draw_is_another_in_every_step_for_every_seed_and_purpose(drawn):
    first = drawn(draw())
    assert torch.equal(drawn(draw()), first)
    for other in (drawn(draw(step=1)), drawn(draw(seed=1)), drawn(draw(), "b")):
        assert not torch.equal(other, first)
    assert len(first.unique()) > 4


@pytest.mark.parametrize("drawn", DRAWN.values(), ids=DRAWN)
def test_parts_of_a_batch_draw_what_the_whole_does(drawn):
    whole = drawn(draw())
    parts = [drawn(draw(rows=rows)) for rows in (slice(0, 2), slice(2, 3), slice(3, 6))]
    assert torch.equal(torch.cat(parts), whole)


def test_draws_have_the_range_that_is_asked_for():
    uniform = draw(batch_size=4000).uniform("a", -2.0, 6.0)
    assert uniform.min() >= -2
    assert uniform.max() < 6
    assert uniform.mean() == pytest.approx(2, abs=0.2)
    assert uniform.std() == pytest.approx(8 / 12**0.5, abs=0.1)
    assert set(draw(batch_size=200).integers("a", 3, 6).tolist()) == {3, 4, 5}
    normal = draw(batch_size=4000).normal("a", ())
    assert (normal.mean().item(), normal.std().item()) == pytest.approx((0, 1), abs=0.05)


def test_a_samples_noise_and_label_follow_seed_purpose_and_index():
    noise, label = sample_noise(0, [5], SHAPE), sample_labels(0, [5], COUNTS)
    for asked in ((1, [5], "sample"), (0, [6], "sample"), (0, [5], "pairs")):
        seed, indices, purpose = asked
        assert not torch.equal(sample_noise(seed, indices, SHAPE, purpose), noise)
        assert not torch.equal(sample_labels(seed, indices, COUNTS, purpose), label)
    assert not sample_labels(0, [5], [])


def test_seeds_are_those_they_always_were():
    """Scores, pairs and models of earlier versions stand on them."""
    assert seed_for(0, "sample", 1) == 4032269933351459298
    assert seed_for(0, "sample", 1) != seed_for(0, "sample1")
    assert generator(0, "a").initial_seed() == seed_for(0, "a")
