"""The evidence before the verdict: in the teacher's rows, and in lessons about products that no row is about.

A model of this size learns a row's verdict by heart unless it is shown the steps to it (distilling step by step, Hsieh
et al. 2023, https://arxiv.org/abs/2305.02301). So the REVIEW's summary restates what the concept asks for and excludes,
says of each requirement what it is for, and of each need whether it is served; the status follows from these lines.
What a requirement is for is read from the teacher's own alignment lists. `supervised_dataset` stays as it is, and no
evaluation case is ever read here.

The teacher's rows know a few dozen trades, whose requirements such a model has by heart before it has learned to
compare. So lessons are drawn from authored trades (`sample_data`: those for training and 108 for this alone, never
those of the evaluation), in the same lines. Training on such a task first is intermediate-task training (Phang et al.
2018, https://arxiv.org/abs/1811.01088). Of two kinds:

- *comparisons*: a REVIEW's summary and status alone, without a question; only the verdicts are trained, and
- *documents*: a whole question; the vision is given, and the answer is trained up to its status.

Where a concept excludes something, it is mostly a need of the trade that the concept does not state: what serves such a
need demands what is excluded, in words that do not tell.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from po_assets.product_owner import cited_ids, format_answer, in_order, parse_answer, read_alignment, read_yaml
from po_assets.product_owner.contract import ALIGNMENT_KEYS, REQUIREMENT_SECTIONS, REVIEW, REVIEW_ORDER
from po_assets.product_owner.documents import requirement_entries, stated_exclusion, stated_needs, write_yaml
from po_assets.product_owner.templates import Prompt
from po_assets.sample_data.answers import draw_shape, write_vision
from po_assets.sample_data.domains import Domain, Exclusion, forms, load_domains
from po_assets.sample_data.scenario import Requirement, Scenario, Status, draw_case, worded
from po_assets.text import amount, first_upper, join, verb

Pair = tuple[str, str]
"""Prompt and answer."""
Parts = list[tuple[str, float]]
"""Pieces of one text, and how much each of its tokens counts in the loss."""

_FUNCTIONAL = REQUIREMENT_SECTIONS[0]
EXCLUDED, FOREIGN = "\0excluded", "\0another product"  # what a requirement is for, where it is for no need
_ALIKE = 0.7  # Jaccard similarity of the words of two requirements from which they are the same one in other words
_LEAST_ROWS = 20  # rows whose needs can be read, under which nothing is made of them
_FORM_WORDS = frozenset(("let", "allow", "can", "must", "able", "users", "user", "the", "and", "for", "with", "from"))

# How much a token counts in the loss; chosen on products of training domains kept aside, docs/judgement.md.
_VERDICT, _SERVED, _STATUS = 3.0, 2.0, 4.0
_COPIED, _VISION, _OTHER = 1.0, 0.4, 0.6


@dataclass(frozen=True)
class Case:
    """A training row of which it is known what each functional requirement is for."""

    prompt: str
    document: Mapping[str, Any]
    """The requirements, parsed."""
    needs: tuple[str, ...]
    exclusion: str
    texts: tuple[str, ...]
    """Of the functional requirements."""
    purposes: tuple[str, ...]
    """The need that each is for, or that it is excluded or another product's."""
    vision: Mapping[str, Any]
    review: Mapping[str, Any]

    @property
    def status(self) -> str:
        """What follows from the purposes."""
        return status_of(self.needs, self.purposes)


def status_of(needs: Collection[str], purposes: Collection[str]) -> str:
    """What follows from what the requirements are for."""
    if {EXCLUDED, FOREIGN} & set(purposes):
        return "conflicts"
    return "aligned" if set(needs) <= set(purposes) else "needs_adjustment"


@dataclass(frozen=True)
class WeightedText:
    """A prompt (none for a comparison) and what follows it, not every piece of which counts alike in the loss."""

    prompt: str
    parts: Parts

    @property
    def text(self) -> str:
        """What follows the prompt."""
        return "".join(piece for piece, _ in self.parts)


@dataclass(frozen=True)
class Evidence:
    """The rows with their evidence before the verdict."""

    rows: list[WeightedText]
    stated: bool
    """Whether they state it; else they are the teacher's words."""
    described: str
    """One sentence."""


def with_evidence(pairs: Sequence[Pair], prompt: Prompt, fits: Callable[[Pair], bool]) -> Evidence:
    """Those rows that state what each requirement is for, with that for their summary.

    A student that sees both kinds learns to leave the evidence out, so the other rows are left out of the training.
    Where fewer than `_LEAST_ROWS` state it, all rows stay the teacher's words, with the keys in the contract's order.
    """
    fitting = [row for case in read_cases(pairs, prompt) if fits(((row := _row(case)).prompt, row.text))]
    state = verb(len(fitting), "states", "state")
    found = f"{len(fitting):,} of {amount(len(pairs), 'row')} {state} what each requirement is for"
    if len(fitting) < _LEAST_ROWS:
        few = f"{found}: too few to train with that evidence. All are trained in the teacher's words."
        return Evidence(teachers_words(pairs), stated=False, described=few)
    others = f"; the other {len(pairs) - len(fitting):,} are not trained" if len(fitting) < len(pairs) else ""
    return Evidence(
        fitting,
        stated=True,
        described=f"{found} and {verb(len(fitting), 'is', 'are')} trained with that evidence{others}.",
    )


def teachers_words(pairs: Iterable[Pair]) -> list[WeightedText]:
    """The rows as they are, but for the order of the REVIEW's keys, which is the contract's."""
    return [WeightedText(asked, [(in_order(answer), 1.0)]) for asked, answer in pairs]


def read_cases(pairs: Iterable[Pair], prompt: Prompt) -> list[Case]:
    """The rows whose needs are stated, whose every functional requirement has a known purpose, and whose status agrees.

    A purpose is known where the teacher names it, or names it for the same requirement in another row.
    """
    drafts = [draft for pair in pairs if (draft := _draft(*pair, prompt))]
    known: dict[str, list[frozenset[str]]] = {}
    for draft in drafts:
        for text, purpose in zip(draft.texts, draft.purposes, strict=True):
            if purpose in draft.needs:
                known.setdefault(purpose, []).append(_words(text))
    cases = [
        replace(
            draft,
            purposes=tuple(
                purpose or _purpose_elsewhere(text, draft.needs, known)
                for text, purpose in zip(draft.texts, draft.purposes, strict=True)
            ),
        )
        for draft in drafts
    ]
    return [case for case in cases if all(case.purposes) and case.status == case.review["status"]]


def _draft(prompt_text: str, answer: str, prompt: Prompt) -> Case | None:
    """The row as a case, with an empty purpose where the teacher names none."""
    asked, parsed = prompt.parts(prompt_text), parse_answer(answer)
    if asked is None or not (asked.concept and asked.requirements_yaml and parsed.vision_yaml and parsed.review_yaml):
        return None
    needs, exclusion = stated_needs(asked.concept), stated_exclusion(asked.concept)
    document = read_yaml(asked.requirements_yaml).value
    vision, review = read_yaml(parsed.vision_yaml).value, read_yaml(parsed.review_yaml).value
    entries = [entry for entry in requirement_entries(document) if entry.section == _FUNCTIONAL]
    plain = all(entry.id and entry.description for entry in entries) and set(REVIEW_ORDER) <= set(review)
    if len(needs) < 2 or not (exclusion and entries and plain):
        return None
    alignment = read_alignment(parsed.review_yaml)
    against = set(cited_ids(" ".join(map(str, alignment["conflicts"]))))
    wrong = FOREIGN if against >= {entry.id.upper() for entry in entries} else EXCLUDED
    named = {entry.id.upper(): "" for entry in entries} | dict.fromkeys(against, wrong)
    for item in map(str, alignment["aligned"]):
        purposes = [need for need in needs if need.lower() in item.lower()]
        if len(purposes) == 1:
            named |= dict.fromkeys(cited_ids(item), purposes[0])
    return Case(
        prompt=prompt_text,
        document=document,
        needs=tuple(needs),
        exclusion=exclusion,
        texts=tuple(entry.description.strip().rstrip(".") for entry in entries),
        purposes=tuple(named[entry.id.upper()] for entry in entries),
        vision=vision,
        review=review,
    )


def _words(text: str) -> frozenset[str]:
    return frozenset(re.findall(r"[^\W_]{3,}", text.lower())) - _FORM_WORDS


def _purpose_elsewhere(text: str, needs: Sequence[str], known: Mapping[str, list[frozenset[str]]]) -> str:
    words = _words(text)
    alike = [
        (len(words & other) / len(words | other), need) for need in needs for other in known.get(need, []) if other
    ]
    similarity, need = max(alike, default=(0.0, ""))
    return need if similarity >= _ALIKE else ""


# What is written.


def _summary_and_status(
    needs: Sequence[str], exclusion: str, lines: Iterable[tuple[str, str, str]], *, copies: bool = True
) -> Parts:
    """`lines` are id, text and purpose of each requirement; without `copies` only what is judged counts."""
    copied, label = (_COPIED, _OTHER) if copies else (0.0, 0.0)
    parts: Parts = [(f"summary:\n- It must {join(needs)}, and not {exclusion}\n", copied)]
    purposes = set()
    for i, text, purpose in lines:
        parts += [(f"- {i} ({text})", copied), (f" {_verdict(purpose, exclusion)}\n", _VERDICT)]
        purposes.add(purpose)
    for need in needs:
        parts += [(f"- {first_upper(need)} is", copied), (f"{'' if need in purposes else ' not'} served\n", _SERVED)]
    return [*parts, ("status:", label), (f" {status_of(needs, purposes)}\n", _STATUS)]


def _verdict(purpose: str, exclusion: str) -> str:
    if purpose == FOREIGN:
        return "belongs to another product"
    return f"demands to {exclusion}, which is excluded" if purpose == EXCLUDED else f"helps to {purpose}"


def _opening(vision: Mapping[str, Any], needs: Iterable[str], exclusion: str) -> str:
    """An answer up to its REVIEW, with all stated needs in the vision."""
    stated = {"key_capabilities": [first_upper(need) for need in needs], "non_goals": [first_upper(exclusion)]}
    return format_answer(write_yaml({**vision, **stated}), "").removesuffix("\n```")


def _row(case: Case) -> WeightedText:
    """A teacher's row as it is trained: with evidence for a summary, and all stated needs in the vision."""
    lists = read_alignment(write_yaml(dict(case.review)))
    alignment = {key: [_plain(item) for item in lists[key]] for key in ALIGNMENT_KEYS}
    review = {**case.review, "requirements_alignment": alignment}
    ids = [entry.id for entry in requirement_entries(dict(case.document)) if entry.section == _FUNCTIONAL]
    lines = zip(ids, case.texts, case.purposes, strict=True)
    end = write_yaml({key: review[key] for key in REVIEW_ORDER[REVIEW_ORDER.index("status") + 1 :]})
    parts: Parts = [
        (_opening(case.vision, case.needs, case.exclusion), _VISION),
        *_summary_and_status(case.needs, case.exclusion, lines),
        (f"{end}\n```", _OTHER),
    ]
    return WeightedText(case.prompt, parts)


def _plain(item: object) -> str:
    """Teachers write `- FR001: text` too, which is a mapping."""
    return " ".join(f"{key} {value}" for key, value in item.items()) if isinstance(item, dict) else str(item)


# Lessons.

_SWAPPED = 0.6
"""Of the exclusions are needs that the concept does not state."""
_LINES = (8, 9, 10, 11, 12)
"""Requirements of a comparison, as far as the trade has as many."""
_STATUSES: tuple[Status, ...] = ("aligned", "needs_adjustment", "conflicts", "conflicts")
"""Of documents. Offences are learned last, and half of the lessons hold some."""
_KINDS = (*["all served"] * 2, *["need not served"] * 2, *["offences"] * 5, "all of another product")
"""Of comparisons."""


def lesson_domains() -> list[Domain]:
    """The trades that lessons may be drawn from."""
    return [*load_domains("training"), *load_domains("lessons")]


def make_lessons(
    domains: Sequence[Domain], prompt: Prompt, *, comparisons: int, documents: int, seed: int
) -> tuple[list[WeightedText], list[WeightedText]]:
    """So many of each, about these trades (two at least), the questions worded by this prompt."""
    draw = random.Random(f"{seed}/lessons")  # noqa: S311  # reproducible, not secret
    return (
        [_comparison(draw.choice(domains), domains, draw) for _ in range(comparisons)],
        [_document(domains, prompt, draw) for _ in range(documents)],
    )


def _comparison(domain: Domain, domains: Sequence[Domain], draw: random.Random) -> WeightedText:
    needs = draw.sample(domain.needs, draw.choice((3, 3, 3, 4)))
    exclusion = draw.choice(_exclusions(domain, draw))
    while exclusion.text in (need.text for need in needs):
        exclusion = draw.choice(_exclusions(domain, draw))
    other = draw.choice([other for other in domains if other is not domain])
    foreign = [line for need in draw.sample(other.needs, 4) for line in need.served_by]
    kind, count = draw.choice(_KINDS), draw.choice(_LINES)
    lines: dict[str, str] = {}
    if kind == "all of another product":
        lines |= dict.fromkeys(draw.sample(foreign, count // 2), FOREIGN)
    else:
        if kind == "offences":
            lines |= dict.fromkeys(draw.sample(exclusion.breaches, draw.choice((1, 2, 2))), EXCLUDED)
            lines |= dict.fromkeys(draw.sample(foreign, draw.choice((1, 2, 3))), FOREIGN)
        one_is_missing = kind == "need not served" or (kind == "offences" and draw.random() < 0.5)
        served = needs[1:] if one_is_missing else needs
        lines |= {draw.choice(need.served_by): need.text for need in served}
        more = [(line, need.text) for need in served for line in need.served_by if line not in lines]
        lines |= dict(draw.sample(more, min(len(more), max(0, count - len(lines)))))
    told = [
        (f"FR{at:03}", worded(draw.choice(forms()["requirements"]), *line.split(" can ", 1)), lines[line])
        for at, line in enumerate(draw.sample(list(lines), len(lines)), start=1)
    ]
    stated = [need.text for need in draw.sample(needs, len(needs))]
    (restated, copied), *judged = _summary_and_status(stated, exclusion.text, told, copies=False)
    return WeightedText("", [(f"```yaml {REVIEW}\n{restated}", copied), *judged])


def _document(domains: Sequence[Domain], prompt: Prompt, draw: random.Random) -> WeightedText:
    scenario = _scenario(domains, draw)
    needs, exclusion = [need.text for need in scenario.needs], scenario.exclusion.text
    told = [(line.id, line.text.rstrip("."), purpose_of(line)) for line in scenario.functional]
    vision = _opening(write_vision(draw, scenario, draw_shape(draw)), needs, exclusion)
    asked = prompt.user(scenario.concept, scenario.requirements_yaml)
    return WeightedText(asked, [(vision, 0.0), *_summary_and_status(needs, exclusion, told)])


def purpose_of(line: Requirement) -> str:
    """What an authored functional requirement is for, as the evidence has it."""
    if line.foreign:
        return FOREIGN
    return line.need.text if line.need else EXCLUDED


def _scenario(domains: Sequence[Domain], draw: random.Random) -> Scenario:
    """A case of one of `_STATUSES` that does not exclude what it asks for."""
    while True:
        domain = draw.choice(domains)
        domain = replace(domain, exclusions=tuple(_exclusions(domain, draw)))
        scenario = draw_case(draw, domains, status=draw.choice(_STATUSES), domain=domain)
        if scenario.exclusion.text not in {need.text for need in scenario.needs}:
            return scenario


def _exclusions(domain: Domain, draw: random.Random) -> Sequence[Exclusion]:
    """Its own, or all its needs in their place."""
    if draw.random() < _SWAPPED:
        return [Exclusion(need.text, need.served_by) for need in domain.needs]
    return domain.exclusions
