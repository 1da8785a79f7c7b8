"""The teachers' losses have the right minimum, and every method of the registry trains."""

import dataclasses
import math

import pytest
import torch

from onestep_bench import methods, networks, study
from onestep_bench.data.registry import Dataset
from onestep_bench.denoiser import IdealDenoiser, ddpm_denoiser, edm_denoiser
from onestep_bench.losses import velocity_loss
from onestep_bench.methods.teacher import ddpm_loss, edm_loss
from onestep_bench.paths import FLOW, VP, alphas_cumprod
from onestep_bench.seeds import seed_for

ABAR = alphas_cumprod("sigmoid", 100)


class Shifted(torch.nn.Module):
    """A denoiser that is wrong by a constant factor or offset in x0."""

    def __init__(self, denoiser, factor, offset):
        super().__init__()
        self.denoiser, self.path, self.factor, self.offset = denoiser, denoiser.path, factor, offset

    def forward(self, x, t, labels=None, *, want="x0", augment=None):
        x0 = self.factor * self.denoiser(x, t) + self.offset
        eps = self.path.from_x0(x, x0, t)
        return {"x0": x0, "eps": eps}[want] if want != "velocity" else self.path.velocity(x0, eps, t)


PERTURBED = [(1.05, 0.0), (0.95, 0.0), (1.0, 0.05), (1.0, -0.05)]


@pytest.fixture(scope="module")
def images():
    return torch.rand(6, 1, 4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 2 - 1


@pytest.fixture(scope="module")
def batch(images):
    """4000 images of the set, with noise and a uniform number each."""
    generator = torch.Generator().manual_seed(1)
    data = images[torch.randint(0, 6, (4000,), generator=generator)]
    return data, torch.randn(data.shape, generator=generator).double(), torch.rand(4000, generator=generator).double()


@pytest.mark.parametrize(("factor", "offset"), PERTURBED)
def test_the_posterior_mean_minimises_every_loss(images, batch, factor, offset):
    data, noise, u = batch
    sigma = torch.exp(-1.2 + 1.2 * torch.erfinv(2 * u - 1) * math.sqrt(2))
    vp, flow = VP(ABAR), FLOW
    losses = {
        "edm": lambda denoiser: edm_loss(denoiser, data, noise, sigma, 0.5),
        "flow": lambda denoiser: velocity_loss(denoiser, data, noise, 0.999 * u),
        "eps": lambda denoiser: ddpm_loss(denoiser, data, noise, 1 + (99 * u).round(), "eps"),
        "v": lambda denoiser: ddpm_loss(denoiser, data, noise, 1 + (99 * u).round(), "v"),
    }
    ideal = IdealDenoiser(images)
    for name, path in (("edm", ideal.path), ("flow", flow), ("eps", vp), ("v", vp)):
        seen = ideal.on(path)
        assert losses[name](seen) < losses[name](Shifted(seen, factor, offset)), name


def test_edm_loss_is_its_formula(images, batch):
    data, noise, u = (rows[:50] for rows in batch)
    sigma, ideal = 0.1 + u, IdealDenoiser(images)
    total = 0.0
    for row in range(50):
        s = sigma[row].item()
        x0 = ideal(data[row : row + 1] + s * noise[row : row + 1], s)
        total += (s**2 + 0.25) / (s * 0.5) ** 2 * (x0 - data[row]).square().mean().item() / 50
    assert edm_loss(ideal, data, noise, sigma, 0.5).item() == pytest.approx(total)


class Toy(torch.nn.Module):
    def forward(self, x, index, labels=None):
        return torch.sin(3 * x) + index.reshape(-1, 1, 1, 1) / 50


@pytest.mark.parametrize("predicts", ["eps", "v"])
def test_ddpm_loss_is_the_error_of_what_the_network_predicts(batch, predicts):
    data, eps, _ = (rows[:50] for rows in batch)
    level = torch.randint(0, 100, (50,), generator=torch.Generator().manual_seed(2))
    alpha, sigma = (power.sqrt().reshape(-1, 1, 1, 1) for power in (ABAR[level], 1 - ABAR[level]))
    target = eps if predicts == "eps" else alpha * eps - sigma * data
    expected = (Toy()(alpha * data + sigma * eps, level) - target).square().mean()
    loss = ddpm_loss(ddpm_denoiser(Toy(), ABAR, predicts), data, eps, (level + 1).double(), predicts)
    assert loss.item() == pytest.approx(expected.item())


@pytest.fixture(scope="module")
def digits_like():
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (32, 1, 8, 8), dtype=torch.uint8, generator=generator)
    return Dataset("tiny", pixels, torch.arange(32) % 4, "0123456789abcdef")


FITTING = {"drifting": {"group": 8}}  # a batch of eight


def trained(name, data, **options):
    """A model of the method, three steps old, with whatever it needs made first."""
    method = methods.get(name)
    teacher = study.train("edm", data, size="0.05M", kimg=0.008, batch_size=8, **options)
    asked = {"kimg": 0.024, "batch_size": 8, "teacher": teacher if method.needs_teacher else None, **options}
    if method.data == "pairs":
        data = study.make_pairs(teacher, 16, steps=2)
    return study.train(name, data, size="0.05M", **asked, **FITTING.get(name, {}))


@pytest.mark.parametrize("conditional", [False, True], ids=["unconditional", "conditional"])
@pytest.mark.parametrize("name", methods.names())
@pytest.mark.usefixtures("store_folder")
def test_every_method_trains_and_its_students_sample(name, conditional, digits_like):
    model = trained(name, digits_like, conditional=conditional)
    assert [row.step for row in model.history] == [1, 2, 3]
    assert all(math.isfinite(loss) for row in model.history for loss in row.losses.values())
    assert model.class_counts == ([8] * 4 if conditional else [])
    assert model.denoiser.num_classes == (4 if conditional else 0)
    assert model.artifact.recipe["method"] == name
    assert study.sample(model, [0, 1], steps=1).shape == (2, 1, 8, 8)


@pytest.mark.parametrize("name", methods.names())
@pytest.mark.usefixtures("store_folder")
def test_every_method_starts_from_any_model(name, digits_like):
    method = methods.get(name)
    init = study.train("edm", digits_like, size="0.05M", kimg=0.008, batch_size=8, seed=1)
    data = study.make_pairs(init, 16, steps=2) if method.data == "pairs" else digits_like
    asked = {"kimg": 0.008, "batch_size": 8, "teacher": init if method.needs_teacher else None}
    model = study.train(name, data, init=init, **asked, **FITTING.get(name, {}))
    assert model.size == "0.05M"
    assert math.isfinite(model.history[-1].loss)
    assert study.sample(model, [0, 1], steps=1).shape == (2, 1, 8, 8)


@pytest.mark.parametrize("name", ["edm", "rectified-flow", "ddpm"])
@pytest.mark.usefixtures("store_folder")
def test_teachers_are_told_of_augmentation(name, digits_like):
    asked = {"size": "0.05M", "kimg": 0.016, "batch_size": 8, "augment": 0.5}
    model = study.train(name, digits_like, **asked)
    torch.manual_seed(seed_for(0, "init"))
    start = networks.sized("0.05M", 8, 1, augment_dim=9).state_dict()["map_augment.weight"]
    # What never reached the network would have had no gradient.
    assert model.denoiser.augment_dim == 9
    assert not torch.allclose(model.denoiser.net.map_augment.weight.cpu(), start, atol=1e-6)
    assert model.size == "0.05M"
    assert study.sample(model, [0, 1], steps=1).shape == (2, 1, 8, 8)
    onward = study.train(name, digits_like, init=model, **asked | {"size": None})
    assert onward.denoiser.augment_dim == 9


@pytest.mark.usefixtures("store_folder")
def test_who_does_not_tell_its_student_is_refused_augmented_images(digits_like, refuses):
    teacher = study.train("edm", digits_like, size="0.05M", kimg=0.008, batch_size=8)
    with refuses("sfddm does not tell", "leave augment at 0"):
        study.train("sfddm", digits_like, size="0.05M", kimg=0.008, teacher=teacher, augment=0.1)
    with refuses("not built to be told", "init"):
        study.train("edm", digits_like, kimg=0.008, init=teacher, augment=0.1)


def test_a_network_is_told_what_it_takes(refuses):
    denoiser = edm_denoiser(networks.sized("0.05M", 8, 1))
    with refuses("takes 0 augmentation labels, not 9"):
        denoiser(torch.zeros(2, 1, 8, 8), 1.0, augment=torch.zeros(2, 9))


def test_no_labels_are_labels_of_nothing_and_others_are_heard():
    torch.manual_seed(0)
    net = networks.sized("0.05M", 8, 1, augment_dim=9)
    for parameter in net.parameters():
        parameter.data += 0.05 * torch.randn_like(parameter)
    for denoiser in (edm_denoiser(net), edm_denoiser(net).on(FLOW), ddpm_denoiser(net, ABAR)):
        x, t = torch.randn(2, 1, 8, 8), torch.full((2,), 0.5)
        assert torch.equal(denoiser(x, t), denoiser(x, t, augment=torch.zeros(2, 9)))
        assert not torch.allclose(denoiser(x, t), denoiser(x, t, augment=torch.ones(2, 9)))


@pytest.mark.parametrize("name", methods.names())
def test_every_method_is_described(name):
    method = methods.get(name)
    assert method.name == name
    assert method.data in ("images", "pairs")
    assert dataclasses.is_dataclass(method.config)
    method.config()  # everything has a default


def test_an_unknown_method_is_named(refuses):
    with refuses("'anealing-reflow'", "did you mean 'annealing-reflow'?"):
        methods.get("anealing-reflow")
