"""What is accepted is what the graph takes in."""

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from po_assets.intake.lines import Line
from po_assets.intake.normalization import normalize
from po_assets.product_owner import STATUSES
from po_assets.teacher.outcomes import AttemptOutcome, score_attempt
from po_assets.teacher.run import landing_row
from po_assets.teacher.settings import TeacherLLM
from po_assets_tests.teacher.scenes import ACCEPTED
from po_assets_tests.teacher.test_journal import done


@pytest.mark.parametrize("status", ["on_track", "[aligned]", "null"])
def test_a_status_that_no_row_may_have_does_not_pass_for_an_answer(status: str) -> None:
    """Landed, it would be rejected, and what it cost be lost without a word here."""
    found = score_attempt(done(1, text=ACCEPTED.replace("status: aligned", f"status: {status}")), 0.82)
    assert (found.outcome, found.reason, found.answer) == (AttemptOutcome.UNPARSABLE, "would be rejected", None)
    assert found.detail.startswith("the REVIEW's status is ")
    assert found.detail.endswith("expected is aligned, needs_adjustment or conflicts")


@pytest.mark.parametrize(
    ("finish_reason", "outcome", "reason"),
    [
        *((reason, AttemptOutcome.CUT, "token limit") for reason in ("length", "MAX_TOKENS", "model_length")),
        ("content_filter: RECITATION", AttemptOutcome.REFUSED, "content filter"),
        ("end_turn", AttemptOutcome.ACCEPTED, ""),
    ],
)
def test_how_an_answer_ended_is_read_in_the_words_of_any_provider(
    finish_reason: str, outcome: AttemptOutcome, reason: str
) -> None:
    """What was cut is not asked for again with a reminder, and an unknown word is judged by the answer."""
    found = score_attempt(done(1, text=ACCEPTED, finish_reason=finish_reason), 0.82)
    assert (found.outcome, found.reason) == (outcome, reason)


def test_an_empty_answer_is_called_so() -> None:
    """Its blocks are missing as well, which says nothing of a server that puts all into the reasoning."""
    found = score_attempt(done(1, text=" \n"), 0.82)
    assert (found.reason, found.detail) == ("block missing", "the answer is empty")


@settings(max_examples=100, deadline=None)
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
