"""The projected critic: what it sees and what it trains."""

import sys

import pytest
import torch

from onestep_bench import networks
from onestep_bench.compat import import_torchvision
from onestep_bench.denoiser import ddpm_denoiser, edm_denoiser, flow_denoiser
from onestep_bench.methods.gdd import r1_penalty
from onestep_bench.networks.critics import Critic, Mixing, critic, teacher_backbone
from onestep_bench.paths import alphas_cumprod


def denoiser(size="0.05M", resolution=8, channels=1, label_dim=0, make=edm_denoiser):
    torch.manual_seed(0)
    return make(networks.sized(size, resolution, channels, label_dim=label_dim))


@pytest.fixture
def images():
    return torch.rand(5, 1, 8, 8, generator=torch.Generator().manual_seed(1)) * 2 - 1


def test_the_encoder_asked_alone_answers_as_in_the_whole_network(images):
    teacher, seen = denoiser(), []
    teacher.net.dec["4x4_in0"].register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    features = teacher.encode(images, 0.3)
    teacher(images, 0.3)  # on VE, the level is the ratio and data is not scaled
    assert [tuple(map_.shape[1:]) for map_ in features] == [(8, 8, 8), (8, 8, 8), (8, 4, 4), (16, 4, 4)]
    torch.testing.assert_close(features[-1], seen[0])


def discrete(net):
    return ddpm_denoiser(net, alphas_cumprod("sigmoid", 100))


@pytest.mark.parametrize("make", [flow_denoiser, discrete], ids=["flow", "ddpm"])
def test_any_kind_of_teacher_is_asked_at_the_ratio_wanted(images, make):
    teacher, seen = denoiser(make=make), []
    teacher.net.dec["4x4_in0"].register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    features = teacher.encode(images, 0.25)
    level = teacher.path.t_at(torch.tensor(0.25))
    teacher(images * teacher.path.alpha(level), level)
    torch.testing.assert_close(features[-1], seen[0])


def test_four_levels_are_taken_of_a_deep_encoder():
    teacher = denoiser("7.0M", 32, 3)
    maps = teacher_backbone(teacher, 0.05)(torch.zeros(1, 3, 32, 32), None)
    assert len(teacher.encode(torch.zeros(1, 3, 32, 32), 0.05)) == 9
    assert [tuple(map_.shape[1:]) for map_ in maps] == [(64, 32, 32), (64, 16, 16), (128, 16, 16), (128, 8, 8)]


def test_logits_depend_on_their_own_image_alone_and_on_seeds(images):
    teacher = denoiser()
    torch.manual_seed(7)
    one = critic("teacher", teacher, channels=8, ratio=0.05).eval()
    torch.manual_seed(7)
    same = critic("teacher", teacher, channels=8, ratio=0.05).eval()
    logits = one(images)
    assert logits.shape == (5, 4 * 4 * 4)  # four heads, each down to 4x4
    assert torch.equal(logits, same(images))
    torch.testing.assert_close(one(images[:2]), logits[:2])


def test_only_the_heads_train_and_the_state_leaves_the_backbone_out():
    teacher = denoiser()
    made = critic("teacher", teacher, channels=8, ratio=0.05)
    trained = {name.split(".")[0] for name, parameter in made.named_parameters() if parameter.requires_grad}
    assert trained == {"heads"}
    assert {name.split(".")[0] for name in made.state_dict()} == {"heads", "mixing"}


def test_every_pixel_and_every_level_is_seen(images):
    made = critic("teacher", denoiser(), channels=8, ratio=0.05)
    pixels = images.clone().requires_grad_(True)
    made(pixels).sum().backward()
    assert (pixels.grad != 0).all()
    for heads in made.heads[0]:
        assert all(parameter.grad is not None for parameter in heads.parameters())


def test_scales_are_mixed_from_coarse_to_fine_only():
    torch.manual_seed(0)
    mixing = Mixing([(3, 8, 8), (5, 4, 4)], 8)
    fine, coarse = torch.randn(1, 3, 8, 8), torch.randn(1, 5, 4, 4)
    before = mixing([fine, coarse])
    after = mixing([fine + 1, coarse])
    assert torch.equal(before[1], after[1])
    assert not torch.allclose(before[0], after[0])
    assert not torch.allclose(mixing([fine, coarse + 1])[0], before[0])


def test_a_conditional_critic_reads_the_label(images):
    made = critic("teacher", denoiser(label_dim=4), channels=8, ratio=0.05).eval()
    logits = [made(images, torch.full((5,), label)) for label in (0, 1)]
    assert not torch.allclose(*logits)


def test_spectral_norms_bound_every_trained_layer(images):
    made = critic("teacher", denoiser(), channels=8, ratio=0.05)
    for module in made.heads.modules():
        if isinstance(module, torch.nn.Conv2d):
            with torch.no_grad():
                module.parametrizations.weight.original *= 100
    for _ in range(30):
        made(images)
    layer = made.heads[0][0].logits.eval()
    assert torch.linalg.matrix_norm(layer.weight.flatten(1), ord=2).item() == pytest.approx(1, rel=1e-2)


def test_r1_goes_through_attention():
    """The fused attention kernels have no second derivative."""
    net = networks.SongUNet(8, 1, 1, model_channels=8, channel_mult=(1,), num_blocks=1, attn_resolutions=(8,))
    made = critic("teacher", edm_denoiser(net), channels=8, ratio=0.05)
    r1_penalty(made, torch.rand(2, 1, 8, 8), 1.0).backward()
    assert any(parameter.grad is not None and parameter.grad.any() for parameter in made.heads.parameters())


@pytest.mark.parametrize("name", ["teachr", "timm:", "teacher+vgg"])
def test_an_unknown_backbone_is_refused(refuses, name):
    with refuses("unknown critic", "timm:NAME"):
        critic(name, denoiser(), channels=8, ratio=0.05)


def test_timm_is_asked_for_weights_and_named_when_it_has_none(refuses, monkeypatch, tmp_path):
    import_torchvision()
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with refuses("timm:tf_efficientnet_lite0", "timm/tf_efficientnet_lite0.in1k", "HF_HOME"):
        critic("timm:tf_efficientnet_lite0", denoiser(), channels=8, ratio=0.05)
    with refuses("'vgg17_bn'", "did you mean"):
        critic("timm:vgg17_bn", denoiser(), channels=8, ratio=0.05)


def test_without_timm_the_extra_is_named(refuses, monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with refuses("onestep-bench[critics]"):
        critic("timm:vgg16_bn", denoiser(), channels=8, ratio=0.05)


def test_the_papers_backbones_give_four_levels_each(monkeypatch, images):
    import_torchvision()
    import timm

    create = timm.create_model
    monkeypatch.setattr(timm, "create_model", lambda name, pretrained, **more: create(name, pretrained=False, **more))
    made = critic("teacher+timm:tf_efficientnet_lite0", denoiser(), channels=8, ratio=0.05)
    assert isinstance(made, Critic)
    assert [len(heads) for heads in made.heads] == [4, 4]
    assert made(images[:2]).shape[0] == 2
