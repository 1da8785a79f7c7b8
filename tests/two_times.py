"""What the tests of flow maps share: the toy networks of the reference arrays, and the exact map of Gaussian data."""

import json

import numpy as np
import pytest
import torch
from conftest import REFERENCE

from onestep_bench.denoiser import EDM, Denoiser, Flow
from onestep_bench.flow_map import FlowMap
from onestep_bench.paths import FLOW


class Arrays:
    """Reference arrays of a file, float64 tensors, by name; numbers as numbers, settings as dicts."""

    def __init__(self, name):
        with np.load(REFERENCE / f"{name}.npz") as file:
            self.found = {key: file[key] for key in file.files}

    def __getitem__(self, name):
        array = self.found[name]
        if array.ndim:
            return torch.from_numpy(array)
        return json.loads(str(array)) if name.endswith("settings") else array.item()

    def __contains__(self, name):
        return name in self.found

    def names(self, prefix):
        """Names of the arrays under a prefix."""
        return sorted(name for name in self.found if name.startswith(prefix))

    def groups(self, prefix, leaf):
        """Names of the groups under a prefix that hold an array of that name: of 'a/x/loss' for 'a/': 'a/x'."""
        return sorted(k.removesuffix(f"/{leaf}") for k in self.found if k.startswith(prefix) and k.endswith(f"/{leaf}"))


def reference(name):
    """A module's fixture: the arrays of a file."""
    return pytest.fixture(scope="module")(lambda: Arrays(name))


def column(value):
    """Times (n,) as broadcast over images."""
    return value.reshape(-1, 1, 1, 1)


def _weights(module, arrays, role, names):
    for name in names:
        setattr(module, name, torch.nn.Parameter(arrays[f"{role}/{name}"].clone()))


class Velocity(torch.nn.Module):
    """u(x, t, h) = tanh(w x + b + p t + q h) + 0.3 x cos(2t + h), called as a network of two times is."""

    two_times = True

    def __init__(self, arrays, role="net", told=lambda t, h: (t, h)):
        super().__init__()
        self.told, self.inside = told, 0.0
        _weights(self, arrays, role, "wbpq" if f"{role}/q" in arrays else "wbp")

    def give_classes(self, arrays):
        """Let each class add its row of a table inside the tanh; the last row is that of no class."""
        self.labels = torch.nn.Parameter(arrays["label_table"].clone())
        self.label_dim = len(self.labels) - 1

    def of_classes(self, labels):
        if labels is None:
            return 0.0
        one_hot = torch.cat([labels, 1 - labels.sum(1, keepdim=True)], 1)
        return (one_hot @ self.labels).reshape(*one_hot.shape[:1], -1, 1, 1)

    def forward(self, x, t, labels=None, second_labels=None):
        t, h = self.told(t, torch.zeros_like(t) if second_labels is None else second_labels)
        t, h = t.reshape(-1, 1, 1, 1), h.reshape(-1, 1, 1, 1)
        b, p = self.b.reshape(-1, 1, 1), self.p.reshape(-1, 1, 1)
        shifted = torch.einsum("ij,njhw->nihw", self.w, x) + b + p * t + self.inside + self.of_classes(labels)
        if hasattr(self, "q"):
            shifted = shifted + self.q.reshape(-1, 1, 1) * h
        return shifted.tanh() + 0.3 * x * torch.cos(2 * t + h)


class Inner(torch.nn.Module):
    """F(y, k) = tanh(w y + b + p k), of which D is made by EDM's preconditioning."""

    def __init__(self, arrays, role):
        super().__init__()
        _weights(self, arrays, role, "wbp")

    def forward(self, y, k, labels=None):
        shifted = self.b.reshape(-1, 1, 1) + self.p.reshape(-1, 1, 1) * k.reshape(-1, 1, 1, 1)
        return (torch.einsum("ij,njhw->nihw", self.w, y) + shifted).tanh()


def flow_map(arrays, role="net", **more):
    """The toy as a flow map on FLOW, conditioned on t itself."""
    return FlowMap(Denoiser(Velocity(arrays, role, **more), Flow(plain=True)))


def opposite(flow):
    """The flow map whose network answers with the other sign."""
    net = flow.denoiser.net
    answer = net.forward
    net.forward = lambda *given, **more: -answer(*given, **more)
    return flow


def turned(arrays, role):
    """A toy whose time is 0 at noise, in our time and direction."""
    return opposite(flow_map(arrays, role, told=lambda t, h: (1 - t, h)))


def edm(arrays, role, boundary=0.0):
    """The toy D as a denoiser on VE."""
    return Denoiser(Inner(arrays, role), EDM(0.5, boundary))


def holds(found, expected, rtol=1e-5):
    """Relative error of the whole, as the arrays are to be compared."""
    found, expected = (torch.as_tensor(value, dtype=torch.float64) for value in (found, expected))
    error = (found - expected).norm() / expected.norm().clamp(min=1e-12)
    assert error < rtol, float(error)


def holds_gradients(loss, net, arrays, group, rtol=1e-5):
    """The gradients of a loss against GROUP/grad_*; and the loss, where the group has one."""
    names = [name for name, _ in net.named_parameters() if f"{group}/grad_{name}" in arrays]
    assert names
    gradients = torch.autograd.grad(loss, [getattr(net, name) for name in names], retain_graph=True)
    for name, gradient in zip(names, gradients, strict=True):
        holds(gradient, arrays[f"{group}/grad_{name}"], rtol)


def self_distilled(arrays, known="net"):
    """(flow, known, x, t, s, velocity) as in flowmap/* of flowmaps.npz, whose time is 0 at noise; turned to ours."""
    t, s = 1 - arrays["flowmap/s"], 1 - arrays["flowmap/t"]
    data, noise = arrays["x"], arrays["noise"]
    return turned(arrays, "net"), turned(arrays, known), FLOW.mix(data, noise, t), t, s, noise - data


def holds_self_distilled(errors, net, t, s, arrays, kind):
    """Squared errors (n,) against flowmap/KIND, whose terms have a learned weight: losses and gradients."""
    log_weight = torch.stack([torch.ones_like(t), 1 - t, 1 - s], 1) @ arrays["flowmap/weight"]
    losses = (-log_weight).exp() * errors + log_weight
    holds(losses.detach(), arrays[f"flowmap/{kind}/per_sample"])
    holds(losses.mean().detach(), arrays[f"flowmap/{kind}/loss"])
    holds_gradients(losses.mean(), net, arrays, f"flowmap/{kind}")


class ExactVelocity(torch.nn.Module):
    """The average velocity of data that are N(mean, std^2) in every pixel, times 1 + `wrong`; a network on FLOW.

    x_t is N((1-t) mean, v_t^2) with v_t^2 = (1-t)^2 std^2 + t^2, and trajectories keep (x - (1-t) mean) / v_t: so
    x_s = (1-s) mean + (v_s/v_t)(x - (1-t) mean), and u = (x_t - x_s)/(t-s), a quotient written without cancellation.
    """

    two_times = True

    def __init__(self, mean=0.3, std=0.5):
        super().__init__()
        self.mean, self.std = mean, std
        self.wrong = torch.nn.Parameter(torch.zeros((), dtype=torch.float64))

    def spread(self, t):
        return ((1 - t) ** 2 * self.std**2 + t**2).sqrt()

    def forward(self, x, t, labels=None, second_labels=None):
        t = t.reshape(-1, 1, 1, 1)
        s = t if second_labels is None else t - second_labels.reshape(-1, 1, 1, 1)
        wide, narrow = self.spread(t), self.spread(s)
        # (v_t^2 - v_s^2)/(t - s), divided by v_t (v_t + v_s)
        shrinks = (self.std**2 * (t + s - 2) + t + s) / (wide * (wide + narrow))
        return (1 + self.wrong) * (-self.mean + shrinks * (x - (1 - t) * self.mean))


class ExactConsistency(ExactVelocity):
    """All the way to level 0, whatever is asked: as a denoiser, the exact consistency function."""

    two_times = False

    def forward(self, x, t, labels=None):
        return super().forward(x, t, second_labels=t)


def exact_map():
    """FlowMap of Gaussian data, exact while `denoiser.net.wrong` is 0."""
    return FlowMap(Denoiser(ExactVelocity(), Flow(plain=True)))


def gaussian(rows=64, seed=0):
    """(data, noise, t, s): Gaussian data as `exact_map` knows them, 0 < s < t < 1."""
    draw = torch.Generator().manual_seed(seed)
    data = 0.3 + 0.5 * torch.randn(rows, 2, 4, 4, generator=draw, dtype=torch.float64)
    noise = torch.randn(rows, 2, 4, 4, generator=draw, dtype=torch.float64)
    times = 0.02 + 0.96 * torch.rand(2, rows, generator=draw, dtype=torch.float64)
    return data, noise, times.amax(0), times.amin(0)


def exact_velocity(x, t):
    """d x_t/d t on the trajectory through x at t."""
    return exact_map().average(x, t, t).detach()


def on_a_path(data, noise, t):
    """x_t of the FLOW path."""
    return FLOW.mix(data, noise, t)
