"""Artifact roots with teacher rows of the project's generator, for the tests of curation."""

import json
import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from upath import UPath

from po_assets.dataset.cases import read_eval_cases
from po_assets.dataset.publication import build_supervised
from po_assets.dataset.settings import SelectionSettings
from po_assets.intake.landing import list_landing, snapshot, sources_record
from po_assets.intake.pipeline import normalize_snapshot
from po_assets.product_owner import read_yaml
from po_assets.review.conflicts import Synthesis, make_conflicts
from po_assets.review.settings import ReviewSettings
from po_assets.sample_data import generate_rows
from po_assets.storage import Layout, read_rows
from po_assets_tests.dataset.tables import WORD_COUNT
from po_assets_tests.sample_data.sample_rows import ARTIFACTS

UNLIMITED = SelectionSettings(max_samples=None)


def land(root: Path, **files: Iterable[Mapping[str, Any]]) -> Layout:
    """An artifact root with these rows landed, and the committed evaluation cases."""
    layout = Layout(UPath(root))
    cases = Path(str(layout.eval_cases))
    if not cases.exists():
        cases.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ARTIFACTS / "evaluation" / cases.name, cases)
    incoming = Path(str(layout.incoming))
    incoming.mkdir(exist_ok=True)
    for name, rows in files.items():
        (incoming / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return layout


def take_in(layout: Layout) -> Layout:
    """Snapshot and normalize what has landed, as the graph does."""
    staged, sources = snapshot(list_landing(layout.incoming).files, layout.raw)
    staged.with_manifest(extra={"sources": sources_record(sources)}).publish()
    table, _ = normalize_snapshot(layout, sources, staged.sha256, workers=1)
    table.with_manifest(inputs={"raw_teacher": staged.sha256}).publish()
    return layout


def close(layout: Layout, policy: SelectionSettings = UNLIMITED) -> list[dict[str, Any]]:
    """Select the training rows; the closed ledger."""
    staged, _ = build_supervised(layout, policy, read_eval_cases(layout.eval_cases), WORD_COUNT, 1)
    staged.publish()
    return list(read_rows(layout.ledger))


def synthesis(layout: Layout, selection: SelectionSettings = UNLIMITED, **settings: Any) -> Synthesis:
    """What the asset does."""
    return make_conflicts(layout, ReviewSettings(**settings), selection, WORD_COUNT)


def teacher_rows(count: int, seed: int = 7) -> list[dict[str, Any]]:
    """Rows of the generator without any conflicts among them."""
    rows = generate_rows(count, seed=seed)
    return [row for row in rows if "status: conflicts" not in json.dumps(row)]


def alignment(row: Mapping[str, Any]) -> dict[str, Sequence[Any]]:
    """What a made row's review says about requirements."""
    return dict(read_yaml(row["teacher_product_owner_review"]).value["requirements_alignment"])
