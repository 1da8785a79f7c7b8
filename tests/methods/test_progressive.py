"""Progressive distillation: its target, its weights, and that halving fold by fold keeps the grid."""

import pytest
import torch

from onestep_bench import methods
from onestep_bench.denoiser import EDM, IdealDenoiser
from onestep_bench.errors import OnestepError
from onestep_bench.methods import Batch, Nets
from onestep_bench.methods.progressive import ProgressiveConfig, progressive, two_step_target, weight
from onestep_bench.paths import VE, VP, alphas_cumprod
from onestep_bench.samplers import ddim, ddim_times, default_times, sampler
from onestep_bench.seeds import Draw

PATH = VP(alphas_cumprod("sigmoid", 1024))


@pytest.fixture
def teacher():
    images = torch.randn(6, 1, 4, 4, generator=torch.Generator().manual_seed(1)).clamp(-1, 1)
    return IdealDenoiser(images).on(PATH)


@pytest.mark.parametrize("levels", [(1024.0, 960.0, 896.0), (512.0, 384.0, 256.0), (128.0, 64.0, 0.0)])
def test_one_step_to_the_target_lands_where_two_of_the_teacher_do(teacher, levels):
    t, middle, end = (torch.full((3,), level, dtype=torch.float64) for level in levels)
    x = torch.randn(3, 1, 4, 4, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    target = two_step_target(teacher, x, t, middle, end)
    one = PATH.mix(target, PATH.from_x0(x, target, t), end)

    class AsTheyAre:  # starts from x itself, not from scaled noise
        path = PATH

        def __call__(self, *args, **kwargs):
            return teacher(*args, **kwargs)

    two = ddim(AsTheyAre(), x, torch.tensor(levels))
    torch.testing.assert_close(one, two, rtol=1e-6, atol=1e-6)


def test_a_student_of_n_steps_walks_every_other_level_of_its_teacher():
    for steps in (1, 2, 3, 4, 8, 16, 100):
        assert (ddim_times(2 * steps, 1024)[::2] == ddim_times(steps, 1024)).all()


def test_on_edms_grid_the_loss_is_that_of_its_re_run(teacher):
    """openai/consistency_models_cifar10: two Euler steps on the grid of 2 N intervals, weighed by max(1, 1/t^2)."""
    config = ProgressiveConfig(steps=3, schedule="karras")
    assert config.path() == VE
    sigmas = [(80 ** (1 / 7) + i / 6 * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7 for i in range(7)]
    torch.testing.assert_close(config.times(), torch.tensor(sigmas, dtype=torch.float64))
    denoiser, net = teacher.on(VE), torch.nn.Conv2d(1, 1, 1).double()

    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = net

        def forward(self, x, k, labels=None):
            return self.layer(x)

    student = methods.get("progressive").student(config, Net(), EDM(), denoiser)
    data = torch.rand(8, 1, 4, 4, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    draw = Draw(0, 5, batch_size=8, rows=slice(0, 8), progress=0.0)
    ((loss, which),) = progressive(Nets(student, denoiser), config)(Batch(data), draw)
    total = 0.0
    for row in range(8):
        place = 2 * draw.integers("step", 0, 3)[row].item()
        t, t2, t3 = sigmas[place : place + 3]
        x = data[row : row + 1] + t * draw.normal("eps", (1, 4, 4))[row : row + 1]
        x2 = x + (t2 - t) * (x - denoiser(x, t)) / t
        x3 = x2 + (t3 - t2) * (x2 - denoiser(x2, t2)) / t2
        target = x - t * (x3 - x) / (t3 - t)
        total += max(1 / t**2, 1) * (student(x, t) - target).square().mean() / 8
    assert which == "student"
    assert loss.item() == pytest.approx(total.item(), rel=1e-6)


def test_on_edms_grid_a_student_samples_by_the_steps_it_was_taught():
    walked = []

    class Watched:
        path = VE

        def __call__(self, x, t, labels=None, *, want="x0"):
            walked.append(float(t))
            return torch.zeros_like(x)

    for steps in (1, 2, 8):
        walked.clear()
        sampler("ddim-intervals")(Watched(), torch.randn(1, 1, 4, 4), default_times(VE, steps))
        taught = ProgressiveConfig(steps=steps, schedule="karras").times()[::2]
        assert walked == pytest.approx(taught[:-1].tolist())


def test_weights():
    t = torch.tensor([1.0, 1024.0])
    snr = PATH.ratio(t) ** -2
    assert snr[0] > 1 > snr[1]
    torch.testing.assert_close(weight("truncated-snr", PATH, t), torch.stack([snr[0], torch.ones(())]))
    torch.testing.assert_close(weight("snr+1", PATH, t), snr + 1)


@pytest.mark.parametrize("options", [{"weight": "snr"}, {"steps": 0}, {"steps": 600}])
def test_bad_options_are_refused(options):
    with pytest.raises(OnestepError):
        ProgressiveConfig(**options)
