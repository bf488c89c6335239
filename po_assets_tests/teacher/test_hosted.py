"""The provider's batch endpoint: half the price, one journal, and nothing lost or paid twice when it breaks or is killed."""

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

from po_assets.errors import UserError
from po_assets.teacher import hosted as hosted_module
from po_assets.teacher.settings import TeacherLLM
from po_assets_tests.processes import assert_killed
from po_assets_tests.teacher.batch_server import EXPIRED, LOST, HostedBatch, completion, failure, provider
from po_assets_tests.teacher.crash_driver import start
from po_assets_tests.teacher.scenes import KEY, KEY_VARIABLE, NO_REVIEW, Scene, llm, payload
from po_assets_tests.teacher.teacher_server import COMPLETION_TOKENS, PROMPT_TOKENS

LIVE_PRICE = (PROMPT_TOKENS * 1.0 + COMPLETION_TOKENS * 10.0) / 1e6


def hosted(url: str, **changes: Any) -> TeacherLLM:
    """As `llm`, by batch, looked at all the time."""
    return llm(url, **{"delivery": "batch", "batch_poll_seconds": 0.05, **changes})


def once(outcome: dict[str, Any], concept: str = payload(2).concept) -> Callable[[HostedBatch, str], dict[str, Any]]:
    """In the first batch this happens to one payload's request."""
    return lambda batch, asked: outcome if (batch.id, asked) == ("batch_0", concept) else completion()


def test_all_is_asked_in_one_batch_at_half_the_price(scene: Scene) -> None:
    """The answers land as live ones do; the ledger says how they were asked."""
    with provider() as service:
        report = scene.run(hosted(service.url))
    assert len(service.batches) == 1
    assert sorted(scene.landed_concepts) == sorted(service.asked) == sorted(payload(n).concept for n in range(1, 7))
    assert report.cost == pytest.approx(6 * LIVE_PRICE / 2)
    assert {row["hosted"] for row in scene.ledger} == {True}
    (batch,) = service.batches.values()
    assert batch.requests[0]["body"]["model"] == "test-model"
    assert "stream" not in batch.requests[0]["body"]


@pytest.mark.parametrize(("limit", "value"), [("MOST_REQUESTS", 4), ("MOST_BYTES", 3_000)])
def test_a_batch_is_no_larger_than_the_provider_takes(
    scene: Scene, monkeypatch: pytest.MonkeyPatch, limit: str, value: int
) -> None:
    """What is more goes into the next one."""
    monkeypatch.setattr(hosted_module, limit, value)
    with provider() as service:
        scene.run(hosted(service.url))
    sizes = [len(batch.requests) for batch in service.batches.values()]
    assert sum(sizes) == 6
    assert len(sizes) > 1
    assert max(sizes) <= 4
    assert len(scene.landed_concepts) == 6


def test_live_and_hosted_requests_are_counted_at_their_own_price(scene: Scene) -> None:
    """Both ways share one journal, and one budget."""
    with provider() as service:
        assert scene.run(hosted(service.url), max_rows=2).cost == pytest.approx(2 * LIVE_PRICE / 2)
        report = scene.run(llm(service.url), max_rows=3)
    assert (report.requests, service.seen["live"]) == (3, 1)
    assert report.cost == pytest.approx(2 * LIVE_PRICE)


@pytest.mark.parametrize(
    ("fault", "outcome", "paid"),
    [
        (completion(NO_REVIEW), ("unparsable", "block missing"), True),
        (EXPIRED, ("error", "expired"), False),
        (LOST, ("error", "lost by the provider"), True),
        (failure(500, "overloaded"), ("error", "server error (500)"), False),
    ],
)
def test_what_misses_a_block_expires_or_is_lost_is_asked_again_in_the_next_batch(
    scene: Scene, fault: dict[str, Any], outcome: tuple[str, str], paid: bool
) -> None:
    """Only it is in there. What was lost without a word counts as the most that it can have cost."""
    with provider(answers=once(fault)) as service:
        report = scene.run(hosted(service.url))
    assert [len(batch.requests) for batch in service.batches.values()] == [6, 1]
    assert report.accepted == 6
    (row,) = [row for row in scene.ledger if row["outcome"] != "accepted"]
    assert (row["outcome"], row["reason"], row["concept_id"]) == (*outcome, "P-002")
    assert (row["prompt_tokens"] > 0) == paid


def test_a_request_that_the_provider_refuses_is_named_and_not_repeated(scene: Scene) -> None:
    """As with live requests: the others land."""
    with provider(answers=once(failure(400, "too long"))) as service:
        report = scene.run(hosted(service.url))
    assert (report.accepted, report.open) == (5, 1)
    assert ("error", "request refused (400)") in scene.outcomes


@pytest.mark.parametrize(
    ("faults", "said", "batches"),
    [
        ({"status": lambda _batch: "failed"}, "batch refused: the model has no batch endpoint", 1),
        ({"refuses": lambda event: 404 if event == "file" else None}, r"no such model or address \(404\)", 0),
    ],
)
def test_a_batch_that_is_refused_as_a_whole_is_one_sentence(
    scene: Scene, faults: dict[str, Any], said: str, batches: int
) -> None:
    """With the provider's reason; nothing is counted and nothing lands."""
    with provider(**faults) as service, pytest.raises(UserError, match=said):
        scene.run(hosted(service.url))
    assert (scene.report.cost, len(service.batches)) == (0, batches)


@pytest.mark.parametrize("limit", [{"max_rows": 4}, {"max_cost": 0.0475}])
def test_the_budget_holds_over_batches(scene: Scene, limit: dict[str, Any]) -> None:
    """A round has as many requests as fit at their most; what they do not need is granted in the next one."""
    with provider() as service:
        report = scene.run(hosted(service.url, max_output_tokens=1000), **limit)
    assert report.stop_reason == "budget" or report.accepted == 6
    assert report.cost <= limit.get("max_cost", 1)
    assert report.accepted == limit.get("max_rows", 6)


def test_what_a_status_code_breaks_for_a_while_goes_on(scene: Scene) -> None:
    """Each kind of call fails once; one batch is made all the same."""
    with provider() as service:
        service.refuses = lambda event: 503 if service.seen[event] <= 1 else None
        assert scene.run(hosted(service.url)).accepted == 6
    assert len(service.batches) == 1


def test_a_batch_that_was_made_without_an_answer_is_found_again(scene: Scene) -> None:
    """The connection breaks after the provider has taken it: it is looked for by its name before another is made."""
    with provider() as service:
        make = service.do

        def do(method: str, path: str, body: bytes) -> Any:
            event, result = make(method, path, body)
            if event == "batch" and not service.batches:
                result()
                return event, lambda: b"<html>bad gateway</html>"
            return event, result

        service.do = do  # type: ignore[method-assign]
        assert scene.run(hosted(service.url)).accepted == 6
    assert len(service.batches) == 1


def test_a_provider_that_stays_away_costs_nothing(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither does a wrong key while answers wait: the next run collects them; the key is in no message."""
    monkeypatch.setenv(KEY_VARIABLE, KEY)
    options = {"api_key_variable": KEY_VARIABLE, "retries": 1}
    with provider() as service:
        service.refuses = lambda event: 401 if event == "look" else None
        with pytest.raises(UserError, match=r"cannot be asked \(key refused.*goes on from there") as raised:
            scene.run(hosted(service.url, **options))
        assert KEY not in str(raised.value)
        service.refuses = lambda event: None
        assert scene.run(hosted(service.url, **options)).accepted == 6
        assert len(service.batches) == 1
        assert service.keys == {f"Bearer {KEY}"}


def test_cancel_ends_the_batch_and_lands_what_is_answered(scene: Scene) -> None:
    """The rest is asked again by a later run."""
    with provider(answers=lambda batch, one: completion() if one != payload(3).concept else LOST) as service:
        service.refuses = lambda event: 403 if event == "look" else None
        with pytest.raises(UserError):
            scene.run(hosted(service.url))
        service.refuses = lambda event: None
        report = scene.run(hosted(service.url), cancel=True)
        assert (report.stop_reason, report.accepted, len(service.batches)) == ("cancelled", 5, 1)
        assert ("error", "cancelled") in scene.outcomes
        service.answers = lambda batch, one: completion()
        assert scene.run(hosted(service.url)).accepted == 6
        assert [len(batch.requests) for batch in service.batches.values()] == [6, 1]


@pytest.mark.parametrize("event", ["file", "batch", "look", "content"])
def test_killed_at_any_call_the_next_run_collects_the_same_batch(scene: Scene, event: str) -> None:
    """After the provider has done what was asked, before it answers: no request is handed over twice."""

    def kill(happened: str) -> None:
        if happened == event:
            process.kill()  # which does nothing once it has ended

    with provider(happens=kill) as service:
        process = start(scene, service.url, delivery="batch")
        assert_killed(process)
        report = scene.run(hosted(service.url))
        assert (report.accepted, report.requests, len(service.batches)) == (6, 6, 1)
        assert set(service.asked.values()) == {1}
        assert Counter(scene.landed_concepts) == Counter(service.asked)
        assert report.cost == pytest.approx(6 * LIVE_PRICE / 2)


@pytest.mark.parametrize(("moment", "at"), [("before a request is noted", 3), ("when an answer is on disk", 4)])
def test_killed_beside_the_provider_every_answer_is_paid_once(scene: Scene, moment: str, at: int) -> None:
    """While requests are noted, nothing was handed over; while answers are kept, the rest is collected again."""
    with provider() as service:
        assert_killed(start(scene, service.url, moment, at, delivery="batch"))
        report = scene.run(hosted(service.url))
        assert (report.accepted, len(service.batches)) == (6, 1)
        assert Counter(scene.landed_concepts) == Counter(service.asked)
        assert report.cost == pytest.approx(6 * LIVE_PRICE / 2)
