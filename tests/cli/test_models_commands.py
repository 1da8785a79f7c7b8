"""The commands on models: what they write, and what they say."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from standins import edm_bytes, numbered, slimflow_content

from onestep_bench import data, study
from onestep_bench.cli import main
from onestep_bench.denoiser import edm_denoiser
from onestep_bench.models import checkpoints, export, pretrained
from onestep_bench.networks.build import sized
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


def told(capsys, *arguments):
    assert main([str(argument) for argument in arguments]) == 0
    return capsys.readouterr().out


def complaint(capsys, *arguments):
    assert main([str(argument) for argument in arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith("onestep-bench: error: ")
    assert error.count("\n") == 1
    return error


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
    assert pixels.shape == (24, 24)
    assert np.array_equal(pixels[8:16, 16:24], images[5, 0])
    assert (pixels[16:, 8:] == 255).all()
    assert "a picture is a .png" in complaint(capsys, "sample", pickled, "-n", 1, "-o", tmp_path / "sheet.tiff")
    assert "at least 1" in complaint(capsys, "sample", pickled, "-n", 0, "-o", sheet)


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
