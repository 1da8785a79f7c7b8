"""Weights of published networks: downloaded once into one folder, believed only with the right checksum."""

import os
from pathlib import Path

from onestep_bench.store.downloads import fetch


def folder() -> Path:
    """Where weights are kept: ONESTEP_WEIGHTS, else ~/.cache/onestep_bench/weights."""
    return Path(os.environ.get("ONESTEP_WEIGHTS") or "~/.cache/onestep_bench/weights").expanduser()


def weights(url: str, sha256: str) -> Path:
    """The file at `url`, in `folder()`.

    Raises OnestepError that names file, place and checksum where it is missing and the network is out of reach, or
    where it is another file.
    """
    target = _file(url)
    fetch(target, [url], sha256, "sha256")
    return target


def at_hand(url: str) -> bool:
    """Whether the file at `url` was downloaded, or put there."""
    return _file(url).exists()


def _file(url: str) -> Path:
    return folder() / url.rsplit("/", 1)[1]
