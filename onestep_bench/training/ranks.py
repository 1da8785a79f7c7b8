"""Several processes at one piece of work: who this one is, and the few exchanges that `training` and `study` need.

Ranks are what torchrun starts: processes whose environment holds RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and
MASTER_PORT (a notebook's kernel inherits them). They run the same code; rank 0 alone writes. In a process that is no
rank, every function here does nothing. The process group is joined at the first exchange and left at exit.

torch's meeting place is a port that answers whoever comes. A grid's cell names a file in its place (ONESTEP_RANKS).
"""

import atexit
import functools
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from onestep_bench.errors import OnestepError
from onestep_bench.store.notes import RANKS

T = TypeVar("T")

# Rank 0 may have to wait for another process that makes the same artifact, and the others for rank 0. A rank that died
# is noticed at once however long this is, since its connections close.
PATIENCE = timedelta(days=7)
_GATHERING = timedelta(minutes=30)  # in which all ranks must come to the file; as long as torch's own place gives them
_WHY = "onestep/why"


def count() -> int:
    """Number of ranks; 1 in a process that is none."""
    return _number("WORLD_SIZE", 1)


def index() -> int:
    """This process among the ranks, from 0."""
    return _number("RANK", 0) if count() > 1 else 0


def leads() -> bool:
    """Whether this process is the one that writes: rank 0, or the only one."""
    return index() == 0


def device() -> torch.device:
    """Where this process computes: the CUDA device if there is one (a rank's own, by LOCAL_RANK), else the CPU.

    Raises OnestepError for a rank without a device of its own.
    """
    if not torch.cuda.is_available():
        return torch.device("cpu")
    if count() == 1:
        return torch.device("cuda")
    place, visible = _number("LOCAL_RANK", index()), torch.cuda.device_count()
    if place >= visible:
        raise OnestepError(f"rank {index()} wants GPU {place}, and {visible} are visible; start one rank a GPU")
    return torch.device("cuda", place)


def device_name() -> str:
    """What a score row says of the device."""
    return torch.cuda.get_device_name() if torch.cuda.is_available() else f"CPU, {torch.get_num_threads()} threads"


def busy() -> float | None:
    """What else this machine did in the last minute, in cores: its load average beyond the threads of its ranks.

    None where the system does not tell.
    """
    try:
        load = os.getloadavg()[0]
    except (AttributeError, OSError):
        return None
    threads = 1 if device().type == "cuda" else torch.get_num_threads()
    return max(0.0, load - threads * of_machine())


def of_machine() -> int:
    """Number of ranks on this machine, as torchrun tells."""
    return _number("LOCAL_WORLD_SIZE", count())


def shared(value: T) -> T:
    """Rank 0's value, on every rank."""
    if count() == 1:
        return value
    values = [value]
    with _exchange() as group:
        dist.broadcast_object_list(values, src=0, group=group.patient)
    return values[0]


def gathered(value: T) -> list[T]:
    """Every rank's value, in their order, on rank 0; an empty list on the others."""
    if count() == 1:
        return [value]
    values = [None] * count() if leads() else None
    with _exchange() as group:
        dist.gather_object(value, values, dst=0, group=group.patient)
    return values or []


def average(tensors: Sequence[Tensor]) -> None:
    """Replace each tensor by its mean over the ranks, in place and in one exchange. All ranks get the same bits."""
    if count() == 1:
        return
    if tensors[0].is_cuda:
        # NCCL averages by itself, where they lie; a flat copy and its way back would cost a tenth of a step.
        with _exchange(), dist._coalescing_manager():
            for tensor in tensors:
                dist.all_reduce(tensor, op=dist.ReduceOp.AVG)
        return
    flat = torch.cat([tensor.flatten() for tensor in tensors])
    with _exchange():
        dist.all_reduce(flat)
    pieces = (flat / count()).split([tensor.numel() for tensor in tensors])
    torch._foreach_copy_(list(tensors), [piece.view_as(tensor) for piece, tensor in zip(pieces, tensors, strict=True)])


def own(items: Sequence[T]) -> Sequence[T]:
    """This rank's items: contiguous, in the ranks' order, and as many as any other's or one more."""
    first, last = (len(items) * rank // count() for rank in (index(), index() + 1))
    return items[first:last]


@contextmanager
def bound() -> Iterator[None]:
    """What ends one rank inside this block ends all of them, each with an OnestepError that says why.

    A rank that raises leaves the group, which closes its connections; the others notice at their next exchange.
    """
    try:
        yield
    except (Exception, KeyboardInterrupt) as error:
        _leave("" if isinstance(error, PeerEnded) else f"rank {index()}: {_told(error)}")
        raise


class PeerEnded(OnestepError):
    """Another rank raised, was killed, or cannot be reached any more."""


@dataclass
class _Group:
    """store: where last words are left; patient: a second group, whose members wait `PATIENCE` for each other.

    patient is None once this process has left: a reference would keep the connections open.
    """

    store: dist.Store
    patient: dist.ProcessGroup | None


@functools.cache
def _join() -> _Group:
    place = os.environ.get(RANKS)
    missing = [name for name in ("RANK", *(() if place else ("MASTER_ADDR", "MASTER_PORT"))) if name not in os.environ]
    if missing:
        raise OnestepError(f"WORLD_SIZE is {count()} without {', '.join(missing)}; start ranks with torchrun")
    backend, own = "gloo", None
    if torch.cuda.is_available():
        own = device()
        torch.cuda.set_device(own)
        backend = "cpu:gloo,cuda:nccl"
    try:
        store = _file(place) if place else next(dist.rendezvous("env://"))[0]
        dist.init_process_group(backend, store=store, rank=index(), world_size=count(), device_id=own)
        patient = dist.new_group(backend="gloo", timeout=PATIENCE)
    except RuntimeError as error:
        if dist.is_initialized():
            dist.destroy_process_group()
        raise OnestepError(f"rank {index()} of {count()} did not find the others ({_reason(error)})") from error
    atexit.register(_leave)
    return _Group(store, patient)


def _file(place: str) -> dist.Store:
    store = dist.FileStore(place, count())
    store.set_timeout(_GATHERING)
    return store


def _leave(last_words: str = "") -> None:
    if not dist.is_initialized():
        return
    group = _join()
    if last_words:
        group.store.compare_set(_WHY, "", last_words)  # the first to speak is the cause
    group.patient = None
    dist.destroy_process_group()


@contextmanager
def _exchange() -> Iterator[_Group]:
    group = _join()
    if group.patient is None:
        raise OnestepError("this rank left the others after an error; start all of them again")
    try:
        yield group
    except RuntimeError as error:  # torch.distributed's errors, of which gloo's are no more than that
        raise PeerEnded(_obituary(group.store, error)) from error


def _obituary(store: dist.Store, error: RuntimeError) -> str:
    try:
        why = store.get(_WHY).decode() if store.check([_WHY]) else ""
    except RuntimeError:  # the store went with the rank that kept it
        why = ""
    if why:
        return f"another rank ended: {why}"
    return f"another rank ended or is out of reach ({_reason(error)}); start all of them again"


def _told(error: BaseException) -> str:
    kind = "" if isinstance(error, OnestepError) else f"{type(error).__name__}: "
    return f"{kind}{error}".split("\n")[0]


def _reason(error: Exception) -> str:
    """What an error of torch.distributed says, without the place in its sources and advice for its developers."""
    text = str(error).strip().split("\n")[0]
    return text.rpartition("pair.cc:")[2].partition("] ")[2].split(". ")[0] or text[:200]


def _number(name: str, otherwise: int) -> int:
    text = os.environ.get(name, str(otherwise))
    if not text.isdecimal():
        raise OnestepError(f"{name}={text!r} in the environment is no rank's; start ranks with torchrun")
    return int(text)
