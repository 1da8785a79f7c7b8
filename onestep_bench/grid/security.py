"""Who may send cells: certificates of Dask's own TLS, or a word that there are none.

A scheduler executes whatever its clients send, and so does a worker. What is started here makes a key and a certificate
of its own for one run, which every side must show; a scheduler that somebody else started is asked with the user's.
"""

import inspect
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import dask
from distributed import Security

from onestep_bench.errors import OnestepError

OPEN = "not encrypted (--insecure): whoever reaches the scheduler or a worker runs code as you"
LOOPBACK = "127.0.0.1:8787"  # of the dashboard; another port if that is taken
NO_DASHBOARD = {"dashboard": False, "dashboard_address": "127.0.0.1:0"}
_ENCRYPTED = ("tls", "wss", "inproc")  # inproc: inside this process
_USERS = {  # attribute of Security: key below distributed.comm.tls in Dask's configuration
    "tls_ca_file": "ca-file",
    "tls_client_cert": "client.cert",
    "tls_client_key": "client.key",  # may be in the certificate's file
}


def of_user(address: str, *, insecure: bool) -> Security | None:
    """The user's own certificates, from Dask's configuration, for the scheduler at `address`.

    Raises OnestepError for an address that is not encrypted, unless `insecure`, and if there are no certificates.
    """
    if scheme(address) not in ("tls", "wss"):
        if insecure:
            return None
        raise OnestepError(
            f"{address} is not encrypted, and whoever reaches that scheduler runs code as you; "
            "start it with certificates and name tls://host:port, or say --insecure"
        )
    own = Security(require_encryption=True)
    files = {key: getattr(own, name) for name, key in _USERS.items()}
    lacking = [f"distributed.comm.tls.{key}" for key, file in files.items() if not file and key != "client.key"]
    if lacking:
        raise OnestepError(
            f"{address} asks for your certificate: set {' and '.join(lacking)} in Dask's configuration, "
            "in ~/.config/dask/distributed.yaml or as DASK_DISTRIBUTED__COMM__TLS__CA_FILE and the like"
        )
    for key, file in files.items():
        if file and "\n" not in file and not os.path.isfile(file):
            raise OnestepError(f"distributed.comm.tls.{key} in Dask's configuration: there is no file {file}")
    try:
        own.get_connection_args("client")
    except OSError as error:  # ssl.SSLError too
        raise OnestepError(f"distributed.comm.tls in Dask's configuration: no certificate and key ({error})") from error
    return own


def scheme(address: str) -> str:
    """How one speaks to an address: 'tls', or 'tcp', which is meant where none is named."""
    return address.partition("://")[0] if "://" in address else "tcp"


@contextmanager
def arranged(make: object, arguments: dict, folder: Path, where: str, *, insecure: bool, dashboard: bool) -> Iterator:
    """The arguments of a cluster class with temporary certificates and a dashboard on the loopback, as it takes them.

    folder: that all its machines see; certificates lie there, readable by the user alone, while the block runs. What
    the arguments say already is left as it is. Raises OnestepError, which begins with `where`, for a class that takes
    no certificates, unless `insecure`.
    """
    kind, arguments = _kind(make), _with_dashboard(make, arguments, where, dashboard)
    if insecure or "security" in arguments:
        yield arguments
        return
    if not kind:
        raise OnestepError(
            f"{where} takes no certificates, and whoever reaches its scheduler runs code as you; "
            "say --insecure if its network is yours alone"
        )
    with _private(folder) as private:
        yield _with_certificates(kind, arguments, private)


def _kind(make: object) -> str:
    """How a cluster class is told of certificates; '' for one that cannot be."""
    if getattr(make, "__name__", "") == "SSHCluster":
        return "ssh"
    named = inspect.signature(make).parameters
    if "security" not in named:
        return ""
    return "jobs" if hasattr(make, "job_cls") else "here"


def _with_dashboard(make: object, arguments: dict, where: str, dashboard: bool) -> dict:
    # On the loopback: of the machine of the scheduler.
    options, kind = {"dashboard_address": LOOPBACK} if dashboard else NO_DASHBOARD, _kind(make)
    if kind == "jobs":  # else a worker, too, shows its own to the whole network
        options |= _told(make, arguments, "scheduler_options") or {}
        own = [
            "--no-dashboard",
            "--dashboard-address",
            "127.0.0.1:0",
            *(_told(make, arguments, "worker_extra_args") or []),
        ]
        return arguments | {"scheduler_options": options, "worker_extra_args": own}
    if kind == "ssh":
        shown = {"scheduler_options": options, "worker_options": {"dashboard_address": "127.0.0.1:0"}}
        return arguments | {name: told | (arguments.get(name) or {}) for name, told in shown.items()}
    if "dashboard_address" in inspect.signature(make).parameters:
        return {"dashboard_address": options["dashboard_address"] if dashboard else None} | arguments
    if not dashboard:
        raise OnestepError(f"{where} cannot be told --no-dashboard; its own arguments may have a switch")
    return arguments


def _told(make: object, arguments: dict, name: str) -> object:
    """An argument of dask-jobqueue as it would take it: from the file, else from the user's configuration of Dask."""
    if arguments.get(name) is not None:
        return arguments[name]
    section = arguments.get("config_name") or make.job_cls.default_config_name()
    return dask.config.get(f"jobqueue.{section}.{name.replace('_', '-')}", None)


def _with_certificates(kind: str, arguments: dict, private: Path) -> dict:
    own = Security.temporary()
    if kind == "here":
        return arguments | {"security": own}
    files = _written(own, private)
    if kind == "jobs":  # names the files in its jobs' commands; handed keys, it would write them itself
        return arguments | {"security": Security(**files)}
    told = {"security": files, "protocol": "tls"}
    sides = {name: told | (arguments.get(name) or {}) for name in ("scheduler_options", "worker_options")}
    return arguments | sides | {"security": Security(**files)}


def _written(own: Security, private: Path) -> dict:
    """Arguments of a Security that reads its key and its certificate, which is its own authority, from files."""
    certificate, key = private / "certificate.pem", private / "key.pem"
    for path, text in ((certificate, own.tls_ca_file), (key, own.tls_client_key)):
        path.touch(mode=0o600)
        path.write_text(text)
    files = {"require_encryption": True, "tls_ca_file": str(certificate)}
    for role in ("client", "scheduler", "worker"):
        files |= {f"tls_{role}_cert": str(certificate), f"tls_{role}_key": str(key)}
    return files


@contextmanager
def _private(folder: Path) -> Iterator[Path]:
    """A folder that nobody else may enter; what a killed run leaves there opens nothing that still listens."""
    folder.mkdir(parents=True, exist_ok=True)
    private = Path(tempfile.mkdtemp(prefix=".tls-", dir=folder))
    try:
        yield private
    finally:
        shutil.rmtree(private, ignore_errors=True)


def held_to(address: str, where: str, *, insecure: bool) -> None:
    """Raise OnestepError if what was started listens in the clear and nobody said that it may."""
    if not insecure and scheme(address) not in _ENCRYPTED:
        raise OnestepError(
            f"{where}: its scheduler, {address}, is not encrypted; leave `security` out, or say --insecure"
        )
