"""Feature extractors: the networks that judge images.

To add one, write a file here with a function from a device to a `FeatureExtractor` and mark it `@extractor("name")`.
One that cares what it will judge against names that among its arguments: `split`, `channels` (see `load_extractor`).
"""

import importlib
import inspect
import pkgutil
from collections.abc import Callable

import torch

from onestep_bench.errors import OnestepError, near_miss
from onestep_bench.known import plugins

Network = Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor | None]]


class FeatureExtractor:
    """A frozen network that turns images into features, and where it has classes, into logits.

    network: maps uint8 images (batch, c, h, w) on `device` to (features (batch, dim), logits (batch, classes) or None).
    batch: the network is always called with this many images, the last batch padded, because the arithmetic of a row
    depends on the shape of its batch and a score must not.
    image_shape: (c, h, w) of the only images it takes, or None for any size. channels: then 3, grey images are given
    to it as colour; or 1, it takes grey ones alone.
    Attributes: name; dim; digest (SHA-256 of the weights); protocol (what a score row says about how it was judged).
    """

    def __init__(
        self,
        name: str,
        network: Network,
        *,
        dim: int,
        digest: str,
        protocol: str,
        device: torch.device,
        batch: int,
        image_shape: tuple[int, int, int] | None = None,
        channels: int = 3,
    ):
        self.name, self.dim, self.digest, self.protocol = name, dim, digest, protocol
        self.device, self.batch = device, batch
        self._network, self._image_shape, self._channels = network, image_shape, channels

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        """Features float32 (n, dim) of uint8 images (n, c, h, w), on the extractor's device.

        Raises OnestepError for images of another shape or type.
        """
        return self.judge(images)[0]

    def logits(self, images: torch.Tensor) -> torch.Tensor | None:
        """Class logits float32 (n, classes) of uint8 images (n, c, h, w), or None; raises as `__call__` does."""
        return self.judge(images)[1]

    # In full float32: TF32 convolutions would make scores of two kinds of GPU differ in their fourth digit.
    @torch.backends.cudnn.flags(enabled=True, deterministic=True, allow_tf32=False)
    @torch.inference_mode()
    def judge(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Features and logits (None without classes) from one pass; arguments and errors as of `__call__`."""
        self._check(images)
        if self._image_shape is None and images.shape[1] < self._channels:
            images = images.expand(-1, 3, -1, -1)
        outputs = [self._one_batch(batch) for batch in images.split(self.batch)]
        features, logits = zip(*outputs, strict=True)
        return torch.cat(features).float(), None if logits[0] is None else torch.cat(logits).float()

    def _one_batch(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        count = len(images)
        images = images.to(self.device)
        if count < self.batch:
            images = torch.cat([images, images.new_zeros(self.batch - count, *images.shape[1:])])
        features, logits = self._network(images)
        return features[:count], None if logits is None else logits[:count]

    def _check(self, images: torch.Tensor) -> None:
        given = f"{str(images.dtype).removeprefix('torch.')} {tuple(images.shape)}"
        fits = images.ndim == 4 and images.shape[1] in (1, self._channels)
        wanted = self._image_shape or (images.shape[1:] if fits else None)
        if wanted is not None and images.shape[1:] == wanted and images.dtype == torch.uint8:
            return
        if self._image_shape is None:
            channels = "1 or 3" if self._channels == 3 else "1"
            raise OnestepError(f"the {self.name!r} judge expects uint8 (n, {channels}, h, w) and was given {given}")
        shape = ", ".join(map(str, self._image_shape))
        raise OnestepError(
            f"the {self.name!r} judge takes only images like those it learned from: it expects uint8 (n, {shape}) "
            f"and was given {given}; choose an extractor for your data"
        )


Maker = Callable[..., FeatureExtractor]
_EXTRACTORS: dict[str, Maker] = {}


def extractor(name: str) -> Callable:
    """Register a function from a device (and `split`, `channels` if it names them) to a FeatureExtractor."""

    def register(make: Maker) -> Maker:
        _EXTRACTORS[name] = make
        return make

    return register


def _import_all() -> None:
    for module in pkgutil.iter_modules(__path__):
        importlib.import_module(f"{__name__}.{module.name}")
    plugins.load()


def names() -> list[str]:
    """The registered extractors."""
    _import_all()
    return sorted(_EXTRACTORS)


def maker(name: str) -> Maker | None:
    """The function registered as `name`, None if there is none."""
    return _EXTRACTORS.get(name)


def load_extractor(
    name: str, device: torch.device | str = "cpu", *, split: str = "train", channels: int = 3
) -> FeatureExtractor:
    """The extractor registered as `name`, on `device`.

    split, channels: of the images it will judge against, 'train', 'test' or 'all', and 1 or 3.
    Raises OnestepError for an unknown name, and for weights that are damaged, or missing and out of reach.
    """
    if name not in names():
        raise OnestepError(f"unknown feature extractor {name!r}{near_miss(name, names())}")
    make, about = _EXTRACTORS[name], {"split": split, "channels": channels}
    wanted = inspect.signature(make).parameters
    return make(torch.device(device), **{what: value for what, value in about.items() if what in wanted})
