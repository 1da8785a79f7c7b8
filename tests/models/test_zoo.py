"""Other people's models, number for number."""

import json

import numpy as np
import pytest
import requests
import torch
from conftest import REFERENCE
from standins import edm_bytes, numbered, slimflow_content

from onestep_bench.data.pickles import Record
from onestep_bench.denoiser import EDM, Flow, edm_denoiser
from onestep_bench.models import checkpoints, zoo
from onestep_bench.models.pretrained import load_pretrained
from onestep_bench.networks.build import sized
from onestep_bench.paths import FLOW, VE


@pytest.fixture(scope="module")
def slimflow_arrays():
    with np.load(REFERENCE / "slimflow_ncsnpp.npz") as file:
        return {key: torch.from_numpy(file[key]) for key in file.files if file[key].ndim}


@pytest.fixture
def slimflow_content_of_reference(slimflow_arrays):
    prefix = "state/"
    return slimflow_content({k.removeprefix(prefix): v for k, v in slimflow_arrays.items() if k.startswith(prefix)})


def written(path, content):
    path.write_bytes(content)
    return path


# --- NVlabs/edm and GDD


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_an_edm_pickle_answers_as_its_weights_do(released_edm, tmp_path, protocol):
    denoiser, arrays = released_edm
    found = load_pretrained(written(tmp_path / "model.pkl", edm_bytes(denoiser, protocol=protocol)))
    assert (found.native, found.path) == (EDM(0.5), VE)
    assert not found.training
    assert not any(parameter.requires_grad for parameter in found.parameters())
    sigma, labels = arrays["sigma"], arrays.get("class_labels")
    x = arrays["x"] * sigma.reshape(-1, 1, 1, 1)
    torch.testing.assert_close(found(x, sigma, labels), denoiser(x, sigma, labels), rtol=0, atol=1e-5)
    inputs = [arrays.get(key) for key in ("x", "noise_labels", "class_labels", "augment_labels")]
    torch.testing.assert_close(found.net(*inputs), arrays["raw_output"], rtol=1e-5, atol=1e-5)


def test_augmentation_labels_are_taken_in_and_left_out(tmp_path):
    torch.manual_seed(0)
    config = sized("0.05M", 8, 1).config | {"augment_dim": 9}
    denoiser = edm_denoiser(checkpoints.networks.build(config).eval())
    found = load_pretrained(written(tmp_path / "model.pkl", edm_bytes(denoiser)))
    assert found.net.config["augment_dim"] == 9
    assert torch.equal(found.net.map_augment.weight, denoiser.net.map_augment.weight)
    x = torch.randn(2, 1, 8, 8)
    with torch.no_grad():
        assert torch.equal(found(x, 1.0), denoiser(x, 1.0))


@pytest.mark.parametrize("precond", ["GDDPrecond", "D2OPrecond"])
def test_gdd_keeps_its_own_boundary(tmp_path, precond):
    torch.manual_seed(0)
    denoiser = edm_denoiser(sized("0.05M", 8, 1).eval())
    path = written(tmp_path / "model.pkl", edm_bytes(denoiser, precond=precond, eps=0.002))
    found = load_pretrained(path, format="gdd")
    x, sigma, data, eps = torch.randn(3, 1, 8, 8), torch.tensor([80.0, 1.0, 0.002]).reshape(-1, 1, 1, 1), 0.5, 0.002
    root = (sigma**2 + data**2).sqrt()
    with torch.no_grad():
        raw = denoiser.net(x / root, sigma.flatten().log() / 4)
        expected = data**2 / ((sigma - eps) ** 2 + data**2) * x + (sigma - eps) * data / root * raw
        answer = found(x, sigma.flatten())
    torch.testing.assert_close(answer, expected, rtol=0, atol=1e-6)
    assert torch.equal(answer[2], x[2])
    checkpoints.save(found, tmp_path / "ours")
    assert checkpoints.load(tmp_path / "ours").native == found.native


def test_what_edm_released_but_we_have_not_is_named(tmp_path, refuses):
    denoiser = edm_denoiser(sized("0.05M", 8, 1))
    path = written(tmp_path / "model.pkl", edm_bytes(denoiser, precond="VPPrecond"))
    with refuses(str(path), "VPPrecond", "only EDMPrecond, GDDPrecond, D2OPrecond"):
        load_pretrained(path)
    with refuses("in the format edm, not slimflow"):
        load_pretrained(written(path, edm_bytes(denoiser)), format="slimflow")


def test_a_description_of_another_network_does_not_fit(tmp_path, refuses):
    denoiser = edm_denoiser(sized("0.05M", 8, 1))
    for change, told in (
        ({"model_channels": 10**6}, "do not fit"),
        ({"num_blocks": 10**9}, "do not fit"),
        ({"channel_mult": "much"}, "not laid out"),
        ({"sigma": 3}, "no argument 'sigma'"),
    ):
        denoiser.net.config = sized("0.05M", 8, 1).config | change
        with refuses("model.pkl", told):
            load_pretrained(written(tmp_path / "model.pkl", edm_bytes(denoiser)))


# --- SlimFlow


def test_slimflow_checkpoint_gives_the_released_velocity(slimflow_content_of_reference, slimflow_arrays, tmp_path):
    torch.save(slimflow_content_of_reference, tmp_path / "checkpoint.pth")
    found = load_pretrained(tmp_path / "checkpoint.pth")
    assert (found.native, found.path) == (Flow(), FLOW)
    x, t, velocity = (slimflow_arrays[key] for key in ("x", "t", "velocity"))
    # Our time and velocity run the other way. `t` stays below the noise end, where the velocity is asked off it.
    torch.testing.assert_close(found(x, 1 - t, want="velocity"), -velocity, rtol=0, atol=1e-5)


def test_slimflow_of_a_known_size_is_an_ordinary_network(
    slimflow_content_of_reference, slimflow_arrays, tmp_path, refuses
):
    torch.save(slimflow_content_of_reference, tmp_path / "checkpoint.pth")
    found = load_pretrained(tmp_path / "checkpoint.pth", resolution=16)
    checkpoints.save(found, tmp_path / "ours")
    again = checkpoints.load(tmp_path / "ours")
    assert again.net.config["attn_resolutions"] == [8]
    x, t, velocity = (slimflow_arrays[key] for key in ("x", "t", "velocity"))
    torch.testing.assert_close(again(x, 1 - t, want="velocity"), -velocity, rtol=0, atol=1e-5)
    with refuses("images of shape (n, 3, 16, 16)"):
        found(torch.zeros(1, 3, 32, 32), 0.5)


def test_slimflow_of_unknown_size_says_the_releases_size(slimflow_content_of_reference, tmp_path, refuses):
    torch.save(slimflow_content_of_reference, tmp_path / "checkpoint.pth")
    found = load_pretrained(tmp_path / "checkpoint.pth")
    assert found.net.config["img_resolution"] == 32
    with refuses("images of shape"):
        found(torch.zeros(1, 3, 15, 15), 0.5)
    with refuses("images of shape"):
        found(torch.zeros(1, 1, 16, 16), 0.5)


@pytest.mark.parametrize(("size", "side"), [("3.4M", 32), ("7.0M", 64), ("15.7M", 32), ("61.8M", 32)])
def test_every_unconditional_shape_of_slimflow_is_recognised(size, side):
    with torch.device("meta"):
        net = sized(size, side, 3)
        found = zoo.slimflow.released(slimflow_content(numbered(net)))
    assert found.config | {"arch": "SongUNet"} == {key: net.config[key] for key in found.config}
    assert {name: tensor.shape for name, tensor in found.state.items()} == {
        name: tensor.shape for name, tensor in net.state_dict().items()
    }


def test_adm_of_slimflow_keeps_its_names(tmp_path):
    torch.manual_seed(0)
    arguments = {"img_resolution": 16, "in_channels": 3, "out_channels": 3, "label_dim": 5, "num_blocks": 1}
    arguments |= {"model_channels": 32, "channel_mult": [1, 2], "attn_resolutions": [8], "dropout": 0.13}
    net = checkpoints.networks.build({"arch": "DhariwalUNet", **arguments}).eval()
    for parameter in net.parameters():
        parameter.data.normal_(std=0.05)
    state = {name: tensor for name, tensor in net.state_dict().items() if "resample_filter" not in name}
    torch.save(slimflow_content(state), tmp_path / "checkpoint.pth")
    found = load_pretrained(tmp_path / "checkpoint.pth")
    assert found.net.config == net.config
    x, labels = torch.randn(2, 3, 16, 16), torch.eye(5)[[0, 3]]
    with torch.no_grad():
        expected = -net(x, torch.full((2,), 999 * 0.6), labels)
        torch.testing.assert_close(found(x, 0.4, labels, want="velocity"), expected, rtol=0, atol=1e-5)


def test_averages_that_do_not_fit_are_refused(slimflow_content_of_reference, tmp_path, refuses):
    content, path = slimflow_content_of_reference, tmp_path / "checkpoint.pth"
    shadow = content["ema"]["shadow_params"]
    for change in (shadow[1:], [shadow[1], shadow[0], *shadow[2:]], [*shadow[:-1], 3]):
        torch.save(content | {"ema": {"shadow_params": change}}, path)
        with refuses(str(path), "shadow_params"):
            load_pretrained(path)
    names = list(content["model"])
    for change in (
        {"module.other.weight": content["model"].pop(names[1])},
        {"module.all_modules.99.weight": torch.zeros(3)},
    ):
        model = content["model"] | change
        torch.save({"model": model, "ema": {"shadow_params": list(model.values())[1:]}}, path)
        with refuses(str(path)):
            load_pretrained(path)


# --- where models come from


def test_what_is_no_model_is_refused(tmp_path, refuses):
    for content in ({}, [1], {"ema": 3}, {"ema": {"shadow_params": []}}, Record("SongUNet")):
        if not isinstance(content, Record):
            torch.save(content, tmp_path / "some.pth")
            with refuses("some.pth", "no model of a known format"):
                load_pretrained(tmp_path / "some.pth")
    with refuses("no model edm-cifar10-32x32-uncond", "did you mean 'edm-cifar10-32x32-uncond-v"):
        load_pretrained("edm-cifar10-32x32-uncond")
    with refuses("no model there/not.pkl", "correct the path"):
        load_pretrained("there/not.pkl")


def test_our_own_folders_are_models_too(tmp_path):
    denoiser = edm_denoiser(sized("0.05M", 8, 1))
    checkpoints.save(denoiser, tmp_path)
    assert load_pretrained(tmp_path).spec() == load_pretrained(str(tmp_path)).spec() == denoiser.spec()
    assert json.loads((tmp_path / "config.json").read_text()) == denoiser.spec()


@pytest.mark.parametrize("source", ["edm-cifar10-32x32-uncond-vp", f"{zoo.EDM_URL}edm-cifar10-32x32-uncond-vp.pkl"])
def test_offline_says_which_file_to_put_where(tmp_path, monkeypatch, refuses, source):
    def get(*args, **kwargs):
        raise requests.ConnectionError

    monkeypatch.setattr(requests, "get", get)
    monkeypatch.setenv("ONESTEP_DATA", str(tmp_path))
    target = tmp_path / "models" / "edm-cifar10-32x32-uncond-vp.pkl"
    with refuses(target.name, zoo.EDM_URL, f"put the file at {target}"):
        load_pretrained(source)
    target.parent.mkdir()
    denoiser = edm_denoiser(sized("0.05M", 8, 1))
    target.write_bytes(edm_bytes(denoiser))
    assert load_pretrained(source).spec() == denoiser.spec()
