"""Every format that is read from strangers: small whole files of it, and what the package does with one."""

import gzip
import io
import json
import pickle
import shutil
import struct
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import torch
from mutations import Member, zipped
from PIL import Image
from standins import edm_bytes, numbered, slimflow_content
from tiny import executed, notebook, row, strip

from onestep_bench.data import pickles, tool
from onestep_bench.data.loading import load
from onestep_bench.data.sets.mnist import _read_idx
from onestep_bench.data.streams import images_at
from onestep_bench.denoiser import Denoiser, edm_denoiser
from onestep_bench.grid import clusters
from onestep_bench.grid.cells import Cell, status_of
from onestep_bench.grid.parameters import Notebook, read_notebook
from onestep_bench.grid.plan import read_grid
from onestep_bench.models import checkpoints
from onestep_bench.models.pretrained import load_pretrained
from onestep_bench.networks.build import build
from onestep_bench.report.page import render
from onestep_bench.report.tables import read_rows, read_strips, summarise
from onestep_bench.scoring import references

CONFIG = {
    "arch": "SongUNet", "img_resolution": 8, "in_channels": 1, "out_channels": 1, "model_channels": 8,
    "channel_mult": [1, 1], "num_blocks": 1, "attn_resolutions": [4],
}  # fmt: skip
WIDTH = 6  # of the features whose statistics are read


@dataclass(frozen=True)
class Format:
    """name: of its files. seeds: makes whole ones. read: all that the package does with one, in its folder."""

    name: str
    seeds: Callable[[], list[bytes]]
    read: Callable[[Path], object]


@cache
def denoiser() -> Denoiser:
    torch.manual_seed(0)
    return edm_denoiser(build(CONFIG).eval())


# ---- models


def _edm() -> list[bytes]:
    return [edm_bytes(denoiser(), protocol=protocol) for protocol in (2, 4)]


def _gdd() -> list[bytes]:
    return [edm_bytes(denoiser(), precond=name, eps=0.002) for name in ("GDDPrecond", "D2OPrecond")]


def _saved(content: object) -> bytes:
    file = io.BytesIO()
    torch.save(content, file)
    return file.getvalue()


def _slimflow() -> list[bytes]:
    return [_saved(slimflow_content(numbered(build(CONFIG | {"resample_filter": [1, 1]}))))]


def _torch_zip() -> list[bytes]:
    kinds = (torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.uint8, torch.bool)
    tensors = {str(kind): torch.ones(3, 2).to(kind) for kind in kinds}
    return [_saved({**tensors, "view": torch.arange(12.0).reshape(3, 4).T, "array": np.eye(2), "more": [1, "a", None]})]


def _weights() -> list[bytes]:
    with _folder() as folder:
        checkpoints.save(denoiser(), folder)
        return [(folder / checkpoints.WEIGHTS).read_bytes()]


def _config() -> list[bytes]:
    return [json.dumps(denoiser().spec()).encode()]


@contextmanager
def _folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder)


def _read_folder(path: Path) -> object:
    """A model's folder, of which one of the two files is spoilt."""
    other = {checkpoints.WEIGHTS: (checkpoints.CONFIG, _config), checkpoints.CONFIG: (checkpoints.WEIGHTS, _weights)}
    name, made = other[path.name]
    (path.parent / name).write_bytes(seeds_of(made)[0])
    return load_pretrained(path.parent)


@cache
def seeds_of(make: Callable[[], list[bytes]]) -> list[bytes]:
    """What it makes, made once: a spoilt file is read beside whole ones."""
    return make()


# ---- images


def picture(index: int, kind: str = "PNG", channels: int = 3) -> bytes:
    pixels = np.random.default_rng(index).integers(0, 256, (8, 8, channels), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels if channels == 3 else pixels[..., 0]).save(file, kind)
    return file.getvalue()


def _set(kinds: tuple[str, ...] = ("png", "jpg", "png")) -> dict[str, bytes]:
    files = {f"00000/img{i:08d}.{k}": picture(i, "JPEG" if k == "jpg" else "PNG") for i, k in enumerate(kinds)}
    labels = [[name, index % 2] for index, name in enumerate(files)]
    return files | {"dataset.json": json.dumps({"labels": labels}).encode()}


def _zips() -> list[bytes]:
    return [zipped([Member.of(*item, how) for item in _set().items()]) for how in (zipfile.ZIP_STORED, 8)]


def _tarred(files: dict[str, bytes]) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return file.getvalue()


def _cifar() -> list[bytes]:
    batch = {"data": np.zeros((2, 3072), np.uint8), "labels": [0, 9]}
    python = {f"cifar-10-batches-py/data_batch_{i}": pickle.dumps(batch, 2) for i in range(1, 6)}
    binary = {f"cifar-10-batches-bin/data_batch_{i}.bin": bytes([i]) + bytes(3072) for i in range(1, 6)}
    return [gzip.compress(_tarred(files), 1, mtime=0) for files in (python, binary)]


def read_images(path: Path) -> object:
    """As a data set, as a stream of images to score, and as what the data set tool looks at and writes anew."""
    tool.check(path)
    found = load(str(path), split="all")
    list(images_at(path).batches())
    tool.build(path, path.parent.parent / "built" / "built.zip", side=8, transform="center-crop")
    return found.digest


def _read_cifar(path: Path) -> object:
    return tool.build(path, path.parent.parent / "built" / "built.zip")


def _read_in_folder(path: Path) -> object:
    """The file beside others of its set."""
    folder = path.parent / "set"
    (folder / "00000").mkdir(parents=True)
    for name, content in _set().items():
        (folder / name).write_bytes(content)
    shutil.copy(path, folder / ("dataset.json" if path.suffix == ".json" else "00000/img00000000.png"))
    return read_images(folder)


def _npz() -> list[bytes]:
    found = []
    for write in (np.savez, np.savez_compressed):
        file = io.BytesIO()
        write(file, arr_0=np.random.default_rng(0).integers(0, 256, (4, 8, 8, 3), dtype=np.uint8))
        found.append(file.getvalue())
    return found


def _read_stream(path: Path) -> object:
    return list(images_at(path).batches())


def _idx() -> list[bytes]:
    content = bytes((0, 0, 8, 3)) + struct.pack(">3i", 2, 4, 4) + bytes(range(32))
    return [content, bytes((0, 0, 8, 3)) + struct.pack(">3i", 1, 8, 8) + bytes(64)]


def _read_idx_file(path: Path) -> object:
    return _read_idx(path, 3)


# ---- notebooks, grids, clusters


def _notebooks() -> list[bytes]:
    with _folder() as folder:
        rows = [row(seed=seed, fid=5.0 + seed, model="m") for seed in range(2)]
        recipes = {"r0": {"kd.lr": 0.001}}
        strips = [strip("SlimFlow", "0.2M", 1)]
        used = [{"artifact": "store/model-m", "content": "0"}, {"data": "d.zip", "size": 1, "mtime": 2, "sha256": "0"}]
        stamp = {"onestep_bench": {"digest": "0", "seconds": 1.0, "why": "", "parameters": {}, "used": used}}
        return [executed(folder / "a.ipynb", rows, strips, stamp, recipes=recipes).read_bytes()]


def _read_notebooks(path: Path) -> object:
    read_notebook(path)
    Notebook.read(path)
    status_of(Cell("stage", path, {}, (), path.stem, "0"), path.parent)
    rows, _ = read_rows(path.parent), read_strips(path.parent)
    summarise(rows)
    # Drawing takes a thousand times as long as reading: of the spoilt ones one in sixteen is drawn.
    content = path.read_bytes()
    if content in seeds_of(_notebooks) or zlib.crc32(content) % 16 == 0:
        render(path.parent, path.parent.parent / "built")
    return rows


def _read_sources(path: Path) -> object:
    return Notebook.read(path).declared


def _sources() -> list[bytes]:
    with _folder() as folder:
        return [
            notebook(folder / "n.ipynb", "size = '0.2M'  # a\nkimg = 1.0\nsteps = [1, 2]", "print(size)").read_bytes()
        ]


_GRID = b"""name: tiny
title: A grid
dataset: digits
limit: 10min
rate: {teramacs: 100, of: a card}
defaults:
  seed: 1
stages:
  teacher:
    notebook: n.ipynb
    parameters: {kimg: 2.0}
    over: {size: [0.05M, 0.2M]}
    passes: {kimg: {size: 3}}
  student:
    notebook: n.ipynb
    needs: [teacher]
    memory: 2GB
    takes: 90s
    parameters: {kimg: 1.0, steps: [1, 2]}
    over: {size: [0.05M, 0.2M], seed: [0, 1]}
    published: [{fid: 5.0, at: here, source: us}]
"""


def _read_grid(path: Path) -> object:
    house = path.parent / "house"
    (house / "params").mkdir(parents=True)
    file = shutil.copy(path, house / "params" / "g.yaml")
    parameters = "dataset = 'digits'\nsize = '0.2M'\nkimg = 1.0\nsteps = [1]\nseed = 0"
    (house / "notebooks").mkdir()
    (house / "notebooks" / "n.ipynb").write_bytes(_once_notebook(parameters))
    return read_grid(file)


@cache
def _once_notebook(parameters: str) -> bytes:
    with _folder() as folder:
        return notebook(folder / "n.ipynb", parameters, "print(dataset, size, kimg, steps, seed)").read_bytes()


_CLUSTERS = (
    b"class: distributed.LocalCluster\narguments: {n_workers: 1, threads_per_worker: 1}\nscale: {n: 2}\n",
    b"class: distributed.SSHCluster\narguments:\n  hosts: [localhost, a]\nadapt: {maximum: 2}\n",
)


def _read_cluster(path: Path) -> object:
    document = clusters._read(path)
    return clusters._class(document["class"], path)


# ---- statistics


class _Extractor:
    name, dim = "inception", WIDTH


def _statistics_npz() -> list[bytes]:
    file = io.BytesIO()
    np.savez(file, mu=np.zeros(WIDTH), sigma=np.eye(WIDTH))
    return [file.getvalue()]


def _statistics_pkl() -> list[bytes]:
    mu = {"mu": np.zeros(WIDTH), "sigma": np.eye(WIDTH)}
    return [pickle.dumps(mu, 2), pickle.dumps({"fid": mu, "fd_dinov2": mu}, 4)]


def _read_statistics(path: Path) -> object:
    return references.reference(_Extractor, references.Statistics("x", path))


FORMATS = {
    "edm": Format("model.pkl", _edm, load_pretrained),
    "gdd": Format("model.pkl", _gdd, load_pretrained),
    "slimflow": Format("model.pth", _slimflow, load_pretrained),
    "torch zip": Format("model.pth", _torch_zip, pickles.read),
    "safetensors": Format(checkpoints.WEIGHTS, _weights, _read_folder),
    "config.json": Format(checkpoints.CONFIG, _config, _read_folder),
    "images npz": Format("images.npz", _npz, _read_stream),
    "idx": Format("train-images-idx3-ubyte", _idx, _read_idx_file),
    "idx gz": Format("train-images.gz", lambda: [gzip.compress(one, mtime=0) for one in _idx()], _read_idx_file),
    "png": Format("a.png", lambda: [picture(0), picture(1)], _read_in_folder),
    "jpeg": Format("a.jpg", lambda: [picture(0, "JPEG"), picture(1, "JPEG")], _read_in_folder),
    "zip": Format("photos.zip", _zips, read_images),
    "tar": Format("photos.tar", lambda: [_tarred(_set())], read_images),
    "tar gz": Format("photos.tar.gz", lambda: [gzip.compress(_tarred(_set()), 1, mtime=0)], read_images),
    "cifar": Format("cifar.tar.gz", _cifar, _read_cifar),
    "dataset.json": Format("dataset.json", lambda: [_set()["dataset.json"]], _read_in_folder),
    "executed": Format("cell.ipynb", _notebooks, _read_notebooks),
    "notebook": Format("n.ipynb", _sources, _read_sources),
    "grid": Format("grid.yaml", lambda: [_GRID], _read_grid),
    "cluster": Format("cluster.yaml", lambda: list(_CLUSTERS), _read_cluster),
    "stats npz": Format("stats.npz", _statistics_npz, _read_statistics),
    "stats pkl": Format("stats.pkl", _statistics_pkl, _read_statistics),
}
