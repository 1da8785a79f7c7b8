"""The commands on models: what they write, and what they say."""

import json

import numpy as np
import pytest
import torch
from commands import complaint, told
from PIL import Image
from standins import edm_bytes, numbered, slimflow_content

from onestep_bench import data, store, study
from onestep_bench.cli import evaluate, main
from onestep_bench.denoiser import edm_denoiser
from onestep_bench.models import checkpoints, export, pretrained
from onestep_bench.networks.build import sized
from onestep_bench.report import plots
from onestep_bench.scoring import evaluation
from onestep_bench.store.files import file_digest

pytestmark = pytest.mark.usefixtures("store_folder")


@pytest.fixture
def denoiser():
    torch.manual_seed(0)
    return edm_denoiser(sized("0.05M", 8, 1, label_dim=3).eval())


@pytest.fixture
def pickled(tmp_path, denoiser):
    path = tmp_path / "network.pkl"
    path.write_bytes(edm_bytes(denoiser))
    return path


def test_import_makes_a_folder_of_ours(pickled, denoiser, tmp_path, capsys):
    out = tmp_path / "ours"
    assert "size 0.05M" in told(capsys, "import", pickled, "-o", out)
    assert {path.name for path in out.iterdir()} == {"model.safetensors", "config.json", "README.md"}
    config = json.loads((out / "config.json").read_text())
    assert config["network"] == denoiser.net.config
    assert config["native"] == {"name": "edm", "sigma_data": 0.5}
    assert config["path"] == {"name": "ve"}
    assert config["source"] == {"name": str(pickled), "file": "network.pkl", "sha256": file_digest(pickled)}
    card = (out / "README.md").read_text()
    assert all(text in card for text in ("# ours", "0.05M", "3 classes", file_digest(pickled), "licence"))
    x, labels = torch.randn(3, 1, 8, 8), torch.arange(3)
    with torch.no_grad():
        assert torch.equal(pretrained.load_pretrained(out)(x, 1.0, labels), denoiser(x, 1.0, labels))


def test_import_can_insist_on_a_format(pickled, tmp_path, capsys):
    told(capsys, "import", pickled, "--as", "edm", "-o", tmp_path / "a")
    assert "in the format edm, not slimflow" in complaint(
        capsys, "import", pickled, "--as", "slimflow", "-o", tmp_path / "b"
    )
    assert not (tmp_path / "b").exists()


def test_an_import_is_whole_or_absent(pickled, tmp_path, capsys, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    before = set(tmp_path.iterdir())
    with monkeypatch.context() as patch:
        patch.setattr(pretrained, "write_text", interrupt)  # when the weights are there, and the card is not
        assert main(["import", str(pickled), "-o", str(tmp_path / "ours")]) == 130
    assert {path for path in tmp_path.iterdir() if path.name != "store"} == before
    capsys.readouterr()
    told(capsys, "import", pickled, "-o", tmp_path / "ours")
    assert "is there already, and is no empty folder" in complaint(capsys, "import", pickled, "-o", tmp_path / "ours")


def test_an_export_that_differs_leaves_the_one_before(pickled, tmp_path, capsys, monkeypatch):
    (tmp_path / "g.pt2").write_bytes(b"yesterday's")
    monkeypatch.setattr(export, "_traced", lambda generator: None)
    monkeypatch.setattr(export, "_to_torch", lambda program, file: file.write_bytes(b"today's"))
    monkeypatch.setattr(export, "_difference", lambda *_: 1.0)
    asked = ("export", pickled, "--format", "torch-export", "-o", tmp_path / "g.pt2")
    assert "images differ from torch's by 1.0e+00" in complaint(capsys, *asked)
    assert (tmp_path / "g.pt2").read_bytes() == b"yesterday's"


def test_import_says_what_it_had_to_guess(tmp_path, capsys):
    arguments = {"img_resolution": 16, "in_channels": 3, "out_channels": 3, "num_blocks": 1, "model_channels": 32}
    arguments |= {"channel_mult": [1, 2], "attn_resolutions": [8]}
    net = checkpoints.networks.build({"arch": "SongUNet", **arguments})
    torch.save(slimflow_content(numbered(net)), tmp_path / "checkpoint.pth")
    assert "32x32 is that of SlimFlow's releases" in told(
        capsys, "import", tmp_path / "checkpoint.pth", "-o", tmp_path / "a"
    )
    said = told(capsys, "import", tmp_path / "checkpoint.pth", "--resolution", 16, "-o", tmp_path / "b")
    assert "3x16x16 images" in said
    assert "releases" not in said
    assert json.loads((tmp_path / "b" / "config.json").read_text())["network"]["attn_resolutions"] == [8]


def test_sample_draws_what_the_study_draws(pickled, tmp_path, capsys):
    sheet = tmp_path / "sheet.png"
    told(capsys, "sample", pickled, "-n", 7, "--steps", 2, "--seed", 3, "-o", sheet)
    images = data.to_uint8(study.sample(study.pretrained(pickled), range(7), steps=2, seed=3))
    with Image.open(sheet) as picture:
        pixels = np.asarray(picture)
    assert pixels.shape == (192, 192)  # 3 x 3 images of 8 pixels, each 8 times as large
    assert np.array_equal(pixels[64:128:8, 128::8], images[5, 0])
    assert np.array_equal(pixels[7::8, 7::8], pixels[::8, ::8])
    assert (pixels[128:, 64:] == 255).all()
    assert "a picture is a .png" in complaint(capsys, "sample", pickled, "-n", 1, "-o", tmp_path / "sheet.tiff")
    assert "at least 1" in complaint(capsys, "sample", pickled, "-n", 0, "-o", sheet)


@pytest.fixture
def kept(denoiser):
    """Function that puts the weights into the store as an artifact of that method, and gives its key."""

    def keep(method="kd", seed=0):
        def make(folder):
            checkpoints.save(denoiser, folder)
            return {"kimg": 1.0, "seconds": 2.0, "device": "none"}

        recipe = {"method": method, "size": "0.05M", "class_counts": [1, 1, 1], "seed": seed}
        return store.memo("model", recipe, [], make).key

    return keep


def test_a_row_leads_to_its_model(kept, tmp_path, capsys, monkeypatch):
    key = kept()
    sheets = [tmp_path / f"{name}.png" for name in ("key", "start", "folder", "row")]
    sources = [key, key[:10], store.root() / key, f"{key}@flow-0123abcd"]
    for source, sheet in zip(sources, sheets, strict=True):
        assert main(["sample", str(source), "-n", "1", "-o", str(sheet)]) == 0
        seen = capsys.readouterr().err
        assert seen.count("\n") == ("@" in str(source))
        assert ("seen on another path; this is the model itself" in seen) == ("@" in str(source))
    assert len({sheet.read_bytes() for sheet in sheets}) == 1
    assert study.pretrained(key[:12]).artifact.cost()["kimg"] == 1.0
    assert study.teacher(key, data.load("digits"), size="", kimg=0, lr=0).artifact.key == key
    told(capsys, "import", key[:12], "-o", tmp_path / "ours")
    assert json.loads((tmp_path / "ours" / "config.json").read_text())["source"]["name"] == key[:12]
    monkeypatch.setenv("ONESTEP_STORE", str(tmp_path / "none"))
    assert "has none; name another with --store" in complaint(capsys, "sample", key)
    told(capsys, "sample", key, "--store", tmp_path / "store", "-n", 1, "-o", tmp_path / "again.png")


def test_a_stored_model_is_evaluated_by_its_key(kept, capsys, monkeypatch):
    key = kept()
    asked = {}

    def score(model, against, **how):
        asked.update(how, model=model)
        return {"rows": []}

    monkeypatch.setattr(evaluation, "evaluate", score)
    assert evaluate.rows_of(key[:10], "digits", steps=[2]) == []
    assert asked["model"].artifact.key == asked["label"] == key
    assert asked["steps"] == [2]


def test_a_key_that_is_not_one_model_is_one_line(kept, tmp_path, capsys):
    keys = sorted(kept(seed=seed) for seed in range(10))
    said = complaint(capsys, "sample", "model-")
    assert f"model- is the start of 10 keys: {keys[0]}, {keys[1]}" in said
    assert keys[7] in said
    assert keys[8] not in said
    wrong = keys[0][:-1] + ("0" if keys[0][-1] != "0" else "1")
    assert f"no model {wrong} in the store" in (said := complaint(capsys, "export", wrong))
    assert f"did you mean {keys[0]}?" in said
    assert "see onestep-bench store ls" in complaint(capsys, "sample", "model-xyzxyzxyz")
    (store.root() / "model-zz.partial").mkdir()
    assert "not whole yet" in complaint(capsys, "sample", "model-zz")
    assert "no model pairs-12" in complaint(capsys, "sample", "pairs-12")


@pytest.mark.parametrize(("method", "warned"), [("edm", True), ("ddpm", True), ("foreign", True), ("kd", False)])
def test_one_step_of_a_teacher_is_warned_of(kept, tmp_path, capsys, method, warned):
    arguments = ["sample", kept(method), "-n", "1", "-o", str(tmp_path / "a.png")]
    assert main(arguments) == 0
    error = capsys.readouterr().err
    assert error.count("\n") == warned
    assert ("is a blur; try --steps 18 --sampler heun" in error) == warned
    assert main([*arguments, "--steps", "2"]) == 0
    assert not capsys.readouterr().err


@pytest.mark.parametrize(("side", "drawn"), [(8, 64), (28, 84), (32, 64), (48, 96), (64, 64), (96, 96)])
def test_a_sheet_is_large_enough_to_see(tmp_path, side, drawn):
    images = torch.randint(256, (3, 3, side, side), dtype=torch.uint8)
    plots.save_grid(images, tmp_path / "a.png")
    with Image.open(tmp_path / "a.png") as picture:
        assert picture.size == (2 * drawn, 2 * drawn)
        pixels = np.asarray(picture)[:: drawn // side, :: drawn // side]
    assert np.array_equal(pixels[side:, :side], images[2].permute(1, 2, 0))


def test_export_prints_both_latencies(pickled, tmp_path, capsys, monkeypatch):
    def write(denoiser, file, format):
        file.write_bytes(bytes(10**5))
        return export.Export(file, 3e-7, 1.25, 2.5)

    monkeypatch.setattr(export, "export", write)
    said = told(capsys, "export", pickled, "--format", "onnx", "-o", tmp_path / "g.onnx")
    assert said.splitlines() == [
        f"{tmp_path / 'g.onnx'}: 0.1 MB, images as torch's to 3e-07",
        "one image: 1.2 ms, in torch 2.5 ms",
    ]


def test_a_missing_model_is_one_line(tmp_path, capsys):
    for command in (("import", "-o", tmp_path / "x"), ("export",), ("sample",)):
        assert "no model" in complaint(capsys, command[0], tmp_path / "absent.pkl", *command[1:])
