"""A training that draws itself: what it shows, how often, and that it leaves the training alone."""

from dataclasses import replace

import pytest

from onestep_bench import data, study
from onestep_bench.explore import watching
from onestep_bench.store.files import file_digest

SMALL = {"size": "0.01M", "kimg": 0.128, "batch_size": 32}


@pytest.fixture
def shown(monkeypatch):
    """Figures as they come to the screen."""
    seen = []
    monkeypatch.setattr(watching._Figure, "_show", lambda self, figure: seen.append((figure, list(self.scores))))
    return seen


def trained(store, monkeypatch, **asked):
    monkeypatch.setenv("ONESTEP_STORE", str(store))
    model = study.train("edm", data.load("digits"), dropout=0.1, ema_halflife_kimg=0.0, **SMALL, **asked)
    return file_digest(model.artifact.folder / "model.safetensors")


def test_it_draws_at_most_so_often_and_changes_no_bit(tmp_path, monkeypatch, looked_at, shown):
    plain = trained(tmp_path / "a", monkeypatch)
    monkeypatch.setattr(watching, "_APART", 0.0)
    monkeypatch.setattr(watching, "_SHARE", 1e9)
    track = watching.watch(data.load("digits"), samples=16)
    assert trained(tmp_path / "b", monkeypatch, track=track) == plain
    assert len(shown) == 4  # the last row is not drawn twice
    figure, scores = shown[-1]
    assert [kimg for kimg, _ in scores] == pytest.approx([0.032, 0.064, 0.096, 0.128])
    assert all(score > 0 for _, score in scores)
    assert len(figure.axes) == 3
    monkeypatch.setattr(watching, "_APART", 1e9)
    trained(tmp_path / "c", monkeypatch, track=watching.watch(data.load("digits"), samples=0))
    assert len(shown) == 6  # the first row, and how it ended
    assert len(shown[-1][0].axes) == 2  # no score was asked for
    assert "0.128 thousand images" in shown[-1][0].axes[-1].get_title()


def test_an_interrupt_shows_where_it_stopped(tmp_path, monkeypatch, looked_at, shown):
    monkeypatch.setattr(watching, "_APART", 1e9)
    watch = watching.watch(data.load("digits"), samples=0)

    def track(row, student):
        watch(row, student)
        if row.step == 3:
            raise KeyboardInterrupt

    track.close = watch.close
    with pytest.raises(KeyboardInterrupt, match="stopped at"):
        trained(tmp_path, monkeypatch, track=track)
    assert [figure.axes[-1].get_title() for figure, _ in shown] == [
        "samples at 0.032 thousand images",
        "samples at 0.096 thousand images",
    ]


def test_a_judge_that_would_have_to_be_trained_does_not_hold_up_a_training(monkeypatch, looked_at, refuses):
    images = replace(data.load("digits"), name="mine")
    assert watching.watch(images).judge.name == "random-features"
    assert watching.watch(data.load("digits")).judge.name == "digits"
    monkeypatch.setattr(watching, "_REAL", 100)
    assert watching.watch(images).real.n == 100  # of 899, each ninth
    with refuses("unknown sampler 'huen'; did you mean 'heun'?"):
        watching.watch(images, sampler="huen")


def test_where_nobody_looks_nothing_is_drawn(tmp_path, monkeypatch, shown):
    trained(tmp_path, monkeypatch, track=watching.watch(data.load("digits")))
    assert shown == []
