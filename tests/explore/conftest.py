"""Two models that learnt nothing, and a kernel that somebody looks at."""

import pytest


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
def looked_at(monkeypatch):
    """As in a kernel of JupyterLab."""
    monkeypatch.setenv("JPY_SESSION_NAME", "explore.ipynb")
    monkeypatch.delenv("PYTEST_VERSION", raising=False)
