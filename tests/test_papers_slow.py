"""The papers' grids, unchanged, at a thousandth of their budgets on a CPU, and the passes a plan tells their cost by.

What no CPU, or no machine without a network, can do is set on the command line: networks of some thousand parameters
(sizes of a plug-in), a critic of the teacher's encoder in the place of ImageNet's networks, l2 for LPIPS, judges that
need no download, no published statistics, one sampling seed. Released teachers are stand-ins in their format, in their
place. Images of 32 pixels are the first of CIFAR-10's JPEG copies if ONESTEP_DATA has them; else, and at 64 pixels,
noise.
"""

import io
import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from standins import edm_bytes

from onestep_bench.denoiser import edm_denoiser
from onestep_bench.grid import cost
from onestep_bench.grid.changes import Changes
from onestep_bench.grid.plan import read_grid
from onestep_bench.networks.build import build
from onestep_bench.store.artifacts import META

PARAMS = Path(__file__).parents[1] / "params"
TOY = {"arch": "SongUNet", "model_channels": 4, "channel_mult": [1], "num_blocks": 1, "attn_resolutions": []}
PLACES = 4  # a side; the rest is channels
JPEG = "cifar10-jpeg-32x32-train.zip"

SIDES = {"ffhq64": 64, "afhqv2": 64, "imagenet64": 64}
TEACHERS = {
    "edm-cifar10-32x32-uncond-vp": 0,
    "edm-cifar10-32x32-uncond-ve": 0,
    "edm-cifar10-32x32-cond-ve": 10,
    "edm-ffhq-64x64-uncond-vp": 0,
    "edm-ffhq-64x64-uncond-ve": 0,
    "edm-afhqv2-64x64-uncond-ve": 0,
    "edm-imagenet-64x64-cond-adm": 10,
}
SETS = ["features=[pixels, random-features]", "reference=", "seeds=[0]"]
SMALL = ["size=toy32", "teacher_size=toy32"]
# R1 comes every 16th step from the first on: of twenty steps it would be more than its share.
GDD = ["options.critic=teacher", "options.layout=ours", "snapshots=[2.5]", "batch_size=64"]
CASES = {
    "cifar10": [*SMALL, "batch_size=16", "options.group=16"],
    "cifar10-30min": [*SMALL, "batch_size=16"],
    "papers/afhqv2-gdd": GDD,
    "papers/cifar10-cd": ["options.distance=l2"],
    "papers/cifar10-ect": [],
    "papers/cifar10-gdd": GDD,
    "papers/cifar10-gdd-cond": GDD,
    "papers/cifar10-pd": [],
    "papers/cifar10-sfddm": SMALL,
    "papers/cifar10-slimflow": [*SMALL, "distance=l2", "snapshots=[25600.0]"],
    "papers/ffhq64-gdd": GDD,
    "papers/ffhq64-slimflow": ["size=toy64", "distance=l2", "snapshots=[25600.0]"],
    "papers/imagenet64-gdd": GDD,
    "papers/imagenet64-slimflow": ["size=toy64", "distance=l2", "snapshots=[25600.0]"],
}


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A data folder: images, stand-ins where the zoo's teachers are downloaded to, and a plug-in with a size."""
    folder = tmp_path_factory.mktemp("papers")
    _write_images(folder / "cifar10.zip", _photographs() or _noise(32))
    for name in ("ffhq-64x64", "afhqv2-64x64", "imagenet-64x64"):
        _write_images(folder / f"{name}.zip", _noise(64))
    (folder / "models").mkdir()
    for name, classes in TEACHERS.items():
        side = 64 if "64x64" in name else 32
        torch.manual_seed(0)
        config = {**TOY, "patch": side // PLACES, "img_resolution": side, "label_dim": classes}
        net = build({**config, "in_channels": 3, "out_channels": 3})
        (folder / "models" / f"{name}.pkl").write_bytes(edm_bytes(edm_denoiser(net)))
    sizes = {f"toy{side}": {**TOY, "patch": side // PLACES, "dropout": 0.1} for side in (32, 64)}
    lines = [
        "from onestep_bench.models import sampling",
        "from onestep_bench.networks.sizes import SIZES",
        f"SIZES.update({sizes!r})",
        "sampling.BATCH = 50",  # a thousandth of the samples; padded to 256 they take most of the time
    ]
    (folder / "toy.py").write_text("\n".join(lines))
    return folder


def _photographs(count=600):
    """Pictures of CIFAR-10's JPEG copies and their classes, if they are at hand."""
    path = Path(os.environ.get("ONESTEP_DATA", "")) / JPEG
    if not path.is_file():
        return None
    with zipfile.ZipFile(path) as archive:
        labels = json.loads(archive.read("dataset.json"))["labels"][:count]
        return [(np.asarray(Image.open(io.BytesIO(archive.read(name)))), label) for name, label in labels]


def _noise(side, count=300):
    draw = np.random.default_rng(0)
    return [(draw.integers(0, 256, (side, side, 3), np.uint8), place % 10) for place in range(count)]


def _write_images(path, pictures):
    labels = []
    with zipfile.ZipFile(path, "w") as archive:
        for place, (pixels, label) in enumerate(pictures):
            file = io.BytesIO()
            Image.fromarray(pixels).save(file, "PNG")
            archive.writestr(f"{place:05d}.png", file.getvalue())
            labels.append([f"{place:05d}.png", label])
        archive.writestr("dataset.json", json.dumps({"labels": labels}))


def stated(grid):
    """Thousands of passes of trainings, and of pairs, that a grid states for its cells."""
    found = {"model": 0.0, "pairs": 0.0}
    for name, stage in grid.stages.items():
        cells = [stage.declared | cell.parameters for cell in grid.cells if cell.stage == name]
        for parameters, counts in [(cells[0], stage.passes.once), *((cell, stage.passes.each) for cell in cells)]:
            for budget, networks in counts.items():
                kind = "pairs" if budget == "pairs" else "model"
                counted = {name: count for name, count in networks.items() if not name.startswith("lpips")}
                if budget != "samples":
                    found[kind] += sum(cost.passes({budget: counted}, parameters).values())
    return found


def counted(store):
    """The same, as they were counted at the networks: of every artifact of a store."""
    found = {"model": 0.0, "pairs": 0.0}
    for path in store.glob(f"*/{META}"):
        meta, kind = json.loads(path.read_text()), path.parent.name.split("-")[0]
        if kind in found:
            found[kind] += meta["cost"].get("passes") or 0.0  # of a stand-in nothing is known
    return found


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_a_paper_runs_at_a_thousandth_and_its_passes_are_those_stated(name, home, tmp_path):
    path = PARAMS / f"{name}.yaml"
    sets = [*SETS, *CASES[name]]
    if not any(marked in name for marked in SIDES):
        sets.append(f"dataset={home / 'cifar10.zip'}")
    store = tmp_path / "store"
    environment = os.environ | {"ONESTEP_DATA": str(home), "ONESTEP_STORE": str(store), "OMP_NUM_THREADS": "1"}
    environment |= {"ONESTEP_PLUGINS": str(home / "toy.py"), "TQDM_DISABLE": "1"}
    given = [word for text in sets for word in ("--set", text)]
    where = ["--workers", "1", "--out", str(tmp_path / "out")]
    command = [sys.executable, "-m", "onestep_bench.cli", "run", str(path), *where, "--scale", "0.001", *given]
    ran = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert ran.returncode == 0, ran.stdout[-2000:] + ran.stderr[-4000:]
    assert (tmp_path / "out" / "report.html").exists()
    told, found = stated(_grid(path, sets, home)), counted(store)
    # Budgets are whole batches, and R1 is not of every step.
    assert found["model"] == pytest.approx(told["model"], rel=0.03)
    if "slimflow" not in name or name.startswith("papers/cifar10"):  # whose RK45 chooses its steps
        return
    assert found["pairs"] == pytest.approx(told["pairs"])


def _grid(path, sets, home):
    """The grid that the run planned, here without its plug-in."""
    from onestep_bench.networks.sizes import SIZES

    with pytest.MonkeyPatch.context() as patch:
        for side in (32, 64):
            patch.setitem(SIZES, f"toy{side}", TOY)
        patch.setenv("ONESTEP_DATA", str(home))
        return read_grid(path, changes=Changes.of(0.001, sets))
