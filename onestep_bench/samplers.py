"""Samplers: functions `(denoiser, noise, times, labels=None) -> images`, and the step grids they walk.

`noise` is standard normal (n, c, h, w) and is scaled to the path here; `times` are the levels from noise to data,
steps + 1 of them, the last one 0. States are kept in float64 (the networks run in their own dtype), images come back
in the dtype of `noise`. A `denoiser` is anything with the call signature of `Denoiser` and a `path`.
To add one, write its function here and mark it `@register("name")`; one that is not to walk the field's usual grid
says by which: `@register("name", grid=function)`.
"""

import hashlib
from collections.abc import Callable, Sequence
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from onestep_bench.errors import OnestepError, near_miss
from onestep_bench.flow_map import FlowMap
from onestep_bench.known import plugins
from onestep_bench.paths import FLOW, VE, Path, posterior
from onestep_bench.seeds import generator

Sampler = Callable[..., Tensor]

Grid = Callable[[Path, int], Tensor]

SAMPLERS: dict[str, Sampler] = {}
_GRIDS: dict[str, Grid] = {}


def register(name: str, grid: Grid | None = None) -> Callable[[Sampler], Sampler]:
    """Make a sampler known by `name`. grid: of the levels it walks in a number of steps, by default `default_times`."""

    def known(step: Sampler) -> Sampler:
        SAMPLERS[name] = step
        _GRIDS.pop(name, None)
        _GRIDS.update({name: grid} if grid else {})
        return step

    return known


def sampler(name: str) -> Sampler:
    """The sampler of that name. Raises OnestepError if there is none."""
    plugins.load()
    if name not in SAMPLERS:
        raise OnestepError(f"unknown sampler {name!r}{near_miss(name, SAMPLERS)}")
    return SAMPLERS[name]


def times_of(name: str, path: Path, steps: int) -> Tensor:
    """The levels that the sampler of that name walks on a path in so many steps: (steps + 1,) float64."""
    sampler(name)
    return _GRIDS.get(name, default_times)(path, steps)


def _start(denoiser, noise: Tensor, times: Tensor) -> tuple[Tensor, Tensor]:
    """The state at the first level and all levels, in float64; they are checked before they are on a device."""
    times = torch.as_tensor(times, dtype=torch.float64)
    if times.ndim != 1 or len(times) < 2 or not bool((times.diff() < 0).all()):
        # Such as those between of a generator that is asked at a lower level.
        raise OnestepError(
            "a sampler needs at least two levels, strictly falling from noise to data, not "
            f"{', '.join(f'{level:g}' for level in times.flatten().tolist())}; take fewer steps: every model can 1"
        )
    times = times.to(noise.device)
    return denoiser.path.prior_std(times[0]) * noise.double(), times


def _ends_clean(times: Tensor) -> list[bool]:
    """Of each step, whether it ends at level 0; asked once, since a step that asked its level would wait for it."""
    return [level == 0 for level in torch.as_tensor(times).tolist()[1:]]


@register("ddim")
@torch.no_grad()
def ddim(denoiser, noise: Tensor, times: Tensor, labels: Tensor | None = None, *, clip: bool = False) -> Tensor:
    """DDIM with eta = 0 (Song et al. 2021, arXiv:2010.02502, Eq. 12), which is Euler's method on FLOW and VE.

    Each step predicts x0 and eps and mixes them again at the next level. clip: clamp x0 to [-1, 1] and derive eps
    from the clamped x0.
    """
    path = denoiser.path
    x, times = _start(denoiser, noise, times)
    for t, t_next in pairwise(times):
        x0 = denoiser(x, t, labels, want="x0")
        x0 = x0.clamp(-1, 1) if clip else x0
        x = path.mix(x0, path.from_x0(x, x0, t), t_next)
    return x.to(noise.dtype)


@register("euler")
def euler(denoiser, noise: Tensor, times: Tensor, labels: Tensor | None = None) -> Tensor:
    """Euler's method for the probability-flow ODE: the same step as `ddim`, written in x0 and eps."""
    return ddim(denoiser, noise, times, labels)


@register("ddim-clip")
def ddim_clip(denoiser, noise: Tensor, times: Tensor, labels: Tensor | None = None) -> Tensor:
    """`ddim` with every predicted x0 clamped to [-1, 1], as DDPM's samplers do."""
    return ddim(denoiser, noise, times, labels, clip=True)


@register("ddim-intervals")
def ddim_intervals(denoiser, noise: Tensor, times: Tensor, labels: Tensor | None = None) -> Tensor:
    """`ddim`; on VE as many steps are whole intervals of EDM's grid between 80 and 0.002, the last one drawn on to 0.

    As a student of progressive distillation on that grid is taught its steps. The grid of all other samplers, of N
    levels and a step to 0, spends the last of its steps below 0.002. `times` only tell the number of steps there.
    """
    if denoiser.path == VE:
        times = torch.cat([karras_intervals(len(times) - 1)[:-1], torch.zeros(1, dtype=torch.float64)])
    return ddim(denoiser, noise, times, labels)


def one_step(denoiser, noise: Tensor, labels: Tensor | None = None) -> Tensor:
    """x0 as predicted from pure noise: `euler` in one step, in the precision of `noise` and with gradients."""
    level = noise.new_full((), denoiser.path.t_max)  # filled there: a number copied over would wait for the device
    return denoiser(denoiser.path.prior_std(level) * noise, level, labels, want="x0")


@register("heun")
@torch.no_grad()
def heun(denoiser, noise: Tensor, times: Tensor, labels: Tensor | None = None) -> Tensor:
    """Heun's method for the probability-flow ODE (Karras et al. 2022, Algorithm 1); Euler on the step that ends at 0.

    2 steps - 1 network evaluations when the last level is 0.
    """
    x, levels = _start(denoiser, noise, times)
    for (t, t_next), clean in zip(pairwise(levels), _ends_clean(times), strict=True):
        slope = denoiser(x, t, labels, want="velocity")
        x_next = x + (t_next - t) * slope
        if not clean:
            x_next = x + (t_next - t) * (slope + denoiser(x_next, t_next, labels, want="velocity")) / 2
        x = x_next
    return x.to(noise.dtype)


@register("dpmpp_2m")
@torch.no_grad()
def dpmpp_2m(denoiser, noise: Tensor, times: Tensor, labels: Tensor | None = None) -> Tensor:
    """DPM-Solver++(2M), data prediction, deterministic (Lu et al. 2022, arXiv:2211.01095, Algorithm 2).

    First order on the first step and on one that ends at 0, where the log signal-to-noise ratio is infinite.
    """
    path = denoiser.path
    x, levels = _start(denoiser, noise, times)
    previous, previous_ratio = None, None
    for (t, t_next), clean in zip(pairwise(levels), _ends_clean(times), strict=True):
        x0 = denoiser(x, t, labels, want="x0")
        ratio, next_ratio = path.ratio(t), path.ratio(t_next)
        estimate = x0
        if previous is not None and not clean:
            # Steps in lambda = -log(ratio); a first step from infinite ratio weighs the past with nothing.
            step, last_step = torch.log(ratio / next_ratio), torch.log(previous_ratio / ratio)
            estimate = x0 + step / (2 * last_step) * (x0 - previous)
        x = path.mix(estimate, path.from_x0(x, estimate, t), t_next)
        previous, previous_ratio = x0, ratio
    return x.to(noise.dtype)


@register("rk45")
@torch.no_grad()
def rk45(denoiser, noise: Tensor, times: Tensor | None = None, labels: Tensor | None = None, *, tol: float = 1e-5):
    """Adaptive Runge-Kutta 4(5) (Dormand-Prince, SciPy) for the flow from noise to data; `times` is not used.

    tol is both relative and absolute, as in Song et al. 2021. A denoiser of another path is seen on FLOW, where the
    state has unit scale and the velocity is finite at both ends. SciPy chooses one step size for the whole batch, so
    an image depends on its batch, within the tolerance: the one sampler that is not exact at any batch size.
    """
    from scipy.integrate import solve_ivp  # a quarter of the time it takes to import this library, for one sampler

    flow = denoiser if denoiser.path == FLOW else denoiser.on(FLOW)

    def slope(t: float, flat: np.ndarray) -> np.ndarray:
        x = torch.from_numpy(flat).to(noise.device).reshape(noise.shape)
        level = torch.tensor(t, dtype=torch.float64, device=noise.device)
        return flow(x, level, labels, want="velocity").flatten().cpu().numpy()

    start = noise.double().flatten().cpu().numpy()
    solution = solve_ivp(slope, (1.0, 0.0), start, method="RK45", rtol=tol, atol=tol, t_eval=(0.0,))
    if not solution.success:
        raise OnestepError(f"rk45 gave up: {solution.message}; loosen tol or use heun")
    return torch.from_numpy(solution.y[:, -1]).reshape(noise.shape).to(noise)


def flow_times(path: Path, steps: int) -> Tensor:
    """Levels evenly spaced in FLOW's time, from noise to data, on any path: (steps + 1,) float64.

    Two steps meet where noise and data are equally strong, about where consistency models are sampled in two (sigma
    0.8 to 1.1); EDM's grid of two would have its second step at 0.002, with nothing left to do.
    """
    middle = uniform_times(steps)[1:]
    return torch.cat([torch.tensor([path.t_max], dtype=torch.float64), path.t_at(FLOW.ratio(middle))])


@register("push-forward", grid=flow_times)
@torch.no_grad()
def push_forward(denoiser, noise: Tensor, times: Tensor, labels: Tensor | None = None) -> Tensor:
    """Jumps of a flow map from level to level (Boffi et al. 2025, arXiv:2505.18825, Sec. 2); 1 evaluation a step.

    Of a denoiser of one time the jumps are straight, and this is `ddim` on another grid.
    """
    x, times = _start(denoiser, noise, times)
    for t, t_next in pairwise(times):
        x = FlowMap(denoiser).jump(x, t, t_next, labels)
    return x.to(noise.dtype)


@register("re-noising", grid=flow_times)
@torch.no_grad()
def re_noising(
    denoiser, noise: Tensor, times: Tensor, labels: Tensor | None = None, *, fresh: Sequence[Tensor] | None = None
) -> Tensor:
    """Multistep consistency sampling (Song et al. 2023, Algorithm 1): each step jumps to the data, and is noised again.

    1 evaluation a step. fresh: noise (n, c, h, w) for each level between, by default drawn anew; since it is drawn from
    a sample's own first noise alone, a sample is still a function of its index. Where the function is the identity at a
    level above 0 (`EDM.boundary`), that much noise is taken to be in its answers.
    """
    path, within = denoiser.path, getattr(denoiser.native, "boundary", 0.0)
    x, times = _start(denoiser, noise, times)
    fresh = _fresh(noise, len(times) - 2) if fresh is None else fresh
    for step, (t, t_next) in enumerate(pairwise(times)):
        x = FlowMap(denoiser).jump(x, t, torch.zeros_like(t), labels)
        if t_next > 0:
            alpha = path.alpha(t_next)
            more = (path.sigma(t_next) ** 2 - (alpha * within) ** 2).clamp(min=0).sqrt()
            x = alpha * x + more * fresh[step].double()
    return x.to(noise.dtype)


@register("ancestral", grid=flow_times)
@torch.no_grad()
def ancestral(
    denoiser, noise: Tensor, times: Tensor, labels: Tensor | None = None, *, fresh: Sequence[Tensor] | None = None
) -> Tensor:
    """Ancestral sampling (Ho et al. 2020, arXiv:2006.11239, Algorithm 2): each next level is drawn, given the x0 seen.

    As `re_noising`, but the state's own noise is kept as far as the next level's variance allows; what moment matching
    is taught. 1 evaluation a step. fresh: noise (n, c, h, w) for each level between, by default as in `re_noising`.
    """
    x, levels = _start(denoiser, noise, times)
    fresh = _fresh(noise, len(levels) - 2) if fresh is None else fresh
    for step, (t, t_next) in enumerate(pairwise(levels[:-1])):
        x0 = denoiser(x, t, labels, want="x0")
        x = posterior(denoiser.path, x, x0, fresh[step].double(), t, t_next)
    return denoiser(x, levels[-2], labels, want="x0").to(noise.dtype)


@register("same-noise", grid=flow_times)
@torch.no_grad()
def same_noise(
    denoiser, noise: Tensor, times: Tensor, labels: Tensor | None = None, *, corrected: bool = False
) -> Tensor:
    """Each step jumps to the data, and mixes it with the noise it all began with (Lee et al. 2024, arXiv:2405.20320).

    The sampler of 2-rectified flow++: of straight flows, whose noise is known all the way. 1 evaluation a step;
    corrected: by the mean of the velocities at both ends as in `heun`, 2 a step and 1 on the step that ends at 0.
    """
    path = denoiser.path
    x, levels = _start(denoiser, noise, times)

    def onward(velocity: Tensor, t: Tensor, t_next: Tensor) -> Tensor:
        return path.mix(path.from_velocity(x, velocity, t)[0], noise.double(), t_next)

    for (t, t_next), clean in zip(pairwise(levels), _ends_clean(times), strict=True):
        slope = denoiser(x, t, labels, want="velocity")
        if corrected and not clean:
            slope = (slope + denoiser(onward(slope, t, t_next), t_next, labels, want="velocity")) / 2
        x = onward(slope, t, t_next)
    return x.to(noise.dtype)


@register("same-noise-heun", grid=flow_times)
def same_noise_heun(denoiser, noise: Tensor, times: Tensor, labels: Tensor | None = None) -> Tensor:
    """`same_noise`, corrected: 2 steps - 1 evaluations."""
    return same_noise(denoiser, noise, times, labels, corrected=True)


def _fresh(noise: Tensor, count: int) -> list[Tensor]:
    """`count` times further noise like `noise`, each row a function of that row's numbers."""
    if not count:
        return []
    rows = noise.float().cpu()
    seeds = [hashlib.sha256(row.contiguous().numpy().tobytes()).hexdigest() for row in rows]
    drawn = [
        [torch.randn(rows.shape[1:], generator=generator("fresh", seed, step)) for seed in seeds]
        for step in range(count)
    ]
    return [torch.stack(each).to(noise) for each in drawn]


@torch.no_grad()
def encode(denoiser, images: Tensor, eps: Tensor, times: Tensor, labels: Tensor | None = None) -> Tensor:
    """The standard normal noise from which the probability-flow ODE leads to images: Heun's method, walked upwards.

    Song et al. 2021 (arXiv:2011.13456), Sec. 4.3. images, eps: (n, c, h, w); times: as samplers take them, of which the
    0 is left out. The walk begins at mix(images, eps, lowest level), a sample of that level, and not at the images
    themselves, on which no level's samples lie: so the noise is standard normal as far as the denoiser is right, and
    one image has many. 2 steps - 2 network evaluations for steps + 1 levels.
    """
    path = denoiser.path
    times = torch.as_tensor(times, dtype=torch.float64, device=images.device)[:-1].flip(0)
    if len(times) < 2:
        raise OnestepError("the way up to the noise takes at least 2 steps")
    x = path.mix(images.double(), eps.double(), times[0])
    for t, t_next in pairwise(times):
        slope = denoiser(x, t, labels, want="velocity")
        x_next = x + (t_next - t) * slope
        x = x + (t_next - t) * (slope + denoiser(x_next, t_next, labels, want="velocity")) / 2
    return (x / path.prior_std(times[-1])).to(images.dtype)


def karras_times(steps: int, sigma_min: float = 0.002, sigma_max: float = 80, rho: float = 7) -> Tensor:
    """EDM's levels on the VE path (Karras et al. 2022, Eq. 5), then 0: (steps + 1,) float64."""
    _check_steps(steps)
    place = torch.linspace(0, 1, steps, dtype=torch.float64) if steps > 1 else torch.zeros(1, dtype=torch.float64)
    high, low = sigma_max ** (1 / rho), sigma_min ** (1 / rho)
    return torch.cat([(high + place * (low - high)) ** rho, torch.zeros(1, dtype=torch.float64)])


def karras_intervals(steps: int, sigma_min: float = 0.002, sigma_max: float = 80, rho: float = 7) -> Tensor:
    """EDM's levels on the VE path between its ends, with no step to 0 (Song et al. 2023): (steps + 1,) float64."""
    _check_steps(steps)
    return karras_times(steps + 1, sigma_min, sigma_max, rho)[:-1]


def uniform_times(steps: int, t_max: float = 1.0) -> Tensor:
    """Evenly spaced levels from t_max to 0: (steps + 1,) float64."""
    _check_steps(steps)
    return torch.linspace(t_max, 0, steps + 1, dtype=torch.float64)


def ddim_times(steps: int, levels: int) -> Tensor:
    """`steps` of the levels 1..T of a VP path, evenly spaced and ending in pure noise, then 0: (steps + 1,) float64.

    Raises OnestepError when there are more steps than levels.
    """
    _check_steps(steps)
    if steps > levels:
        raise OnestepError(f"{steps} steps do not fit into {levels} levels; use at most {levels}")
    return torch.linspace(levels, 0, steps + 1, dtype=torch.float64).round()


def default_times(path: Path, steps: int) -> Tensor:
    """The grid the field uses on a path: Karras on VE, uniform on FLOW, evenly spaced levels on VP."""
    if path.name == VE.name:  # whatever level it ends at
        return karras_times(steps, sigma_max=path.t_max)
    return uniform_times(steps) if path == FLOW else ddim_times(steps, int(path.t_max))


def interpolate(noise_a: Tensor, noise_b: Tensor, weight: float, *, spherical: bool) -> Tensor:
    """Noise between two: linear, whose variance falls to a half midway, or spherical, which keeps it.

    noise (n, c, h, w); weight 0 is a, 1 is b. Spherical (Shoemake 1985) by each sample's own angle.
    """
    if not spherical:
        return (1 - weight) * noise_a + weight * noise_b
    a, b = noise_a.flatten(1), noise_b.flatten(1)
    angle = torch.acos(torch.cosine_similarity(a, b, dim=1).clamp(-1, 1)).reshape(-1, 1, 1, 1)
    return (torch.sin((1 - weight) * angle) * noise_a + torch.sin(weight * angle) * noise_b) / torch.sin(angle)


def _check_steps(steps: int) -> None:
    if steps < 1:
        raise OnestepError(f"a sampler takes at least 1 step, not {steps}")
