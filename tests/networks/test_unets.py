"""The networks against arrays computed with the released code, and their sizes against the published ones."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from onestep_bench.errors import OnestepError
from onestep_bench.networks.build import build, size_of, sized
from onestep_bench.networks.sizes import SIZES

REFERENCE = Path(__file__).parents[1] / "reference"
ZOO = ["edm_ddpmpp", "edm_ncsnpp", "edm_ddpmpp_cond", "edm_adm_cond"]
TINY = {"arch": "SongUNet", "img_resolution": 8, "in_channels": 1, "out_channels": 1, "model_channels": 8}
TINY |= {"channel_mult": [1, 2], "num_blocks": 1, "attn_resolutions": []}


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """Networks this small only wait for each other's threads on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def zoo(name):
    """A network with its reference weights, its inputs and its output."""
    arrays = {key: torch.from_numpy(value) for key, value in np.load(REFERENCE / f"{name}.npz").items() if value.ndim}
    with np.load(REFERENCE / f"{name}.npz") as file:
        net = build(json.loads(str(file["config"])))
    net.load_state_dict(
        {key.removeprefix("state/"): value for key, value in arrays.items() if key.startswith("state/")}
    )
    inputs = [arrays.get(key) for key in ("x", "noise_labels", "class_labels", "augment_labels")]
    return net, inputs, arrays["raw_output"]


def relative_error(output, expected):
    return ((output - expected).abs().max() / expected.abs().max()).item()


def parameters(net):
    return sum(parameter.numel() for parameter in net.parameters())


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("name", ZOO)
def test_reproduces_the_released_network(name, memory_format):
    net, inputs, expected = zoo(name)
    with torch.inference_mode():
        output = net.to(memory_format=memory_format).eval()(*inputs)
    assert relative_error(output, expected) < 1e-5


@pytest.mark.parametrize("name", ZOO)
def test_one_noise_label_serves_the_whole_batch(name):
    net, (x, noise_labels, *labels), _ = zoo(name)
    one = noise_labels[:1]
    with torch.inference_mode():
        assert relative_error(net(x, one, *labels), net(x, one.expand(len(x)), *labels)) < 1e-5


@pytest.mark.parametrize("name", ZOO)
def test_gradient_reaches_every_parameter(name):
    net, inputs, _ = zoo(name)
    net(*inputs).square().sum().backward()
    for parameter_name, parameter in net.named_parameters():
        assert parameter.grad is not None, parameter_name
        assert parameter.grad.abs().max() > 0, parameter_name


@pytest.mark.parametrize("name", ZOO)
def test_bf16_autocast_stays_close_and_returns_the_dtype_of_the_input(name):
    net, inputs, expected = zoo(name)
    with torch.autocast("cpu", torch.bfloat16):
        output = net(*inputs)
    output.sum().backward()
    assert output.dtype == torch.float32
    assert relative_error(output, expected) < 0.05
    assert all(parameter.grad.isfinite().all() for parameter in net.parameters())


@pytest.mark.parametrize("name", ["edm_ncsnpp", "edm_adm_cond"])
def test_compiles_as_one_graph(name):
    net, inputs, expected = zoo(name)
    assert relative_error(torch.compile(net, backend="eager", fullgraph=True)(*inputs), expected) < 1e-5


# SlimFlow counts its CIFAR-10 and FFHQ networks without labels, its ImageNet ones with 1000.
PUBLISHED = [
    ("61.8M", 32, 0, 61_804_419),
    ("27.9M", 32, 0, 27_906_179),
    ("15.7M", 32, 0, 15_707_235),
    ("7.0M", 32, 0, 6_989_891),
    ("3.4M", 32, 0, 3_437_123),
    ("3.4M", 64, 0, 3_536_195),
    ("80.7M", 64, 1000, 80_685_315),
    ("44.7M", 64, 1000, 44_685_827),
    ("edm-ncsnpp", 32, 0, 56_395_523),
]


@pytest.mark.parametrize(("name", "resolution", "label_dim", "count"), PUBLISHED)
def test_published_parameter_counts(name, resolution, label_dim, count):
    with torch.device("meta"):
        assert parameters(sized(name, resolution, 3, label_dim)) == count


def test_edm_parameter_counts():
    with torch.device("meta"):
        assert parameters(build(sized("edm-ddpmpp", 32, 3).config | {"augment_dim": 9})) == 55_733_891
        assert round(parameters(sized("edm-ddpmpp", 64, 3)) / 1e6, 1) == 61.8
        assert round(parameters(sized("edm-ncsnpp", 64, 3)) / 1e6, 1) == 62.8
        assert round(parameters(sized("adm", 64, 3, label_dim=1000)) / 1e6, 1) == 295.9


@pytest.mark.parametrize("name", ["0.05M", "0.2M", "0.8M", "3M"])
def test_small_sizes_are_near_their_names(name):
    with torch.device("meta"):
        net = sized(name, 8, 1)
    assert parameters(net) / 1e6 == pytest.approx(float(name[:-1]), rel=0.1)
    assert net.config["dropout"] == 0


PATCHED = [name for name in SIZES if name.endswith("-p2")]


@pytest.mark.parametrize("name", PATCHED)
def test_patched_sizes_are_near_their_names_and_keep_the_shape_of_images(name):
    net = sized(name, 28, 1)
    assert parameters(net) / 1e6 == pytest.approx(float(name.removesuffix("M-p2")), rel=0.1)
    assert net(torch.randn(2, 1, 28, 28), torch.rand(2)).shape == (2, 1, 28, 28)


@pytest.mark.parametrize("encoder_type", ["standard", "residual"])
def test_a_patched_network_is_one_of_fewer_places_and_more_channels(encoder_type):
    torch.manual_seed(0)
    config = TINY | {"encoder_type": encoder_type, "in_channels": 2, "out_channels": 3}
    net = build(config | {"img_resolution": 12, "patch": 3})
    inner = build(config | {"img_resolution": 4, "in_channels": 2 * 9, "out_channels": 3 * 9})
    inner.load_state_dict({key: torch.randn_like(value) / 8 for key, value in inner.state_dict().items()})
    net.eval().load_state_dict(inner.eval().state_dict())  # the levels are named for what they hold
    x, noise_labels = torch.randn(2, 2, 12, 12), torch.rand(2)
    cut = x.reshape(2, 2, 4, 3, 4, 3).permute(0, 1, 3, 5, 2, 4).reshape(2, 18, 4, 4)
    joined = inner(cut, noise_labels).reshape(2, 3, 3, 3, 4, 4).permute(0, 1, 4, 2, 5, 3).reshape(2, 3, 12, 12)
    torch.testing.assert_close(net(x, noise_labels), joined)
    shapes = [tuple(features.shape[1:]) for features in net.encode(x, noise_labels)]
    assert shapes == [(8, 4, 4), (8, 4, 4), (8, 2, 2), (16, 2, 2)]
    assert net.head_norm.weight.shape == inner.head_norm.weight.shape


def test_a_config_from_before_patches_has_none():
    older = {key: value for key, value in build(TINY).config.items() if key != "patch"}
    assert build(older).config == older | {"patch": 1}
    assert size_of(build(older | {"model_channels": 16, "channel_mult_emb": 4, "dropout": 0.0})) == "0.2M"


@pytest.mark.parametrize("name", SIZES)
def test_config_is_json_and_rebuilds_the_network(name):
    with torch.device("meta"):
        net = sized(name, 64, 3, label_dim=10, dropout=0.25)
        again = build(json.loads(json.dumps(net.config)))
    assert again.config == net.config
    assert again.config["dropout"] == 0.25
    shapes = {key: value.shape for key, value in net.state_dict().items()}
    assert {key: value.shape for key, value in again.state_dict().items()} == shapes


def test_odd_sizes_down_to_seven():
    net = build(TINY | {"img_resolution": 28, "channel_mult": [1, 2, 2], "attn_resolutions": [7]})
    assert {
        "enc.28x28_conv.weight",
        "enc.14x14_down.skip.weight",
        "enc.7x7_block0.qkv.weight",
    } <= net.state_dict().keys()
    assert net(torch.randn(2, 1, 28, 28), torch.rand(2)).shape == (2, 1, 28, 28)


def test_a_fresh_network_is_nearly_zero_and_its_blocks_nearly_the_identity():
    output = build(TINY)(torch.randn(4, 1, 8, 8), torch.rand(4))
    assert 0 < output.abs().max() < 1e-3


def test_label_dropout_acts_in_training_only():
    torch.manual_seed(0)
    net, (x, noise_labels, class_labels, _), expected = zoo("edm_adm_cond")
    net.config["label_dropout"] = 1.0
    assert relative_error(net.eval()(x, noise_labels, class_labels), expected) < 1e-5
    dropped = net.train()(x, noise_labels, class_labels)
    assert relative_error(dropped, net(x, noise_labels, torch.zeros_like(class_labels))) < 1e-5
    assert relative_error(dropped, expected) > 1e-3


BAD_CONFIGS = {
    "not halved exactly": ({"img_resolution": 10, "channel_mult": [1, 2, 2]}, "halved 2 times"),
    "patches not halved exactly": ({"patch": 4, "channel_mult": [1, 2, 2]}, "2x2 patches cannot be halved 2 times"),
    "not cut exactly": ({"patch": 3}, "8x8 images cannot be cut into patches of side 3"),
    "no patch": ({"patch": 0}, "patches of side 0"),
    "no levels": ({"channel_mult": []}, "channel_mult"),
    "decoder": ({"decoder_type": "skip"}, "decoder_type 'skip'"),
    "encoder": ({"encoder_type": "residul"}, "did you mean 'residual'"),
    "embedding": ({"embedding_type": "none"}, "embedding_type"),
    "architecture": ({"arch": "SongUnet"}, "did you mean 'SongUNet'"),
    "argument": ({"model_chanels": 8}, "did you mean 'model_channels'"),
    "width": ({"model_channels": 48}, "GroupNorm cannot split 144"),
    "narrow": ({"model_channels": 2}, "GroupNorm"),
}


@pytest.mark.parametrize("case", BAD_CONFIGS)
def test_bad_configs_are_explained_in_one_line(case):
    change, words = BAD_CONFIGS[case]
    with pytest.raises(OnestepError) as caught:
        build(TINY | change)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_missing_arguments_and_unknown_sizes_are_named():
    with pytest.raises(OnestepError, match="needs img_resolution, in_channels, out_channels"):
        build({"arch": "DhariwalUNet"})
    with pytest.raises(OnestepError, match=r"did you mean '15\.7M'"):
        sized("15.7", 32, 3)


X, NOISE, LABELS = torch.zeros(2, 1, 8, 8), torch.zeros(2), torch.zeros(2, 4)
BAD_INPUTS = {
    "image size": ((torch.zeros(2, 1, 16, 16), NOISE, LABELS), r"images of shape \(n, 1, 8, 8\), not \(2, 1, 16, 16\)"),
    "channels": ((torch.zeros(2, 3, 8, 8), NOISE, LABELS), "images of shape"),
    "no batch": ((torch.zeros(1, 8, 8), NOISE, LABELS), "images of shape"),
    "noise labels": ((X, torch.zeros(3), LABELS), "3 noise labels for 2 images"),
    "missing labels": ((X, NOISE), "is conditional"),
    "label width": ((X, NOISE, torch.zeros(2, 5)), r"\(2, 4\), not \(2, 5\)"),
    "integer labels": ((X, NOISE, torch.zeros(2, dtype=torch.int64)), "one-hot"),
}


@pytest.mark.parametrize("case", BAD_INPUTS)
def test_bad_inputs_are_explained_in_one_line(case):
    inputs, words = BAD_INPUTS[case]
    with pytest.raises(OnestepError, match=words) as caught:
        build(TINY | {"label_dim": 4})(*inputs)
    assert "\n" not in str(caught.value)


def test_an_unconditional_network_refuses_labels():
    with pytest.raises(OnestepError, match="no class_labels"):
        build(TINY)(X, NOISE, LABELS)
