"""An exported generator makes the images that the sampler makes."""

import pytest
import torch

from onestep_bench import samplers
from onestep_bench.data.pixels import to_uint8
from onestep_bench.denoiser import EDM, Denoiser, ddpm_denoiser, edm_denoiser, flow_denoiser
from onestep_bench.models import export
from onestep_bench.networks.build import build, sized
from onestep_bench.paths import FLOW, VP, alphas_cumprod

SHORT = alphas_cumprod("sigmoid", 16)
KINDS = {
    "edm": edm_denoiser,
    "gdd": lambda net: Denoiser(net, EDM(0.5, 0.002)),
    "flow": flow_denoiser,
    "ddpm eps": lambda net: ddpm_denoiser(net, SHORT),
    "ddpm v": lambda net: ddpm_denoiser(net, SHORT, "v"),
    "edm on flow": lambda net: edm_denoiser(net).on(FLOW),
    "edm on vp": lambda net: edm_denoiser(net).on(VP(SHORT)),
    "flow on vp": lambda net: flow_denoiser(net).on(VP(SHORT)),
}


SMALLEST = {"img_resolution": 8, "in_channels": 1, "out_channels": 1, "model_channels": 8, "channel_mult": [1]}
SMALLEST |= {"arch": "SongUNet", "num_blocks": 1, "attn_resolutions": [8]}


def perturbed(net):
    """The network with weights that do something, since some begin at zero."""
    torch.manual_seed(0)
    for parameter in net.eval().requires_grad_(False).parameters():
        parameter += 0.02 * torch.randn_like(parameter)
    return net


def made(kind="edm", **more):
    return KINDS[kind](perturbed(build(SMALLEST | more)))


@pytest.mark.parametrize("label_dim", [0, 4])
@pytest.mark.parametrize("kind", KINDS)
def test_one_step_is_that_of_the_sampler(kind, label_dim):
    denoiser = made(kind, label_dim=label_dim)
    generator = export.OneStep(denoiser)
    z, *labels = export.inputs(generator, 5)
    images, x0 = generator(z, *labels)
    expected = samplers.euler(denoiser, z, samplers.default_times(denoiser.path, 1), *labels)
    torch.testing.assert_close(x0, expected, rtol=1e-4, atol=1e-4)
    assert torch.equal(images, to_uint8(x0))
    assert x0.std() > 1e-3


@pytest.mark.parametrize("kind", ["edm", "flow", "edm on flow"])
def test_one_step_of_a_flow_map_is_its_jump(kind):
    denoiser = made(kind, second_time=True)
    generator = export.OneStep(denoiser)
    (z,) = export.inputs(generator, 5)
    expected = samplers.push_forward(denoiser, z, samplers.flow_times(denoiser.path, 1))
    torch.testing.assert_close(generator(z)[1], expected, rtol=1e-5, atol=1e-5)
    straight = samplers.euler(denoiser, z, samplers.default_times(denoiser.path, 1))
    assert (expected - straight).abs().max() > 1e-4


@pytest.mark.parametrize("more", [{}, {"patch": 2}, {"second_time": True}], ids=["plain", "patch", "two times"])
@pytest.mark.parametrize("format", export.FORMATS)
def test_what_is_exported_equals_torch_for_any_batch(tmp_path, format, more):
    denoiser = made(label_dim=4, **more)
    file = tmp_path / "generator"
    told = export.export(denoiser, file, format)
    assert told.difference < 1e-4
    assert min(told.latency_ms, told.torch_latency_ms) > 0
    generator = export.OneStep(denoiser)
    if format == "onnx":
        session = pytest.importorskip("onnxruntime").InferenceSession(file, providers=["CPUExecutionProvider"])
        assert [entry.name for entry in session.get_outputs()] == ["images", "x0"]
    else:
        program = torch.export.load(file).module()
    for count in (1, 2, 7):
        arguments = export.inputs(generator, count)
        images, x0 = generator(*arguments)
        if format == "onnx":
            names = [entry.name for entry in session.get_inputs()]
            found = session.run(None, {name: a.numpy() for name, a in zip(names, arguments, strict=True)})
            found_images, found_x0 = map(torch.from_numpy, found)
        else:
            found_images, found_x0 = program(*arguments)
        torch.testing.assert_close(found_x0, x0, rtol=0, atol=1e-4)
        assert found_images.dtype == torch.uint8
        assert (found_images.int() - images.int()).abs().max() <= 1  # at a border of rounding


@pytest.mark.slow
@pytest.mark.parametrize("arch", ["edm_ddpmpp", "edm_ncsnpp", "edm_adm"])
@pytest.mark.parametrize("format", export.FORMATS)
def test_every_architecture_is_exported(tmp_path, arch, format):
    small = {"model_channels": 64, "num_blocks": 1, "channel_mult": [1, 2], "attn_resolutions": [8], "dropout": 0.0}
    sizes = {"edm_ddpmpp": "edm-ddpmpp", "edm_ncsnpp": "edm-ncsnpp", "edm_adm": "adm"}
    with torch.device("meta"):
        config = sized(sizes[arch], 16, 3).config | small
    told = export.export(edm_denoiser(perturbed(build(config))), tmp_path / "g", format)
    assert told.difference < 1e-4


def test_an_unknown_format_is_named(tmp_path, refuses):
    with refuses("'tensorrt'", "onnx, torch-export"):
        export.export(made(), tmp_path / "g", "tensorrt")
