"""Images to train on and images to test with: apart, all of them, and the same for ever."""

import gzip
import pickle

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from test_data import IMAGES, LABELS, cifar_batch, idx, pixels, png, write_cifar, write_folder, write_zip

from onestep_bench import data
from onestep_bench.data import folders, registry, tool
from onestep_bench.data.loading import load
from onestep_bench.data.splits import fingerprint, is_test, rows_of
from onestep_bench.errors import OnestepError

MANY = 200


def parts(name, *args):
    """The whole and its two splits, each loaded."""
    return tuple(load(str(name), *args, split=split) for split in ("all", "train", "test"))


def prints(found):
    return [fingerprint(image) for image in found.images.numpy()]


# ---- by hash


# Which they are is part of every score: whoever changes them changes what was held out from trained models.
TENTH = [3, 9, 15, 31, 32, 33, 70, 82, 88, 90, 91, 95, 96, 153, 160, 170, 181]


def test_every_tenth_image_or_so_is_to_test_with():
    assert rows_of(map(is_test, pixels(MANY, 1, 2)), "test").tolist() == TENTH
    sides = [is_test(image) for image in pixels(5000, 1, 3, seed=1)]
    assert 0.085 < np.mean(sides) < 0.115


@given(st.integers(0, 2**32 - 1), st.lists(st.integers(0, 40), min_size=1, max_size=60))
def test_splits_are_apart_and_whole_and_an_image_keeps_its_side(seed, chosen):
    """Whatever else is in the set, and however often it is there itself."""
    images = pixels(41, 1, 2, seed)
    alone = [is_test(image) for image in images]
    tests = [is_test(image) for image in images[chosen]]
    assert tests == [alone[index] for index in chosen]
    train, test = (rows_of(tests, split) for split in ("train", "test"))
    assert sorted([*train, *test]) == list(range(len(chosen))) == rows_of(tests, "all").tolist()
    assert not {fingerprint(images[chosen[row]]) for row in train} & {fingerprint(images[chosen[row]]) for row in test}


@pytest.mark.parametrize("large", [False, True])
@pytest.mark.parametrize("labelled", [False, True])
def test_a_folder_is_split_with_its_labels(tmp_path, monkeypatch, large, labelled):
    monkeypatch.setattr(folders, "_MAPPED", 1 if large else 1 << 26)
    monkeypatch.setenv("ONESTEP_CACHE", str(tmp_path / "cache"))
    images = pixels(MANY, 1, 4)
    labels = [int(image.sum()) % 3 for image in images] if labelled else None
    every, train, test = parts(write_folder(tmp_path / "set", images, labels))
    assert (every.split, train.split, test.split) == ("all", "train", "test")
    assert 0 < len(test) < len(train)
    assert len(every) == MANY == len(train) + len(test)
    assert len({every.digest, train.digest, test.digest}) == 3
    assert all(is_test(image) for image in test.images.numpy())
    order = prints(every)  # of which each split keeps its part
    assert prints(train) == [each for each in order if each in set(prints(train))]
    for found in (every, train, test) if labelled else ():
        assert found.labels.tolist() == [int(image.sum()) % 3 for image in found.images]
    assert load(str(tmp_path / "set")).digest == train.digest  # from the mapped file


def test_mapped_splits_are_decoded_together(tmp_path, monkeypatch):
    monkeypatch.setattr(folders, "_MAPPED", 1)
    monkeypatch.setenv("ONESTEP_CACHE", str(tmp_path / "cache"))
    source, alike, passes = write_folder(tmp_path / "set", pixels(MANY, 1, 4)), folders._alike, []
    monkeypatch.setattr(folders, "_alike", lambda *args: passes.append(1) or alike(*args))
    for split in ("train", "test"):
        images, _ = folders.read_source(source, split)
        assert isinstance(images, np.memmap)
        (file,) = (tmp_path / "cache").glob(f"*.{split}")
        assert file.stat().st_size == images.size
    assert len(passes) == 1


def test_a_source_too_small_says_so(tmp_path):
    source = write_zip(tmp_path / "set.zip", {"a.png": png_on_side(False)})
    assert len(load(str(source))) == 1
    with pytest.raises(OnestepError, match=r"set has no test images.*one in 10.*split 'all'"):
        load(str(source), split="test")
    write_zip(source, {"a.png": png_on_side(True)})
    with pytest.raises(OnestepError, match=r"set has no train images"):
        load(str(source))


def png_on_side(test):
    return png(next(image for image in pixels(MANY, 1, 4) if is_test(image) == test))


def test_a_check_counts_both_splits(tmp_path):
    images = pixels(MANY, 1, 4)
    found = tool.check(write_folder(tmp_path / "set", images))
    tests = sum(map(is_test, images))
    assert f"splits: {MANY - tests} train, {tests} test" in found.lines()


# ---- registered data sets


def test_digits_are_halved_class_by_class():
    every, train, test = parts("digits")
    assert (len(every), len(train), len(test)) == (1797, 899, 898)
    assert (train.digest, test.digest) == ("9014eb996228bfd5", "11eb72c30b9bd74a")  # for ever
    assert sorted(prints(train) + prints(test)) == sorted(prints(every))
    assert not set(prints(train)) & set(prints(test))
    assert all(abs(a - b) <= 1 for a, b in zip(train.class_counts, test.class_counts, strict=True))
    assert torch.equal(every.images, torch.cat([train.images, test.images]))


@pytest.mark.parametrize("official", [False, True])
def test_a_data_set_that_its_authors_split_takes_the_split(monkeypatch, official):
    monkeypatch.setitem(registry.LOADERS, "dots", None)
    images, asked = pixels(MANY, 1, 3), []

    def split_by_us(root):
        return images, np.arange(MANY)

    def split_by_them(root, split):
        asked.append(split)
        return (images[:5], None) if split == "train" else (images[5:7], None)

    data.dataset("dots")(split_by_them if official else split_by_us)
    every, train, test = parts("dots")
    if official:
        assert (len(every), len(train), len(test)) == (7, 5, 2)
        assert asked == ["train", "test", "train", "test"]
        assert np.array_equal(every.images, images[:7])
    else:
        assert test.labels.tolist() == [row for row in range(MANY) if is_test(images[row])]
        assert sorted([*train.labels.tolist(), *test.labels.tolist()]) == every.labels.tolist()


@pytest.mark.parametrize(("name", "folder"), [("mnist", "mnist"), ("fashion-mnist", "fashion-mnist")])
def test_idx_sets_have_their_own_test_files(tmp_path, name, folder):
    (tmp_path / folder).mkdir()
    for stem, rows in (("train", slice(3)), ("t10k", slice(3, 5))):
        (tmp_path / folder / f"{stem}-images-idx3-ubyte").write_bytes(idx(IMAGES[rows]))
        (tmp_path / folder / f"{stem}-labels-idx1-ubyte.gz").write_bytes(gzip.compress(idx(LABELS[rows])))
    every, train, test = parts(name, tmp_path)
    assert np.array_equal(train.images[:, 0], IMAGES[:3])
    assert np.array_equal(test.images[:, 0], IMAGES[3:])
    assert test.labels.tolist() == LABELS[3:].tolist()
    assert every.labels.tolist() == LABELS.tolist()


@pytest.mark.parametrize("kind", ["py", "bin"])
def test_cifar_has_its_own_test_batch(tmp_path, kind):
    images, labels = pixels(3, 3, 32, seed=1), [7, 0, 7]
    if kind == "py":
        write_cifar(tmp_path)
        (tmp_path / "cifar-10-batches-py" / "test_batch").write_bytes(cifar_batch(images, labels))
    else:
        records = np.concatenate([np.array(labels, np.uint8)[:, None], images.reshape(3, -1)], 1)
        (tmp_path / "cifar-10-batches-bin").mkdir()
        for batch in (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"):
            (tmp_path / "cifar-10-batches-bin" / f"{batch}.bin").write_bytes(records.tobytes())
    every, train, test = parts("cifar10", tmp_path)
    assert np.array_equal(test.images, images)
    assert test.labels.tolist() == labels
    assert len(every) == len(train) + 3


# ---- from one split to the other


def test_a_data_set_knows_its_other_split(tmp_path, monkeypatch):
    write_folder(tmp_path / "set", pixels(MANY, 1, 4))
    monkeypatch.chdir(tmp_path)
    every, train, test = parts("./set")
    monkeypatch.chdir("/")
    assert train.on("train") is train
    assert train.on("test").digest == test.digest == test.on("train").on("test").digest
    assert every.on("test").digest == test.digest
    assert test.on("all").digest == every.digest
    assert train.splits == ("train", "test")
    assert pickle.loads(pickle.dumps(train)).on("test").digest == test.digest
    with pytest.raises(OnestepError, match="unknown split 'tset'; did you mean 'test'"):
        train.on("tset")


def test_images_made_by_hand_have_one_split():
    made = data.Dataset("mine", torch.zeros(4, 1, 2, 2, dtype=torch.uint8), None, "0" * 16)
    assert made.split == "train"
    assert made.splits == ()
    assert made.on("train") is made
    with pytest.raises(OnestepError, match="mine has no test images: it was made by hand"):
        made.on("test")


def test_an_unknown_split_is_one_clear_line():
    with pytest.raises(OnestepError, match="unknown split 'tran'; did you mean 'train'"):
        load("digits", split="tran")
