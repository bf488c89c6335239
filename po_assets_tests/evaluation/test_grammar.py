"""The grammar: what it allows always parses, what it forbids cannot be written, and it always ends."""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from po_assets.evaluation.generate import GrammarConstraint, grammar_tokenizer
from po_assets.model import load_tokenizer
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
from po_assets_tests.model.tiny_model import make_tiny_tokenizer

IDS = ["FR001", "FR002", "NFR001", "C001"]
BYTES = GrammarLimits(tokens_per_word=30)
SMALL = GrammarLimits(
    words=dict.fromkeys(GrammarLimits().words, 6) | {"product_name": 4, "product_summary": 8, "narrative": 10},
    items=dict.fromkeys(GrammarLimits().items, 2) | dict.fromkeys(("aligned", "conflicts"), 8),
    tokens_per_word=8,
)
REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """One token per byte: nothing is hidden inside a token."""
    return load_tokenizer(make_tiny_tokenizer(tmp_path_factory.mktemp("tokenizer")))


@pytest.fixture(scope="module")
def grammar_view(tokenizer: Any) -> Any:
    return grammar_tokenizer(tokenizer, len(tokenizer))


def accepts(text: str, tokenizer: Any, grammar_view: Any, ids: list[str] = IDS, limits: GrammarLimits = BYTES) -> bool:
    """Whether the whole text is a complete answer of the grammar."""
    constraint = GrammarConstraint(grammar_view, answer_grammar(ids, limits))
    for token in tokenizer(text)["input_ids"]:
        if not constraint.permits(token):
            return False
        constraint.advance(token)
    return constraint.complete


def random_answer(tokenizer: Any, grammar_view: Any, seed: int, ids: list[str] = IDS) -> str:
    """A walk through the grammar that takes any permitted token, as a model without sense would."""
    constraint = GrammarConstraint(grammar_view, answer_grammar(ids, SMALL))
    random, tokens = np.random.default_rng(seed), []
    while not constraint.complete:
        choices = torch.nonzero(constraint.permitted())[:, 0].numpy()
        tokens.append(int(random.choice(choices)))
        constraint.advance(tokens[-1])
        assert len(tokens) <= 3_000
    return str(tokenizer.decode(tokens))


@pytest.mark.parametrize("seed", range(12))
def test_every_complete_text_parses_with_all_keys_and_known_ids(seed: int, tokenizer: Any, grammar_view: Any) -> None:
    """Whatever is written inside the values."""
    text = random_answer(tokenizer, grammar_view, seed)
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


@pytest.mark.parametrize("seed", range(3))
def test_no_answer_is_longer_than_the_bound(seed: int, tokenizer: Any, grammar_view: Any) -> None:
    """Also with one byte per token, where keys and fences count by characters: 370 instead of the 220 allowed for."""
    tokens = len(tokenizer(random_answer(tokenizer, grammar_view, seed))["input_ids"])
    assert tokens <= SMALL.longest_answer(len(IDS)) + 150 + 4 * 20


def test_the_good_answer_is_one(tokenizer: Any, grammar_view: Any) -> None:
    """The form that training teaches is the form that the grammar asks for."""
    assert accepts(GOOD, tokenizer, grammar_view)


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
def test_what_would_break_the_answer_cannot_be_written(old: str, new: str, tokenizer: Any, grammar_view: Any) -> None:
    """Each is a habit of language models, or what YAML 1.1 reads as something else than text."""
    assert old in GOOD
    assert not accepts(GOOD.replace(old, new, 1), tokenizer, grammar_view)


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
def test_what_a_good_answer_may_say_can_be_written(old: str, new: str, tokenizer: Any, grammar_view: Any) -> None:
    """Ordinary punctuation, empty lists, a single item where the validator wants no more."""
    assert old in GOOD
    assert accepts(GOOD.replace(old, new, 1), tokenizer, grammar_view)


def test_a_case_without_ids_lets_none_be_cited(tokenizer: Any, grammar_view: Any) -> None:
    """The review can still be written."""
    without = re.sub(r"N?FR00\d|C001", "The tool", GOOD)
    without = re.sub(r"  - The tool lets harbour.*\n  - The tool lets skippers.*\n", "", without)  # one item is left
    assert not accepts(GOOD, tokenizer, grammar_view, ids=[])
    assert accepts(without, tokenizer, grammar_view, ids=[])


def test_where_one_text_can_follow_only_its_own_tokens_may_come(grammar_view: Any, tokenizer: Any) -> None:
    """A key spelled in odd pieces is something the model has never seen."""
    constraint = GrammarConstraint(grammar_view, answer_grammar(IDS))
    opening = tokenizer("```yaml VISION\nproduct_name: ")["input_ids"]
    for token in opening:
        assert constraint.permitted().sum() == 1
        assert constraint.permits(token)
        constraint.advance(token)
    assert constraint.permitted().sum() > 20
    assert not constraint.permits(tokenizer("\n")["input_ids"][0])


def test_a_token_that_is_not_permitted_is_refused(grammar_view: Any, tokenizer: Any) -> None:
    """The decode loop cannot leave the grammar by mistake."""
    constraint = GrammarConstraint(grammar_view, answer_grammar(IDS))
    with pytest.raises(ValueError, match="is not permitted here"):
        constraint.advance(tokenizer("x")["input_ids"][0])


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


def test_every_reference_answer_of_the_evaluation_cases_is_in_the_grammar(tokenizer: Any, grammar_view: Any) -> None:
    """Otherwise the grammar would forbid what the teacher taught."""
    from upath import UPath

    from po_assets.dataset.cases import read_eval_cases

    cases = read_eval_cases(UPath(REPOSITORY / "artifacts/evaluation/po_eval_cases.jsonl"))
    limits = limits_of((case.reference_vision_yaml, case.reference_review_yaml) for case in cases)
    limits = replace(limits, tokens_per_word=30)
    outside = []
    for case in cases:
        answer = in_order(format_answer(case.reference_vision_yaml, case.reference_review_yaml))
        if not accepts(answer, tokenizer, grammar_view, list(case.requirement_ids), limits):
            outside.append(case.case_id)
    assert outside == []
