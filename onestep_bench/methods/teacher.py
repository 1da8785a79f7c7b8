"""Teachers: EDM, rectified flow and DDPM, trained on images from random weights."""

from dataclasses import dataclass

from torch import Tensor

from onestep_bench.denoiser import DDPM, EDM, NOISE_END, Denoiser, Flow
from onestep_bench.losses import velocity_loss
from onestep_bench.methods import Method, Nets, register
from onestep_bench.paths import FLOW, VE, VP, alphas_cumprod

# Names of the methods here, one step of which is the mean of all that they know.
TEACHERS = ("edm", "rectified-flow", "ddpm")


@dataclass(frozen=True)
class EDMConfig:
    """Karras et al. 2022 (arXiv:2206.00364), Table 1: ln sigma ~ N(p_mean, p_std^2)."""

    p_mean: float = -1.2
    p_std: float = 1.2
    sigma_data: float = 0.5


def edm_loss(
    denoiser,
    data: Tensor,
    eps: Tensor,
    sigma: Tensor,
    sigma_data: float,
    labels: Tensor | None = None,
    augment: Tensor | None = None,
) -> Tensor:
    """EDM's weighted denoising loss (Eq. 2 with the weight of Table 1), mean over batch and dimensions: a scalar.

    denoiser on the VE path; data, eps (n, c, h, w); sigma (n,); augment: see `Denoiser.forward`.
    """
    x0 = denoiser(data + sigma.reshape(-1, 1, 1, 1) * eps, sigma, labels, want="x0", augment=augment)
    weight = (sigma**2 + sigma_data**2) / (sigma * sigma_data) ** 2
    return (weight.reshape(-1, 1, 1, 1) * (x0 - data).square()).mean()


def edm(nets: Nets, cfg: EDMConfig):
    """Objective of an EDM teacher: denoising at log-normal noise levels (Karras et al. 2022)."""

    def objective(batch, draw):
        sigma = (cfg.p_mean + cfg.p_std * draw.normal("sigma", ())).exp()
        eps = draw.normal("eps", batch.images.shape[1:])
        loss = edm_loss(nets.student, batch.images, eps, sigma, cfg.sigma_data, batch.labels, batch.augment)
        yield loss, "student"

    return objective


@dataclass(frozen=True)
class RectifiedFlowConfig:
    """A rectified flow has no parameters of its own."""


def rectified_flow(nets: Nets, cfg: RectifiedFlowConfig):
    """Objective of a 1-rectified flow (Liu et al. 2022): data and independent noise."""

    def objective(batch, draw):
        noise, t = draw.normal("noise", batch.images.shape[1:]), draw.uniform("t", 0, NOISE_END)
        yield velocity_loss(nets.student, batch.images, noise, t, batch.labels, batch.augment), "student"

    return objective


@dataclass(frozen=True)
class DDPMConfig:
    """Ho et al. 2020 (arXiv:2006.11239). predicts: 'eps' or 'v'; schedule: see `paths.alphas_cumprod`."""

    levels: int = 1024
    schedule: str = "sigmoid"
    predicts: str = "eps"


def ddpm_loss(
    denoiser,
    data: Tensor,
    eps: Tensor,
    t: Tensor,
    predicts: str,
    labels: Tensor | None = None,
    augment: Tensor | None = None,
) -> Tensor:
    """Squared error of the native prediction, mean over batch and dimensions: a scalar.

    denoiser on a VP path; data, eps (n, c, h, w); t (n,), levels 1..T; augment: see `Denoiser.forward`.
    """
    path = denoiser.path
    x = path.mix(data, eps, t)
    if predicts == "eps":
        return (denoiser(x, t, labels, want="eps", augment=augment) - eps).square().mean()
    # The error of v is the error of x0 over sigma, since x0 = alpha x - sigma v.
    error = denoiser(x, t, labels, want="x0", augment=augment) - data
    return (error / path.sigma(t).reshape(-1, 1, 1, 1)).square().mean()


def ddpm(nets: Nets, cfg: DDPMConfig):
    """Objective of a discrete-time teacher: v or noise at a random level (Ho et al. 2020)."""

    def objective(batch, draw):
        t = draw.integers("t", 1, cfg.levels + 1).to(batch.images.dtype)
        eps = draw.normal("eps", batch.images.shape[1:])
        yield ddpm_loss(nets.student, batch.images, eps, t, cfg.predicts, batch.labels, batch.augment), "student"

    return objective


def _as_edm(cfg: EDMConfig, net, native, teacher) -> Denoiser:
    return Denoiser(net, native or EDM(cfg.sigma_data)).on(VE)


def _as_flow(cfg: RectifiedFlowConfig, net, native, teacher) -> Denoiser:
    return Denoiser(net, native or Flow()).on(FLOW)


def _as_ddpm(cfg: DDPMConfig, net, native, teacher) -> Denoiser:
    path = VP(alphas_cumprod(cfg.schedule, cfg.levels))
    return Denoiser(net, native or DDPM(path, cfg.predicts)).on(path)


register(Method("edm", 1, EDMConfig, edm, _as_edm, training={"lr": 1e-3}, augments=True))
register(Method("rectified-flow", 1, RectifiedFlowConfig, rectified_flow, _as_flow, augments=True))
register(Method("ddpm", 1, DDPMConfig, ddpm, _as_ddpm, augments=True))
