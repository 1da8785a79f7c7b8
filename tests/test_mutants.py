"""The list of mutants is about the sources as they are; `make mutants` runs it."""

import importlib.util
import sys

import pytest

SCRIPT = "scripts/mutants.py"
ROOMS = ["methods", "samplers", "metrics", "statistics", "splits", "training", "data", "store", "pickles", "grid"]


@pytest.fixture(scope="module")
def script(request):
    spec = importlib.util.spec_from_file_location("mutants", request.config.rootpath / SCRIPT)
    module = sys.modules["mutants"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    yield module
    del sys.modules["mutants"]


def test_every_mutant_breaks_one_line_that_is_there(script):
    for mutant in script.mutants():
        mutant.broken((script.REPOSITORY / mutant.file).read_text())  # raises if it is not there once
        named = mutant.tests.split()[0] if mutant.tests else ""
        assert bool(named) != bool(mutant.equivalent), f"{mutant.breaks}: the tests that notice, or why none can"
        assert not named or (script.REPOSITORY / named.partition("::")[0]).exists(), named


def test_there_are_mutants_in_every_room(script):
    found = script.mutants()
    assert len({(one.file, one.line, one.becomes) for one in found}) == len(found)
    assert sum(not one.equivalent for one in found) >= 40
    for room in ROOMS:
        assert any(room in one.file for one in found), room


def test_a_line_that_is_gone_or_broken_to_no_effect_is_said(script):
    gone = script.Mutant("a.py", "a sign", "x - y", "x + y", "tests/test_a.py")
    for source, said in (("x * y", "there 0 times"), ("x - y, x - y", "there 2 times")):
        with pytest.raises(ValueError, match=said):
            gone.broken(source)
    with pytest.raises(ValueError, match="breaks nothing"):
        script.Mutant("a.py", "a space", "x - y", "x -  y", "tests/test_a.py").broken("x - y")
    assert gone.broken("x - y") == "x + y"
