import gzip
import hashlib
import io
import json
import os
import pickle
import re
import struct
import tarfile
import zipfile

import numpy as np
import pytest
import requests
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from onestep_bench import data
from onestep_bench.data import folders, registry
from onestep_bench.data.loading import load
from onestep_bench.data.pixels import to_uint8, to_unit
from onestep_bench.errors import OnestepError
from onestep_bench.store import downloads
from onestep_bench.store.files import same_data
from onestep_bench.store.notes import noted


@pytest.fixture(autouse=True)
def _no_network(monkeypatch):
    def refuse(*args, **kwargs):
        raise requests.ConnectionError("no network in tests")

    monkeypatch.setattr(requests, "get", refuse)


def fails(match, *args):
    """`load(*args)` must raise one line that matches."""
    with pytest.raises(OnestepError, match=match) as caught:
        load(*args)
    assert "\n" not in str(caught.value)


def whole(*args):
    """A source too small to be split."""
    return load(*args, split="all")


def pixels(n=4, channels=3, size=6, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (n, channels, size, size), dtype=np.uint8)


def png(image, mode=None):
    image = Image.fromarray(image[0] if len(image) == 1 else image.transpose(1, 2, 0))
    file = io.BytesIO()
    (image.convert(mode) if mode else image).save(file, "PNG")
    return file.getvalue()


def write_folder(folder, images, labels=None):
    folder.mkdir(exist_ok=True)
    for i, image in enumerate(images):
        (folder / f"{i}.png").write_bytes(png(image))
    if labels is not None:
        pairs = [[f"{i}.png", label] for i, label in enumerate(labels)]
        (folder / "dataset.json").write_text(json.dumps({"labels": pairs}))
    return folder


def write_zip(path, members):
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


# --- what a data set is


def test_digits_are_embedded():
    digits = load("digits")
    assert digits.images.dtype == torch.uint8
    assert len(digits) == 899
    assert digits.shape == (1, 8, 8)
    assert (digits.resolution, digits.channels, digits.num_classes) == (8, 1, 10)
    assert sum(digits.class_counts) == 899
    assert (digits.images.min(), digits.images.max()) == (0, 255)
    assert digits.digest == "9014eb996228bfd5"


def test_digest_follows_pixels_and_labels(tmp_path):
    images = pixels()
    variants = [None, [0, 1, 1, 0], [0, 1, 1, 1], [0, 1, 1, 0]]
    folders = [write_folder(tmp_path / str(i), images, labels) for i, labels in enumerate(variants)]
    digests = [whole(str(folder)).digest for folder in folders]
    images[0, 0, 0, 0] ^= 1
    digests.append(whole(str(write_folder(tmp_path / "other", images))).digest)
    assert digests[1] == digests[3]
    assert len(set(digests)) == 4


@given(st.lists(st.integers(0, 255), min_size=1))
def test_uint8_survives_the_trip_to_unit_range(values):
    images = torch.tensor(values, dtype=torch.uint8)
    assert to_unit(images).abs().max() <= 1
    assert torch.equal(to_uint8(to_unit(images)), images)


def test_every_uint8_survives_and_the_outside_is_clamped():
    every = torch.arange(256).to(torch.uint8)
    assert torch.equal(to_uint8(to_unit(every)), every)
    assert to_uint8(torch.tensor([-3.0, 3.0])).tolist() == [0, 255]


def test_pixels_are_rounded_to_the_nearest():
    levels = torch.arange(255, dtype=torch.float64)
    assert torch.equal(to_uint8((levels + 0.49) / 127.5 - 1), levels.to(torch.uint8))
    assert torch.equal(to_uint8((levels + 0.51) / 127.5 - 1), (levels + 1).to(torch.uint8))


def test_a_new_data_set_is_one_function(monkeypatch, tmp_path):
    monkeypatch.setitem(registry.LOADERS, "squares", None)  # and so it goes when the test ends

    @data.dataset("squares")
    def _squares(root):
        return pixels(3), np.array([0, 2, 2])

    assert "squares" in data.names()
    assert whole("squares", tmp_path).class_counts == [1, 0, 2]


# --- folders and zips


@pytest.mark.parametrize("channels", [1, 3])
def test_folder_is_read_in_sorted_order_with_its_labels(tmp_path, channels):
    images = pixels(channels=channels)
    found = whole(str(write_folder(tmp_path / "pictures", images, [2, 0, 1, 1])))
    assert found.name == "pictures"
    assert np.array_equal(found.images, images)
    assert found.labels.tolist() == [2, 0, 1, 1]
    assert found.labels.dtype == torch.int64


def test_unlabelled_folder_of_folders(tmp_path):
    first, second = pixels(2)
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "x.PNG").write_bytes(png(second))
    (tmp_path / "a.png").write_bytes(png(first))
    (tmp_path / "b" / "._x.png").write_bytes(b"left by a file manager")
    (tmp_path / "notes.txt").write_text("not an image")
    found = whole(str(tmp_path))
    assert np.array_equal(found.images, [first, second])
    assert found.labels is None
    assert found.num_classes == 0
    assert found.class_counts == []


# --- classes by sub-folder


def pictured(*names):
    """A small picture of each name."""
    return {name: png(image) for name, image in zip(names, pixels(len(names)), strict=True)}


def write_all(folder, members):
    for name, content in members.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


def packed(kind, folder, members):
    """The same files as a folder, a zip or a tar."""
    if kind == "folder":
        return write_all(folder / "set", members)
    if kind == "zip":
        return write_zip(folder / "set.zip", members)
    with tarfile.open(folder / "set.tar", "w") as archive:
        archive.add(write_all(folder / "set", members), ".")
    return folder / "set.tar"


@pytest.mark.parametrize("kind", ["folder", "zip", "tar"])
def test_sub_folders_are_classes_in_the_order_of_their_names(tmp_path, kind):
    members = pictured("dog/2.png", "cat/7.png", "a b/0.png", "a/9.png", "cat/0.png")
    found = whole(str(packed(kind, tmp_path, members | {"notes.txt": b"", ".hidden/x.png": b""})))
    order = ["a b/0.png", "a/9.png", "cat/0.png", "cat/7.png", "dog/2.png"]
    assert [png(image) for image in found.images.numpy()] == [members[name] for name in order]
    assert found.labels.tolist() == [1, 0, 2, 2, 3]


def test_digits_as_folders_are_classes(tmp_path):
    found = whole(str(write_all(tmp_path, pictured("0/1.png", "0/2.png", "1/0.png", "9/12345.png"))))
    assert found.labels.tolist() == [0, 0, 1, 2]


NO_CLASSES = {
    "as NVlabs/edm numbers them": ("00000/img00000000.png", "00000/img00000999.png", "00001/img00001000.png"),
    "as FFHQ and EDM's generator do": ("00000/00000.png", "01000/01000.png", "69000/69999.png"),
    "one folder": ("photos/a.png", "photos/b.png"),
    "some deeper": ("cat/a.png", "cat/b.png", "dog/young/c.png"),
    "all deeper": ("train/cat/a.png", "train/dog/b.png"),
    "some outside": ("a.png", "cat/b.png", "dog/c.png"),
}


@pytest.mark.parametrize("names", NO_CLASSES.values(), ids=NO_CLASSES)
def test_other_sub_folders_are_no_classes(tmp_path, names):
    assert whole(str(write_all(tmp_path, pictured(*names)))).labels is None


def test_numbers_that_do_not_count_the_files_are_classes(tmp_path):
    names = ("00000/00003_00021.png", "00014/00003_00021.png", "00042/img00000000.png")
    assert whole(str(write_all(tmp_path, pictured(*names)))).labels.tolist() == [0, 1, 2]


def test_dataset_json_is_believed_before_sub_folders(tmp_path):
    write_all(tmp_path, pictured("cat/a.png", "dog/b.png"))
    for labels, expected in ([["cat/a.png", 5], ["dog/b.png", 0]], [5, 0]), (None, None):
        (tmp_path / "dataset.json").write_text(json.dumps({"labels": labels}))
        found = whole(str(tmp_path)).labels
        assert (found if found is None else found.tolist()) == expected


def test_a_grids_cell_notes_the_file_that_it_read(tmp_path, monkeypatch):
    (tmp_path / "scratch").mkdir()
    monkeypatch.setenv("ONESTEP_SCRATCH", str(tmp_path / "scratch"))
    monkeypatch.setenv("ONESTEP_DATA", str(tmp_path))
    write_zip(tmp_path / "set.zip", {"a.png": png(pixels(1)[0])})
    whole("set.zip")
    whole("set.zip")
    load("digits")  # ships with scikit-learn
    (note,) = noted(tmp_path / "scratch")
    assert note["data"] == str(tmp_path / "set.zip")
    assert same_data(tmp_path / "set.zip", note)
    write_zip(tmp_path / "set.zip", {"a.png": png(pixels(1)[0]), "b.png": png(pixels(2)[1])})
    assert not same_data(tmp_path / "set.zip", note)


def test_zip_is_found_under_the_environment_folder(tmp_path, monkeypatch):
    images = pixels(2)
    labels = {"labels": [["00000/b.png", 1], ["00000/a.png", 0]]}
    members = {f"00000/{name}.png": png(image) for name, image in zip("ab", images, strict=True)}
    write_zip(tmp_path / "set.zip", members | {"dataset.json": json.dumps(labels)})
    monkeypatch.setenv("ONESTEP_DATA", str(tmp_path))
    found = whole("set.zip")
    assert found.name == "set"
    assert np.array_equal(found.images, images)
    assert found.labels.tolist() == [0, 1]


def test_null_labels_mean_none(tmp_path):
    write_zip(tmp_path / "set.zip", {"a.png": png(pixels()[0]), "dataset.json": '{"labels": null}'})
    assert whole("set.zip", tmp_path).labels is None


def test_odd_images_are_named(tmp_path):
    folder = write_folder(tmp_path / "f", pixels())
    for content, message in [
        (png(pixels(size=5)[0]), "9.png is 5x5 colour but 0.png is 6x6 colour"),
        (png(pixels(channels=1)[0]), "9.png is 6x6 grey but 0.png is 6x6 colour"),
        (png(pixels()[0], "RGBA"), "9.png has mode RGBA; convert"),
        (png(pixels()[0], "P"), "9.png has mode P; convert"),
        (png(pixels()[0])[:60], "cannot read image 9.png"),
        (b"rubbish", r"cannot read image 9.png \(not in a known format\)"),
        (b"", "cannot read image 9.png"),
    ]:
        (folder / "9.png").write_bytes(content)
        fails(message, str(folder))


def test_images_must_be_square(tmp_path):
    write_folder(tmp_path, pixels(size=6)[:, :, :4])
    fails("0.png is 6x4; images must be square", str(tmp_path))


def test_empty_folder(tmp_path):
    fails("holds no images", str(tmp_path))


@pytest.mark.parametrize(
    ("pairs", "message"),
    [
        ([["0.png", 1]], r"4 images but 1 labels \(1.png has no partner\)"),
        ([[f"{i}.png", 0] for i in range(5)], r"4 images but 5 labels \(4.png has no partner\)"),
        ([[f"{i}.png", 0.5] for i in range(4)], "label of 0.png is 0.5; labels are integers"),
        ([[f"{i}.png", -1] for i in range(4)], "label of 0.png is -1"),
        (["0.png", "1.png"], "dataset.json is not"),
    ],
)
def test_labels_must_fit_the_images(tmp_path, pairs, message):
    write_folder(tmp_path, pixels())
    (tmp_path / "dataset.json").write_text(json.dumps({"labels": pairs}))
    fails(message, str(tmp_path))


def test_broken_dataset_json(tmp_path):
    write_folder(tmp_path, pixels())
    (tmp_path / "dataset.json").write_text("{")
    fails("dataset.json is not", str(tmp_path))


@pytest.mark.parametrize("name", ["../evil.png", "/evil.png", "a/../../evil.png"])
def test_zip_entries_that_escape_are_refused(tmp_path, name):
    fails("points outside the zip", str(write_zip(tmp_path / "set.zip", {name: png(pixels()[0])})))


def test_corrupt_zips(tmp_path):
    good = write_zip(tmp_path / "set.zip", {"a.png": png(pixels()[0])}).read_bytes()
    for content, message in [
        (b"rubbish", r"cannot read .*set.zip as a zip"),
        (good[: len(good) // 2], r"cannot read .*set.zip as a zip"),
        (good.replace(b"IDAT", b"IDAX"), "cannot read image a.png"),
    ]:
        (tmp_path / "set.zip").write_bytes(content)
        fails(message, "set.zip", tmp_path)


def test_unknown_names_and_missing_paths(tmp_path):
    fails("unknown data set 'mnits'; did you mean 'mnist'", "mnits", tmp_path)
    fails("unknown data set ''; known: .*digits", "", tmp_path)
    fails("no file or folder there/not.zip", "there/not.zip", tmp_path)
    fails("data folder .*absent does not exist", "digits", tmp_path / "absent")


# --- sets that are mapped from a file


@pytest.fixture
def mapped(monkeypatch, tmp_path):
    """Every set is large enough to be mapped; the folder of decoded sets."""
    monkeypatch.setattr(folders, "_MAPPED", 1)
    monkeypatch.setenv("ONESTEP_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.mark.parametrize("packed", [True, False])
def test_a_large_set_is_decoded_once(tmp_path, mapped, monkeypatch, packed):
    images = pixels(4)
    if packed:
        source = write_zip(tmp_path / "set.zip", {f"{i}.png": png(image) for i, image in enumerate(images)})
    else:
        source = write_folder(tmp_path / "set", images)
    first = whole(str(source))
    decode, decoded = folders.decode, []
    monkeypatch.setattr(folders, "decode", lambda *args: decoded.append(args) or decode(*args))
    again = whole(str(source))
    assert len(decoded) == 1  # the first image says how large they are
    for found in (first, again):
        assert np.array_equal(found.images, images)
        found.images[0] += 1  # the mapping is private
    assert whole(str(source)).digest == first.digest == again.digest
    assert sorted(file.suffix for file in mapped.iterdir()) == [".all", ".sides"]


def test_other_content_is_another_file(tmp_path, mapped):
    for seed in (0, 1):
        source = write_zip(tmp_path / "set.zip", {"a.png": png(pixels(1, seed=seed)[0])})
        assert np.array_equal(whole(str(source)).images, pixels(1, seed=seed))
    assert len(list(mapped.glob("*.all"))) == 2


def test_a_damaged_decoded_file_is_made_again(tmp_path, mapped):
    source = write_zip(tmp_path / "set.zip", {"a.png": png(pixels(1)[0])})
    whole(str(source))
    files = list(mapped.iterdir())
    assert len(files) == 2
    for file in files:
        for content in (b"", b"rubbish", file.read_bytes()[:-1]):
            file.unlink()
            file.write_bytes(content)
            assert np.array_equal(whole(str(source)).images, pixels(1))


def test_a_bad_image_leaves_no_decoded_file(tmp_path, mapped):
    write_zip(tmp_path / "set.zip", {"a.png": png(pixels(1)[0]), "b.png": b"rubbish"})
    fails("cannot read image b.png", str(tmp_path / "set.zip"))
    assert list(mapped.iterdir()) == []


# --- MNIST


def idx(array):
    return bytes((0, 0, 8, array.ndim)) + struct.pack(f">{array.ndim}i", *array.shape) + array.tobytes()


IMAGES, LABELS = pixels(5, 1, 28)[:, 0], np.array([3, 1, 4, 1, 5], np.uint8)
IMAGE_FILE, LABEL_FILE = "train-images-idx3-ubyte", "train-labels-idx1-ubyte"


@pytest.mark.parametrize("name", ["mnist", "fashion-mnist"])
@pytest.mark.parametrize("zipped", [False, True])
def test_torchvisions_idx_layout(tmp_path, name, zipped):
    folder = tmp_path / {"mnist": "MNIST", "fashion-mnist": "FashionMNIST"}[name] / "raw"
    folder.mkdir(parents=True)
    for file, array in ((IMAGE_FILE, IMAGES), (LABEL_FILE, LABELS)):
        content = idx(array)
        (folder / (file + ".gz" * zipped)).write_bytes(gzip.compress(content) if zipped else content)
    found = load(name, tmp_path)
    assert found.name == name
    assert np.array_equal(found.images[:, 0], IMAGES)
    assert found.labels.tolist() == LABELS.tolist()


@pytest.mark.parametrize("folder", [".", "mnist"])
def test_mnist_files_without_torchvisions_folders(tmp_path, folder):
    (tmp_path / folder).mkdir(exist_ok=True)
    (tmp_path / folder / f"{IMAGE_FILE}.gz").write_bytes(gzip.compress(idx(IMAGES)))
    (tmp_path / folder / f"{LABEL_FILE}.gz").write_bytes(gzip.compress(idx(LABELS)))
    assert load("mnist", tmp_path).shape == (1, 28, 28)
    fails("train-images-idx3-ubyte.gz is missing", "fashion-mnist", tmp_path)


def test_damaged_idx_files_are_named(tmp_path):
    (tmp_path / f"{LABEL_FILE}.gz").write_bytes(gzip.compress(idx(LABELS)))
    for content, message in [
        (gzip.compress(idx(IMAGES))[:200], "cannot read .*train-images"),
        (b"rubbish", "cannot read .*train-images"),
        (gzip.compress(idx(LABELS)), "train-images.* is not an idx file of 3-dimensional"),
        (gzip.compress(b""), "train-images.* is not an idx file"),
        (gzip.compress(idx(IMAGES)[:-1]), "train-images.* has 3935 bytes instead of 3936"),
        (gzip.compress(idx(IMAGES) + b"1"), "train-images.* has 3937 bytes instead of 3936"),
        (gzip.compress(idx(IMAGES[:4])), "mnist has 4 images but 5 labels"),
    ]:
        (tmp_path / f"{IMAGE_FILE}.gz").write_bytes(content)
        fails(message, "mnist", tmp_path)


# --- CIFAR


class Python2Pickler(pickle._Pickler):
    """Writes strings as Python 2 did, as CIFAR's own files hold them."""

    def save_string(self, value):
        value = value.encode() if isinstance(value, str) else value
        self.write(pickle.BINSTRING + struct.pack("<i", len(value)) + value)

    dispatch = pickle._Pickler.dispatch | {bytes: save_string, str: save_string}


def cifar_batch(images, labels):
    file = io.BytesIO()
    value = {"data": images.reshape(len(images), -1), "labels": labels, "batch_label": "a batch"}
    Python2Pickler(file, protocol=2).dump(value)
    return file.getvalue().replace(b"numpy._core", b"numpy.core")


def cifar_batches():
    images = pixels(10, 3, 32)
    return images, {f"data_batch_{i + 1}": cifar_batch(images[2 * i : 2 * i + 2], [i, 9]) for i in range(5)}


def write_cifar(root):
    images, batches = cifar_batches()
    (root / "cifar-10-batches-py").mkdir()
    for name, content in batches.items():
        (root / "cifar-10-batches-py" / name).write_bytes(content)
    return images


def test_cifar_layout(tmp_path):
    images = write_cifar(tmp_path)
    found = load("cifar10", tmp_path)
    assert np.array_equal(found.images, images)
    assert found.labels.tolist() == [0, 9, 1, 9, 2, 9, 3, 9, 4, 9]


class Exploit:
    def __init__(self, folder):
        self.folder = folder

    def __reduce__(self):
        return os.mkdir, (str(self.folder),)


def test_pickles_that_run_code_are_refused_by_name(tmp_path):
    write_cifar(tmp_path)
    for protocol in range(6):
        content = pickle.dumps({"data": Exploit(tmp_path / "owned"), "labels": []}, protocol)
        (tmp_path / "cifar-10-batches-py" / "data_batch_3").write_bytes(content)
        fails(r"data_batch_3: refused to unpickle posix.mkdir", "cifar10", tmp_path)
    assert not (tmp_path / "owned").exists()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"rubbish",
        cifar_batch(pixels(2, 3, 32), [1, 2])[:-100],
        cifar_batch(pixels(2, 3, 32), [1, 2, 3]),
        cifar_batch(pixels(2, 3, 31), [1, 2]),
        pickle.dumps([1, 2]),
    ],
)
def test_damaged_cifar_batches_are_named(tmp_path, content):
    write_cifar(tmp_path)
    (tmp_path / "cifar-10-batches-py" / "data_batch_2").write_bytes(content)
    fails("data_batch_2 is damaged", "cifar10", tmp_path)


# --- downloads


class Answer:
    """As much of requests.Response as a download needs."""

    def __init__(self, *blocks):
        self.blocks = blocks

    def __enter__(self):
        return self

    def __exit__(self, *error):
        pass

    def raise_for_status(self):
        pass

    def iter_content(self, size):
        for block in self.blocks:
            if isinstance(block, Exception):
                raise block
            yield block


def everything_in(folder):
    return [path for path in folder.rglob("*") if path.is_file()]


@pytest.mark.parametrize("error", [requests.ConnectionError("dead"), requests.Timeout("slow"), ConnectionError("dead")])
def test_offline_says_which_file_to_put_where(tmp_path, monkeypatch, error):
    def get(*args, **kwargs):
        raise error

    monkeypatch.setattr(requests, "get", get)
    where = re.escape(str(tmp_path / "MNIST" / "raw" / f"{IMAGE_FILE}.gz"))
    md5 = "f68b3c2dcbeaaa9fbdd348bbdeb94873"
    fails(rf"{IMAGE_FILE}.gz is missing .*put the file at {where} \(MD5 {md5}\)", "mnist", tmp_path)
    fails(r"cifar-10-python.tar.gz is missing .*\(MD5 c58f30108f718f92721af3b95e74349a\)", "cifar10", tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_checksum_mismatch_leaves_nothing_behind(tmp_path, monkeypatch):
    monkeypatch.setattr(requests, "get", lambda *args, **kwargs: Answer(b"not what", b" was asked"))
    fails("checksum mismatch for .*cifar-10-python.tar.gz.*expected c58f", "cifar10", tmp_path)
    assert everything_in(tmp_path) == []


def test_broken_connection_leaves_nothing_behind(tmp_path, monkeypatch):
    answer = Answer(b"half", requests.exceptions.ChunkedEncodingError("broken"))
    monkeypatch.setattr(requests, "get", lambda *args, **kwargs: answer)
    fails("cannot be downloaded", "fashion-mnist", tmp_path)
    assert everything_in(tmp_path) == []


def test_second_mirror_serves_when_the_first_is_dead(tmp_path, monkeypatch):
    asked = []

    def get(url, **kwargs):
        asked.append(url)
        if len(asked) == 1:
            raise requests.ConnectionError
        return Answer(b"content")

    monkeypatch.setattr(requests, "get", get)
    downloads.fetch(tmp_path / "file", ["http://a/file", "http://b/file"], hashlib.md5(b"content").hexdigest())
    assert (tmp_path / "file").read_bytes() == b"content"
    assert asked == ["http://a/file", "http://b/file"]


def cifar_archive(batches):
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w:gz") as tar:
        for name, content in batches.items():
            info = tarfile.TarInfo(f"cifar-10-batches-py/{name}")
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return file.getvalue()


def test_cifar_is_downloaded_and_unpacked(tmp_path, monkeypatch):
    images, batches = cifar_batches()
    monkeypatch.setattr(requests, "get", lambda *args, **kwargs: Answer(cifar_archive(batches)))
    monkeypatch.setattr(downloads, "_verify", lambda *args: None)
    assert np.array_equal(load("cifar10", tmp_path).images, images)


def test_incomplete_cifar_archive(tmp_path, monkeypatch):
    _, batches = cifar_batches()
    del batches["data_batch_4"]
    (tmp_path / "cifar-10-python.tar.gz").write_bytes(cifar_archive(batches))
    monkeypatch.setattr(downloads, "_verify", lambda *args: None)
    fails("cifar-10-python.tar.gz is damaged .*data_batch_4", "cifar10", tmp_path)
