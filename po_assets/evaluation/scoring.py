"""What an answer is worth: the metric, the validator, and what the metric does not see. Every case counts.

One `ScoredAnswer` is one line of the answers table, the unit of truth: statistics, gate and report derive from these
lines and can be rebuilt from them without a model.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

import pandas as pd
from upath import UPath

from po_assets.dataset.cases import EvalCase
from po_assets.errors import UserError
from po_assets.evaluation.answers import Answer
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

# "None identified", "No conflicts found": what language models write into a list that they should leave empty.
_PLACEHOLDER = re.compile(r"^\W*(?:none|no(?:thing| conflicts?)?|n/a)\b", re.IGNORECASE)


@dataclass(frozen=True)
class ScoredAnswer:
    """One model's answer to one case with everything that is said about it; `COLUMNS` has a line on each."""

    case_id: str
    model: str
    tier: str
    text: str
    finish_reason: str
    tokens: int
    seconds: float
    attempts: int
    total: float
    schema: float
    vision: float
    alignment: float
    specificity: float
    problems: list[str]
    valid: bool
    invalid_reason: str
    status: str | None
    reference_status: str
    unknown_ids: list[str]
    invented_conflicts: int
    decoding: str
    model_digest: str
    metric_version: str = METRIC_VERSION

    @property
    def status_is_right(self) -> bool:
        """Whether the answer's status is the reference's."""
        return self.status == self.reference_status


COLUMNS: dict[str, tuple[str, str]] = {
    "case_id": ("string", "The evaluation case."),
    "model": ("string", "baseline or student."),
    "tier": ("string", "As the case has it; empty where it names none."),
    "text": ("string", "The answer as it came out."),
    "finish_reason": ("string", "stop, length (cut at the token limit) or missing."),
    "tokens": ("int", "Tokens of the answer."),
    "seconds": ("float", "Computing time of the answer."),
    "attempts": ("int", "How often it was asked for."),
    "total": ("float", "Score, 0 to 1."),
    "schema": ("float", "Points for the form, at most 30."),
    "vision": ("float", "Points for the vision's completeness, at most 30."),
    "alignment": ("float", "Points for the requirements covered, at most 30."),
    "specificity": ("float", "Points for the review's specificity, at most 30."),
    "problems": ("list[string]", "What cost points, most costly first."),
    "valid": ("bool", "Whether the answer passes the validator."),
    "invalid_reason": ("string", "The first reason why not."),
    "status": ("string", "The status in the answer; null where nothing readable is said."),
    "reference_status": ("string", "The right status; empty where the case has none."),
    "unknown_ids": ("list[string]", "Cited requirement ids that the case does not have."),
    "invented_conflicts": ("int", "Conflicts listed where the reference lists none; the metric pays for them."),
    "decoding": ("string", "Fingerprint of the decoding settings."),
    "model_digest": ("string", "Digest of the weights that answered."),
    "metric_version": ("string", "Version of the metric."),
}


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
    return [
        score_answer(
            case,
            by_case.get(case.case_id) or Answer(case.case_id, "", "missing", 0, 0.0, 0),
            model=model,
            model_digest=model_digest,
            decoding=decoding,
        )
        for case in cases
    ]


def answers_frame(scored: Sequence[ScoredAnswer]) -> pd.DataFrame:
    """The answers table: one row per case."""
    return pd.DataFrame([asdict(answer) for answer in scored], columns=[field.name for field in fields(ScoredAnswer)])


def scored_answers(records: Iterable[Mapping[str, Any]], source: object) -> list[ScoredAnswer]:
    """Lines of the answers table read back.

    Raises:
        UserError: a line lacks a field, as one written by another version does; `source` is named.
    """
    names = {field.name for field in fields(ScoredAnswer)}
    try:
        return [ScoredAnswer(**{key: value for key, value in record.items() if key in names}) for record in records]
    except TypeError as error:
        raise UserError(
            f"{source} was written by another version of po_assets ({error}): materialize it again."
        ) from error


def read_scored(path: UPath) -> list[ScoredAnswer]:
    """The answers table; errors as `scored_answers` and `storage.read_rows`."""
    return scored_answers(read_rows(path), path)


def _conflicts(review_yaml: str) -> list[str]:
    listed = [str(item) for item in read_alignment(review_yaml)["conflicts"]]
    return [item for item in listed if not _PLACEHOLDER.match(item)]
