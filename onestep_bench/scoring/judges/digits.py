"""The shipped judge of scikit-learn's digits: two networks, each fitted on one half of them. Needs no download.

The one that was fitted on the other half judges: it never saw its reference, and images that copy what it learned from
gain nothing. Against all digits, and against images made by hand, it is the one that was fitted on 'test'.
"""

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
DIGITS_SHA256 = "10e64b8e64d5b1fbedde2fa140b464e036b6148d6b524f0daf38826601a2dea1"


WIDTH = 64


class DigitsClassifier(nn.Module):
    """A small convolutional classifier of 8x8 grey digits; its features are the `WIDTH` units below the class layer.

    scale: they are divided by it, so that on the half it never saw their variances sum to `WIDTH`: distances before
    two networks are then of one scale.
    """

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
            nn.Linear(256, WIDTH),
            nn.SiLU(),
        )
        self.dropout = nn.Dropout(0.3)
        self.head = nn.Linear(WIDTH, 10)
        self.register_buffer("scale", torch.ones((), dtype=torch.float64))

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Features (n, WIDTH) and logits (n, 10) of uint8 or already scaled images (n, 1, 8, 8)."""
        if images.dtype == torch.uint8:
            images = to_unit(images)
        features = self.trunk(images.to(self.head.weight.dtype))
        return features / self.scale, self.head(self.dropout(features))


@extractor("digits")
def _digits(device: torch.device, split: str) -> FeatureExtractor:
    # Cross-fitted: what judges never saw the images that it judges against. Of all of them, either saw half.
    fitted_on = "train" if split == "test" else "test"
    try:
        content = DIGITS_WEIGHTS.read_bytes()
    except OSError as error:
        raise OnestepError(f"cannot read {DIGITS_WEIGHTS}: {error.strerror}; reinstall onestep-bench") from error
    digest = hashlib.sha256(content).hexdigest()
    if digest != DIGITS_SHA256:
        raise OnestepError(f"{DIGITS_WEIGHTS} is damaged (SHA-256 {digest[:12]}...); reinstall onestep-bench")
    weights = safetensors.torch.load(content)
    own = {name.partition("/")[2]: weight for name, weight in weights.items() if name.startswith(f"{fitted_on}/")}
    network = DigitsClassifier()
    network.load_state_dict(own)
    network = network.eval().requires_grad_(False)
    # In double precision the float32 features are the same on every device and in every batch.
    return FeatureExtractor(
        "digits",
        network.double().to(device),
        device=device,
        batch=256,
        dim=WIDTH,
        image_shape=(1, 8, 8),
        digest=digest,
        protocol=f"digits-cnn@{digest[:12]} fitted on {fitted_on}; no resize",
    )
