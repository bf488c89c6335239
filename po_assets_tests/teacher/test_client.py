"""Whatever a server does becomes a reply: none raises, none is taken for an answer that is none."""

import asyncio
import datetime as dt
from typing import Any
from unittest import mock

import pytest

from po_assets.teacher.client import Reply, TeacherClient, Usage, retry_after
from po_assets.teacher.settings import TeacherLLM
from po_assets_tests.evaluation.scenes import GOOD
from po_assets_tests.teacher.scenes import KEY
from po_assets_tests.teacher.teacher_server import COMPLETION_TOKENS, PROMPT_TOKENS, Does, Teacher, in_turn, teacher

MESSAGES = [{"role": "user", "content": "CONCEPT:\nx"}]


def ask(url: str, key: str = KEY, **changes: Any) -> Reply:
    async def once() -> Reply:
        options: dict[str, Any] = {"base_url": url, "model": "m", "timeout_seconds": 5.0}
        with mock.patch.object(TeacherLLM, "api_key", key):
            client = TeacherClient(TeacherLLM(**(options | changes)))
        try:
            return await client.ask(MESSAGES)
        finally:
            await client.close()

    return asyncio.run(once())


def reply_to(does: Does, **changes: Any) -> tuple[Reply, Teacher]:
    with teacher(lambda _asked: does) as server:
        return ask(server.url, **changes), server


@pytest.mark.parametrize("stream", [True, False])
def test_a_whole_answer_comes_with_its_bill(stream: bool) -> None:
    """Streamed or in one piece."""
    reply, server = reply_to(Does(), stream=stream)
    assert reply == Reply(GOOD, "stop", "", "served-model", Usage(PROMPT_TOKENS, COMPLETION_TOKENS))
    assert server.asked[0].headers["authorization"] == f"Bearer {KEY}"


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize(
    ("does", "reason", "cut", "again", "free"),
    [
        (Does(status=429), "rate limited (429)", False, True, True),
        (Does(status=500), "server error (500)", False, True, True),
        (Does(status=503), "server error (503)", False, True, True),
        (Does(status=400), "request refused (400)", False, False, True),
        (Does(cut_after=300), "connection lost", True, True, False),
        (Does(cut_after=0), "connection lost", True, True, False),
        (Does(raw=b"<html>Bad gateway</html>"), "not a chat completion", False, True, False),
        (Does(raw=b'{"choices": null}'), "not a chat completion", False, True, False),
        (Does(raw=b'{"choices": [{"message": 3}]}'), "not a chat completion", False, True, False),
        (Does(raw=b"[1, 2]"), "not a chat completion", False, True, False),
        (Does(raw=b""), "not a chat completion", False, True, False),
        (Does(delay=1.0), "time-out", False, True, False),
    ],
)
def test_every_misbehaviour_is_a_fault_with_a_name(  # noqa: PLR0917
    stream: bool, does: Does, reason: str, cut: bool, again: bool, free: bool
) -> None:
    """It says whether asking again may help, and whether it may have cost something."""
    reply, _ = reply_to(does, stream=stream, timeout_seconds=0.4)
    assert reply.fault
    assert (reply.fault.reason, reply.fault.cut, reply.fault.again, reply.fault.free) == (reason, cut, again, free)
    assert not reply.fault.stops


@pytest.mark.parametrize(
    ("does", "reason"),
    [
        (Does(status=401), "key refused (401)"),
        (Does(status=403), "not permitted (403)"),
        (Does(status=404), "no such model or address (404)"),
        (Does(status=429, error={"message": "m", "code": "insufficient_quota"}), "account without credit"),
    ],
)
def test_what_no_other_payload_would_change_stops_the_batch(does: Does, reason: str) -> None:
    """Asking on would be refused in the same way."""
    fault = reply_to(does)[0].fault
    assert (fault.reason, fault.stops, fault.again) == (reason, True, False)


def test_a_server_that_is_not_there_is_no_connection_and_costs_nothing() -> None:
    """The port was free a moment ago."""
    with teacher() as server:
        url = server.url
    fault = ask(url).fault
    assert (fault.reason, fault.again, fault.free) == ("no connection", True, True)


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_no_prompt_is_carried_to_another_host(status: int) -> None:
    """Nor the key: the server's word for where to go is not the user's."""
    with teacher() as elsewhere:
        there = {"location": f"{elsewhere.url}/chat/completions"}
        fault = reply_to(Does(status=status, headers=there))[0].fault
    assert (fault.reason, fault.stops, fault.again) == ("redirected elsewhere", True, False)
    origin = elsewhere.url.removesuffix("/v1")
    assert f"redirects to {origin}, where the prompt is not carried; set base_url to that address" in fault.detail
    assert not elsewhere.asked


def test_a_redirect_at_the_same_host_is_followed() -> None:
    """Such as to another path."""
    moved = Does(status=308, headers={"location": "/v2/chat/completions"})
    with teacher(in_turn(moved)) as server:
        assert ask(server.url).text == GOOD
        assert len(server.asked) == 2


def test_the_key_is_taken_out_of_what_servers_say() -> None:
    """Some repeat it in their error messages."""
    fault = reply_to(Does(status=401, error={"message": f"Incorrect API key: {KEY}", "code": "x"}))[0].fault
    assert "[key]" in fault.detail
    assert KEY not in fault.detail


@pytest.mark.parametrize(
    ("key", "kind"), [(f"{KEY}\n", "LocalProtocolError"), (f"{KEY}\n{KEY}", "LocalProtocolError"), (f"{KEY}ü", "ascii")]
)
def test_what_cannot_be_sent_stops_the_batch_and_costs_nothing(key: str, kind: str) -> None:
    """HTTP refuses the header before a byte has left, and quotes it as Python writes it, with escapes."""
    with teacher() as server:
        fault = ask(server.url, key).fault
    assert (fault.reason, fault.stops, fault.again, fault.cut) == ("request cannot be sent", True, False, False)
    assert fault.free
    assert kind in fault.detail
    assert KEY not in fault.detail
    assert not server.asked


def test_an_instruction_that_no_request_can_hold_stops_the_batch() -> None:
    """Half a character pair: every request has it."""
    fault = ask("http://127.0.0.1:9/v1", extra_body={"note": "\ud800"}).fault
    assert (fault.reason, fault.stops, fault.free) == ("request cannot be sent", True, True)


@pytest.mark.parametrize("stream", [True, False])
def test_refusals_and_finish_reasons_are_kept(stream: bool) -> None:
    """They are answers, not faults."""
    reply, _ = reply_to(Does(text="", refusal="I will not."), stream=stream)
    assert (reply.fault, reply.refusal) == (None, "I will not.")
    reply, _ = reply_to(Does(finish_reason="length"), stream=stream)
    assert (reply.fault, reply.finish_reason) == (None, "length")


def test_what_is_set_is_sent_and_nothing_else() -> None:
    """Some servers refuse a temperature or one of the two names of the token limit."""
    with teacher() as server:
        ask(server.url, stream=False, max_output_tokens=77)
        ask(
            server.url,
            temperature=0.3,
            token_limit_parameter="max_completion_tokens",
            extra_body={"reasoning_effort": "low"},
        )
    plain, full = (asked.body for asked in server.asked)
    assert plain == {"model": "m", "messages": MESSAGES, "max_tokens": 77}
    assert full["max_completion_tokens"] == 4096
    assert (full["temperature"], full["reasoning_effort"]) == (0.3, "low")
    assert full["stream_options"] == {"include_usage": True}


def test_thinking_that_only_the_total_tells_is_charged() -> None:
    """Gemini's compatible endpoint leaves it out of completion_tokens."""
    body = b'{"choices":[{"message":{"content":"x"},"finish_reason":"stop"}],"usage":{"prompt_tokens":10,"completion_tokens":5,"total_tokens":40}}'
    assert reply_to(Does(raw=body), stream=False)[0].usage == Usage(10, 30)


def test_a_server_that_does_not_stream_has_answered_all_the_same() -> None:
    """The answer is paid for."""
    body = b'{"choices":[{"message":{"content":"x"},"finish_reason":"stop"}]}'
    assert reply_to(Does(raw=body), stream=True)[0] == Reply("x", "stop")


@pytest.mark.parametrize("error", [b'{"message": "overloaded"}', b'"overloaded"'])
def test_an_error_under_status_200_is_an_error(error: bytes) -> None:
    """Servers report so what happens after a stream has begun."""
    fault = reply_to(Does(raw=b'{"error": %s}' % error))[0].fault
    assert (fault.reason, fault.detail, fault.again) == ("server error in the answer", "overloaded", True)


def test_retry_after_is_read_in_all_its_forms() -> None:
    """Seconds, milliseconds, a date; nonsense is no wait."""
    soon = (dt.datetime.now(dt.UTC) + dt.timedelta(seconds=30)).strftime("%a, %d %b %Y %H:%M:%S GMT")
    assert retry_after({"retry-after": "2.5"}) == 2.5
    assert retry_after({"retry-after-ms": "1500", "retry-after": "9"}) == 1.5
    assert 25 < (retry_after({"retry-after": soon}) or 0) <= 30
    for nonsense in ({}, {"retry-after": "soon"}, {"retry-after": "-3"}, {"retry-after": "inf"}):
        assert retry_after(nonsense) is None
