"""Every end of a request has its outcome, and what is asked next follows from what the journal holds."""

from dataclasses import replace
from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from po_assets.intake.lines import Line
from po_assets.intake.normalization import normalize
from po_assets.product_owner import STATUSES
from po_assets.teacher.outcomes import AttemptOutcome, PayloadState, Scored, next_kind, score_attempt, state_of
from po_assets.teacher.run import landing_row
from po_assets.teacher.settings import TeacherLLM
from po_assets_tests.teacher.scenes import ACCEPTED, BROKEN_YAML, NO_REVIEW, TOO_THIN
from po_assets_tests.teacher.test_journal import done, sent


def scored(kind: str = "question", limit: int = 4096, **changes: Any) -> Scored:
    return score_attempt(replace(done(1, **changes), kind=kind, max_output_tokens=limit), 0.82)


ERROR = {"fault": "time-out", "detail": "no whole answer within 10 s", "text": "", "finish_reason": ""}


@pytest.mark.parametrize(
    ("changes", "outcome", "reason"),
    [
        ({"text": ACCEPTED}, AttemptOutcome.ACCEPTED, ""),
        ({"text": TOO_THIN}, AttemptOutcome.BELOW_SCORE, "below 0.82"),
        ({"text": NO_REVIEW}, AttemptOutcome.UNPARSABLE, "block missing"),
        ({"text": ""}, AttemptOutcome.UNPARSABLE, "block missing"),
        ({"text": BROKEN_YAML}, AttemptOutcome.UNPARSABLE, "fails the validator"),
        ({"text": "", "refusal": "I cannot."}, AttemptOutcome.REFUSED, "refusal"),
        ({"finish_reason": "content_filter"}, AttemptOutcome.REFUSED, "content filter"),
        ({"finish_reason": "length"}, AttemptOutcome.CUT, "token limit"),
        ({"fault": "connection lost", "detail": "ReadError", "cut": True}, AttemptOutcome.CUT, "connection lost"),
        (ERROR, AttemptOutcome.ERROR, "time-out"),
    ],
)
def test_every_end_has_its_outcome(changes: dict[str, Any], outcome: AttemptOutcome, reason: str) -> None:
    """With a short reason, the same for all of its kind, and a sentence where something is wrong."""
    found = scored(**changes)
    assert (found.outcome, found.reason) == (outcome, reason)
    assert bool(found.detail) == (outcome != AttemptOutcome.ACCEPTED)


@pytest.mark.parametrize("status", ["on_track", "[aligned]", "null"])
def test_a_status_that_no_row_may_have_does_not_pass_for_an_answer(status: str) -> None:
    """Landed, it would be rejected, and what it cost be lost without a word here."""
    found = scored(text=ACCEPTED.replace("status: aligned", f"status: {status}"))
    assert (found.outcome, found.reason, found.answer) == (AttemptOutcome.UNPARSABLE, "would be rejected", None)
    assert found.detail.startswith("the REVIEW's status is ")
    assert found.detail.endswith("expected is aligned, needs_adjustment or conflicts")


@settings(max_examples=200, deadline=None)
@given(
    status=st.sampled_from([*STATUSES, " Conflicts ", "misaligned", "[aligned]", "2026-01-01", "", "null", "~"]),
    old=st.sampled_from(["TideTable", "narrative: ", "- FR001", "\n\n", "gaps: []", "last_updated"]),
    new=st.text(max_size=20) | st.sampled_from(["\n", "]", "- ", "`", "\n---\n", "status: on_track\n"]),
    min_score=st.sampled_from([0.0, 0.82]),
)
def test_whatever_is_accepted_is_taken_in(status: str, old: str, new: str, min_score: float) -> None:
    """Normalized without a rejection, with the score that it declares and the status that the ledger says."""
    text = ACCEPTED.replace("status: aligned", f"status: {status}").replace(old, new)
    found = score_attempt(done(1, text=text, model="m" * 2_000_000), min_score)
    if found.outcome != AttemptOutcome.ACCEPTED:
        assert found.detail
        return
    line = orjson.dumps(landing_row(found, TeacherLLM(base_url="http://x/v1", model="m")))
    row = normalize(Line("f", 1, line, len(line))).row
    assert row["declared_score"] == row["metric_score"] == found.score
    assert (row["status"], row["valid"]) == (found.status, True)


def test_a_request_without_an_end_was_interrupted_and_counts_as_the_most_it_can_cost() -> None:
    """The teacher may have charged it."""
    found = score_attempt(sent(1), 0.82)
    assert (found.outcome, found.reason, found.attempt.tokens, found.estimated) == (
        AttemptOutcome.ERROR,
        "interrupted",
        (900, 4096),
        True,
    )


def test_a_lower_minimum_accepts_what_is_paid_for() -> None:
    """Answers are judged anew, not asked for again."""
    attempt = done(1, text=TOO_THIN)
    assert score_attempt(attempt, 0.82).outcome == AttemptOutcome.BELOW_SCORE
    assert score_attempt(attempt, 0.75).outcome == AttemptOutcome.ACCEPTED


@pytest.mark.parametrize(
    ("history", "tries", "kind", "state"),
    [
        ([], 1, "question", PayloadState.OPEN),
        ([scored()], 1, None, PayloadState.ACCEPTED),
        ([scored()], 3, None, PayloadState.ACCEPTED),
        ([scored(text=TOO_THIN)], 1, None, PayloadState.GIVEN_UP),
        ([scored(text=TOO_THIN)], 2, "question", PayloadState.OPEN),
        ([scored(text=TOO_THIN), scored()], 2, None, PayloadState.ACCEPTED),
        ([scored(text=NO_REVIEW)], 1, "reminder", PayloadState.OPEN),
        ([scored(text=NO_REVIEW), scored("reminder", text=NO_REVIEW)], 1, None, PayloadState.GIVEN_UP),
        ([scored(text=NO_REVIEW), scored("reminder", text=NO_REVIEW)], 2, "question", PayloadState.OPEN),
        ([scored(text=NO_REVIEW), scored("reminder", **ERROR)], 1, "reminder", PayloadState.FAILED),
        ([scored(text=BROKEN_YAML)], 1, None, PayloadState.GIVEN_UP),
        ([scored(text="", refusal="no")], 1, None, PayloadState.GIVEN_UP),
        ([scored(**ERROR)], 1, "question", PayloadState.FAILED),
        ([scored(**ERROR), scored(**ERROR)], 1, "question", PayloadState.FAILED),
        ([score_attempt(sent(1), 0.82)], 1, "question", PayloadState.FAILED),
        ([scored(finish_reason="length")], 1, None, PayloadState.GIVEN_UP),
        ([scored(limit=2048, finish_reason="length")], 1, "question", PayloadState.OPEN),
    ],
)
def test_what_is_asked_next_follows_from_what_came(
    history: list[Scored], tries: int, kind: str | None, state: PayloadState
) -> None:
    """One reminder for a missing block; errors use up no try; a raised token limit asks again only what it cut."""
    assert next_kind(history, tries, 4096) == kind
    assert state_of(history, tries, 4096) == state
