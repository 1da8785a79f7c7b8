"""Every method's `fit` on a CUDA device that computes nothing: what a GPU would refuse, or make the host wait for.

Fake tensors have devices, dtypes, shapes and strides, and no values: forward and backward passes, optimisers, averages,
snapshots and a resumption run as on `cuda:0`, through bf16 autocast and channels_last. Kernels do not, nor a compiler.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from onestep_bench import methods

HERE = Path(__file__).parent
CONDITIONAL = [f"{name}:conditional" for name in methods.names()]
OTHERS = ["edm/kernels", "edm:conditional/adm", "edm/ncsnpp"]
# A mistake made on purpose, and what is said of it.
FAULTS = {
    "host-tensor": "FakeTensorDeviceMismatchError",
    "host-number": "a copy between host and device",
    "item": "the host waits for _local_scalar_dense",
    "bf16-loss": "a loss is torch.bfloat16",
    "float64-loss": "a loss is torch.float64",
    "nchw-norm": "NCHW into a convolution",
    "nchw-average": "an average in another layout than its weight",
}


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    """The device, compiled."""
    compiler = shutil.which("g++") or shutil.which("clang++")
    if not compiler:
        pytest.skip("needs g++ or clang++, which make the device that computes nothing")
    made, place = tmp_path_factory.mktemp("fake") / "fake_cuda.so", Path(torch.__file__).parent
    include = [f"-I{place / folder}" for folder in ("include", "include/torch/csrc/api/include")]
    linked = [f"-L{place / 'lib'}", "-ltorch_cpu", "-lc10", f"-Wl,-rpath,{place / 'lib'}"]
    source = [str(HERE / "fake_cuda.cpp"), *linked, "-o", str(made)]
    subprocess.run([compiler, "-w", "-shared", "-fPIC", "-std=c++20", *include, *source], check=True)
    return made


def run(library, jobs):
    """What each job's run is told by. All in one process of their own: the device would stay in this one."""
    done = subprocess.run(
        [sys.executable, str(HERE / "on_fake_cuda.py"), str(library), *jobs],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return {found["job"]: found for found in map(json.loads, done.stdout.splitlines())}


@pytest.fixture(scope="module")
def told(library):
    """Every method told classes, other networks, and the faults."""
    return run(library, [*CONDITIONAL, *OTHERS, *(f"edm@{fault}" for fault in FAULTS)])


@pytest.mark.parametrize("job", [*CONDITIONAL, *OTHERS])
def test_a_step_waits_for_nothing_and_all_is_where_it_belongs(told, job):
    assert told[job]["complaints"] == [], told[job].get("trace", "")
    assert told[job]["convolutions"] >= 5


@pytest.mark.slow
def test_nor_does_one_without_classes(library):
    for job, found in run(library, methods.names()).items():
        assert found["complaints"] == [], (job, found.get("trace", ""))
        assert found["convolutions"] >= 5


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_seen(told, fault):
    assert FAULTS[fault] in " ".join(told[f"edm@{fault}"]["complaints"])
