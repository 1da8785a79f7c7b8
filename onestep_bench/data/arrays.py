"""Files of numpy.savez, read so that no more memory is asked for than what stands in them can fill."""

import math
import os
import zipfile
from pathlib import Path
from tokenize import TokenError

import numpy as np

from onestep_bench.data.archives import DAMAGE
from onestep_bench.errors import OnestepError

# numpy sets aside what a header claims before it reads a number; constant arrays shrink a thousandfold.
_GAIN, _SMALL = 1100, 1 << 20


def read_npz(path: Path) -> dict[str, np.ndarray]:
    """The arrays of an npz by name; no objects. Raises OnestepError for what is damaged or claims more than it has."""
    if not (os.path.isfile(path) and os.access(path, os.R_OK)):
        raise OnestepError(f"cannot read {path}: there is no such file, or not for you; correct the path")
    try:
        with zipfile.ZipFile(path) as archive:
            infos = [info for info in archive.infolist() if info.filename.endswith(".npy")]
            return {info.filename.removesuffix(".npy"): _array(archive, info) for info in infos}
    # A header is a piece of Python.
    except (*DAMAGE, SyntaxError, TokenError, TypeError, LookupError, OverflowError) as error:
        raise OnestepError(
            f"cannot read {path}: {path.name} is damaged ({error}); fetch it again, or write it with numpy.savez"
        ) from error


def _array(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> np.ndarray:
    with archive.open(info) as file:
        version = np.lib.format.read_magic(file)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, _, kind = read(file)
    claimed = math.prod(shape) * kind.itemsize
    if min(shape, default=0) < 0 or claimed > min(info.file_size, _GAIN * info.compress_size + _SMALL):
        raise ValueError(f"{info.filename} claims {kind} {shape}, more than it has")
    with archive.open(info) as file:
        return np.lib.format.read_array(file, allow_pickle=False)
