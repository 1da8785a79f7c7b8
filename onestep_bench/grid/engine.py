"""Cells to Dask: every cell once, in the order of its needs, on whatever workers there are.

The runner only hands out cells whose needs are done, and hears how they ended. `execution` runs them on the workers,
and the executed notebooks say what is done: a run that is killed, or that shares its folder with another, loses
nothing. The workers must see the runner's files under the runner's paths.
"""

import os
import queue
import sys
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import CancelledError
from contextlib import closing
from graphlib import TopologicalSorter
from pathlib import Path

from distributed import Client, Future, KilledWorker, Reschedule, get_worker
from tqdm import tqdm

from onestep_bench.errors import OnestepError
from onestep_bench.grid import clusters, execution, progress, security
from onestep_bench.grid.cells import RUNNING, Cell, Grid, Status, executed_path, failed_path, scratch_path, status_of
from onestep_bench.grid.locks import is_held
from onestep_bench.grid.schedule import expected, urgency
from onestep_bench.store.artifacts import FRESH, lock_of, root
from onestep_bench.store.files import share
from onestep_bench.store.locks import check_locks
from onestep_bench.units import duration

TRIES = 2  # of a cell that fails, and not by a user's mistake
_BAR = "{bar:12} {n_fmt}/{total_fmt} cells{postfix}"
_PATHS = ("ONESTEP_STORE", "ONESTEP_DATA")  # settings that hold paths


def run(
    grid: Grid,
    *,
    store: Path | str | None = None,
    workers: int | None = None,
    scheduler: str | None = None,
    cluster: Path | None = None,
    insecure: bool = False,
    dashboard: bool = True,
    after: Callable[[list[Status]], None] = lambda statuses: None,
) -> list[Status]:
    """Execute every cell that is not done yet, telling the terminal; returns the final status of every cell.

    store: artifact store for the cells (their ONESTEP_STORE). workers, scheduler, cluster, insecure,
    dashboard: see `clusters.connected`. after: called with all statuses whenever a cell is done.
    Raises OnestepError if the folder cannot be written, or if there are no such workers.
    """
    try:
        grid.executed.mkdir(parents=True, exist_ok=True)
        for folder in (grid.out, grid.executed):
            share(folder)
    except OSError as error:
        raise OnestepError(f"cannot write {grid.out}: {error.strerror}; choose another folder with --out") from error
    found = [status_of(cell, grid.executed) for cell in grid.cells]
    # A failure of an earlier run is one more cell to do.
    known = {old.cell.id: old if old.state == "done" else Status(old.cell, "to do") for old in found}
    pending = [status.cell for status in known.values() if status.state != "done"]
    done = len(known) - len(pending)
    print(f"{grid.name}: {len(known)} cells, {done} done, {len(pending)} to do", flush=True)
    if not pending:
        return list(known.values())
    settings = _settings(store)
    check_locks(scratch_path(pending[0], grid.executed).parent, "choose another folder with --out")
    check_locks(Path(settings["ONESTEP_STORE"]), "choose another store with --store or ONESTEP_STORE")
    gpus = max(cell.gpus for cell in pending)
    how = {"insecure": insecure, "dashboard": dashboard, "shared": grid.out}
    with (
        clusters.connected(gpus, workers=workers, scheduler=scheduler, cluster=cluster, **how) as client,
        closing(
            run_cells(
                pending,
                grid.executed,
                settings,
                client,
                seconds=expected(list(known.values()), grid.executed),
                slots=None if scheduler or cluster else _slots(client),
            )
        ) as statuses,
        # disable=None: no bar where stderr is a file.
        tqdm(total=len(known), initial=done, disable=None, bar_format=_BAR) as bar,
    ):
        bar.write(_introduction(client, gpus, dashboard=dashboard or bool(scheduler)))
        if insecure:
            bar.write(security.OPEN)
        for status in statuses:
            if status is None:
                _refresh(bar, known.values(), grid)
                continue
            bar.write(_line(status, grid.executed))
            sys.stdout.flush()
            if status.state in ("done", "failed", "skipped"):
                known[status.cell.id] = status
                bar.update()
            if status.state == "done":
                after(list(known.values()))
    return _kept(list(known.values()), grid)


def _kept(statuses: list[Status], grid: Grid) -> list[Status]:
    """The statuses, with those whose executed notebook somebody removed meanwhile to be done again."""
    gone = [s for s in statuses if s.state == "done" and not executed_path(s.cell, grid.executed).exists()]
    if not gone:
        return statuses
    print(f"{len(gone)} executed notebooks were removed from {grid.executed} meanwhile; run again", flush=True)
    return [Status(status.cell, "to do") if status in gone else status for status in statuses]


def _refresh(bar: tqdm, known: Iterable[Status], grid: Grid) -> None:
    if not bar.disable:
        statuses = progress.with_running(known, grid.executed)
        inside = [word for status in statuses if (word := progress.share(status, grid.executed))]
        bar.set_postfix_str("; ".join([progress.in_words(statuses), *inside]))


def run_cells(
    cells: Iterable[Cell],
    folder: Path,
    settings: Mapping[str, str],
    client: Client,
    *,
    seconds: Mapping[str, float] | None = None,
    slots: int | None = None,
) -> Iterator[Status | None]:
    """Execute cells on the client's workers; yields how each ends: 'done', 'failed' or 'skipped'.

    A need that is not among the cells counts as done. A failed cell is tried once more, unless what failed is its
    user's mistake; then it stops its dependants and nothing else. Before a cell's end it yields 'running' as it starts,
    'waiting' if another run executes it or another process makes what it needs (then it begins again when that is
    there, and its worker takes other cells), 'again' as it failed for the first time, and None for every second in
    which nothing happened.
    When it is closed, or interrupted, the cells that still run are ended.
    seconds: what cells are expected to take, by id: those on the longest way to the end begin first. slots: see
    `_Flights`.
    """
    by_id = {cell.id: cell for cell in cells}
    order = TopologicalSorter({cell.id: [need for need in cell.needs if need in by_id] for cell in by_id.values()})
    order.prepare()
    unmet: set[str] = set()
    failures: Counter[str] = Counter()
    several = any(cell.gpus > 1 for cell in by_id.values())
    urgent = urgency(by_id.values(), seconds or {})
    flights = _Flights(client, folder, settings, several=several, slots=slots, urgent=urgent)
    try:
        while order.is_active():
            for cell in map(by_id.get, order.get_ready()):
                missing = next((need for need in cell.needs if need in unmet), None)
                if missing is None:
                    flights.add(cell)
                    continue
                unmet.add(cell.id)
                order.done(cell.id)
                yield Status(cell, "skipped", why=f"needs {missing}")
            for status in flights.news() if flights else ():
                if status is None or status.state in ("running", "waiting"):
                    yield status
                    continue
                failures[status.cell.id] += status.state == "failed"
                if status.state == "failed" and not status.mistake and failures[status.cell.id] < TRIES:
                    flights.add(status.cell)
                    yield Status(status.cell, "again", status.seconds, status.why)
                    continue
                if status.state != "done":
                    unmet.add(status.cell.id)
                order.done(status.cell.id)
                yield status
    finally:
        flights.end()


class _Flights:
    """The cells whose needs are done: ready, with Dask, or waiting for what another process makes.

    slots: how many devices there are, if that is known and stays so; then Dask is given no more than fit, so that of
    those that are ready the most urgent always begins first. A cluster that grows with its backlog is shown all of it.
    """

    def __init__(
        self,
        client: Client,
        folder: Path,
        settings: Mapping[str, str],
        *,
        several: bool,
        slots: int | None,
        urgent: Mapping[str, float],
    ):
        self.client, self.folder, self.settings = client, folder, settings
        self.several, self.slots, self.urgent = several, slots, urgent
        self.ready: list[Cell] = []
        self.parked: dict[Path, list[Cell]] = {}
        self.open: dict[Future, Cell] = {}
        self.landed: queue.SimpleQueue[Future] = queue.SimpleQueue()
        self.told: set[tuple[str, str]] = set()

    def __bool__(self) -> bool:
        return bool(self.ready or self.parked or self.open)

    def add(self, cell: Cell) -> None:
        """A cell that can begin."""
        self.ready.append(cell)
        self.ready.sort(key=lambda cell: -self.urgent[cell.id])  # stable: equals in the grid's order

    def _fill(self) -> None:
        used = sum(cell.gpus for cell in self.open.values())
        while self.ready and (self.slots is None or not self.open or used + self.ready[0].gpus <= self.slots):
            used += self.ready[0].gpus
            self._start(self.ready.pop(0))

    def _start(self, cell: Cell) -> None:
        future = self.client.submit(
            _on_worker,
            cell,
            self.folder,
            dict(self.settings) | {"ONESTEP_CELL": cell.digest} | ({FRESH: "1"} if cell.fresh else {}),
            key=f"{cell.id}-{uuid.uuid4().hex}",  # begins as the cell does, for the dashboard; never shared
            resources={"gpus": cell.gpus} if self.several else None,
            priority=self.urgent[cell.id],
            pure=False,
        )
        self.open[future] = cell
        future.add_done_callback(self.landed.put)

    def news(self) -> Iterator[Status | None]:
        """What the next second brings: one ending, or else the cells that started, or else None."""
        self._fill()
        try:
            future = self.landed.get(timeout=1)
        except queue.Empty:
            self._unpark()
            yield from self._started() or [None]
            return
        cell = self.open.pop(future)
        yield from self._once(cell, "running")
        status = self._ending(future, cell)
        if status.state == "busy":
            self._postpone(cell, status.why)
            yield from self._once(cell, "waiting", status.why)
            return
        yield status

    def _postpone(self, cell: Cell, artifact: str) -> None:
        if artifact:
            lock = lock_of(Path(self.settings["ONESTEP_STORE"]) / artifact)
            self.parked.setdefault(lock, []).append(cell)
            self.told.discard((cell.id, "running"))
        else:  # another run executes it: behind all others that are ready
            self.ready.append(cell)

    def _unpark(self) -> None:
        for lock in [lock for lock in self.parked if not is_held(lock)]:
            for cell in self.parked.pop(lock):
                self.add(cell)

    def end(self) -> None:
        """Cancel what is open; workers end its processes, which is waited for a moment."""
        if not self.open:
            return
        self.client.cancel(list(self.open), force=True)
        patience = time.monotonic() + 5
        while self._running() and time.monotonic() < patience:
            time.sleep(0.05)

    def _started(self) -> list[Status]:
        return [status for cell in self._running() for status in self._once(cell, "running")]

    def _running(self) -> list[Cell]:
        return [cell for cell in self.open.values() if (scratch_path(cell, self.folder) / RUNNING).exists()]

    def _once(self, cell: Cell, state: str, why: str = "") -> list[Status]:
        new = (cell.id, state) not in self.told
        self.told.add((cell.id, state))
        return [Status(cell, state, why=why)] if new else []

    def _ending(self, future: Future, cell: Cell) -> Status:
        try:
            return future.result()
        except KilledWorker as error:
            count = error.allowed_failures + 1
            return execution.file_loss(cell, self.folder, f"its worker died, {count} times")
        except CancelledError as error:
            raise OnestepError("lost the scheduler; run again, finished cells stay") from error
        except Exception as error:  # whatever it was, on whatever machine: this cell's failure, and no other's
            return execution.file_loss(cell, self.folder, f"{type(error).__name__}: {error}".splitlines()[0])


def _on_worker(cell: Cell, folder: Path, settings: dict[str, str]) -> Status:
    """Runs in a thread of a Dask worker."""
    worker = get_worker()
    key = worker.get_current_task()

    def unwanted() -> bool:
        task = worker.state.tasks.get(key)  # gone or cancelled if the runner was interrupted, or died
        return task is None or task.state == "cancelled" or worker.status.name in ("closing", "closed", "failed")

    inside = worker.plugins[clusters.Inside.name].shown(cell, folder)
    with worker.plugins[clusters.Devices.name].taken(cell.gpus) as devices, inside:
        status = execution.execute(cell, folder, {**_inherited(), **settings, **devices}, unwanted=unwanted)
    if status.state == "to do":
        raise Reschedule  # it is this worker that ends; if the cell itself is not wanted any more, nobody hears
    return status


def _inherited() -> dict[str, str]:
    """A worker's environment without what Dask sets for its own sake.

    Its nannies make malloc hand memory back at once, which halves the speed of training on a CPU.
    """
    return {key: value for key, value in os.environ.items() if key != "MALLOC_TRIM_THRESHOLD_"}


def _settings(store: Path | str | None) -> dict[str, str]:
    """What cells must know on whatever machine, in whatever folder: the runner's ONESTEP_ variables, paths absolute."""
    settings = {key: value for key, value in os.environ.items() if key.startswith("ONESTEP_")}
    settings["ONESTEP_STORE"] = str(store or root())
    settings |= {key: str(Path(settings[key]).expanduser().absolute()) for key in _PATHS if key in settings}
    # Progress bars in an executed notebook are hundreds of lines of noise.
    return settings | {"TQDM_DISABLE": "1"}


def _slots(client: Client) -> int:
    return sum(worker["nthreads"] for worker in client.scheduler_info(n_workers=-1)["workers"].values())


def _introduction(client: Client, gpus: int, *, dashboard: bool) -> str:
    workers = client.scheduler_info(n_workers=-1)["workers"].values()
    shown = f"dashboard {client.dashboard_link}" if dashboard else "no dashboard"
    lines = [f"{len(workers)} workers, {_slots(client)} cells at a time; {shown}"]
    if not workers:
        lines[0] = f"no workers yet, cells wait for them; {shown}"
    elif gpus > 1 and not any(worker["resources"].get("gpus", 0) >= gpus for worker in workers):
        lines.append(f"no worker offers {gpus} gpus yet: start some with `dask worker --resources gpus={gpus}`")
    return "\n".join(lines)


def _line(status: Status, folder: Path) -> str:
    name, seconds = status.cell.id, duration(status.seconds)
    if status.state == "skipped":
        return f"skipped  {name} ({status.why})"
    if status.state == "failed":
        return f"FAILED   {name}  {seconds}  {status.why}  see {failed_path(status.cell, folder)}"
    if status.state == "again":
        return f"again    {name}  {seconds}  {status.why}"
    if status.state == "waiting":
        return f"waiting  {name} ({f'another process makes {status.why}' if status.why else 'another run executes it'})"
    return f"running  {name}" if status.state == "running" else f"done     {name}  {seconds}"
