"""Train the two classifiers whose features judge digits, one on each half, and write them into the package.

    python scripts/train_digits_classifier.py [OUTPUT.safetensors]

Deterministic: the same machine type writes the same bytes. Prints the accuracy of each on the half it never saw and
the SHA-256 that belongs in onestep_bench/scoring/judges/digits.py.
"""

import copy
import math
import sys

import safetensors.torch
import torch
from torch.nn import functional

from onestep_bench.data.loading import load
from onestep_bench.data.pixels import to_unit
from onestep_bench.scoring.judges.digits import DIGITS_WEIGHTS, WIDTH, DigitsClassifier
from onestep_bench.seeds import generator
from onestep_bench.store.files import file_digest, replacing

EPOCHS, BATCH, RATE, SEED = 150, 96, 2e-3, 0


def augment(images: torch.Tensor, random: torch.Generator) -> torch.Tensor:
    """Shift, turn, stretch, dim and disturb images (n, 1, 8, 8) in [-1, 1], each a little and in its own way."""
    n = len(images)

    def uniform(low: float, high: float, *shape: int) -> torch.Tensor:
        return low + (high - low) * torch.rand(n, *shape, generator=random)

    angle, scale, shift = uniform(-0.2, 0.2), uniform(0.88, 1.12, 2), uniform(-0.25, 0.25, 2)
    rotation = torch.stack([angle.cos(), -angle.sin(), angle.sin(), angle.cos()], 1).view(n, 2, 2)
    affine = torch.cat([rotation * scale[:, None], shift[:, :, None]], dim=2)
    grid = functional.affine_grid(affine, images.shape, align_corners=False)
    # Padding with zeros must mean background, which is -1.
    moved = functional.grid_sample(images + 1, grid, align_corners=False) - 1
    contrast, spread = uniform(0.85, 1.0, 1, 1, 1), uniform(0.0, 0.15, 1, 1, 1)
    return (moved + 1) * contrast - 1 + spread * torch.randn(moved.shape, generator=random)


def train(images: torch.Tensor, labels: torch.Tensor) -> DigitsClassifier:
    """Fit to images (n, 1, 8, 8) in [-1, 1] and labels (n,); the rate falls along a cosine."""
    random = generator(SEED, "digits-classifier")
    torch.manual_seed(SEED)  # initial weights and dropout
    network = DigitsClassifier()
    optimiser = torch.optim.AdamW(network.parameters(), lr=RATE, weight_decay=1e-2)
    for epoch in range(EPOCHS):
        optimiser.param_groups[0]["lr"] = RATE * (1 + math.cos(math.pi * epoch / EPOCHS)) / 2
        for rows in torch.randperm(len(images), generator=random).split(BATCH):
            _, logits = network(augment(images[rows], random))
            loss = functional.cross_entropy(logits, labels[rows], label_smoothing=0.05)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
    return network.eval()


def scaled(network: DigitsClassifier, unseen: torch.Tensor) -> DigitsClassifier:
    """Set what its features are divided by: over the unseen images (n, 1, 8, 8) their variances then sum to WIDTH."""
    with torch.inference_mode():
        features, _ = copy.deepcopy(network).double()(unseen)
    network.scale.copy_((features.var(0).sum() / WIDTH).sqrt())
    return network


def main() -> None:
    """Train on each half, report on the other, write the weights of both."""
    output = sys.argv[1] if len(sys.argv) > 1 else DIGITS_WEIGHTS
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    weights = {}
    for split, other in (("train", "test"), ("test", "train")):
        seen, unseen = load("digits", split=split), load("digits", split=other)
        network = scaled(train(to_unit(seen.images), seen.labels), unseen.images)
        weights |= {f"{split}/{name}": value.contiguous() for name, value in network.state_dict().items()}
        with torch.inference_mode():
            right = network(unseen.images)[1].argmax(1) == unseen.labels
        accuracy = right.double().mean()
        print(f"fitted on {split}: accuracy on {other} {accuracy:.4f} ({int(right.sum())} of {len(right)})")
    with replacing(output) as temporary:
        safetensors.torch.save_file(weights, temporary)
    print(f"SHA-256 {file_digest(output)}  {output}")


if __name__ == "__main__":
    main()
