"""Feature extractors: the networks that judge images."""

import hashlib
from collections.abc import Callable
from pathlib import Path

import safetensors.torch
import torch
from torch import nn

from onestep_bench.data import to_unit
from onestep_bench.errors import OnestepError, near_miss

DIGITS_WEIGHTS = Path(__file__).parent / "assets" / "digits_classifier.safetensors"
# Printed by scripts/train_digits_classifier.py. Scores under different weights cannot be compared.
DIGITS_SHA256 = "8081f54d896f77e5705e19057c3704e7c5967829f46c7f658b9c4c479628e228"

_BATCH = 500


class FeatureExtractor:
    """A frozen classifier that turns images into features.

    network: maps uint8 images (n, *image_shape) to (features (n, dim), logits (n, classes)).
    Attributes: name; dim; digest (SHA-256 of the weights); protocol (what a score row says about how it was judged).
    """

    def __init__(
        self, name: str, network: nn.Module, *, dim: int, image_shape: tuple[int, int, int], digest: str, protocol: str
    ):
        self.name, self.dim, self.digest, self.protocol = name, dim, digest, protocol
        self._network, self._image_shape = network.eval().requires_grad_(False), image_shape

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        """Features float32 (n, dim) of uint8 images (n, c, h, w), on the extractor's device.

        Raises OnestepError for images of another shape or type.
        """
        return self.judge(images)[0]

    def logits(self, images: torch.Tensor) -> torch.Tensor:
        """Class logits float32 (n, classes) of uint8 images (n, c, h, w); raises as `__call__` does."""
        return self.judge(images)[1]

    @torch.inference_mode()
    def judge(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Features and logits from one pass over uint8 images (n, c, h, w); raises as `__call__` does."""
        self._check(images)
        device = next(self._network.parameters()).device
        outputs = [self._network(batch.to(device)) for batch in images.split(_BATCH)]
        features, logits = (torch.cat(parts).float() for parts in zip(*outputs, strict=True))
        return features, logits

    def _check(self, images: torch.Tensor) -> None:
        if images.shape[1:] == self._image_shape and images.dtype == torch.uint8:
            return
        shape = ", ".join(map(str, self._image_shape))
        given = f"{str(images.dtype).removeprefix('torch.')} {tuple(images.shape)}"
        raise OnestepError(
            f"the {self.name!r} judge is for the {self.name} data set only: it expects uint8 (n, {shape}) "
            f"and was given {given}; choose an extractor for your data"
        )


_EXTRACTORS: dict[str, Callable[[torch.device], FeatureExtractor]] = {}


def extractor(name: str) -> Callable:
    """Register a function from a device to a FeatureExtractor under `name`."""

    def register(make: Callable[[torch.device], FeatureExtractor]) -> Callable[[torch.device], FeatureExtractor]:
        _EXTRACTORS[name] = make
        return make

    return register


def names() -> list[str]:
    """The registered extractors."""
    return sorted(_EXTRACTORS)


def load_extractor(name: str, device: torch.device | str = "cpu") -> FeatureExtractor:
    """The extractor registered as `name`, on `device`.

    Raises OnestepError for an unknown name or damaged weights.
    """
    if name not in _EXTRACTORS:
        raise OnestepError(f"unknown feature extractor {name!r}{near_miss(name, names())}")
    return _EXTRACTORS[name](torch.device(device))


class DigitsClassifier(nn.Module):
    """A small convolutional classifier of 8x8 grey digits; its features are the 64 units below the class layer."""

    def __init__(self):
        super().__init__()
        self.trunk = nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1),
            nn.SiLU(),
            nn.Conv2d(16, 32, 3, padding=1),
            nn.SiLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(32, 64, 3, padding=1),
            nn.SiLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Dropout(0.3),
            nn.Linear(256, 64),
            nn.SiLU(),
        )
        self.dropout = nn.Dropout(0.3)
        self.head = nn.Linear(64, 10)

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Features (n, 64) and logits (n, 10) of uint8 or already scaled images (n, 1, 8, 8)."""
        if images.dtype == torch.uint8:
            images = to_unit(images)
        features = self.trunk(images.to(self.head.weight.dtype))
        return features, self.head(self.dropout(features))


@extractor("digits")
def _digits(device: torch.device) -> FeatureExtractor:
    try:
        content = DIGITS_WEIGHTS.read_bytes()
    except OSError as error:
        raise OnestepError(f"cannot read {DIGITS_WEIGHTS}: {error.strerror}; reinstall onestep-bench") from error
    digest = hashlib.sha256(content).hexdigest()
    if digest != DIGITS_SHA256:
        raise OnestepError(f"{DIGITS_WEIGHTS} is damaged (SHA-256 {digest[:12]}...); reinstall onestep-bench")
    network = DigitsClassifier()
    network.load_state_dict(safetensors.torch.load(content))
    # In double precision the float32 features are the same on every device and in every batch.
    return FeatureExtractor(
        "digits",
        network.double().to(device),
        dim=64,
        image_shape=(1, 8, 8),
        digest=digest,
        protocol=f"digits-cnn@{digest[:12]}; no resize",
    )
