from pathlib import Path

import pytest

from po_assets_tests.model.tiny_model import make_tiny_model


@pytest.fixture
def tiny_folder(tmp_path: Path) -> Path:
    return make_tiny_model(tmp_path / "tiny")
