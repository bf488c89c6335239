"""`benchmarks.rows`: its ways run on the project as it is."""

from pathlib import Path

import pytest

from benchmarks import rows
from benchmarks.landed import land
from po_assets.dataset.publication import training_row
from po_assets.intake.lines import Line
from po_assets.intake.normalization import normalize
from po_assets_tests.intake.landed_rows import encode, vision_prompt_row


def test_a_row_that_went_through_datasets_is_the_training_row_that_ours_is() -> None:
    """Its metadata travel as text."""
    data = encode(vision_prompt_row())
    ours = training_row(normalize(Line("rows", 1, data, len(data))).row)
    assert rows._as_pair(rows._normalize_text({"text": data.decode()})) == ours


@pytest.mark.slow
def test_our_way_runs_with_all_its_resources(tmp_path: Path) -> None:
    """As `make bench` starts it."""
    with rows._folder(tmp_path) as folder:
        land(folder / "incoming", 300)
        stages = rows.materialize(folder, len, keep_all=True)  # type: ignore[arg-type]
    assert {"raw_teacher", "normalized_teacher", "supervised_dataset", "supervised_dataset_checks"} <= set(stages)
