"""What a student compares before it judges: read from the teacher's own lists, and never told wrong."""

import random
import re
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from po_assets.evaluation.generate import GrammarConstraint, grammar_tokenizer
from po_assets.model import ChatTemplate, load_tokenizer
from po_assets.product_owner import build_prompt, format_answer, in_order, parse_answer, read_yaml, validate_answer
from po_assets.product_owner.concept import stated_exclusion, stated_needs
from po_assets.product_owner.contract import REVIEW_ORDER, STATUSES
from po_assets.product_owner.documents import requirement_entries
from po_assets.product_owner.grammar import GrammarLimits, answer_grammar
from po_assets.product_owner.templates import BUILT_IN
from po_assets.sample_data.records import generate_rows
from po_assets.training import comparisons as module
from po_assets.training.comparisons import Case, WeightedText, make_lessons, read_cases, teachers_words, with_evidence
from po_assets.training.prompt_mix import Prompts
from po_assets.training.rows import tokenize_text, training_rows
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


@pytest.fixture(scope="module")
def cases(samples: list[tuple[str, str]]) -> list[Case]:
    return read_cases(samples, BUILT_IN)


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
    assert found[1].missing == ["book a berth"]


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
    assert found.cases == []
    assert "too few" in found.described
    assert with_evidence([ALIGNED] * 30, BUILT_IN, lambda _pair: False).cases == []


def test_the_order_of_the_keys_changes_and_no_text() -> None:
    answer = in_order(ALIGNED[1])
    assert sorted(answer.splitlines()) == sorted(ALIGNED[1].splitlines())
    assert re.findall(r"^(\w+):", parse_answer(answer).review_yaml or "", re.MULTILINE) == list(REVIEW_ORDER)
    for odd in ("no answer", ALIGNED[1].replace("narrative:", "closing:")):
        assert in_order(odd) == odd


def test_contrast_rows_are_right_about_their_status(cases: list[Case]) -> None:
    """As the teacher's lists of all rows say what each requirement is for, and the prompt what is excluded."""
    serving: dict[str, set[str]] = {}
    for case in cases:
        for text, purpose in zip(case.texts, case.purposes, strict=True):
            serving.setdefault(text, set()).add(purpose)
    domains, draw, seen, swapped = module._domains(cases), random.Random(1), set(), 0
    for _ in range(300):
        base = draw.choice(cases)
        domain = next(one for one in domains if set(base.needs) & set(one.serving))
        if (
            not set(base.needs) <= set(domain.serving)
            or (twin := module._contrast(base, domain, domains, draw)) is None
        ):
            continue
        seen.add(twin.status)
        asked = BUILT_IN.parts(twin.prompt)
        assert stated_exclusion(asked.concept) == twin.exclusion
        assert asked.requirements_yaml == twin.requirements_yaml
        assert twin.exclusion not in twin.needs == base.needs
        for text, purpose in zip(twin.texts, twin.purposes, strict=True):
            if purpose in base.needs:
                assert purpose in serving[text]
            elif purpose == module._FOREIGN:
                assert not serving[text] & {*base.needs, twin.exclusion}
            else:
                assert twin.exclusion in text or {twin.exclusion, module._EXCLUDED} & serving[text]
                swapped += twin.exclusion in serving.get(text, ())
        assert twin.document["functional_requirements"][0]["id"] == "FR001"
    assert seen == set(STATUSES)
    assert swapped > 20


def test_rows_of_one_product_have_no_other_to_compare_with(cases: list[Case]) -> None:
    """Nothing of their own is called another product's."""
    domain = max(module._domains(cases), key=lambda one: len(one.serving))
    alone = [case for case in cases if set(case.needs) <= set(domain.serving)]
    lessons = make_lessons(alone, comparisons=20, contrasts=20, seed=1)
    assert len(lessons.comparisons) == 20
    assert lessons.contrasts
    assert not any("another product" in text.text for text in (*lessons.comparisons, *lessons.contrasts))


def test_lessons_are_seeded_and_their_verdicts_count_most(
    cases: list[Case], tmp_path_factory: pytest.TempPathFactory
) -> None:
    chat = ChatTemplate(load_tokenizer(make_tiny_tokenizer(tmp_path_factory.mktemp("tokenizer"))))
    lessons = make_lessons(cases, comparisons=5, contrasts=20, seed=42)
    assert lessons == make_lessons(cases, comparisons=5, contrasts=20, seed=42)
    assert lessons.comparisons != make_lessons(cases, comparisons=5, contrasts=20, seed=7).comparisons
    for text in (*lessons.comparisons, *lessons.contrasts):
        row = tokenize_text(text, chat)
        assert chat.answer_text(list(row.ids)).endswith(text.text)
        weighted = zip(row.ids, row.token_weights, strict=True)
        trained = chat.answer_text([token for token, weight in weighted if weight > 1])
        assert trained == "".join(piece for piece, weight in text.parts if weight > 1)
        assert " served\n" in trained
        assert "(" not in trained
    assert make_lessons([], comparisons=5, contrasts=20, seed=42).comparisons == []


def test_the_recipe_says_how_many_lessons_a_shown_row_brings(
    samples: list[tuple[str, str]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Rows with evidence end as a whole answer does, in the very tokens of their text."""
    folder = tmp_path_factory.mktemp("tokenizer")
    chat = ChatTemplate(load_tokenizer(make_tiny_tokenizer(folder)))
    recipe = tiny_recipe(folder, max_length=20_000, epochs=0.5, comparisons=0.5, contrasts=0.25)
    found = training_rows(samples, chat, recipe, Prompts())
    texts = with_evidence(samples, BUILT_IN, lambda _pair: True).rows
    assert len(found.rows) == len(texts)
    assert len(found.comparisons) == round(0.25 * len(texts))
    assert len(found.contrasts) == round(0.125 * len(texts))
    for row, text in zip(found.rows[:10], texts, strict=False):
        assert list(row.ids) == [*chat.prompt_ids(text.prompt), *chat.answer_ids(text.text)]
        assert len(row.token_weights) == len(row.ids)
    assert "comparisons and" in found.described


def test_rows_of_which_nothing_can_be_made_say_so() -> None:
    found = make_lessons(read_cases([ALIGNED], BUILT_IN), comparisons=5, contrasts=5, seed=1)
    assert (found.comparisons, found.contrasts) == ([], [])
    assert "No lesson can be made of them" in found.described
