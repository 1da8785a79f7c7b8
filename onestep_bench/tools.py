"""Commands that work on models and data sets, each a few lines round a function of the library."""

import argparse
from pathlib import Path

# torch takes seconds to import, so the rooms that need it are imported by the commands that do.

MODEL = "folder, EDM or GDD pickle, SlimFlow .pth, https address, or name of the EDM zoo"


def add_commands(commands) -> None:
    """Add import, export and sample to the sub-parsers `commands`."""
    _add_import(commands)
    _add_export(commands)
    _add_sample(commands)


def _add(commands, name: str, run, text: str, argument: str) -> argparse.ArgumentParser:
    sub = commands.add_parser(name, help=text, description=text)
    sub.set_defaults(command=run)
    sub.add_argument("source", metavar=argument, help=MODEL)
    return sub


def _add_import(commands) -> None:
    sub = _add(commands, "import", _import, "make a folder of ours from somebody's model; runs nothing of it", "FILE")
    sub.add_argument(
        "--as", dest="format", choices=("edm", "slimflow", "gdd"), help="insist on a format; default: what the file is"
    )
    sub.add_argument("--resolution", type=int, metavar="N", help="side of a SlimFlow model's images, if not its usual")
    sub.add_argument("-o", "--out", type=Path, required=True, metavar="DIR", help="the folder to write")


def _import(options: argparse.Namespace) -> int:
    from onestep_bench.importing import import_model

    told = import_model(options.source, options.out, format=options.format, resolution=options.resolution)
    print("\n".join(told))
    return 0


def _add_export(commands) -> None:
    sub = _add(commands, "export", _export, "write a one-step generator: noise in, uint8 images out", "MODEL")
    sub.add_argument("--format", choices=("onnx", "torch-export"), default="onnx", help="default: onnx")
    sub.add_argument("-o", "--out", type=Path, metavar="FILE", help="default: generator.onnx or generator.pt2")


def _export(options: argparse.Namespace) -> int:
    from onestep_bench import deploy
    from onestep_bench.checkpoints import load_pretrained

    default = {"onnx": "generator.onnx", "torch-export": "generator.pt2"}[options.format]
    told = deploy.export(load_pretrained(options.source), options.out or Path(default), options.format)
    size = told.file.stat().st_size / 1e6
    print(f"{told.file}: {size:.1f} MB, images as torch's to {told.difference:.0e}")
    print(f"one image: {told.latency_ms:.1f} ms, in torch {told.torch_latency_ms:.1f} ms")
    return 0


def _add_sample(commands) -> None:
    sub = _add(commands, "sample", _sample, "draw a sheet of a model's images", "MODEL")
    sub.add_argument("-n", "--number", type=int, default=64, metavar="N", help="images; default: 64")
    sub.add_argument("--steps", type=int, default=1, metavar="N", help="sampler steps; default: 1")
    sub.add_argument("--sampler", default="euler", metavar="NAME", help="default: euler")
    sub.add_argument("--seed", type=int, default=0, metavar="N", help="default: 0")
    sub.add_argument("-o", "--out", type=Path, default=Path("sheet.png"), metavar="FILE", help="default: sheet.png")


def _sample(options: argparse.Namespace) -> int:
    from onestep_bench import plots, study

    images = study.sample(
        study.pretrained(options.source),
        range(options.number),
        sampler=options.sampler,
        steps=options.steps,
        seed=options.seed,
    )
    plots.save_grid(images, options.out)
    print(f"{options.out}: {options.number} images, {options.sampler}, {options.steps} steps, seed {options.seed}")
    return 0
