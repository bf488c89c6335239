from collections.abc import Iterator
from pathlib import Path

import pytest

from po_assets.storage import Layout
from po_assets_tests.model.tiny_model import make_tiny_model
from po_assets_tests.training.tiny_training import make_artifacts


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> Iterator[None]:
    """Tiny products gain nothing from a second thread, and machines that run tests are busy."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a tiny base model, to be left as it is."""
    return make_tiny_model(tmp_path_factory.mktemp("base") / "tiny")


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    """An artifact root with a supervised dataset that passed its gate; the tiny base model is in its folder `tiny`."""
    return make_artifacts(tmp_path / "artifacts")
