"""Files from the network: whole, verified where a checksum is published, and asked for by name when offline."""

import hashlib
from collections.abc import Sequence
from pathlib import Path

import requests

from onestep_bench.errors import OnestepError
from onestep_bench.files import replacing

# ConnectionError and not OSError: a full disk must not pass for a dead network.
_NETWORK_ERRORS = (requests.RequestException, ConnectionError)


def fetch(target: Path, urls: Sequence[str], md5: str | None = None) -> None:
    """Make `target` a file with checksum `md5`: the one that is there, or what the first of `urls` to answer sends.

    md5: None where no checksum is published. Raises OnestepError, naming file, address and folder, if nothing answers,
    and for a checksum that differs.
    """
    if target.exists():
        return _verify(target, target, md5)
    known = f" (MD5 {md5})" if md5 else ""
    unreachable = OnestepError(
        f"{target.name} is missing and cannot be downloaded from {urls[0]}; put the file at {target}{known}"
    )
    response = next(filter(None, map(_request, urls)), None)
    if response is None:
        raise unreachable
    with response, replacing(target) as temporary:
        if not _save(response, temporary):
            raise unreachable
        _verify(temporary, target, md5)


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


def _verify(path: Path, target: Path, md5: str | None) -> None:
    if md5 is None:
        return
    with open(path, "rb") as file:
        found = hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
    if found != md5:
        raise OnestepError(f"checksum mismatch for {target}: MD5 {found}, expected {md5}; fetch the file again")
