"""Images from anywhere: read as they are, or refused in one line."""

import json
import threading
import zipfile

import numpy as np
import pytest
import torch
from PIL import Image

from onestep_bench import data, study
from onestep_bench.cli import evaluate, main
from onestep_bench.data import streams
from onestep_bench.data.streams import ahead, images_at
from onestep_bench.scoring.rows import FIELDS

pytestmark = pytest.mark.usefixtures("store_folder")

PIXELS = np.random.default_rng(0).integers(0, 256, (30, 8, 8, 1), dtype=np.uint8)


def save(pixels, path):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels).save(path)


@pytest.fixture
def folder(tmp_path):
    for index, image in enumerate(PIXELS):
        save(image, tmp_path / "images" / f"{index // 10}" / f"{index:03d}.png")
    return tmp_path / "images"


@pytest.fixture
def archive(folder, tmp_path):
    with zipfile.ZipFile(tmp_path / "images.zip", "w") as file:
        for image in sorted(folder.rglob("*.png")):
            file.write(image, image.relative_to(folder))
    return tmp_path / "images.zip"


@pytest.fixture
def arrays(tmp_path):
    np.savez(tmp_path / "arrays.npz", PIXELS, np.zeros(30))
    return tmp_path / "arrays.npz"


@pytest.mark.parametrize("kind", ["folder", "archive", "arrays"])
def test_folder_zip_and_npz_hold_the_same_images(kind, request):
    source = images_at(request.getfixturevalue(kind))
    expected = torch.from_numpy(PIXELS).permute(0, 3, 1, 2)
    for _ in range(2):
        assert torch.equal(torch.cat(list(source.batches())), expected)
    assert (len(source), source.shape) == (30, (1, 8, 8))


class Canary:
    """Unpickled, it leaves a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def test_an_npz_of_objects_runs_nothing(tmp_path, refuses):
    # As many bytes as so many numbers have, for else that is what it would be refused for.
    canaries = [Canary(tmp_path / f"{'r' * 20}an{number}") for number in range(20)]
    np.savez(tmp_path / "evil.npz", images=np.array(canaries, dtype=object))
    with refuses("evil.npz", "is damaged"):
        images_at(tmp_path / "evil.npz")
    assert [path.name for path in tmp_path.iterdir()] == ["evil.npz"]


def test_other_names_and_layouts_of_an_npz(tmp_path):
    np.savez(tmp_path / "grey.npz", images=PIXELS[..., 0])
    np.savez_compressed(tmp_path / "colour.npz", images=PIXELS.repeat(3, -1))
    assert images_at(tmp_path / "grey.npz").shape == (1, 8, 8)
    assert images_at(tmp_path / "colour.npz").shape == (3, 8, 8)


# ---- made ahead, in a thread


@pytest.fixture
def threads():
    """Those of this process that were not there before."""
    before = set(threading.enumerate())
    return lambda: set(threading.enumerate()) - before


def test_the_next_item_is_made_while_one_is_in_use(threads):
    begun = [threading.Event() for _ in range(4)]

    def items():
        for index, event in enumerate(begun[:3]):
            event.set()
            yield index
        begun[3].set()

    used = []
    for index in ahead(items()):
        assert begun[index + 1].wait(10)
        used.append(index)
    assert used == [0, 1, 2]
    assert not threads()


def use(items, used):
    for item in ahead(items):
        used.append(item)
        if item == "the user interrupts":
            raise KeyboardInterrupt


def test_an_interrupt_ends_the_thread_and_closes_what_it_read(threads):
    used, closed = [], []

    def items():
        try:
            yield from ("one", "the user interrupts", "three", "four")
        finally:
            closed.append(True)

    with pytest.raises(KeyboardInterrupt):
        use(items(), used)
    assert used == ["one", "the user interrupts"]
    assert closed
    assert not threads()


def test_a_thread_that_fails_raises_its_error_in_its_turn(threads):
    used = []

    def items():
        yield 1
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        use(items(), used)
    assert used == [1]
    assert not threads()


def test_a_damaged_image_is_one_clear_line_after_the_batches_before_it(folder, monkeypatch, refuses, threads):
    monkeypatch.setattr(streams, "_BATCH", 10)
    (folder / "2" / "025.png").write_bytes(b"no picture")
    batches = images_at(folder).batches()
    assert [len(next(batches)) for _ in range(2)] == [10, 10]
    with refuses("cannot read image 2/025.png"):
        next(batches)
    assert not threads()


# ---- bad inputs


def everything(source):
    return torch.cat(list(images_at(source).batches()))


def test_bad_folders_are_one_clear_line(folder, tmp_path, refuses):
    with refuses("no file or folder", "nowhere"):
        images_at(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with refuses("empty holds no images"):
        images_at(tmp_path / "empty")
    save(PIXELS[0, :4, :4], folder / "1" / "odd.png")
    with refuses("1/odd.png is 4x4 grey but 0/000.png is 8x8 grey"):
        everything(folder)
    save(PIXELS[0].repeat(3, -1), folder / "1" / "odd.png")
    with refuses("1/odd.png is 8x8 colour"):
        everything(folder)
    Image.fromarray(PIXELS[0].repeat(4, -1), "RGBA").save(folder / "1" / "odd.png")
    with refuses("1/odd.png has mode RGBA"):
        everything(folder)
    whole = (folder / "2" / "020.png").read_bytes()
    (folder / "1" / "odd.png").write_bytes(whole[: len(whole) // 2])
    with refuses("cannot read image 1/odd.png", "replace or remove it"):
        everything(folder)


def test_bad_archives_are_one_clear_line(archive, tmp_path, refuses):
    whole = archive.read_bytes()
    archive.write_bytes(whole[: len(whole) // 2])
    with refuses("cannot read", "images.zip as a zip"):
        images_at(archive)
    (tmp_path / "notes.txt").write_text("no images")
    with refuses("cannot read", "notes.txt as a zip"):
        images_at(tmp_path / "notes.txt")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({"images": np.full((4, 8, 8, 3), np.nan)}, "hold NaN"),
        ({"images": np.zeros((4, 8, 8, 3), np.float32)}, "float32 (4, 8, 8, 3); images are uint8"),
        (
            {"images": np.zeros((4, 8, 8, 2), np.uint8)},
            "uint8 (4, 8, 8, 2); images are uint8 (n, height, width, 1 or 3",
        ),
        ({"images": np.zeros((0, 8, 8, 3), np.uint8)}, "holds no images"),
        ({"pictures": PIXELS}, "no array arr_0 or images, only pictures"),
        ({"images": np.array([{}])}, "cannot read"),
    ],
)
def test_bad_arrays_are_one_clear_line(content, said, tmp_path, refuses):
    np.savez(tmp_path / "bad.npz", **content)
    with refuses("bad.npz", said):
        images_at(tmp_path / "bad.npz")


def test_a_truncated_npz_is_one_clear_line(arrays, refuses):
    whole = arrays.read_bytes()
    for size in (0, 10, len(whole) // 2, len(whole) - 5):
        arrays.write_bytes(whole[:size])
        with refuses("cannot read", "arrays.npz"):
            images_at(arrays)


# ---- scoring them


def test_images_are_scored_by_the_judge_of_models(folder, archive, arrays):
    digits = data.load("digits")
    rows = [study.evaluate_images(images_at(path), digits)["rows"][0] for path in (folder, archive, arrays)]
    assert len({(row["fid"], row["model"], row["protocol"]) for row in rows}) == 1
    assert rows[0].keys() == FIELDS.keys()
    assert (rows[0]["label"], rows[0]["samples"], rows[0]["steps"]) == ("images", 30, None)
    assert rows[0]["protocol"] == (
        f"digits-cnn@10e64b8e64d5 fitted on test; no resize; 30 samples; "
        f"reference digits/train@{digits.digest}, 899 images"
    )
    few = study.evaluate_images(images_at(folder), digits, samples=10)["rows"][0]
    assert few["samples"] == 10
    assert few["model"] != rows[0]["model"]


def test_the_command_prints_a_table_and_writes_rows(folder, tmp_path, capsys):
    output = tmp_path / "rows.json"
    assert main(["evaluate", str(folder), "--dataset", "digits", "-o", str(output)]) == 0
    heading, *lines, warning, told = capsys.readouterr().out.splitlines()
    assert heading.split()[:7] == ["label", "steps", "NFE", "images", "judge", "split", "FID"]
    seats = [(judge, split) for split in ("train", "test") for judge in ("digits", "pixels")]
    assert [line.split()[:6] for line in lines] == [["images", "-", "-", "30", *seat] for seat in seats]
    assert warning.startswith("warning: 30 samples cannot span 64 features")
    assert told == f"rows: {output}"
    rows = json.loads(output.read_text())
    assert [(row["features"], row["split"]) for row in rows] == seats
    assert all(row.keys() == FIELDS.keys() for row in rows)


def test_the_command_takes_judges_and_splits_and_writes_a_table_of_values(folder, tmp_path, capsys):
    command = ["evaluate", str(folder), "--dataset", "digits", "-o", str(tmp_path / "rows.csv")]
    assert main([*command, "--features", "pixels", "random-features", "--splits", "test"]) == 0
    _, *lines, _, _, _ = capsys.readouterr().out.splitlines()
    assert [line.split()[4:6] for line in lines] == [["pixels", "test"], ["random-features", "test"]]
    written = (tmp_path / "rows.csv").read_text().splitlines()
    assert written[0] == ",".join(FIELDS)
    assert len(written) == 3


def test_the_command_scores_a_checkpoint_over_steps_and_seeds(tmp_path, capsys):
    student = study.train("edm", data.load("digits"), size="0.05M", kimg=0.064, batch_size=8)
    command = ["evaluate", str(student.artifact.folder), "--dataset", "digits", "--samples", "20", "--label", "mine"]
    command += ["--features", "pixels", "random-features", "--splits", "test"]
    assert main([*command, "--steps", "1", "2", "--seeds", "0", "1", "--sampler", "heun"]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert [line[:5] for line in lines[1:5]] == [
        ["mine", steps, nfe, "20", judge] for steps, nfe in ("11", "23") for judge in ("pixels", "random-features")
    ]
    (tmp_path / "torn").mkdir()
    (tmp_path / "torn" / "config.json").write_bytes((student.artifact.folder / "config.json").read_bytes())
    assert main(["evaluate", str(tmp_path / "torn"), "--dataset", "digits"]) == 2
    assert "holds no whole model" in capsys.readouterr().err


def test_published_statistics_from_the_command_line(folder, tmp_path, capsys):
    np.savez(tmp_path / "stats.npz", mu=np.zeros(64), sigma=np.eye(64))
    command = ["evaluate", str(folder), "--dataset", "cifar10", "--reference", str(tmp_path / "stats.npz")]
    assert main(command) == 2
    assert "name it in place of 'auto'" in capsys.readouterr().err
    assert main([*command, "--features", "digits"]) == 0
    _, line, _ = capsys.readouterr().out.splitlines()  # one judge's statistics, which know no second
    assert line.split()[4:6] == ["digits", "all"]
    assert line.split()[-4:] == ["-", "-", "-", "-"]  # no features to compare with


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--dataset", "digits", "--features", "inceptoin"], "unknown feature extractor 'inceptoin'; did you mean"),
        (["--dataset", "digit"], "unknown data set 'digit'; did you mean 'digits'?"),
        (["--dataset", "digits", "--splits", "tset"], "unknown split 'tset'; did you mean 'test'?"),
        (["--dataset", "digits", "--samples", "1"], "1 samples cannot be scored; a distance needs at least 2"),
        (["--dataset", "digits", "--samples", "31"], "31 samples were asked for, and images has 30"),
        (["--dataset", "LARGER"], "images has 8x8x1 images, but the reference larger 16x16x1; choose one of that size"),
        (["--dataset", "digits", "-o", "rows.txt"], "cannot write rows as rows.txt; name the file .json or .csv"),
        (["--dataset", "digits", "--reference", "none.npz"], "cannot read none.npz"),
    ],
)
def test_mistakes_on_the_command_line_are_one_line(arguments, said, folder, tmp_path, capsys):
    save(np.zeros((16, 16, 1), np.uint8), tmp_path / "larger" / "a.png")
    arguments = [argument.replace("LARGER", str(tmp_path / "larger")) for argument in arguments]
    assert main(["evaluate", str(folder), *arguments]) == 2
    errors = capsys.readouterr().err.splitlines()
    assert errors[-1].startswith("onestep-bench: error: ")
    assert said in errors[-1]


def test_the_table_has_mean_spread_and_minimum():
    common = dict.fromkeys(FIELDS) | {"label": "a", "steps": 1, "features": "pixels", "recall": 0.5, "floor": 0.25}
    seats = [("train", (1.0, 2.0, 6.0)), ("test", (4.0,))]
    rows = [common | {"split": split, "fid": fid} for split, fids in seats for fid in fids]
    heading, *lines = evaluate.table(rows)
    train, test = (dict(zip(heading, line, strict=True)) for line in lines)
    assert [train[name] for name in ("split", "FID", "± std", "min")] == ["train", "3", "2.6", "1"]
    assert [train[name] for name in ("recall", "KID", "floor", "nn ratio")] == ["0.5", "-", "0.25", "-"]
    assert [test[name] for name in ("split", "FID", "± std", "min")] == ["test", "4", "-", "4"]
