"""python on_fake_cuda.py LIBRARY JOB ...: `fit` on a CUDA device that computes nothing; a line of JSON for each job.

A job is METHOD[:conditional][/KIND][@FAULT]. KIND: 'kernels', GroupNorm's own, where else its formula runs, as it is
compiled; or the name of an architecture. FAULT: a mistake that is made on purpose. A run trains, keeps an average,
a snapshot and a checkpoint, and goes on from that. Told is what a GPU would have refused or waited for in its steps.
"""

import copy
import ctypes
import json
import sys
import tempfile
import traceback
from functools import partial
from pathlib import Path

ctypes.CDLL(sys.argv[1], mode=ctypes.RTLD_GLOBAL)  # before torch

import torch  # noqa: E402
from torch._subclasses.fake_tensor import FakeTensorMode  # noqa: E402
from torch.utils._python_dispatch import TorchDispatchMode  # noqa: E402
from torch.utils._pytree import tree_map_only  # noqa: E402

from onestep_bench import methods, networks, seeds  # noqa: E402
from onestep_bench.denoiser import EDM, Denoiser, Flow  # noqa: E402
from onestep_bench.models import checkpoints, snapshots  # noqa: E402
from onestep_bench.networks import layers  # noqa: E402
from onestep_bench.training import loop  # noqa: E402
from onestep_bench.training.config import TrainConfig  # noqa: E402
from onestep_bench.training.source import Source  # noqa: E402

BATCH, CLASSES, CHANNELS, STEPS = 8, 3, 3, 2
# Convolutions whose gradient may come in NCHW, a step: that of a sum over features, or over logits, has no layout.
TURNED = {"sfddm": 2, "gdd": 8}
DOUBLE = {"imm"}  # mixes images in float64, since its levels differ in the fifth digit
OPTIONS = {"gdd": {"critic_channels": 8, "r1_interval": 1}, "drifting": {"group": 4, "space": "pixels+teacher"}}
TINY = {
    "img_resolution": 8,
    "in_channels": CHANNELS,
    "out_channels": CHANNELS,
    "num_blocks": 1,
    "attn_resolutions": [4],
}
SMALL = {
    "": {"arch": "SongUNet", "model_channels": 8, "channel_mult": [1], "num_blocks": 0, "dropout": 0.1},
    "kernels": {"arch": "SongUNet", "model_channels": 8, "channel_mult": [1, 2]},
    "adm": {"arch": "DhariwalUNet", "model_channels": 64, "channel_mult": [1, 2]},
    "ncsnpp": {"arch": "SongUNet", "model_channels": 16, "channel_mult": [1, 2]}
    | {"embedding_type": "fourier", "encoder_type": "residual", "resample_filter": [1, 3, 3, 1]}
    | {"channel_mult_noise": 2, "dropout": 0.1},
}


# ---- what is looked at -----------------------------------------------------------------------------------------------


class Inspector(TorchDispatchMode):
    """Sees every operator; in a step it notes what the host would wait for, and what has a wrong dtype or layout."""

    def __init__(self, kernels, double):
        super().__init__()
        self.kernels = kernels  # whose backward pass answers in NCHW, and nothing is to be done about it
        self.double = double
        self.complaints, self.convolutions, self.turned, self.on = {}, 0, 0, False

    def complain(self, what):
        if not self.on:
            return
        frames = [frame for frame in traceback.extract_stack() if "/onestep_bench/" in frame.filename]
        place = f"{Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else "autograd"
        self.complaints[f"{what} at {place}"] = self.complaints.get(f"{what} at {place}", 0) + 1

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func._schema.name.removeprefix("aten::")
        given = [value for value in args if isinstance(value, torch.Tensor)]
        if name in ("_local_scalar_dense", "equal", "is_nonzero", "nonzero") and given[0].device.type == "cuda":
            self.complain(f"the host waits for {name}")
        if name == "_local_scalar_dense":
            kinds = {torch.bool: True, torch.int64: -1}  # a watch that has seen nothing bad
            return kinds.get(given[0].dtype, 0.0)
        if name == "equal":
            return True
        if name == "convolution" and torch._C._current_autograd_node() is None:
            # One inside a backward pass is of a penalty's second derivative, with transposed weights for inputs.
            self.convolutions += self.on
            if is_nchw(given[0]):
                self.complain(f"NCHW into a convolution, {tuple(given[0].shape)}")
        if name == "convolution_backward" and not self.kernels and any(map(is_nchw, given[:2])):
            self.turned += 1
        out = func(*args, **(kwargs or {}))
        made = [value for value in (out if isinstance(out, tuple | list) else [out]) if isinstance(value, torch.Tensor)]
        if name in ("_to_copy", "copy_") and {value.device.type for value in (*given, *made)} == {"cpu", "cuda"}:
            self.complain("a copy between host and device")
        for value in made:
            if value.ndim == 4 and value.numel() > BATCH and value.dtype == torch.float64 and not self.double:
                self.complain(f"images in float64 by {name}")
        return out


def is_nchw(x):
    """Images come as the data hold them, and are small; of one channel or one place there is no order."""
    return x.shape[1] not in (1, CHANNELS) and x.shape[2:].numel() > 1 and x.stride(1) != 1


def check_run(inspector, run):
    """After a step, of all that a run holds: where it is, in what precision, and laid out alike."""
    nets = run.nets | {f"average {halflife:g}": average for halflife, average in run.averages.items()}
    for name, net in nets.items():
        for parameter in net.parameters():
            check_tensor(inspector, f"a weight of {name}", parameter)
            if parameter.grad is not None:
                check_tensor(inspector, f"a gradient of {name}", parameter.grad)
                if layout(parameter.grad) != layout(parameter):
                    inspector.complain(f"a gradient of {name} in another layout than its weight")
    for averages in run.averaged.values():
        for average, weight in zip(averages, run.parameters["student"], strict=True):
            if layout(average) != layout(weight):
                inspector.complain("an average in another layout than its weight")
    for name, optimizer in run.optimizers.items():
        for parameter, state in optimizer.state.items():
            for moment in (value for value in state.values() if value.ndim):
                check_tensor(inspector, f"a moment of {name}", moment)
                if layout(moment) != layout(parameter):
                    inspector.complain(f"a moment of {name} in another layout than its weight")


def layout(tensor):
    """Strides, of those dimensions in which there is a step to take."""
    return [stride for stride, size in zip(tensor.stride(), tensor.shape, strict=True) if size > 1]


def check_tensor(inspector, what, tensor):
    if (tensor.device.type, tensor.dtype) != ("cuda", torch.float32):
        inspector.complain(f"{what} is {tensor.dtype} on {tensor.device}")


def watched(objective, inspector, fault):
    """The objective, each of whose losses is looked at; with its fault."""

    def looked_at(batch, draw):
        for loss, which in objective(batch, draw):
            loss = FAULTS[fault](loss) if fault else loss
            if (loss.device.type, loss.dtype, loss.ndim) != ("cuda", torch.float32, 0):
                inspector.complain(f"a loss is {loss.dtype} with {loss.ndim} dimensions on {loss.device}")
            yield loss, which

    return looked_at


FAULTS = {
    "host-tensor": lambda loss: (loss * torch.ones(BATCH)).mean(),
    "host-number": lambda loss: loss * torch.tensor(2.0, device="cuda"),
    "item": lambda loss: loss / (1 + loss.detach().item()),
    "bf16-loss": lambda loss: loss.bfloat16(),
    "float64-loss": lambda loss: loss.double(),
    # The next two are no loss's: they are planted below.
    "nchw-norm": lambda loss: loss,
    "nchw-average": lambda loss: loss,
}


# ---- the device ------------------------------------------------------------------------------------------------------


def pretend():
    """What of torch and of us asks for a CUDA device that computes."""
    torch.cuda.is_bf16_supported = lambda *_: True
    torch.cuda.mem_get_info = lambda *_: (10**11, 10**11)
    torch.cuda.amp.common.amp_definitely_not_available = lambda: False
    torch.cuda.default_generators = (torch.Generator(),)
    torch.cuda.get_rng_state, torch.cuda.set_rng_state = lambda *_: None, lambda *_: None
    plain = seeds.generator
    seeds.generator = lambda *parts, device="cpu": plain(*parts)

    def to(module, *_, memory_format=None, **__):  # as Module.to, which cannot exchange a fake parameter
        for parameter in module.parameters():
            if memory_format and parameter.ndim == 4:
                parameter.data = parameter.data.contiguous(memory_format=memory_format)
        return module

    torch.nn.Module.to = to


def move(module):
    """Every weight and buffer of a network onto the device, where it loses its values."""
    for inner in module.modules():
        for name, weight in list(inner._parameters.items()):
            if weight is not None:
                new = torch.nn.Parameter(torch.empty_like(weight, device="cuda"), requires_grad=weight.requires_grad)
                inner._parameters[name] = new
        for name, buffer in list(inner._buffers.items()):
            inner._buffers[name] = None if buffer is None else torch.empty_like(buffer, device="cuda")


def net_of(kind, label_dim):
    return networks.build(TINY | SMALL[kind] | {"label_dim": label_dim})


KEPT = {}


def keep(state, path):
    """In the place of torch.save, which would read the bytes: a copy on the host, as torch.load would bring one."""
    KEPT["state"] = tree_map_only(torch.Tensor, lambda tensor: tensor.detach().cpu(), state)
    Path(path).touch()


def kept(path, **_):
    return KEPT["state"]


def saved(state, path):
    """In the place of safetensors, which would read the bytes: what it takes, and an empty file."""
    for name, tensor in state.items():
        assert (tensor.device.type, tensor.dtype, tensor.is_contiguous()) == ("cpu", torch.float32, True), name
    Path(path).touch()


# ---- jobs ------------------------------------------------------------------------------------------------------------


def trained(job, folder):
    """The inspector that saw a job's run."""
    rest, _, fault = job.partition("@")
    rest, _, kind = rest.partition("/")
    name, _, conditional = rest.partition(":")
    method, label_dim = methods.get(name), CLASSES if conditional else 0
    config = method.config(**OPTIONS.get(name, {}))
    teacher = None
    if method.needs_teacher:
        native = Flow() if name.startswith("flow") else EDM()
        teacher = Denoiser(net_of(kind, label_dim), native).eval().requires_grad_(False)
    nets = methods.Nets(method.student(config, net_of(kind, label_dim), None, teacher).train(), teacher)
    nets.auxiliary = method.auxiliary(nets, config)
    ema = copy.deepcopy(nets.student).eval().requires_grad_(False)
    everything = {"student": nets.student, **nets.auxiliary}
    asked = everything | ({"teacher": teacher} if teacher else {})
    options = method.training | {"kimg": STEPS * BATCH / 1000, "batch_size": BATCH, "hflip": True, "clip": 1.0}
    training, inspector = TrainConfig(**options), Inspector(kind == "kernels", name in DOUBLE)

    plain_step = loop._step

    def step(objective, run, *rest):
        inspector.on, inspector.turned = rest[2] > 0, 0  # the first step may fetch what later ones keep
        plain_step(objective, run, *rest)
        if inspector.turned > TURNED.get(name, 0):
            inspector.complain(f"NCHW into {inspector.turned} backward passes of convolutions")
        if fault == "nchw-average":
            run.averaged = {key: [weight.data.contiguous() for weight in kept] for key, kept in run.averaged.items()}
        check_run(inspector, run)
        inspector.on = False

    with FakeTensorMode(allow_non_fake_inputs=True), inspector:
        for module in (*asked.values(), ema):
            move(module)
        images, noise = (torch.zeros(64, CHANNELS, 8, 8) for _ in range(2))
        labels = torch.zeros(64, dtype=torch.int64) if conditional else None
        source = Source(images, labels, noise if method.data == "pairs" else None, "cuda")
        objective = watched(method.objective(nets, config), inspector, fault)
        after = snapshots.kept_at(ema, folder, [STEPS * BATCH / 1000], training)
        start = partial(loop.fit, objective, everything, source, training, seed=0, ema=ema, networks=asked, after=after)
        start = partial(start, adams=method.adams(config, training.betas), checkpoint=folder / "checkpoint.pt")
        loop._step = step
        try:
            rows = start(checkpoint_seconds=0)
            assert next(rows).step == 1
            rows.close()
            steps = [row.step for row in start()]
        finally:
            loop._step = plain_step
        assert steps == list(range(1, STEPS + 1)), steps
    return inspector


def told(job):
    """What a job's run is told by, as JSON can hold it."""
    formula = "/kernels" not in job and not job.endswith("@nchw-norm")
    plain = layers.group_norm
    layers.group_norm = layers._written_out if formula else plain
    if job.endswith("@nchw-norm"):
        layers.group_norm = torch.nn.functional.group_norm
    try:
        with tempfile.TemporaryDirectory() as folder:
            inspector = trained(job, Path(folder))
    except Exception as error:
        return {"job": job, "complaints": [f"{type(error).__name__}: {error}"], "trace": traceback.format_exc()}
    finally:
        layers.group_norm = plain
    return {
        "job": job,
        "complaints": [f"{count} x {what}" for what, count in inspector.complaints.items()],
        "convolutions": inspector.convolutions,
    }


if __name__ == "__main__":
    pretend()
    checkpoints.save_file, torch.save, torch.load = saved, keep, kept
    for job in sys.argv[2:]:
        print(json.dumps(told(job)), flush=True)
