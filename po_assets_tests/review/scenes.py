"""Artifact roots with teacher rows of the project's generator, for the tests of curation."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from po_assets.dataset.settings import SelectionSettings
from po_assets.review.conflicts import Synthesis, make_conflicts
from po_assets.review.settings import ReviewSettings
from po_assets.sample_data import generate_rows
from po_assets.storage import Layout, read_rows
from po_assets_tests.dataset import tables
from po_assets_tests.intake import landed_rows
from po_assets_tests.sample_data.sample_rows import ARTIFACTS

UNLIMITED = SelectionSettings(max_samples=None)


def land(root: Path, **files: list[Mapping[str, Any]]) -> Layout:
    """An artifact root with these rows landed, and the committed evaluation cases."""
    layout = landed_rows.land(root, **files)
    if not layout.eval_cases.exists():
        layout.eval_cases.parent.mkdir()
        shutil.copy(ARTIFACTS / "evaluation" / layout.eval_cases.name, str(layout.eval_cases))
    return layout


def take_in(layout: Layout) -> Layout:
    """Snapshot and normalize what has landed, as the graph does."""
    landed_rows.take_in(layout)
    return layout


def close(layout: Layout, policy: SelectionSettings = UNLIMITED) -> list[dict[str, Any]]:
    """Select the training rows; the closed ledger."""
    tables.close(layout, **policy.values())
    return list(read_rows(layout.ledger))


def synthesis(layout: Layout, selection: SelectionSettings = UNLIMITED, **settings: Any) -> Synthesis:
    """What the asset does."""
    return make_conflicts(layout, ReviewSettings(**settings), selection, tables.WORD_COUNT)


def teacher_rows(count: int, seed: int = 7) -> list[dict[str, Any]]:
    """Rows of the generator without any conflicts among them."""
    return [row for row in generate_rows(count, seed=seed) if "status: conflicts" not in json.dumps(row)]
