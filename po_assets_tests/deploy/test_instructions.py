"""The commands that people are told to type."""

import re
import tomllib

import pytest

from po_assets_tests.deploy.ray_deployment import REPOSITORY

TEXTS = ("docs/scale.md", "deploy/ray/README.md")


@pytest.mark.parametrize("name", TEXTS)
def test_extras_are_installed_as_make_setup_does(name: str) -> None:
    """Pinned, from the repository (the package is on no registry), editable (a copy would move the artifact root)."""
    text = (REPOSITORY / name).read_text()
    known = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    (extras,) = re.findall(r"\.venv/bin/pip install --constraint constraints\.txt --editable '\.\[(.+)\]'", text)
    assert "s3" in extras.split(",")  # both texts use s3://
    assert set(extras.split(",")) <= set(known)
    assert "po-assets[" not in text
