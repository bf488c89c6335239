"""What an attempt came to, what is asked next about a payload, and the ledger: pure functions of the journal.

Answers are scored anew whenever they are read, by the present metric and minimum score: nothing is paid for again
because a threshold moved.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from enum import StrEnum
from typing import Any

from po_assets.intake.lines import Rejected
from po_assets.intake.normalization import as_landed
from po_assets.product_owner import ParsedAnswer, parse_answer, score_product_owner, validate_answer
from po_assets.teacher.journal import Attempt
from po_assets.teacher.settings import TeacherLLM

QUESTION, REMINDER = "question", "reminder"
TOKEN_LIMIT = "token limit"  # noqa: S105 - no password
_CUT = {"length", "max_tokens", "model_length"}
"""Finish reasons of what the token limit cut: OpenAI's, and as Cohere and Mistral call it."""
BLOCK_MISSING = "block missing"
INTERRUPTED = "interrupted"


class AttemptOutcome(StrEnum):
    """What an attempt came to."""

    ACCEPTED = "accepted"
    SURPLUS = "surplus"
    """As good, but another answer about its payload is the accepted one."""
    BELOW_SCORE = "below_score"
    UNPARSABLE = "unparsable"
    REFUSED = "refused"
    CUT = "cut"
    ERROR = "error"


@dataclass(frozen=True)
class Scored:
    """An attempt with its outcome. `reason` is the same for all of its kind, `detail` says it for this one."""

    attempt: Attempt
    outcome: AttemptOutcome
    reason: str = ""
    detail: str = ""
    score: float | None = None
    status: str | None = None
    answer: ParsedAnswer | None = None

    @property
    def accepted(self) -> bool:
        """Whether its row is wanted."""
        return self.outcome == AttemptOutcome.ACCEPTED

    @property
    def answered(self) -> bool:
        """Whether the teacher had its say; False for what never arrived and what broke on the way."""
        return self.attempt.answered_at is not None and not self.attempt.fault


def score_attempt(attempt: Attempt, min_score: float) -> Scored:
    """What the attempt came to."""
    if attempt.answered_at is None:
        detail = (
            "it is with the provider's batch endpoint; the next run collects it"
            if attempt.hosted
            else "the process ended before the answer came; the teacher may have charged it"
        )
        return Scored(attempt, AttemptOutcome.ERROR, INTERRUPTED, detail)
    if attempt.fault:
        outcome = AttemptOutcome.CUT if attempt.cut else AttemptOutcome.ERROR
        return Scored(attempt, outcome, attempt.fault, attempt.detail)
    if attempt.refusal:
        return Scored(attempt, AttemptOutcome.REFUSED, "refusal", attempt.refusal)
    if attempt.finish_reason.startswith("content_filter"):  # Gemini adds why
        return Scored(attempt, AttemptOutcome.REFUSED, "content filter", "the provider's filter ended the answer")
    if attempt.finish_reason.lower() in _CUT:
        detail = f"the answer was longer than {attempt.max_output_tokens:,} tokens"
        return Scored(attempt, AttemptOutcome.CUT, TOKEN_LIMIT, detail)
    return _score_text(attempt, min_score)


def _score_text(attempt: Attempt, min_score: float) -> Scored:
    parsed = parse_answer(attempt.text)
    if parsed.missing or parsed.vision_yaml is None or parsed.review_yaml is None:
        detail = " and ".join(parsed.missing) if attempt.text.strip() else "the answer is empty"
        return Scored(attempt, AttemptOutcome.UNPARSABLE, BLOCK_MISSING, detail)
    if not (verdict := validate_answer(parsed.vision_yaml, parsed.review_yaml)):
        return Scored(attempt, AttemptOutcome.UNPARSABLE, "fails the validator", verdict.reason)
    documents = {"teacher_product_vision": parsed.vision_yaml, "teacher_product_owner_review": parsed.review_yaml}
    try:
        row = as_landed(asdict(attempt.payload) | documents)
    except Rejected as rejected:  # what the validator lets pass and no row may hold: another status
        return Scored(attempt, AttemptOutcome.UNPARSABLE, "would be rejected", rejected.detail)
    score, status = row["metric_score"], row["status"]
    if score < min_score:
        problems = score_product_owner(attempt.requirements_yaml, parsed.vision_yaml, parsed.review_yaml).problems
        detail = f"scores {score:.3f}, {min_score:g} is asked for" + (
            f": {'; '.join(problems[:2])}" if problems else ""
        )
        return Scored(attempt, AttemptOutcome.BELOW_SCORE, f"below {min_score:g}", detail, score, status)
    return Scored(attempt, AttemptOutcome.ACCEPTED, score=score, status=status, answer=parsed)


def settle(history: Sequence[Scored]) -> list[Scored]:
    """The attempts for one payload with one of them accepted at most: what has landed, else the first good one.

    There are several where a minimum score was lowered after all of them had missed it.
    """
    good = [scored for scored in history if scored.accepted]
    chosen = next((scored for scored in good if scored.attempt.landed_in), good[0] if good else None)
    return [
        replace(scored, outcome=AttemptOutcome.SURPLUS, reason="another was accepted", detail="one row is enough")
        if scored.accepted and scored is not chosen
        else scored
        for scored in history
    ]


def next_kind(history: Sequence[Scored], tries: int, max_output_tokens: int) -> str | None:
    """What to ask next about a payload: the question, the question with a reminder, or None when it is settled.

    A missing block is worth one reminder; a refusal, a low score or a broken document uses up a try. Requests that
    brought no answer use up none. An answer that the token limit cut counts only while the limit is as low.
    """
    if any(scored.accepted for scored in history):
        return None
    counted = [
        scored
        for scored in history
        if scored.answered
        and not (scored.reason == TOKEN_LIMIT and scored.attempt.max_output_tokens < max_output_tokens)
    ]
    if counted and counted[-1].reason == BLOCK_MISSING and counted[-1].attempt.kind == QUESTION:
        return REMINDER
    asked = sum(scored.attempt.kind == QUESTION for scored in counted)
    return QUESTION if asked < tries else None


def ledger_rows(
    histories: Iterable[Sequence[Scored]], batch_keys: set[str], llm: TeacherLLM
) -> Iterator[dict[str, Any]]:
    """One row per request: those for one payload together and in order, numbered from 1.

    `in_batch`: the payload belongs to the last batch; `estimated`: no bill came, tokens are the most that the request
    can have had; `cost` by the prices of the settings; `seconds` from sending to the last byte.
    """
    for history in histories:
        for number, scored in enumerate(history, start=1):
            attempt = scored.attempt
            yield {
                "request": attempt.id,
                "payload": attempt.key,
                "concept_id": attempt.concept_id,
                "in_batch": attempt.key in batch_keys,
                "attempt": number,
                "kind": attempt.kind,
                "outcome": scored.outcome.value,
                "reason": scored.reason,
                "detail": scored.detail,
                "score": scored.score,
                "status": scored.status,
                "prompt_tokens": attempt.prompt_tokens,
                "completion_tokens": attempt.completion_tokens,
                "estimated": attempt.estimated,
                "cost": llm.cost(*attempt.tokens, hosted=attempt.hosted),
                "hosted": attempt.hosted,
                "seconds": attempt.seconds,
                "sent_at": attempt.sent_at,
                "landed_in": attempt.landed_in,
            }


def totals(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The sums over these rows of a ledger; no bill says `estimated_cost`, which is counted as the most it can be."""
    return {
        "requests": len(rows),
        "tokens": sum(row["prompt_tokens"] + row["completion_tokens"] for row in rows),
        "cost": float(sum(row["cost"] for row in rows)),
        "estimated_cost": float(sum(row["cost"] for row in rows if row["estimated"])),
    }


def outcome_table(rows: Sequence[dict[str, Any]]) -> list[dict[str, object]]:
    """One row per outcome and reason, most frequent first, with an example."""
    groups: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault((row["outcome"], row["reason"]), []).append(row)
    return [
        {
            "outcome": outcome,
            "reason": reason or "–",
            "requests": len(group),
            "share": f"{len(group) / len(rows):.1%}",
            "tokens": totals(group)["tokens"],
            "cost": totals(group)["cost"],
            "example": _example(group[0]),
        }
        for (outcome, reason), group in sorted(groups.items(), key=lambda item: -len(item[1]))
    ]


def _example(row: dict[str, Any]) -> str:
    said = row["detail"] or (f"scores {row['score']:.3f}" if row["score"] is not None else "")
    return f"{row['concept_id'] or row['payload'][:12]}, attempt {row['attempt']}: {said}"
