"""The report: one page that shows everything, is safe against what models write, and compares with the last one."""

import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from upath import UPath

from po_assets.dataset.cases import EvalCase
from po_assets.evaluation.checks import Evidence, checks
from po_assets.evaluation.gate import judge
from po_assets.evaluation.report import (
    build_report,
    drawn,
    evaluation_figures,
    free_run,
    read_report,
    render_html,
    write_report,
)
from po_assets.evaluation.scoring import ScoredAnswer
from po_assets_tests.evaluation.scenes import both_sides, case, cases, scored

MODELS = {"baseline": "SmolLM2", "student": "SmolLM2 with adapter"}
ATTACK = '<script>alert("x")</script><img src=x onerror=alert(1)> {{ 7*7 }} </pre></details>'


def report_of(
    baseline: list[ScoredAnswer],
    student: list[ScoredAnswer],
    *,
    of: list[EvalCase] | None = None,
    adapter: str = "a" * 64,
    **others: Any,
) -> dict[str, Any]:
    found = Evidence(baseline, student)
    record = judge(found, adapter, cases_sha256="c" * 64, decoding="constrained, greedy")
    return build_report(of or cases(len(student)), found, record, models=MODELS, **others)


class _Outline(HTMLParser):
    """Counts tags and notes every address."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.addresses: list[str] = []
        self.handlers: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.addresses += [value or "" for name, value in attrs if name in ("src", "href")]
        self.handlers += [name for name, _ in attrs if name.startswith("on")]


def test_the_page_shows_gate_scores_and_every_case() -> None:
    """Prompt, both answers, reference, points lost and why; where every status is the same, which are wrong.

    The verdict's sentence first; in the list of cases the right and the given status, wrong ones marked for eye and
    filter.
    """
    baseline, student = both_sides([0.9] * 40)
    student = [replace(answer, status="aligned") for answer in student]
    student[0] = replace(student[0], unknown_ids=["FR099"], invented_conflicts=2)
    free = free_run([scored(case(1)), scored(case(2), "nothing", finish_reason="length")])
    page = render_html(report_of(baseline, student, free=free), {})
    assert page.count('<details class="case') == 40
    for text in (
        "ids which the case does not have: 1; that list conflicts where the reference has none: 1.",
        *("The gate passed", "Without grammar 1 of 2 answers are valid", "measured on 2 cases"),
        *("CONCEPT:", "Reference (aligned)", "What cost points", "TideTable7", "non_inferiority"),
        '<p class="sentence">The student passes the score thresholds; does not judge: says aligned',
        *("right: needs_adjustment, given:", "found: needs_adjustment"),
        "8 cases behind it",  # the table that the text of a failed criterion speaks of
    ):
        assert text in page, text
    assert page.count('data-wrong="yes"') == page.count("✗ wrong") == 8
    assert page.count('data-wrong="no"') == 32


def test_a_failed_gate_says_so_with_the_next_step() -> None:
    """In words, not by colour alone; tables have a caption and scopes, for those who hear the page."""
    page = render_html(report_of(*both_sides([0.5] * 40)), {})
    for text in ("The gate failed", "at least 0.82 is asked for", "open them in the HTML report"):
        assert text in page, text
    assert page.count("<table") == page.count("<caption>") > 5
    assert not re.search(r"<th(?! scope=)[ >]", page)


def test_what_a_model_writes_stays_text() -> None:
    """Markup, handlers, template syntax, closing tags: in the answer and in what derives from it."""
    baseline, student = both_sides([0.9] * 3)
    student[0] = replace(student[0], text=ATTACK, status=ATTACK, invalid_reason=ATTACK, valid=False, problems=[ATTACK])
    page = render_html(report_of(baseline, student), {})
    found = _Outline(page)
    assert found.tags.count("script") == 1  # the page's own, the only one that its policy lets run
    assert found.handlers == []
    assert page.count('<details class="case') == 3
    assert "{{ 7*7 }}" in page


def test_no_character_turns_or_hides_the_page() -> None:
    """Escape sequences and right-to-left marks, in ids, answers and reasons, are shown by their code points.

    Also an id of thousands of characters with half a formula is drawn.
    """
    hostile = f"\x1b[31m \u202egpj.exe $\\frac{{$ {ATTACK} {'x' * 3_000}"
    baseline, student = both_sides([0.9] * 3)
    student[0] = replace(
        student[0], text=hostile, status=hostile, invalid_reason=hostile, problems=[hostile], total=0.1
    )
    page = render_html(report_of(baseline, student), {})
    assert not {"\x1b", "\u202e"} & set(page)
    assert "U+202Egpj.exe" in page
    baseline[0], student[0] = (replace(side[0], case_id=hostile, tier=hostile) for side in (baseline, student))
    found = Evidence(baseline, student)
    assert all(drawn(evaluation_figures(found)).values())
    summary = checks.verdicts(found)["worst_case"].summary
    assert "\x1b" not in summary
    assert len(summary) < 300


@pytest.mark.parametrize("names", [["\udc80", "$\\frac{$", "a\x00b", "漢字"], ["x" * 20_000, "y" * 20_000]])
def test_no_name_of_a_case_stops_the_report_or_makes_it_large(names: list[str]) -> None:
    """The pictures are drawn with what can be drawn of it."""
    sides = both_sides([0.5] * len(names))
    sides = tuple([replace(a, case_id=name) for a, name in zip(side, names, strict=True)] for side in sides)
    uris = drawn(evaluation_figures(Evidence(*sides)))
    assert all(uri.startswith("data:image/png;base64,") for uri in uris.values())
    assert sum(map(len, uris.values())) < 300_000


def test_a_picture_of_many_cases_takes_no_minutes() -> None:
    """Names are left out where nobody could read them."""
    figure = evaluation_figures(Evidence(*both_sides([0.5] * 2_000)))["Scores by case"]
    assert not figure.axes[0].get_xticklabels()


def test_a_picture_that_cannot_be_drawn_is_a_note_on_the_page() -> None:
    """The report is written all the same."""

    class Broken:
        def findobj(self, *_: object) -> None:
            raise RuntimeError("no")

    uris = drawn({"Scores": Broken()})  # type: ignore[dict-item]
    assert uris == {"Scores": ""}
    assert 'The picture "Scores" could not be drawn.' in render_html(report_of(*both_sides([0.9] * 3)), uris)


def test_no_link_to_a_case_leads_nowhere() -> None:
    """A UUID is named as a whole; of a longer name the beginning, without a link."""
    names = ["0d1f8f4e-6c1b-4f7e-9d55-2f0c2a2f4a11", "x" * 50]
    sides = tuple(
        [replace(a, case_id=name) for a, name in zip(side, names, strict=True)] for side in both_sides([0.1, 0.2])
    )
    page = render_html(report_of(*sides, of=[replace(case(1), case_id=name) for name in names]), {})
    links = {address[1:] for address in _Outline(page).addresses}
    assert names[0] in links
    assert links <= set(re.findall(r'id="([^"]+)"', page))


def test_the_page_needs_no_other_file() -> None:
    """Pictures are inside; there is no outside address."""
    baseline, student = both_sides([0.9] * 4)
    page = render_html(report_of(baseline, student), drawn(evaluation_figures(Evidence(baseline, student))))
    outside = [address for address in _Outline(page).addresses if not address.startswith("#")]
    assert len(outside) == 3
    assert all(address.startswith("data:image/png;base64,") for address in outside)
    assert not re.search(r"@import|url\(", page)


def test_the_report_says_what_got_better_and_worse() -> None:
    """Against the last other adapter; a repeat for the same adapter keeps that comparison."""
    first = report_of(*both_sides([0.80, 0.90, 0.90]), adapter="1" * 64)
    now = both_sides([0.95, 0.85, 0.90])
    second = report_of(*now, adapter="2" * 64, previous=first)
    assert second["previous"]["better"] == [{"case": "EVAL-01", "before": 0.80, "now": 0.95}]
    assert second["previous"]["worse"] == [{"case": "EVAL-02", "before": 0.90, "now": 0.85}]
    again = report_of(*now, adapter="2" * 64, previous=second)
    assert again["previous"] == second["previous"]
    page = render_html(again, {})
    assert "adapter 111111111111" in page
    assert "Better (1)" in page


def test_a_written_report_is_read_back_and_others_are_not(tmp_path: Path) -> None:
    """An old format, or no JSON at all, is as good as none; a lone surrogate in an answer stops nothing."""
    document, page = UPath(tmp_path / "report.json"), UPath(tmp_path / "report.html")
    assert read_report(document) is None
    baseline, student = both_sides([0.9] * 3)
    found = Evidence(baseline, [replace(student[0], text="caf\udce9"), *student[1:]])
    record = judge(found, "a" * 64, cases_sha256="c" * 64, decoding="greedy")
    report = build_report(cases(3), found, record, models=MODELS)
    write_report(report, found, document, page)
    assert read_report(document) == report
    assert page.read_text().startswith("<!doctype html>")
    assert "U+DCE9" in page.read_text()
    for other in ('{"format": 0}', "{"):
        document.write_text(other)
        assert read_report(document) is None


def test_cases_without_a_reference_are_shown_as_such() -> None:
    """With how many have one; nothing is called wrong that nobody said."""
    nothing = {"reference_vision_yaml": "", "reference_review_yaml": "", "status": None, "tier": ""}
    baseline, student = both_sides([0.9] * 3)
    baseline, student = ([replace(one, reference_status="", tier="") for one in side] for side in (baseline, student))
    page = render_html(report_of(baseline, student, of=[case(number, **nothing) for number in (1, 2, 3)]), {})
    for text in ("0 of 3 cases have a reference answer", "0 have a right status", "(no reference answer)"):
        assert text in page, text
    assert page.count("right: not given") == 3
    assert page.count('<td class="number">-</td>') == 4  # by tier and by status, of both sides
    assert "✗ wrong" not in page
