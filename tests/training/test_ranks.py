"""Several processes at one piece of work end with what one process ends with, or all of them end, in words."""

import os
import shutil
import socket
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest
import ranked
import torch
from hypothesis import given
from hypothesis import strategies as st

from onestep_bench.training import loop, ranks
from onestep_bench.training.config import TrainConfig

SCRIPT = str(Path(ranked.__file__))
CLASSES = ("inception_score", "class_gap")
SECONDS = 240  # a hang is a failure; a busy machine is none


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


def start(job, folder, count=2, file=None):
    """`count` ranks that nobody watches over, who meet in a file or at a port; (exit code, standard error) of each."""
    place = {"ONESTEP_RANKS": str(file)} if file else {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port()}
    common = {"WORLD_SIZE": str(count)} | place
    processes = [
        subprocess.Popen(
            [sys.executable, SCRIPT, job, str(folder)],
            env=os.environ | common | {"RANK": str(rank), "LOCAL_RANK": str(rank), "ONESTEP_STORE": str(folder / "s")},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(count)
    ]
    try:
        errors = [process.communicate(timeout=SECONDS)[1] for process in processes]
    finally:
        for process in processes:
            process.kill()
    return [(process.returncode, error) for process, error in zip(processes, errors, strict=True)]


def results(job, folder):
    return [torch.load(folder / f"{job}-{rank}.pt") for rank in range(2)]


@pytest.fixture(scope="module")
def curves(tmp_path_factory):
    """What two ranks of torchrun and one process found."""
    folder = tmp_path_factory.mktemp("curves")
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [*torchrun, SCRIPT, "curves", str(folder)], capture_output=True, text=True, timeout=SECONDS, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    both = results("curves", folder)
    ranked.curves(folder)
    return both, torch.load(folder / "curves-0.pt")


@pytest.mark.parametrize("name", ranked.CURVES)
def test_ranks_train_as_one_process_does(curves, name):
    (first, second), alone = ([side[name] for side in curves[0]]), curves[1][name]
    assert len(alone["losses"]) == ranked.CURVES[name][0]
    assert first["losses"] == second["losses"]
    assert first["passes"] == second["passes"] == alone["passes"]
    assert torch.equal(first["ema"], second["ema"])
    for ours, expected in zip(first["losses"], alone["losses"], strict=True):
        # SiD's loss is what is left of terms of both signs, as large as its fake score's loss.
        assert ours == pytest.approx(expected, rel=1e-5, abs=1e-6 * max(10, *expected.values()))
    # Where a gradient is hardly more than rounding, Adam may step a little differently.
    torch.testing.assert_close(first["ema"], alone["ema"], rtol=0, atol=1e-4)


def test_a_bad_loss_on_one_rank_is_one_on_all(curves):
    (first, second), alone = curves
    assert "the student loss was not finite or exploded at step 3" in alone["bad"]
    assert first["bad"] == second["bad"] == alone["bad"]


def test_dropout_differs_over_ranks_and_steps_and_nothing_else(curves):
    (first, second), alone = curves
    masks = [*first["dropout"], *second["dropout"]]
    assert len({tuple(mask.tolist()) for mask in masks}) == 4
    assert all(map(torch.equal, first["dropout"], alone["dropout"]))


def test_a_killed_rank_ends_the_others_and_all_go_on_exactly(curves, tmp_path):
    (code, error), (killed, _) = start("killed", tmp_path)
    assert killed == -9
    assert code == 1
    assert error.startswith("error: another rank ended or is out of reach (")
    assert error.count("\n") == 1
    assert torch.load(tmp_path / "checkpoint.pt")["done"] == 8
    assert start("killed", tmp_path) == [(0, ""), (0, "")]
    for resumed, undisturbed in zip(results("killed", tmp_path), curves[0], strict=True):
        *losses, state = resumed
        *expected_losses, expected = undisturbed["small"]
        assert losses == expected_losses
        assert len(losses) == 20
        assert all(torch.equal(state[name], expected[name]) for name in expected)


@pytest.fixture(scope="module")
def artifacts(tmp_path_factory):
    """A folder with what two ranks found, which met as a grid's do, and their store."""
    folder = tmp_path_factory.mktemp("artifacts")
    assert start("artifacts", folder, file=folder / "meeting") == [(0, ""), (0, "")]
    return folder


def test_ranks_make_the_artifacts_that_one_process_makes(artifacts, tmp_path, monkeypatch):
    first, second = results("artifacts", artifacts)
    assert first["passes"] == pytest.approx([3 * 0.064, 0.3])
    for name in ("keys", "losses", "passes", "strips"):
        assert first[name] == second[name]
    assert first["device"] == ["2 x CPU, 1 threads"] * 2

    # One process finds the model, and makes pairs and scores anew.
    (model,) = (artifacts / "s").glob("model-*[0-9a-f]")
    shutil.copytree(model, tmp_path / model.name)
    monkeypatch.setenv("ONESTEP_STORE", str(tmp_path))
    monkeypatch.setattr(ranked.sampling, "BATCH", 16)
    ranked.artifacts(tmp_path)
    expected = torch.load(tmp_path / "artifacts-0.pt")
    assert expected["keys"] == first["keys"]
    assert torch.equal(expected["pairs"], first["pairs"])
    assert torch.equal(expected["pairs"], second["pairs"])
    assert [strip["png"] for strip in expected["strips"]] == [strip["png"] for strip in first["strips"]]
    for ours, theirs in zip(first["rows"], expected["rows"], strict=True):
        assert (ours["features"], ours["split"]) == (theirs["features"], theirs["split"])
        for name in ("seed", "fid", "floor", "nn_ratio", "kid", "precision", "recall", "nfe", *CLASSES):
            if name in CLASSES and ours["features"] == "pixels":
                assert ours[name] is theirs[name] is None  # it tells no classes
            else:
                assert ours[name] == pytest.approx(theirs[name], rel=1e-6), name


def test_a_mishap_on_one_rank_is_told_on_all(artifacts):
    first, second = (found["mishap"] for found in results("artifacts", artifacts))
    assert first[0] == "another rank ended: rank 1: no disk left here"
    assert second[0] == "no disk left here"
    assert "left the other" in first[1]
    assert "left the other" in second[1]
    assert max(first[2], second[2]) < 10


@pytest.fixture
def ranks_of(monkeypatch):
    """Function that makes this process a rank, as far as its environment goes."""

    def become(count, rank=0):
        monkeypatch.setenv("WORLD_SIZE", str(count))
        monkeypatch.setenv("RANK", str(rank))
        for name in ("MASTER_ADDR", "MASTER_PORT"):
            monkeypatch.delenv(name, raising=False)

    return become


def test_rows_of_all_ranks_are_the_batch(ranks_of):
    config = TrainConfig(kimg=1, batch_size=24, accumulate=2)
    rows, firsts = [], []
    for rank in range(3):
        ranks_of(3, rank)
        draws = loop._micro_draws(config, 0, 5, "cpu")
        rows.append([list(range(draw.rows.start, draw.rows.stop)) for draw in draws])
        firsts.append([draw.first for draw in draws])
    micro_batches = [[row for of_rank in rows for row in of_rank[micro]] for micro in range(2)]
    assert micro_batches == [list(range(12)), list(range(12, 24))]
    assert firsts == [[True, False]] * 3


@given(st.integers(0, 40), st.integers(1, 9))
def test_own_items_of_all_ranks_are_the_items(items, count):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WORLD_SIZE", str(count))
        shares = []
        for rank in range(count):
            patch.setenv("RANK", str(rank))
            shares.append(ranks.own(range(items)))
    assert [item for share in shares for item in share] == list(range(items))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_groups_are_whole_or_refused(ranks_of, refuses):
    ranks_of(2)
    config = TrainConfig(kimg=0.024, batch_size=24, accumulate=2)
    loop._check_shares(config, 3, "imm")
    with refuses("imm: batch_size=24", "2 ranks in 2 micro-batches in whole groups of 4", "multiple of 16"):
        loop._check_shares(config, 4, "imm")


def test_mistakes_are_named(ranks_of, refuses, monkeypatch):
    ranks_of(3)
    with refuses("fit: batch_size=4 cannot be shared by 3 ranks in 1 micro-batches", "multiple of 3"):
        list(ranked.train_small())
    with refuses("WORLD_SIZE is 3 without MASTER_ADDR, MASTER_PORT", "torchrun"):
        ranks.shared(1)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setenv("LOCAL_RANK", "2")
    with refuses("rank 0 wants GPU 2, and 1 are visible"):
        ranks.device()
    monkeypatch.setenv("WORLD_SIZE", "many")
    with refuses("WORLD_SIZE='many'"):
        ranks.count()


class OnGPU:
    """As much of a tensor on a GPU as an average asks for."""

    is_cuda = True


def test_gradients_on_gpus_are_averaged_where_they_lie_in_one_exchange(ranks_of, monkeypatch):
    ranks_of(2)
    told, tensors = [], [OnGPU(), OnGPU(), OnGPU()]

    @contextmanager
    def named(name):
        told.append(name)
        yield
        told.append(f"end of {name}")

    monkeypatch.setattr(ranks, "_exchange", lambda: named("exchange"))
    monkeypatch.setattr(ranks.dist, "_coalescing_manager", lambda: named("one call"))
    monkeypatch.setattr(ranks.dist, "all_reduce", lambda tensor, op: told.append((tensor, op)))
    ranks.average(tensors)
    average = [(tensor, ranks.dist.ReduceOp.AVG) for tensor in tensors]
    assert told == ["exchange", "one call", *average, "end of one call", "end of exchange"]


def test_three_ranks_train_one_judge(tmp_path):
    """Three, which could not share a batch of 128."""
    assert [code for code, _ in start("judge", tmp_path, 3)] == [0, 0, 0]
    assert len({torch.load(tmp_path / f"judge-{rank}.pt") for rank in range(3)}) == 1
