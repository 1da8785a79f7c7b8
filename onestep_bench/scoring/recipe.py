"""What the judge `classifier` trains with: known without torch, so that a plan can tell its cost."""

from dataclasses import dataclass

BATCH = 120  # that 2, 3, 4, 5, 6 or 8 ranks can share
HELD_OUT = 10  # one image in so many is not trained on
FEWEST = 600  # steps, however few the images


@dataclass(frozen=True)
class Recipe:
    """widths: of the network's stages. epochs: passes over the images, of at most `most` steps.

    hflip: whether images are mirrored at random.
    """

    widths: tuple[int, int, int]
    epochs: int
    most: int
    hflip: bool


# Grey images are digits, letters, clothes: two passes of a narrow network do, and a mirrored digit is no digit.
GREY = Recipe((32, 64, 128), epochs=2, most=3000, hflip=False)
# Photographs need more of everything: minutes on a GPU, hours on a CPU.
COLOUR = Recipe((64, 128, 256), epochs=20, most=10_000, hflip=True)


def recipe_for(channels: int) -> Recipe:
    """The recipe for images of so many channels."""
    return GREY if channels == 1 else COLOUR


def steps_for(images: int, channels: int) -> int:
    """Training steps, of `BATCH` images each, on a data set of so many images."""
    recipe = recipe_for(channels)
    trained_on = images - images // HELD_OUT
    return min(max(recipe.epochs * trained_on // BATCH, FEWEST), recipe.most)
