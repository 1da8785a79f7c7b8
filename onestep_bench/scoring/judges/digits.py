"""The shipped judge of scikit-learn's digits: needs no download."""

import hashlib
from pathlib import Path

import safetensors.torch
import torch
from torch import nn

from onestep_bench.data.pixels import to_unit
from onestep_bench.errors import OnestepError
from onestep_bench.scoring.judges import FeatureExtractor, extractor

DIGITS_WEIGHTS = Path(__file__).with_suffix(".safetensors")
# Printed by scripts/train_digits_classifier.py. Scores under different weights cannot be compared.
DIGITS_SHA256 = "8081f54d896f77e5705e19057c3704e7c5967829f46c7f658b9c4c479628e228"


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
    network = network.eval().requires_grad_(False)
    # In double precision the float32 features are the same on every device and in every batch.
    return FeatureExtractor(
        "digits",
        network.double().to(device),
        device=device,
        batch=256,
        dim=64,
        image_shape=(1, 8, 8),
        digest=digest,
        protocol=f"digits-cnn@{digest[:12]}; no resize",
    )
