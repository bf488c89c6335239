"""Contrast cases: evaluation cases whose requirements are changed so that another status is right.

40 cases hardly resolve whether a student judges; a changed document shows it at once: a student that reads changes its
verdict, one that does not keeps it (contrast sets, Gardner et al. 2020). Plain seeded functions over the cases, never
over training rows; a case is left out where its reference leaves a doubt about the right status. The student goes on
from the vision that it wrote for the case itself, and stops after the status: evidence and verdict are its own.
"""

import random
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import yaml

from po_assets.dataset.cases import EvalCase
from po_assets.evaluation.answering import Answer, AnsweringModel
from po_assets.evaluation.answers import AnswerCache
from po_assets.evaluation.scoring import ScoredAnswer
from po_assets.evaluation.settings import Decoding
from po_assets.evaluation.statistics import wilson
from po_assets.product_owner import STATUSES, cited_ids, read_alignment, read_yaml
from po_assets.product_owner.contract import REQUIREMENT_SECTIONS, REVIEW
from po_assets.product_owner.documents import stated_exclusion, stated_needs, write_yaml
from po_assets.product_owner.grammar import GrammarLimits, answer_grammar
from po_assets.storage import digest_of
from po_assets.text import amount

SEED = 42
_REVIEW = f"```yaml {REVIEW}\n"
_FUNCTIONAL = REQUIREMENT_SECTIONS[0]
_SHARED_WORDS = 2  # in a row with the concept, before words of a reference count as the concept's


@dataclass(frozen=True)
class Contrast:
    """An evaluation case and its changed twin."""

    kind: str
    """`need removed`, `another product`, `exclusion demanded`, `conflict removed` or `need served`."""
    original: EvalCase
    changed: EvalCase
    """With the status that is right now, and without reference answer."""
    as_asked: bool
    """Whether the original is the case to the letter, so that the student has answered it."""


@dataclass(frozen=True)
class ContrastResult:
    """How a student judged the contrasts."""

    pairs: int
    consistent: int
    """Pairs of which both statuses are right."""
    interval: tuple[float, float]
    """95 % interval of that share (Wilson)."""
    by_kind: dict[str, tuple[int, int]]
    """Consistent pairs, and all, by kind."""

    described: str
    """In one sentence."""


def contrast_cases(cases: Sequence[EvalCase], seed: int = SEED) -> list[Contrast]:
    """All contrasts that these cases give, in their order; the same ones every time."""
    contrasts = []
    for case in cases:
        document = _document(case)
        if document is None or case.status not in STATUSES or not case.has_reference:
            continue
        draw = random.Random(f"{seed}/{case.case_id}")  # noqa: S311
        for kind, change in _CHANGES.items():
            if changed := change(case, document, cases, draw):
                status, new = changed
                twin = replace(
                    case,
                    case_id=f"{case.case_id} ({kind})",
                    requirements_yaml=write_yaml(new),
                    reference_vision_yaml="",
                    reference_review_yaml="",
                    status=status,
                )
                # Both are written by the same hand, so that the form does not tell.
                original = replace(case, requirements_yaml=write_yaml(document))
                contrasts.append(Contrast(kind, original, twin, original.prompt == case.prompt))
    return contrasts


_Changed = tuple[str, dict[str, Any]] | None


def _need_removed(
    case: EvalCase, document: dict[str, Any], _cases: Sequence[EvalCase], draw: random.Random
) -> _Changed:
    """The one requirement of a need goes: aligned → needs_adjustment."""
    entries = document[_FUNCTIONAL]
    # With as many requirements as needs, and each need served, every requirement is the only one of its need.
    if case.status != "aligned" or len(entries) != len(_needs(case)) or len(entries) < 2:
        return None
    gone = draw.randrange(len(entries))
    return "needs_adjustment", _with_entries(document, [e for index, e in enumerate(entries) if index != gone])


def _another_product(
    case: EvalCase, document: dict[str, Any], cases: Sequence[EvalCase], draw: random.Random
) -> _Changed:
    """All requirements are those of the case that has least in common with the concept: → conflicts."""
    others = [other for one in cases if (other := _document(one)) and other[_FUNCTIONAL] != document[_FUNCTIONAL]]
    if case.status != "aligned" or not others:
        return None
    concept = set(_words(case.concept))
    draw.shuffle(others)
    other = min(others, key=lambda one: len(concept & set(_words(yaml.safe_dump(one[_FUNCTIONAL])))))
    return "conflicts", {
        **document,
        **{section: other[section] for section in REQUIREMENT_SECTIONS if section in other},
    }


def _exclusion_demanded(
    case: EvalCase, document: dict[str, Any], _cases: Sequence[EvalCase], draw: random.Random
) -> _Changed:
    """What the concept says that the product does *not* do is demanded: → conflicts."""
    excluded = stated_exclusion(case.concept)
    if case.status == "conflicts" or not excluded:
        return None
    entries = list(document[_FUNCTIONAL])
    demand = {"id": "", "description": f"Let users {excluded}"}
    entries.insert(draw.randrange(len(entries) + 1), demand)
    return "conflicts", _with_entries(document, entries)


def _conflict_removed(
    case: EvalCase, document: dict[str, Any], _cases: Sequence[EvalCase], _draw: random.Random
) -> _Changed:
    """The requirements that the reference calls conflicts go: conflicts → what is left."""
    alignment = read_alignment(case.reference_review_yaml)
    if case.status != "conflicts" or not alignment["conflicts"]:
        return None
    cited = set(cited_ids(yaml.safe_dump(alignment["conflicts"])))
    left = [entry for entry in document[_FUNCTIONAL] if str(entry["id"]).upper() not in cited]
    if not left or len(left) == len(document[_FUNCTIONAL]):
        return None
    return ("needs_adjustment" if alignment["gaps"] else "aligned"), _with_entries(document, left)


def _need_served(case: EvalCase, document: dict[str, Any], _cases: Sequence[EvalCase], draw: random.Random) -> _Changed:
    """Every need that the reference misses gets a requirement: needs_adjustment → aligned."""
    gaps = read_alignment(case.reference_review_yaml)["gaps"]
    if case.status != "needs_adjustment" or not gaps:
        return None
    needs = [_shared_phrase(str(gap), case.concept) for gap in gaps]
    if not all(needs):
        return None
    entries = list(document[_FUNCTIONAL])
    for need in needs:
        entries.insert(draw.randrange(len(entries) + 1), {"id": "", "description": f"Let users {need}"})
    return "aligned", _with_entries(document, entries)


_CHANGES: Mapping[str, Callable[..., _Changed]] = {
    "need removed": _need_removed,
    "another product": _another_product,
    "exclusion demanded": _exclusion_demanded,
    "conflict removed": _conflict_removed,
    "need served": _need_served,
}


def judge_contrasts(
    contrasts: Sequence[Contrast],
    student: Sequence[ScoredAnswer],
    cache: AnswerCache,
    load_model: Callable[[], AnsweringModel],
    *,
    decoding: Decoding,
    limits: GrammarLimits,
) -> ContrastResult | None:
    """The student's verdict on every pair; None where there is none.

    The verdict on a case is the one in the student's answer to it. The model is loaded only for what is not in the
    `cache`, which belongs to this student.
    """
    answers = {answer.case_id: answer for answer in student}
    visions = {case_id: _own_vision(answer.text) for case_id, answer in answers.items()}
    pairs = [pair for pair in contrasts if visions.get(pair.original.case_id)]
    said = {pair.original.prompt: answers[pair.original.case_id].status for pair in pairs if pair.as_asked}
    asked = {
        one.prompt: (one, visions[pair.original.case_id])
        for pair in pairs
        for one in (pair.original, pair.changed)
        if one.prompt not in said
    }
    digests = {
        prompt: digest_of([prompt, vision, one.asked_with.system, _grammar(one, limits)])
        for prompt, (one, vision) in asked.items()
    }
    if missing := [asked[prompt] for prompt, digest in digests.items() if cache.get(digest) is None]:
        for answer in own_verdicts(load_model(), missing, decoding, limits):
            cache.add(digests[answer.case_id], answer)
    said |= {prompt: verdict_of(cache.get(digest)) for prompt, digest in digests.items()}
    pairs = [pair for pair in pairs if said[pair.original.prompt] and said[pair.changed.prompt]]
    if not pairs:
        return None
    all_by_kind = Counter(pair.kind for pair in pairs)
    right_by_kind = Counter(
        pair.kind
        for pair in pairs
        if said[pair.original.prompt] == pair.original.status and said[pair.changed.prompt] == pair.changed.status
    )
    right = right_by_kind.total()
    low, high = wilson(right, len(pairs))
    left_out = f"; {len(contrasts) - len(pairs)} more could not be asked" if len(contrasts) > len(pairs) else ""
    return ContrastResult(
        pairs=len(pairs),
        consistent=right,
        interval=(low, high),
        by_kind={kind: (right_by_kind[kind], of) for kind, of in all_by_kind.items()},
        described=f"Contrast consistency {right / len(pairs):.2f} ({low:.2f} to {high:.2f}): in {right} of "
        f"{amount(len(pairs), 'pair')} of a case and its changed twin both statuses are right{left_out}.",
    )


def own_verdicts(
    answering: AnsweringModel,
    questions: Sequence[tuple[EvalCase, str]],
    decoding: Decoding,
    limits: GrammarLimits,
) -> Iterator[Answer]:
    """What the model writes from this vision on, up to the status of each case, by the case's prompt; greedily.

    The grammar is that of an answer, and ends after the status; a vision that it does not permit gets an empty answer.
    """
    from po_assets.evaluation.generate import Request, batches_by_length

    requests = []
    for case, vision in questions:
        begun = answering.chat.piece_ids(vision)
        constraint = answering.constraint(_grammar(case, limits))
        try:
            if constraint:
                for token in begun:
                    constraint.advance(token)
        except ValueError:  # a vision that was written without the grammar
            yield Answer(case.prompt, "", "stop", 0, 0.0)
            continue
        ids = answering.chat.prompt_ids(case.prompt, case.asked_with.system) + begun
        requests.append(Request(case.prompt, ids, constraint))
    greedy = decoding.with_values(temperature=0.0, retries=0)
    for batch in batches_by_length(requests, decoding.batch_size):
        yield from answering.complete(batch, greedy)


def verdict_of(answer: Answer | None) -> str:
    """The status that such an answer ends with; empty where it has none."""
    return answer.text.rpartition("status:")[2].strip() if answer else ""


def _grammar(case: EvalCase, limits: GrammarLimits) -> str:
    return answer_grammar(case.requirement_ids, limits, until_status=True)


def _own_vision(text: str) -> str:
    """The student's answer up to its REVIEW; empty where it has none."""
    start = text.find(_REVIEW)
    return text[: start + len(_REVIEW)] if start >= 0 else ""


def _document(case: EvalCase) -> dict[str, Any] | None:
    """The requirements, where they have functional ones with id and description."""
    document = read_yaml(case.requirements_yaml).value
    entries = document.get(_FUNCTIONAL)
    plain = isinstance(entries, list) and all(isinstance(e, dict) and {"id", "description"} <= set(e) for e in entries)
    return document if plain and entries else None


def _needs(case: EvalCase) -> list[str]:
    """What the concept says that the product must do; empty where its words and the reference's do not agree on it."""
    needs = stated_needs(case.concept)
    named = read_yaml(case.reference_vision_yaml).value.get("key_capabilities")
    capabilities = {str(one).lower() for one in named} if isinstance(named, list) else set()
    return needs if capabilities and capabilities <= {need.lower() for need in needs} else []


def _with_entries(document: dict[str, Any], entries: list[dict[str, Any]]) -> dict[str, Any]:
    """Numbered anew, so that no missing number tells what is gone."""
    return {**document, _FUNCTIONAL: [{**entry, "id": f"FR{at:03}"} for at, entry in enumerate(entries, start=1)]}


def _words(text: str) -> list[str]:
    return re.findall(r"[a-z]{4,}", text.lower())


def _shared_phrase(text: str, concept: str) -> str:
    """The longest run of words that stands in both; empty when it is shorter than `_SHARED_WORDS` words."""
    words = [word.strip(".,;:").lower() for word in text.split()]
    known = " ".join(["", *(word.strip(".,;:") for word in concept.lower().split()), ""])
    for length in range(len(words), _SHARED_WORDS - 1, -1):
        for start in range(len(words) - length + 1):
            run = " ".join(words[start : start + length])
            if f" {run} " in known:
                return re.sub(r"^(?:to|and) |(?: and)$", "", run)
    return ""
