"""Lessons in judging: every line is true of the trade it is about, and only what is judged counts."""

import re
from collections import Counter
from functools import cache

import pytest

from po_assets.model import ChatTemplate, load_tokenizer
from po_assets.product_owner.contract import STATUSES
from po_assets.product_owner.prompts import BUILT_IN
from po_assets.sample_data.domains import load_domains
from po_assets.text import first_upper, join
from po_assets.training.evidence import WeightedText
from po_assets.training.lessons import lesson_domains, make_lessons
from po_assets.training.rows import tokenize_text
from po_assets_tests.model.tiny_model import make_tiny_tokenizer

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


@pytest.mark.parametrize("kind", ["comparisons", "documents"])
def test_every_line_is_true_and_the_status_follows(kind: str) -> None:
    seen = Counter()
    for lesson in getattr(lessons(), kind):
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
    for lesson in lessons().documents:
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


def test_only_what_is_judged_counts(tmp_path) -> None:
    """Of a comparison the verdicts and the status; of a document the vision not at all."""
    chat = ChatTemplate(load_tokenizer(make_tiny_tokenizer(tmp_path)))

    def trained(lesson: WeightedText, least: float) -> str:
        row = tokenize_text(lesson, chat)
        assert chat.answer_text(list(row.ids)).endswith(lesson.text)
        return chat.answer_text([i for i, w in zip(row.ids, row.token_weights, strict=True) if w > least])

    comparison, document = lessons().comparisons[0], lessons().documents[0]
    assert "(" not in trained(comparison, 0)
    assert trained(comparison, 0).count(" served\n") == len(SERVED.findall(comparison.text))
    assert trained(document, 0).startswith("summary:\n- It must")
    assert "(" not in trained(document, 1)


def test_lessons_are_seeded() -> None:
    few = {"comparisons": 5, "documents": 5}
    again = [make_lessons(lesson_domains(), BUILT_IN, **few, seed=seed) for seed in (1, 1, 2)]
    assert again[0] == again[1] != again[2]
