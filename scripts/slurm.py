"""A real SLURM on this machine runs a grid with two jobs; one is cancelled in the middle, and the grid completes.

While it runs, strangers try the scheduler and the jobs, with a certificate of their own and without: all are refused.

`make slurm` runs it on the quickstart's stages with little work in them (tests/grid/quickstart.yaml); another grid is
its argument, with its notebooks as a second one.
Needs Debian's packages slurm-wlm and munge (`apt-get install slurm-wlm munge`) and dask-jobqueue. Configuration, keys,
ports, logs and results live in a temporary folder, and what is started here is stopped here: an installed SLURM is not
touched. Exits with 1 if the grid does not complete, a stranger is let in, or a job of it is left.
"""

import getpass
import logging
import os
import secrets
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import psutil
import yaml
from distributed import Client, Security

from onestep_bench.store.notes import SCRATCH

HOUSE = Path(__file__).parent.parent
HOST = socket.gethostname().split(".")[0]
PATIENCE = 180.0  # seconds for daemons and jobs to start


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


def configuration(folder: Path) -> str:
    """slurm.conf: one node, which is this machine, all state in `folder`, the current user as master."""
    control, daemon = free_ports(2)
    user, cores = getpass.getuser(), len(os.sched_getaffinity(0))
    return f"""ClusterName=onestep
SlurmctldHost={HOST}(127.0.0.1)
SlurmctldPort={control}
SlurmdPort={daemon}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
ReturnToService=2
KillWait=5
NodeName={HOST} NodeAddr=127.0.0.1 CPUs={cores} State=UNKNOWN
PartitionName=main Nodes={HOST} Default=YES MaxTime=INFINITE State=UP OverSubscribe=FORCE:2
"""


@contextmanager
def running(*command: str, log: Path) -> Iterator[subprocess.Popen]:
    """A daemon in the foreground, ended at the end."""
    with open(log, "wb") as file:
        process = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL)
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


@contextmanager
def slurm(folder: Path) -> Iterator[None]:
    """munged, slurmctld and slurmd with all they write in `folder`; SLURM_CONF points commands to them."""
    for name in ("state", "spool"):
        (folder / name).mkdir()
    (folder / "slurm.conf").write_text(configuration(folder))
    os.environ["SLURM_CONF"] = str(folder / "slurm.conf")
    key = folder / "munge.key"
    key.write_bytes(secrets.token_bytes(128))
    key.chmod(0o600)
    munge = ["munged", "--foreground", "--force", f"--key-file={key}", f"--socket={folder}/munge.socket"]
    munge += [f"--{name}-file={folder}/munge.{name}" for name in ("pid", "seed", "log")]
    with ExitStack() as stack:
        stack.enter_context(running(*munge, log=folder / "munged.out"))
        until(lambda: (folder / "munge.socket").exists(), "munged", folder / "munged.out")
        stack.enter_context(running("slurmctld", "-D", log=folder / "slurmctld.out"))
        until(lambda: asked("scontrol", "ping").count("UP"), "slurmctld", folder / "slurmctld.out")
        stack.enter_context(running("slurmd", "-D", log=folder / "slurmd.out"))
        until(lambda: asked("sinfo", "-h", "-o", "%t") in ("idle", "mix", "alloc"), "slurmd", folder / "slurmd.out")
        yield


def asked(*command: str) -> str:
    """What a SLURM command prints."""
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()


def until(true: Callable[[], object], what: str, log: Path, patience: float = PATIENCE) -> None:
    """Wait for it; exit with the tail of the log if it does not happen."""
    end = time.monotonic() + patience
    while not true():
        if time.monotonic() > end:
            sys.exit(f"slurm: {what} did not come up:\n" + "\n".join(log.read_text().splitlines()[-20:]))
        time.sleep(0.2)


def jobs() -> list[str]:
    """Ids of the jobs that run."""
    return asked("squeue", "-h", "-t", "RUNNING", "-o", "%i").split()


def job_at_work(folder: Path) -> str:
    """Id of a job that executes a cell now, or nothing."""
    for process in psutil.process_iter():
        try:
            words, settings = process.cmdline(), process.environ()
        except psutil.Error:
            continue
        ours = settings.get(SCRATCH, "").startswith(str(folder))
        if ours and "onestep_bench.grid.execution" in words and "SLURM_JOB_ID" in settings:
            return settings["SLURM_JOB_ID"]
    return ""


def addresses() -> list[str]:
    """Of the scheduler, as the jobs' commands name it, and of the nannies, which these commands are."""
    found = []
    for process in psutil.process_iter():
        try:
            words, settings, sockets = process.cmdline(), process.environ(), process.net_connections("tcp")
        except psutil.Error:
            continue
        if "distributed.cli.dask_worker" in words and "SLURM_JOB_ID" in settings:
            found += [word for word in words if "://" in word and word[-1].isdigit()]
            found += [f"tls://127.0.0.1:{one.laddr.port}" for one in sockets if one.status == psutil.CONN_LISTEN]
    return sorted(set(found))


def stranger(address: str, credentials: Security | None) -> str:
    """How a client that is not ours fares: how it is refused, or 'LET IN'."""
    logging.getLogger("distributed").setLevel(logging.CRITICAL)
    try:
        with Client(address, security=credentials, timeout=5, set_as_default=False):
            return "LET IN"
    except OSError as error:
        return f"refused ({type(error).__name__})"


def strangers() -> bool:
    """Whether all are refused by all that listens; tells each."""
    known = addresses()
    tries = [(address, Security.temporary()) for address in known]
    tries += [(address.replace("tls://", "tcp://"), None) for address in known]
    told = [
        (address, "another certificate" if own else "no certificate", stranger(address, own)) for address, own in tries
    ]
    for address, shown, how in told:
        print(f"slurm: a client with {shown} at {address}: {how}", flush=True)
    return bool(told) and all(how != "LET IN" for _, _, how in told)


def cluster_file(folder: Path) -> Path:
    """Two jobs of one cell at a time."""
    (folder / "logs").mkdir()
    path = folder / "cluster.yaml"
    arguments = {
        "queue": "main",
        "cores": 1,
        "processes": 1,
        "memory": "4GB",
        "walltime": "01:00:00",
        "death_timeout": 300,  # on a busy machine
        "interface": "lo",
        "log_directory": str(folder / "logs"),
        "local_directory": str(folder),
        "job_directives_skip": ["--mem"],
        "job_script_prologue": ["export OMP_NUM_THREADS=1"],
    }
    document = {"class": "dask_jobqueue.SLURMCluster", "arguments": arguments, "scale": {"jobs": 2}}
    path.write_text(yaml.safe_dump(document))
    return path


def main() -> int:
    """Run the grid; the exit code."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that daemons are stopped then, too
    grid = Path(sys.argv[1]).absolute() if sys.argv[1:] else HOUSE / "tests" / "grid" / "quickstart.yaml"
    notebooks = Path(sys.argv[2]).absolute() if sys.argv[2:] else HOUSE / "notebooks"
    for tool in ("munged", "slurmctld", "slurmd", "sbatch"):
        if not shutil.which(tool):
            sys.exit(f"slurm: no {tool} here; apt-get install slurm-wlm munge")
    with tempfile.TemporaryDirectory(prefix="onestep-slurm-") as name:
        folder = Path(name)
        folder.chmod(0o755)
        with slurm(folder):
            print(f"slurm: node {HOST} is {asked('sinfo', '-h', '-o', '%t')}", flush=True)
            command = [sys.executable, "-m", "onestep_bench.cli", "run", str(grid), "--notebooks", str(notebooks)]
            command += ["--out", str(folder / "out"), "--store", str(folder / "store")]
            log = folder / "run.out"
            with open(log, "wb") as file:
                run = subprocess.Popen([*command, "--cluster", str(cluster_file(folder))], stdout=file, stderr=file)
            try:
                return judge(run, folder, log)
            finally:
                if run.poll() is None:
                    run.terminate()
                    run.wait()


def judge(run: subprocess.Popen, folder: Path, log: Path) -> int:
    """Cancel one of the two jobs while both run, wait for the end, and see whether all is well."""
    until(lambda: len(jobs()) == 2, "two jobs", log)
    until(lambda: job_at_work(folder), "the first cell", log)
    closed = strangers()
    keys = [f"{path.name} {stat.filemode(path.stat().st_mode)}" for path in (folder / "out").glob(".tls-*")]
    print(f"slurm: certificates in {', '.join(keys) or 'NO FOLDER'}", flush=True)
    time.sleep(3)
    until(lambda: job_at_work(folder), "a cell", log)
    victim = job_at_work(folder)
    subprocess.run(["scancel", victim], check=True)
    print(f"slurm: two jobs ran; cancelled job {victim} in the middle of a cell", flush=True)
    code = run.wait()
    print(log.read_text())
    left = asked("squeue", "-h", "-o", "%i %T")
    print(f"slurm: exit code {code}, jobs left: {left or 'none'}")
    return 0 if code == 0 and closed and not left else 1


if __name__ == "__main__":
    sys.exit(main())
