"""Commands that work on data sets."""

import argparse
from pathlib import Path

from onestep_bench.cli.terminal import add_source


def add_commands(commands) -> None:
    """Add dataset."""
    text = "make a data set of square images from a folder, zip or tar, or check one"
    about = "folder, zip or tar of images, or an archive of CIFAR-10; to --check also a data set's name (mnist)"
    sub = add_source(commands, "dataset", _dataset, text, "SOURCE", about)
    what = sub.add_mutually_exclusive_group(required=True)
    what.add_argument("-o", "--out", type=Path, metavar="OUT.zip", help="write a data set in the layout of NVlabs/edm")
    what.add_argument("--check", action="store_true", help="report counts, sizes, labels, duplicates, hash, problems")
    sub.add_argument("--resolution", type=_side, metavar="NxN", help="size of the images written; default: as they are")
    sub.add_argument(
        "--transform", choices=("center-crop", "center-crop-dhariwal", "stretch"), help="how they get that size"
    )


def _side(text: str) -> int:
    width, _, height = text.partition("x")
    if not width.isdecimal() or height not in ("", width) or not 1 <= int(width) <= 1 << 13:
        raise argparse.ArgumentTypeError(f"{text!r} is no size of a square image, such as 64x64")
    return int(width)


def _dataset(options: argparse.Namespace) -> int:
    from onestep_bench.data import tool

    if options.check:
        found = tool.check_named(options.source)
        print("\n".join(found.lines()))
        return 1 if found.problems else 0
    count, digest = tool.build(Path(options.source), options.out, side=options.resolution, transform=options.transform)
    print(f"{options.out}: {count} images, SHA-256 {digest}")
    return 0
