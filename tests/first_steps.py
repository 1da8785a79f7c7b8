"""The first steps of every method, as numbers: what its version stands for.

`python tests/first_steps.py` adds methods that are new, or have a new version, to reference/first_steps.json; of others
it keeps what is on record. The numbers are losses and gradients of tiny networks without dropout, which are the same on
every machine to rounding.
"""

import json
from dataclasses import asdict
from pathlib import Path

import torch
from ranked import begun

from onestep_bench import methods
from onestep_bench.store.files import write_text

RECORD = Path(__file__).parent / "reference" / "first_steps.json"
STEPS = 3
# Steps so large that what is learned in one is seen in the next.
COMMON = {"lr": 3e-3, "clip": 0.0}
# Jobs beside the methods' own: by the method, what its options branch to.
BRANCHES = {
    "ddpm": [{"predicts": "v", "schedule": "cosine", "levels": 64}],
    "kd": [{"distance": "l1+pseudo-huber"}],
    "annealing-reflow": [{"anneal": "exp"}, {"anneal": "cos", "anneal_fraction": 2.0}],
    "flow-guided-distillation": [{"guidance": 0.5, "first_step": "teacher", "distance": "l1"}, {"guidance": 0.0}],
    "sfddm": [
        {"student_levels": 4, "map": "trailing", "predicts": "eps"},
        {"student_levels": 5, "map": "even", "condition": "index"},
        {"student_levels": 3, "map": "custom", "indices": [10, 500, 900]},
    ],
    "progressive": [{"schedule": "karras", "steps": 3}, {"weight": "snr+1", "levels": 64}],
    "consistency-distillation": [{"levels": 5, "target_decay": 0.5, "boundary": 0.01}, {"target_decay": 0.0}],
    "easy-consistency-tuning": [{"c": 0.06, "folds": 2, "q": 4.0}],
    "consistency-training": [{"growth": "root", "last": 6, "p_std": 0.0, "weighting": "c-out", "target_decay": 0.0}],
    "meanflow": [
        {"loss": "improved", "warmup": 0.5, "swap": True},
        {"loss": "lagrangian", "through": True},
        {"loss": "lagrangian"},
        {"loss": "eulerian"},
        {"loss": "eulerian", "through": True},
        {"explicit": True, "p": 0.5},
    ],
    "meanflow:conditional": [{"drop": 0.3, "omega": 2.0, "kappa": 0.5, "guide_from": 0.2, "guide_to": 0.8}],
    "meanflow-distillation": [{"loss": "lagrangian"}, {"loss": "eulerian", "swap": True}],
    "alpha-flow": [{"curve": "linear", "start": 0.2, "end": 0.9, "cut": 0.5}, {"derivative": True, "end": 0.4}],
    "imm": [{"members": 4, "k": 4.0, "a": 2.0, "b": 2.0}],
    "soflow": [{"same": 0.5, "first": 0.5, "last": 0.05}, {"approach": "cosine", "last": 0.1}],
    "facm": [{"p": 1.5, "mean": -0.5}],
    "sct": [{"warmup": 0.9, "c": 0.5}],
    "truncated-consistency": [{"every": 4, "transition": 2.0, "c": 0.1, "weighting": "c-out-squared", "df": 3.0}],
    "2-rf++": [
        {"loss": "huber", "distance": "l1", "density": 1.5},
        {"loss": "root-l2", "distance": "l2", "over_t": False, "density": 0.0},
        {"loss": "none", "distance": "pseudo-huber"},
    ],
    "gdd": [{"critic_lr": 2.0, "r1_gamma": 10.0, "gpu_batch": 4, "r1_interval": 1}, {"variant": "gdd-i"}],
    "score-distillation": [
        {"normalise": False, "sigmas": "log-normal", "fake_steps": 1, "adversarial": 0.0, "init_sigma": 1.0},
        {"divergence": "js", "group": 4, "adversarial": 0.1},
    ],
    "sid": [{"alpha": 1.0, "adversarial": 0.01, "adversarial_after": 0.012, "group": 4, "share": 0.5}],
    "drifting": [{"space": "pixels+teacher", "group": 4, "radii": [0.1, 0.3]}],
    "drifting:conditional": [{"space": "teacher", "group": 8}],
    "moment-matching": [{"student_steps": 1, "fake_lr": 2.0}],
}


def jobs() -> dict[str, tuple[str, dict]]:
    """{what it is called: (job of `begun`, options)}: every method at its own options and at those of its branches."""
    found = {name: (name, {}) for name in methods.names()}
    for name, branches in BRANCHES.items():
        found |= {name + json.dumps(options, separators=",:"): (name, options) for options in branches}
    return found


def direction(gradients: list[torch.Tensor]) -> tuple[float, float]:
    """Norm of a gradient, and its component along a fixed vector, which tells its direction."""
    whole = torch.cat([gradient.flatten() for gradient in gradients]).double()
    along = torch.cos(torch.arange(len(whole), dtype=torch.float64))
    return whole.norm().item(), (whole @ along / along.norm()).item()


def steps(job: str, options: dict) -> list[list]:
    """Of every loss that is stepped by: its network, its value, and of its gradient what `direction` tells."""
    told = []

    def spied(objective):
        def seen(batch, draw):
            for loss, which in objective(batch, draw):
                yield loss, which
                names = [which] if isinstance(which, str) else which
                held = [parameter.grad for name in names for parameter in trained[name].parameters()]
                found = direction([gradient for gradient in held if gradient is not None])
                told.append(["+".join(names), loss.item(), *found])

        return seen

    rows, trained, _ = begun(job, STEPS, COMMON | options, wrapped=spied)
    # What starts as a copy of the teacher or of the student would hide which of the two is asked.
    torch.manual_seed(1)
    with torch.no_grad():
        for name in sorted(trained.keys() - {"student"}):
            for parameter in trained[name].parameters():
                parameter.add_(0.03 * torch.randn_like(parameter))
    list(rows)
    return told


def settings(name: str) -> dict:
    """What a method trains with where nobody says otherwise, and what it tells of itself."""
    method = methods.get(name)
    config = method.config()
    own = method.adams(config, (0.5, 0.9))
    told = {
        "version": method.version,
        "config": asdict(config),
        "training": method.training,
        "adams": {network: asdict(adam) for network, adam in own.items()},
        "group": method.group(config),
        "looks_at_data": method.looks_at_data(config),
        "looks_through": list(method.looks_through(config)),
    }
    flags = ("data", "needs_teacher", "follows_teacher", "augments", "two_times")
    told |= {flag: getattr(method, flag) for flag in flags}
    return json.loads(json.dumps(told))


def recorded() -> dict:
    """The record, with what it lacks."""
    old = json.loads(RECORD.read_text(encoding="utf-8")) if RECORD.exists() else {"settings": {}, "steps": {}}
    versions = {name: told["version"] for name, told in old["settings"].items()}
    known = {name for name in methods.names() if versions.get(name) == methods.get(name).version}
    kept = {called: old["steps"].get(called) for called, (job, _) in jobs().items() if job.partition(":")[0] in known}
    return {
        "settings": {name: old["settings"][name] if name in known else settings(name) for name in methods.names()},
        "steps": {called: kept.get(called) or steps(*job) for called, job in jobs().items()},
    }


if __name__ == "__main__":
    torch.set_num_threads(1)
    write_text(RECORD, json.dumps(recorded(), indent=1) + "\n")
