"""The HTML report at the width of a desk and of a telephone, in both colour schemes: seen by axe-core, and as a picture."""

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from axe_playwright_python.sync_playwright import Axe

from po_assets.evaluation.report import render_html
from po_assets_tests.evaluation.scenes import both_sides
from po_assets_tests.evaluation.test_report import report_of

WCAG = {"runOnly": {"type": "tag", "values": ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa"]}}


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The address of a report with every kind of line: a failed gate, wrong statuses, answers that are not valid."""
    baseline, student = both_sides([0.5] * 40)
    student = [replace(student[0], valid=False, invalid_reason="no block REVIEW"), *student[1:]]
    student = [replace(answer, status="aligned", problems=["x" * 300]) for answer in student]
    place = tmp_path_factory.mktemp("report") / "report.html"
    place.write_text(render_html(report_of(baseline, student), {}))
    return place.as_uri()


@pytest.mark.parametrize(
    ("width", "scheme"),
    [
        (1400, "light"),
        (390, "dark"),
        *(pytest.param(*more, marks=pytest.mark.slow) for more in [(1400, "dark"), (390, "light")]),
    ],
)
def test_the_report_can_be_read_by_everybody(
    browser: Any, report: str, tmp_path: Path, width: int, scheme: str
) -> None:
    """No violation of WCAG 2.2 A and AA closed or open; nothing scrolls sideways; its own script filters."""
    page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
    try:
        page.goto(report)
        pictures = Path(os.environ.get("PO_SCREENSHOTS") or tmp_path)
        pictures.mkdir(parents=True, exist_ok=True)
        page.screenshot(path=pictures / f"report-{width}-{scheme}.png", full_page=True)
        faults = Axe().run(page, options=WCAG).generate_report()
        page.get_by_role("button", name="Open all").click()
        page.evaluate("document.querySelectorAll('details').forEach((one) => (one.open = true))")
        page.screenshot(path=pictures / f"report-{width}-{scheme}-open.png")
        faults += Axe().run(page, options=WCAG).generate_report()
        assert faults.count("Found 0 accessibility violations") == 2, faults
        assert page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth") <= 0
        page.locator("#show").select_option("wrong")
        assert page.locator("#shown").inner_text() == "8 of 40 cases"
        back = page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert back == {"light": "rgb(255, 255, 255)", "dark": "rgb(15, 23, 42)"}[scheme]
    finally:
        page.close()
