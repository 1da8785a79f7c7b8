"""Bars of a grid's cell: no terminal, and a file that says how far it is."""

import json
import time

import pytest

from onestep_bench.store.notes import PROGRESS, SCRATCH
from onestep_bench.training import together


@pytest.fixture
def place(tmp_path, monkeypatch):
    """The file, of a cell whose bars write it at every update."""
    monkeypatch.setenv(SCRATCH, str(tmp_path))
    monkeypatch.setattr(together._ToldBar, "every", 0.0)
    return tmp_path / PROGRESS


def told(place):
    return json.loads(place.read_text())


def test_a_bar_tells_what_is_done_and_what_is_left_until_it_is_closed(place):
    with together.bar(total=32_000, unit="img", desc="gdd", smoothing=0) as bar:
        assert (told(place)["done"], told(place)["left"]) == (0, None)
        bar.start_t = time.time() - 10
        bar.update(8000)
        bar.set_postfix({"student": 0.5})
        known = told(place)
        assert {key: known[key] for key in ("what", "done", "total", "unit")} == {
            "what": "gdd",
            "done": 8000,
            "total": 32_000,
            "unit": "img",
        }
        assert known["left"] == pytest.approx(30, abs=1)
        assert known["began"] <= known["at"] <= time.time()
    assert list(place.parent.iterdir()) == []


def test_a_bar_counts_what_it_hands_out(place):
    assert [told(place)["done"] for _ in together.bar(iterable=range(3), unit="part", desc="pairs")] == [0, 1, 2]
    assert not place.exists()


def test_a_forgotten_bar_does_not_take_the_next_ones_file_along(place):
    old = together.bar(total=2, desc="old")
    old.close()
    new = together.bar(total=2, desc="new")
    del old
    assert told(place)["what"] == "new"
    new.close()


def test_files_are_not_written_too_often(place, monkeypatch):
    monkeypatch.setattr(together._ToldBar, "every", 100.0)
    with together.bar(total=50, desc="gdd") as bar:
        for _ in range(50):
            bar.update()
            bar.set_postfix({"student": 0.5})
            assert told(place)["done"] == 0


def test_a_folder_that_cannot_be_written_stops_nothing(place, monkeypatch, tmp_path):
    monkeypatch.setenv(SCRATCH, str(tmp_path / "gone"))
    with together.bar(total=2) as bar:
        bar.update()
        assert bar.n == 1


def test_other_ranks_say_nothing(place, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    with together.bar(total=2) as bar:
        bar.update()
    assert not place.exists()
