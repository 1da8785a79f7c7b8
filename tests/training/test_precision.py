"""Number formats by network, on a CPU, where bf16 is bf16 too: what is cast, what is not, and what is refused."""

import copy

import pytest
import torch
from torch import nn

from onestep_bench import methods, networks
from onestep_bench.denoiser import edm_denoiser
from onestep_bench.methods import Nets
from onestep_bench.training.config import TrainConfig
from onestep_bench.training.loop import fit
from onestep_bench.training.precision import _tf32, casting
from onestep_bench.training.source import Source

CPU = torch.device("cpu")
MIXED = {"student": "bf16", "critic": "fp32"}
FP32, BF16 = torch.float32, torch.bfloat16


class Net(nn.Module):
    """Two convolutions, of whose first the dtype of the answer is kept."""

    def __init__(self, seed):
        super().__init__()
        torch.manual_seed(seed)
        self.conv, self.last, self.seen = nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(4, 1, 1), []

    def forward(self, x):
        h = self.conv(x)
        self.seen.append(h.dtype)
        return self.last(h.relu())


def pair():
    return {"student": Net(0), "critic": Net(1)}


def images():
    return torch.randint(0, 256, (16, 1, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def trained(precision, nets, *, penalised=False, steps=2):
    """Losses of a run in which a critic looks at the student's answer; penalised: it is told off for steep slopes."""
    losses = []

    def objective(batch, draw):
        fake = nets["student"](batch.images)
        loss = (nets["critic"](fake) - batch.images).square().mean()
        if penalised:
            inputs = batch.images.clone().requires_grad_(True)
            with torch.autocast("cpu", enabled=False):
                (slope,) = torch.autograd.grad(nets["critic"](inputs).sum(), inputs, create_graph=True)
            loss = loss + slope.square().mean()
        losses.append(loss)
        yield loss, ("student", "critic")

    config = TrainConfig(kimg=steps * 4 / 1000, batch_size=4, lr=1e-3, precision=precision)
    list(fit(objective, nets, Source(images(), None, None, "cpu"), config, seed=0))
    return losses


def test_each_network_computes_in_its_own_format_and_all_else_in_fp32():
    nets = pair()
    losses = trained(MIXED, nets)
    assert set(nets["student"].seen) == {BF16}
    assert set(nets["critic"].seen) == {FP32}
    assert {loss.dtype for loss in losses} == {FP32}
    parameters = [parameter for net in nets.values() for parameter in net.parameters()]
    assert {tensor.dtype for parameter in parameters for tensor in (parameter, parameter.grad)} == {FP32}
    nets["student"](torch.zeros(1, 1, 8, 8))
    assert nets["student"].seen[-1] == FP32  # once it is trained


@pytest.mark.parametrize("precision", ["auto", "tf32", {}, {"student": "auto"}], ids=str)
def test_elsewhere_than_on_a_gpu_the_others_are_fp32(precision):
    nets, expected = pair(), pair()
    losses = trained(precision, nets)
    assert [loss.item() for loss in losses] == [loss.item() for loss in trained("fp32", expected)]
    assert set(nets["student"].seen) == {FP32}


def test_gradients_through_bf16_are_near_those_of_fp32():
    gradients = []
    for precision in ("fp32", "bf16"):
        nets = pair()
        trained(precision, nets, steps=1)
        gradients.append(torch.cat([parameter.grad.flatten() for parameter in nets["student"].parameters()]))
    assert not torch.equal(*gradients)
    assert (gradients[0] - gradients[1]).norm() < 0.02 * gradients[0].norm()


def test_a_call_inside_an_autocast_of_its_own_has_that_one():
    """As GDD's R1, whose slopes are too small for bfloat16."""
    nets = pair()
    trained("bf16", nets, penalised=True, steps=1)
    assert nets["critic"].seen == [BF16, FP32]
    outer = nn.Sequential(nets["critic"], nets["student"])
    with casting({**nets, "outer": outer}, {"student": "bf16", "critic": "bf16", "outer": "fp32"}, CPU):
        outer(torch.zeros(1, 1, 8, 8))
    assert (nets["critic"].seen[-1], nets["student"].seen[-1]) == (FP32, FP32)


def test_what_is_compiled_computes_the_same():
    nets = pair()
    expected = [loss.item() for loss in trained(MIXED, copy.deepcopy(nets))]
    torch.compiler.reset()
    for net in nets.values():
        net.forward = torch.compile(net.forward, backend="aot_eager")
    assert [loss.item() for loss in trained(MIXED, nets)] == expected
    assert set(nets["student"].seen) == {BF16}


def test_a_network_that_fails_leaves_no_autocast_behind():
    net = nn.Conv2d(3, 3, 1)
    with casting({"student": net}, "bf16", CPU):
        with pytest.raises(RuntimeError, match="channels"):
            net(torch.zeros(1, 1, 2, 2))
        assert not torch.is_autocast_enabled("cpu")
        assert net(torch.zeros(1, 3, 2, 2)).dtype == FP32  # what leaves it, of bf16 within
    assert not net._forward_hooks
    assert not net._forward_pre_hooks


@pytest.mark.parametrize(
    ("precision", "said"),
    [
        ({"critc": "fp32"}, "this training has no network 'critc'; did you mean 'critic'?"),
        ({"student": "tf32", "critic": "fp32"}, "ask for tf32 or for fp32, not for both"),
    ],
)
def test_what_the_networks_cannot_have_is_refused(precision, said, refuses):
    with refuses(said):
        trained(precision, pair())


def switches():
    return torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32


def test_tf32_is_switched_for_a_step_and_put_back():
    before = switches()
    with _tf32(True):
        assert switches() == (True, True)
    with casting(pair(), "fp32", CPU):
        assert switches() == (False, False)
    assert switches() == before


@pytest.mark.parametrize("name", methods.names())
def test_the_losses_of_every_method_are_fp32_whatever_its_networks_are(name):
    torch.manual_seed(0)
    method = methods.get(name)
    config = method.config(**({"critic_channels": 8} if name == "gdd" else {}))
    nets = [networks.sized(size, 8, 1) for size in ("0.05M", "0.2M")]
    teacher = edm_denoiser(nets[1]).eval().requires_grad_(False) if method.needs_teacher else None
    made = Nets(method.student(config, nets[0], None, teacher).train(), teacher)
    made.auxiliary = method.auxiliary(made, config)
    objective, losses = method.objective(made, config), []

    def watched(batch, draw):
        for loss, which in objective(batch, draw):
            losses.append(loss.dtype)
            yield loss, which

    source = Source(images(), None, torch.randn(16, 1, 8, 8), "cpu")
    everything = {"student": made.student, **made.auxiliary}
    asked = everything | ({"teacher": teacher} if teacher else {})
    # What is trained beside the student is not, so that nothing in bfloat16 may reach it either.
    precision = dict.fromkeys(asked.keys() & {"student", "teacher"}, "bf16")
    training = TrainConfig(kimg=0.016, batch_size=16, precision=precision)
    list(fit(watched, everything, source, training, seed=0, networks=asked))
    assert set(losses) == {FP32}
    assert {parameter.dtype for net in everything.values() for parameter in net.parameters()} == {FP32}
