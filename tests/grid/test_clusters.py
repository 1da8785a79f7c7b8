"""Which workers a machine gets, and what a cluster file may say."""

import os
import signal
import threading
from pathlib import Path

import dask
import pytest
import yaml
from distributed.comm import CommClosedError

from onestep_bench.grid import clusters
from onestep_bench.grid.clusters import Devices, connected, visible_gpus, worker_specs

EXAMPLES = sorted((Path(__file__).parents[2] / "params" / "clusters").glob("*.yaml"))


@pytest.fixture(autouse=True)
def _no_settings(monkeypatch):
    for name in ("OMP_NUM_THREADS", "CUDA_VISIBLE_DEVICES"):
        monkeypatch.delenv(name, raising=False)


def layout(devices, cores, gpus=1, workers=None):
    """(slots, threads, devices) of each worker."""
    options = [spec["options"] for spec in worker_specs(devices, cores, gpus, workers).values()]
    for option in options:
        assert option["resources"] == {"gpus": option["nthreads"]}
    return [(o["nthreads"], o["env"]["OMP_NUM_THREADS"], o["env"].get("CUDA_VISIBLE_DEVICES")) for o in options]


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (([], 2), [(1, "1", None)] * 2),  # cores
        (([], 8, 1, 2), [(1, "4", None)] * 2),  # threads divided
        (([], 2, 1, 5), [(1, "1", None)] * 5),
        (([], 2, 2), [(2, "1", None)]),  # a worker that holds two ranks
        (([], 1, 2), [(2, "1", None)]),  # ranks share a core where there is but one
        ((["0", "1"], 16), [(1, "8", "0"), (1, "8", "1")]),  # a GPU each
        ((["2", "5"], 4, 1, 1), [(1, "4", "2")]),
        ((["0", "1"], 4, 1, 4), [(1, "1", name) for name in "0101"]),  # sharing GPUs
        ((["0", "1", "2", "3"], 8, 2), [(2, "2", "0,1"), (2, "2", "2,3")]),
    ],
)
def test_workers_divide_cores_and_gpus(given, expected):
    assert layout(*given) == expected


def test_the_users_threads_count(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert layout([], 8) == [(1, "3", None)] * 8


def test_too_few_gpus_are_refused(refuses):
    with refuses("asks for 8 gpus", "this machine shows 1"):
        worker_specs(["0"], 4, 8, None)


def test_visible_gpus_are_those_of_the_environment(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1,GPU-ab")
    assert visible_gpus() == ["1", "GPU-ab"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert visible_gpus() == []


def test_visible_gpus_are_asked_of_the_driver(monkeypatch, tmp_path):
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\nprintf '0\\n1\\n'\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    assert visible_gpus() == ["0", "1"]


def test_cells_of_a_worker_never_share_a_device(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1,2")
    devices = Devices()
    devices.setup(None)
    with devices.taken(1) as one, devices.taken(2) as two:
        assert sorted(",".join([one["CUDA_VISIBLE_DEVICES"], two["CUDA_VISIBLE_DEVICES"]]).split(",")) == list("012")
        with devices.taken(1) as none:  # more cells than devices: as the worker has them
            assert none == {}
    taken = []

    def take():
        with devices.taken(1) as own:
            taken.append(own)

    threads = [threading.Thread(target=take) for _ in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(taken) == 20
    assert sorted(devices.free) == list("012")


def test_a_worker_that_was_told_no_devices_hands_out_those_of_its_machine(monkeypatch, tmp_path):
    """As `dask worker` on a machine of two GPUs is: its cells would else all be on the first."""
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\nprintf '0\\n1\\n'\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    devices = Devices()
    devices.setup(None)
    with devices.taken(1) as one, devices.taken(1) as other:
        assert {one["CUDA_VISIBLE_DEVICES"], other["CUDA_VISIBLE_DEVICES"]} == {"0", "1"}


def test_workers_of_gpus_share_the_cores_that_compile():
    specs = worker_specs(["0", "1"], 16, 1, None)
    assert [spec["options"]["env"]["TORCHINDUCTOR_COMPILE_THREADS"] for spec in specs.values()] == ["8", "8"]


# ---- files ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("arguments: {}", "name a cluster class"),
        ("class: distributed.LocalCluster\nscal: {n: 1}", "unknown key 'scal'; did you mean 'scale'?"),
        ("class: distributed.LocalCluster\nscale: 2", "scale must be a mapping"),
        ("class: distributed.LocalClusters", "no cluster class 'distributed.LocalClusters'"),
        ("class: nowhere_at_all.Cluster", "no package 'nowhere_at_all' is installed; pip install nowhere_at_all"),
        ("class: distributed.LocalCluster\narguments: {n_workers: many, processes: false}", "LocalCluster: "),
        ("class: distributed.SSHCluster\narguments: {host: [a]}", "SSHCluster: "),
        ("class: [", ".yaml:2: "),
    ],
)
def test_a_mistake_in_a_cluster_file_is_one_line(tmp_path, refuses, text, message):
    path = tmp_path / "cluster.yaml"
    path.write_text(text)
    with refuses(str(path), message), connected(1, shared=tmp_path, cluster=path):
        pass


def test_a_missing_cluster_file_points_to_the_examples(tmp_path, refuses):
    with refuses("cannot read", "see params/clusters"), connected(1, shared=tmp_path, cluster=tmp_path / "none.yaml"):
        pass


def test_a_cluster_of_a_file_works(tmp_path):
    path = tmp_path / "cluster.yaml"
    path.write_text(
        "class: distributed.LocalCluster\n"
        "arguments: {n_workers: 1, threads_per_worker: 1, processes: false, dashboard_address: null}\n"
        "scale: {n: 2}\n"
    )
    with connected(1, shared=tmp_path, cluster=path) as client:
        client.wait_for_workers(2, timeout=20)
        assert client.submit(sum, [1, 2]).result() == 3
        assert client.scheduler.address.startswith("tls://")


def test_no_scheduler_is_one_line(refuses, monkeypatch, tmp_path):
    monkeypatch.setattr(clusters, "_TIMEOUT", 1)
    for address in ("tcp://127.0.0.1:1", "nonsense://x"):
        there = connected(1, shared=tmp_path, scheduler=address, insecure=True)
        with refuses(f"no scheduler answers at {address}", "dask scheduler"), there:
            pass


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_examples_are_cluster_files(path):
    document = clusters._read(path)
    assert document["class"].count(".") >= 1
    assert str(path.name) in path.read_text().splitlines()[0]


def test_examples_for_slurm_make_job_scripts():
    jobqueue = pytest.importorskip("dask_jobqueue")
    for name in ("slurm", "slurm-gpus"):
        document = yaml.safe_load((EXAMPLES[0].parent / f"{name}.yaml").read_text())
        document["arguments"]["interface"] = "lo"
        with jobqueue.SLURMCluster(**document["arguments"], n_workers=0) as cluster:
            script = cluster.job_script()
        assert f"--cpus-per-task={document['arguments']['job_cpu']}" in script
        assert f"--nthreads {document['arguments']['cores']}" in script


def test_a_worker_that_is_ended_as_it_starts_is_one_line(tmp_path, monkeypatch, refuses):
    def ended(**_):
        raise RuntimeError("Nanny failed to start.")

    monkeypatch.setattr(clusters, "SpecCluster", ended)
    with refuses("3 workers could not be started (Nanny failed", "--workers"), connected(1, shared=tmp_path, workers=3):
        pass


def test_a_worker_that_dies_as_it_is_told_of_plugins_is_one_line(refuses):
    class Losing:
        def register_plugin(self, plugin):
            raise CommClosedError("in <TLS (closed)>: Stream is closed")

    with refuses("lost the scheduler or a worker as the run began", "Stream is closed", "run again"):
        clusters._equip(Losing(), [Devices()])


def test_a_worker_that_dask_has_given_up_is_started_again(tmp_path):
    """On a busy machine one that was killed takes longer to come back than Dask waits for it."""
    with (
        dask.config.set({"distributed.deploy.lost-worker-timeout": "1ms"}),
        connected(1, shared=tmp_path, workers=1) as client,
    ):
        for _ in range(2):
            (pid,) = client.run(os.getpid).values()
            os.kill(pid, signal.SIGKILL)
            assert client.submit(os.getpid, pure=False).result(timeout=60) != pid
