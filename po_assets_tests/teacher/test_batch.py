"""A batch against a real server that misbehaves on purpose: nothing is lost, nothing is paid for twice, budgets hold."""

import asyncio
import threading
from pathlib import Path
from typing import Any

import pytest
from upath import UPath

from po_assets.errors import UserError
from po_assets.intake.landing import list_landing
from po_assets.storage import Layout
from po_assets.teacher import batch as batch_module
from po_assets.teacher.run import working_folder, write_ledger
from po_assets.teacher.settings import TeacherLLM
from po_assets_tests.teacher.scenes import (
    BROKEN_YAML,
    NO_REVIEW,
    TOO_THIN,
    Scene,
    assert_sound,
    batch_verdicts,
    llm,
    payload,
    write_payloads,
)
from po_assets_tests.teacher.teacher_server import COMPLETION_TOKENS, PROMPT_TOKENS, Asked, Does, in_turn, teacher
from po_assets_tests.teacher.test_journal import full_disk

COST = (PROMPT_TOKENS * 1.0 + COMPLETION_TOKENS * 10.0) / 1e6
TOKENS = PROMPT_TOKENS + COMPLETION_TOKENS


def one_at_a_time(url: str, **changes: Any) -> TeacherLLM:
    return llm(url, concurrency=1, **changes)


def test_good_answers_land_as_one_file_with_their_origin(scene: Scene) -> None:
    """In the format `teacher`, in the order of the payloads, with model, time, digest and tokens."""
    with teacher() as server:
        report = scene.run(llm(server.url))
    ((name, rows),) = scene.landed.items()
    assert name == report.landed_file
    assert [path.name for path in list_landing(scene.layout.incoming).files] == [name]  # the graph takes it in
    assert [row["concept_id"] for row in rows] == [f"P-{n:03d}" for n in range(1, 7)]
    first = rows[0]
    assert (first["concept"], first["tier"]) == (payload(1).concept, "simple")
    assert first["requirements_yaml"] == payload(1).requirements_yaml
    assert first["teacher_product_vision"].startswith("product_name: TideTable")
    assert "\nstatus: aligned\n" in first["teacher_product_owner_review"]
    assert first["score"] == pytest.approx(0.9166, abs=1e-3)
    origin = first["metadata"]
    assert {key: origin[key] for key in ("source", "model", "served_as", "provider", "input_digest")} == {
        "source": "teacher_llm",
        "model": "test-model",
        "served_as": "served-model",
        "provider": "127.0.0.1",
        "input_digest": payload(1).key,
    }
    assert (origin["prompt_tokens"], origin["completion_tokens"]) == (PROMPT_TOKENS, COMPLETION_TOKENS)
    assert origin["answered_at"].startswith("20")
    assert (report.accepted, report.requests, report.stop_reason) == (6, 6, "finished")
    assert report.cost == pytest.approx(6 * COST)


@pytest.mark.parametrize("stream", [True, False])
def test_every_kind_of_misbehaviour_ends_in_the_ledger_and_costs_no_row(scene: Scene, stream: bool) -> None:
    """429 with Retry-After, 500, cut, garbage, a time-out, a missing block: all six rows come all the same."""
    faults = in_turn(
        Does(status=429, headers={"retry-after": "0.2"}),
        Does(status=500),
        Does(cut_after=200),
        Does(raw=b"<html>Bad gateway</html>"),
        Does(delay=2.0),
        Does(text=NO_REVIEW),
    )
    with teacher(faults) as server:
        report = scene.run(llm(server.url, stream=stream, timeout_seconds=1.0))
    assert scene.outcomes == [
        *[("accepted", "")] * 6,
        ("cut", "connection lost"),
        ("error", "not a chat completion"),
        ("error", "rate limited (429)"),
        ("error", "server error (500)"),
        ("error", "time-out"),
        ("unparsable", "block missing"),
    ]
    assert sorted(scene.landed_concepts) == sorted(payload(n).concept for n in range(1, 7))
    assert len(server.asked) == report.requests == 12


def test_each_outcome_keeps_its_reason_tokens_and_cost(scene: Scene) -> None:
    """Charged answers count whatever they are worth; what the server turned away costs nothing."""
    answers = in_turn(
        Does(text=TOO_THIN),
        Does(text=BROKEN_YAML),
        Does(text="", refusal="I will not."),
        Does(finish_reason="content_filter"),
        Does(finish_reason="length"),
        Does(status=400),
    )
    with teacher(answers) as server:
        report = scene.run(one_at_a_time(server.url))
    assert [(row["concept_id"], row["outcome"], row["reason"]) for row in scene.ledger] == [
        ("P-001", "below_score", "below 0.82"),
        ("P-002", "unparsable", "fails the validator"),
        ("P-003", "refused", "refusal"),
        ("P-004", "refused", "content filter"),
        ("P-005", "cut", "token limit"),
        ("P-006", "error", "request refused (400)"),
    ]
    assert [row["cost"] for row in scene.ledger] == [*[pytest.approx(COST)] * 5, 0]
    assert scene.ledger[0]["score"] == pytest.approx(0.7917, abs=1e-3)
    assert (report.accepted, report.given_up, report.open) == (0, 5, 1)
    assert scene.landed == {}
    warning = batch_verdicts(scene.layout)["acceptance_rate"]
    assert (warning.passed, warning.severity) == (False, "WARN")
    assert "0 of 5 answers (0.0%) were accepted, at least 50% should be." in warning.summary
    assert {row["reason"] for row in warning.rows} >= {"below 0.82", "refusal", "token limit"}


def test_a_missing_block_is_asked_for_once_with_a_reminder(scene: Scene) -> None:
    """The reminder names it, and has a row of its own; one that failed is none."""
    write_payloads(scene.path, [payload(1), payload(2)])
    answers = [Does(text=NO_REVIEW), Does(status=500), Does(), Does(text=NO_REVIEW), Does(text=NO_REVIEW)]
    with teacher(in_turn(*answers)) as server:
        report = scene.run(one_at_a_time(server.url))
    questions = [asked.body["messages"][-1]["content"] for asked in server.asked]
    assert ["the REVIEW block is missing" in question for question in questions] == [False, True, True, False, True]
    assert [(row["kind"], row["attempt"], row["outcome"]) for row in scene.ledger] == [
        ("question", 1, "unparsable"),
        ("reminder", 2, "error"),
        ("reminder", 3, "accepted"),
        ("question", 1, "unparsable"),
        ("reminder", 2, "unparsable"),
    ]
    assert (report.accepted, report.given_up) == (1, 1)


def test_with_more_tries_a_poor_answer_is_asked_for_again(scene: Scene) -> None:
    """As often as the setting says; a later run with more tries goes on from there."""
    write_payloads(scene.path, [payload(1)])
    with teacher(in_turn(*[Does(text=TOO_THIN)] * 4)) as server:
        assert scene.run(one_at_a_time(server.url), tries=3).given_up == 1
        assert len(server.asked) == 3
        assert scene.run(one_at_a_time(server.url), tries=5).accepted == 1
        assert len(server.asked) == 5


def test_retry_after_is_waited_for_and_holds_everyone(scene: Scene) -> None:
    """No request of any worker is sent before; the other worker is answered when the refusal has long been read."""
    with teacher(in_turn(Does(status=429, headers={"retry-after": "1.5"}), Does(delay=0.5))) as server:
        scene.run(llm(server.url, concurrency=2, requests_per_minute=600))
    times = [asked.at for asked in server.asked]
    assert not [at for at in times[2:] if at < times[0] + 1.45]


def test_a_quota_of_hours_ends_the_batch_instead_of_waiting(scene: Scene) -> None:
    """What was accepted is kept; nothing lands, and the message says how to go on."""
    with teacher(in_turn(Does(), Does(status=429, headers={"retry-after": "7200"}))) as server:
        with pytest.raises(UserError, match="asks to wait 7,200 s") as caught:
            scene.run(one_at_a_time(server.url))
        assert "1 of 6 payloads have an accepted answer" in str(caught.value)
        assert scene.landed == {}
        assert scene.report.stop_reason == "outage"
        assert_sound(scene.layout)
        assert scene.run(one_at_a_time(server.url), max_rows=1).landed_rows == 1
        assert len(server.asked) == 2
        assert scene.run(one_at_a_time(server.url)).landed_rows == 5
    assert len(scene.landed) == 2
    assert max(server.answered.values()) == 1


def test_a_refused_key_ends_the_batch_and_what_is_under_way_comes_to_its_end(scene: Scene) -> None:
    """One request per worker at most, not one per payload and retry; answers that are paid for are kept."""
    with teacher(lambda asked: Does(status=401) if asked.number == 2 else Does(delay=0.4)) as server:
        with pytest.raises(UserError, match=r"key refused \(401\)"):
            scene.run(llm(server.url, concurrency=2))
        assert len(server.asked) == 2
    assert scene.outcomes == [("accepted", ""), ("error", "key refused (401)")]
    assert_sound(scene.layout)


def test_a_ledger_or_landed_file_that_does_not_balance_is_found_out(scene: Scene) -> None:
    """Each kind of disagreement, in words; a landed file that was moved away is none."""
    with teacher() as server:
        path = scene.layout.incoming / scene.run(llm(server.url)).landed_file
    first, *rest = scene.ledger
    for rows, fault in (
        (rest, "of the journal is not in the ledger"),
        ([first, first, *rest], "of the ledger is not in the journal"),
        ([first | {"request": "other"}, *rest], "of the ledger is not in the journal"),
        ([first | {"outcome": "lost"}, *rest], "ends as 'lost'"),
        ([first | {"completion_tokens": 1}, *rest], "of the ledger is not in the journal as it is there"),
        ([first | {"cost": 9.0}, *rest], "adding up gives"),
        ([first | {"payload": rest[0]["payload"]}, *rest], "was accepted 2 times"),
        ([first | {"landed_in": None}, *rest], "of the journal is not in the ledger as it is there"),
    ):
        write_ledger(Path(scene.report.ledger), rows)
        verdict = batch_verdicts(scene.layout)["ledger_balances"]
        assert not verdict.passed
        assert fault in str(verdict.rows)
    write_ledger(Path(scene.report.ledger), [first, *rest])
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[1:]))
    assert "5 lines in incoming/" in str(batch_verdicts(scene.layout)["ledger_balances"].rows)
    path.unlink()
    assert batch_verdicts(scene.layout)["ledger_balances"].passed


def test_where_no_answer_came_the_check_says_why(scene: Scene) -> None:
    """Six payloads are no outage yet; that the batch came to its end says nothing."""
    refused = Does(status=400, error={"message": "Use 'max_completion_tokens' instead.", "code": None})
    with teacher(lambda _asked: refused) as server:
        assert scene.run(one_at_a_time(server.url)).stop_reason == "finished"
    verdict = batch_verdicts(scene.layout)["acceptance_rate"]
    assert not verdict.passed
    assert verdict.summary == (
        "No answer came: request refused (400) (P-001, attempt 1: Error code: 400 - Use 'max_completion_tokens' "
        "instead.)."
    )


def test_an_outage_ends_the_batch_after_ten_payloads_in_a_row(tmp_path: Path) -> None:
    """The ledger has every request; the rest is asked when the teacher is back."""
    scene = Scene(tmp_path, payloads=15)
    down = [True]
    with teacher(lambda _asked: Does(status=503) if down[0] else Does()) as server:
        with pytest.raises(UserError, match="10 payloads in a row brought no answer"):
            scene.run(one_at_a_time(server.url, retries=1))
        assert len(server.asked) == 20
        assert scene.report.open == 15
        assert_sound(scene.layout)
        down[0] = False
        report = scene.run(llm(server.url))
    assert (report.accepted, report.requests) == (15, 35)
    assert_sound(scene.layout)


def test_a_second_run_asks_and_lands_only_what_is_new(scene: Scene) -> None:
    """With the same payloads nothing, at whatever pace; of others the new ones, as a second file."""
    with teacher() as server:
        scene.run(llm(server.url))
        report = scene.run(llm(server.url, concurrency=1, max_output_tokens=8192, timeout_seconds=5))
        assert (report.accepted, report.landed_file, len(scene.landed), len(server.asked)) == (6, "", 1, 6)
        write_payloads(scene.path, [payload(n) for n in range(4, 10)])
        report = scene.run(llm(server.url))
        assert len(server.asked) == 9
    assert sorted(len(rows) for rows in scene.landed.values()) == [3, 6]
    assert (report.landed_rows, report.accepted, report.payloads) == (3, 6, 6)
    assert len(set(scene.landed_concepts)) == 9


def test_a_lower_minimum_score_lands_one_of_the_answers_that_are_paid_for(scene: Scene) -> None:
    """Judged anew without asking: the first; once one has landed, that one, whatever is accepted later."""
    write_payloads(scene.path, [payload(1)])
    with teacher(in_turn(Does(text=TOO_THIN), Does(text=TOO_THIN), Does())) as server:
        assert scene.run(one_at_a_time(server.url), tries=2).accepted == 0
        report = scene.run(one_at_a_time(server.url), tries=2, min_score=0.75)
        assert (report.accepted, report.landed_rows, len(server.asked)) == (1, 1, 2)
        assert [row["outcome"] for row in scene.ledger] == ["accepted", "surplus"]
        write_payloads(scene.path, [payload(2)])
        assert scene.run(one_at_a_time(server.url)).landed_rows == 1
    assert len(scene.landed_concepts) == 2


def test_a_raised_token_limit_asks_again_only_what_it_cut(scene: Scene) -> None:
    """The other answers would be the same."""
    with teacher(in_turn(Does(), Does(finish_reason="length"))) as server:
        assert scene.run(one_at_a_time(server.url)).accepted == 5
        assert scene.run(one_at_a_time(server.url)).requests == 6
        assert scene.run(one_at_a_time(server.url, max_output_tokens=8192)).accepted == 6
    assert server.by_concept[payload(2).concept] == 2
    assert len(server.asked) == 7


def test_a_budget_of_rows_ends_with_exactly_so_many(tmp_path: Path) -> None:
    """Also when every third answer is poor and several are under way; raised, it goes on."""
    scene = Scene(tmp_path, payloads=30)

    def every_third_is_poor(asked: Asked) -> Does:
        return Does(text=TOO_THIN if asked.number % 3 == 0 else Does().text, delay=0.01)

    with teacher(every_third_is_poor) as server:
        report = scene.run(llm(server.url, concurrency=5), max_rows=7)
        assert (report.accepted, report.stop_reason, report.stop_detail) == (7, "budget", "max_rows 7 is reached")
        assert report.open == 30 - 7 - report.given_up
        report = scene.run(llm(server.url, concurrency=5), max_rows=9)
        assert (report.accepted, report.landed_rows) == (9, 2)
    assert "left to ask" in batch_verdicts(scene.layout)["within_budget"].summary


@pytest.mark.parametrize(
    ("limit", "value", "one"), [("max_cost", 16.3 * COST, COST), ("max_tokens", 12 * TOKENS, TOKENS)]
)
def test_a_budget_is_never_exceeded_not_even_by_requests_under_way(
    tmp_path: Path, limit: str, value: float, one: float
) -> None:
    """Each is let go only when its most expensive end still fits; what earlier runs of the batch spent counts."""
    scene = Scene(tmp_path, payloads=30)
    with teacher(lambda _asked: Does(delay=0.01)) as server:
        report = scene.run(llm(server.url, concurrency=6, max_output_tokens=500), **{limit: value})
        used = report.cost if limit == "max_cost" else report.tokens
        assert (report.stop_reason, f"{limit} " in report.stop_detail) == ("budget", True)
        assert value - 3 * one <= used <= value
        again = scene.run(llm(server.url, concurrency=6, max_output_tokens=500), **{limit: value})
        assert again.requests == report.requests == len(server.asked)


def test_a_budget_exceeded_by_an_earlier_higher_limit_is_reported(scene: Scene) -> None:
    """The check names the limit, and nothing more is asked."""
    with teacher() as server:
        scene.run(llm(server.url))
        scene.run(llm(server.url), sound=False, max_rows=4)
        assert len(server.asked) == 6
    verdict = batch_verdicts(scene.layout)["within_budget"]
    assert not verdict.passed
    assert list(verdict.rows) == [{"limit": "max_rows", "is": 4, "used": 6}]


def test_no_more_requests_are_under_way_than_the_limit(scene: Scene) -> None:
    """And as many are, when there is enough to ask: the first are answered when the fifth is there."""
    fifth = threading.Barrier(5, timeout=20)  # fewer break it: the test fails, and does not hang
    with teacher(lambda asked: Does(before=fifth.wait, delay=0.05) if asked.number <= 5 else Does()) as server:
        scene.run(llm(server.url, concurrency=5))
    assert server.most_under_way == 5


def test_an_answer_that_cannot_be_kept_stops_everything(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """No further answer is paid for; the next run goes on."""
    with teacher(lambda _asked: Does(delay=0.05)) as server:
        with full_disk(monkeypatch, 7), pytest.raises(UserError, match="database or disk is full"):
            scene.run(one_at_a_time(server.url))
        asked = len(server.asked)
        assert 0 < asked < 6
        assert scene.run(llm(server.url)).accepted == 6


def test_an_interrupted_run_has_every_request_in_its_ledger(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """Terminated from the UI, it writes the ledger; requests under way count as interrupted, at their most."""
    real, under_way = batch_module.Batch.run, threading.Event()

    def does(asked: Asked) -> Does:
        return Does() if asked.number < 3 else Does(before=under_way.set if asked.number == 4 else str, delay=2.0)

    async def run(batch: batch_module.Batch) -> Any:
        async def interrupt() -> None:
            await asyncio.to_thread(under_way.wait, 60)
            raise KeyboardInterrupt

        stopper = asyncio.create_task(interrupt())
        try:
            return await real(batch)
        finally:
            stopper.cancel()

    with teacher(does) as server:
        with monkeypatch.context() as patch:
            patch.setattr(batch_module.Batch, "run", run)
            with pytest.raises(KeyboardInterrupt):
                scene.run(llm(server.url, concurrency=2))
        assert scene.outcomes == [*[("accepted", "")] * 2, *[("error", "interrupted")] * 2]
        assert scene.report.estimated_cost > 0
        assert_sound(scene.layout)
        server.does = lambda _asked: Does()
        assert scene.run(llm(server.url)).accepted == 6
    assert max(server.answered[payload(n).concept] for n in (1, 2)) == 1
    assert_sound(scene.layout)


def test_progress_tells_acceptance_cost_and_time_left(tmp_path: Path) -> None:
    """In words."""
    scene = Scene(tmp_path, payloads=8)
    with teacher() as server:
        scene.run(one_at_a_time(server.url))
    assert scene.said[3].startswith("4 of 8 payloads settled, 4 rows accepted (100% of 4 answers), 0 requests without")
    assert ", cost 0.0196, " in scene.said[3]
    assert scene.said[3].endswith(" s left")


def test_artifacts_in_an_object_store_need_a_local_working_folder(scene: Scene) -> None:
    """Nothing can be appended there; nothing is asked before this is said."""
    remote = Layout(UPath("memory://bucket/artifacts"))
    with pytest.raises(UserError, match="set working_folder"):
        working_folder(scene.plan(), remote)
    assert working_folder(scene.plan(working_folder="/tmp/x"), remote) == Path("/tmp/x")
