"""Who may send notebooks: whoever shows the certificate of the run, and nobody else."""

import os
import socket
import ssl
import stat
from contextlib import contextmanager
from urllib.request import urlopen

import dask
import pytest
from distributed import Client, LocalCluster, Scheduler, Security, SpecCluster

from onestep_bench.grid import clusters, security
from onestep_bench.grid.clusters import connected, worker_specs


@pytest.fixture(scope="module")
def own():
    return Security.temporary()


@pytest.fixture
def files(own, tmp_path):
    """Names and paths of a certificate that is its own authority, and of its key, as Dask's configuration has them."""
    paths = {"ca-file": own.tls_ca_file, "client.cert": own.tls_client_cert, "client.key": own.tls_client_key}
    for name, text in paths.items():
        (tmp_path / name).write_text(text)
    return {f"distributed.comm.tls.{name}": str(tmp_path / name) for name in paths}


def refused(address: str, credentials: Security | None) -> bool:
    """Whether a client of Dask is not let in: without credentials, it is one that speaks in the clear."""
    address = address if credentials else address.replace("tls://", "tcp://")
    try:
        with Client(address, security=credentials, timeout=5, set_as_default=False):
            return False
    except OSError:
        return True


def unanswered(address: str) -> bool:
    """Whether who speaks TLS and shows no certificate is sent away without a word."""
    host, port = address.removeprefix("tls://").split(":")
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    with socket.create_connection((host, int(port)), timeout=5) as connection:
        try:
            with context.wrap_socket(connection) as stranger:
                return not stranger.recv(1)
        except (ssl.SSLError, ConnectionError):
            return True


def test_who_has_no_certificate_or_another_is_refused_by_scheduler_and_workers(tmp_path):
    """As the engine starts them. A worker runs what it is sent just as the scheduler does."""
    with connected(1, shared=tmp_path, workers=1) as client:
        assert client.submit(sum, [1, 2]).result() == 3
        (worker,) = client.scheduler_info()["workers"]
        for address in (client.scheduler.address, worker):
            assert address.startswith("tls://127.0.0.1:")
            assert unanswered(address)
            assert refused(address, None)
            assert refused(address, Security.temporary())
        assert not refused(client.scheduler.address, client.security)
        assert client.dashboard_link.startswith("http://127.0.0.1:")
        told = client.run(lambda dask_worker: (dask_worker.http_server.address, dask_worker.local_directory))
        host, folder = told[worker]
        assert host == "127.0.0.1"
        assert f"/onestep-{os.getuid()}/" in folder
        assert stat.S_IMODE(os.stat(folder).st_mode) == 0o700


def test_a_dashboard_that_is_not_wanted_serves_nothing(tmp_path):
    file = tmp_path / "cluster.yaml"
    file.write_text("class: distributed.LocalCluster\narguments: {n_workers: 0, processes: false}\n")
    for wanted in (True, False):
        with connected(1, shared=tmp_path, cluster=file, dashboard=wanted) as client:
            link = client.cluster.scheduler.http_server
            address = f"http://{link.address}:{link.port}/json/identity.json"
            assert link.address == "127.0.0.1"
            if wanted:
                assert urlopen(address).status == 200
                continue
            with pytest.raises(OSError, match="404"):
                urlopen(address)


@contextmanager
def scheduler_of(own: Security):
    """Somebody's scheduler, without workers, that asks for certificates."""
    with LocalCluster(n_workers=0, processes=False, security=own, dashboard_address=None) as cluster:
        yield cluster.scheduler_address


def test_a_running_scheduler_is_joined_with_the_users_certificate_alone(own, files, tmp_path, refuses, monkeypatch):
    monkeypatch.setattr(clusters, "_TIMEOUT", 2)
    with (
        dask.config.set(files),
        scheduler_of(own) as address,
        connected(1, shared=tmp_path, scheduler=address) as client,
    ):
        assert client.scheduler.address == address
    with (
        dask.config.set(files),
        scheduler_of(Security.temporary()) as other,
        refuses(f"no scheduler at {other} answers to your certificate"),
        connected(1, shared=tmp_path, scheduler=other),
    ):
        pass


@pytest.mark.parametrize("address", ["tcp://127.0.0.1:8786", "127.0.0.1:8786", "ws://127.0.0.1:8786"])
def test_what_is_not_encrypted_is_joined_only_if_asked_for(address, refuses):
    with refuses(f"{address} is not encrypted", "tls://host:port", "--insecure"):
        security.of_user(address, insecure=False)
    assert security.of_user(address, insecure=True) is None


def test_certificates_that_are_not_there_are_named(files, refuses):
    missing = {"distributed.comm.tls.ca-file": "/nowhere/ca.pem"}
    wrong = {"distributed.comm.tls.client.key": files["distributed.comm.tls.ca-file"]}
    with refuses("set distributed.comm.tls.ca-file and distributed.comm.tls.client.cert in Dask's configuration"):
        security.of_user("tls://127.0.0.1:1", insecure=False)
    with dask.config.set(files | missing), refuses("tls.ca-file", "no file /nowhere/ca.pem"):
        security.of_user("tls://127.0.0.1:1", insecure=False)
    with dask.config.set(files | wrong), refuses("no certificate and key"):
        security.of_user("tls://127.0.0.1:1", insecure=False)


# ---- clusters from files ---------------------------------------------------------------------------------------------


class Plain:
    """A cluster class that knows no certificates, as dask-kubernetes' is."""

    scheduler_address = "tcp://10.0.0.1:8786"


def arranged(make, arguments, folder, **how):
    how = {"insecure": False, "dashboard": True} | how
    return security.arranged(make, arguments, folder, "file.yaml: Cluster", **how)


def test_a_class_without_certificates_needs_a_word(tmp_path, refuses):
    with refuses("file.yaml: Cluster takes no certificates", "--insecure"), arranged(Plain, {}, tmp_path):
        pass
    with arranged(Plain, {}, tmp_path, insecure=True) as arguments:
        assert arguments == {}
    with refuses("--no-dashboard"), arranged(Plain, {}, tmp_path, insecure=True, dashboard=False):
        pass


def test_what_listens_in_the_clear_though_told_otherwise_is_refused(refuses):
    with refuses("file.yaml", "is not encrypted"):
        security.held_to("tcp://10.0.0.1:8786", "file.yaml", insecure=False)
    security.held_to("tcp://10.0.0.1:8786", "file.yaml", insecure=True)
    security.held_to("tls://10.0.0.1:8786", "file.yaml", insecure=False)


def test_machines_reached_by_ssh_are_given_files_that_only_the_user_reads(tmp_path):
    """Their commands name the files; keys would be seen in a list of processes."""
    from distributed import SSHCluster

    given = {"hosts": ["a", "b"], "worker_options": {"nthreads": 3}}
    with arranged(SSHCluster, given, tmp_path) as arguments:
        told = arguments["worker_options"]
        assert told["nthreads"] == 3
        assert "PRIVATE" not in str(arguments)
        key = tmp_path / told["security"]["tls_worker_key"]
        assert "PRIVATE KEY" in key.read_text()
        assert stat.S_IMODE(key.parent.stat().st_mode) == 0o700
        assert arguments["scheduler_options"]["dashboard_address"] == "127.0.0.1:8787"
        assert told["dashboard_address"] == "127.0.0.1:0"
        # What such a machine makes of it: the scheduler listens, and answers whoever has the same files.
        options = arguments["scheduler_options"] | {"host": "127.0.0.1", "dashboard_address": "127.0.0.1:0"}
        scheduler = {"cls": Scheduler, "options": options}
        with SpecCluster({}, scheduler, security=arguments["security"]) as cluster:
            assert cluster.scheduler_address.startswith("tls://")
            assert not refused(cluster.scheduler_address, Security(**told["security"]))
            assert refused(cluster.scheduler_address, None)
    assert not list(tmp_path.iterdir())


def test_jobs_read_certificates_in_a_private_folder(tmp_path):
    jobqueue = pytest.importorskip("dask_jobqueue")
    given = {
        "cores": 1,
        "processes": 1,
        "memory": "1GB",
        "interface": "lo",
        "worker_extra_args": ["--resources", "gpus=8"],
    }
    given["scheduler_options"] = {"dashboard_address": "127.0.0.1:0"}
    with arranged(jobqueue.SLURMCluster, given, tmp_path) as arguments, jobqueue.SLURMCluster(**arguments) as cluster:
        assert cluster.scheduler_address.startswith("tls://")
        script = cluster.job_script()
        assert "--resources gpus=8" in script
        assert "--dashboard-address 127.0.0.1:0" in script
        assert "--protocol tls://" in script
        (private,) = tmp_path.iterdir()
        assert stat.S_IMODE(private.stat().st_mode) == 0o700
        assert f"--tls-key {private}/" in script
        assert refused(cluster.scheduler_address, None)
        assert refused(cluster.scheduler_address, Security.temporary())
    assert not list(tmp_path.iterdir())


def test_workers_here_show_nothing_to_the_network():
    for spec in worker_specs([], 2, 1, None).values():
        assert spec["options"]["host"] == "127.0.0.1"
        assert spec["options"]["dashboard_address"] == "127.0.0.1:0"
