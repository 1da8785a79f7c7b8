"""Data sets that are written come back; those that are checked are seen as they are."""

import gzip
import hashlib
import io
import json
import subprocess
import sys
import tarfile
import zipfile

import numpy as np
import pytest
from PIL import Image
from test_data import cifar_archive, cifar_batches, pixels, png, whole, write_folder, write_zip

from onestep_bench.cli import main
from onestep_bench.data import registry, tool
from onestep_bench.data.loading import load


def built(source, out, **options):
    tool.build(source, out, **options)
    return whole(str(out))


def test_a_folder_becomes_a_data_set(tmp_path):
    images = pixels(4, 3, 8)
    found = built(write_folder(tmp_path / "pictures", images, [2, 0, 1, 1]), tmp_path / "set.zip")
    assert np.array_equal(found.images, images)
    assert found.labels.tolist() == [2, 0, 1, 1]
    with zipfile.ZipFile(tmp_path / "set.zip") as archive:
        assert archive.namelist() == [f"00000/img0000000{i}.png" for i in range(4)] + ["dataset.json"]
        assert json.loads(archive.read("dataset.json"))["labels"][0] == ["00000/img00000000.png", 2]


def test_the_same_images_give_the_same_bytes(tmp_path):
    images = pixels(3, 3, 8)
    folder = write_folder(tmp_path / "a", images)
    members = {f"{i}.png": png(image) for i, image in enumerate(images)}
    packed = write_zip(tmp_path / "b.zip", dict(reversed(members.items())))
    tar(tmp_path / "c.tar.gz", members)
    digests = {tool.build(source, tmp_path / "out.zip")[1] for source in (folder, packed, tmp_path / "c.tar.gz")}
    assert len(digests) == 1
    assert digests == {hashlib.sha256((tmp_path / "out.zip").read_bytes()).hexdigest()}


def tar(path, members, mode="w:gz"):
    with tarfile.open(path, mode) as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


def test_thousands_go_into_folders(tmp_path):
    built(write_folder(tmp_path / "f", pixels(1002, 1, 2)), tmp_path / "set.zip")
    with zipfile.ZipFile(tmp_path / "set.zip") as archive:
        assert archive.namelist()[1000:1002] == ["00001/img00001000.png", "00001/img00001001.png"]


@pytest.mark.parametrize("transform", tool.TRANSFORMS)
def test_every_transform_makes_squares_of_the_middle(tmp_path, transform):
    """A white disc in the middle of a wide black picture is white in the middle of what comes out."""
    y, x = np.mgrid[:60, :100]
    wide = np.where((x - 50) ** 2 + (y - 30) ** 2 < 400, 255, 0).astype(np.uint8)
    write_folder(tmp_path / "f", np.stack([wide, wide])[:, None])
    found = built(tmp_path / "f", tmp_path / "set.zip", side=16, transform=transform)
    assert found.shape == (1, 16, 16)
    image = found.images[0, 0].int()
    assert image[7:9, 7:9].min() > 250
    assert image[:, :2].max() < 10
    across, down = (image[8] > 128).sum().item(), (image[:, 8] > 128).sum().item()
    assert abs(across - (6 if transform == "stretch" else 10.5)) <= 0.5
    assert abs(down - 10.5) <= 0.5


def test_colour_follows_the_first_image(tmp_path):
    (tmp_path / "f").mkdir()
    for name, mode in (("0.png", "RGB"), ("1.png", "P"), ("2.png", "RGBA"), ("3.png", "L")):
        (tmp_path / "f" / name).write_bytes(png(pixels(1, 3, 8)[0], mode))
    assert built(tmp_path / "f", tmp_path / "set.zip").shape == (3, 8, 8)
    assert built(tmp_path / "f", tmp_path / "set.zip", side=4, transform="center-crop").shape == (3, 4, 4)
    (tmp_path / "f" / "0.png").write_bytes(png(pixels(1, 1, 8)[0]))
    assert built(tmp_path / "f", tmp_path / "set.zip").shape == (1, 8, 8)


@pytest.mark.parametrize("kind", ["py", "bin"])
def test_cifar_archives_in_both_forms(tmp_path, kind):
    images, batches = cifar_batches()
    labels = [0, 9, 1, 9, 2, 9, 3, 9, 4, 9]
    if kind == "py":
        (tmp_path / "cifar.tar.gz").write_bytes(cifar_archive(batches))
    else:
        records = np.concatenate([np.array(labels, np.uint8)[:, None], images.reshape(10, -1)], 1).reshape(5, -1)
        members = {f"cifar-10-batches-bin/data_batch_{i + 1}.bin": r.tobytes() for i, r in enumerate(records)}
        tar(tmp_path / "cifar.tar.gz", members)
        (tmp_path / "cifar-10-batches-bin").mkdir()
        for name, content in members.items():
            (tmp_path / name).write_bytes(content)
        assert np.array_equal(load("cifar10", tmp_path).images, images)
    found = built(tmp_path / "cifar.tar.gz", tmp_path / "set.zip")
    assert np.array_equal(found.images, images)
    assert found.labels.tolist() == labels


def test_damaged_binary_batches_are_named(tmp_path, refuses):
    folder = tmp_path / "cifar-10-batches-bin"
    folder.mkdir()
    for content, told in ((b"", "0 bytes"), (bytes(3072), "3072 bytes"), (b"\x0a" + bytes(3072), "a label is 10")):
        for i in range(1, 6):
            (folder / f"data_batch_{i}.bin").write_bytes(content)
        with refuses("data_batch_1.bin is damaged", told):
            load("cifar10", tmp_path)


def test_what_cannot_be_made_alike_is_refused(tmp_path, refuses):
    wide = write_folder(tmp_path / "wide", pixels(2, 3, 8)[:, :, :4])
    mixed = write_folder(tmp_path / "mixed", pixels(2, 3, 8))
    (mixed / "1.png").write_bytes(png(pixels(1, 3, 6)[0]))
    out = tmp_path / "set.zip"
    for source, options, told in (
        (wide, {}, "0.png is 8x4"),
        (wide, {"side": 4}, "--transform"),
        (wide, {"transform": "stretch"}, "--resolution"),
        (mixed, {}, "6x6 and 8x8"),
        (tmp_path / "absent", {}, "no file or folder"),
    ):
        with refuses(told):
            tool.build(source, out, **options)
        assert not out.exists()
    deep = io.BytesIO()
    Image.fromarray(np.arange(64, dtype=np.uint16).reshape(8, 8) * 1000).save(deep, "PNG")
    (mixed / "0.png").write_bytes(deep.getvalue())
    with refuses("0.png has mode I;16"):
        tool.build(mixed, out, side=4, transform="stretch")
    with refuses("a data set is a .zip"):
        tool.build(mixed, tmp_path / "set.tar")


# --- check


def test_check_reports_a_good_set(tmp_path):
    images = pixels(5, 3, 8)
    images[3] = images[1]
    built(write_folder(tmp_path / "f", images, [2, 0, 1, 1, 1]), tmp_path / "set.zip")
    found = tool.check(tmp_path / "set.zip")
    assert (found.count, found.duplicates, found.problems) == (5, 1, [])
    assert found.sizes == {(8, 8, 3): 5}
    assert found.labels == "3 classes of 1 to 3 images, by dataset.json"
    assert found.digest == whole(str(tmp_path / "set.zip")).digest
    assert found.sha256 == hashlib.sha256((tmp_path / "set.zip").read_bytes()).hexdigest()


def test_sub_folders_become_the_labels_of_the_set(tmp_path):
    images = pixels(3, 3, 8)
    members = {name: png(image) for name, image in zip(("cat/0.png", "cat/1.png", "dog/0.png"), images, strict=True)}
    source = write_zip(tmp_path / "pets.zip", members)
    assert tool.check(source).labels == "2 classes of 1 to 2 images, by sub-folder: cat, dog"
    found = built(source, tmp_path / "set.zip")
    assert found.labels.tolist() == [0, 0, 1]
    assert found.digest == tool.check(source).digest == whole(str(source)).digest


@pytest.mark.parametrize(
    ("name", "extra", "told"),
    [
        ("0.png", {}, "none"),
        ("0.png", {"dataset.json": '{"labels": null}'}, "none (dataset.json has none)"),
        ("00000/img00000000.png", {}, "none (the sub-folders are no classes)"),
    ],
)
def test_check_says_why_there_are_no_labels(tmp_path, name, extra, told):
    assert tool.check(write_zip(tmp_path / "set.zip", {name: png(pixels()[0])} | extra)).labels == told


def test_many_classes_are_not_all_named(tmp_path):
    source = write_zip(tmp_path / "set.zip", {f"class {i}/0.png": png(pixels()[0]) for i in range(100, 120)})
    told = tool.check(source).labels
    assert told.startswith("20 classes of 1 to 1 images, by sub-folder: class 100, class 101, ")
    assert told.endswith("class 109, ...")


def test_check_lists_what_is_wrong(tmp_path):
    folder = write_folder(tmp_path / "f", pixels(4, 3, 8), [0, 1, 2])
    (folder / "1.png").write_bytes(b"rubbish")
    (folder / "2.png").write_bytes(png(pixels(1, 1, 6)[0][:, :4]))
    found = tool.check(folder)
    assert found.sizes == {(8, 8, 3): 2, (6, 4, 1): 1}
    assert found.digest == ""
    told = "\n".join(found.lines())
    for text in ("3.png has no partner", "cannot read image 1.png", "not all images are alike", "not square"):
        assert text in told
    assert "1 of 6x4 grey" in told


def test_the_commands_say_it(tmp_path, capsys):
    folder = write_folder(tmp_path / "f", pixels(2, 3, 8))
    out = str(tmp_path / "set.zip")
    assert main(["dataset", str(folder), "-o", out, "--resolution", "4x4", "--transform", "center-crop"]) == 0
    assert f"{out}: 2 images, SHA-256 " in capsys.readouterr().out
    assert main(["dataset", out, "--check"]) == 0
    assert "sizes: 2 of 4x4 colour" in capsys.readouterr().out
    (folder / "0.png").write_bytes(b"rubbish")
    assert main(["dataset", str(folder), "--check"]) == 1
    assert main(["dataset", str(tmp_path / "absent"), "--check"]) == 2
    for size in ("4x5", "x", "0x0", "big"):
        with pytest.raises(SystemExit):
            main(["dataset", str(folder), "-o", out, "--resolution", size])


def test_a_registered_name_is_checked_like_a_path(capsys):
    assert main(["dataset", "digits", "--check"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines == [
        "images: 1797",
        "splits: 899 train, 898 test",
        "sizes: 1797 of 8x8 grey",
        "labels: 10 classes of 174 to 183 images",
        "duplicates: 0",
        f"digest: {whole('digits').digest}",
    ]


def test_equal_images_of_a_registered_name_are_counted(monkeypatch):
    monkeypatch.setitem(registry.LOADERS, "twins", lambda root: (pixels(3)[[0, 1, 0, 0, 2]], None))
    found = tool.check_named("twins")
    assert (found.count, found.duplicates, found.labels) == (5, 2, "none")


def test_a_name_is_found_as_load_finds_it(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("ONESTEP_DATA", str(tmp_path))
    write_zip(tmp_path / "mine.zip", {"0.png": png(pixels()[0])})
    assert main(["dataset", "mine.zip", "--check"]) == 0
    assert "images: 1" in capsys.readouterr().out
    assert main(["dataset", "digts", "--check"]) == 2
    told = capsys.readouterr().err
    assert told.startswith("onestep-bench: error: unknown data set 'digts'; did you mean 'digits'?")
    assert told.count("\n") == 1


# --- files that are there to do harm


BOMBS = """
import resource, sys
from pathlib import Path
from onestep_bench.data import registry, tool
from onestep_bench.data.loading import load as load_name
from onestep_bench.errors import OnestepError
def load(path):
    return load_name(str(path))
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for path in sorted(Path(sys.argv[1]).iterdir()):
    for use in (load, lambda path: tool.build(Path(path), Path(sys.argv[2])), tool.check):
        try:
            found = use(path)
            assert found.problems
        except OnestepError as error:
            assert "\\n" not in str(error)
    print(path.name, "refused")
print("grown", (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""


def test_bombs_cost_little_memory(tmp_path):
    folder = tmp_path / "bombs"
    folder.mkdir()
    zeros = bytes(10**8)
    with zipfile.ZipFile(folder / "image.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.png", zeros)
    with zipfile.ZipFile(folder / "labels.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.png", png(pixels(1, 3, 8)[0]))
        archive.writestr("dataset.json", '{"labels": [["a.png", 1' + "0" * 30 + "]]}")
    tar(folder / "image.tar", {"a.png": zeros})
    (folder / "image.tar.gz").write_bytes(gzip.compress((folder / "image.tar").read_bytes(), 1))
    (folder / "image.tar").unlink()
    huge = io.BytesIO()
    Image.new("1", (9000, 9000)).save(huge, "PNG")
    write_zip(folder / "pixels.zip", {"a.png": huge.getvalue()})
    told = subprocess.run(
        [sys.executable, "-c", BOMBS, folder, tmp_path / "out.zip"], capture_output=True, text=True, timeout=120
    )
    assert told.returncode == 0, told.stderr
    *lines, grown = told.stdout.splitlines()
    assert lines == [f"{name} refused" for name in ("image.tar.gz", "image.zip", "labels.zip", "pixels.zip")]
    assert int(grown.split()[1]) < 160  # MiB: the largest file read at all has 64


@pytest.mark.parametrize("name", ["../evil.png", "/evil.png", "a/../../evil.png"])
def test_tar_entries_that_escape_are_refused(tmp_path, refuses, name):
    tar(tmp_path / "set.tar", {name: png(pixels()[0])}, "w")
    with refuses("points outside the tar"):
        load(str(tmp_path / "set.tar"))


def test_links_in_a_tar_are_no_images(tmp_path, refuses):
    secret = tmp_path / "secret.png"
    secret.write_bytes(png(pixels()[0]))
    with tarfile.open(tmp_path / "set.tar", "w") as archive:
        info = tarfile.TarInfo("a.png")
        info.type, info.linkname = tarfile.SYMTYPE, str(secret)
        archive.addfile(info)
    with refuses("holds no images"):
        load(str(tmp_path / "set.tar"))


def test_torn_archives_are_refused(tmp_path, refuses):
    members = {f"{i}.png": png(image) for i, image in enumerate(pixels(4))}
    tar(tmp_path / "set.tar.gz", members)
    write_zip(tmp_path / "set.zip", members)
    for path in (tmp_path / "set.tar.gz", tmp_path / "set.zip"):
        whole = path.read_bytes()
        for place in (0, 1, 10, len(whole) // 3, len(whole) // 2, len(whole) - 30):
            path.write_bytes(whole[:place])
            with refuses(str(path)):
                load(str(path))
