"""What a plan says of costs, figures and files."""

import json
from pathlib import Path

import pytest
from tiny import grid_file, notebook

from onestep_bench.cli import main
from onestep_bench.grid import cost, files
from onestep_bench.grid.plan import read_grid

PARAMETERS = """
dataset = "cifar10"
teacher = "edm"
teacher_size = "7.0M"
size = "7.0M"
kimg = 1.0
pairs = 100
samples = 100
budgets = [1.0]
features = ["auto"]
reference = ""
options = {}
"""
RATE = "rate: {teramacs: 2, of: one device}"


@pytest.fixture
def grid(tmp_path):
    """Function from the inside of a stage, and what stands above the stages, to a grid."""
    notebook(tmp_path / "notebooks" / "model.ipynb", PARAMETERS, "print(kimg)")

    def grid(stage: str, head: str = RATE) -> Path:
        return grid_file(tmp_path, f"name: tiny\n{head}\nstages:\n  a: {{notebook: model.ipynb, {stage}}}")

    return grid


def hours(path):
    found = read_grid(path)
    stage = found.stages["a"]
    return cost.hours(stage.passes, [stage.declared | cell.parameters for cell in found.cells], found.rate)


def test_hours_are_passes_times_work_over_the_rate(grid):
    stage = "parameters: {kimg: 20.0, pairs: 5000}, passes: {kimg: {size: 3}, pairs: {teacher_size: 35}}"
    # 20 thousand images of 3 passes and 5 thousand of 35, of 1.684 10^9 each, at 2 10^12 a second
    assert hours(grid(stage)) == pytest.approx((60e3 + 175e3) * 1.684e9 / 2e12 / 3600)


def test_every_cell_counts_with_its_own_size_and_what_is_shared_once(grid):
    stage = "over: {size: [7.0M, 3.4M]}, parameters: {kimg: 10.0}"
    each = 10e3 * (1.684e9 + 0.711e9) / 2e12 / 3600
    assert hours(grid(f"{stage}, passes: {{kimg: {{size: 1}}}}")) == pytest.approx(each)
    once = hours(grid(f"{stage}, once: {{kimg: {{teacher_size: 2}}}}, passes: {{kimg: {{size: 1}}}}"))
    assert once == pytest.approx(each + 2 * 10e3 * 1.684e9 / 2e12 / 3600)


def test_several_budgets_are_all_run_and_backbones_and_judges_add_up(grid):
    assert hours(grid("parameters: {budgets: [1, 2.5]}, passes: {budgets: {size: 1}}")) == pytest.approx(
        3500 * 1.684e9 / 2e12 / 3600
    )
    stage = "parameters: {samples: 1000, features: [clip, pixels]}, passes: {samples: {judges: 2, vgg16_bn+lpips: 1}}"
    assert hours(grid(stage)) == pytest.approx(1000 * (2 * 4.363e9 + 15.35e9 + 1.253e9) / 2e12 / 3600)


def test_a_critic_of_the_teachers_encoder_is_a_share_of_it(grid):
    assert hours(grid("passes: {kimg: {critic: 10}}")) == pytest.approx(10e3 * 0.3 * 1.684e9 / 2e12 / 3600)


def test_what_cannot_be_told_is_not_told(grid):
    stage = "passes: {kimg: {size: 1}}"
    assert hours(grid(f"parameters: {{size: 0.05M}}, {stage}")) is None
    assert hours(grid(f"parameters: {{dataset: photos.zip}}, {stage}")) is None  # of what side?
    assert hours(grid(f"parameters: {{dataset: ffhq-64x64.zip}}, {stage}")) == pytest.approx(
        1e3 * 6.583e9 / 2e12 / 3600
    )


@pytest.mark.parametrize(
    ("stage", "head", "told"),
    [
        ("passes: {kimgs: {size: 1}}", RATE, "passes: the notebook has no budget 'kimgs'; did you mean 'kimg'?"),
        ("passes: {kimg: {sise: 1}}", RATE, "passes: unknown network 'sise'; did you mean 'size'?"),
        ("passes: {kimg: {size: -1}}", RATE, "passes: kimg: 'size' must be a number of passes, not int -1"),
        ("passes: {kimg: 3}", RATE, "passes: kimg must be a mapping"),
        ("once: [kimg]", RATE, "once must be a mapping"),
        ("parameters: {}", "rate: {teramacs: 0, of: x}", "rate: teramacs must be a positive number, not int 0"),
        ("parameters: {}", "rate: {teramacs: 2}", "rate: of must be text, not empty"),
        ("parameters: {}", "rate: {tmacs: 2}", "rate: unknown key 'tmacs'"),
        ("published: 5.02", RATE, "published must be a list of {fid, at, source}, not float 5.02"),
        ("published: [{fid: low, at: x, source: y}]", RATE, "published: fid must be a number, not str 'low'"),
        ("published: [{fid: 5.02, at: one step}]", RATE, "published: source must be text"),
    ],
)
def test_a_mistake_is_one_line(grid, stage, head, told, refuses):
    with refuses(told):
        read_grid(grid(stage, head))


# ---- what `plan` prints, and what `run` refuses

ASKED = """parameters: {kimg: 20.0, dataset: faces-64x64.zip, teacher: edm-cifar10-32x32-uncond-vp,
  reference: https://a.org/refs/faces.npz, features: [dinov2], options: {distance: lpips@224+l2,
  critic: timm:vgg16_bn+timm:tf_efficientnet_lite0}}, passes: {kimg: {size: 3}},
  published: [{fid: 5.02, at: one step, source: arXiv 1}]"""


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    for name, folder in (("ONESTEP_DATA", "data"), ("ONESTEP_WEIGHTS", "weights"), ("TORCH_HOME", "torch")):
        monkeypatch.setenv(name, str(tmp_path / folder))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path


def test_plan_tells_hours_figures_and_files_that_are_missing(grid, elsewhere, capsys, store_folder):
    path = grid(ASKED)
    assert main(["plan", str(path)]) == 0
    told = capsys.readouterr().out
    assert "GPU-hours ahead, at 2 * 10^12 multiply-accumulates a second: one device" in told
    assert f"{60e3 * 6.583e9 / 2e12 / 3600:.3g}  a" in told
    assert "a: FID 5.02, one step (arXiv 1)" in told
    for place in (
        "notebooks/faces-64x64.zip or",
        "data/faces-64x64.zip",
        "data/models/edm-cifar10-32x32-uncond-vp.pkl",
        "data/references/faces.npz",
        "weights/dinov2_vitl14_pretrain.pth",
        "torch/hub/checkpoints/vgg16-397923af.pth",
        "hub/models--timm--vgg16_bn.*",
    ):
        assert str(elsewhere / place) in told
    (elsewhere / "hub" / "models--timm--vgg16_bn.tv_in1k").mkdir(parents=True)
    for place in ("data/faces-64x64.zip", "data/references/faces.npz"):
        (elsewhere / place).parent.mkdir(parents=True, exist_ok=True)
        (elsewhere / place).write_text("")
    main(["plan", str(path)])
    told = capsys.readouterr().out.split("not there yet:")[1]
    assert not any(name in told for name in ("faces", "models--timm--vgg16_bn"))
    assert "tf_efficientnet_lite0" in told


def test_a_plan_goes_by_what_was_measured_on_such_a_device(grid, elsewhere, capsys, store_folder, refuses):
    head = "rate: {teramacs: 2, of: one H200, device: H200, mode: + bf16}"
    path = str(grid("over: {size: [7.0M, 3.4M]}, parameters: {kimg: 20.0}, passes: {kimg: {size: 3}}", head))
    out = read_grid(path).out.parent / "gpu"
    row = {"method": "edm", "size": "7.0M", "mode": "+ bf16", "macs": 5e9, "images_per_second": 1000.0}
    rows = [row, row | {"mode": "eager fp32", "macs": 1e9}, row | {"size": "3.4M", "error": "out of memory"}]
    for device in ("NVIDIA H200", "NVIDIA L4"):
        (out / device).mkdir(parents=True)
        doubled = [row | {"macs": 2 * row["macs"]} for row in rows] if "L4" in device else rows
        (out / device / "throughput.json").write_text(json.dumps({"device": device, "rows": doubled}))
    assert main(["plan", path]) == 0
    told = capsys.readouterr().out
    assert "as measured: 7.0M at 5\n" in told
    assert f"{60e3 * (1.684e9 / 5e12 + 0.711e9 / 2e12) / 3600:.3g}  a" in told
    (out / "NVIDIA L4" / "throughput.json").write_text("{}")
    with refuses("NVIDIA L4/throughput.json is not what scripts/gpu.py writes"):
        cost.measured(read_grid(path).rate, out)


def test_run_refuses_at_once_what_nobody_can_download(grid, elsewhere, capsys, store_folder):
    path = str(grid("parameters: {dataset: faces-64x64.zip}"))
    assert main(["run", path]) == 2
    assert f"there is no data set faces-64x64.zip: put it at {elsewhere / 'notebooks'}" in capsys.readouterr().err


def test_a_name_that_is_no_file_is_a_mistake(grid, refuses):
    with refuses("'dataset' must be one of"):
        read_grid(grid("parameters: {dataset: cifar11}"))
    with refuses("'teacher' must be"):
        read_grid(grid("parameters: {teacher: edn}"))


# ---- tables that must not rot


def test_files_of_judges_are_those_that_the_judges_fetch():
    from onestep_bench.scoring.judges import clip, dinov2, inception

    urls = {"inception": inception.URL, "inception-legacy": inception.URL, "clip": clip.URL, "dinov2": dinov2.URL}
    assert {name: url.rsplit("/", 1)[1] for name, url in urls.items()} == files.JUDGES


def test_a_teacher_of_the_zoo_is_looked_for_where_it_is_downloaded_to(elsewhere, monkeypatch):
    from onestep_bench.models import pretrained

    name, asked = "edm-cifar10-32x32-uncond-vp", []
    monkeypatch.setattr(pretrained, "fetch", lambda target, urls: asked.append(target))
    pretrained.find(name)
    assert tuple(asked) == files._model(name, Path())[0].places


@pytest.mark.parametrize(
    ("size", "side", "classes"),
    [("3.4M", 32, 0), ("15.7M", 64, 0), ("80.7M", 64, 1000), ("edm-ncsnpp", 32, 0), ("edm-ddpmpp", 64, 0)],
)
def test_the_work_of_a_network_is_what_is_counted(size, side, classes):
    import torch

    from onestep_bench import networks
    from onestep_bench.models.cost import macs

    with torch.device("meta"):
        network = networks.sized(size, side, 3, label_dim=classes)

        class Asked(torch.nn.Module):
            inner = network

            def forward(self, images):
                labels = torch.zeros(1, classes) if classes else None
                return network(images, torch.zeros(1), labels) if classes else network(images, torch.zeros(1))

        asked = Asked()
        asked.inner = network
        counted = macs(asked, (3, side, side))
    assert counted / 1e9 == pytest.approx(cost.GMACS[size][side], rel=1e-3)
