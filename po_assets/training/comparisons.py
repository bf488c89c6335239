"""Rows that show a small student what to compare before it judges: made from the training rows, for the training only.

A model of this size learns a row's verdict by heart unless it is shown the steps to it (distilling step by step, Hsieh
et al. 2023, https://arxiv.org/abs/2305.02301). So the REVIEW's summary restates what the concept asks for and excludes,
says of each requirement what it is for, and of each need whether it is served; the status follows from these lines.
What a requirement is for is read from the teacher's own alignment lists. Of the same needs and requirements are made

- *contrast rows*: the same question with other requirements or another exclusion, so that another status is right, and
- *comparisons*: the summary's lines alone, on requirements of many rows; only the verdicts are trained.

Teachers' rows hold few conflicts, so what is excluded is mostly a need that the concept does not state: the
requirements that serve it then demand what is excluded, in the teacher's words. `supervised_dataset` stays as it is,
and no evaluation case is ever read here.
"""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

from po_assets.product_owner import cited_ids, format_answer, in_order, parse_answer, read_alignment, read_yaml
from po_assets.product_owner.concept import stated_exclusion, stated_needs
from po_assets.product_owner.contract import ALIGNMENT_KEYS, REQUIREMENT_SECTIONS, REVIEW, REVIEW_ORDER
from po_assets.product_owner.documents import requirement_entries, write_yaml
from po_assets.product_owner.templates import Prompt
from po_assets.text import amount, first_upper, join

Pair = tuple[str, str]
"""Prompt and answer."""
Parts = list[tuple[str, float]]
"""Pieces of one text, and how much each of its tokens counts in the loss."""

_FUNCTIONAL = REQUIREMENT_SECTIONS[0]
_EXCLUDED, _FOREIGN = "\0excluded", "\0another product"  # what a requirement is for, where it is for no need
_ALIKE = 0.7  # Jaccard similarity of the words of two requirements from which they are the same one in other words
_LEAST_ROWS = 20  # rows whose needs can be read, under which nothing is made of them
_FORM_WORDS = frozenset(("let", "allow", "can", "must", "able", "users", "user", "the", "and", "for", "with", "from"))
_DEMANDS = ("Let {who} {what}", "Allow {who} to {what}", "{Who} can {what}", "{Who} must be able to {what}")

# How much a token counts; chosen on products of training domains kept aside, docs/judgement.md.
_VERDICT, _SERVED, _STATUS = 3.0, 2.0, 4.0
_COPIED, _VISION, _OTHER = 1.0, 0.4, 0.6

_LINES = 8  # requirements of a comparison
_CONTRAST_LINES = (3, 4, 5, 6)
_KINDS = (*["all served"] * 2, *["need removed"] * 3, *["exclusion demanded"] * 4, "mixed", *["another product"] * 2)
_SWAPPED = 0.7  # of the exclusions are needs that the concept does not state


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
class WeightedText:
    """A prompt (none for a comparison) and what follows it, not every piece of which counts alike."""

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
    cases: list[Case]
    """What each row was read as; empty where the rows are the teacher's words."""
    described: str
    """One sentence."""


@dataclass(frozen=True)
class Lessons:
    """What is made of the rows."""

    comparisons: list[WeightedText]
    contrasts: list[WeightedText]
    described: str
    """One sentence; empty where nothing is made."""


def with_evidence(pairs: Sequence[Pair], prompt: Prompt, fits: Callable[[Pair], bool]) -> Evidence:
    """Those rows that state what each requirement is for, with that for their summary.

    A student that sees both kinds learns to leave the evidence out, so the other rows are left out of the training.
    Where fewer than `_LEAST_ROWS` state it, all rows stay the teacher's words, with the keys in the contract's order.
    """
    fitting = [(case, row) for case in read_cases(pairs, prompt) if fits(((row := _row(case)).prompt, row.text))]
    found = f"{len(fitting):,} of {amount(len(pairs), 'row')} state what each requirement is for"
    if len(fitting) < _LEAST_ROWS:
        few = f"{found}: too few to train with that evidence. All are trained in the teacher's words."
        return Evidence(teachers_words(pairs), [], few)
    others = f"; the other {len(pairs) - len(fitting):,} are not trained" if len(fitting) < len(pairs) else ""
    described = f"{found} and are trained with that evidence{others}."
    return Evidence([row for _, row in fitting], [case for case, _ in fitting], described)


def teachers_words(pairs: Iterable[Pair]) -> list[WeightedText]:
    """The rows as they are, but for the order of the REVIEW's keys, which is the contract's."""
    return [WeightedText(asked, [(in_order(answer), 1.0)]) for asked, answer in pairs]


def make_lessons(cases: Sequence[Case], *, comparisons: int, contrasts: int, seed: int) -> Lessons:
    """So many comparisons and contrast rows, drawn from these cases; fewer where little can be made of them."""
    draw = random.Random(f"{seed}/comparisons")  # noqa: S311  # reproducible, not secret
    domains = _domains(cases)
    rich = [domain for domain in domains if len(domain.serving) > 2]
    bases = [(case, domain) for case in cases for domain in rich if set(case.needs) <= set(domain.serving)]
    if not bases:
        few = (
            "No lesson can be made of them: that takes a row whose needs, and three of its kind of product, are served."
        )
        return Lessons([], [], few if cases else "")
    drawn = (_contrast(*draw.choice(bases), domains, draw) for _ in range(3 * contrasts))
    twins = list(islice(filter(None, drawn), contrasts))
    packs = [_comparison(draw.choice(rich), domains, draw) for _ in range(comparisons)]
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


@dataclass(frozen=True)
class _Domain:
    """What cases have in common that share needs: products of one kind."""

    serving: Mapping[str, list[str]]
    """Requirement texts by the need that they serve; none of them empty."""
    breaking: Mapping[str, list[str]]
    """Requirement texts by the exclusion that they demand; may be empty."""
    users: list[str]


def _domains(cases: Sequence[Case]) -> list[_Domain]:
    """The cases by the needs that they share, directly or through others; in their order."""
    groups: list[tuple[set[str], list[Case]]] = []
    for case in cases:
        joined = [group for group in groups if group[0] & set(case.needs)]
        groups = [group for group in groups if group not in joined]
        needs = set(case.needs).union(*(needs for needs, _ in joined))
        groups.append((needs, [*(one for _, members in joined for one in members), case]))
    return [_domain(members) for _, members in groups]


def _domain(cases: Sequence[Case]) -> _Domain:
    serving: dict[str, dict[str, None]] = {}
    breaking: dict[str, dict[str, None]] = {case.exclusion: {} for case in cases}
    users: dict[str, None] = {}
    for case in cases:
        for text, purpose in zip(case.texts, case.purposes, strict=True):
            if purpose == _EXCLUDED:
                breaking[case.exclusion][text] = None
            elif purpose != _FOREIGN:
                serving.setdefault(purpose, {})[text] = None
        named = case.vision.get("target_users")
        users |= dict.fromkeys(str(user).lower() for user in (named if isinstance(named, list) else []))
    return _Domain(
        {need: list(texts) for need, texts in serving.items()},
        {exclusion: list(texts) for exclusion, texts in breaking.items()},
        list(users) or ["users"],
    )


def _exclusion(domain: _Domain, needs: Sequence[str], stated: str, draw: random.Random) -> str:
    """The stated one, or a need that the concept does not state."""
    others = [need for need in domain.serving if need not in needs]
    return draw.choice(others) if others and draw.random() < _SWAPPED else stated


def _demand(exclusion: str, domain: _Domain, draw: random.Random) -> str:
    """A requirement that does what is excluded: in a teacher's words, or in those of the exclusion."""
    found = domain.serving.get(exclusion) or domain.breaking.get(exclusion)
    if found and draw.random() < 0.75:
        return draw.choice(found)
    who = draw.choice(domain.users)
    return draw.choice(_DEMANDS).format(who=who, Who=first_upper(who), what=exclusion)


def _of_another(domain: _Domain, domains: Sequence[_Domain], draw: random.Random) -> list[str]:
    """Requirements of another domain, in random order; empty where all are of one."""
    others = [other for other in domains if other is not domain and other.serving]
    texts = [text for group in draw.choice(others).serving.values() for text in group] if others else []
    draw.shuffle(texts)
    return texts


def _contrast(case: Case, domain: _Domain, domains: Sequence[_Domain], draw: random.Random) -> Case | None:
    """The case with other requirements, and maybe another exclusion; None where there are too few to draw from."""
    kind, count, needs = draw.choice(_KINDS), draw.choice(_CONTRAST_LINES), list(case.needs)
    exclusion = _exclusion(domain, needs, case.exclusion, draw)
    draw.shuffle(needs)
    if kind == "another product":
        lines = dict.fromkeys(_of_another(domain, domains, draw)[:count], _FOREIGN)
    else:
        removed = kind == "need removed" or (kind == "exclusion demanded" and draw.random() < 0.5)
        served, lines = needs[1:] if removed else needs, {}
        if kind in ("exclusion demanded", "mixed"):
            lines |= {_demand(exclusion, domain, draw): _EXCLUDED for _ in range(draw.choice((1, 1, 2)))}
        if kind == "mixed":
            lines |= dict.fromkeys(_of_another(domain, domains, draw)[:1], _FOREIGN)
        lines |= {draw.choice(domain.serving[need]): need for need in served}
        more = [(text, need) for need in served for text in domain.serving[need]]
        draw.shuffle(more)
        lines |= dict(more[: max(0, count - len(lines))])
    return _with_document(case, exclusion, lines, draw) if len(lines) > 1 else None


def _with_document(case: Case, exclusion: str, lines: Mapping[str, str], draw: random.Random) -> Case | None:
    """The case with these functional requirements in random order, numbered anew, and with the answer that fits.

    None where the concept's exclusion cannot be told from the rest of its words.
    """
    texts = draw.sample(list(lines), len(lines))
    entries = [{"id": _id(at), "description": text} for at, text in enumerate(texts)]
    document = {**case.document, _FUNCTIONAL: entries}
    written = write_yaml(document)
    asked, _, rest = case.prompt.partition(case.requirements_yaml)
    if exclusion != case.exclusion and asked.count(case.exclusion) != 1:
        return None
    twin = replace(
        case,
        prompt=asked.replace(case.exclusion, exclusion) + written + rest,
        requirements_yaml=written,
        document=document,
        exclusion=exclusion,
        texts=tuple(texts),
        purposes=tuple(lines[text] for text in texts),
    )
    return replace(twin, review={"requirements_alignment": _alignment(twin)})


def _alignment(case: Case) -> dict[str, list[str]]:
    """The lists of a contrast row, whose teacher's words no longer fit."""
    verdicts = [f"{_id(at)} {_verdict(purpose, case.exclusion)}" for at, purpose in enumerate(case.purposes)]
    aligned = [line for line, purpose in zip(verdicts, case.purposes, strict=True) if purpose in case.needs]
    conflicts = [line for line in verdicts if line not in aligned]
    if limits := [e.id for e in requirement_entries(dict(case.document)) if e.section != _FUNCTIONAL and e.id]:
        aligned.append(f"{join(limits)} {'sets' if len(limits) == 1 else 'set'} clear limits")
    gaps = [f"No entry serves the need to {need}" for need in case.missing]
    return dict(zip(ALIGNMENT_KEYS, (aligned, gaps, conflicts), strict=True))


# What is written.


def _verdict(purpose: str, exclusion: str) -> str:
    if purpose == _FOREIGN:
        return "belongs to another product"
    return f"demands to {exclusion}, which is excluded" if purpose == _EXCLUDED else f"helps to {purpose}"


def _summary(needs: Sequence[str], exclusion: str, lines: Iterable[tuple[str, str, str]], copied: float) -> Parts:
    """The items of the summary; `lines` are id, text and purpose of each requirement, `copied` counts their copies."""
    parts: Parts = [(f"summary:\n- It must {join(needs)}, and not {exclusion}\n", copied)]
    served = set()
    for i, text, purpose in lines:
        parts += [(f"- {i} ({text})", copied), (f" {_verdict(purpose, exclusion)}\n", _VERDICT)]
        served.add(purpose)
    for need in needs:
        parts += [(f"- {first_upper(need)} is", copied), (f"{'' if need in served else ' not'} served\n", _SERVED)]
    return parts


def _answer(case: Case, *, given: bool) -> Parts:
    """Vision and review up to the status; where the vision is `given`, it is not trained."""
    vision = {
        **case.vision,
        "key_capabilities": [first_upper(need) for need in case.needs],
        "non_goals": [first_upper(case.exclusion)],
    }
    opening = format_answer(write_yaml(vision), "").removesuffix("\n```")
    ids = [entry.id for entry in requirement_entries(dict(case.document)) if entry.section == _FUNCTIONAL]
    lists = write_yaml({"requirements_alignment": case.review["requirements_alignment"]})
    return [
        (opening, 0.0 if given else _VISION),
        *_summary(case.needs, case.exclusion, zip(ids, case.texts, case.purposes, strict=True), _COPIED),
        (f"{lists}\nstatus:", _OTHER),
        (f" {case.status}\n", _STATUS),
    ]


def _row(case: Case) -> WeightedText:
    """A teacher's row as it is trained: with evidence for a summary, and all stated needs in the vision."""
    lists = read_alignment(write_yaml(dict(case.review)))
    plain = {key: [_plain(item) for item in lists[key]] for key in ALIGNMENT_KEYS}
    parts = _answer(replace(case, review={"requirements_alignment": plain}), given=False)
    end = write_yaml({key: case.review[key] for key in REVIEW_ORDER[REVIEW_ORDER.index("status") + 1 :]})
    return WeightedText(case.prompt, [*parts, (f"{end}\n```", _OTHER)])


def _plain(item: object) -> str:
    """Teachers write `- FR001: text` too, which is a mapping."""
    return " ".join(f"{key} {value}" for key, value in item.items()) if isinstance(item, dict) else str(item)


def _judged(case: Case) -> WeightedText:
    """A contrast row: what is judged is trained, up to the status."""
    return WeightedText(case.prompt, _answer(case, given=True))


def _comparison(domain: _Domain, domains: Sequence[_Domain], draw: random.Random) -> WeightedText:
    """The summary's lines on requirements of many rows; only the verdicts are trained."""
    needs = draw.sample(list(domain.serving), min(len(domain.serving) - 1, draw.choice((3, 3, 3, 4))))
    exclusion = _exclusion(domain, needs, draw.choice(list(domain.breaking)), draw)
    served = needs[1:] if draw.random() < 0.5 else needs
    foreign = _of_another(domain, domains, draw)
    lines: dict[str, str] = {}
    for _ in range(4 * _LINES):
        kind = draw.random()
        if kind < 0.2 and foreign:
            lines.setdefault(foreign.pop(), _FOREIGN)
        elif kind < 0.4:
            lines.setdefault(_demand(exclusion, domain, draw), _EXCLUDED)
        else:
            need = draw.choice(served)
            lines.setdefault(draw.choice(domain.serving[need]), need)
        if len(lines) == _LINES:
            break
    told = [(_id(at), text, purpose) for at, (text, purpose) in enumerate(lines.items())]
    (opening, _), *parts = _summary(needs, exclusion, told, 0.0)
    return WeightedText("", [(f"```yaml {REVIEW}\n{opening}", 0.0), *parts])


def _id(at: int) -> str:
    return f"FR{at + 1:03}"
