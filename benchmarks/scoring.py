"""Score one folder of PNGs against another with onestep_bench, clean-fid and torch-fidelity, in one run.

    python benchmarks/scoring.py [--images 300 1500 4000] [--resolution 32] [--protocol clean legacy_tensorflow]
                                 [--repeats 1]

The network is the tests' stand-in for Inception (2048 features, hardly any arithmetic), so that what is timed is what
the libraries differ in: decoding, resizing, moments, and the Frechet distance. Each runs in a process of its own, from
two folders of files to one number; clean-fid decodes with as many workers as there are cores, torch-fidelity with as
many as it likes. torch-fidelity has no `clean` resizing. With repeats the libraries take turns, and the quickest of
each counts. On a machine that does other work, CPU time is the steadier measure. Memory is the peak of the process, or
of its largest worker, above what it held after its imports.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

RIVALS = {"clean": ("clean-fid",), "legacy_tensorflow": ("clean-fid", "torch-fidelity")}


def write_images(folder: Path, count: int, resolution: int, seed: int) -> None:
    """Smooth colour pictures: noise of an eighth of the resolution, enlarged."""
    folder.mkdir()
    random = np.random.default_rng(seed)
    for index in range(count):
        small = random.integers(0, 256, (resolution // 8 + 2, resolution // 8 + 2, 3), dtype=np.uint8)
        image = Image.fromarray(small).resize((resolution, resolution), Image.Resampling.BICUBIC)
        image.save(folder / f"{index:06d}.png")


def resident() -> float:
    """Peak resident memory of this process so far, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def ours(folders: list[Path], protocol: str):
    """A function that scores the folders with onestep_bench."""
    from onestep_bench.data.streams import images_at
    from onestep_bench.scoring import judging
    from onestep_bench.scoring.judges import inception, load_extractor
    from onestep_bench.scoring.metrics import frechet_from_moments
    from onestep_bench.store.files import file_digest

    inception.SHA256 = file_digest(Path(os.environ["ONESTEP_WEIGHTS"]) / "inception-2015-12-05.pt")
    judge = load_extractor("inception" if protocol == "clean" else "inception-legacy")

    def run() -> float:
        sources = [images_at(folder) for folder in folders]
        a, b = (judging.judged(judge, source.batches(), len(source), kept=0) for source in sources)
        return frechet_from_moments(a.mu, a.cov, b.mu, b.cov)

    return run


def clean_fid(folders: list[Path], protocol: str):
    """A function that scores the folders with clean-fid."""
    import torch

    from onestep_bench.compat import import_torchvision

    import_torchvision()
    from cleanfid.fid import compute_fid
    from cleanfid.inception_torchscript import InceptionV3W

    inside = protocol == "legacy_tensorflow"
    network = InceptionV3W(os.environ["ONESTEP_WEIGHTS"], download=False, resize_inside=inside).eval()

    def run() -> float:
        return compute_fid(
            *map(str, folders), mode=protocol, custom_feat_extractor=network, device=torch.device("cpu"),
            num_workers=os.cpu_count(), batch_size=64, verbose=False,
        )  # fmt: skip

    return run


def torch_fidelity(folders: list[Path], protocol: str):
    """A function that scores the folders with torch-fidelity."""
    import torch

    from onestep_bench.compat import import_torchvision

    import_torchvision()
    from torch_fidelity import calculate_metrics, register_feature_extractor
    from torch_fidelity.feature_extractor_base import FeatureExtractorBase

    class StandIn(FeatureExtractorBase):
        def __init__(self, name, features_list, **_):
            super().__init__(name, features_list)
            self.network = torch.jit.load(Path(os.environ["ONESTEP_WEIGHTS"]) / "inception-2015-12-05.pt")

        @staticmethod
        def get_provided_features_list():
            return ("2048",)

        @staticmethod
        def get_default_feature_layer_for_metric(metric):
            return "2048"

        @staticmethod
        def can_be_compiled():
            return False

        def forward(self, images):
            return (self.network(images, return_features=True),)

    register_feature_extractor("stand-in", StandIn)

    def run() -> float:
        found = calculate_metrics(
            input1=str(folders[0]), input2=str(folders[1]), fid=True, feature_extractor="stand-in", cuda=False,
            batch_size=64, cache=False, verbose=False,
        )  # fmt: skip
        return found["frechet_inception_distance"]

    return run


LIBRARIES = {"onestep_bench": ours, "clean-fid": clean_fid, "torch-fidelity": torch_fidelity}


def one(library: str, protocol: str, folders: list[Path]) -> None:
    """Run one library here and print what it took as JSON."""
    run = LIBRARIES[library](folders, protocol)
    before, start, cpu = resident(), time.perf_counter(), time.process_time()
    value = run()
    seconds = time.perf_counter() - start
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    found = {
        "seconds": seconds,
        "cpu": sum(usage.ru_utime + usage.ru_stime for usage in usages) - cpu,
        "megabytes": max(usage.ru_maxrss for usage in usages) / 1024 - before,
        "value": value,
    }
    print(json.dumps(found))


def measured(library: str, protocol: str, folders: list[Path], weights: Path) -> dict:
    """`one` in a fresh process."""
    command = [sys.executable, __file__, "--one", library, "--protocol", protocol, "--folders", *map(str, folders)]
    environment = os.environ | {"ONESTEP_WEIGHTS": str(weights)}
    done = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    return json.loads(done.stdout.splitlines()[-1])


def report(library: str, found: dict, images: int) -> None:
    """One line."""
    print(
        f"{library:15} {found['seconds']:7.1f} s  {found['cpu']:7.1f} s of CPU  "
        f"{images / found['seconds']:7.0f} images/s  {found['megabytes']:6.0f} MB  distance {found['value']:.8f}",
        flush=True,
    )


def compare(protocol: str, folders: list[Path], images: int, repeats: int, weights: Path) -> None:
    """All libraries that know the protocol, on the same folders of `images` images each."""
    print(f"{protocol}: 2 x {images} images, load average {os.getloadavg()[0]:.1f}", flush=True)
    runs = {library: [] for library in ("onestep_bench", *RIVALS[protocol])}
    for _ in range(repeats):
        for library, found in runs.items():
            found.append(measured(library, protocol, folders, weights))
    best = {
        library: found[0] | {unit: min(run[unit] for run in found) for unit in ("seconds", "cpu")}
        for library, found in runs.items()
    }
    for library, found in best.items():
        report(library, found, 2 * images)
    for rival in RIVALS[protocol]:
        wall, cpu = (best["onestep_bench"][unit] / best[rival][unit] for unit in ("seconds", "cpu"))
        print(f"onestep_bench takes {wall:.2f} of {rival}'s time, {cpu:.2f} of its CPU time", flush=True)


def first(folders: list[Path], count: int) -> list[Path]:
    """Folders beside these that hold the first `count` of their files."""
    found = [folder.with_name(f"{folder.name}-{count}") for folder in folders]
    for part, folder in zip(found, folders, strict=True):
        part.mkdir()
        for file in sorted(folder.iterdir())[:count]:
            os.link(file, part / file.name)
    return found


def main() -> None:
    """Print times, rates, memory and ratios."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--images", type=int, nargs="+", default=[300, 1500, 4000])
    parser.add_argument("--resolution", type=int, default=32)
    parser.add_argument("--protocol", nargs="+", choices=list(RIVALS), default=list(RIVALS))
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--one", choices=list(LIBRARIES), help=argparse.SUPPRESS)
    parser.add_argument("--folders", nargs=2, type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        return one(options.one, options.protocol[0], options.folders)

    from inception_standin import write

    with tempfile.TemporaryDirectory() as temporary:
        folders = [Path(temporary) / name for name in ("samples", "reference")]
        for seed, folder in enumerate(folders):
            write_images(folder, max(options.images), options.resolution, seed)
        write(Path(temporary))
        for count in dict.fromkeys(options.images):
            few = first(folders, count)
            for protocol in options.protocol:
                compare(protocol, few, count, options.repeats, Path(temporary))


if __name__ == "__main__":
    main()
