"""Whatever a server does becomes a reply: none raises, none is taken for an answer that is none."""

import asyncio
import datetime as dt
from dataclasses import replace
from typing import Any
from unittest import mock

import pytest

from po_assets.teacher.client import Fault, Reply, TeacherClient, Usage, retry_after
from po_assets.teacher.settings import TeacherLLM
from po_assets_tests.evaluation.scenes import GOOD
from po_assets_tests.teacher.scenes import KEY
from po_assets_tests.teacher.teacher_server import Does, Teacher, in_turn, teacher

MESSAGES = [{"role": "user", "content": "CONCEPT:\nx"}]


def ask(url: str, key: str = KEY, **changes: Any) -> Reply:
    async def once() -> Reply:
        options: dict[str, Any] = {"base_url": url, "model": "m", "timeout_seconds": 30.0}
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
@pytest.mark.parametrize(
    ("does", "fault"),
    [
        (Does(status=429), Fault("rate limited (429)", again=True, free=True)),
        (Does(status=503), Fault("server error (503)", again=True, free=True)),
        (Does(status=400), Fault("request refused (400)", free=True)),
        (Does(status=401), Fault("key refused (401)", stops=True, free=True)),
        (Does(status=403), Fault("not permitted (403)", stops=True, free=True)),
        (Does(status=404), Fault("no such model or address (404)", stops=True, free=True)),
        (
            Does(status=429, error={"message": "m", "code": "insufficient_quota"}),
            Fault("account without credit", stops=True, free=True),
        ),
        (Does(cut_after=300), Fault("connection lost", cut=True, again=True)),
        (Does(cut_after=0), Fault("connection lost", cut=True, again=True)),
        (Does(raw=b"<html>Bad gateway</html>"), Fault("not a chat completion", again=True)),
        (Does(raw=b'{"choices": null}'), Fault("not a chat completion", again=True)),
        (Does(raw=b'{"choices": [{"message": 3}]}'), Fault("not a chat completion", again=True)),
        (Does(raw=b"[1, 2]"), Fault("not a chat completion", again=True)),
        (Does(raw=b""), Fault("not a chat completion", again=True)),
        (Does(raw=b'{"error": {"message": "x"}}'), Fault("server error in the answer", cut=True, again=True)),
        (Does(raw=b'{"error": "x"}'), Fault("server error in the answer", cut=True, again=True)),
        (Does(delay=1.0), Fault("time-out", again=True)),
    ],
)
def test_every_misbehaviour_is_a_fault_with_a_name(stream: bool, does: Does, fault: Fault) -> None:
    """It says whether asking again may help, whether anything else would, and whether it may have cost something."""
    found = reply_to(does, stream=stream, timeout_seconds=0.4 if does.delay else 30.0)[0].fault
    assert found
    assert replace(found, detail="") == fault


def test_a_server_that_is_not_there_is_no_connection_and_costs_nothing() -> None:
    """The port was free a moment ago."""
    with teacher() as server:
        url = server.url
    assert replace(ask(url).fault, detail="") == Fault("no connection", again=True, free=True)


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


@pytest.mark.parametrize(
    ("key", "settings", "kind"),
    [
        (f"{KEY}\n", {}, "LocalProtocolError"),
        (f"{KEY}\n{KEY}", {}, "LocalProtocolError"),
        (f"{KEY}ü", {}, "ascii"),
        (KEY, {"extra_body": {"note": "\ud800"}}, "surrogates"),
    ],
)
def test_what_cannot_be_sent_stops_the_batch_and_costs_nothing(key: str, settings: Any, kind: str) -> None:
    """HTTP refuses a header before a byte has left, and quotes it with escapes; half a character pair fits no request."""
    with teacher() as server:
        fault = ask(server.url, key, **settings).fault
    assert replace(fault, detail="") == Fault("request cannot be sent", stops=True, free=True)
    assert kind in fault.detail
    assert KEY not in fault.detail
    assert not server.asked


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


@pytest.mark.parametrize(
    ("stream", "usage", "bill"),
    [
        (False, '{"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 40}', Usage(10, 30)),
        (True, "null", None),
    ],
)
def test_an_answer_that_is_not_as_asked_for_is_an_answer(stream: bool, usage: str, bill: Usage | None) -> None:
    """Thinking that only the total tells is charged (Gemini); a server that does not stream has answered all the same."""
    body = f'{{"choices":[{{"message":{{"content":"x"}},"finish_reason":"stop"}}],"usage":{usage}}}'
    assert reply_to(Does(raw=body.encode()), stream=stream)[0] == Reply("x", "stop", usage=bill)


def test_retry_after_is_read_in_all_its_forms() -> None:
    """Seconds, milliseconds, a date; nonsense is no wait."""
    soon = (dt.datetime.now(dt.UTC) + dt.timedelta(seconds=30)).strftime("%a, %d %b %Y %H:%M:%S GMT")
    assert retry_after({"retry-after": "2.5"}) == 2.5
    assert retry_after({"retry-after-ms": "1500", "retry-after": "9"}) == 1.5
    assert 25 < (retry_after({"retry-after": soon}) or 0) <= 30
    for nonsense in ({}, {"retry-after": "soon"}, {"retry-after": "-3"}, {"retry-after": "inf"}):
        assert retry_after(nonsense) is None
