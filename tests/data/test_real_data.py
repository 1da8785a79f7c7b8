"""Every method on real pictures, where there are some: ONESTEP_TEST_DATASET names a data set as `data.load` takes it.

    ONESTEP_TEST_DATASET=cifar10-32x32.zip pytest -m slow tests/test_real_data.py

Quality is of no interest here; that it goes through is, with and without labels, and what it costs to load.
"""

import math
import os
import subprocess
import sys

import pytest

from onestep_bench import data, methods, study

NAME = os.environ.get("ONESTEP_TEST_DATASET", "")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not NAME, reason="ONESTEP_TEST_DATASET names no data set"),
    pytest.mark.usefixtures("store_folder"),
]
TINY = {"size": "0.05M", "kimg": 0.256, "batch_size": 64}


@pytest.fixture(scope="module")
def pictures():
    return data.load(NAME)


LOAD = """
import resource, sys, time
from onestep_bench import data
began = time.process_time()
found = data.load(sys.argv[1])
print(len(found), time.process_time() - began, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20)
"""


@pytest.mark.parametrize("start", ["first", "second"])
def test_it_loads_in_20_seconds_and_one_gigabyte(tmp_path_factory, start):
    cache = tmp_path_factory.getbasetemp() / "decoded"
    assert cache.exists() == (start == "second")
    told = subprocess.run(
        [sys.executable, "-c", LOAD, NAME],
        env=os.environ | {"ONESTEP_CACHE": str(cache)},
        capture_output=True,
        text=True,
        check=True,
    )
    count, seconds, gigabytes = map(float, told.stdout.split())
    print(f"{count:.0f} images, {start} time: {seconds:.1f} s of one core, {gigabytes:.2f} GiB at most")
    assert seconds < 20
    assert gigabytes < 1


@pytest.mark.parametrize("conditional", [False, True], ids=["unconditional", "conditional"])
@pytest.mark.parametrize("name", methods.names())
def test_every_method_goes_through(name, conditional, pictures):
    method = methods.get(name)
    if conditional and not pictures.class_counts:
        pytest.skip("the data set has no labels")
    teacher = study.train("edm", pictures, conditional=conditional, **TINY)
    source = study.make_pairs(teacher, 64, steps=2) if method.data == "pairs" else pictures
    given = teacher if method.needs_teacher else None
    model = study.train(name, source, teacher=given, conditional=conditional, hflip=True, **TINY)
    assert all(math.isfinite(loss) for row in model.history for loss in row.losses.values())
    assert model.class_counts == (pictures.class_counts if conditional else [])
    assert study.sample(model, range(4), steps=1).isfinite().all()
