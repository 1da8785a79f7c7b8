"""A few spoilt files of every format, and by name what thousands of them found (`make fuzz`)."""

import argparse
import gzip
import importlib.util
import io
import json
import math
import os
import struct
import tarfile
import zipfile

import numpy as np
import pytest
from fuzzing import Outcome, attempt, seeds, spoilt
from hostile import FORMATS, _tarred
from mutations import CANARY, Member, zipped
from tiny import strip

from onestep_bench.data.sets import mnist
from onestep_bench.grid.cells import STAMP
from onestep_bench.report.executed import as_pages
from onestep_bench.report.samples import sample_sheet
from onestep_bench.report.tables import size_order, split_words

SLOW = ("executed", "slimflow", "edm", "gdd", "cifar")  # tens of milliseconds each


def refused(name: str, content: bytes, *told: str) -> None:
    outcome = attempt(name, content)
    assert (outcome.ending, outcome.executed, outcome.outside) == ("refused", [], []), outcome.why
    for text in told:
        assert text in outcome.why


@pytest.mark.parametrize("name", FORMATS)
def test_a_whole_file_is_read_and_a_spoilt_one_is_one_line(name):
    for whole in seeds(name):
        outcome = attempt(name, whole)
        assert outcome.ending == "accepted", outcome.why
        assert not outcome.executed + outcome.outside
    for index in range(4 if name in SLOW else 15):
        outcome = attempt(name, spoilt(name, index))
        assert not outcome.bad, f"{name} {index}: {outcome}"


def test_the_watch_sees_what_runs_and_what_is_written_elsewhere(monkeypatch, tmp_path):
    """Else its zeros would mean nothing."""

    def careless(path):
        os.system(f"touch {CANARY}")
        (tmp_path / "elsewhere").write_text("")

    monkeypatch.setitem(FORMATS, "idx", FORMATS["idx"].__class__("x", FORMATS["idx"].seeds, careless))
    outcome = attempt("idx", b"x")
    assert len(outcome.executed) == 2
    assert outcome.outside == [str(tmp_path / "elsewhere")]


def test_a_file_on_which_the_reader_dies_is_one_finding(tmp_path, request, monkeypatch):
    """And those behind it are read."""
    spec = importlib.util.spec_from_file_location("fuzz", request.config.rootpath / "scripts" / "fuzz.py")
    fuzz = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(fuzz)
    monkeypatch.setattr(fuzz, "spoilt", lambda name, number, seed: bytes([number]))
    monkeypatch.setattr(fuzz, "attempt", lambda name, file: os._exit(9) if file == b"\3" else Outcome("refused", "", 0))
    asked = argparse.Namespace(each=8, seed=0, out=tmp_path)
    tally = dict.fromkeys(fuzz._COLUMNS, 0)
    for inputs in (4, 8):
        fuzz._chunk("idx", tally, asked)
        assert tally["inputs"] == inputs
    assert (tally["refused"], tally["other"]) == (7, 1)
    (finding,) = (tmp_path / "findings.jsonl").read_text().splitlines()
    assert json.loads(finding)["index"] == 3
    (kept,) = tmp_path.glob("idx-0.[0-9]*")
    assert (kept.name, kept.read_bytes()) == ("idx-0.3", b"\3")


@pytest.mark.parametrize("name", ["os.system", "builtins.exec", "subprocess.Popen", "..x.y", ".", "json.nothing"])
def test_a_cluster_file_starts_nothing_but_clusters(name):
    refused("cluster", f"class: {name}\narguments: {{command: touch {CANARY}}}\n".encode(), "cluster class")


def test_a_grid_whose_notebook_has_no_name_that_a_disk_takes():
    refused("grid", f"stages: {{a: {{notebook: n{'0' * 300}}}}}\n".encode(), "no notebook 'n000")


def test_a_zip_with_an_entry_of_no_name_is_one_line():
    assert attempt("zip", spoilt("zip", 602)).ending == "refused"


def test_a_spoilt_row_is_put_into_words():
    assert size_order("..M") == (float("inf"), "..M")
    assert split_words("{x}") == "split {x}"


CELL = {"cell_type": "code", "id": "a", "metadata": {}, "source": "", "execution_count": None, "outputs": []}


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda whole: whole["cells"][0].pop("outputs"), "'outputs' is a required property"),
        (lambda whole: whole["cells"][0].update(outputs=[1]), "1 is not"),
        (lambda whole: whole.update(cells=[1]), "no list of cells"),
        (lambda whole: whole.pop("cells"), "no list of cells"),
        (lambda whole: whole.pop("metadata"), "metadata"),
        (lambda whole: whole["cells"][0].update(source="\ud800"), "surrogates"),
        *(
            (lambda whole, odd=odd, key=key: whole.update({key: odd}), "nbformat 4")
            for key in ("nbformat", "nbformat_minor")
            for odd in ("x", None, [], {})
        ),
        *((lambda whole, odd=odd: whole.update(nbformat=odd), "nbformat 4") for odd in (1, 3, 5)),
    ],
)
def test_what_is_no_whole_notebook_makes_no_page(tmp_path, refuses, change, told):
    whole = {"cells": [dict(CELL)], "metadata": {}, "nbformat": 4, "nbformat_minor": 5}
    change(whole)
    (tmp_path / "a.ipynb").write_text(json.dumps(whole))
    with refuses("a.ipynb is no whole notebook", told):
        as_pages([tmp_path / "a.ipynb"], tmp_path / "pages")
    assert not list(tmp_path.glob("pages/*"))


BOMB = "".join(f"{b}: &{b} [{', '.join([f'*{a}'] * 9)}]\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True))


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("a: &a [x, x]\n" + BOMB, "stand for too much"),
        ("stages: &a {x: *a}\n", "stand for too much"),
        ("a: " + "[" * 100_000, "levels"),
        ("a: 2024-13-41\n", "put it in quotes"),
        ("a: !!int x\n", "put it in quotes"),
        ("a: !!timestamp x\n", "put it in quotes"),
        ("a: !!bool x\n", "put it in quotes"),
    ],
    ids=["aliases", "circle", "depth", "date", "number", "time", "truth"],
)
@pytest.mark.parametrize("name", ["grid", "cluster"])
def test_yaml_that_is_too_much_is_refused_before_it_is_made(name, text, told):
    refused(name, text.encode(), told)


def test_an_npz_is_given_no_more_memory_than_it_has_numbers():
    header = b"{'descr': '|u1', 'fortran_order': False, 'shape': (99999999999, 8, 8, 3), }".ljust(117) + b"\n"
    npy = b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header
    refused("images npz", zipped([Member.of("arr_0.npy", npy)]), "more than it has")
    refused("stats npz", zipped([Member.of("mu.npy", npy)]), "more than it has")


def test_statistics_whose_sigma_is_no_covariance_are_refused(tmp_path):
    np.savez(tmp_path / "a.npz", mu=np.zeros(6), sigma=np.triu(np.ones((6, 6))))
    refused("stats npz", (tmp_path / "a.npz").read_bytes(), "no covariance")


def test_lengths_below_zero_and_bombs_are_no_images(monkeypatch):
    refused("idx", bytes((0, 0, 8, 3)) + struct.pack(">3i", -2, -4, 4) + bytes(32), "instead of")
    monkeypatch.setattr(mnist, "_LARGEST", 1 << 20)
    refused("idx gz", gzip.compress(bytes((0, 0, 8, 3)) + bytes(1 << 20), 1), "more than 1 MiB")


def test_names_in_archives_cannot_break_the_line():
    files = {"a\nb.png": b"no picture", "c.png": b"no picture"}
    refused("tar", _tarred(files), r"a\nb.png")


def test_labels_of_what_is_no_name_are_refused():
    refused("dataset.json", json.dumps({"labels": [[1, 1], ["a", 1]]}).encode(), "write it so")


def test_a_cifar_batch_that_links_to_itself_is_damaged():
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w:gz") as archive:
        info = tarfile.TarInfo("cifar-10-batches-py/data_batch_1")
        info.type, info.linkname = tarfile.SYMTYPE, "data_batch_1"
        archive.addfile(info)
    refused("cifar", file.getvalue(), "is no file")


def test_a_gzipped_archive_with_a_wrong_check_sum_is_damaged():
    content = bytearray(seeds("cifar")[0])
    content[-6] ^= 1
    assert attempt("cifar", bytes(content)).ending == "refused"


def test_no_bit_of_a_zip_changes_its_images_unseen():
    """A check sum stands over each: what is accepted is what was written."""
    whole = zipped([Member.of(f"{i}.png", seeds("png")[0], zipfile.ZIP_STORED) for i in range(2)])
    found = set()
    for place in range(0, len(whole), 23):
        spoilt_ = bytearray(whole)
        spoilt_[place] ^= 1 << place % 8
        yard = attempt("zip", bytes(spoilt_))
        assert not yard.bad, yard.why
        found.add(yard.ending)
    assert found == {"accepted", "refused"}


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda bundle: bundle.update(rows={"a": 1}), "rows are no list"),
        (lambda bundle: bundle["rows"][0].update(fid="many"), "fid of a row"),
        (lambda bundle: bundle["rows"][0].update(label=None), "label of a row"),
        (lambda bundle: bundle["rows"][0].update(recipe={"kd.lr": 1}), "recipe of a row"),
        (lambda bundle: bundle["rows"][0].update(warning="\ud800"), "half a character"),
        (lambda bundle: bundle["strips"][0].update(steps="1"), "steps of a strip"),
        (lambda bundle: bundle["strips"][0].update(saw=["data"]), "saw of a strip"),
        (lambda bundle: bundle.update(recipes=[]), "recipes"),
        (lambda bundle: bundle.update(metrics={"x": "best"}), "metrics"),
    ],
)
def test_scores_that_nobody_recorded_so_are_refused(change, told):
    document = json.loads(seeds("executed")[0])
    (bundle,) = document["cells"][0]["outputs"][0]["data"].values()
    change(bundle)
    refused("executed", json.dumps(document).encode(), told)


@pytest.mark.parametrize(
    "change",
    [
        {"seconds": "1"},
        {"seconds": True},
        {"seconds": math.nan},
        {"seconds": math.inf},
        {"why": None},
        {"digest": 1},
        {"parameters": []},
        {"used": {}},
        {"used": ["model"]},
        {"used": [{"artifact": "m"}]},
        {"used": [{"data": "d.zip", "sha256": "0", "size": "1", "mtime": 2}]},
    ],
    ids=str,
)
def test_a_stamp_that_no_run_wrote_is_refused(change):
    document = json.loads(seeds("executed")[0])
    document["metadata"][STAMP].update(change)
    refused("executed", json.dumps(document).encode(), "a stamp that no run wrote")


@pytest.mark.parametrize("stamp", ["", [], "x", None])
def test_a_stamp_is_a_dictionary(stamp):
    document = json.loads(seeds("executed")[0])
    document["metadata"][STAMP] = stamp
    refused("executed", json.dumps(document).encode(), "a stamp that no run wrote")


@pytest.mark.parametrize(
    ("source", "told"),
    [
        ("for a in b:\n    c", "`for a in b:`"),
        ("a = {[]: 1}", "not a literal"),
        ("a = 1\0", "parameters cell"),
        ("a = " + "-" * 50_000 + "1", "parameters cell"),
    ],
)
def test_a_parameters_cell_of_other_things_is_one_line(source, told):
    document = json.loads(seeds("notebook")[0])
    document["cells"][1]["source"] = source
    refused("notebook", json.dumps(document).encode(), told)


def test_a_strip_that_is_no_picture_is_one_line(refuses):
    with refuses("strip is damaged", "run again"):
        sample_sheet([strip("SlimFlow", "0.2M", 1, dataset="digits", png="AAAA")])
