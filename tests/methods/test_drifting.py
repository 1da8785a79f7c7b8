"""Drifting: the field against the released code, where it vanishes and what it does to a cloud of points.

tests/reference/drifting.npz: lambertae/drifting accd0cf09c33, with its casts to float32 made float64.
"""

import pytest
import torch
from two_times import Arrays, holds

from onestep_bench import networks
from onestep_bench.denoiser import edm_denoiser
from onestep_bench.methods import Batch, Nets, get
from onestep_bench.methods.drifting import DriftingConfig, as_samples, drift, drift_loss
from onestep_bench.seeds import Draw

# In the order in which they are targets, and what the file calls them where it weighs them.
KINDS = {"gen": "gen", "negatives": "neg", "positives": "pos"}


@pytest.fixture(scope="module")
def arrays():
    return Arrays("drifting")


def test_the_field_and_its_loss_are_those_of_the_released_code(arrays):
    groups = arrays.groups("", "gen")
    assert groups
    for name in groups:
        samples = {kind: arrays[f"{name}/{kind}"] for kind in KINDS if f"{name}/{kind}" in arrays}
        gen, radii = samples["gen"], arrays[f"{name}/radii"].tolist()
        keys = {kind: f"{name}/weight_{KINDS[kind]}" for kind in samples}
        ones = {kind: torch.ones(each.shape[:2], dtype=each.dtype) for kind, each in samples.items()}
        weights = torch.cat([arrays[key] if key in arrays else ones[kind] for kind, key in keys.items()], 1)
        negatives = {"negatives": samples["negatives"]} if "negatives" in samples else {}
        gen = gen.clone().requires_grad_()
        field, unit = drift(gen, samples["positives"], radii, weights=weights, **negatives)
        holds(unit, arrays[f"{name}/unit"])
        holds(field, arrays[f"{name}/field"])
        per_group = drift_loss(gen, field, unit)
        holds(per_group.detach(), arrays[f"{name}/per_group"])
        holds(per_group.mean().detach(), arrays[f"{name}/loss"])
        (slope,) = torch.autograd.grad(per_group.mean(), gen)
        holds(slope, arrays[f"{name}/grad_gen"])


def cloud(count, centre, seed, width=0.3):
    draw = torch.Generator().manual_seed(seed)
    return centre + width * torch.randn(1, count, 2, generator=draw, dtype=torch.float64)


def test_samples_drift_towards_data_and_come_to_rest_spread_as_they_are():
    """By the field alone, of points that start far off and close together."""
    data = cloud(128, torch.tensor([1.0, -0.5]).double(), 0)
    points = cloud(128, torch.tensor([-1.0, 0.5]).double(), 1, width=0.02)
    for _ in range(400):
        field, unit = drift(points, data, (0.05, 0.2))
        points = points + 0.02 * unit * field
    assert (points.mean(1) - data.mean(1)).abs().max() < 0.1
    assert (points.std(1) / data.std(1)).log().abs().max() < 0.3


def test_the_field_turns_round_where_samples_and_data_change_places():
    """Up to what a sample does not do: push itself away."""
    some, others = cloud(256, 0.0, 2), cloud(256, 0.4, 3)
    there, back = (drift(a, b, (0.2,))[0].mean(1) for a, b in ((some, others), (others, some)))
    assert (there > 0.3).all()
    assert (back < -0.3).all()


def test_samples_see_their_own_class_alone():
    """As if each were a group of its own, but for the mean distance and the root mean square, which are shared."""
    gen, real, labels = cloud(8, 0.0, 4), cloud(8, 1.0, 5), torch.tensor([0, 1] * 4)
    apart = (labels[:, None] != labels).repeat(1, 2)
    field, _ = drift(gen, real, (0.2,), apart=apart)
    moved = real.clone()
    moved[:, labels == 1] = moved[:, labels == 1].flip(2) - 3.0
    other, _ = drift(gen, moved, (0.2,), apart=apart)
    assert not torch.allclose(field[:, labels == 1], other[:, labels == 1])
    only, _ = drift(gen, torch.where(labels.reshape(1, -1, 1) == 0, real, real + 1e-9), (0.2,), apart=apart)
    torch.testing.assert_close(only, field)
    for kind in (0, 1):  # directions of each class by itself
        own = labels == kind
        alone, _ = drift(gen[:, own], real[:, own], (0.2 * scale(gen, real, apart) / scale(gen[:, own], real[:, own]),))
        torch.testing.assert_close(*(each / each.norm() for each in (field[:, own], alone)))


def scale(gen, real, apart=None):
    """The mean distance, of those that see each other."""
    distance = torch.cdist(gen, torch.cat([gen, real], 1)).clamp(min=1e-4)
    return distance[:, ~apart].mean().item() if apart is not None else distance.mean().item()


def net(label_dim=0):
    torch.manual_seed(3)
    made = networks.sized("0.05M", 8, 1, label_dim)
    for parameter in made.parameters():  # fresh networks answer 0
        parameter.data += 0.05 * torch.randn_like(parameter)
    return made


def nets_of(label_dim=0, **options):
    method, config = get("drifting"), DriftingConfig(group=4, **options)
    teacher = edm_denoiser(net(label_dim)).eval().requires_grad_(False)
    nets = Nets(method.student(config, net(label_dim), None, teacher), teacher)
    nets.auxiliary = method.auxiliary(nets, config)
    return nets, method.objective(nets, config)


def images(count=8):
    drawn = torch.randint(0, 256, (count, 1, 8, 8), generator=torch.Generator().manual_seed(5))
    return drawn / 127.5 - 1


def draw(rows=slice(0, 8)):
    return Draw(0, 0, batch_size=8, rows=rows, progress=0.0)


@pytest.mark.parametrize("space", ["pixels", "teacher", "pixels+teacher"])
def test_micro_batches_of_whole_groups_are_the_whole_and_the_teacher_stands_still(space):
    nets, objective = nets_of(space=space)
    ((whole, which),) = objective(Batch(images()), draw())
    whole.backward()
    assert which == "student"
    assert all(parameter.grad is None for parameter in nets.teacher.parameters())
    assert sum(p.grad.abs().sum() for p in nets.student.parameters() if p.grad is not None) > 0
    halves = [slice(0, 4), slice(4, 8)]
    parts = [next(objective(Batch(images()[rows]), draw(rows)))[0].item() for rows in halves]
    assert sum(parts) / 2 == pytest.approx(whole.item(), rel=1e-4)


def test_classes_are_told():
    _, objective = nets_of(3, space="pixels+teacher")
    losses = []
    for labels in (torch.arange(8) % 2, torch.arange(8) // 4):
        ((loss, _),) = objective(Batch(images(), labels), draw())
        assert loss.isfinite()
        losses.append(loss.item())
    assert losses[0] != losses[1]


def test_places_are_groups_of_samples():
    maps = torch.arange(2 * 3 * 4.0).reshape(2, 3, 2, 2)
    assert as_samples(maps).shape == (4, 2, 3)
    assert torch.equal(as_samples(maps)[3, 1], maps[1, :, 1, 1])


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"space": "pixel"}, "did you mean 'pixels'"),
        ({"space": "inception"}, "unknown space 'inception'"),
        ({"radii": ()}, "radii"),
        ({"radii": (0.1, 0.0)}, "radii"),
        ({"group": 1}, "group"),
        ({"init_sigma": 0.0}, "a level of noise is a positive number"),
    ],
)
def test_bad_options(options, told, refuses):
    with refuses(told):
        DriftingConfig(**options)
