"""Pickles of other people, read without running anything of theirs.

A pickle is a program whose instructions may call any function of Python. This reader knows the few calls that rebuild
arrays, tensors and plain containers, does them itself, and refuses every other by name. What stood for an object
becomes a `Record`, which has a name and a state and does nothing. Files of `torch.save` and the model pickles of
NVlabs/edm, which carry their own source code, are read the same way.

Memory stays in proportion to the file: sizes that it claims are held against the bytes that it has.
"""

import codecs
import io
import math
import mmap
import pickle
import re
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

import numpy as np
import torch
from torch import Tensor

from onestep_bench.errors import OnestepError


@dataclass(eq=False)
class Record:
    """An object of the file, inert. name: its class, as the file calls it; state: what its attributes were."""

    name: str
    state: dict = field(default_factory=dict, repr=False)


def read(path: Path | str) -> object:
    """What a pickle or a file of `torch.save` holds: plain Python objects, numpy arrays, CPU tensors and `Record`s.

    Nothing of the file is run. Raises OnestepError, in one line, for a file that asks for anything but data (naming
    what it asked for), that is damaged, or that claims more than it holds.
    """
    try:
        with open(path, "rb") as file:
            if zipfile.is_zipfile(file):
                return _read_torch_zip(file)
            # A map never hands out more bytes than the file has, whatever length an instruction claims.
            content = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            if content[: len(_LEGACY_START)] == _LEGACY_START:
                raise _Refused("written by torch before 1.6; load it there with weights_only=True and save it again")
            return _Reader(content).load()
    except _Refused as refused:
        raise OnestepError(f"{path}: {refused}") from refused
    # A damaged pickle can raise anything.
    except Exception as error:
        raise OnestepError(f"{path} is damaged or no pickle ({_printable(error)}); fetch it again") from error


class _Refused(Exception):
    """The file wants something done that is not data."""


def _printable(text: object) -> str:
    """At most a hundred characters of a text that may come from the file, on one line."""
    return str(text)[:100].encode("unicode_escape").decode()


def _expect(condition: bool, what: str) -> None:
    if not condition:
        raise ValueError(what)


# --- calls that a file may ask for, each done by us


@dataclass(frozen=True)
class _Call:
    """What an allowed global of the file stands for."""

    name: str
    make: Callable

    def __call__(self, *arguments):
        return self.make(*arguments)


def _dictionary(items: object = ()) -> dict:
    pairs = list(items.items()) if isinstance(items, dict) else items
    _check_keys([key for key, _ in pairs])
    return dict(pairs)


def _check_keys(keys: list) -> None:
    # The hash of nested tuples can take for ever, or the interpreter's stack.
    _expect(all(isinstance(key, str | int | float | None) for key in keys), "a key that is no name or number")


def _names(items: object = ()) -> set:
    _expect(isinstance(items, list) and all(isinstance(item, str) for item in items), "a set of something but names")
    return set(items)


def _no_bytes() -> bytes:
    return b""  # the early protocols write empty bytes as a call


def _encoded(text: str, encoding: str) -> bytes:
    _expect(isinstance(text, str) and encoding in ("latin1", "latin-1"), "bytes in an unknown encoding")
    return codecs.encode(text, "latin1")


def _persistent(meta: dict) -> Record:
    """An object of NVlabs/edm's persistence machinery; `module_src`, its source code, is dropped unread."""
    _expect(isinstance(meta, dict) and isinstance(meta.get("class_name"), str), "a persistent object without a class")
    _expect(isinstance(meta.get("state"), dict), "a persistent object without a state")
    return Record(meta["class_name"], meta["state"])


@dataclass
class _DType:
    """A numpy type; its byte order arrives after the type is already referred to."""

    code: str
    order: str = "="

    def __call__(self) -> np.dtype:
        _expect(isinstance(self.code, str) and bool(re.fullmatch(r"[biufc]\d{1,2}", self.code)), "a type of no numbers")
        _expect(self.order in ("<", ">", "=", "|"), "an unknown byte order")
        return np.dtype(self.order + self.code)


def _dtype(code: str, *_: object) -> _DType:
    return _DType(code)


def _empty_array(*_: object) -> np.ndarray:
    return np.empty(0, np.uint8)


def _scalar(dtype: _DType, content: bytes | str) -> object:
    kind, content = dtype(), _encoded(content, "latin1") if isinstance(content, str) else content
    _expect(len(content) == kind.itemsize, "a scalar of the wrong length")
    return np.frombuffer(content, kind)[0]


def _array(content: bytes, dtype: _DType, shape: tuple, order: str) -> np.ndarray:
    return np.frombuffer(content, dtype()).reshape(shape, order=order).copy()


def _fill_array(array: np.ndarray, state: tuple) -> None:
    """Give an array its shape, type and content in place, since the file may refer to it already."""
    _, shape, dtype, fortran, content = state
    content = _encoded(content, "latin1") if isinstance(content, str) else content
    kind = dtype()
    _expect(isinstance(content, bytes | bytearray) and isinstance(shape, tuple), "an array of objects")
    _expect(all(type(length) is int and length >= 0 for length in shape), "an array of no shape")
    _expect(math.prod(shape) * kind.itemsize == len(content), "an array that claims more than the file has")
    array.__setstate__((1, shape, kind, bool(fortran), bytes(content)))


@dataclass(frozen=True)
class _Storage:
    """A tensor's storage: its type, and its bytes' number and name in the file it comes in."""

    dtype: torch.dtype
    key: str
    length: int


def _stored(content: bytes | memoryview, storage: _Storage) -> Tensor:
    _expect(len(content) == storage.length * storage.dtype.itemsize, "a storage that claims more than the file has")
    return (
        torch.frombuffer(bytearray(content), dtype=storage.dtype)
        if storage.length
        else torch.empty(0, dtype=storage.dtype)
    )


def _tensor(storage: Tensor, offset: int, size: tuple, stride: tuple, *_: object) -> Tensor:
    _expect(isinstance(storage, Tensor) and storage.ndim == 1, "a tensor without a storage")
    numbers = (offset, *size, *stride)
    _expect(len(size) == len(stride) and all(type(n) is int and n >= 0 for n in numbers), "a tensor of no shape")
    last = offset + sum((length - 1) * step for length, step in zip(size, stride, strict=True))
    # Strides of 0 would make any size of a single number.
    _expect(math.prod(size) <= len(storage) and last < max(len(storage), 1), "a tensor that claims more than it has")
    return torch.as_strided(storage, size, stride, offset)


def _parameter(tensor: Tensor, *_: object) -> Tensor:
    _expect(isinstance(tensor, Tensor), "a parameter without a tensor")
    return tensor


_STORAGES = {
    "FloatStorage": torch.float32,
    "DoubleStorage": torch.float64,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}
_CALLS = {
    "collections.OrderedDict": _dictionary,
    "dnnlib.util.EasyDict": _dictionary,
    "builtins.set": _names,
    "__builtin__.set": _names,
    "_codecs.encode": _encoded,
    "__builtin__.bytes": _no_bytes,
    "builtins.bytes": _no_bytes,
    "torch.Size": tuple,
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_parameter": _parameter,
    "torch.storage._load_from_bytes": lambda content: _load_storage(content),
    "torch_utils.persistence._reconstruct_persistent_obj": _persistent,
    "numpy.dtype": _dtype,
    "numpy.ndarray": _empty_array,
    **{
        f"numpy.{core}.{name}": make
        for core in ("core", "_core")
        for name, make in {
            "multiarray._reconstruct": _empty_array,
            "multiarray.scalar": _scalar,
            "numeric._frombuffer": _array,
        }.items()
    },
}
# Modules of torch inside a pickled network become records: only their names and states are taken.
_MODULES = "torch.nn.modules."


# --- the machine that follows a pickle's instructions

# Instructions that make data. Not among them: extension codes, classes of Python 1, buffers from outside.
_INSTRUCTIONS = (
    "MARK STOP POP POP_MARK DUP FLOAT INT BININT BININT1 LONG BININT2 NONE BINPERSID REDUCE STRING BINSTRING "
    "SHORT_BINSTRING UNICODE BINUNICODE APPEND BUILD GLOBAL DICT EMPTY_DICT APPENDS GET BINGET LONG_BINGET LIST "
    "EMPTY_LIST PUT BINPUT LONG_BINPUT SETITEM TUPLE EMPTY_TUPLE SETITEMS BINFLOAT PROTO NEWOBJ TUPLE1 TUPLE2 TUPLE3 "
    "NEWTRUE NEWFALSE LONG1 LONG4 BINBYTES SHORT_BINBYTES SHORT_BINUNICODE BINUNICODE8 BINBYTES8 EMPTY_SET ADDITEMS "
    "STACK_GLOBAL MEMOIZE FRAME BYTEARRAY8"
)


# The Python version, not the C one: the C one sets aside as much memory as an instruction claims, and keeps its
# instructions to itself.
class _Reader(pickle._Unpickler):
    def __init__(self, file, storage: Callable[[_Storage], object] | None = None):
        super().__init__(file, encoding="latin1")
        self._storage = storage

    def find_class(self, module: str, name: str) -> object:
        full = f"{module}.{name}"
        if full in _CALLS:
            return _Call(full, _CALLS[full])
        if full.startswith(_MODULES):
            return _Call(full, lambda: Record(full))
        if module == "torch" and name in _STORAGES:
            return _STORAGES[name]
        raise _Refused(f"refused to unpickle {_printable(full)}: only data are read, no code; do not use this file")

    def persistent_load(self, pid: tuple) -> object:
        _expect(self._storage is not None, "a reference to something outside the file")
        kind, dtype, key, _, length, *_ = pid
        _expect(kind == "storage" and isinstance(dtype, torch.dtype), "a reference to no storage")
        _expect(type(length) is int and length >= 0, "a storage of no length")
        return self._storage(_Storage(dtype, str(key), length))

    def _reduce(self):
        arguments, call = self.stack.pop(), self.stack.pop()
        _expect(isinstance(call, _Call) and isinstance(arguments, tuple), "a call of no function")
        self.append(call(*arguments))

    def _build(self):
        state, built = self.stack.pop(), self.stack[-1]
        if isinstance(built, Record) and isinstance(state, dict):
            built.state.update(state)
        elif isinstance(built, np.ndarray):
            _fill_array(built, state)
        elif isinstance(built, _DType):
            built.order = state[1]
        else:  # the attributes of a dictionary (torch leaves version numbers there) are nobody's data
            _expect(isinstance(built, dict), "a state of something that has none")

    def _append(self):
        item = self.stack.pop()
        self._extend([item])

    def _appends(self):
        self._extend(self.pop_mark())

    def _extend(self, items: list):
        _expect(isinstance(self.stack[-1], list), "items for no list")
        self.stack[-1].extend(items)

    def _setitem(self):
        value, key = self.stack.pop(), self.stack.pop()
        self._update([key, value])

    def _setitems(self):
        self._update(self.pop_mark())

    def _dict(self):
        items = self.pop_mark()
        self.append({})
        self._update(items)

    def _update(self, items: list):
        _expect(isinstance(self.stack[-1], dict), "items for no dictionary")
        _check_keys(items[::2])
        self.stack[-1].update(zip(items[::2], items[1::2], strict=True))

    def _additems(self):
        items = self.pop_mark()
        _expect(isinstance(self.stack[-1], set), "items for no set")
        self.stack[-1].update(_names(items))

    def _bytearray(self):
        length = int.from_bytes(self.read(8), "little")
        content = self.read(length)
        _expect(len(content) == length, "bytes that are not there")
        self.append(bytearray(content))

    dispatch = {
        getattr(pickle, name)[0]: pickle._Unpickler.dispatch[getattr(pickle, name)[0]] for name in _INSTRUCTIONS.split()
    } | {
        pickle.REDUCE[0]: _reduce,
        pickle.NEWOBJ[0]: _reduce,  # the class called without arguments
        pickle.BUILD[0]: _build,
        pickle.APPEND[0]: _append,
        pickle.APPENDS[0]: _appends,
        pickle.SETITEM[0]: _setitem,
        pickle.SETITEMS[0]: _setitems,
        pickle.DICT[0]: _dict,
        pickle.ADDITEMS[0]: _additems,
        pickle.BYTEARRAY8[0]: _bytearray,
    }


# --- torch's own formats

_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
_LEGACY_START = pickle.dumps(_LEGACY_MAGIC, 2)


def _load_storage(content: bytes) -> Tensor:
    """The storage inside a pickled tensor: bytes which are a whole file of the old torch.save.

    That is five pickles in a row (magic number, version, machine, storage, its name), the length, and the numbers.
    """
    _expect(isinstance(content, bytes), "a storage without bytes")
    stream = io.BytesIO(content)
    magic, _, _, storage, names = (_Reader(stream, lambda storage: storage).load() for _ in range(5))
    _expect(magic == _LEGACY_MAGIC and isinstance(storage, _Storage), "something else in the place of a storage")
    _expect(names == [storage.key], "more than one storage in the place of one")
    length = int.from_bytes(stream.read(8), "little")
    _expect(length == storage.length, "a storage of another length than it claims")
    return _stored(stream.read(), storage)


def _read_torch_zip(file) -> object:
    """An archive of data.pkl and a file for every storage, none of them compressed."""
    with zipfile.ZipFile(file) as archive:
        entries = {info.filename: info for info in archive.infolist()}
        for name, info in entries.items():
            if name.startswith("/") or "\\" in name or ".." in PurePosixPath(name).parts:
                raise _Refused(f"entry {_printable(name)} points outside the archive; do not use this file")
            if info.compress_type != zipfile.ZIP_STORED or info.file_size != info.compress_size:
                raise _Refused(
                    f"entry {_printable(name)} is compressed, as torch.save never does; do not use this file"
                )
        _expect(sum(info.file_size for info in entries.values()) <= file.seek(0, 2), "entries that share their bytes")
        prefix = next((name.removesuffix("data.pkl") for name in entries if name.endswith("/data.pkl")), None)
        _expect(prefix is not None, "an archive without data.pkl")
        tensors: dict[str, Tensor] = {}

        def load(storage: _Storage) -> Tensor:
            if storage.key not in tensors:
                tensors[storage.key] = _stored(archive.read(f"{prefix}data/{storage.key}"), storage)
            return tensors[storage.key]

        return _Reader(io.BytesIO(archive.read(f"{prefix}data.pkl")), load).load()
