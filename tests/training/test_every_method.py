"""Every method, told classes and not: killed and resumed; and images of CIFAR-10's shape from teacher to samples."""

from dataclasses import replace

import pytest
import torch
from ranked import TINY, begun

from onestep_bench import data, methods, study

STEPS = 4
JOBS = [f"{name}:conditional" for name in methods.names()]
JOBS += [pytest.param(name, marks=pytest.mark.slow) for name in methods.names()]


class Killed(Exception):
    """Stands for a killed process."""


def killed_at(step):
    """What makes an objective end in the middle of a step."""

    def wrapped(objective):
        def fatal(batch, draw):
            yield from objective(batch, draw)
            if draw.step == step and draw.first:
                raise Killed

        return fatal

    return wrapped


def ended(job, **more):
    """Losses and passes of a run of two micro-batches a step, with dropout, and all that it trained."""
    rows, trained, ema = begun(job, STEPS, {"accumulate": 2}, dropout=0.2, **more)
    told = [(row.losses, row.passes) for row in rows]
    return told, [{**net.state_dict()} for net in (*trained.values(), ema)]


@pytest.mark.parametrize("job", JOBS)
def test_a_killed_run_of_every_method_ends_in_the_same_bits(job, tmp_path):
    expected, weights = ended(job)
    kept = {"checkpoint": tmp_path / "checkpoint.pt", "checkpoint_seconds": 0}
    with pytest.raises(Killed):
        ended(job, wrapped=killed_at(2), **kept)
    found, resumed = ended(job, **kept)
    assert len(found) == STEPS
    assert found == expected
    for ours, theirs in zip(resumed, weights, strict=True):
        assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


@pytest.fixture(scope="module")
def shaped_like_cifar(tmp_path_factory):
    """Noise of CIFAR-10's shape, and a teacher of it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ONESTEP_STORE", str(tmp_path_factory.mktemp("store")))
        draw, whole = torch.Generator().manual_seed(0), data.load("digits")
        images = torch.randint(0, 256, (32, 3, 32, 32), dtype=torch.uint8, generator=draw)
        noise = replace(whole, images=images, labels=torch.arange(32) % 10, digest="0123456789abcdef")
        yield noise, study.train("edm", noise, size="0.01M", conditional=True, kimg=0.016, batch_size=8)


@pytest.mark.slow
@pytest.mark.parametrize("name", methods.names())
def test_every_method_trains_and_is_sampled_at_the_shape_of_cifar(name, shaped_like_cifar):
    images, teacher = shaped_like_cifar
    method = methods.get(name)
    given = study.make_pairs(teacher, 16, steps=2) if method.data == "pairs" else images
    asked = teacher if method.needs_teacher else None
    options = TINY.get(name, {}) | {"kimg": 0.016, "batch_size": 8, "conditional": True}
    model = study.train(name, given, teacher=asked, init=teacher, **options)
    steps = (
        2 if model.denoiser.path.ratio(torch.tensor(model.denoiser.path.t_max)) > 1 else 1
    )  # where two steps would meet
    assert study.sample(model, range(2), sampler="push-forward", steps=steps).shape == (2, 3, 32, 32)
    assert [len(row.losses) for row in model.history]
