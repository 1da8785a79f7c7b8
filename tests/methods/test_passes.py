"""Passes through networks, an image of the budget: of every method, against a count by hand."""

import pytest
import torch

from onestep_bench import methods, networks
from onestep_bench.denoiser import edm_denoiser
from onestep_bench.methods import Nets
from onestep_bench.training.config import TrainConfig
from onestep_bench.training.loop import fit
from onestep_bench.training.passes import counting
from onestep_bench.training.source import Source
from onestep_bench.training.speed import compile_hearts, uncompile_hearts

# A forward pass is 1, one that is differentiated 3, one whose gradient is differentiated 7.
BY_HAND = {
    "edm": {"student": 3},
    "rectified-flow": {"student": 3},
    "ddpm": {"student": 3},
    "kd": {"student": 3, "teacher": 0},
    "annealing-reflow": {"student": 3},
    # The distillation loss, and one step and the second of two of the guidance loss, whose first is the student's.
    "flow-guided-distillation": {"student": 3 + 3, "teacher": 1},
    "sfddm": {"student": 3, "teacher": 1},
    "progressive": {"student": 3, "teacher": 2},
    "consistency-distillation": {"student": 3, "target": 1, "teacher": 2},
    "consistency-training": {"student": 3 + 1},
    "easy-consistency-tuning": {"student": 3 + 1},
    # The critic looks at the generator's image, then at a real and a fake one, and of every second step R1.
    # A pass that carries a derivative is 2, and 6 where it is differentiated. The last loss is one more of a known
    # velocity; what is along the network's own, one of it.
    "meanflow": {"student": 3 + 2},
    "meanflow-distillation": {"student": 3 + 2, "teacher": 1},
    # Of four steps the first two are at alpha = 1, where nothing is composed.
    "alpha-flow": {"student": 3 + 2 / 4},
    "shortcut": {"student": 3, "target": 2 / 4},
    "progressive-self-distillation": {"student": 3 + 2},
    "imm": {"student": 3 + 1},
    "soflow": {"student": 3 + 1},
    # The derivative, the jump to the data and the anchor.
    "facm": {"student": 2 + 3 + 3},
    "facm-distillation": {"student": 2 + 3 + 3, "teacher": 1},
    "sct": {"student": 3 + 2},
    "scd": {"student": 3 + 2, "teacher": 1},
    "truncated-consistency": {"student": 3 + 1, "teacher": 1},
    "2-rf++": {"student": 3},
    # Of three steps of the fake score the first is on the images of the generator's own; in each of them the critic
    # looks at real and at generated images.
    "score-distillation": {"student": 3 + 2, "teacher": 1, "fake": 1 + 3 * 3, "critic": 3 + 3 * (3 + 3)},
    "sid": {"student": 1 + 3, "teacher": 3, "fake": 3 + 3},
    "moment-matching": {"student": 3, "teacher": 1, "fake": 1 + 3},
    "drifting": {"student": 3, "teacher": 0},
    "gdd": {"student": 3 + 1, "critic": 3 + 3 + 3 + 7 / 2, "teacher": 0},
}
OPTIONS = {
    "gdd": {"critic_channels": 8, "r1_interval": 2},
    "progressive": {"steps": 2},
    "shortcut": {"every": 4},
    "score-distillation": {"fake_steps": 3},
    "drifting": {"group": 4},
}
IMAGES = 8 * 4  # a step's by steps


def test_every_method_is_counted_by_hand():
    assert BY_HAND.keys() == set(methods.names())


def nets_of(method, size="0.05M", **options):
    """Networks that are no longer fresh, which answer 0 whatever they are asked."""
    torch.manual_seed(0)
    nets = [networks.sized(name, 8, 1) for name in (size, "0.05M")]
    if method.two_times:
        nets[0].add_second_time()
    for parameter in (parameter for net in nets for parameter in net.parameters()):
        parameter.data += 0.05 * torch.randn_like(parameter)
    config = method.config(**OPTIONS.get(method.name, {}) | options)
    teacher = edm_denoiser(nets[1]).eval().requires_grad_(False) if method.needs_teacher else None
    made = Nets(method.student(config, nets[0], None, teacher).train(), teacher)
    made.auxiliary = method.auxiliary(made, config)
    return made, method.objective(made, config)


def trained(name, *, size="0.05M", accumulate=1, backend=None, **options):
    """The rows of a run of four steps, one a step."""
    nets, objective = nets_of(methods.get(name), size, **options)
    everything = {"student": nets.student, **nets.auxiliary}
    counted = everything | ({"teacher": nets.teacher} if nets.teacher else {})
    if backend:
        compile_hearts(counted.values(), backend)
    images = torch.randint(0, 256, (16, 1, 8, 8), dtype=torch.uint8)
    source = Source(images, None, torch.randn(16, 1, 8, 8), "cpu")
    config = TrainConfig(kimg=IMAGES / 1000, batch_size=8, accumulate=accumulate)
    yield from fit(objective, everything, source, config, seed=0, networks=counted)
    uncompile_hearts(counted.values())
    assert not any("forward" in vars(module) for net in counted.values() for module in net.modules())


def by_hand(name):
    return {network: count * IMAGES / 1000 for network, count in BY_HAND[name].items()}


@pytest.mark.parametrize("name", BY_HAND)
@pytest.mark.parametrize("accumulate", [1, 2])
def test_passes_are_those_counted_by_hand(name, accumulate):
    *_, row = trained(name, accumulate=accumulate)
    assert row.passes == by_hand(name)


def test_a_projection_is_no_network():
    *_, row = trained("sfddm", size="0.2M")
    assert row.passes == by_hand("sfddm")


@pytest.mark.parametrize(
    ("name", "options", "counts"),
    [
        ("meanflow", {"loss": "improved"}, {"student": 3 + 2 + 1}),
        ("meanflow", {"explicit": True}, {"student": 3 + 2}),
        ("meanflow", {"loss": "lagrangian"}, {"student": 6 + 1}),
        # The derivative in x has no gradient, that in t has.
        ("meanflow", {"loss": "eulerian"}, {"student": 1 + 2 + 6}),
        ("meanflow", {"loss": "eulerian", "through": True}, {"student": 1 + 6}),
        ("soflow", {"same": 0.5}, {"student": 3 + 1 + 3}),
        ("alpha-flow", {"derivative": True}, {"student": 3 + (0 + 0 + 1 + 2) / 4}),
        # Diff-Instruct, and SiDA, whose critic looks at a real, at a generated and at the generator's image.
        (
            "score-distillation",
            {"adversarial": 0, "fake_steps": 1},
            {"student": 3, "teacher": 1, "fake": 1 + 3},
        ),
        (
            "sid",
            {"adversarial": 0.01, "adversarial_after": 0, "group": 4},
            {"student": 1 + 3, "teacher": 3, "fake": 3 + 3, "critic": 3 + 3 + 3},
        ),
        ("drifting", {"space": "teacher"}, {"student": 3, "teacher": 0, "encoder": 3 + 1}),
    ],
)
def test_passes_of_other_losses(name, options, counts):
    *_, row = trained(name, **options)
    assert {network: row.passes[network] for network in counts} == {
        network: count * IMAGES / 1000 for network, count in counts.items()
    }


@pytest.mark.parametrize(
    "name",
    [
        "edm",
        "meanflow",
        *(pytest.param(name, marks=pytest.mark.slow) for name in ("gdd", "consistency-distillation", "sfddm")),
    ],
)
def test_what_is_compiled_is_counted_the_same_and_compiled_once(name):
    """As `fit` compiles on a GPU; with the backend that needs no compiler, but the same differentiation."""
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return torch._dynamo.lookup_backend("aot_eager")(graph, inputs)

    compiled = [(row, len(graphs)) for row in trained(name, backend=backend)]
    assert compiled[-1][0].passes == by_hand(name)
    assert 0 < compiled[1][1] == compiled[-1][1]  # R1 comes every second step


def test_outputs_of_one_call_count_once_and_what_is_not_differentiated_not_at_all():
    class Twice(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = torch.nn.Linear(2, 2)

        def forward(self, x):
            return {"one": self.layer(x), "other": [self.layer(x)]}

    network, counts = Twice(), {}
    with counting({"twice": network, "again": network}, counts):
        out = network(torch.zeros(5, 2))
        (out["one"].sum() + out["other"][0].sum()).backward()
        network(torch.zeros(5, 2))["one"].detach()
    network(torch.zeros(5, 2))
    assert counts == {"twice": 5 + 10 + 5}
