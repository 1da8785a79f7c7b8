"""Costs, against what can be counted by hand."""

import sys

import pytest
import torch

from onestep_bench.denoiser import EDM, Denoiser, ddpm_denoiser, edm_denoiser, flow_denoiser
from onestep_bench.models import cost
from onestep_bench.networks.build import sized
from onestep_bench.paths import FLOW, alphas_cumprod


class Known(torch.nn.Module):
    """A convolution from 3 to 5 channels and back, a linear layer of the level, and one of the labels."""

    def __init__(self, label_dim=0):
        super().__init__()
        self.label_dim = label_dim
        self.there, self.back = torch.nn.Conv2d(3, 5, 3, padding=1), torch.nn.Conv2d(5, 3, 1, bias=False)
        self.level = torch.nn.Linear(1, 5)
        self.label = torch.nn.Linear(label_dim, 5) if label_dim else None
        self.register_buffer("unused", torch.zeros(1000))

    def forward(self, x, level, labels=None):
        shift = self.level(level[:, None])
        if self.label is not None:
            shift = shift + self.label(labels)
        return self.back(self.there(x) + shift[..., None, None])


BY_HAND = 8 * 8 * (3 * 5 * 9 + 5 * 3) + 5
DENOISERS = {
    "edm": edm_denoiser,
    "flow": flow_denoiser,
    "ddpm": lambda net: ddpm_denoiser(net, alphas_cumprod("linear", 10)),
    "view": lambda net: Denoiser(net, EDM(), FLOW),
}


def test_parameters_leave_buffers_out():
    assert cost.parameters(Known()) == 3 * 5 * 9 + 5 + 5 * 3 + 5 + 5


@pytest.mark.parametrize("denoiser", DENOISERS.values(), ids=DENOISERS)
def test_macs_of_known_layers(denoiser):
    assert cost.macs(denoiser(Known()), (3, 8, 8)) == BY_HAND


def test_macs_of_a_conditional_network_count_its_labels():
    assert cost.macs(edm_denoiser(Known(label_dim=7)), (3, 8, 8)) == BY_HAND + 7 * 5


@pytest.mark.parametrize(
    ("size", "resolution", "published"),
    [("61.8M", 32, 10.34), ("15.7M", 32, 3.70), ("3.4M", 32, 0.705), ("27.9M", 64, 26.3), ("15.7M", 64, 14.8)],
)
def test_macs_are_those_the_slimflow_paper_counts(size, resolution, published):
    # Those figures leave out attention's qkv and proj, up to 4%, and have upsampled skips projected at full size.
    with torch.device("meta"):
        denoiser = flow_denoiser(sized(size, resolution, 3))
    assert cost.macs(denoiser, (3, resolution, resolution)) / 1e9 == pytest.approx(published, rel=0.03)


class Judging(torch.nn.Module):
    """Two logits of an image and its class."""

    num_classes = 7

    def __init__(self):
        super().__init__()
        self.look, self.told = torch.nn.Linear(3 * 8 * 8, 2), torch.nn.Linear(7, 2)

    def forward(self, images, labels):
        return self.look(images.flatten(1)) + self.told(torch.nn.functional.one_hot(labels, 7).float())


def test_work_is_passes_and_their_macs_network_by_network():
    nets = {"student": edm_denoiser(Known()), "critic": Judging(), "idle": torch.nn.Linear(1, 1)}
    found = cost.work(nets, {"student": 0.3, "critic": 0.05, "idle": 0.0}, (3, 8, 8))
    critic = 2 * 3 * 8 * 8 + 2 * 7
    of_one = {"student": BY_HAND, "critic": critic}
    assert found == {"passes": pytest.approx(0.35), "macs": 300 * BY_HAND + 50 * critic, "macs_of_one": of_one}
    assert cost.work(nets, {}, (3, 8, 8)) == {"passes": None, "macs": None, "macs_of_one": {}}
    # A network of another call, as a plug-in may have one.
    assert cost.work(nets, {"idle": 1.0}, (3, 8, 8)) == {"passes": 1.0, "macs": None, "macs_of_one": None}


def test_macs_are_the_same_on_every_device():
    # Devices have attention kernels of their own.
    net = sized("3.4M", 16, 3)
    assert cost.macs(flow_denoiser(net), (3, 16, 16)) == cost.macs(flow_denoiser(net.to("meta")), (3, 16, 16))


def test_macs_leave_the_network_as_it_was():
    denoiser = flow_denoiser(Known())
    cost.macs(denoiser, (3, 8, 8))
    assert denoiser.training
    assert all(parameter.grad is None for parameter in denoiser.parameters())


def test_latency_is_median_and_p95_of_the_calls_after_the_warm_up(monkeypatch):
    calls, ticks = [], iter(range(1000))
    clock = [0.0]

    def call():
        calls.append(None)
        clock[0] += 1.0 if len(calls) <= 3 else next(ticks) / 1000  # the warm-up is slow

    monkeypatch.setattr(cost.time, "perf_counter", lambda: clock[0])
    assert cost.latency_ms(call, "cpu", repeats=21) == pytest.approx((10, 19))
    assert len(calls) == 24


def test_a_stopwatch_runs_forward():
    watch = cost.Stopwatch()
    first = watch.seconds
    assert 0 <= first <= watch.seconds


def test_peak_memory_sees_what_was_allocated_and_given_back():
    with cost.PeakMemory("cpu") as memory:
        torch.ones(25_000_000)  # 95 MiB
    if sys.platform == "linux":
        assert 80 < memory.megabytes < 300
    else:
        assert memory.megabytes != memory.megabytes


def test_peak_memory_of_a_gpu_leaves_out_what_was_there(monkeypatch):
    """A device that holds 300 MiB of another model, and 120 more for a while."""
    allocated = {"memory_allocated": 300, "max_memory_allocated": 420, "reset_peak_memory_stats": 0}
    for name, megabytes in allocated.items():
        monkeypatch.setattr(torch.cuda, name, lambda device, megabytes=megabytes: megabytes * 2**20)
    with cost.PeakMemory("cuda") as memory:
        pass
    assert memory.megabytes == 120
