"""A model that is shared comes back as it was; nothing else of a repository is taken, and what fails is one line."""

import json
import shutil
from pathlib import Path

import httpx2
import pytest
import torch
import yaml
from commands import complaint, told
from huggingface_hub import errors
from tiny import row

from onestep_bench import store, study
from onestep_bench.denoiser import edm_denoiser
from onestep_bench.models import checkpoints, hub, pretrained
from onestep_bench.models.pretrained import load_pretrained
from onestep_bench.networks.build import sized

pytestmark = pytest.mark.usefixtures("store_folder")
FILES = {"model.safetensors", "config.json", "README.md"}


@pytest.fixture
def key():
    torch.manual_seed(0)
    denoiser = edm_denoiser(sized("0.01M", 8, 1, label_dim=3).eval())

    def make(folder):
        checkpoints.save(denoiser, folder)
        return {"kimg": 12.5, "seconds": 90.0, "device": "none", "passes": 40.0, "macs": 5}

    recipe = {"method": "kd", "size": "0.01M", "class_counts": [1, 1, 1], "seed": 0, "training": {"lr": 1e-3}}
    return store.memo("model", recipe, [], make).key


def scores(path, key):
    """Rows of this model, three sampling seeds, and of another training run of its recipe."""
    of = {"split": "test", "recipe": "r1", "features": "digits", "samples": 500}
    rows = [row(model=key, seed=seed, fid=10.0 + seed, **of) for seed in range(3)]
    rows += [row(model="model-other", train_seed=1, fid=13.0, **of), row(model="model-third", recipe="r2", fid=99.0)]
    rows += [row(model=key, fid=1.0, purpose="search", **of), row(model=key, steps=2, fid="nan", warning="few", **of)]
    path.write_text(json.dumps(rows))
    return path


def test_a_model_goes_to_a_folder_and_comes_back(key, tmp_path, capsys, monkeypatch):
    record = scores(tmp_path / "rows.json", key)
    place = f"{tmp_path}/shared/"
    said = told(capsys, "push", key[:12], place, "--record", record, "--license", "mit")
    assert "4 score rows on its card" in said
    (tmp_path / "shared" / "setup.py").write_text("raise SystemExit('run')")
    (tmp_path / "shared" / "pytorch_model.bin").write_bytes(b"anything")
    monkeypatch.chdir(tmp_path)
    told(capsys, "pull", place, "-o", "ours")
    assert {path.name for path in Path("ours").iterdir()} == FILES
    x, labels = torch.randn(2, 1, 8, 8), torch.tensor([0, 2])
    assert torch.equal(load_pretrained("ours")(x, 1.0, labels), load_pretrained(key)(x, 1.0, labels))
    assert study.pretrained("ours").class_counts == [1, 1, 1]
    told(capsys, "sample", "ours", "-n", 2, "-o", "sheet.png")
    told(capsys, "push", "ours", "./again")  # what is known of it goes along
    first, second = (json.loads(Path(name, "config.json").read_text()) for name in ("ours", "again"))
    assert first == second
    assert first["model"] == key
    assert [path.name for path in tmp_path.glob(".*")] == []


def test_the_card_tells_what_it_is_what_it_scores_and_what_it_cost(key, tmp_path, capsys):
    told(
        capsys,
        "push",
        key,
        f"{tmp_path}/kd-small/",
        "--record",
        scores(tmp_path / "rows.json", key),
        "--license",
        "mit",
    )
    _, header, body = (tmp_path / "kd-small" / "README.md").read_text().split("---\n", 2)
    header = yaml.safe_load(header)
    assert (header["license"], header["library_name"]) == ("mit", "onestep_bench")
    (result,) = header["model-index"][0]["results"]
    assert result["metrics"][0]["value"] == 11.0  # over its own seeds alone
    assert result["dataset"]["split"] == "test"
    for text in ("`kd`", "0.01M", "3 classes", "| digits | test | digits | euler | 1 | 1 | 500 | 11 | 0.5 |"):
        assert text in body
    # Of runs with means 11 and 13: 12 and 12.7062 standard errors of 1.
    assert "-0.7062 to 24.71 (2 runs)" in body
    assert "12.5k images, 40k network passes" in body
    assert "1 min 30 s" in body
    assert "kd.lr | 0.001" in body
    assert "onestep-bench sample kd-small/ --sampler euler --steps 1" in body
    assert "no resizing, 1797 samples" in body
    # A diverged score is told, and is none that a machine could take for one; that of a search is no score at all.
    assert "| euler | 2 | 2 | 500 | nan | 0.5 | one run |" in body
    assert "Warning: few." in body
    assert "licence" not in body


def test_without_a_record_or_a_licence_the_card_claims_none(key, tmp_path, capsys):
    told(capsys, "push", key, f"{tmp_path}/plain/")
    card = (tmp_path / "plain" / "README.md").read_text()
    assert "license" not in card
    assert "No licence was named" in card
    assert "Scores" not in card
    assert "model-index" not in card
    rows = tmp_path / "rows.json"
    rows.write_text(json.dumps([row(model="model-other")]))
    assert "has no score of" in complaint(capsys, "push", key, f"{tmp_path}/b/", "--record", rows)
    rows.write_text('[{"fid": 1}]')
    assert "holds no score rows" in complaint(capsys, "push", key, f"{tmp_path}/b/", "--record", rows)
    assert not (tmp_path / "b").exists()


def flipped(folder):
    content = bytearray((folder / "model.safetensors").read_bytes())
    content[-1] ^= 1
    (folder / "model.safetensors").write_bytes(content)


def without_hash(folder):
    told = json.loads((folder / "config.json").read_text())
    del told[hub.HASH]
    (folder / "config.json").write_text(json.dumps(told))


DAMAGES = {
    "do not use these weights": flipped,
    "tells no hash": without_hash,
    "holds no whole model": lambda folder: (folder / "config.json").write_text("{"),
    "holds no model.safetensors": lambda folder: (folder / "model.safetensors").unlink(),
}


@pytest.mark.parametrize(("said", "damage"), DAMAGES.items(), ids=DAMAGES)
def test_what_is_not_as_it_was_pushed_is_refused_and_leaves_nothing(key, tmp_path, capsys, said, damage):
    told(capsys, "push", key, f"{tmp_path}/shared/")
    damage(tmp_path / "shared")
    line = complaint(capsys, "pull", f"{tmp_path}/shared/", "-o", tmp_path / "ours")
    assert said in line
    assert f"{tmp_path}/shared/" in line
    assert ".new-" not in line
    assert not (tmp_path / "ours").exists()
    assert {path.name for path in tmp_path.iterdir()} == {"shared", "store"}


def test_a_folder_in_use_is_left_alone(key, tmp_path, capsys):
    told(capsys, "push", key, f"{tmp_path}/shared/")
    (tmp_path / "ours").mkdir()
    (tmp_path / "ours" / "thesis.txt").write_text("mine")
    assert "there already" in complaint(capsys, "pull", f"{tmp_path}/shared/", "-o", tmp_path / "ours")
    assert "has no revisions" in complaint(
        capsys, "pull", f"{tmp_path}/shared/", "-o", tmp_path / "b", "--revision", "v1"
    )
    assert "no folder" in complaint(capsys, "pull", f"{tmp_path}/absent/", "-o", tmp_path / "b")


class Hub:
    """Stands for the Hub: repositories are folders, and what `raises` says goes wrong."""

    def __init__(self, root, raises=None):
        self.root, self.raises = root, raises

    def create_repo(self, repo, exist_ok, private):
        if self.raises:
            raise self.raises
        (self.root / repo).mkdir(parents=True, exist_ok=exist_ok)
        return f"hub:{repo}"

    def upload_folder(self, repo_id, folder_path, allow_patterns, commit_message):
        for name in allow_patterns:
            shutil.copy(folder_path / name, self.root / repo_id)

    def hf_hub_download(self, repo, name, revision, local_dir):
        if self.raises:
            raise self.raises
        return shutil.copy(self.root / repo / name, local_dir)


def test_a_model_goes_to_the_hub_and_comes_back(key, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(hub, "_api", lambda: Hub(tmp_path / "hub"))
    monkeypatch.chdir(tmp_path)
    assert "hub:me/small" in told(capsys, "push", key, "me/small")
    (tmp_path / "hub" / "me" / "small" / "model.py").write_text("raise SystemExit")
    told(capsys, "pull", "me/small")
    assert {path.name for path in (tmp_path / "small").iterdir()} == FILES
    assert pretrained.find("small") == Path("small")


def answer(status):
    return httpx2.Response(status, request=httpx2.Request("GET", "https://example.org"))


WRONG = {
    "does not know who you are": errors.LocalTokenNotFoundError("no token"),
    "is gated": errors.GatedRepoError("gated", response=answer(403)),
    "no repository me/small": errors.RepositoryNotFoundError("404", response=answer(404)),
    "no such revision": errors.RevisionNotFoundError("404", response=answer(404)),
    "holds no model of onestep_bench": errors.RemoteEntryNotFoundError("404", response=answer(404)),
    "pull from a folder": errors.LocalEntryNotFoundError("offline"),
    "does not let you (403)": errors.HfHubHTTPError("403", response=answer(403)),
    "does not take this: no such": errors.HfHubHTTPError("400", response=answer(400), server_message="no\nsuch"),
    "does not take this, or the transfer broke: Invalid metadata - licence": ValueError("Invalid metadata\n- licence"),
    "or the transfer broke: interrupted": RuntimeError("interrupted"),
    "answers 500": errors.HfHubHTTPError("500", response=answer(500)),
    "is no name of a repository": errors.HFValidationError("bad"),
    "cannot be reached (no route to host)": httpx2.ConnectError("no route\nto host"),
}


@pytest.mark.parametrize(("said", "error"), WRONG.items(), ids=WRONG)
def test_what_goes_wrong_at_the_hub_is_one_line(key, tmp_path, capsys, monkeypatch, said, error):
    monkeypatch.setattr(hub, "_api", lambda: Hub(tmp_path / "hub", error))
    assert said in complaint(capsys, "pull", "me/small", "-o", tmp_path / "ours")
    assert said in complaint(capsys, "push", key, "me/small")
    assert not (tmp_path / "ours").exists()


def test_without_the_extra_a_folder_will_do(key, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("onestep_bench.errors.find_spec", lambda name: None)
    assert "pip install 'onestep-bench[hub]'" in complaint(capsys, "push", key, "me/small")
    assert "pip install 'onestep-bench[hub]'" in complaint(capsys, "pull", "me/small", "-o", tmp_path / "ours")
    told(capsys, "push", key, f"{tmp_path}/shared/")
