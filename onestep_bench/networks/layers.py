"""The pieces of the U-Nets: initialised layers, resampling convolutions, blocks with attention, noise embeddings.

Layouts and parameter names are those of the EDM model zoo (Karras et al. 2022, arXiv 2206.00364).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import forward_ad

from onestep_bench.errors import OnestepError


@dataclass(frozen=True)
class Init:
    """Uniform initialisation: Xavier (fan in and out) or Kaiming (fan in), times a gain for weights and for biases."""

    xavier: bool
    gain: float = 1.0
    bias_gain: float = 0.0

    def parameters(self, weight_shape: Sequence[int], bias: bool = True) -> tuple[nn.Parameter, nn.Parameter | None]:
        """A weight of that shape (out, in, ...) and its bias (out,) or None."""
        out_features, in_features, *kernel = weight_shape
        fan_in, fan_out = in_features * math.prod(kernel), out_features * math.prod(kernel)
        bound = math.sqrt(6 / (fan_in + fan_out)) if self.xavier else math.sqrt(3 / fan_in)

        def draw(shape: Sequence[int], gain: float) -> nn.Parameter:
            return nn.Parameter(torch.empty(*shape).uniform_(-bound * gain, bound * gain))

        return draw(weight_shape, self.gain), draw((out_features,), self.bias_gain) if bias else None


@dataclass(frozen=True)
class BlockStyle:
    """What the blocks of one network share, and in which DDPM++/NCSN++ and ADM differ."""

    emb_channels: int
    dropout: float
    resample_filter: tuple[int, ...]
    init: Init
    init_last: Init  # of the layers that close a residual branch, (nearly) zero: a block starts as the identity
    init_qkv: Init
    eps: float = 1e-5
    skip_scale: float = 1.0
    scale_shift: bool = False  # modulation after norm1 (ADM) rather than a shift before it (Song)
    project_resampled: bool = True  # a 1x1 convolution on the skip whenever the block resamples
    head_channels: int | None = None  # channels of an attention head; None: one head

    def heads(self, channels: int) -> int:
        """Attention heads at a width; none in an ADM narrower than one head, as in the released code."""
        return channels // self.head_channels if self.head_channels else 1


class Linear(nn.Module):
    """Affine map (n, in) -> (n, out)."""

    def __init__(self, in_features: int, out_features: int, init: Init, bias: bool = True):
        super().__init__()
        self.weight, self.bias = init.parameters((out_features, in_features), bias)

    def forward(self, x: Tensor) -> Tensor:
        """(n, in) -> (n, out)."""
        return F.linear(x, self.weight, self.bias)


class Conv2d(nn.Module):
    """A convolution that may first resample by 2 with a separable FIR filter; kernel 0 only resamples.

    `resample` is None, "up" or "down". With `fused` the filter of "down" follows the convolution, which keeps the
    margin it needs (NCSN++'s `aux_residual`).
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel: int,
        init: Init,
        resample: str | None = None,
        resample_filter: Sequence[int] = (1, 1),
        fused: bool = False,
    ):
        super().__init__()
        self.kernel, self.resample, self.fused = kernel, resample, fused
        # The [1, 1] filter is nearest-neighbour upsampling and the mean of 2x2: torch has both ready, and faster.
        self.box = tuple(resample_filter) == (1, 1)
        self.filter_pad = (len(resample_filter) - 1) // 2
        self.weight, self.bias = None, None
        if kernel:
            self.weight, self.bias = init.parameters((out_channels, in_channels, kernel, kernel))
        if resample:
            taps = torch.tensor(resample_filter, dtype=torch.float32)
            self.register_buffer("resample_filter", (taps[:, None] * taps / taps.sum() ** 2)[None, None])

    def forward(self, x: Tensor) -> Tensor:
        """(n, in, h, w) -> (n, out, h', w'), h' = 2h, h/2 or h."""
        if self.fused:
            x = F.conv2d(x, self.weight, self.bias, padding=self.kernel // 2 + self.filter_pad)
            return self._down(x, padding=0)
        if self.kernel == 1 and self.resample == "up" and self.box:
            return self._up(F.conv2d(x, self.weight, self.bias))  # the two commute, and this is a quarter of the work
        if self.resample:
            x = self._up(x) if self.resample == "up" else self._down(x, self.filter_pad)
        return F.conv2d(x, self.weight, self.bias, padding=self.kernel // 2) if self.kernel else x

    def _up(self, x: Tensor) -> Tensor:
        if self.box:
            return F.interpolate(x, scale_factor=2.0, mode="nearest")
        taps = self._depthwise(x) * 4
        return F.conv_transpose2d(x, taps, stride=2, padding=self.filter_pad, groups=x.shape[1])

    def _down(self, x: Tensor, padding: int) -> Tensor:
        if self.box:
            return F.avg_pool2d(x, 2)
        return F.conv2d(x, self._depthwise(x), stride=2, padding=padding, groups=x.shape[1])

    def _depthwise(self, x: Tensor) -> Tensor:
        return self.resample_filter.to(x.dtype).expand(x.shape[1], -1, -1, -1)


def group_norm(x: Tensor, groups: int, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """Group normalisation of x (n, c, h, w), in its precision and, on a GPU, its memory format.

    CUDA's kernel answers in NCHW whatever it is given, so that every convolution behind it would turn its input round.
    A compiler is given the formula instead, which it joins to what stands around it; without one, the kernel and a copy
    back are the faster.
    """
    if torch.compiler.is_compiling() and not torch.compiler.is_exporting():
        return _written_out(x, groups, weight, bias, eps)
    if x.dtype == weight.dtype:
        out = F.group_norm(x, groups, weight, bias, eps)
    else:
        # Autocast would run this in float32 and so double the traffic of its output; the kernel adds up in float32.
        with torch.autocast(x.device.type, enabled=False):
            out = F.group_norm(x, groups, weight.to(x.dtype), bias.to(x.dtype), eps)
    last = x.is_cuda and x.is_contiguous(memory_format=torch.channels_last)
    return out.contiguous(memory_format=torch.channels_last) if last else out


def _written_out(x: Tensor, groups: int, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    grouped = x.to(torch.promote_types(x.dtype, torch.float32)).unflatten(1, (groups, -1))
    variance, mean = torch.var_mean(grouped, dim=(2, 3, 4), correction=0, keepdim=True)
    scale = weight.reshape(groups, -1, 1, 1) * (variance + eps).rsqrt()
    shift = bias.reshape(groups, -1, 1, 1) - mean * scale
    return (grouped * scale + shift).flatten(1, 2).to(x.dtype)


class GroupNorm(nn.Module):
    """Group normalisation, by default with min(32, channels // 4) groups, in the precision of its input."""

    def __init__(self, channels: int, eps: float, groups: int | None = None):
        super().__init__()
        self.groups, self.eps = groups or min(32, channels // 4), eps
        if self.groups < 1 or channels % self.groups:
            raise OnestepError(
                f"GroupNorm cannot split {channels} channels into {self.groups} equal groups; choose model_channels "
                "and channel_mult so that every width and every sum of two is a multiple of 4, above 128 of 32"
            )
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        """(n, c, h, w) -> the same."""
        return group_norm(x, self.groups, self.weight, self.bias, self.eps)


class UNetBlock(nn.Module):
    """Residual block with modulation by the embedding, optional resampling and optional self-attention."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        style: BlockStyle,
        resample: str | None = None,
        attention: bool = False,
    ):
        super().__init__()
        self.out_channels, self.style = out_channels, style
        self.heads = style.heads(out_channels) if attention else 0
        conv_args = {"resample": resample, "resample_filter": style.resample_filter}
        self.norm0 = GroupNorm(in_channels, style.eps)
        self.conv0 = Conv2d(in_channels, out_channels, 3, style.init, **conv_args)
        self.affine = Linear(style.emb_channels, out_channels * (1 + style.scale_shift), style.init)
        self.norm1 = GroupNorm(out_channels, style.eps)
        self.conv1 = Conv2d(out_channels, out_channels, 3, style.init_last)
        self.skip = None
        if in_channels != out_channels or resample:
            project = in_channels != out_channels or style.project_resampled
            self.skip = Conv2d(in_channels, out_channels, 1 if project else 0, style.init, **conv_args)
        if self.heads:
            self.norm2 = GroupNorm(out_channels, style.eps)
            self.qkv = Conv2d(out_channels, 3 * out_channels, 1, style.init_qkv)
            self.proj = Conv2d(out_channels, out_channels, 1, style.init_last)

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        """x (n, in_channels, h, w), emb (n or 1, emb_channels) -> (n, out_channels, h', w')."""
        h = self.conv0(F.silu(self.norm0(x)))
        modulation = self.affine(emb)[:, :, None, None]
        if self.style.scale_shift:
            scale, shift = modulation.chunk(2, dim=1)
            h = torch.addcmul(shift, self.norm1(h), scale + 1)
        else:
            h = self.norm1(h + modulation)
        h = self.conv1(F.dropout(F.silu(h), self.style.dropout, self.training))
        x = self._add(h, x if self.skip is None else self.skip(x))
        return self._add(self._attend(x), x) if self.heads else x

    def _add(self, branch: Tensor, x: Tensor) -> Tensor:
        total = x + branch  # in this order: the sum takes the memory format of x, which attention may have turned
        return total if self.style.skip_scale == 1 else total * self.style.skip_scale

    def _attend(self, x: Tensor) -> Tensor:
        """Self-attention over the h*w positions, (n, c, h, w) -> the same, before the residual sum."""
        n, c, height, width = x.shape
        tokens = self.norm2(x).flatten(2).mT.contiguous()  # contiguous, or linear becomes n small products
        # The zoo interleaves q, k and v channel by channel. Sorting the weight rather than the activations gives
        # each of the three contiguous channels, as attention kernels want them.
        order = (self.heads, c // self.heads, 3)
        weight = self.qkv.weight.view(*order, c).permute(2, 0, 1, 3).reshape(3 * c, c)
        bias = self.qkv.bias.view(order).permute(2, 0, 1).reshape(3 * c)
        qkv = F.linear(tokens, weight, bias).view(n, height * width, 3, self.heads, c // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        attended = _attention(q, k, v).transpose(1, 2).reshape(n, height * width, c)
        return F.linear(attended, self.proj.weight.flatten(1), self.proj.bias).mT.reshape(x.shape)


def _attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """softmax(q k^T / sqrt(c)) v, (n, heads, places, c) -> the same.

    By hand where a forward-mode derivative is under way: fused kernels have none, and what torch has for its softmax
    writes over what a gradient through the derivative needs.
    """
    if forward_ad.unpack_dual(q).tangent is None:
        return F.scaled_dot_product_attention(q, k, v)
    logits = q @ k.mT / math.sqrt(q.shape[-1])
    weights = (logits - logits.detach().amax(-1, keepdim=True)).exp()
    return weights / weights.sum(-1, keepdim=True) @ v


class PositionalEmbedding(nn.Module):
    """Cosines and sines of the noise label at geometric frequencies from 1 to 1/10000 (`endpoint`: inclusive)."""

    def __init__(self, channels: int, endpoint: bool):
        super().__init__()
        self.half, self.endpoint = channels // 2, endpoint

    def forward(self, noise_labels: Tensor) -> Tensor:
        """(n,) -> (n, channels), cosines first."""
        powers = torch.arange(self.half, dtype=torch.float32, device=noise_labels.device)
        freqs = (1 / 10000) ** (powers / (self.half - self.endpoint))
        angles = noise_labels[:, None] * freqs
        return torch.cat([angles.cos(), angles.sin()], dim=1)


class FourierEmbedding(nn.Module):
    """Cosines and sines of the noise label at random frequencies, 16 times standard normal."""

    def __init__(self, channels: int):
        super().__init__()
        self.register_buffer("freqs", 16 * torch.randn(channels // 2))

    def forward(self, noise_labels: Tensor) -> Tensor:
        """(n,) -> (n, channels), cosines first."""
        angles = noise_labels[:, None] * (2 * math.pi * self.freqs)
        return torch.cat([angles.cos(), angles.sin()], dim=1)
