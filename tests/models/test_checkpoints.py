"""Models survive the way to disk and back, and say so in one line when they do not."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from onestep_bench.denoiser import DDPM, EDM, Denoiser, Flow
from onestep_bench.models import checkpoints
from onestep_bench.networks.build import sized
from onestep_bench.paths import FLOW, VP, alphas_cumprod

SHORT = VP(alphas_cumprod("sigmoid", 16))
KINDS = {
    "edm": (EDM(0.4), None),
    "flow": (Flow(), None),
    "ddpm": (DDPM(SHORT, "v"), None),
    "edm seen on flow": (EDM(), FLOW),
    "flow seen on vp": (Flow(), SHORT),
}


@pytest.fixture(params=KINDS)
def denoiser(request):
    torch.manual_seed(0)
    return Denoiser(sized("0.05M", 8, 1, label_dim=3), *KINDS[request.param])


@pytest.fixture
def folder(tmp_path):
    """A folder that holds a model."""
    checkpoints.save(Denoiser(sized("0.05M", 8, 1), EDM()), tmp_path)
    return tmp_path


def test_a_model_comes_back_bit_for_bit(denoiser, tmp_path):
    checkpoints.save(denoiser, tmp_path)
    again = checkpoints.load(tmp_path)
    assert again.spec() == denoiser.spec()
    assert (again.native, again.path) == (denoiser.native, denoiser.path)
    state = denoiser.net.state_dict()
    assert again.net.state_dict().keys() == state.keys()
    assert all(torch.equal(value, state[name]) for name, value in again.net.state_dict().items())
    assert not again.training
    assert not any(parameter.requires_grad for parameter in again.parameters())
    x, t, labels = torch.randn(3, 1, 8, 8), torch.full((3,), 0.5), torch.tensor([0, 2, 1])
    with torch.no_grad():
        assert torch.equal(again(x, t, labels), denoiser.eval()(x, t, labels))


@pytest.mark.parametrize("name", [checkpoints.WEIGHTS, checkpoints.CONFIG])
def test_a_missing_file_is_named(folder, name, refuses):
    (folder / name).unlink()
    with refuses(str(folder), "no whole model"):
        checkpoints.load(folder)


@pytest.mark.parametrize("name", [checkpoints.WEIGHTS, checkpoints.CONFIG])
@pytest.mark.parametrize("share", [0, 0.01, 0.5, 0.99])
def test_a_truncated_file_is_no_model(folder, name, share, refuses):
    content = (folder / name).read_bytes()
    (folder / name).write_bytes(content[: int(share * len(content))])
    with refuses(str(folder), "no whole model"):
        checkpoints.load(folder)


@pytest.mark.parametrize("content", [[], {}, {"network": {"arch": "SongUNet"}}, {"network": 3, "native": 4}])
def test_a_foreign_description_is_no_model(folder, content, refuses):
    (folder / checkpoints.CONFIG).write_text(json.dumps(content))
    with refuses():
        checkpoints.load(folder)


@pytest.mark.parametrize("change", ["one too many", "one too few"])
def test_weights_fit_name_for_name(folder, refuses, change):
    weights = load_file(folder / checkpoints.WEIGHTS)
    name = next(iter(weights))
    if change == "one too few":
        del weights[name]
    else:
        weights["more"] = weights[name].clone()
    save_file(weights, folder / checkpoints.WEIGHTS)
    with refuses(str(folder), "do not fit", name if change == "one too few" else "more"):
        checkpoints.load(folder)


def test_weights_of_another_network_do_not_fit(folder, refuses):
    config = json.loads((folder / checkpoints.CONFIG).read_text())
    config["network"]["model_channels"] = 16
    (folder / checkpoints.CONFIG).write_text(json.dumps(config))
    with refuses(str(folder), "do not fit"):
        checkpoints.load(folder)


def test_a_network_of_another_name_is_refused(folder, refuses):
    config = json.loads((folder / checkpoints.CONFIG).read_text())
    config["network"]["arch"] = "SongNet"
    (folder / checkpoints.CONFIG).write_text(json.dumps(config))
    with refuses("did you mean 'SongUNet'?"):
        checkpoints.load(folder)
