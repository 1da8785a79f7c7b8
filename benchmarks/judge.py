"""Train the judge `classifier` on a data set, and count what it gets right of images that it never saw.

    python benchmarks/judge.py DATASET [--precision auto] [--checkpoint FILE]

As `evaluate` trains it, but nothing is put into the store. Precision is the device's, bf16 on a GPU; a CPU with
instructions for bf16 is nearly twice as fast with it. A killed run goes on from the checkpoint, if one is named; of a
whole one only the counting is left.
"""

import argparse
import sys
from pathlib import Path

from onestep_bench.data.loading import load
from onestep_bench.errors import OnestepError
from onestep_bench.scoring import recipe
from onestep_bench.scoring.judges import classifier
from onestep_bench.training.config import PRECISIONS
from onestep_bench.training.ranks import device, device_name


def main() -> None:
    """What the command line asks for; a mistake in it is one line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset")
    parser.add_argument("--precision", default="auto", choices=PRECISIONS)
    parser.add_argument("--checkpoint", type=Path)
    try:
        count(parser.parse_args())
    except OnestepError as error:
        sys.exit(f"error: {error}")


def count(asked: argparse.Namespace) -> None:
    """Print the recipe, the time, and the shares of held-out and of test images that are told right.

    Raises OnestepError for a data set that is not there, or has no labels to learn.
    """
    data = load(asked.dataset, split="train")
    if data.labels is None:
        raise OnestepError(f"{data.name} has no labels; a classifier learns from labelled images")
    test = data.on("test")
    print(f"{recipe.recipe_for(data.channels)}; {recipe.steps_for(len(data), data.channels):,} steps", flush=True)
    network, held, last = classifier.train(
        data.images, data.labels, device(), asked.checkpoint, precision=asked.precision
    )
    print(f"trained for {last.seconds:.0f} s on {device_name()}, {asked.precision}")
    unseen = {
        "images held out of those to train on": (data.images[held], data.labels[held]),
        "images to test with": (test.images, test.labels),
    }
    right = 0.0
    for name, some in unseen.items():
        share = classifier.accuracy(network, some)
        right += share * len(some[1])
        print(f"{share:.2%} of {len(some[1]):,} {name}", flush=True)
    print(f"{right / (len(held) + len(test)):.2%} of all, which is what its protocol says")


if __name__ == "__main__":
    main()
