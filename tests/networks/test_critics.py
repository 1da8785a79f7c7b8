"""The projected critic: what it sees and what it trains."""

import sys

import pytest
import torch

from onestep_bench import networks
from onestep_bench.compat import import_torchvision
from onestep_bench.denoiser import ddpm_denoiser, edm_denoiser, flow_denoiser
from onestep_bench.methods.gdd import r1_penalty
from onestep_bench.networks import critics, released_critic
from onestep_bench.networks.critics import Backbone, Critic, Mixing, critic, teacher_backbone
from onestep_bench.networks.released_critic import BatchNorm
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
    (logits,) = one(images)
    assert logits.shape == (5, 4 * 4 * 4)  # four heads, each down to 4x4
    assert torch.equal(logits, same(images)[0])
    torch.testing.assert_close(one(images[:2])[0], logits[:2])


def test_only_the_heads_train_and_the_state_leaves_the_backbone_out():
    teacher = denoiser()
    made = critic("teacher", teacher, channels=8, ratio=0.05)
    trained = {name.split(".")[0] for name, parameter in made.named_parameters() if parameter.requires_grad}
    assert trained == {"heads"}
    assert {name.split(".")[0] for name in made.state_dict()} == {"heads", "mixing"}
    assert made.frozen_networks == []


def test_every_pixel_and_every_level_is_seen(images):
    made = critic("teacher", denoiser(), channels=8, ratio=0.05)
    pixels = images.clone().requires_grad_(True)
    made(pixels)[0].sum().backward()
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
    logits = [made(images, torch.full((5,), label))[0] for label in (0, 1)]
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
    # One network of its own beside the teacher: out of the parameters and the state, and to be had by itself.
    (network,) = made.frozen_networks
    assert not {id(parameter) for parameter in network.parameters()} & {id(each) for each in made.parameters()}
    assert not any(parameter.requires_grad for parameter in network.parameters())
    assert [each.shape for each in made(images[:2])] == [(2, 4 * 4 * 4), (2, 9 + 9 + 9 + 9)]


# --- layout="released"

PAPER_CRITICS = {
    "timm:vgg16_bn": ([112, 56, 28, 14], [128, 256, 512, 512], 4 * 121),
    "timm:tf_efficientnet_lite0": ([56, 28, 14, 7], [24, 40, 112, 320], 4 * 16),
    "timm:deit_base_distilled_patch16_224": ([14, 14, 14, 14], [768, 768, 768, 768], 4 * 16),
}


@pytest.fixture
def shapes_only(monkeypatch):
    """A teacher and timm's networks without numbers, on torch's meta device: only shapes are computed."""
    import_torchvision()
    import timm

    create = timm.create_model
    monkeypatch.setattr(timm, "create_model", lambda name, pretrained, **more: create(name, pretrained=False, **more))

    def made(name, label_dim=0):
        with torch.device("meta"):
            teacher = edm_denoiser(networks.sized("0.05M", 8, 1, label_dim=label_dim))
            return critic(name, teacher, channels=64, ratio=0.05, layout="released")

    return made


@pytest.mark.parametrize("name", PAPER_CRITICS)
def test_the_released_taps_widths_and_logits(shapes_only, name):
    """Sizes and widths are the released code's, at images of 224 pixels."""
    sizes, widths, logits = PAPER_CRITICS[name]
    made, images = shapes_only(name), torch.zeros(2, 1, 8, 8, device="meta")
    maps = made._backbones[0](images, None)
    assert [tuple(each.shape[1:]) for each in maps] == [(c, h, h) for c, h in zip(widths, sizes, strict=True)]
    (mixing,), (heads,) = made.mixing, made.heads
    if "deit" in name:
        maps, sizes, widths = mixing.reassembly(maps), [56, 28, 14, 7], [96, 192, 384, 768]
        assert [tuple(each.shape[1:]) for each in maps] == [(c, h, h) for c, h in zip(widths, sizes, strict=True)]
    assert [layer.weight.shape for layer in mixing.across_channels] == [
        (width, of, 1, 1) for width, of in zip((64, 128, 256, 512), widths, strict=True)
    ]
    assert [layer.weight.shape for layer in mixing.across_scales] == [
        (64, 64, 1, 1),
        (64, 128, 1, 1),
        (128, 256, 1, 1),
        (256, 512, 1, 1),
    ]
    mixed = mixing(made._backbones[0](images, None))
    doubled = [(c, 2 * h, 2 * h) for c, h in zip((64, 64, 128, 256), sizes, strict=True)]
    assert [tuple(each.shape[1:]) for each in mixed] == doubled
    trunks = [[layer.weight.shape[0] for layer in head.trunk if hasattr(layer, "kernel_size")] for head in heads]
    assert trunks == [[64, 128, 256, 512], [128, 256, 512], [256, 512], [512]]
    assert all(head.logits.weight.shape == (1, 512, 4, 4) for head in heads)
    assert [each.shape for each in made(images)] == [(2, logits)]
    assert len(made.frozen_networks) == 1


def test_the_released_critic_with_classes(shapes_only):
    made = shapes_only("timm:tf_efficientnet_lite0", label_dim=4)
    head, labels = made.heads[0][0], torch.zeros(2, dtype=torch.int64, device="meta")
    assert head.logits.weight.shape == (64, 512, 4, 4)
    assert head.embedding(torch.zeros(2, 4, device="meta")).shape == (2, 64)
    assert [each.shape for each in made(torch.zeros(2, 1, 8, 8, device="meta"), labels)] == [(2, 4 * 16)]


def pyramid(images, labels):
    """Four maps of 56, 28, 14 and 7 pixels, as of an ImageNet network, of 2 to 5 channels."""
    images = torch.nn.functional.interpolate(images, size=(56, 56), mode="bilinear")
    return [torch.nn.functional.avg_pool2d(images.expand(-1, 2 + k, -1, -1), 2**k) for k in range(4)]


@pytest.fixture
def small(monkeypatch):
    """Function to a small released critic, with statistics of 4 images, that looks through pyramids."""
    monkeypatch.setattr(critics, "timm_backbone", lambda name, device, layout: Backbone(pyramid))

    def made(label_dim=0, names="timm:any"):
        teacher = denoiser(label_dim=label_dim)
        return critic(names, teacher, channels=8, ratio=0.05, layout="released", group=4).eval()

    return made


def test_batch_statistics_are_those_of_an_images_own_group(small):
    made = small()
    images = torch.rand(8, 1, 8, 8, generator=torch.Generator().manual_seed(1)) * 2 - 1
    (logits,) = made(images)
    torch.testing.assert_close(made(images[:4])[0], logits[:4])
    torch.testing.assert_close(made(images[4:])[0], logits[4:])
    other = images.clone()
    other[0] = -other[0]
    (changed,) = made(other)
    torch.testing.assert_close(changed[4:], logits[4:])
    assert not torch.isclose(changed[1:4], logits[1:4]).any(1).all()
    # Training or not, there are no running averages to be asked instead.
    assert not any("running" in name for name in made.state_dict())


def test_batch_norm_is_torchs_on_each_group():
    norm, torchs = BatchNorm(3, 4), torch.nn.BatchNorm2d(3)
    for each in (norm, torchs):
        each.weight.data, each.bias.data = torch.tensor([1.0, 2.0, 3.0]), torch.tensor([0.5, 0.0, -1.0])
    x = torch.randn(8, 3, 5, 5) * 3 + 1
    torch.testing.assert_close(norm(x), torch.cat([torchs(x[:4]), torchs(x[4:])]))
    torch.testing.assert_close(norm(x[:2]), torchs(x[:2]))


def test_mixing_enlarges_and_adds_as_the_release_does():
    """Which enlarges first and mixes then; ours is the same linear map."""
    torch.manual_seed(0)
    mixing = released_critic.Mixing([(2, 16, 16), (3, 8, 8), (4, 4, 4), (5, 2, 2)], 8)
    features = [torch.randn(1, c, size, size) for c, size in ((2, 16), (3, 8), (4, 4), (5, 2))]
    x, expected = 0, []
    for level in (3, 2, 1, 0):
        x = x + mixing.across_channels[level](features[level])
        x = torch.nn.functional.interpolate(x, scale_factor=2, mode="bilinear", align_corners=True)
        x = mixing.across_scales[level](x)
        expected.insert(0, x)
    for found, wanted in zip(mixing(features), expected, strict=True):
        torch.testing.assert_close(found, wanted)
    assert not any(parameter.requires_grad for parameter in mixing.parameters())


def test_the_released_critic_reads_the_label_and_trains_its_table(small, images):
    made = small(label_dim=4)
    labels = torch.tensor([0, 1, 2, 3, 0])
    (logits,) = made(images, labels)
    assert logits.shape == (5, 4 * 16)
    assert not torch.allclose(logits, made(images, labels.flip(0))[0])
    logits.sum().backward()
    table = made.heads[0][0].embedding.table
    assert table.shape == (4, 320)
    assert table.grad.any()


def test_r1_goes_through_batch_statistics(small, images):
    made = small()
    r1_penalty(made, images, 1.0).backward()
    assert all(head.trunk[0].parametrizations.weight.original.grad.any() for head in made.heads[0])


def test_what_is_no_pyramid_has_no_released_critic(refuses):
    with refuses("four maps", "8x8, 8x8, 4x4, 4x4", "layout='ours'"):
        critic("teacher", denoiser(), channels=8, ratio=0.05, layout="released")
