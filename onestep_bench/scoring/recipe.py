"""What the judge `classifier` trains with: known without torch, so that a plan can tell its cost."""

from dataclasses import dataclass

BATCH = 120  # that 2, 3, 4, 5, 6 or 8 ranks can share
HELD_OUT = 10  # one image in so many is not trained on, unless a recipe holds out fewer
FEWEST = 600  # steps, however few the images


@dataclass(frozen=True)
class Recipe:
    """version: a change makes the classifiers of this recipe train again; of network and training.

    widths: of the network's stages. epochs: passes over the images, of at most `most` steps. hflip: whether images are
    mirrored at random. held_most: images that are not trained on, at most. shift: one part in so many of the side is
    the furthest that images are moved. sides: those of the squares that are cut from them, as shares of theirs, each
    for an equal part of the steps. smoothing: of labels. warmup: share of the steps. The others are those of
    `TrainConfig`.
    """

    version: int
    widths: tuple[int, int, int]
    epochs: int
    most: int
    hflip: bool
    held_most: int = 10_000
    shift: int = 8
    sides: tuple[float, ...] = (1.0,)
    smoothing: float = 0.05
    rate: float = 2e-3
    optimizer: str = "adam"
    weight_decay: float = 0.0
    warmup: float = 0.05
    clip: float = 1.0


# Grey images are digits, letters, clothes: two passes of a narrow network do, and a mirrored digit is no digit.
GREY = Recipe(2, (32, 64, 128), epochs=2, most=3000, hflip=False)
# Photographs need more of everything: of CIFAR-10 some three hours of two CPU cores, half of that in bf16.
COLOUR = Recipe(
    version=5,
    widths=(128, 384, 384),
    epochs=24,
    most=15_000,
    hflip=True,
    held_most=2000,
    shift=10,
    sides=(3 / 4, 7 / 8, 1.0),
    smoothing=0.1,
    rate=2e-3,
    optimizer="adamw",
    weight_decay=0.2,
    warmup=0.2,
)


def recipe_for(channels: int) -> Recipe:
    """The recipe for images of so many channels."""
    return GREY if channels == 1 else COLOUR


def steps_for(images: int, channels: int) -> int:
    """Training steps, of `BATCH` images each, on a data set of so many images."""
    recipe = recipe_for(channels)
    trained_on = images - held_from(images, channels)
    return min(max(recipe.epochs * trained_on // BATCH, FEWEST), recipe.most)


def held_from(images: int, channels: int) -> int:
    """Images of so many that are not trained on."""
    return min(images // HELD_OUT, recipe_for(channels).held_most)
