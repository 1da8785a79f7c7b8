"""Files from the network: fetched once, believed only with the right checksum."""

import hashlib
from collections.abc import Sequence
from pathlib import Path

import requests

from onestep_bench.errors import OnestepError
from onestep_bench.store.files import replacing

# Not pooch: it silently replaces a file of another checksum, knows no mirrors, and makes folders before any answer.


def fetch(target: Path, urls: Sequence[str], digest: str | None = None, algorithm: str = "md5") -> None:
    """Make `target` a file with this checksum: the one that is there, or what the first of `urls` to answer sends.

    digest: hexadecimal, None where no checksum is published. algorithm: a name hashlib knows. Raises OnestepError, with
    what to put where, if nothing answers, and for any other checksum.
    """
    if target.exists():
        return _verify(target, target, digest, algorithm)
    known = f" ({algorithm.upper()} {digest})" if digest else ""
    unreachable = OnestepError(
        f"{target.name} is missing and cannot be downloaded from {urls[0]}; put the file at {target}{known}"
    )
    response = next(filter(None, map(_request, urls)), None)
    if response is None:
        raise unreachable
    with response, replacing(target) as temporary:
        if not _save(response, temporary):
            raise unreachable
        _verify(temporary, target, digest, algorithm)


# ConnectionError and not OSError: a full disk must not pass for a dead network.
_NETWORK_ERRORS = (requests.RequestException, ConnectionError)


def _request(url: str) -> requests.Response | None:
    try:
        response = requests.get(url, stream=True, timeout=30)
        response.raise_for_status()
    except _NETWORK_ERRORS:
        return None
    return response


def _save(response: requests.Response, path: Path) -> bool:
    """Whether the whole body arrived at `path`."""
    try:
        with open(path, "wb") as file:
            for block in response.iter_content(1 << 20):
                file.write(block)
    except _NETWORK_ERRORS:
        return False
    return True


def _verify(path: Path, target: Path, digest: str | None, algorithm: str) -> None:
    if digest is None:
        return
    with open(path, "rb") as file:
        found = hashlib.file_digest(file, lambda: hashlib.new(algorithm, usedforsecurity=False)).hexdigest()
    if found != digest:
        raise OnestepError(
            f"checksum mismatch for {target}: {algorithm.upper()} {found}, expected {digest}; fetch the file again"
        )
