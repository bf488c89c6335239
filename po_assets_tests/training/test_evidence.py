"""The evidence before the verdict: read from the teacher's own lists or drawn in lessons, and never told wrong."""

import re
from collections import Counter
from dataclasses import replace
from functools import cache

import pytest
import yaml

from po_assets.evaluation.generate import GrammarConstraint, grammar_tokenizer
from po_assets.model import ChatTemplate, load_tokenizer
from po_assets.product_owner import build_prompt, format_answer, in_order, parse_answer, read_yaml, validate_answer
from po_assets.product_owner.contract import REVIEW_ORDER, STATUSES
from po_assets.product_owner.documents import requirement_entries, stated_exclusion, stated_needs
from po_assets.product_owner.grammar import GrammarLimits, answer_grammar
from po_assets.product_owner.templates import BUILT_IN
from po_assets.sample_data.domains import load_domains
from po_assets.sample_data.records import generate_rows
from po_assets.text import first_upper, join
from po_assets.training.evidence import (
    EXCLUDED,
    WeightedText,
    lesson_domains,
    make_lessons,
    read_cases,
    teachers_words,
    with_evidence,
)
from po_assets.training.rows import Prompts, tokenize_text, training_rows
from po_assets_tests.model.tiny_model import make_tiny_tokenizer
from po_assets_tests.training.tiny_training import make_recipe

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
def chat(tmp_path_factory: pytest.TempPathFactory) -> ChatTemplate:
    return ChatTemplate(load_tokenizer(make_tiny_tokenizer(tmp_path_factory.mktemp("tokenizer"))))


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
    samples: list[tuple[str, str]], chat: ChatTemplate
) -> None:
    statuses = {asked: read_yaml(parse_answer(answer).review_yaml).value["status"] for asked, answer in samples}
    found = with_evidence(samples, BUILT_IN, lambda _pair: True)
    assert len(found.rows) > len(samples) / 2
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
    samples: list[tuple[str, str]], chat: ChatTemplate
) -> None:
    """Rows with evidence end as a whole answer does, in the very tokens of their text."""
    base = {"max_length": 20_000}
    recipe = make_recipe(base, epochs=0.5, comparisons=0.5, documents=0.25)
    found = training_rows(samples, chat, recipe, Prompts())
    texts = with_evidence(samples, BUILT_IN, lambda _pair: True).rows
    assert len(found.rows) == len(texts)
    assert len(found.comparisons) == round(0.25 * len(texts))
    assert len(found.documents) == round(0.125 * len(texts))
    for row, text in zip(found.rows[:10], texts, strict=False):
        assert list(row.ids) == [*chat.prompt_ids(text.prompt), *chat.answer_ids(text.text)]
        assert len(row.token_weights) == len(row.ids)
    assert "comparisons and" in found.described
    bare = make_recipe(base, comparisons=0.0, documents=0.0)
    alone = training_rows(samples, chat, bare, Prompts())
    assert (alone.comparisons, alone.documents, len(alone.rows)) == ([], [], len(samples))


# Lessons: every line is true of the trade it is about, and only what is judged counts.

RESTATED = re.compile(r"^- It must (.+), and not (.+)$", re.MULTILINE)
LINE = re.compile(r"^- FR[0-9]+ \((.+)\) (helps to|demands to|belongs to) (.+)$", re.MULTILINE)
SERVED = re.compile(r"^- (.+?) is( not)? served$", re.MULTILINE)


@cache
def lessons():
    return make_lessons(lesson_domains(), BUILT_IN, comparisons=300, documents=60, seed=42)


@cache
def purposes() -> dict[str, set[str]]:
    """Of each authored action, by its words: the needs that it serves and the exclusions that it breaks."""
    found: dict[str, set[str]] = {}
    for domain in lesson_domains():
        for need in domain.needs:
            for line in need.served_by:
                found.setdefault(line.split(" can ", 1)[1], set()).add(need.text)
        for exclusion in domain.exclusions:
            for line in exclusion.breaches:
                found.setdefault(line.split(" can ", 1)[1], set()).add(exclusion.text)
    return found


@cache
def known() -> dict[str, str]:
    """Needs by how they begin a sentence."""
    return {first_upper(need.text): need.text for domain in lesson_domains() for need in domain.needs}


def purposes_of(text: str) -> set[str]:
    """The longest authored action that the requirement ends with says what it is for."""
    return purposes()[max((action for action in purposes() if text.endswith(action)), key=len)]


@pytest.mark.parametrize("kind", [0, 1], ids=["comparisons", "documents"])
def test_every_line_is_true_and_the_status_follows(kind: int) -> None:
    seen = Counter()
    for lesson in lessons()[kind]:
        restated, exclusion = RESTATED.search(lesson.text).groups()
        needs = [known()[need] for need, _ in SERVED.findall(lesson.text)]
        assert join(needs) == restated
        assert exclusion not in needs
        served, offends = set(), False
        for text, verdict, rest in LINE.findall(lesson.text):
            meant = purposes_of(text)
            seen[verdict] += 1
            if verdict == "helps to":
                assert rest in meant & set(needs)
                served.add(rest)
            elif verdict == "demands to":
                assert rest == f"{exclusion}, which is excluded"
                assert exclusion in meant
            else:
                assert not meant & {*needs, exclusion}
            offends |= verdict != "helps to"
        assert [not lacking for _, lacking in SERVED.findall(lesson.text)] == [need in served for need in needs]
        status = "conflicts" if offends else "aligned" if served == set(needs) else "needs_adjustment"
        assert lesson.text.endswith(f"\nstatus: {status}\n")
        seen[status] += 1
    assert set(seen) == {*STATUSES, "helps to", "demands to", "belongs to"}
    assert min(seen.values()) > 10


def test_a_document_asks_what_its_evidence_restates() -> None:
    for lesson in lessons()[1]:
        asked = BUILT_IN.parts(lesson.prompt)
        restated, exclusion = RESTATED.search(lesson.text).groups()
        assert restated in asked.concept
        assert re.search(rf"\bnot {exclusion}\b", asked.concept)
        for text, *_ in LINE.findall(lesson.text):
            assert f"description: {text}" in asked.requirements_yaml


def test_no_lesson_is_about_a_product_of_the_evaluation() -> None:
    held_out = [product for domain in load_domains("evaluation") for product in domain.products]
    held_out += [line for domain in load_domains("evaluation") for need in domain.needs for line in need.served_by]
    known = " ".join(map(str, lesson_domains()))
    assert [text for text in held_out if text in known] == []


def test_only_what_is_judged_counts(chat: ChatTemplate) -> None:
    """Of a comparison the verdicts and the status; of a document the vision not at all."""

    def trained(lesson: WeightedText, least: float) -> str:
        row = tokenize_text(lesson, chat)
        assert chat.answer_text(list(row.ids)).endswith(lesson.text)
        return chat.answer_text([i for i, w in zip(row.ids, row.token_weights, strict=True) if w > least])

    comparison, document = (some[0] for some in lessons())
    assert "(" not in trained(comparison, 0)
    assert trained(comparison, 0).count(" served\n") == len(SERVED.findall(comparison.text))
    assert trained(document, 0).startswith("summary:\n- It must")
    assert "(" not in trained(document, 1)


def test_lessons_are_seeded() -> None:
    few = {"comparisons": 5, "documents": 5}
    again = [make_lessons(lesson_domains(), BUILT_IN, **few, seed=seed) for seed in (1, 1, 2)]
    assert again[0] == again[1] != again[2]
