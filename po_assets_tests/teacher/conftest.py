"""A root with payloads."""

from pathlib import Path

import pytest

from po_assets_tests.teacher.scenes import Scene


@pytest.fixture
def scene(tmp_path: Path) -> Scene:
    return Scene(tmp_path)
