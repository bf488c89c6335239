"""Where an attempt ends, and what is asked next about a payload: pure functions of what the journal holds.

Answers are judged anew whenever they are read, by the present metric and minimum score: nothing is paid for again
because a threshold moved.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from po_assets.intake.rejection import Rejected
from po_assets.product_owner import ParsedAnswer, parse_answer, score_product_owner, validate_answer
from po_assets.review.landing import as_landed
from po_assets.teacher.journal import Attempt

QUESTION, REMINDER = "question", "reminder"
TOKEN_LIMIT = "token limit"  # noqa: S105 - no password
BLOCK_MISSING = "block missing"
INTERRUPTED = "interrupted"


class Outcome(StrEnum):
    """Where an attempt ended."""

    ACCEPTED = "accepted"
    BELOW_SCORE = "below_score"
    UNPARSABLE = "unparsable"
    REFUSED = "refused"
    CUT = "cut"
    ERROR = "error"


class State(StrEnum):
    """Where a payload stands."""

    ACCEPTED = "accepted"
    GIVEN_UP = "given_up"
    """Answered as often as it may be, and no answer was good enough."""
    FAILED = "failed"
    """No answer came; the next run asks again."""
    OPEN = "open"
    """Not asked yet, or not to the end: the budget or something else stopped the batch."""


@dataclass(frozen=True)
class Judged:
    """An attempt with its outcome. `reason` is the same for all of its kind, `detail` says it for this one."""

    attempt: Attempt
    outcome: Outcome
    reason: str = ""
    detail: str = ""
    score: float | None = None
    status: str | None = None
    answer: ParsedAnswer | None = None

    @property
    def answered(self) -> bool:
        """Whether the teacher had its say; False for what never arrived and what broke on the way."""
        return self.attempt.done is not None and not self.attempt.done.reason

    @property
    def estimated(self) -> bool:
        """Whether no bill says the tokens."""
        return self.attempt.done is None or self.attempt.done.estimated


def judge(attempt: Attempt, min_score: float) -> Judged:
    """Where the attempt ended."""
    done = attempt.done
    if done is None:
        detail = "the process ended before the answer came; the teacher may have charged it"
        return Judged(attempt, Outcome.ERROR, INTERRUPTED, detail)
    if done.reason:
        return Judged(attempt, Outcome.CUT if done.cut else Outcome.ERROR, done.reason, done.detail)
    if done.refusal:
        return Judged(attempt, Outcome.REFUSED, "refusal", done.refusal)
    if done.finish_reason == "content_filter":
        return Judged(attempt, Outcome.REFUSED, "content filter", "the provider's filter ended the answer")
    if done.finish_reason == "length":
        limit = attempt.sent.max_output_tokens
        return Judged(attempt, Outcome.CUT, TOKEN_LIMIT, f"the answer was longer than {limit:,} tokens")
    return _judge_text(attempt, done.text, min_score)


def _judge_text(attempt: Attempt, text: str, min_score: float) -> Judged:
    parsed = parse_answer(text)
    if parsed.missing or parsed.vision_yaml is None or parsed.review_yaml is None:
        return Judged(attempt, Outcome.UNPARSABLE, BLOCK_MISSING, " and ".join(parsed.missing))
    if not (verdict := validate_answer(parsed.vision_yaml, parsed.review_yaml)):
        return Judged(attempt, Outcome.UNPARSABLE, "fails the validator", verdict.reason)
    documents = {"teacher_product_vision": parsed.vision_yaml, "teacher_product_owner_review": parsed.review_yaml}
    try:
        row = as_landed(attempt.sent.payload.as_record() | documents)
    except Rejected as rejected:  # what the validator lets pass and no row may hold: another status
        return Judged(attempt, Outcome.UNPARSABLE, "would be rejected", rejected.detail)
    score, status = row["metric_score"], row["status"]
    if score < min_score:
        requirements = attempt.sent.payload.requirements_yaml
        cost = "; ".join(score_product_owner(requirements, parsed.vision_yaml, parsed.review_yaml).problems[:2])
        detail = f"scores {score:.3f}, {min_score:g} is asked for" + (f": {cost}" if cost else "")
        return Judged(attempt, Outcome.BELOW_SCORE, f"below {min_score:g}", detail, score, status)
    return Judged(attempt, Outcome.ACCEPTED, score=score, status=status, answer=parsed)


def next_kind(history: Sequence[Judged], tries: int, max_output_tokens: int) -> str | None:
    """What to ask next about a payload: the question, the question with a reminder, or None when it is settled.

    A missing block is worth one reminder; a refusal, a low score or a broken document uses up a try. Requests that
    brought no answer use up none. An answer that the token limit cut counts only while the limit is as low.
    """
    if any(judged.outcome == Outcome.ACCEPTED for judged in history):
        return None
    counted = [judged for judged in history if judged.answered and not _under_a_lower_limit(judged, max_output_tokens)]
    if counted and counted[-1].reason == BLOCK_MISSING and counted[-1].attempt.sent.kind == QUESTION:
        return REMINDER
    asked = sum(judged.attempt.sent.kind == QUESTION for judged in counted)
    return QUESTION if asked < tries else None


def state_of(history: Sequence[Judged], tries: int, max_output_tokens: int) -> State:
    """Where a payload stands."""
    if any(judged.outcome == Outcome.ACCEPTED for judged in history):
        return State.ACCEPTED
    if next_kind(history, tries, max_output_tokens) is None:
        return State.GIVEN_UP
    return State.FAILED if history and not history[-1].answered else State.OPEN


def _under_a_lower_limit(judged: Judged, max_output_tokens: int) -> bool:
    return judged.reason == TOKEN_LIMIT and judged.attempt.sent.max_output_tokens < max_output_tokens
