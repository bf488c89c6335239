"""What a person sees in the UI: the graph, a failed check's page, the evaluation; nothing needs to be unfolded."""

from typing import Any

import pytest

from po_assets_tests.automation.live import Server

pytestmark = pytest.mark.slow


def visible(page: Any, text: str) -> None:
    """The text is on the page, and shown."""
    page.get_by_text(text).first.wait_for(state="visible")


def node(page: Any, name: str) -> Any:
    """A group or an asset in the drawn graph."""
    return page.locator(f'svg >> text="{name}"').first


def test_the_asset_graph_shows_the_assets_and_where_it_failed(ui: Server, page: Any) -> None:
    """Every group of the job's assets, unfolded with one click each; no sign-up window in the way."""
    page.goto(f"{ui.url}/asset-groups/")
    for group in ("teacher", "dataset", "student", "evaluation"):
        node(page, group).wait_for(state="visible")
    assert page.get_by_text("Join the Dagster community").count() == 0
    node(page, "teacher").click()
    for asset in ("teacher_files", "raw_teacher", "normalized_teacher"):
        node(page, asset).wait_for(state="visible")


def test_a_failed_checks_page_tells_its_story(ui: Server, page: Any) -> None:
    """One sentence with numbers, the rows as a table, what to do; all of it visible at once."""
    page.goto(f"{ui.url}/assets/normalized_teacher?view=checks&checkDetail=rejected_share")
    visible(page, "2 of 10 landed rows (20.0%) were rejected, at most 5.0% may be")
    visible(page, "What to do:")
    visible(page, "correct the lines in the file that it writes")
    visible(page, "This is a blocking asset check.")
    table = page.locator("table", has_text="reason")
    for cell in ("2026-11-bad.jsonl", "not JSON", "unknown format"):
        table.get_by_text(cell).first.wait_for(state="visible")
    # All of it above the fold of a usual window.
    box = table.get_by_text("unknown format").first.bounding_box()
    assert box["y"] + box["height"] < page.viewport_size["height"]


def test_a_passed_checks_page_says_its_numbers_and_gives_no_orders(ui: Server, page: Any) -> None:
    """The sentence, without anything to do."""
    page.goto(f"{ui.url}/assets/normalized_teacher?view=checks&checkDetail=ledger_balances")
    visible(page, "10 landed lines = 8 kept + 2 rejected.")
    visible(page, "Passed")
    assert page.get_by_text("What to do:").count() == 0


def test_the_evaluations_page_shows_gate_pictures_and_worst_cases(ui: Server, page: Any) -> None:
    """The gate as a table, the lowest cases with what cost them points, and pictures one click away."""
    page.goto(f"{ui.url}/assets/eval_report?view=overview")
    visible(page, "gate_table")
    for text in ("mean_score", ">= 0.82", "FAIL", "lowest_cases", "EVAL-01", "what cost points", "is not promoted"):
        visible(page, text)
    page.get_by_text("[Show Markdown]").first.click()
    picture = page.locator('img[src^="data:image/png"]').first
    picture.wait_for(state="visible")
    page.wait_for_function("image => image.complete && image.naturalWidth > 100", arg=picture.element_handle())


def test_a_run_that_failed_names_its_check(ui: Server, page: Any) -> None:
    """The run's page has the failed gate's step and the check's name."""
    failed = ui.runs()[-1]
    page.goto(f"{ui.url}/runs/{failed['runId']}")
    visible(page, "normalized_teacher_checks")
    visible(page, "rejected_share")
