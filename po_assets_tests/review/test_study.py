"""The study of conflicts rows, with a tiny random model: what is compared, and that it goes on where it stopped."""

import json
from pathlib import Path

import pytest

from benchmarks.conflicts import BEGIN, END, main
from po_assets.product_owner import STATUSES
from po_assets_tests.model.tiny_model import make_tiny_model

SMALL = ["--epochs", "0.02", "--mode", "free", "--max-new-tokens", "4", "--cases", "3", "--max-length", "8000"]


@pytest.mark.slow
def test_the_arms_differ_in_their_conflicts_rows_and_share_all_else(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """349, 359 and 380 training rows; the tables are written between the markers; a second start trains nothing."""
    options = ["--base-model", str(make_tiny_model(tmp_path / "tiny", context=8192)), *SMALL]
    page = tmp_path / "page.md"
    page.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n")
    root = tmp_path / "study"
    main(["--root", str(root), "--arms", "none", *options])
    main(["--root", str(root), "--arms", "landed", "filled", "--write", str(page), *options])
    results = {arm: json.loads((root / arm / "result.json").read_text()) for arm in ("none", "landed", "filled")}
    counted = {arm: (result["rows"], result["statuses"].get("conflicts", 0)) for arm, result in results.items()}
    assert counted == {"none": (349, 0), "landed": (359, 10), "filled": (380, 31)}
    for result in results.values():
        assert sum(sum(row.values()) for row in result["confusion"].values()) == result["cases"] == 3
    text = page.read_text()
    assert text.startswith(f"before\n{BEGIN}\n| arm |")
    assert text.endswith(f"{END}\nafter\n")
    assert "old" not in text
    assert text.count("the right status in rows") == 3
    assert all(f"| {status} |" in text for status in STATUSES)
    capsys.readouterr()

    main(["--root", str(root), "--arms", "filled", *options])
    again = capsys.readouterr().out
    assert "filled: Unchanged: the adapter was made from the same data" in again
    assert "all 3 answers are cached, nothing is generated" in again
    assert json.loads((root / "filled" / "result.json").read_text()) == results["filled"]


def test_a_page_without_markers_is_refused(tmp_path: Path) -> None:
    """Nothing is overwritten by guesswork."""
    page = tmp_path / "page.md"
    page.write_text("no markers")
    with pytest.raises(ValueError, match="has no markers"):
        main(["--root", str(tmp_path), "--arms", "--write", str(page)])
    assert page.read_text() == "no markers"
