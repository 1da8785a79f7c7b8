"""Settings and fixtures that several rooms' tests share."""

import json
import os
import signal
from contextlib import contextmanager
from pathlib import Path

# Both are read when torch and tqdm are imported. Networks this small only wait for each other's threads.
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["TQDM_DISABLE"] = "1"

import numpy as np
import pytest
from hypothesis import settings

# What a shell runs in its background ignores interrupts, and tests of them would see none.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

REFERENCE = Path(__file__).parent / "reference"

settings.register_profile("suite", max_examples=50, deadline=None)
settings.load_profile("suite")


@pytest.fixture
def store_folder(tmp_path, monkeypatch):
    """An empty artifact store; test modules that touch the store use it throughout."""
    monkeypatch.setenv("ONESTEP_STORE", str(tmp_path / "store"))
    return tmp_path / "store"


@pytest.fixture(scope="session")
def refuses():
    """Context manager: its block raises OnestepError, in one line that holds every text of `what`."""
    from onestep_bench.errors import OnestepError

    @contextmanager
    def refuses(*what):
        with pytest.raises(OnestepError) as caught:
            yield caught
        message = str(caught.value)
        assert "\n" not in message
        for text in what:
            assert text in message

    return refuses


@pytest.fixture(scope="session", params=["edm_ddpmpp", "edm_ncsnpp", "edm_ddpmpp_cond", "edm_adm_cond"])
def released_edm(request):
    """(denoiser, arrays) of a network of the EDM zoo with its reference weights."""
    import torch

    from onestep_bench.denoiser import edm_denoiser
    from onestep_bench.networks.build import build

    with np.load(REFERENCE / f"{request.param}.npz") as file:
        net = build(json.loads(str(file["config"])))
        arrays = {key: torch.from_numpy(file[key]) for key in file.files if file[key].ndim}
    state = {key.removeprefix("state/"): value for key, value in arrays.items() if key.startswith("state/")}
    net.load_state_dict(state)
    return edm_denoiser(net.eval().requires_grad_(False)), arrays


@pytest.fixture(scope="session")
def slimflow():
    """SlimFlow's reference arrays: floats, and float32 tensors."""
    import torch

    with np.load(REFERENCE / "slimflow.npz") as file:
        return {key: torch.from_numpy(file[key]) if file[key].ndim else file[key].item() for key in file.files}


@pytest.fixture(scope="session")
def slimflow_toy(slimflow):
    """Function from 'student' or 'teacher' to a fresh toy network of the reference: a velocity in our direction."""
    import torch

    class Toy(torch.nn.Module):
        def __init__(self, role):
            super().__init__()
            self.w = torch.nn.Parameter(slimflow[f"{role}/w"].clone())
            self.b = torch.nn.Parameter(slimflow[f"{role}/b"].clone())

        def forward(self, x, s, labels=None):
            hidden = torch.einsum("ij,njhw->nihw", self.w, x) + self.b.reshape(-1, 1, 1)
            return -(torch.tanh(hidden) + 0.3 * x * torch.cos(2 * s / 999).reshape(-1, 1, 1, 1))

    return Toy


# ---- explore: two models that learnt nothing, and a kernel that somebody looks at


@pytest.fixture(scope="session")
def tiny_models(tmp_path_factory):
    """{name: model} of 8x8 images: one knows classes, one does not."""
    from onestep_bench import data, study

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ONESTEP_STORE", str(tmp_path_factory.mktemp("store")))
        images, small = data.load("digits"), {"size": "0.01M", "kimg": 0.032, "batch_size": 32}
        yield {
            "edm": study.train("edm", images, conditional=True, **small),
            "flow": study.train("rectified-flow", images, **small),
        }


@pytest.fixture
def as_if(tiny_models):
    """Function that gives the model 'flow' as if another method had trained it."""
    from dataclasses import replace

    from onestep_bench import store

    def of(method):
        model = replace(tiny_models["flow"], artifact=store.Artifact(tiny_models["flow"].artifact.folder))
        model.artifact.meta["recipe"]["method"] = method
        return model

    return of


@pytest.fixture
def looked_at(monkeypatch):
    """As in a kernel of JupyterLab."""
    monkeypatch.setenv("JPY_SESSION_NAME", "explore.ipynb")
    monkeypatch.delenv("PYTEST_VERSION", raising=False)
