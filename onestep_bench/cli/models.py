"""Commands that work on models, each a few lines round a function of the library."""

import argparse
import sys
from pathlib import Path

from onestep_bench.cli.terminal import add_source, print_table, use_store
from onestep_bench.errors import OnestepError

# torch takes seconds to import, so the rooms that need it are imported by the commands that do.

MODEL = (
    "a folder; a store key as rows and `store ls` have it, or a unique start of it (model-1a2b); an EDM or GDD pickle; "
    "a SlimFlow .pth; an https address; a name of the EDM zoo"
)
SAMPLER = "default: euler; see onestep-bench list samplers"


def add_commands(commands) -> None:
    """Add import, export, sample, evaluate, push and pull."""
    _add_import(commands)
    _add_export(commands)
    _add_sample(commands)
    _add_evaluate(commands)
    _add_push(commands)
    _add_pull(commands)


def _add_store(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("--store", type=Path, metavar="DIR", help="default: ONESTEP_STORE")


def _add_import(commands) -> None:
    sub = add_source(
        commands, "import", _import, "make a folder of ours from somebody's model; runs nothing of it", "FILE", MODEL
    )
    _add_store(sub)
    sub.add_argument(
        "--as", dest="format", choices=("edm", "slimflow", "gdd"), help="insist on a format; default: what the file is"
    )
    sub.add_argument("--resolution", type=int, metavar="N", help="side of a SlimFlow model's images, if not its usual")
    sub.add_argument("-o", "--out", type=Path, required=True, metavar="DIR", help="the folder to write")


def _import(options: argparse.Namespace) -> int:
    use_store(options)
    from onestep_bench.models.pretrained import import_model

    told = import_model(options.source, options.out, format=options.format, resolution=options.resolution)
    print("\n".join(told))
    return 0


def _add_export(commands) -> None:
    sub = add_source(
        commands, "export", _export, "write a one-step generator: noise in, uint8 images out", "MODEL", MODEL
    )
    _add_store(sub)
    sub.add_argument("--format", choices=("onnx", "torch-export"), default="onnx", help="default: onnx")
    sub.add_argument("-o", "--out", type=Path, metavar="FILE", help="default: generator.onnx or generator.pt2")


def _export(options: argparse.Namespace) -> int:
    use_store(options)
    from onestep_bench.models import export
    from onestep_bench.models.pretrained import load_pretrained

    default = {"onnx": "generator.onnx", "torch-export": "generator.pt2"}[options.format]
    told = export.export(load_pretrained(options.source), options.out or Path(default), options.format)
    size = told.file.stat().st_size / 1e6
    print(f"{told.file}: {size:.1f} MB, images as torch's to {told.difference:.0e}")
    print(f"one image: {told.latency_ms:.1f} ms, in torch {told.torch_latency_ms:.1f} ms")
    return 0


def _add_sample(commands) -> None:
    sub = add_source(commands, "sample", _sample, "draw a sheet of a model's images", "MODEL", MODEL)
    _add_store(sub)
    sub.add_argument("-n", "--number", type=int, default=64, metavar="N", help="images; default: 64")
    sub.add_argument("--steps", type=int, default=1, metavar="N", help="sampler steps; default: 1")
    sub.add_argument("--sampler", default="euler", metavar="NAME", help=SAMPLER)
    sub.add_argument("--seed", type=int, default=0, metavar="N", help="default: 0")
    sub.add_argument("-o", "--out", type=Path, default=Path("sheet.png"), metavar="FILE", help="default: sheet.png")


def _sample(options: argparse.Namespace) -> int:
    use_store(options)
    from onestep_bench import study
    from onestep_bench.report import plots

    model = study.pretrained(options.source)
    images = study.sample(model, range(options.number), sampler=options.sampler, steps=options.steps, seed=options.seed)
    plots.save_grid(images, options.out)
    print(f"{options.out}: {options.number} images, {options.sampler}, {options.steps} steps, seed {options.seed}")
    if options.steps == 1 and (blur := _blur(model.artifact.recipe["method"])):
        print(f"warning: {blur} is a blur; try --steps 18 --sampler heun", file=sys.stderr)
    return 0


def _blur(method: str) -> str:
    """What one step would be a blur of; empty for a method that makes one-step models."""
    from onestep_bench.methods.teacher import TEACHERS
    from onestep_bench.models import FOREIGN

    if method == FOREIGN:
        return "if this is a teacher, one step of it"
    return f"one step of a teacher ({method})" if method in TEACHERS else ""


def _add_evaluate(commands) -> None:
    text = "score a checkpoint, or images from anywhere, against a data set or published statistics"
    sub = commands.add_parser("evaluate", help=text, description=text)
    sub.set_defaults(command=_evaluate)
    what = (
        "a model (folder, store key or a unique start of it, pickle, .pth, https address, name of the EDM zoo); a "
        "folder, zip or tar of images; an npz of uint8 arr_0 or images (n, h, w, c)"
    )
    sub.add_argument("source", metavar="SOURCE", help=what)
    _add_store(sub)
    reference = "the reference; see onestep-bench list datasets"
    sub.add_argument("--dataset", required=True, metavar="NAME|PATH", help=reference)
    sub.add_argument(
        "--reference", type=Path, metavar="FILE", help="its statistics instead: npz or pkl of mu and sigma"
    )
    judge = (
        "judges; default: auto, one that fits the data; one alone has pixels beside it; see onestep-bench list judges"
    )
    sub.add_argument("--features", nargs="+", default=["auto"], metavar="JUDGE", help=judge)
    splits = "images of the data set to score against: train, test or all; default: train test"
    sub.add_argument("--splits", nargs="+", default=["train", "test"], metavar="SPLIT", help=splits)
    sub.add_argument("--samples", type=int, metavar="N", help="images to score; default: as many as there are")
    sub.add_argument("--label", metavar="TEXT", help="what tables call it; default: the name of SOURCE")
    sub.add_argument("-o", "--output", type=Path, metavar="FILE", help="write the rows to a .json or .csv")
    model = sub.add_argument_group("of a checkpoint only")
    model.add_argument("--sampler", default="euler", metavar="NAME", help=SAMPLER)
    model.add_argument("--steps", type=int, nargs="+", default=[1], metavar="N", help="default: 1")
    model.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], metavar="N", help="default: 0 1 2")


def _evaluate(options: argparse.Namespace) -> int:
    use_store(options)
    from onestep_bench.cli import evaluate

    if options.output:
        evaluate.check(options.output)
    given = {name: value for name, value in vars(options).items() if name not in ("command", "output", "store")}
    rows = evaluate.rows_of(**given)
    print_table(evaluate.table(rows))
    for warning in evaluate.warnings(rows):
        print(f"warning: {warning}")
    if options.output:
        evaluate.write(rows, options.output)
        print(f"rows: {options.output}")
    return 0


REPOSITORY = "USER/NAME of the Hugging Face Hub, or a folder written as one: folder/, ./folder, /folder"


def _add_push(commands) -> None:
    sub = add_source(
        commands, "push", _push, "share a model: weights, description, a card with its scores", "MODEL", MODEL
    )
    sub.add_argument("repo", metavar="REPO", help=REPOSITORY)
    _add_store(sub)
    record = (
        "where its scores are: a folder of executed notebooks, as reports/NAME/notebooks, or rows that evaluate wrote"
    )
    sub.add_argument("--record", type=Path, metavar="PATH", help=record)
    sub.add_argument("--license", default="", metavar="NAME", help="for the card, as the Hub names it: apache-2.0")
    sub.add_argument("--private", action="store_true", help="a repository that is made is for you alone")


def _push(options: argparse.Namespace) -> int:
    use_store(options)
    from onestep_bench.models import hub
    from onestep_bench.models.pretrained import facts
    from onestep_bench.report.card import card
    from onestep_bench.scoring.rows import recorded

    rows = recorded(options.record) if options.record else []
    denoiser, told = hub.about(options.source)
    own = sum(row["model"] == told.get("model") and row["purpose"] != "search" for row in rows)
    if options.record and not own:
        raise OnestepError(f"{options.record} has no score of {options.source}; name the record of its run, or none")
    name = options.repo.rstrip("/").rpartition("/")[2]
    text = card(name, facts(denoiser), told, rows, options.license)
    print(f"{hub.push(denoiser, told, text, options.repo, private=options.private)}: {own} score rows on its card")
    return 0


def _add_pull(commands) -> None:
    sub = add_source(commands, "pull", _pull, "fetch a model that was pushed; runs nothing of it", "REPO", REPOSITORY)
    sub.add_argument("-o", "--out", type=Path, metavar="DIR", help="the folder to make; default: the repository's name")
    sub.add_argument("--revision", metavar="NAME", help="branch, tag or commit of the Hub's repository; default: main")


def _pull(options: argparse.Namespace) -> int:
    from onestep_bench.models import hub

    print(f"{hub.pull(options.source, options.out, revision=options.revision)}: weights are those that were pushed")
    return 0
