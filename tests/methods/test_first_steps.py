"""A method's version stands for what it trains: its settings, its first losses and their gradients are on record."""

import json

import first_steps
import pytest
import torch
from ranked import begun
from torch.nn.modules.module import register_module_forward_pre_hook

from onestep_bench import methods

RECORD = json.loads(first_steps.RECORD.read_text(encoding="utf-8"))
ANEW = "what is new, or has a new version, is put on record by `python tests/first_steps.py`"


def test_every_method_is_on_record():
    assert RECORD["settings"].keys() == set(methods.names()), ANEW
    assert RECORD["steps"].keys() == first_steps.jobs().keys(), ANEW


@pytest.mark.parametrize("name", methods.names())
def test_settings_are_those_of_the_version(name):
    found, expected = first_steps.settings(name), RECORD["settings"][name]
    assert found["version"] == expected["version"], ANEW
    assert found == expected


@pytest.mark.parametrize("called", first_steps.jobs())
def test_losses_and_gradients_are_those_of_the_version(called):
    """What trains other weights must raise the version, or weights of the old kind would pass for new ones."""
    found, expected = first_steps.steps(*first_steps.jobs()[called]), RECORD["steps"][called]
    assert [name for name, *_ in found] == [name for name, *_ in expected]
    for (_, *ours), (_, loss, norm, along) in zip(found, expected, strict=True):
        assert ours[0] == pytest.approx(loss, rel=5e-5, abs=1e-6)
        assert ours[1] == pytest.approx(norm, rel=2e-3, abs=1e-7)  # of close levels it is hardly more than rounding
        assert ours[2] == pytest.approx(along, abs=5e-5 * norm + 1e-7)


# Losses that compare a network's answers at two points: both are to drop the same.
ALIKE = {
    "easy-consistency-tuning": {},
    "consistency-training": {"target_decay": 0.0},
    "consistency-distillation": {"target_decay": 0.0},
    "imm": {},
    "soflow": {},
    "truncated-consistency": {},
    "meanflow": {},
    "sct": {},
}


@pytest.mark.parametrize("name", ALIKE)
def test_what_is_compared_drops_the_same(name):
    states = []

    def look(module, arguments):
        if module is trained["student"]:
            states.append(tuple(torch.get_rng_state().tolist()))

    rows, trained, _ = begun(name, 1, ALIKE[name], dropout=0.2)
    handle = register_module_forward_pre_hook(look)
    try:
        list(rows)
    finally:
        handle.remove()
    assert len(states) > 1
    assert len(set(states)) == 1


@pytest.mark.parametrize("name", ["gdd", "score-distillation", "sid", "drifting", "moment-matching"])
def test_generators_that_answer_in_one_step_drop_nothing(name):
    """What they answer is held against a distribution, to which a mask would add its own."""
    rows, trained, _ = begun(name, 1, {}, dropout=0.2)
    list(rows)
    assert not trained["student"].training


@pytest.mark.parametrize("name", ["consistency-distillation", "consistency-training", "shortcut"])
def test_a_target_drops_nothing_and_learns_by_its_average_alone(name):
    rows, trained, _ = begun(name, 1, {}, dropout=0.2)
    list(rows)
    assert not trained["target"].training
    assert not any(parameter.requires_grad for parameter in trained["target"].parameters())


@pytest.mark.parametrize("name", ["consistency-distillation", "consistency-training", "shortcut"])
def test_a_target_moves_once_a_step_however_many_micro_batches_it_has(name):
    moved = []
    for accumulate in (1, 2):
        rows, trained, _ = begun(name, 1, {"accumulate": accumulate})
        target, *_ = trained["target"].parameters()
        target.data += 1.0  # apart from the student, towards which it moves
        list(rows)
        moved.append(target.clone())
    torch.testing.assert_close(*moved)
