"""The grammar: what it allows always parses, what it forbids cannot be written, and it always ends."""

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from upath import UPath

from po_assets.dataset.cases import read_eval_cases
from po_assets.evaluation.answering import AnsweringModel
from po_assets.product_owner import (
    STATUSES,
    cited_ids,
    format_answer,
    in_order,
    parse_answer,
    read_yaml,
    validate_answer,
)
from po_assets.product_owner.grammar import GrammarLimits, answer_grammar, limits_of
from po_assets_tests.evaluation.scenes import GOOD, REVIEW, VISION

IDS = ["FR001", "FR002", "NFR001", "C001"]
BYTES = GrammarLimits(tokens_per_word=30)
SMALL = GrammarLimits(
    words=dict.fromkeys(GrammarLimits().words, 6) | {"product_name": 4, "product_summary": 8, "narrative": 10},
    items=dict.fromkeys(GrammarLimits().items, 2) | dict.fromkeys(("aligned", "conflicts"), 8),
    tokens_per_word=8,
)
SAMPLES = Path(__file__).resolve().parents[2] / "artifacts" / "evaluation" / "po_eval_cases.jsonl"


def accepts(text: str, answering: AnsweringModel, ids: list[str] = IDS, limits: GrammarLimits = BYTES) -> bool:
    """Whether the whole text is a complete answer of the grammar; a token a byte, so that nothing is hidden in one."""
    constraint = answering.constraint(answer_grammar(ids, limits))
    for token in answering.chat.piece_ids(text):
        if not constraint.permits(token):
            return False
        constraint.advance(token)
    return constraint.complete


@pytest.mark.parametrize("seed", range(12))
def test_every_complete_text_parses_with_all_keys_and_known_ids(seed: int, answering: AnsweringModel) -> None:
    """Whatever a model without sense, which takes any permitted token, writes into the values; none is endless.

    With one byte per token, keys and fences count by characters: 370 instead of the 220 allowed for.
    """
    constraint = answering.constraint(answer_grammar(IDS, SMALL))
    random, tokens = np.random.default_rng(seed), []
    while not constraint.complete:
        choices = torch.nonzero(constraint.permitted())[:, 0].numpy()
        tokens.append(int(random.choice(choices)))
        constraint.advance(tokens[-1])
        assert len(tokens) <= SMALL.longest_answer(len(IDS)) + 150 + 4 * 20
    text = answering.chat.tokenizer.decode(tokens)
    parsed = parse_answer(text)
    assert parsed.missing == ()
    vision, review = read_yaml(parsed.vision_yaml), read_yaml(parsed.review_yaml)
    assert (vision.error, review.error) == (None, None)
    assert isinstance(vision.value["product_name"], str)
    assert isinstance(vision.value["last_updated"], str)
    assert all(
        vision.value[key] for key in ("target_users", "value_proposition", "key_capabilities", "success_metrics")
    )
    assert isinstance(review.value["narrative"], str)
    assert review.value["status"] in STATUSES
    assert len(review.value["recommended_actions"]) >= 2
    assert set(cited_ids(parsed.review_yaml or "")) <= set(IDS)
    reason = validate_answer(parsed.vision_yaml, parsed.review_yaml).reason
    assert reason in ("", "no item of requirements_alignment names a requirement id (such as FR001)")


def test_the_good_answer_is_one(answering: AnsweringModel) -> None:
    """The form that training teaches is the form that the grammar asks for."""
    assert accepts(GOOD, answering)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("status: aligned", "status: fine"),
        ("last_updated: '2026-05-29'", "last_updated: 2026-05-29"),
        ("last_updated: '2026-05-29'", "last_updated: '2026-02-30'"),
        ("- FR001 lets harbour staff", "- FR003 lets harbour staff"),
        ("- FR001 lets harbour staff", "- NFR002 lets harbour staff"),
        ("- FR001 lets harbour staff", "- FR0011 lets harbour staff"),
        ("- FR001 lets harbour staff", "- FR001: lets harbour staff"),
        ("- Sell fuel", "- 'Sell fuel"),
        ("- Sell fuel", "- Sell fuel # not yet"),
        ("product_name: TideTable", "product_name: null"),
        ("product_name: TideTable", "product_name: Yes"),
        ("- Test NFR001 with real data before the pilot\n", ""),
        ("- Sell fuel", "- 2026-99-99"),
        ("- Sell fuel", "- 0b_"),
        ("- Sell fuel", "- 1.5e+3"),
        ("- Sell fuel", "- No"),
        ("- Test NFR001 with real data before the pilot", "- 2026-99-99"),
        ("narrative: The", "narrative:\nThe"),
        ("value_proposition:", "values:"),
    ],
)
def test_what_would_break_the_answer_cannot_be_written(old: str, new: str, answering: AnsweringModel) -> None:
    """Each is a habit of language models, or what YAML 1.1 reads as something else than text."""
    assert old in GOOD
    assert not accepts(GOOD.replace(old, new, 1), answering)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("- FR001 lets harbour staff", "- Both FR001, FR002 and NFR001 (with C001) let harbour staff"),
        ("- Sell fuel", '- Sell fuel, 24/7 – naïve "café" pricing at 3.5 % (or less)'),
        ("- Sell fuel", "- 24 harbours in the first year"),
        ("- Sell fuel", "- 3D views, 2 of them"),
        ("- Sell fuel", "- No fuel"),
        ("non_goals:\n- Sell fuel", "non_goals: []"),
        ("  gaps: []", "  gaps:\n  - No requirement serves the need to cancel"),
        ("status: aligned", "status: conflicts"),
        ("- Less waiting at the quay\n", ""),
    ],
)
def test_what_a_good_answer_may_say_can_be_written(old: str, new: str, answering: AnsweringModel) -> None:
    """Ordinary punctuation, empty lists, a single item where the validator wants no more."""
    assert old in GOOD
    assert accepts(GOOD.replace(old, new, 1), answering)


def test_a_case_without_ids_lets_none_be_cited(answering: AnsweringModel) -> None:
    """The review can still be written."""
    without = re.sub(r"N?FR00\d|C001", "The tool", GOOD)
    without = re.sub(r"  - The tool lets harbour.*\n  - The tool lets skippers.*\n", "", without)  # one item is left
    assert not accepts(GOOD, answering, ids=[])
    assert accepts(without, answering, ids=[])


def test_where_one_text_can_follow_only_its_own_tokens_may_come(answering: AnsweringModel) -> None:
    """A key spelled in odd pieces is something the model has never seen."""
    constraint = answering.constraint(answer_grammar(IDS))
    opening = answering.chat.piece_ids("```yaml VISION\nproduct_name: ")
    for token in opening:
        assert constraint.permitted().sum() == 1
        assert constraint.permits(token)
        constraint.advance(token)
    assert constraint.permitted().sum() > 20
    assert not constraint.permits(answering.chat.piece_ids("\n")[0])


def test_a_token_that_is_not_permitted_is_refused(answering: AnsweringModel) -> None:
    """The decode loop cannot leave the grammar by mistake."""
    constraint = answering.constraint(answer_grammar(IDS))
    with pytest.raises(ValueError, match="is not permitted here"):
        constraint.advance(answering.chat.piece_ids("x")[0])


def test_limits_leave_room_above_the_fullest_reference() -> None:
    """Half as long again, one item more; rounded up, so that a small change of one case changes nothing."""
    limits = limits_of([(VISION, REVIEW)])
    assert limits.items["target_users"] == 3
    assert limits.items["non_goals"] == 2
    assert limits.items["gaps"] == 1
    words = len(read_yaml(VISION).value["product_summary"].split())
    assert 1.5 * words <= limits.words["product_summary"] < 1.5 * words + 5
    assert limits == limits_of([(VISION.replace("in time", "on time"), REVIEW), ("", "")])


def test_one_endless_reference_does_not_lift_the_bounds_of_all() -> None:
    """A bound is at most twice what nine of ten need; without references the defaults hold."""
    usual = [(VISION, REVIEW)] * 39
    endless = REVIEW.replace("narrative: The", f"narrative: {'very ' * 900}The").replace(
        "- Test", "- Wait\n" * 80 + "- Test"
    )
    limits = limits_of([*usual, (VISION, endless)])
    words = len(read_yaml(REVIEW).value["narrative"].split())
    assert 2 * words <= limits.words["narrative"] < 2 * words + 5
    assert limits.items["recommended_actions"] == 5
    assert limits.longest_answer(4) < 1.3 * limits_of(usual).longest_answer(4)
    assert limits_of([]) == limits_of([("", "")]) == GrammarLimits()


def test_every_reference_answer_of_the_evaluation_cases_is_in_the_grammar(answering: AnsweringModel) -> None:
    """Otherwise the grammar would forbid what the teacher taught."""
    cases = read_eval_cases(UPath(SAMPLES))
    limits = limits_of((case.reference_vision_yaml, case.reference_review_yaml) for case in cases)
    limits = replace(limits, tokens_per_word=30)
    outside = []
    for case in cases:
        answer = in_order(format_answer(case.reference_vision_yaml, case.reference_review_yaml))
        if not accepts(answer, answering, list(case.requirement_ids), limits):
            outside.append(case.case_id)
    assert outside == []
