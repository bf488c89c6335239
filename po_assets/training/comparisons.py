"""Rows that show a small student what to compare before it judges: made from the training rows, for the training only.

A model of this size learns a row's verdict by heart unless it is shown the steps to it (distilling step by step, Hsieh
et al. 2023, https://arxiv.org/abs/2305.02301). So the REVIEW's summary says of each requirement what it is for, and of
each need which requirements meet it; the status follows from these lines. What a requirement is for is read from the
teacher's own alignment lists. Of the same needs and requirements are made

- *contrast rows*: the same question with other requirements, so that another status is right, and
- *comparisons*: a list of needs, what is excluded, and requirements of many rows; only the verdict on each is trained.

`supervised_dataset` stays as it is, and no evaluation case is ever read here.
"""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from po_assets.product_owner import cited_ids, format_answer, in_order, parse_answer, read_alignment, read_yaml
from po_assets.product_owner.concept import stated_exclusion, stated_needs
from po_assets.product_owner.contract import ALIGNMENT_KEYS, REQUIREMENT_SECTIONS, REVIEW, REVIEW_ORDER
from po_assets.product_owner.documents import requirement_entries, write_yaml
from po_assets.product_owner.templates import Prompt
from po_assets.text import amount, first_upper, join

Pair = tuple[str, str]
"""Prompt and answer."""
Parts = list[tuple[str, bool]]
"""Pieces of one text, and whether each is trained."""

_FUNCTIONAL = REQUIREMENT_SECTIONS[0]
_EXCLUDED, _FOREIGN = "\0excluded", "\0another product"  # what a requirement is for, where it is for no need
_ALIKE = 0.7  # Jaccard similarity of the words of two requirements from which they are the same one in other words
_LEAST_ROWS = 20  # rows whose needs can be read, under which nothing is made of them
_LINES = 8  # requirements of a comparison
_FORM_WORDS = frozenset(("let", "allow", "can", "must", "able", "users", "user", "the", "and", "for", "with", "from"))
_KINDS = (*("all served", "need removed", "mixed") * 2, "another product")
_DEMANDS = ("Let {who} {what}", "Allow {who} to {what}", "{Who} can {what}", "{Who} must be able to {what}")


@dataclass(frozen=True)
class Case:
    """A training row of which it is known what each functional requirement is for."""

    prompt: str
    requirements_yaml: str
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
    def missing(self) -> list[str]:
        """Needs that no requirement is for."""
        return [need for need in self.needs if need not in self.purposes]

    @property
    def status(self) -> str:
        """What follows from the purposes."""
        if {_EXCLUDED, _FOREIGN} & set(self.purposes):
            return "conflicts"
        return "needs_adjustment" if self.missing else "aligned"


@dataclass(frozen=True)
class PartlyTrained:
    """A prompt (none for a comparison) and what follows it, of which only some pieces are trained."""

    prompt: str | None
    parts: Parts


@dataclass(frozen=True)
class Evidence:
    """The rows with their evidence before the verdict."""

    rows: list[Pair]
    cases: list[Case]
    """What each row was read as; empty where the rows are the teacher's words."""
    described: str
    """One sentence."""


@dataclass(frozen=True)
class Lessons:
    """What is made of the rows."""

    comparisons: list[PartlyTrained]
    contrasts: list[PartlyTrained]
    described: str
    """One sentence; empty where nothing is made."""


def with_evidence(pairs: Sequence[Pair], prompt: Prompt, fits: Callable[[Pair], bool]) -> Evidence:
    """Those rows that state what each requirement is for, with that for their summary.

    A student that sees both kinds learns to leave the evidence out, so the other rows are left out of the training.
    Where fewer than `_LEAST_ROWS` state it, all rows stay the teacher's words, with the keys in the contract's order.
    """
    fitting = [(case, row) for case in read_cases(pairs, prompt) if fits(row := _row(case))]
    cases, rows = [case for case, _ in fitting], [row for _, row in fitting]
    found = f"{len(cases):,} of {amount(len(pairs), 'row')} state what each requirement is for"
    if len(cases) < _LEAST_ROWS:
        few = f"{found}: too few to train with that evidence. All are trained in the teacher's words."
        return Evidence(teachers_words(pairs), [], few)
    others = f"; the other {len(pairs) - len(cases):,} are not trained" if len(cases) < len(pairs) else ""
    return Evidence(rows, cases, f"{found} and are trained with that evidence{others}.")


def teachers_words(pairs: Iterable[Pair]) -> list[Pair]:
    """The rows as they are, but for the order of the REVIEW's keys, which is the contract's."""
    return [(asked, in_order(answer)) for asked, answer in pairs]


def make_lessons(cases: Sequence[Case], *, comparisons: int, contrasts: int, seed: int) -> Lessons:
    """So many comparisons and about so many contrast rows, drawn from these cases."""
    if not cases:
        return Lessons([], [], "")
    draw = random.Random(f"{seed}/comparisons")  # noqa: S311  # reproducible, not secret
    pool = _pool(cases)
    twins = [twin for _ in range(contrasts) if (twin := _contrast(draw.choice(cases), cases, pool, draw))]
    packs = [_comparison(draw.choice(cases), cases, pool, draw) for _ in range(comparisons)]
    statuses = Counter(twin.status for twin in twins).most_common()
    return Lessons(
        packs,
        [_judged(twin) for twin in twins],
        f"{amount(len(packs), 'comparison')} and {amount(len(twins), 'contrast row')} "
        f"({', '.join(f'{count:,} {status}' for status, count in statuses)}) are made from them.",
    )


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
    if len(needs) < 2 or not (exclusion and entries and plain) or prompt_text.count(asked.requirements_yaml) != 1:
        return None
    alignment = read_alignment(parsed.review_yaml)
    against = set(cited_ids(" ".join(map(str, alignment["conflicts"]))))
    wrong = _FOREIGN if against >= {entry.id.upper() for entry in entries} else _EXCLUDED
    named = {entry.id.upper(): "" for entry in entries} | dict.fromkeys(against, wrong)
    for item in map(str, alignment["aligned"]):
        purposes = [need for need in needs if need.lower() in item.lower()]
        if len(purposes) == 1:
            named |= dict.fromkeys(cited_ids(item), purposes[0])
    return Case(
        prompt=prompt_text,
        requirements_yaml=asked.requirements_yaml,
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


# Requirements by what they are for, from which other documents are put together.


def _pool(cases: Sequence[Case]) -> dict[str, list[str]]:
    """Requirement texts by need; what an exclusion forbids by the exclusion. Each once, in the order of the rows."""
    pool: dict[str, dict[str, None]] = {}
    for case in cases:
        for text, purpose in zip(case.texts, case.purposes, strict=True):
            if purpose != _FOREIGN:
                pool.setdefault(case.exclusion if purpose == _EXCLUDED else purpose, {})[text] = None
    return {purpose: list(texts) for purpose, texts in pool.items()}


def _demand(case: Case, pool: Mapping[str, list[str]], draw: random.Random) -> str:
    """A requirement that does what the concept excludes: one that a teacher found, or the exclusion itself."""
    if (found := pool.get(case.exclusion)) and draw.random() < 0.5:
        return draw.choice(found)
    users = case.vision.get("target_users")
    who = str(draw.choice(users)).lower() if isinstance(users, list) and users else "users"
    return draw.choice(_DEMANDS).format(who=who, Who=first_upper(who), what=case.exclusion)


def _of_another(case: Case, cases: Sequence[Case], draw: random.Random) -> Case | None:
    """A row of another product: it shares no need. None where all are of one."""
    others = [other for other in cases if not set(other.needs) & set(case.needs) and _FOREIGN not in other.purposes]
    return draw.choice(others) if others else None


def _contrast(case: Case, cases: Sequence[Case], pool: Mapping[str, list[str]], draw: random.Random) -> Case | None:
    """The row's question with other requirements; None where there are too few to draw from.

    `_LINES` of them, but for those of another product: a long document has more to compare than a teacher's.
    """
    kind = draw.choice(_KINDS)
    if kind == "another product":
        if (other := _of_another(case, cases, draw)) is None:
            return None
        return _with_document(case, other.document, other.texts, [_FOREIGN] * len(other.texts), foreign=True)
    needs = list(case.needs)
    draw.shuffle(needs)
    served = needs[1:] if kind == "need removed" else needs
    texts = [(text, need) for need in served for text in pool.get(need, ())]
    if not served or {need for _, need in texts} != set(served):
        return None
    draw.shuffle(texts)
    first = [next(pair for pair in texts if pair[1] == need) for need in served]
    lines = _unlike([*first, *texts], _LINES)
    if kind == "mixed":
        lines = lines[: _LINES // 2]
        others = [_of_another(case, cases, draw) for _ in range(2)]
        lines += [(draw.choice(other.texts), _FOREIGN) for other in others if other]
        lines.append((_demand(case, pool, draw), _EXCLUDED))
    if len(lines) < 2:
        return None
    draw.shuffle(lines)
    return _with_document(
        case, case.document, [text for text, _ in lines], [purpose for _, purpose in lines], foreign=False
    )


def _unlike(lines: Sequence[tuple[str, str]], most: int) -> list[tuple[str, str]]:
    """The first of them, at most so many, no two of which are of the same words."""
    found: dict[frozenset[str], tuple[str, str]] = {}
    for text, purpose in lines:
        if len(found) < most:
            found.setdefault(_words(text), (text, purpose))
    return list(found.values())


def _with_document(
    case: Case, document: Mapping[str, Any], texts: Sequence[str], purposes: Sequence[str], *, foreign: bool
) -> Case:
    """The case with these functional requirements, numbered anew, and with the answer that fits them."""
    entries = [{"id": _id(at), "description": text} for at, text in enumerate(texts)]
    new = {**document, _FUNCTIONAL: entries}
    written = write_yaml(new)
    twin = replace(
        case,
        prompt=case.prompt.replace(case.requirements_yaml, written),
        requirements_yaml=written,
        document=new,
        texts=tuple(texts),
        purposes=tuple(purposes),
    )
    others = [entry.id for entry in requirement_entries(new) if entry.section != _FUNCTIONAL and entry.id]
    lists = _alignment(twin, [] if foreign else others, others if foreign else [])
    return replace(twin, review={"requirements_alignment": lists})


def _alignment(case: Case, limits: Sequence[str], foreign: Sequence[str]) -> dict[str, list[str]]:
    """The lists of a contrast row, whose teacher's words no longer fit; `limits` are ids of other sections."""
    verdicts = [f"{_id(at)} {_verdict(case, at)}" for at in range(len(case.texts))]
    aligned = [line for line, purpose in zip(verdicts, case.purposes, strict=True) if purpose in case.needs]
    conflicts = [line for line in verdicts if line not in aligned]
    if limits:
        aligned.append(f"{join(limits)} {'sets' if len(limits) == 1 else 'set'} clear limits")
    if foreign:
        conflicts.append(f"{join(foreign)} {'limits' if len(foreign) == 1 else 'limit'} another product")
    gaps = [f"No entry serves the need to {need}" for need in case.missing]
    return dict(zip(ALIGNMENT_KEYS, (aligned, gaps, conflicts), strict=True))


# What is written.


def _verdict(case: Case, at: int) -> str:
    purpose = case.purposes[at]
    if purpose == _FOREIGN:
        return "belongs to another product"
    return f"demands to {case.exclusion}, which is excluded" if purpose == _EXCLUDED else f"helps to {purpose}"


def _evidence(case: Case, ids: Sequence[str]) -> Parts:
    """What each requirement is for, then what each need is met by: the items of the summary, what is said trained."""
    parts: Parts = []
    for at, (i, text) in enumerate(zip(ids, case.texts, strict=True)):
        parts += [(f"- {i} ({text})", False), (f" {_verdict(case, at)}\n", True)]
    for need in case.needs:
        meeting = [i for i, purpose in zip(ids, case.purposes, strict=True) if purpose == need]
        parts += [(f"- {first_upper(need)} is met by", False), (f" {join(meeting) or 'no entry'}\n", True)]
    return parts


def _stated(case: Case) -> dict[str, Any]:
    """What the concept states, as it stands in the vision."""
    return {"key_capabilities": [first_upper(need) for need in case.needs], "non_goals": [first_upper(case.exclusion)]}


def _row(case: Case) -> Pair:
    """A teacher's row as it is trained: with evidence for a summary, and all stated needs in the vision."""
    ids = [entry.id for entry in requirement_entries(dict(case.document)) if entry.section == _FUNCTIONAL]
    summary = "summary:\n" + "".join(text for text, _ in _evidence(case, ids)).rstrip()
    review = {key: case.review[key] for key in REVIEW_ORDER if key != "summary"}
    lists = read_alignment(write_yaml(review))
    review["requirements_alignment"] = {key: [_plain(item) for item in lists[key]] for key in ALIGNMENT_KEYS}
    return case.prompt, format_answer(write_yaml({**case.vision, **_stated(case)}), f"{summary}\n{write_yaml(review)}")


def _plain(item: object) -> str:
    """Teachers write `- FR001: text` too, which is a mapping."""
    return " ".join(f"{key} {value}" for key, value in item.items()) if isinstance(item, dict) else str(item)


def _judged(case: Case) -> PartlyTrained:
    """A contrast row: what is judged is trained, up to the status."""
    opening = format_answer(write_yaml({**case.vision, **_stated(case)}), "summary:").removesuffix("\n```")
    lists = write_yaml({"requirements_alignment": case.review["requirements_alignment"]})
    # All of it: with the verdicts alone, the form of the alignment lists takes the place of the evidence.
    evidence = [(text, True) for text, _ in _evidence(case, [_id(at) for at in range(len(case.texts))])]
    end: Parts = [(f"{lists}\nstatus: {case.status}\n", True)]
    return PartlyTrained(case.prompt, [(f"{opening}\n", False), *evidence, *end])


def _comparison(case: Case, cases: Sequence[Case], pool: Mapping[str, list[str]], draw: random.Random) -> PartlyTrained:
    """Needs and exclusion as in a vision, then requirements as in a summary; only the verdicts are trained."""
    lines: dict[str, str] = {}
    for _ in range(4 * _LINES):
        kind = draw.random()
        if kind < 0.2:
            if other := _of_another(case, cases, draw):
                lines[draw.choice(other.texts)] = _FOREIGN
        elif kind < 0.35:
            lines[_demand(case, pool, draw)] = _EXCLUDED
        else:
            need = draw.choice(case.needs)
            if texts := pool.get(need):
                lines[draw.choice(texts)] = need
        if len(lines) == _LINES:
            break
    shown = replace(case, texts=tuple(lines), purposes=tuple(lines.values()))
    parts: Parts = [(f"{write_yaml(_stated(case))}\n```\n\n```yaml {REVIEW}\nsummary:\n", False)]
    for at, text in enumerate(shown.texts):
        parts += [(f"- {_id(at)} ({text})", False), (f" {_verdict(shown, at)}\n", True)]
    return PartlyTrained(None, parts)


def _id(at: int) -> str:
    return f"FR{at + 1:03}"
