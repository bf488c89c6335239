"""Whatever a server does becomes a reply: none raises, none is taken for an answer that is none."""

import asyncio
import datetime as dt
import json
from dataclasses import replace
from typing import Any
from unittest import mock

import openai
import pytest

from po_assets.errors import UserError
from po_assets.teacher.client import Fault, Reply, TeacherClient, Usage, retry_after
from po_assets.teacher.settings import TeacherLLM
from po_assets_tests.evaluation.scenes import GOOD
from po_assets_tests.teacher.scenes import KEY
from po_assets_tests.teacher.teacher_server import Does, Handler, Teacher, in_turn, listening, teacher

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
        (Does(status=402), Fault("account without credit (402)", stops=True, free=True)),
        (Does(status=403), Fault("request refused (403)", free=True)),
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
        (
            Does(raw=b'{"error": {"message": "x", "code": 429}}'),
            Fault("rate limited (429)", again=True, free=True),
        ),
        (
            Does(raw=b'{"error": {"message": "x", "code": "insufficient_quota"}}'),
            Fault("account without credit", stops=True, free=True),
        ),
        (
            Does(raw=b'{"choices": [{"error": {"message": "x", "code": 502}, "finish_reason": "error"}]}'),
            Fault("server error (502)", again=True, free=True),
        ),
        *(
            (Does(finish_reason=reason), Fault("ended early", cut=True, again=True))
            for reason in ("error", "abort", "insufficient_system_resource")
        ),
        (
            Does(
                raw=b'data: {"choices": [{"delta": {"content": "x"}}]}\n\ndata: {"error": {"code": 502}}\n\n',
                headers={"content-type": "text/event-stream"},
            ),
            Fault("server error in the answer", cut=True, again=True),
        ),
        (Does(delay=1.0), Fault("time-out", again=True)),
    ],
)
def test_every_misbehaviour_is_a_fault_with_a_name(stream: bool, does: Does, fault: Fault) -> None:
    """It says whether asking again may help, whether anything else would, and whether it may have cost something."""
    found = reply_to(does, stream=stream, timeout_seconds=0.4 if does.delay else 30.0)[0].fault
    assert found
    assert replace(found, detail="") == fault


def test_what_is_no_json_is_shown() -> None:
    """Such as the page of another program at that address."""
    fault = reply_to(Does(raw=b"<title>Some web page</title>"))[0].fault
    assert fault.detail == "no JSON came: '<title>Some web page</title>'"


def test_a_certificate_that_is_not_trusted_stops_the_batch_with_the_way_out() -> None:
    """No other payload would be sent to such a server."""
    error = openai.APIConnectionError(request=mock.Mock())
    error.__cause__ = type("ConnectError", (Exception,), {})("[SSL: CERTIFICATE_VERIFY_FAILED] self-signed certificate")
    with mock.patch.object(TeacherLLM, "api_key", KEY):
        fault = TeacherClient(TeacherLLM(base_url="https://127.0.0.1/v1")).fault_of(error)
    assert replace(fault, detail="") == Fault("certificate refused", stops=True, free=True)
    assert fault.detail.endswith("self-signed certificate; SSL_CERT_FILE names a file with certificates of your own")


def test_a_proxy_that_refuses_is_no_connection_and_costs_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """The teacher never saw the request."""

    class Proxy(Handler):
        def do_CONNECT(self) -> None:  # noqa: N802 - named by http.server
            self.reply({}, 407)

    with listening(Proxy) as url:
        monkeypatch.setenv("HTTPS_PROXY", url)
        fault = ask("https://teacher.example/v1").fault
    assert replace(fault, detail="") == Fault("no connection", again=True, free=True)


def test_settings_of_the_environment_that_cannot_be_used_are_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    """Before anything is asked."""
    monkeypatch.setenv("SSL_CERT_FILE", "/nowhere")
    with pytest.raises(UserError, match=r"SSL_CERT_FILE and their kin\) cannot be used: .*No such file"):
        ask("http://127.0.0.1:1/v1")


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


@pytest.mark.parametrize(
    ("content", "stream"),
    [
        ("one\u2028two\x85", True),
        (
            [{"type": "thinking", "thinking": []}, {"type": "text", "text": "one"}, {"type": "text", "text": " two"}],
            False,
        ),
    ],
)
def test_an_answer_is_read_whatever_is_in_it(content: Any, stream: bool) -> None:
    """Line separators within a stream's JSON, text in parts beside reasoning (Mistral)."""
    choice = {"delta" if stream else "message": {"content": content}, "finish_reason": "stop"}
    raw, headers = json.dumps({"choices": [choice]}, ensure_ascii=False), {}
    if stream:
        raw, headers = f"data: {raw}\r\n\r\ndata: [DONE]", {"content-type": "text/event-stream"}
    reply = reply_to(Does(raw=raw.encode(), headers=headers), stream=stream)[0]
    assert (reply.text, reply.fault) == (content if stream else "one two", None)


def test_retry_after_is_read_in_all_its_forms() -> None:
    """Seconds, milliseconds, a date; nonsense is no wait."""
    soon = (dt.datetime.now(dt.UTC) + dt.timedelta(seconds=30)).strftime("%a, %d %b %Y %H:%M:%S GMT")
    assert retry_after({"retry-after": "2.5"}) == 2.5
    assert retry_after({"retry-after-ms": "1500", "retry-after": "9"}) == 1.5
    assert 25 < (retry_after({"retry-after": soon}) or 0) <= 30
    for nonsense in ({}, {"retry-after": "soon"}, {"retry-after": "-3"}, {"retry-after": "inf"}):
        assert retry_after(nonsense) is None
