"""What the catalogue reads from the sources is what registers itself when they are imported."""

import dataclasses
import subprocess
import sys

import pytest

from onestep_bench import data, losses, methods, paths, samplers
from onestep_bench.known import catalogue
from onestep_bench.known.catalogue import KINDS, Entry, known
from onestep_bench.methods import gdd, sfddm, slimflow
from onestep_bench.models import zoo
from onestep_bench.networks import SIZES
from onestep_bench.scoring import references
from onestep_bench.training import config

REGISTERED = {
    "methods": methods.names,
    "sizes": lambda: SIZES,
    "samplers": lambda: samplers.SAMPLERS,
    "judges": references.names,
    "datasets": data.names,
    "distances": lambda: losses.DISTANCES,
    "variants": lambda: gdd.VARIANTS,
    "maps": lambda: sfddm._MAPS,
    "schedules": lambda: paths._SCHEDULES,
    "anneals": lambda: [*slimflow._SCHEDULES, "constant"],
    "optimizers": lambda: config.OPTIMIZERS,
    "decays": lambda: config.DECAYS,
    "precisions": lambda: config.PRECISIONS,
    "zoo": lambda: zoo.NAMES,
}
# In a process of its own, where nothing but the catalogue has been imported.
PROGRAM = """
import sys, time
start = time.process_time()
from onestep_bench.known.catalogue import KINDS, known
for kind in KINDS:
    print(kind, *known(kind))
print(time.process_time() - start, file=sys.stderr)
assert not {"torch", "numpy", "onestep_bench.methods"} & set(sys.modules)
"""


@pytest.fixture(scope="module")
def read():
    told = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True)
    lines = (line.split() for line in told.stdout.splitlines())
    return {kind: names for kind, *names in lines}, float(told.stderr)


@pytest.mark.parametrize("kind", KINDS)
def test_names_in_the_sources_are_those_that_register_themselves(read, kind):
    assert sorted(read[0][kind]) == sorted(REGISTERED[kind]())


def test_reading_takes_no_time_that_one_notices(read):
    assert read[1] < 0.3  # 0.05 s on an idle core


@pytest.mark.parametrize("name", methods.names())
def test_a_method_says_what_it_trains_on_and_what_it_is(name):
    entry, method = known("methods")[name], methods.get(name)
    assert (entry.data, entry.needs_teacher) == (method.data, method.needs_teacher)
    assert len(entry.text) > 20
    assert list(entry.fields) == [field.name for field in dataclasses.fields(method.config)]
    assert entry == catalogue._entry_of(method)  # as it is known once it has registered itself


def test_the_fields_of_a_config_may_be_inherited_and_are_unknown_where_they_stand_elsewhere():
    tree = catalogue.ast.parse(
        "class A:\n  x: int\nclass B(A):\n  y: abc.Sequence[float]\nclass C(lab.Other):\n  z: int"
    )
    assert catalogue._fields(tree, "B") == {"x": "int", "y": "Sequence[float]"}
    assert catalogue._fields(tree, "C") is None
    assert catalogue._fields(tree, "D") is None
    assert list(catalogue.training_fields()) == [field.name for field in dataclasses.fields(config.TrainConfig)]


def test_whatever_a_person_can_list_has_a_line():
    for kind in ("sizes", "judges", "datasets", "samplers"):
        assert all(entry.text for entry in known(kind).values()), kind
    assert known("sizes")["0.2M-p2"].text.endswith("no attention, on patches of 2x2 px")
    assert known("datasets")["digits"].side == 8 == data.load("digits").resolution
    assert known("datasets")["cifar10"].side == 32


def test_what_registers_itself_at_run_time_is_known(monkeypatch):
    def shifted(denoiser, noise, times, labels=None):
        """Euler's method, shifted."""

    monkeypatch.setitem(samplers.SAMPLERS, "shifted", shifted)
    assert known("samplers")["shifted"] == Entry("Euler's method, shifted.")
