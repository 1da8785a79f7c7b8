"""Where cells run: workers on this machine, a running Dask scheduler, or a cluster that a YAML file describes.

A worker's slot is one GPU, or one share of the CPU's cores. The workers of this machine are as many as its slots,
each pinned to its own; only where a grid has cells on several devices does a worker own as many slots as the largest of
them asks for, and count them as its Dask resource `gpus`.
"""

import importlib
import inspect
import logging
import os
import shutil
import subprocess
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Lock

import dask
from distributed import Client, Nanny, Scheduler, Security, SpecCluster, SSHCluster, WorkerPlugin
from distributed.core import Status
from distributed.deploy import Cluster
from tornado.ioloop import PeriodicCallback

from onestep_bench.errors import OnestepError, near_miss
from onestep_bench.grid import security
from onestep_bench.grid.cells import Cell
from onestep_bench.grid.document import read_yaml
from onestep_bench.grid.progress import inside
from onestep_bench.store.files import own_temporary

_TIMEOUT = 20  # seconds to find a scheduler in
_LOOK = 2000  # milliseconds between two looks at whether all workers are there
# Dask looks at its own threads a hundred times a second, which on this machine's cores takes a fifth of one from the
# cells (two workers that only wait: 18 % of a core as it comes, 4 % so).
_CALM = {
    "distributed.worker.profile.enabled": False,
    "distributed.admin.tick.interval": "1s",
    "distributed.admin.system-monitor.interval": "5s",
}
# A worker that freezes is noticed within twice this time; its nanny ends it, and its cell begins again elsewhere. No
# shorter: as a suspended runner goes on, none of its workers has been heard of for long.
_FREEZE = {"distributed.scheduler.worker-ttl": "60s"}
_FILE_KEYS = ("class", "arguments", "scale", "adapt")
_THREAD_LIMITS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


@contextmanager
def connected(
    gpus: int,
    *,
    shared: Path,
    workers: int | None = None,
    scheduler: str | None = None,
    cluster: Path | None = None,
    insecure: bool = False,
    dashboard: bool = True,
) -> Iterator[Client]:
    """A client of the workers that cells run on; what was started here stops with it.

    gpus: the most devices that one cell asks for. workers: slots of this machine to use, by default all. scheduler:
    address of a running one. cluster: YAML file of a cluster class and its arguments. shared: a folder that all
    machines see, for a cluster's certificates. insecure: whether connections may be in the clear. dashboard: whether
    what is started here has one.
    Raises OnestepError if there is no such scheduler, file, class or device, or if it is not encrypted.
    """
    # What the user should know of lost workers and connections, the engine tells.
    for name in ("distributed", "distributed.client", "tornado"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    warnings.filterwarnings("ignore", message="Port 8787 is already in use")  # the dashboard takes another
    if scheduler:
        with _client(scheduler, security.of_user(scheduler, insecure=insecure)) as client:
            yield client
        return
    how = {"insecure": insecure, "dashboard": dashboard}
    here = _described(cluster, shared, **how) if cluster else _local(gpus, workers, **how)
    # Without a dashboard the port has nothing to tell; its other pages do no harm, but name cells and files.
    silent = {} if dashboard else {"distributed.scheduler.http.routes": []}
    further = () if cluster else (OwnSession(),)
    with dask.config.set(_FREEZE | silent), here as started, _client(started, plugins=further) as client:
        yield client


@contextmanager
def _client(
    address: object, credentials: Security | None = None, *, plugins: Iterable[WorkerPlugin] = ()
) -> Iterator[Client]:
    try:
        client = Client(address, timeout=_TIMEOUT, set_as_default=False, security=credentials)
    except (OSError, ValueError) as error:
        if credentials:
            raise OnestepError(
                f"no scheduler at {address} answers to your certificate: none runs there, or it trusts others; "
                "see Dask's `tls`"
            ) from error
        raise OnestepError(f"no scheduler answers at {address}; start one with `dask scheduler`") from error
    try:
        _equip(client, [Devices(), Inside(), *plugins])
        yield client
    finally:
        client.close()


def _equip(client: Client, plugins: Iterable[WorkerPlugin]) -> None:
    """Every worker is told at once, so the death of one is heard here."""
    try:
        for plugin in plugins:
            client.register_plugin(plugin)
    except OSError as error:
        raise OnestepError(f"lost the scheduler or a worker as the run began ({error}); run again") from error


# ---- this machine ----------------------------------------------------------------------------------------------------


@contextmanager
def _local(gpus: int, workers: int | None, *, insecure: bool, dashboard: bool) -> Iterator[SpecCluster]:
    devices, cores = visible_gpus(), len(os.sched_getaffinity(0))
    # Notebooks are code: nobody but this machine may send any, and of its users only this one, who has the certificate.
    own = None if insecure else Security.temporary()
    shown = {"dashboard_address": security.LOOPBACK} if dashboard else security.NO_DASHBOARD
    scheduler = {"host": "127.0.0.1", "protocol": "tcp" if insecure else "tls", "security": own, **shown}
    specs = worker_specs(devices, cores, gpus, workers)
    for spec in specs.values():
        # Not below /tmp/dask-scratch-space, which is whoever's came first.
        spec["options"] |= {"security": own, "local_directory": str(own_temporary())}
    options = {"workers": specs, "scheduler": {"cls": Scheduler, "options": scheduler}, "security": own}
    with dask.config.set(_CALM), _started(options) as cluster:
        cluster.loop.add_callback(PeriodicCallback(lambda: _whole_again(cluster), _LOOK).start)
        yield cluster


async def _whole_again(cluster: SpecCluster) -> None:
    """Start workers in the place of those that Dask has given up.

    It does so with one that takes longer to come back than `distributed.deploy.lost-worker-timeout`, as on a busy
    machine, or that cannot be started: nobody would execute the cells that are left, and the run would wait forever.
    """
    if cluster.status is not Status.running:
        return
    for name in [name for name, worker in cluster.workers.items() if worker.status in (Status.failed, Status.closed)]:
        del cluster.workers[name]
    if cluster.workers.keys() != cluster.worker_spec.keys():
        with suppress(RuntimeError, OSError):  # it could not be started now either; the next look tries again
            await cluster


def _started(options: dict) -> SpecCluster:
    try:
        return SpecCluster(**options, silence_logs=logging.CRITICAL)
    except RuntimeError as error:
        raise OnestepError(
            f"{len(options['workers'])} workers could not be started ({error}), for want of memory perhaps; "
            "run again, or with fewer --workers"
        ) from error


def worker_specs(devices: list[str], cores: int, gpus: int, workers: int | None) -> dict:
    """What Dask's SpecCluster starts on a machine: a worker per slot, or per `gpus` slots.

    Each has its share of the cores (never more threads than OMP_NUM_THREADS says, if it is set) and of the devices;
    more workers than devices share them in turn. Raises OnestepError if there are devices, but fewer than `gpus`.
    """
    if devices and gpus > len(devices):
        raise OnestepError(f"a stage asks for {gpus} gpus, and this machine shows {len(devices)}; ask for fewer")
    slots = max(gpus, workers or len(devices) or cores)
    threads = os.environ.get("OMP_NUM_THREADS") or str(max(1, cores // slots))
    specs = {}
    for index in range(slots // gpus):
        own = [devices[(index * gpus + i) % len(devices)] for i in range(gpus)] if devices else []
        environment = dict.fromkeys(_THREAD_LIMITS, threads)
        if own:
            environment["CUDA_VISIBLE_DEVICES"] = ",".join(own)
            environment["TORCHINDUCTOR_COMPILE_THREADS"] = str(max(1, cores // slots))  # else each takes every core
        options = {
            "nthreads": gpus,
            "env": environment,
            "resources": {"gpus": gpus},
            "memory_limit": None,  # workers hold nothing; cells are processes of their own
            "silence_logs": logging.CRITICAL,
            "host": "127.0.0.1",
            "dashboard_address": "127.0.0.1:0",
        }
        specs[index] = {"cls": Nanny, "options": options}
    return specs


def visible_gpus() -> list[str]:
    """Names, as CUDA_VISIBLE_DEVICES takes them, of the GPUs this process may use. Does not import torch."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is not None:
        return [name.strip() for name in named.split(",") if name.strip() not in ("", "-1")]
    if not shutil.which("nvidia-smi"):
        return []
    query = ["nvidia-smi", "--query-gpu=index", "--format=csv,noheader"]
    found = subprocess.run(query, capture_output=True, text=True, timeout=60, check=False)
    return found.stdout.split() if found.returncode == 0 else []


class OwnSession(WorkerPlugin):
    """Takes a worker out of the terminal's process group: Ctrl-C is for the runner, which then ends its workers."""

    name = "onestep-bench-session"

    def setup(self, worker) -> None:
        """Called on each worker, restarted ones too."""
        os.setpgid(0, 0)


class Devices(WorkerPlugin):
    """The devices of a worker, handed to its cells so that no two share one."""

    name = "onestep-bench-devices"
    idempotent = True  # a second run on the same workers must not hand them out again

    def setup(self, worker) -> None:
        """Called on each worker as it joins."""
        self.free = visible_gpus()
        self.lock = Lock()

    @contextmanager
    def taken(self, count: int) -> Iterator[dict[str, str]]:
        """Environment of a cell on `count` devices: those of the worker as they are, if it has too few to divide."""
        with self.lock:
            own, self.free = (self.free[:count], self.free[count:]) if len(self.free) >= count else ([], self.free)
        try:
            yield {"CUDA_VISIBLE_DEVICES": ",".join(own)} if own else {}
        finally:
            with self.lock:
                self.free = [*own, *self.free]


class Inside(WorkerPlugin):
    """A column in the dashboard's table of workers, 'inside': how far its cells are inside themselves."""

    name = "onestep-bench-inside"
    idempotent = True

    def setup(self, worker) -> None:
        """Called on each worker as it joins; the column is there from then on, and sent with its heartbeats."""
        self.cells: list[tuple[Cell, Path]] = []
        worker.metrics["inside"] = lambda worker: "; ".join(filter(None, (inside(*one) for one in list(self.cells))))

    @contextmanager
    def shown(self, cell: Cell, folder: Path) -> Iterator[None]:
        """Show a cell, which keeps its executed notebook in `folder`, inside this block."""
        self.cells.append((cell, folder))
        try:
            yield
        finally:
            self.cells.remove((cell, folder))


# ---- clusters from files ---------------------------------------------------------------------------------------------


@contextmanager
def _described(path: Path, shared: Path, *, insecure: bool, dashboard: bool) -> Iterator[object]:
    """The cluster of a YAML file: `class`, its `arguments`, and how to `scale` or `adapt` it."""
    document = _read(path)
    make, where = _class(document["class"], path), f"{path}: {document['class']}"
    given = document.get("arguments") or {}
    with _arguments_of(where, make, given, shared, insecure=insecure, dashboard=dashboard) as arguments:
        try:
            cluster = make(**arguments)
        except (TypeError, ValueError, OSError, RuntimeError) as error:
            raise OnestepError(f"{where}: {str(error).strip().splitlines()[0]}") from error
        try:
            security.held_to(cluster.scheduler_address, where, insecure=insecure)
            for verb in ("scale", "adapt"):
                if verb in document:
                    _call(getattr(cluster, verb), document[verb], f"{path}: {verb}")
            yield cluster
        finally:
            cluster.close()


@contextmanager
def _arguments_of(where: str, make: object, given: dict, shared: Path, **how: bool) -> Iterator[dict]:
    try:
        inspect.signature(make).bind(**given)
    except TypeError as error:
        raise OnestepError(f"{where}: {error}") from error
    with security.arranged(make, given, shared, where, **how) as arguments:
        yield arguments


def _read(path: Path) -> dict:
    if not os.path.isfile(path):
        raise OnestepError(f"cannot read {path}: there is no such file; see params/clusters for examples")
    document = read_yaml(path)
    if not isinstance(document.get("class"), str):
        raise OnestepError(f"{path}: name a cluster class, such as `class: dask_jobqueue.SLURMCluster`")
    for key, value in document.items():
        if key not in _FILE_KEYS:
            raise OnestepError(f"{path}: unknown key {key!r}{near_miss(str(key), _FILE_KEYS)}")
        if key != "class" and not isinstance(value, dict):
            raise OnestepError(f"{path}: {key} must be a mapping (argument: value), not {type(value).__name__}")
    return document


def _class(name: str, path: Path) -> object:
    module, _, attribute = name.rpartition(".")
    try:
        found = getattr(importlib.import_module(module), attribute)
    except ModuleNotFoundError as error:
        hint = "pip install 'onestep-bench[cluster]'" if "jobqueue" in name else f"pip install {error.name}"
        raise OnestepError(f"{path}: no package {error.name!r} is installed; {hint}") from error
    except (AttributeError, ValueError, TypeError, ImportError) as error:
        raise OnestepError(f"{path}: there is no cluster class {name!r}") from error
    # os.system takes arguments too.
    if found is not SSHCluster and not (isinstance(found, type) and issubclass(found, Cluster)):
        raise OnestepError(f"{path}: {name!r} is no cluster class; see params/clusters for examples")
    return found


def _call(method, arguments: dict, where: str) -> None:
    try:
        method(**arguments)
    except TypeError as error:
        raise OnestepError(f"{where}: {error}") from error
