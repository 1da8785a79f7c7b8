"""`make gpu` on a machine without one, and what its parts would find."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

SCRIPT = Path(__file__).parents[1] / "scripts" / "gpu.py"


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("gpu_script", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_a_machine_without_a_gpu_is_told_in_one_line():
    done = subprocess.run([sys.executable, str(SCRIPT), "methods"], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1


def test_losses_of_one_device_are_equal_and_those_of_another_seed_are_not(script, monkeypatch):
    monkeypatch.setattr(script.methods, "names", lambda: ["kd", "gdd"])
    script._expected.clear()
    rows = script.check_methods("cpu", steps=2)["rows"]
    assert [(row["method"], row["precision"]) for row in rows] == [
        ("kd", "fp32"),
        ("kd", "bf16"),
        ("gdd", "fp32"),
        ("gdd", "bf16"),
    ]
    assert all(row["fine"] and row["first"] == row["mean"] == 0 for row in rows)
    script._expected["kd"] = [2 * loss for loss in script._expected["kd"]]
    assert not script._against_cpu("kd", "bf16", "cpu", 2)["fine"]


def test_resumed_losses_are_those_of_the_whole_run(script, monkeypatch):
    assert [row["largest difference"] for row in script.check_resume("cpu", "0.05M", 6)["rows"]] == [0, 0]
    seeds = iter(range(10))
    plain = script.made
    monkeypatch.setattr(script, "made", lambda *given, **options: plain(*given, **options | {"seed": next(seeds)}))
    assert not script.check_resume("cpu", "0.05M", 6)["rows"][0]["fine"]


def test_parts_are_kept_as_they_end_and_told_on_one_page(script, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(script.torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(script.torch.cuda, "get_device_name", lambda: "NVIDIA H999 80GB")
    monkeypatch.setattr(script, "ROOT", tmp_path)
    ran = []

    def part(fine):
        def check(device):
            """Whether it is so."""
            ran.append(device)
            return {"rows": [{"method": "edm", "first": 0.25, "fine": fine}]}

        return check

    monkeypatch.setattr(script, "PARTS", {"methods": part(True), "resume": part(False), "ranks": part(True)})
    monkeypatch.setattr(sys, "argv", ["gpu.py", "methods", "resume"])
    assert script.main() == 1
    folder = tmp_path / "reports" / "gpu" / "NVIDIA-H999-80GB"
    found = json.loads((folder / "methods.json").read_text())
    assert found["device"] == "NVIDIA H999 80GB"
    assert found["rows"] == [{"method": "edm", "first": 0.25, "fine": True}]
    page = (folder / "report.md").read_text()
    assert "| edm | 0.25 | False |" in page
    assert "## ranks\n\nNot run." in page
    monkeypatch.setattr(sys, "argv", ["gpu.py"])
    assert script.main() == 0  # the other two are there, and what was at fault was told
    assert ran == ["cuda"] * 3
    assert "methods: was run before" in capsys.readouterr().out
