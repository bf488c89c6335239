"""What a person sees in the UI: the graph, checks, assets; nothing needs to be unfolded or scrolled sideways."""

from typing import Any

import pytest

from po_assets.evaluation.settings import CRITERIA
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


CUT_OFF = """() => [...document.querySelectorAll("td")].flatMap((cell) => {
  const right = (node) => node.getBoundingClientRect().right;
  let around = cell.parentElement;
  while (around && getComputedStyle(around).overflowX === "visible") around = around.parentElement;
  return around && right(cell) > right(around) + 1 ? [cell.innerText.slice(0, 60)] : [];
})"""
"""The cells of tables that reach beyond what holds them."""


def open_page(page: Any, url: str, wanted: str) -> None:
    """An asset's page, when its metadata is there."""
    page.goto(url)
    page.locator("tr", has_text=wanted).first.wait_for(state="visible")


def cut_off(page: Any) -> list[str]:
    """The cells that are cut off in windows of two widths."""
    found = []
    for width in (1400, 1280):
        page.set_viewport_size({"width": width, "height": 1000})
        page.wait_for_timeout(500)  # for what follows the window's size
        found += page.evaluate(CUT_OFF)
    return found


def test_verdict_and_criteria_are_read_without_scrolling_sideways(ui: Server, page: Any) -> None:
    """All that the gate says stands on the page; what is wide is one click away."""
    open_page(page, f"{ui.url}/assets/eval_report?view=overview", "lowest_cases")
    criteria = page.locator("tr", has_text="criteria").locator("li")
    criteria.first.wait_for(state="visible")
    assert cut_off(page) == []
    visible(page, "is not promoted; no adapter is current yet.")
    listed = criteria.all_inner_texts()
    assert {line.split()[1].rstrip(":") for line in listed} == set(CRITERIA)
    assert any(line.startswith("FAIL mean_score: ") and line.endswith("(required >= 0.82)") for line in listed)


@pytest.mark.parametrize(
    ("asset", "wanted"),
    [
        ("raw_teacher", "landed_files"),
        ("normalized_teacher", "scored_by_the_metric"),
        ("supervised_dataset", "preview"),
        ("eval_cases", "with_reference"),
        ("lora_adapter", "trainable_parameters"),
        ("baseline_report", "lowest_cases"),
    ],
)
def test_no_assets_page_is_cut_off(ui: Server, page: Any, asset: str, wanted: str) -> None:
    """However long paths, digests and rows are: one value that is too wide would cut off all of them."""
    open_page(page, f"{ui.url}/assets/{asset}?view=overview", wanted)
    assert cut_off(page) == []


def test_the_evaluations_page_opens_tables_and_pictures(ui: Server, page: Any) -> None:
    """The lowest cases with what cost them points, and pictures, one click away each."""
    open_page(page, f"{ui.url}/assets/eval_report?view=overview", "lowest_cases")
    page.locator("tr", has_text="lowest_cases").get_by_text("[Show Markdown]").click()
    for text in ("EVAL-01", "what cost points"):
        visible(page, text)
    page.keyboard.press("Escape")
    page.locator("tr", has_text="student_statuses").get_by_text("[Show Markdown]").click()
    picture = page.locator('img[src^="data:image/png"]').first
    picture.wait_for(state="visible")
    page.wait_for_function("image => image.complete && image.naturalWidth > 100", arg=picture.element_handle())


def test_a_run_that_failed_names_its_check(ui: Server, page: Any) -> None:
    """The run's page has the failed gate's step and the check's name."""
    failed = ui.runs()[-1]
    page.goto(f"{ui.url}/runs/{failed['runId']}")
    visible(page, "normalized_teacher_checks")
    visible(page, "rejected_share")
