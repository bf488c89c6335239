"""Consumers' prompts: what the check says of the student under them, and where it is shown."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from upath import UPath

from po_assets.dag import Verdict
from po_assets.dataset.cases import EvalCase
from po_assets.errors import UserError
from po_assets.evaluation.checks import Evidence, checks
from po_assets.evaluation.consumers import UnderPrompt, ask_consumers, read_consumers, write_consumers
from po_assets.evaluation.gate import _card_section, judge
from po_assets.evaluation.report import build_report, render_html
from po_assets.evaluation.scoring import ScoredAnswer
from po_assets.evaluation.settings import GateProfile
from po_assets.product_owner.templates import AGENT, read_prompt
from po_assets_tests.evaluation.scenes import both_sides, cases, scored

SHORT = read_prompt("Idea:\n{{ concept }}\n\nSpec:\n{{ requirements_yaml }}", "short")
WANTS_IT = GateProfile(name="agents", blocking=["mean_score", "consumer_prompts"])


def under(prompt: str, totals: list[float], **changes: object) -> UnderPrompt:
    """The first cases' answers through a prompt."""
    answers = [scored(case, total=total, **changes) for case, total in zip(cases(len(totals)), totals, strict=True)]
    return UnderPrompt(prompt, answers)


def verdict(*consumers: UnderPrompt, profile: GateProfile | None = None) -> Verdict:
    found = Evidence(*both_sides([0.9] * 40), profile or GateProfile(), consumers)
    return checks.verdicts(found, {"consumer_prompts"})["consumer_prompts"]


def test_a_student_that_holds_under_a_consumers_prompt_passes() -> None:
    """With the loss against the own prompt on the very cases that were asked."""
    found = verdict(under("agent", [0.88, 0.86, 0.87, 0.87]))
    assert found.passed
    assert (
        "Through the prompt agent the student scores 0.870 on 4 cases with 100% of the answers valid, -0.030 against the "
        "own prompt on the same cases (95 % interval -0." in found.summary
    )


def test_one_that_loses_too_much_under_any_of_them_is_warned_of_answer_beside_answer() -> None:
    """By the gate's own thresholds; a profile that names the check blocks on it."""
    lost = (under("short", [0.9] * 4), under("agent", [0.9, 0.4, 0.8, 0.9], text="All is well."))
    found = verdict(*lost)
    assert (found.passed, found.severity, found.value) == (False, "WARN", "0.750, 0%")
    worst = [row for row in found.rows if row["prompt and case"] in ("agent, EVAL-02", "agent, EVAL-03")]
    assert [(row["score"], row["answer"]) for row in worst] == [
        ("0.4, own 0.9", "All is well."),
        ("0.8, own 0.9", "All is well."),
    ]
    assert "VISION" in worst[0]["own answer"]
    assert verdict(*lost, profile=WANTS_IT).severity == "ERROR"
    assert not verdict(under("agent", [0.9] * 4, valid=False)).passed


def test_where_nothing_was_asked_only_a_profile_that_wants_to_know_fails() -> None:
    """No prompt is named, or no case is to be asked."""
    assert (verdict().passed, verdict().value) == (True, "not asked")
    wanted = verdict(profile=WANTS_IT)
    assert (wanted.passed, wanted.severity) == (False, "ERROR")
    assert "Name the prompts in consumer_prompts" in wanted.next_step


def test_a_prompt_that_cannot_be_asked_is_told_of_and_the_others_are_asked() -> None:
    """A system text that is longer than the model's context, say."""

    def ask(asked: Sequence[EvalCase], _name: str) -> list[ScoredAnswer]:
        if asked[0].asked_with == AGENT:
            raise UserError("The prompt has 9,000 tokens.")
        return [scored(case, total=0.9) for case in asked]

    asked = ask_consumers(cases(2), [AGENT, SHORT], ask)
    assert [(one.prompt, len(one.answers), one.fault) for one in asked] == [
        ("agent", 0, "The prompt has 9,000 tokens."),
        ("short", 2, ""),
    ]
    found = verdict(*asked)
    assert not found.passed
    assert "Through agent it could not be asked: The prompt has 9,000 tokens." in found.summary
    assert "Through the prompt short the student scores 0.900" in found.summary
    assert ask_consumers([], [AGENT], ask) == []


def test_answers_of_another_student_or_decoding_are_not_taken(tmp_path: Path) -> None:
    """They stay on disk when a later evaluation breaks off before its own."""
    path = UPath(tmp_path / "answers.json")
    kept = [under("agent", [0.9, 0.8]), UnderPrompt("short", [], "too long")]
    student = [scored(case) for case in cases(2)]
    assert read_consumers(path, student) == []
    write_consumers(path, kept)
    assert read_consumers(path, student) == kept
    for other in ({"model_digest": "n" * 64}, {"decoding": "e" * 64}):
        assert read_consumers(path, [replace(answer, **other) for answer in student]) == kept[1:]
    for content in (b"[5]", b"\xff", b'[{"prompt": "agent"}]'):
        path.write_bytes(content)
        with pytest.raises(UserError, match="does not hold what eval_report wrote there: materialize it again"):
            read_consumers(path, student)


def test_report_page_and_card_have_one_table() -> None:
    """The page shows the answers as text, whatever they hold."""
    asked = [UnderPrompt("long", [], "too long"), under("agent", [0.9, 0.4], text="<script>x</script>")]
    found = Evidence(*both_sides([0.9] * 40), GateProfile(), asked)
    record = judge(found, "a" * 64, cases_sha256="c" * 64, decoding="greedy", prompt="The own prompt is built-in.")
    report = build_report(cases(40), found, record, models={"baseline": "b", "student": "s"})
    assert json.loads(json.dumps(report))["consumer_prompts"][0]["mean score"] == "0.650"
    page = render_html(report, {})
    assert "agent: case EVAL-02" in page
    assert "&lt;script&gt;x&lt;/script&gt;" in page
    card = _card_section([record])
    assert "| prompt | cases | mean score | valid | against the own prompt | 95 % interval |" in card
    assert "| agent | 2 | 0.650 | 0% | -0.250 |" in card
    assert "| long | not asked | not asked |" in card
