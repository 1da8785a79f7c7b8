"""One-step generators for use elsewhere: noise in, uint8 images out, as ONNX or a torch.export program."""

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from onestep_bench.data.pixels import to_uint8
from onestep_bench.denoiser import Denoiser
from onestep_bench.errors import OnestepError, needs_extra
from onestep_bench.flow_map import FlowMap
from onestep_bench.models import cost
from onestep_bench.store.files import replacing

FORMATS = ("onnx", "torch-export")
_CLOSE = 1e-4


class OneStep(nn.Module):
    """One step of a denoiser from pure noise to an image, as a network between two scalings.

    At one level every preconditioning and every path is a number before the network and two behind it:
    x0 = skip z + scale F(before z, noise_label). They are asked of the denoiser itself, so there is one arithmetic.
    A flow map is told that the step goes all the way, in which case it is its jump.
    """

    def __init__(self, denoiser: Denoiser):
        super().__init__()
        self.net = denoiser.net
        self.before, self.noise_label, self.gap, self.skip = _asked(denoiser, noise=1.0, answer=0.0)
        self.scale = _asked(denoiser, noise=0.0, answer=1.0)[-1]

    def forward(self, z: Tensor, labels: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Images (n, c, h, w) uint8, and the same as float32 in about [-1, 1], before rounding.

        z: (n, c, h, w) standard normal. labels: (n,) int64 for a conditional network.
        """
        level = torch.full((1,), self.noise_label, dtype=z.dtype, device=z.device)
        if labels is not None:
            labels = torch.nn.functional.one_hot(labels, self.net.label_dim).to(z.dtype)
        gap = {} if self.gap is None else {"second_labels": torch.full_like(level, self.gap)}
        x0 = self.skip * z + self.scale * self.net(self.before * z, level, labels, **gap)
        return to_uint8(x0), x0


class _Probe(nn.Module):
    """In the network's place: answers a number, and keeps what it was asked."""

    def __init__(self, answer: float, two_times: bool):
        super().__init__()
        self.answer, self.two_times = answer, two_times

    def forward(
        self, x: Tensor, noise_labels: Tensor, labels: Tensor | None = None, second_labels: Tensor | None = None
    ) -> Tensor:
        self.asked = x.item(), noise_labels.item(), None if second_labels is None else second_labels.item()
        return torch.full_like(x, self.answer)


def _asked(denoiser: Denoiser, noise: float, answer: float) -> tuple[float, float, float | None, float]:
    """What the network sees of one number of noise and as its level and gap, and what becomes of its answer."""
    probe, path = _Probe(answer, denoiser.two_times), denoiser.path
    t = torch.tensor(path.t_max, dtype=torch.float64)
    z = torch.full((1, 1, 1, 1), noise, dtype=torch.float64)
    x0 = FlowMap(Denoiser(probe, denoiser.native, path)).jump(path.prior_std(t) * z, t, 0.0)
    return *probe.asked, x0.item()


@dataclass(frozen=True)
class Export:
    """What was written. difference: largest between its images and torch's, in [-1, 1]; latencies: ms, one image."""

    file: Path
    difference: float
    latency_ms: float
    torch_latency_ms: float


def export(denoiser: Denoiser, file: Path, format: str) -> Export:
    """Write the one-step generator of a denoiser to `file`, read it back, and hold it against torch.

    format: 'onnx' or 'torch-export'. The program takes z (n, c, h, w) float32, for any n, and labels (n,) int64 if the
    network is conditional; it returns images (n, c, h, w) uint8, and x0, the same in float32 before rounding.
    Raises OnestepError if a package for the format is missing, or what is read back differs by more than 1e-4.
    """
    if format not in FORMATS:
        raise OnestepError(f"unknown format {format!r}; known: {', '.join(FORMATS)}")
    generator = OneStep(denoiser).eval()
    program = _traced(generator)
    with replacing(file) as temporary:
        run = _to_onnx(program, temporary) if format == "onnx" else _to_torch(program, temporary)
        difference = max(_difference(generator, run, count) for count in (1, 3))
        if not difference < _CLOSE:
            raise OnestepError(
                f"{file}: its images differ from torch's by {difference:.1e}; export in the other format"
            )
    one = inputs(generator, 1)
    with torch.inference_mode():
        times = [cost.latency_ms(lambda call=call: call(*one), "cpu")[0] for call in (run, generator)]
    return Export(file, difference, *times)


def inputs(generator: OneStep, count: int) -> tuple[Tensor, ...]:
    """`count` random inputs of a generator: noise, and labels if it takes them."""
    config, draw = generator.net.config, torch.Generator().manual_seed(0)
    z = torch.randn(count, config["in_channels"], *[config["img_resolution"]] * 2, generator=draw)
    return (z, torch.arange(count) % config["label_dim"]) if config["label_dim"] else (z,)


def _traced(generator: OneStep) -> torch.export.ExportedProgram:
    # Two, since a batch of one would be taken for a constant.
    example, free = inputs(generator, 2), {0: torch.export.Dim("n")}
    with torch.no_grad():
        return torch.export.export(generator, example, dynamic_shapes=(free,) * len(example))


Run = Callable[..., tuple[Tensor, Tensor]]


def _to_torch(program: torch.export.ExportedProgram, file: Path) -> Run:
    torch.export.save(program, file)
    return torch.export.load(file).module()


def _to_onnx(program: torch.export.ExportedProgram, file: Path) -> Run:
    needs_extra("export", "ONNX", "onnxruntime", "onnxscript")
    import onnxruntime

    names = ["z", "labels"][: len(program.graph_signature.user_inputs)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about its own versions, nothing that a user could do
        written = torch.onnx.export(
            program, dynamo=True, input_names=names, output_names=["images", "x0"], verbose=False
        )
        written.save(file)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])

    def run(*arguments: Tensor) -> tuple[Tensor, Tensor]:
        outputs = session.run(None, {name: value.numpy() for name, value in zip(names, arguments, strict=True)})
        return tuple(map(torch.from_numpy, outputs))

    return run


def _difference(generator: OneStep, run: Run, count: int) -> float:
    arguments = inputs(generator, count)
    with torch.no_grad():
        return (run(*arguments)[1] - generator(*arguments)[1]).abs().max().item()
