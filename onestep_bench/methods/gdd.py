"""GDD and GDD-I: "Diffusion Models Are Innate One-Step Generators" (arXiv:2405.20750; ICML 2025 as D2O and D2O-F).

The teacher's network becomes a one-step generator by an adversarial loss alone: nothing asks an image to be the
teacher's image of the same noise, only the distribution has to be right. GDD trains every weight; GDD-I freezes the
convolutions of every block, nearly all of the network, on the claim that what they compute is a one-step generator
already.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from onestep_bench.denoiser import Denoiser
from onestep_bench.errors import OnestepError, near_miss
from onestep_bench.methods import Adam, Method, Nets, register
from onestep_bench.networks import critics
from onestep_bench.networks.layers import UNetBlock
from onestep_bench.samplers import one_step

# What each variant leaves frozen in every block of the U-Net.
VARIANTS = {
    "gdd": (),
    "gdd-i": ("conv0", "conv1", "proj"),
    "gdd-i+qkv": ("conv0", "conv1", "proj", "qkv"),
    "gdd-i+skips": ("conv0", "conv1", "proj", "skip"),
    "gdd-i+qkv+skips": ("conv0", "conv1", "proj", "qkv", "skip"),
}


def frozen_parameters(net: nn.Module, variant: str = "gdd-i") -> set[str]:
    """Names of the parameters of `net` that a variant does not train.

    gdd-i freezes both convolutions and the attention's output projection of every block. Trained are normalisations,
    the modulation by the noise level, qkv, 1x1 skips, the residual encoder, input, output and the mapping network.
    Raises OnestepError for an unknown variant.
    """
    if variant not in VARIANTS:
        raise OnestepError(f"unknown variant {variant!r}{near_miss(variant, VARIANTS)}")
    frozen = set()
    for block_name, block in net.named_modules():
        if isinstance(block, UNetBlock):
            parts = {part: getattr(block, part, None) for part in VARIANTS[variant]}
            frozen |= {
                f"{block_name}.{part}.{name}"
                for part, layer in parts.items()
                if layer is not None
                for name, _ in layer.named_parameters()
            }
    return frozen


def generator_loss(logits: Sequence[Tensor]) -> Tensor:
    """Non-saturating loss softplus(-D(x)), a scalar: the mean over images and logits (n, k) of each backbone in turn.

    Backbones have equal votes, however many logits they have.
    """
    return torch.stack([F.softplus(-each).mean() for each in logits]).mean()


def critic_loss(real_logits: Sequence[Tensor], fake_logits: Sequence[Tensor]) -> Tensor:
    """softplus(D(fake)) + softplus(-D(real)), a scalar: means as of `generator_loss`, over logits (n, k) of each."""
    return generator_loss([-each for each in fake_logits]) + generator_loss(real_logits)


def r1_penalty(critic, images: Tensor, gamma: float) -> Tensor:
    """gamma/2 mean_i || d sum(D(x)) / d x_i ||^2 on real images (n, c, h, w): a scalar (Mescheder et al. 2018).

    critic: a function of images, returning logits (n, k) of each backbone; the sum is over all of them, so that the
    penalty of the same mean slope grows as the square of their number.
    """
    images = images.detach().requires_grad_(True)
    # Of attention's kernels only the plain one can be differentiated twice.
    with sdpa_kernel(SDPBackend.MATH):
        total = sum(each.sum() for each in critic(images))
        (gradient,) = torch.autograd.grad(total, images, create_graph=True)
    return gamma / 2 * gradient.square().sum((1, 2, 3)).mean()


@dataclass(frozen=True)
class GDDConfig:
    """variant: see `VARIANTS`. critic: backbones, see `critics.critic`; critic_channels: width of its heads.

    layout: what reads the backbones' features: 'ours', for any of them, or 'released', for ImageNet's as in the
    released code (see `networks.released_critic`).
    critic_ratio: noise-to-signal ratio at which the teacher's encoder looks at images. critic_lr: learning rate of the
    critic over the generator's (1 for CIFAR-10, 2 for FFHQ and AFHQ, 5 for ImageNet).
    gpu_batch: images on one GPU of the released code, 64, and 128 for ImageNet (its train.sh: four GPUs). It sums its
    adversarial losses over these, and the layout 'released' takes batch statistics of as many, real and fake apart.
    r1_gamma: the paper's number. It belongs to adversarial losses that are sums over those images and all backbones of
    a mean over logits, where R1 is a mean over images. Ours are means over images and backbones too, so the objective
    divides it by gpu_batch and the number of backbones. r1_interval: R1 is taken every so many steps, and as many times
    over; here from the first step on, there not at the first.
    """

    variant: str = "gdd"
    critic: str = "teacher"
    layout: str = "ours"
    critic_channels: int = 64
    critic_ratio: float = 0.05
    critic_lr: float = 1.0
    gpu_batch: int = 64
    r1_gamma: float = 1e-4
    r1_interval: int = 16

    def __post_init__(self):
        if self.variant not in VARIANTS:
            raise OnestepError(f"unknown variant {self.variant!r}{near_miss(self.variant, VARIANTS)}")
        if self.layout not in critics.LAYOUTS:
            raise OnestepError(f"unknown layout {self.layout!r}{near_miss(self.layout, critics.LAYOUTS)}")
        if self.layout == "released" and "teacher" in critics.backbones_in(self.critic):
            raise OnestepError(
                f"layout 'released' reads ImageNet's networks, and critic={self.critic!r} is none; released are "
                "timm:vgg16_bn+timm:tf_efficientnet_lite0 (CIFAR-10) and "
                "timm:deit_base_distilled_patch16_224+timm:tf_efficientnet_lite0"
            )
        if self.gpu_batch < 1:
            raise OnestepError(f"gpu_batch is a number of images, at least 1, not {self.gpu_batch}")
        if self.r1_interval < 1:
            raise OnestepError(f"r1_interval is a number of steps, at least 1, not {self.r1_interval}")
        if self.critic_channels < 8 or self.critic_channels % 8:
            raise OnestepError(f"critic_channels must be a multiple of 8, not {self.critic_channels}")
        if not (self.critic_lr > 0 and self.r1_gamma >= 0 and self.critic_ratio >= 0):
            raise OnestepError("critic_lr must be positive, r1_gamma and critic_ratio not negative")


def gdd(nets: Nets, cfg: GDDConfig):
    """Objective of an adversarial one-step generator: its step, the critic's on fresh noise, and now and then R1."""
    generator, critic = nets.student, nets.auxiliary["critic"]
    generator.eval()  # no dropout

    def objective(batch, draw):
        shape = batch.images.shape[1:]
        critic.heads.requires_grad_(False)  # the generator's step needs no gradient of theirs
        fake = one_step(generator, draw.normal("generator noise", shape), batch.labels)
        yield generator_loss(critic(fake, batch.labels)), "student"

        critic.heads.requires_grad_(True)
        with torch.no_grad():
            fake = one_step(generator, draw.normal("critic noise", shape), batch.labels)
        real_logits = critic(batch.images, batch.labels)
        yield critic_loss(real_logits, critic(fake, batch.labels)), "critic"

        if cfg.r1_gamma and draw.step % cfg.r1_interval == 0:
            gamma = cfg.r1_gamma / (cfg.gpu_batch * len(real_logits))
            # Squared gradients are too small for bfloat16; and `fit` may have compiled the critic, but what is compiled
            # cannot be differentiated twice.
            full = torch.autocast(batch.images.device.type, enabled=False)
            with full, torch.compiler.set_stance("force_eager"):
                penalty = r1_penalty(lambda images: critic(images, batch.labels), batch.images, gamma)
            yield cfg.r1_interval * penalty, "critic"

    return objective


def _generator(cfg: GDDConfig, net: nn.Module, native, teacher: Denoiser) -> Denoiser:
    native = native or teacher.native
    frozen = frozen_parameters(net, cfg.variant)
    for name, parameter in net.named_parameters():
        parameter.requires_grad_(name not in frozen)
    return Denoiser(net, native)


def _critic(nets: Nets, cfg: GDDConfig) -> dict[str, nn.Module]:
    options = {"channels": cfg.critic_channels, "ratio": cfg.critic_ratio, "layout": cfg.layout, "group": cfg.gpu_batch}
    return {"critic": critics.critic(cfg.critic, nets.teacher, **options)}


def _lazy(cfg: GDDConfig, betas: tuple[float, float]) -> dict[str, Adam]:
    """Lazy R1 is one more step every interval: Adam is slowed by that much (Karras et al. 2020, StyleGAN2)."""
    share = cfg.r1_interval / (cfg.r1_interval + 1) if cfg.r1_gamma else 1.0
    return {"critic": Adam(cfg.critic_lr * share, tuple(beta**share for beta in betas))}


register(
    Method(
        "gdd",
        2,
        GDDConfig,
        gdd,
        _generator,
        needs_teacher=True,
        auxiliary=_critic,
        training={
            "lr": 1e-4,
            "betas": (0.0, 0.99),
            "batch_size": 256,
            "ema_rampup": 0.05,
            "precision": {"student": "auto", "critic": "fp32"},
        },
        adams=_lazy,
        looks_through=lambda cfg: critics.backbones_in(cfg.critic),
        group=lambda cfg: cfg.gpu_batch if cfg.layout == "released" else 1,  # of its batch statistics
    )
)


@torch.no_grad()
def layer_activity(
    denoiser: Denoiser, images: Tensor, noise: Tensor, times: Sequence[float], labels: Tensor | None = None
) -> dict[str, list[float]]:
    """Mean absolute value of what each block's convolutions add to its input, at each noise level.

    The paper's reason for 'innate': which layers are at work differs over the levels.
    images, noise: (n, c, h, w), mixed on the denoiser's path at each of `times`. Blocks come in the order they run.
    """
    blocks = {name: module for name, module in denoiser.net.named_modules() if isinstance(module, UNetBlock)}
    activity: dict[str, list[float]] = {name: [] for name in blocks}

    def watch(name: str):
        # conv1 ends the residual branch.
        return blocks[name].conv1.register_forward_hook(
            lambda module, inputs, output: activity[name].append(output.abs().mean().item())
        )

    handles = [watch(name) for name in blocks]
    try:
        for t in times:
            level = torch.full((len(images),), float(t), device=images.device)
            denoiser(denoiser.path.mix(images, noise, level), level, labels)
    finally:
        for handle in handles:
            handle.remove()
    return activity
