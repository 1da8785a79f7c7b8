"""SFDDM against arrays computed with its released code, and what its maps promise."""

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from onestep_bench.denoiser import DDPM, Denoiser, ddpm_denoiser, edm_denoiser
from onestep_bench.errors import OnestepError
from onestep_bench.methods import Nets, get
from onestep_bench.methods.sfddm import (
    SFDDMConfig,
    even_map,
    full_map,
    head_features,
    sfddm_loss,
    sub_path,
    trailing_map,
)
from onestep_bench.networks.build import sized
from onestep_bench.paths import VP, alphas_cumprod
from onestep_bench.samplers import ddim, ddim_times, interpolate
from onestep_bench.training.config import TrainConfig

REFERENCE = dict(np.load(Path(__file__).parents[1] / "reference/sfddm.npz"))
SCHEDULES = ("linear", "cosine", "sigmoid")
STUDENTS = ("T128", "T16", "T8", "T100", "T16_custom", "T4_custom")


def array(name):
    return torch.from_numpy(REFERENCE[name])


def indices_of(schedule, student):
    custom = f"{schedule}/{student}/mapping"
    if custom in REFERENCE:
        return REFERENCE[custom].tolist()
    return even_map(1024, int(student[1:]))


class Toy(torch.nn.Module):
    """The toy networks of the reference: features h = tanh(w x + sin(3 t/T)), eps = o h."""

    def __init__(self, who, levels):
        super().__init__()
        self.w, self.o = torch.nn.Parameter(array(f"{who}/w")), torch.nn.Parameter(array(f"{who}/o"))
        self.levels = levels

    def features(self, x, level):
        return torch.tanh(
            torch.einsum("kc,nchw->nkhw", self.w, x) + torch.sin(3 * level / self.levels)[:, None, None, None]
        )

    def forward(self, x, level, labels=None):
        return torch.einsum("ck,nkhw->nchw", self.o, self.features(x, level))


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_teacher_and_student_schedules(schedule):
    teacher = VP(alphas_cumprod(schedule, 1024))
    np.testing.assert_allclose(teacher.alphas_cumprod, REFERENCE[f"{schedule}/teacher_alphas_cumprod"], atol=1e-6)
    for student in STUDENTS:
        ours = sub_path(teacher, indices_of(schedule, student)).alphas_cumprod
        np.testing.assert_allclose(ours, REFERENCE[f"{schedule}/{student}/alphas_cumprod"], atol=1e-6)


@pytest.mark.parametrize("name", STUDENTS)
def test_loss_gradient_and_samples(name):
    key, indices = f"sigmoid/{name}", indices_of("sigmoid", name)
    path = sub_path(VP(alphas_cumprod("sigmoid", 1024)), indices)
    student, teacher = Toy("student", len(indices)), Toy("teacher", 1024)
    level = array(f"{key}/t")
    x = path.mix(array("images_unit_range") * 2 - 1, array("noise"), (level + 1).float())
    theirs = torch.tensor(indices)[level]
    features = student.features(x, level), teacher.features(x, theirs)
    loss = sfddm_loss(student(x, level), teacher(x, theirs), *features)
    loss.backward()
    assert loss.item() == pytest.approx(REFERENCE[f"{key}/loss"], rel=1e-5)
    torch.testing.assert_close(student.w.grad, array(f"{key}/grad_w"), rtol=1e-5, atol=1e-7)

    denoiser = Denoiser(student, DDPM(path, "eps"))
    images = ddim(denoiser, array("x_T"), torch.arange(len(indices), -1, -1), clip=True)
    torch.testing.assert_close((images + 1) / 2, array(f"{key}/ddim_images_unit_range"), rtol=0, atol=1e-4)


@pytest.mark.parametrize("steps", [4, 16, 64])
def test_teacher_samples(steps):
    teacher = ddpm_denoiser(Toy("teacher", 1024), alphas_cumprod("sigmoid", 1024))
    images = ddim(teacher, array("x_T"), ddim_times(steps, 1024), clip=True)
    torch.testing.assert_close((images + 1) / 2, array(f"teacher_ddim/{steps}"), rtol=0, atol=1e-4)


@given(st.integers(1, 300), st.data())
def test_maps_rise_strictly_within_the_teacher(levels, data):
    students = data.draw(st.integers(1, levels))
    for chosen in (even_map(levels, students), full_map(levels, students), trailing_map(levels, students)):
        assert len(chosen) == students
        assert chosen[0] >= 0
        assert chosen[-1] < levels
        assert all(a < b for a, b in itertools.pairwise(chosen))
    assert full_map(levels, students)[-1] == trailing_map(levels, students)[-1] == levels - 1


def test_even_map_leaves_the_published_signal_at_the_start():
    teacher = VP(alphas_cumprod("sigmoid", 1024))
    left = {16: 0.148, 8: 0.229, 4: 0.385, 2: 0.706}
    for students, signal in left.items():
        path = sub_path(teacher, even_map(1024, students))
        assert float(path.alphas_cumprod[-1].sqrt()) == pytest.approx(signal, abs=6e-4)
        assert float(sub_path(teacher, full_map(1024, students)).alphas_cumprod[-1].sqrt()) < 1e-3


@pytest.mark.parametrize("indices", [[], [0, 0, 1], [3, 2], [-1, 4], [0, 1024]])
def test_bad_maps_are_refused(indices):
    with pytest.raises(OnestepError, match="rise strictly"):
        sub_path(VP(alphas_cumprod("linear", 1024)), indices)


@pytest.mark.parametrize(
    "options",
    [
        {"student_levels": 0},
        {"student_levels": 1025},
        {"map": "evn"},
        {"map": "custom", "indices": (1, 2)},
        {"condition": "none"},
        {"predicts": "x0"},
        {"schedule": "cosin"},
    ],
)
def test_bad_options_are_refused(options):
    with pytest.raises(OnestepError):
        SFDDMConfig(**options).path()


@pytest.mark.parametrize("students", [1, 3, 7, 100])
def test_any_number_of_levels(students):
    """A student of T' levels samples in T' steps, T' evaluations, whatever T' is."""
    path = SFDDMConfig(student_levels=students).path()
    assert path.t_max == students
    student = Denoiser(sized("0.05M", 8, 1), DDPM(path, "v")).eval()
    images = ddim(student, torch.randn(2, 1, 8, 8), ddim_times(students, students), clip=True)
    assert images.isfinite().all()


def _objective(cfg, student_size, *, same=False):
    method = get("sfddm")
    teacher = edm_denoiser(sized("0.05M", 8, 1)).eval().requires_grad_(False)
    net = sized(student_size, 8, 1)
    if same:
        net.load_state_dict(teacher.net.state_dict())
    nets = Nets(method.student(cfg, net, teacher.native if same else None, teacher), teacher)
    nets.auxiliary = method.auxiliary(nets, cfg)
    return method.objective(nets, cfg), nets


def _loss(objective):
    from onestep_bench.methods import Batch
    from onestep_bench.seeds import Draw

    images = torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    draw = Draw(0, 0, batch_size=4, rows=slice(0, 4), progress=0.0)
    return next(objective(Batch(images), draw))


@pytest.mark.parametrize("predicts", ["v", "eps"])
def test_the_teacher_itself_is_a_minimiser(predicts):
    """With the teacher's weights and its conditioning the loss is zero: what SFDDM can reach at best."""
    objective, _ = _objective(SFDDMConfig(student_levels=4, predicts=predicts), "0.05M", same=True)
    loss, _ = _loss(objective)
    assert loss.item() == pytest.approx(0, abs=1e-5)


def test_another_width_is_projected_and_trained_with_the_student():
    objective, nets = _objective(SFDDMConfig(student_levels=4), "0.2M")
    loss, trained = _loss(objective)
    loss.backward()
    assert trained == ("student", "projection")
    assert nets.auxiliary["projection"].weight.grad.abs().sum() > 0


def test_a_student_of_other_patches_is_refused(refuses):
    with refuses("patches of side 2", "teacher's into 1"):
        _objective(SFDDMConfig(student_levels=4), "0.05M-p2")


@pytest.mark.parametrize("size", ["0.05M", "44.7M"])
def test_features_are_what_enters_the_head(size):
    resolution, channels, labels = (8, 1, 0) if size == "0.05M" else (16, 3, 0)
    denoiser = edm_denoiser(sized(size, resolution, channels, label_dim=labels)).eval()
    with head_features(denoiser) as features, torch.no_grad():
        denoiser(torch.randn(2, channels, resolution, resolution), torch.tensor(1.0))
    assert features[0].shape == (2, denoiser.net.head_norm.weight.shape[0], resolution, resolution)


def test_the_size_nearest_to_the_released_one():
    with torch.device("meta"):
        net = sized("44.5M", 32, 3)
    assert sum(parameter.numel() for parameter in net.parameters()) == 44_490_115
    assert net.config["model_channels"] == 64
    assert net.config["channel_mult"] == [1, 2, 4, 8]


def test_published_settings_can_be_written_down():
    training = TrainConfig(**get("sfddm").training | {"kimg": 500, "batch_size": 50, "ema_halflife_kimg": 0})
    assert (training.steps, training.lr, training.ema_decay(9_999)) == (10_000, 2e-4, 0)
    config = SFDDMConfig(student_levels=128, map="even", condition="index", predicts="eps")
    assert config.path().t_max == 128


def test_spherical_interpolation_keeps_the_variance_and_linear_halves_it():
    a, b = torch.randn(2, 4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    assert interpolate(a, b, 0.5, spherical=True).var().item() == pytest.approx(1, abs=0.03)
    assert interpolate(a, b, 0.5, spherical=False).var().item() == pytest.approx(0.5, abs=0.03)
    for spherical in (True, False):
        torch.testing.assert_close(interpolate(a, b, 0.0, spherical=spherical), a)
        torch.testing.assert_close(interpolate(a, b, 1.0, spherical=spherical), b)
