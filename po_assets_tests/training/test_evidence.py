"""The evidence before the verdict: read from the teacher's own lists, and never told wrong."""

import re
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from po_assets.evaluation.generate import GrammarConstraint, grammar_tokenizer
from po_assets.model import ChatTemplate, load_tokenizer
from po_assets.product_owner import build_prompt, format_answer, in_order, parse_answer, read_yaml, validate_answer
from po_assets.product_owner.contract import REVIEW_ORDER
from po_assets.product_owner.documents import requirement_entries, stated_exclusion, stated_needs
from po_assets.product_owner.grammar import GrammarLimits, answer_grammar
from po_assets.product_owner.prompts import BUILT_IN
from po_assets.sample_data.records import generate_rows
from po_assets.training.evidence import EXCLUDED, WeightedText, read_cases, teachers_words, with_evidence
from po_assets.training.rows import Prompts, training_rows
from po_assets_tests.model.tiny_model import make_tiny_tokenizer
from po_assets_tests.training.tiny_training import tiny_recipe

CONCEPT = "TideTable must list free berths and book a berth. It does not sell fuel."
VISION = (
    "product_name: TideTable\nproduct_summary: A berth book.\ntarget_users:\n- Skippers\nlast_updated: '2026-01-02'"
)


def requirements(*texts: str) -> str:
    entries = [{"id": f"FR{at:03}", "description": text} for at, text in enumerate(texts, start=1)]
    return yaml.safe_dump({"title": "TideTable", "functional_requirements": entries}, sort_keys=False).strip()


def review(status: str, aligned: str = "[]", gaps: str = "[]", conflicts: str = "[]") -> str:
    return (
        f"status: {status}\nsummary:\n- Read.\nrequirements_alignment:\n  aligned: {aligned}\n  gaps: {gaps}\n"
        f"  conflicts: {conflicts}\nrecommended_actions:\n- One\n- Two\nnarrative: In the teacher's words."
    )


def pair(texts: list[str], answer: str, concept: str = CONCEPT) -> tuple[str, str]:
    return build_prompt(concept, requirements(*texts)), format_answer(VISION, answer)


LISTS, BOOKS, SELLS = "Skippers can see which berth is free", "Let skippers reserve a place", "Staff can sell fuel"
ALIGNED = pair(
    [LISTS, BOOKS], review("aligned", "[FR001 helps to list free berths, FR002 answers the need to book a berth]")
)
MISSING = pair(
    [LISTS], review("needs_adjustment", "[FR001 helps to list free berths]", "[Nothing helps to book a berth]")
)
AGAINST = pair([LISTS, SELLS], review("conflicts", "[FR001 helps to list free berths]", conflicts="[FR002 sells fuel]"))


@pytest.fixture(scope="module")
def samples() -> list[tuple[str, str]]:
    rows = [row for row in generate_rows(400) if "concept" in row]
    return [
        (
            build_prompt(row["concept"], row["requirements_yaml"]),
            format_answer(row["teacher_product_vision"], row["teacher_product_owner_review"]),
        )
        for row in rows
    ]


@pytest.mark.parametrize("form", ["must", "has to", "is to", "shall"])
def test_a_concept_states_needs_and_exclusion(form: str) -> None:
    concept = f"It is red. It {form} list free berths, book a berth and warn of gales. It will not sell fuel, ever."
    assert stated_needs(concept) == ["list free berths", "book a berth", "warn of gales"]
    assert stated_exclusion(concept) == "sell fuel"
    assert (stated_needs("It must not sink."), stated_exclusion("Boats.")) == ([], "")


def test_what_a_requirement_is_for_is_read_from_the_teachers_lists() -> None:
    found = read_cases([ALIGNED, MISSING, AGAINST], BUILT_IN)
    assert [case.status for case in found] == ["aligned", "needs_adjustment", "conflicts"]
    assert found[0].purposes == ("list free berths", "book a berth")
    assert found[1].purposes == ("list free berths",)
    assert found[2].purposes == ("list free berths", EXCLUDED)


def test_it_may_stand_in_another_row() -> None:
    """A row that does not name the need is read by one that does, for the same requirement in other words."""
    silent = pair([f"Allow {LISTS[:8].lower()} to {LISTS[13:]}", BOOKS], review("aligned", "[FR001 and FR002 fit]"))
    assert read_cases([silent], BUILT_IN) == []
    assert read_cases([ALIGNED, silent], BUILT_IN)[1].purposes == ("list free berths", "book a berth")


@pytest.mark.parametrize(
    "row",
    [
        pair([LISTS, BOOKS], review("conflicts", "[FR001 helps to list free berths, FR002 helps to book a berth]")),
        pair([LISTS, BOOKS], review("aligned", "[FR001 helps to list free berths and book a berth]")),
        pair([LISTS], review("needs_adjustment", "[FR001 helps to list free berths]"), concept="A berth book."),
        ("no prompt of ours", ALIGNED[1]),
        (ALIGNED[0], "no answer"),
    ],
)
def test_a_row_that_leaves_a_doubt_is_no_case(row: tuple[str, str]) -> None:
    """The status does not follow, a purpose is not known, nothing is stated, or it cannot be read."""
    assert read_cases([row], BUILT_IN) == []


def test_the_evidence_stands_before_the_verdict(samples: list[tuple[str, str]]) -> None:
    found = with_evidence([*samples, MISSING], BUILT_IN, lambda _pair: True)
    parsed = parse_answer(found.rows[-1].text)
    written = read_yaml(parsed.review_yaml).value
    assert written["summary"] == [
        "It must list free berths and book a berth, and not sell fuel",
        f"FR001 ({LISTS}) helps to list free berths",
        "List free berths is served",
        "Book a berth is not served",
    ]
    assert tuple(written) == REVIEW_ORDER
    assert written["narrative"] == "In the teacher's words."
    assert read_yaml(parsed.vision_yaml).value["non_goals"] == ["Sell fuel"]
    assert f"{len(found.rows)} of {len(samples) + 1} rows" in found.described


def test_every_row_with_evidence_is_valid_keeps_its_status_and_is_what_the_grammar_permits(
    samples: list[tuple[str, str]], tmp_path: Path
) -> None:
    statuses = {asked: read_yaml(parse_answer(answer).review_yaml).value["status"] for asked, answer in samples}
    found = with_evidence(samples, BUILT_IN, lambda _pair: True)
    assert len(found.rows) > len(samples) / 2
    chat = ChatTemplate(load_tokenizer(make_tiny_tokenizer(tmp_path)))
    for at, row in enumerate(found.rows):
        parsed = parse_answer(row.text)
        assert validate_answer(parsed.vision_yaml, parsed.review_yaml).ok
        assert read_yaml(parsed.review_yaml).value["status"] == statuses[row.prompt]
        if at % 40 == 0:
            asked = BUILT_IN.parts(row.prompt)
            ids = [entry.id for entry in requirement_entries(read_yaml(asked.requirements_yaml).value)]
            limits = replace(GrammarLimits(), tokens_per_word=30)  # the tiny tokenizer knows bytes only
            constraint = GrammarConstraint(
                grammar_tokenizer(chat.tokenizer, len(chat.tokenizer)), answer_grammar(ids, limits)
            )
            for token in chat.piece_ids(row.text):
                constraint.advance(token)


def test_rows_that_state_too_little_stay_the_teachers_words() -> None:
    found = with_evidence([ALIGNED], BUILT_IN, lambda _pair: True)
    assert found.rows == teachers_words([ALIGNED]) == [WeightedText(ALIGNED[0], [(in_order(ALIGNED[1]), 1.0)])]
    assert not found.stated
    assert "too few" in found.described
    assert with_evidence([ALIGNED] * 30, BUILT_IN, lambda _pair: False).stated is False


def test_the_order_of_the_keys_changes_and_no_text() -> None:
    answer = in_order(ALIGNED[1])
    assert sorted(answer.splitlines()) == sorted(ALIGNED[1].splitlines())
    assert re.findall(r"^(\w+):", parse_answer(answer).review_yaml or "", re.MULTILINE) == list(REVIEW_ORDER)
    for odd in ("no answer", ALIGNED[1].replace("narrative:", "closing:")):
        assert in_order(odd) == odd


def test_the_recipe_says_how_many_lessons_a_shown_row_brings(
    samples: list[tuple[str, str]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Rows with evidence end as a whole answer does, in the very tokens of their text."""
    folder = tmp_path_factory.mktemp("tokenizer")
    chat = ChatTemplate(load_tokenizer(make_tiny_tokenizer(folder)))
    recipe = tiny_recipe(folder, max_length=20_000, epochs=0.5, comparisons=0.5, documents=0.25)
    found = training_rows(samples, chat, recipe, Prompts())
    texts = with_evidence(samples, BUILT_IN, lambda _pair: True).rows
    assert len(found.rows) == len(texts)
    assert len(found.comparisons) == round(0.25 * len(texts))
    assert len(found.documents) == round(0.125 * len(texts))
    for row, text in zip(found.rows[:10], texts, strict=False):
        assert list(row.ids) == [*chat.prompt_ids(text.prompt), *chat.answer_ids(text.text)]
        assert len(row.token_weights) == len(row.ids)
    assert "comparisons and" in found.described
    bare = tiny_recipe(folder, max_length=20_000, comparisons=0.0, documents=0.0)
    alone = training_rows(samples, chat, bare, Prompts())
    assert (alone.comparisons, alone.documents, len(alone.rows)) == ([], [], len(samples))
