"""What test_ranks.py starts as ranks: `python tests/ranked.py JOB FOLDER`; each writes FOLDER/JOB-RANK.pt.

The jobs are functions of a folder, so that the tests can also call them in their own process, which is no rank.
"""

import copy
import os
import signal
import sys
import time
from dataclasses import replace
from pathlib import Path

import torch

from onestep_bench import data, methods, networks, study
from onestep_bench.denoiser import EDM, Denoiser
from onestep_bench.errors import OnestepError
from onestep_bench.models import sampling
from onestep_bench.scoring import recipe, references
from onestep_bench.training import ranks, together
from onestep_bench.training.config import TrainConfig
from onestep_bench.training.loop import fit
from onestep_bench.training.source import Source

# Options with which a method shows in a few steps of eight images all that it does.
TINY = {
    "gdd": {"r1_interval": 2, "critic_channels": 8},
    "progressive": {"steps": 2},
    "shortcut": {"every": 2},
    "imm": {"members": 2},
    "truncated-consistency": {"every": 2, "ratio": 0.9},  # nearer levels differ by hardly more than rounding
    "consistency-training": {"first": 2, "last": 8, "target_decay": 0.9},
    "score-distillation": {"fake_steps": 2, "group": 2},
    "drifting": {"group": 2},
}
# Methods, told classes or not: how many steps of eight images, and options.
CURVES = {
    "edm": (50, {}),
    "gdd": (50, {"r1_interval": 8}),
    "consistency-distillation": (8, {"accumulate": 2}),
    "meanflow": (8, {}),
    "imm": (8, {"accumulate": 2}),
    "shortcut": (8, {"accumulate": 2}),
    "meanflow-distillation:conditional": (4, {}),
    "alpha-flow:conditional": (4, {}),
    "sct:conditional": (4, {"accumulate": 2}),
    "scd:conditional": (4, {}),
    "truncated-consistency:conditional": (4, {"accumulate": 2}),
    "consistency-training:conditional": (4, {"accumulate": 2}),
    "easy-consistency-tuning:conditional": (4, {}),
    "2-rf++:conditional": (4, {}),
    "score-distillation": (4, {"accumulate": 2, "divergence": "js"}),
    "drifting": (6, {"accumulate": 2, "space": "pixels+teacher"}),
    "sid:conditional": (2, {"accumulate": 2, "adversarial": 0.01, "adversarial_after": 0, "group": 2}),
    "moment-matching:conditional": (4, {"accumulate": 2}),
}
SHORT = TrainConfig(kimg=0.08, batch_size=4, lr=1e-2, hflip=True)  # 20 steps


def network(classes=0, dropout=0.0):
    """A U-Net of one level, for 8x8 digits, with none of the weights that start at zero.

    Adam makes whole steps of gradients that are nothing but rounding, and adversarial training then falls apart from
    another run's by any rounding at all, on one process too.
    """
    config = networks.SIZES["0.05M"] | {"channel_mult": (1,), "img_resolution": 8, "dropout": dropout}
    net = networks.build(config | {"in_channels": 1, "out_channels": 1, "label_dim": classes})
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return net


def begun(job, steps, options, dropout=0.0, wrapped=lambda objective: objective, **more):
    """The rows of a method's run of `steps` steps of eight digits, yet to be trained; its networks, and the average.

    job: the method's name, with ':conditional' behind it where the networks are told classes. wrapped: made of the
    objective before it is trained. more: see `fit`.
    """
    torch.manual_seed(0)
    name, _, conditional = job.partition(":")
    classes, method = 10 if conditional else 0, methods.get(name)
    teacher = Denoiser(network(classes), EDM()).eval().requires_grad_(False)
    options = TINY.get(name, {}) | options | {"kimg": steps * 8 / 1000, "batch_size": 8}
    config, training = study._configs(method, options)
    net = network(classes, dropout)
    if method.two_times:
        net.add_second_time()
    student = method.student(config, net, teacher.native, teacher).train()
    nets = methods.Nets(student, teacher)
    nets.auxiliary = method.auxiliary(nets, config)
    trained, ema = {"student": student, **nets.auxiliary}, copy.deepcopy(student)
    digits = data.load("digits")
    noise = torch.randn(96, 1, 8, 8) if method.data == "pairs" else None
    source = Source(digits.images[:96], digits.labels[:96] if conditional else None, noise, "cpu")
    objective = wrapped(method.objective(nets, config))
    more |= {"adams": method.adams(config, training.betas), "ema": ema, "group": method.group(config)}
    return fit(objective, trained, source, training, seed=1, **more), trained, ema


def curve(job, steps, options):
    """Losses of each step, and the weights of the student's average."""
    rows, _, ema = begun(job, steps, options)
    rows = list(rows)
    weights = torch.nn.utils.parameters_to_vector(ema.parameters())
    return {"losses": [row.losses for row in rows], "passes": rows[-1].passes, "ema": weights}


def curves(folder):
    """The loss curve of each method, a small training, what a bad loss on the last rank says, how dropout falls."""
    found = {name: curve(name, *what) for name, what in CURVES.items()}
    found["small"] = list(train_small())
    found["bad"] = refused(lambda: list(train_small(bad_at=3)))
    found["dropout"] = seen_by_dropout()
    torch.save(found, folder / f"curves-{ranks.index()}.pt")


def refused(call):
    """The line that the call is refused with."""
    try:
        call()
    except OnestepError as error:
        return str(error)
    return "not refused"


def train_small(folder=None, bad_at=None, kill_at=None):
    """20 steps of a network with dropout, a checkpoint after each; yields losses, and at last the weights."""
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Conv2d(1, 2, 1), torch.nn.Dropout(0.3), torch.nn.Conv2d(2, 1, 1))
    last = ranks.index() == ranks.count() - 1

    def objective(batch, draw):
        loss = (net(batch.images) - draw.normal("wanted", batch.images.shape[1:])).square().mean()
        if last and draw.step == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)
        yield loss * (float("nan") if last and draw.step == bad_at else 1.0), "student"

    images = torch.arange(40, dtype=torch.uint8).reshape(10, 1, 2, 2)
    checkpoint = folder / "checkpoint.pt" if folder else None
    nets, source = {"student": net}, Source(images, None, None, "cpu")
    for row in fit(objective, nets, source, SHORT, seed=2, checkpoint=checkpoint, checkpoint_seconds=0):
        yield row.losses
    yield net.state_dict()


def seen_by_dropout():
    """The masks of two steps."""
    masks = []

    def objective(batch, draw):
        masks.append(torch.nn.functional.dropout(torch.ones(64)))
        yield net.weight.sum(), "student"

    net = torch.nn.Conv2d(1, 1, 1)
    source = Source(torch.zeros(8, 1, 2, 2, dtype=torch.uint8), None, None, "cpu")
    list(fit(objective, {"student": net}, source, TrainConfig(kimg=0.016, batch_size=8), seed=0))
    return masks


def killed(folder):
    """Training in which the last rank is killed, if the folder has not seen that yet."""
    marker = folder / "killed"
    kill_at = None if marker.exists() else 8
    if ranks.index() == ranks.count() - 1:
        marker.touch()
    ranks.shared(None)  # nobody looks for the marker after it is there
    torch.save(list(train_small(folder, kill_at=kill_at)), folder / f"killed-{ranks.index()}.pt")


def digits():
    """The first 64 digits."""
    whole = data.load("digits")
    return replace(whole, images=whole.images[:64], labels=whole.labels[:64], digest="0123456789abcdef")


def artifacts(folder):
    """A model, pairs and scores; then, among ranks, a mishap."""
    sampling.BATCH = 16
    teacher = study.train("edm", digits(), size="0.05M", kimg=0.064, batch_size=8)
    pairs = study.make_pairs(teacher, 300, sampler="euler", steps=1)
    bundle = study.evaluate(teacher, digits(), label="EDM", steps=[1], seeds=[0], samples=27, splits=["test"])
    again = study.train("edm", digits(), size="0.05M", kimg=0.064, batch_size=8)
    found = {
        "keys": [teacher.artifact.key, pairs.artifact.key, again.artifact.key, bundle["rows"][0]["model"]],
        "pairs": pairs.images,
        "losses": [row.losses for row in teacher.history],
        "rows": bundle["rows"],
        "strips": bundle["strips"],
        "device": [item.artifact.meta["cost"]["device"] for item in (teacher, pairs)],
        "passes": [item.artifact.meta["cost"]["passes"] for item in (teacher, pairs)],
        "mishap": mishap() if ranks.count() > 1 else None,
    }
    torch.save(found, folder / f"artifacts-{ranks.index()}.pt")


def judge(folder):
    """What a classifier of a few steps says of itself: the hash of its weights is in it."""
    recipe.FEWEST, recipe.GREY = 8, recipe.Recipe(0, (8, 8, 8), epochs=1, most=8, hflip=False)
    protocol = references.judge("classifier", data.load("digits")).protocol
    torch.save(protocol, folder / f"judge-{ranks.index()}.pt")


def mishap():
    """The last rank cannot do its share of an artifact: what each was refused with, and a second time, and seconds."""

    def make(partial):
        if ranks.index() == ranks.count() - 1:
            raise OnestepError("no disk left here")
        ranks.shared("and I wait")

    began = time.monotonic()
    return [*(refused(lambda: together.memo("model", {}, [], make)) for _ in range(2)), time.monotonic() - began]


if __name__ == "__main__":
    torch.set_num_threads(1)
    try:
        globals()[sys.argv[1]](Path(sys.argv[2]))
    except OnestepError as error:
        sys.exit(f"error: {error}")
