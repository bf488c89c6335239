"""What an answer is worth: the metric, the validator, and what the metric does not see. Every case counts.

One `ScoredAnswer` is one line of the answers table, the unit of truth: statistics, gate and report derive from these
lines and can be rebuilt from them without a model.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Annotated, get_type_hints

import numpy as np
import pandas as pd
from upath import UPath

from po_assets.dataset.cases import EvalCase
from po_assets.errors import UserError
from po_assets.evaluation.answering import Answer
from po_assets.product_owner import (
    METRIC_VERSION,
    cited_ids,
    parse_answer,
    read_alignment,
    read_status,
    score_product_owner,
    validate_answer,
)
from po_assets.storage import read_rows

# "None identified", "No direct conflicts found": what language models write into a list that they should leave empty.
_PLACEHOLDER = re.compile(r"^\W*(?:(?:none|nothing|n/a|no(?: \w+){0,2} conflicts?)\b|no\W*$)", re.IGNORECASE)
_WORD = re.compile(r"[^\W\d_]{3,}")
_ANOTHERS = 2
"""So many times as much as with its own question an answer shares with another, if it is not about its own."""


@dataclass(frozen=True)
class ScoredAnswer:
    """One model's answer to one case with everything that is said about it."""

    case_id: Annotated[str, "The evaluation case."]
    model: Annotated[str, "baseline or student."]
    tier: Annotated[str, "As the case has it; empty where it names none."]
    text: Annotated[str, "The answer as it came out."]
    finish_reason: Annotated[str, "stop, length (cut at the token limit) or missing."]
    tokens: Annotated[int, "Tokens of the answer."]
    seconds: Annotated[float, "Computing time of the answer."]
    attempts: Annotated[int, "How often it was asked for."]
    total: Annotated[float, "Score, 0 to 1."]
    schema: Annotated[float, "Points for the form, at most 30."]
    vision: Annotated[float, "Points for the vision's completeness, at most 30."]
    alignment: Annotated[float, "Points for the requirements covered, at most 30."]
    specificity: Annotated[float, "Points for the review's specificity, at most 30."]
    problems: Annotated[list[str], "What cost points, most costly first."]
    valid: Annotated[bool, "Whether the answer passes the validator."]
    invalid_reason: Annotated[str, "The first reason why not."]
    status: Annotated[str | None, "The status in the answer; null where nothing readable is said."]
    reference_status: Annotated[str, "The right status; empty where the case has none."]
    unknown_ids: Annotated[list[str], "Cited requirement ids that the case does not have."]
    invented_conflicts: Annotated[int, "Conflicts listed where the reference lists none; the metric pays for them."]
    decoding: Annotated[str, "Fingerprint of the decoding settings."]
    model_digest: Annotated[str, "Digest of the weights that answered."]
    metric_version: Annotated[str, "Version of the metric."] = METRIC_VERSION
    about: Annotated[str, "A case with whose question it shares twice as much as with its own; empty for none."] = ""

    @property
    def status_is_right(self) -> bool:
        """Whether the answer's status is the reference's."""
        return self.status == self.reference_status


_TYPES = {str: "string", str | None: "string", int: "int", float: "float", bool: "bool", list[str]: "list[string]"}
COLUMNS: dict[str, tuple[str, str]] = {
    name: (_TYPES[column.__origin__], column.__metadata__[0])
    for name, column in get_type_hints(ScoredAnswer, include_extras=True).items()
}
"""Type and meaning of each column of the answers table."""


def score_answer(case: EvalCase, answer: Answer, *, model: str, model_digest: str, decoding: str) -> ScoredAnswer:
    """Score one answer. No answer, a cut one, an invalid one: each gets what the metric gives it."""
    parsed = parse_answer(answer.text)
    vision, review = parsed.vision_yaml or "", parsed.review_yaml or ""
    score = score_product_owner(case.requirements_yaml, vision, review)
    verdict = validate_answer(parsed.vision_yaml, parsed.review_yaml)
    known = {identifier.upper() for identifier in case.requirement_ids}
    return ScoredAnswer(
        **asdict(answer),
        model=model,
        tier=case.tier,
        total=score.total,
        schema=score.schema,
        vision=score.vision,
        alignment=score.alignment,
        specificity=score.specificity,
        problems=[*parsed.missing, *score.problems],
        valid=bool(verdict),
        invalid_reason=verdict.reason,
        status=read_status(review),
        reference_status=case.status or "",
        unknown_ids=[identifier for identifier in cited_ids(review) if identifier not in known],
        invented_conflicts=0 if case.reference_conflicts or not case.reference_review_yaml else len(_conflicts(review)),
        decoding=decoding,
        model_digest=model_digest,
    )


def score_answers(
    cases: Sequence[EvalCase], answers: Sequence[Answer], *, model: str, model_digest: str, decoding: str
) -> list[ScoredAnswer]:
    """One scored answer per case, in the order of the cases; a case without answer scores as an empty one."""
    by_case = {answer.case_id: answer for answer in answers}
    given = [by_case.get(case.case_id) or Answer(case.case_id, "", "missing", 0, 0.0, 0) for case in cases]
    others = about_others(cases, [answer.text for answer in given])
    return [
        replace(
            score_answer(case, answer, model=model, model_digest=model_digest, decoding=decoding),
            about=cases[others[at]].case_id if at in others else "",
        )
        for at, (case, answer) in enumerate(zip(cases, given, strict=True))
    ]


def about_others(cases: Sequence[EvalCase], texts: Sequence[str]) -> dict[int, int]:
    """Which of the texts, one answer per case, are about another case's question, and about which.

    The metric does not see it: an answer to another question has the same form and cites the same ids. A shared word
    counts the more, the fewer questions and the fewer answers hold it; so keys that all hold, the words of all reviews,
    and siblings of one product tell nothing.
    """
    places: dict[str, list[int]] = defaultdict(list)
    for at, case in enumerate(cases):
        for word in _words(f"{case.concept}\n{case.requirements_yaml}"):
            places[word].append(at)
    said = [_words(text) for text in texts]
    often = Counter(word for words in said for word in words)
    found: dict[int, int] = {}
    for at, words in enumerate(said):
        likeness = np.zeros(len(cases))
        for word in sorted(words & places.keys()):
            likeness[places[word]] += 1 / (often[word] * len(places[word]))
        best = int(likeness.argmax())
        if likeness[best] > 0 and likeness[best] >= _ANOTHERS * likeness[at]:
            found[at] = best
    return found


def answers_frame(scored: Sequence[ScoredAnswer]) -> pd.DataFrame:
    """The answers table: one row per case."""
    return pd.DataFrame([asdict(answer) for answer in scored], columns=list(COLUMNS))


def read_scored(path: UPath) -> list[ScoredAnswer]:
    """Lines of the answers table read back; further errors as `storage.read_rows`.

    Raises:
        UserError: a line lacks a field, as one written by another version does.
    """
    try:
        return [ScoredAnswer(**{key: value for key, value in row.items() if key in COLUMNS}) for row in read_rows(path)]
    except TypeError as error:
        raise UserError(
            f"{path} was written by another version of po_assets ({error}): materialize it again."
        ) from error


def _words(text: str) -> set[str]:
    return set(_WORD.findall(text.casefold()))


def _conflicts(review_yaml: str) -> list[str]:
    listed = [str(item) for item in read_alignment(review_yaml)["conflicts"]]
    return [item for item in listed if not _PLACEHOLDER.match(item)]
