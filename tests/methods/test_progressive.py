"""Progressive distillation: its target, its weights, and that halving fold by fold keeps the grid."""

import pytest
import torch

from onestep_bench.denoiser import IdealDenoiser
from onestep_bench.errors import OnestepError
from onestep_bench.methods.progressive import ProgressiveConfig, two_step_target, weight
from onestep_bench.paths import VP, alphas_cumprod
from onestep_bench.samplers import ddim, ddim_times

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
