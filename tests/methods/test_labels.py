"""Whatever network a method asks, a teacher, a target or a critic too, is told the classes of the images."""

import pytest
import torch
from ranked import begun
from torch.nn.modules.module import register_module_forward_pre_hook

from onestep_bench import methods
from onestep_bench.denoiser import Denoiser
from onestep_bench.networks.critics import BottleneckCritic, Critic

# Where in a call the labels stand.
CRITICS = (Critic, BottleneckCritic)


@pytest.mark.parametrize("name", methods.names())
def test_every_network_is_told_the_labels_of_its_batch(name):
    batches, told = [], []

    def spied(objective):
        def seen(batch, draw):
            batches.append(batch)
            yield from objective(batch, draw)

        return seen

    def look(module, arguments):
        if isinstance(module, (Denoiser, *CRITICS)):
            place = 1 if isinstance(module, CRITICS) else 2
            told.append((len(batches) - 1, type(module).__name__, arguments[place] if len(arguments) > place else None))

    with torch.no_grad():
        rows, *_ = begun(f"{name}:conditional", 2, {}, wrapped=spied)
    handle = register_module_forward_pre_hook(look)
    try:
        list(rows)
    finally:
        handle.remove()
    assert told
    for place, which, labels in told:
        expected = batches[place].labels
        assert labels is not None, f"{name} asks a {which} without labels"
        every = len(expected) // len(labels)  # of a group, a method may ask for the first row alone
        assert torch.equal(labels, expected[::every]), f"{name} asks a {which} with other labels"
