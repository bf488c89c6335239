"""The commands that people are told to type."""

import re
import tomllib

import pytest

from po_assets_tests.automation.workplace import REPOSITORY

TEXTS = ("docs/scale.md", "deploy/ray/README.md")


@pytest.mark.parametrize("name", TEXTS)
def test_extras_are_installed_by_make_setup(name: str) -> None:
    """By hash; and never the package by its name, which is on no registry."""
    text = (REPOSITORY / name).read_text()
    known = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    (extras,) = re.findall(r"^ +make setup EXTRAS=(\S+)$", text, re.MULTILINE)
    assert "s3" in extras.split(",")  # both texts use s3://
    assert set(extras.split(",")) <= set(known)
    assert "po-assets[" not in text
