"""Moment matching: the student moves by the teacher's and its own mean images, the auxiliary denoiser lies between."""

import pytest
import torch
from torch import nn

from onestep_bench import methods
from onestep_bench.denoiser import EDM, Denoiser, IdealDenoiser
from onestep_bench.errors import OnestepError
from onestep_bench.methods import Batch, Nets
from onestep_bench.methods import moment_matching as mm
from onestep_bench.methods.score_distillation import score_difference
from onestep_bench.paths import FLOW, VE, posterior
from onestep_bench.samplers import flow_times
from onestep_bench.seeds import Draw

N = 512
DRAW = {"batch_size": N, "rows": slice(None), "progress": 0.0}


class Answers(nn.Module):
    """A denoiser that answers one learned image, on a path; it remembers where it was asked."""

    def __init__(self, value, path):
        super().__init__()
        self.value, self.path, self.asked = nn.Parameter(torch.tensor(float(value))), path, []

    def on(self, path):
        return self if path == self.path else Answers(self.value.item(), path)

    def forward(self, x, t, labels=None, *, want="x0"):
        self.asked.append((x, t))
        return self.value.expand_as(x)


def run(student, teacher, fake, steps, path=VE):
    nets = Nets(Answers(student, path), Answers(teacher, VE))
    nets.auxiliary = {"fake": Answers(fake, VE)}
    objective = mm.moment_matching(nets, mm.MomentMatchingConfig(student_steps=steps))
    batch = Batch(torch.zeros(N, 1, 2, 2))
    return nets, dict((name, loss) for loss, name in objective(batch, Draw(0, 0, **DRAW)))


@pytest.mark.parametrize("path", [VE, FLOW])
def test_levels_are_the_k_of_the_sampler_and_end_within_their_step(path):
    nets, _ = run(0.2, 0.5, 0.4, steps=4, path=path)
    (_, t), (_, s) = nets.student.asked[0], nets.auxiliary["fake"].asked[0]
    levels = flow_times(path, 4).float()
    assert torch.isclose(t[:, None], levels[None, :-1], rtol=1e-4).sum(1).eq(1).all()
    assert len(t.unique()) == 4
    place = FLOW.t_at(s)
    top = FLOW.t_at(path.ratio(t))
    lower = torch.where(top > 0.9, 0.75, top - 0.25).clamp(min=0)
    assert (place <= top + 1e-5).all()
    assert (place >= lower - 1e-5).all()
    assert s.min() >= mm.LEAST - 1e-7


def test_the_student_moves_towards_the_teacher_by_the_difference_of_the_two_denoisers():
    nets, losses = run(student=0.2, teacher=0.5, fake=0.4, steps=2)
    losses["student"].backward()
    # The mean over the batch of sqrt(1/sigma^2 + 1/0.5^2) (F - R), of every pixel alike.
    (_, sigma) = nets.auxiliary["fake"].asked[0]
    expected = ((sigma**-2 + 4).sqrt() * (0.4 - 0.5)).mean()
    torch.testing.assert_close(nets.student.value.grad, expected, rtol=1e-4, atol=0)


def test_the_auxiliary_denoiser_comes_to_lie_between_the_students_image_and_the_teachers():
    nets, losses = run(student=0.2, teacher=0.6, fake=0.4, steps=2)
    losses["fake"].backward()
    assert nets.auxiliary["fake"].value.grad.abs() < 1e-4 * losses["fake"].item()
    assert nets.student.value.grad is None
    nets, losses = run(student=0.2, teacher=0.6, fake=0.5, steps=2)
    losses["fake"].backward()
    assert nets.auxiliary["fake"].value.grad > 0


def test_the_loss_of_the_auxiliary_denoiser_is_that_of_the_formula():
    draw = torch.Generator().manual_seed(0)
    found, x, wanted = torch.randn(3, 5, 1, 2, 2, generator=draw, dtype=torch.float64)
    sigma = torch.rand(5, generator=draw, dtype=torch.float64) + 0.1
    by_hand = [
        (1 / s**2 + 4) * ((f - a) ** 2 + (f - b) ** 2).mean()
        for f, a, b, s in zip(found, x, wanted, sigma, strict=True)
    ]
    torch.testing.assert_close(mm.moments_loss(found, x, wanted, sigma), sum(by_hand) / 5)


def test_in_one_step_from_noise_it_is_score_distillation():
    """At the noise end the state tells nothing of the data, and what is noised again is the image with fresh noise."""
    draw = torch.Generator().manual_seed(0)
    x, x_t, fresh = torch.randn(3, 6, 1, 2, 2, generator=draw, dtype=torch.float64)
    sigma = torch.rand(6, generator=draw, dtype=torch.float64) + 0.1
    teacher, fake = (IdealDenoiser(torch.randn(4, 1, 2, 2, generator=draw, dtype=torch.float64)) for _ in range(2))
    s = FLOW.t_at(sigma)
    y = posterior(FLOW, x_t, x, fresh, torch.ones(6, dtype=torch.float64), s) / FLOW.alpha(s).reshape(-1, 1, 1, 1)
    torch.testing.assert_close(y, VE.mix(x, fresh, sigma))
    ours = mm.in_units(fake(y, sigma, want="x0") - teacher(y, sigma, want="x0"), sigma)
    found = score_difference(teacher, fake, x, fresh, sigma, normalise=False)
    torch.testing.assert_close(ours, (sigma**-2 + 4).sqrt().reshape(-1, 1, 1, 1) * found)


def test_a_student_that_is_still_its_teacher_stays_where_it_is_however_its_steps_end():
    """DMD2's weight would be 0/0 there: a step from noise may end where it begins."""
    nets, losses = run(student=0.5, teacher=0.5, fake=0.5, steps=1)
    losses["student"].backward()
    assert losses["student"] == 0
    assert nets.student.value.grad == 0
    _, losses = run(student=0.5, teacher=0.5, fake=0.51, steps=1)
    assert losses["student"] < 1


def test_settings_that_make_no_sense_are_refused():
    for options, told in (({"student_steps": 0}, "student_steps"), ({"fake_lr": 0.0}, "fake_lr")):
        with pytest.raises(OnestepError, match=told):
            mm.MomentMatchingConfig(**options)


def test_the_student_is_the_teachers_network_on_its_path_and_its_rival_another_copy():
    net = nn.Identity()
    chosen = methods.get("moment-matching")
    teacher = Denoiser(net, EDM())
    student = chosen.student(chosen.config(), net, None, teacher)
    assert student.path == VE
    made = chosen.auxiliary(Nets(student, teacher), chosen.config())
    assert made["fake"].net is not net
