"""The server speaks the protocol, refuses what it does not do, and turns away whom it does not serve."""

import contextlib
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import uvicorn
from starlette.testclient import TestClient

from po_assets.errors import UserError
from po_assets.serving import server
from po_assets.serving.engine import Generated, OnText, Sampling, Turn
from po_assets.serving.server import listen, make_app, serve

HELLO = {"messages": [{"role": "user", "content": "Hello"}]}
CHAT = "/v1/chat/completions"
POST = b"POST /v1/chat/completions HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-type: application/json\r\n"
"""The beginning of a request, written by hand."""


class EchoEngine:
    """Answers with the last turn, word by word; `before` is called in front of each word."""

    name = "echo"
    digest = "d" * 64

    def __init__(self, before: Callable[[], None] = lambda: None) -> None:
        self.asked: list[tuple[Sequence[Turn], Sampling]] = []
        self.written: list[str] = []
        self.most_at_once = self._at_once = 0
        self._before = before

    def prepare(self, turns: Sequence[Turn], sampling: Sampling) -> str:
        """The words to say again."""
        if turns[-1]["content"] == "too long":
            raise UserError("The prompt has 9 tokens; that is more than the model's context of 8.")
        self.asked.append((turns, sampling))
        return turns[-1]["content"]

    def generate(self, question: str, on_text: OnText | None = None) -> Generated:
        """Say them."""
        self._at_once += 1
        self.most_at_once = max(self.most_at_once, self._at_once)
        said = []
        for word in question.split():
            self._before()
            if word == "crash":
                raise RuntimeError("boom")
            said.append(f"{word} ")
            self.written.append(word)
            if on_text and not on_text(said[-1]):
                break
        self._at_once -= 1
        return Generated("".join(said), "stop", 3, len(said), 0.1)


def client(engine: EchoEngine | None = None, **options: Any) -> TestClient:
    app = make_app(engine or EchoEngine(), **options)
    return TestClient(app, base_url="http://127.0.0.1:8001", raise_server_exceptions=False)


def asking(content: str, **fields: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": content}], **fields}


def events(text: str) -> list[Any]:
    lines = [line.removeprefix("data: ") for line in text.splitlines() if line.startswith("data: ")]
    return [line if line == "[DONE]" else json.loads(line) for line in lines]


def test_models_and_health_name_what_is_served() -> None:
    """As clients ask before they begin."""
    assert client().get("/health").json() == {"status": "ok", "model": "echo", "digest": "d" * 64}
    (served,) = client().get("/v1/models").json()["data"]
    assert (served.pop("created") <= time.time(), served) == (
        True,
        {"id": "echo", "object": "model", "owned_by": "po-assets", "digest": "d" * 64},
    )


def test_an_answer_comes_whole_with_its_tokens() -> None:
    """In the shape of a chat completion."""
    body = client().post(CHAT, json=asking("one two", model="echo")).json()
    assert body["object"] == "chat.completion"
    assert body["choices"] == [
        {"index": 0, "message": {"role": "assistant", "content": "one two "}, "finish_reason": "stop"}
    ]
    assert body["usage"] == {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}


def test_a_stream_brings_the_answer_in_pieces_and_its_end() -> None:
    """Usage only when it is asked for."""
    response = client().post(CHAT, json=asking("one two", stream=True, stream_options={"include_usage": True}))
    assert response.headers["content-type"].startswith("text/event-stream")
    *chunks, finish, usage, end = events(response.text)
    assert [chunk["choices"][0]["delta"].get("content") for chunk in chunks] == ["", "one ", "two "]
    assert {chunk["object"] for chunk in chunks} == {"chat.completion.chunk"}
    assert finish["choices"][0] == {"index": 0, "delta": {}, "finish_reason": "stop"}
    assert (usage["usage"]["total_tokens"], end) == (5, "[DONE]")
    assert len(events(client().post(CHAT, json=asking("one two", stream=True)).text)) == 5


def test_a_silent_stream_is_kept_open_by_comments(monkeypatch: pytest.MonkeyPatch) -> None:
    """Proxies cut one that says nothing for a minute, as while others are answered first."""
    monkeypatch.setattr(server, "KEEP_ALIVE_SECONDS", 0.02)
    text = client(EchoEngine(lambda: time.sleep(0.2))).post(CHAT, json=asking("one two", stream=True)).text
    assert ": still writing\n\n" in text
    assert [event["choices"][0]["delta"].get("content") for event in events(text)[:3]] == ["", "one ", "two "]


def test_what_is_asked_reaches_the_engine() -> None:
    """Both names of the token limit, a stop as text or list, parts of text, null for what is not set."""
    engine = EchoEngine()
    parts = [{"type": "text", "text": "one "}, {"type": "text", "text": "two"}]
    messages = [
        {"role": "developer", "content": "Be brief."},
        {"role": "user", "content": "one", "name": "planner"},
        {"role": "assistant", "content": "one", "name": None, "tool_calls": []},
        {"role": "user", "content": parts},
    ]
    options = {"max_completion_tokens": 7, "temperature": 1, "top_p": 0.5, "seed": 3, "stop": ["x", "y"], "n": 1}
    assert client(engine).post(CHAT, json={"messages": messages, "tools": None, "user": "me", **options}).is_success
    assert client(engine).post(CHAT, json=asking("a", stop="x", max_tokens=1)).is_success
    (turns, sampling), (_, other) = engine.asked
    assert [(turn["role"], turn["content"]) for turn in turns] == [
        *(("system", "Be brief."), ("user", "one"), ("assistant", "one"), ("user", "one two")),
    ]
    assert sampling == Sampling(7, 1.0, 0.5, 3, ("x", "y"))
    assert other == Sampling(1, stop=("x",))


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"n": 2}, "n is 2, which this server does not do"),
        ({"tools": [{"type": "function"}]}, "tools is [{'type': 'function'}], which this server does not do"),
        ({"logprobs": True}, "logprobs is True, which this server does not do"),
        ({"response_format": {"type": "json_object"}}, "response_format is {'type': 'json_object'}, which"),
        ({"presence_penalty": 0.5}, "presence_penalty is 0.5, which this server does not do"),
        ({"guided_json": {}}, "'guided_json' is not a field that this server knows"),
        ({"max_tokens": 0}, "max_tokens is 0: input should be greater than or equal to 1"),
        ({"max_tokens": "9"}, "max_tokens is '9': input should be a valid integer"),
        ({"max_tokens": 3, "max_completion_tokens": 4}, "max_tokens and max_completion_tokens differ"),
        ({"temperature": -1}, "temperature is -1: input should be greater"),
        ({"stream": "yes"}, "stream is 'yes': input should be a valid boolean"),
        ({"stop": ["a"] * 5}, "stop is "),
        ({"stop": ""}, "stop is ''"),
        ({"messages": []}, "messages is []"),
        ({"messages": "Hello"}, "messages is 'Hello'"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages.0.role is 'tool'; this server knows 'system'"),
        ({"messages": [{"role": "user"}]}, "messages.0.content is missing"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]},
            "messages.0.content.0.",
        ),
        ({"messages": [{"role": "assistant", "content": "I"}]}, "The last message must be the user's"),
        ({"messages": [{"role": "user", "content": "too long"}]}, "more than the model's context of 8"),
        ({"messages": [{"role": "user", "content": "half \ud800"}]}, "cannot be read as JSON"),
        (b"[1]", "The body must be a JSON object."),
        (b'{"seed": ' + b"9" * 5000 + b"}", "cannot be read as JSON"),
        *(
            (content, "cannot be read as JSON")
            for content in (
                *(b"", b"{", b"\xff", b'{"temperature": 1e999}', b'{"temperature": NaN}', b'{"seed": -Infinity}'),
                *(b"[" * 100_000, b'{"messages": ' + b"[" * 100_000),
            )
        ),
    ],
    ids=lambda value: repr(value)[:20],
)
def test_what_it_does_not_do_or_cannot_read_is_refused_with_a_sentence(
    fields: dict[str, Any] | bytes, said: str
) -> None:
    """Never ignored: whoever asks for it would take the answer for something else. Odd JSON crashes nothing."""
    content = fields if isinstance(fields, bytes) else json.dumps({**HELLO, **fields})
    response = client().post(CHAT, content=content, headers={"content-type": "application/json"})
    assert response.status_code == 400
    assert said in response.json()["error"]["message"]


def test_another_model_path_or_method_is_refused() -> None:
    """With what there is."""
    asked = client()
    wrong = asked.post(CHAT, json={**HELLO, "model": "gpt-5"})
    assert (wrong.status_code, wrong.json()["error"]["code"]) == (404, "model_not_found")
    assert "'echo' is" in wrong.json()["error"]["message"]
    assert asked.get(CHAT).status_code == 405
    text = asked.post("/v1/completions", json={"prompt": "x"})
    assert (text.status_code, "answers POST /v1/chat/completions" in text.text) == (404, True)


def test_a_failing_model_is_a_500_and_the_server_goes_on() -> None:
    """In a stream it is an event."""
    with client() as asked:
        failed = asked.post(CHAT, json=asking("crash"))
        assert failed.status_code == 500
        assert failed.json()["error"]["message"] == "The model failed: RuntimeError: boom"
        *_, last = events(asked.post(CHAT, json=asking("one crash", stream=True)).text)
        assert last["error"]["message"] == "The model failed: RuntimeError: boom"
        assert asked.post(CHAT, json=HELLO).is_success


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"host": "evil.example"}, 403),
        ({"host": "127.0.0.1.evil.example"}, 403),
        ({"host": ""}, 403),
        ({"host": "localhost:8001"}, 200),
        ({"host": "[::1]:8001"}, 200),
        ({"origin": "http://evil.example"}, 403),
        ({"origin": "null"}, 403),
        ({"origin": "http://[x"}, 403),
        ({"host": "[x"}, 403),
        ({"origin": "http://127.0.0.1:8001"}, 200),
        ({"content-type": "text/plain"}, 415),
        ({"content-type": ""}, 415),
        ({"content-type": "Application/JSON; charset=utf-8"}, 200),
    ],
)
def test_other_sites_cannot_ask_through_a_browser(headers: dict[str, str], status: int) -> None:
    """By a name that was made to mean this machine, a page's script, or a form."""
    response = client().post(CHAT, content=json.dumps(HELLO), headers={"content-type": "application/json", **headers})
    assert response.status_code == status


def test_with_a_key_only_who_has_it_may_ask() -> None:
    """A key may have any letters. But health may be asked by whoever watches over it, and by any name."""
    asked = client(key="schlüssel", any_host=True)
    assert asked.get("/health", headers={"host": "student.example"}).status_code == 200
    assert asked.post(CHAT, json=HELLO).status_code == 401
    for given, status in (
        ("Bearer schlüssel", 200),
        ("bearer schlüssel", 200),
        ("Bearer wrong", 401),
        ("Bearer ", 401),
        ("Bearer schlässel", 401),
    ):
        response = asked.post(CHAT, json=HELLO, headers={b"authorization": given.encode()})
        assert response.status_code == status, given
    assert asked.post(CHAT, json=HELLO, headers={b"authorization": b"Bearer \xff"}).status_code == 401


def test_a_large_body_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    """Before it fills the memory."""
    monkeypatch.setattr(server, "MAX_BODY_BYTES", 1000)
    assert client().post(CHAT, json=asking("x" * 2000)).status_code == 413


@contextlib.contextmanager
def running(engine: EchoEngine, *, forced: bool = False) -> Iterator[int]:
    """A real server; its port. It is `forced` to end as by a second Ctrl-C."""
    made: list[uvicorn.Server] = []
    said: list[str] = []
    real = uvicorn.Server.run
    with pytest.MonkeyPatch.context() as patch, listen("127.0.0.1", 0) as listening, ThreadPoolExecutor(1) as thread:
        patch.setattr(uvicorn.Server, "run", lambda self, **options: made.append(self) or real(self, **options))
        serving = thread.submit(serve, engine, listening, key="", say=said.append)
        port = listening.getsockname()[1]
        try:
            yield port
            assert said == [f"echo answers at http://127.0.0.1:{port}/v1"]
        finally:
            made[0].should_exit, made[0].force_exit = True, forced
            serving.result(20)


def exchange(port: int, *pieces: bytes, wait: float = 10.0) -> bytes:
    """What the server says to these bytes until it closes the connection."""
    with socket.create_connection(("127.0.0.1", port), timeout=wait) as connection:
        for piece in pieces:
            connection.sendall(piece)
        answer = b""
        while piece := connection.recv(65536):
            answer += piece
        return answer


def test_slow_clients_are_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether the head or the body does not come, also after a first request; others are served meanwhile."""
    monkeypatch.setattr(server, "READ_SECONDS", 0.4)
    first = b"GET /health HTTP/1.1\r\nhost: 127.0.0.1\r\n"
    with running(EchoEngine()) as port:
        assert exchange(port, b"") == b""
        assert exchange(port, POST) == b""
        assert exchange(port, first + b"\r\n", POST).startswith(b"HTTP/1.1 200")
        assert exchange(port, POST + b"content-length: 10\r\n\r\n{").startswith(b"HTTP/1.1 408")
        half_open = [socket.create_connection(("127.0.0.1", port), timeout=10) for _ in range(100)]
        assert exchange(port, first + b"connection: close\r\n\r\n").startswith(b"HTTP/1.1 200")
        for connection in half_open:
            assert connection.recv(1) == b""
            connection.close()


def test_one_answer_is_written_at_a_time_and_a_client_that_leaves_ends_its_own() -> None:
    """Nobody waits for what nobody reads."""
    engine = EchoEngine(before=lambda: time.sleep(0.05))

    def post(content: str, **fields: Any) -> bytes:
        body = json.dumps(asking(content, **fields)).encode()
        return POST + b"connection: close\r\ncontent-length: %d\r\n\r\n" % len(body) + body

    with running(engine) as port:
        with socket.create_connection(("127.0.0.1", port)) as leaving:
            leaving.sendall(post("left " * 400, stream=True))
            assert leaving.recv(10).startswith(b"HTTP/1.1")
        with ThreadPoolExecutor(3) as clients:
            list(clients.map(exchange, [port] * 3, [post("short")] * 3))
    assert engine.written.count("short") == 3
    assert engine.written.count("left") < 400
    assert engine.most_at_once == 1


def test_a_server_that_is_stopped_tells_who_waits_without_a_traceback(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """After the few seconds in which answers may come to their end."""
    monkeypatch.setattr(server, "STOPPING_SECONDS", 0.2)
    body = json.dumps(asking("word " * 100)).encode()
    request = POST + b"content-length: %d\r\n\r\n" % len(body) + body
    with ThreadPoolExecutor(1) as clients:
        with running(EchoEngine(before=lambda: time.sleep(0.05))) as port:
            waiting = clients.submit(exchange, port, request)
            time.sleep(0.5)
        assert waiting.result().startswith(b"HTTP/1.1 503")
        assert b"The server is being stopped; ask again later." in waiting.result()
    assert "Traceback" not in capsys.readouterr().err


def test_a_second_interrupt_ends_the_answer_that_is_being_written(capsys: pytest.CaptureFixture[str]) -> None:
    """The process would stay for it, and print a traceback."""
    engine = EchoEngine(before=lambda: time.sleep(0.05))
    body = json.dumps(asking("word " * 100)).encode()
    with ThreadPoolExecutor(1) as clients:
        with running(engine, forced=True) as port:
            clients.submit(exchange, port, POST + b"content-length: %d\r\n\r\n" % len(body) + body)
            time.sleep(0.3)
        written = len(engine.written)
        time.sleep(0.3)
        assert 0 < len(engine.written) == written < 100
    assert "Traceback" not in capsys.readouterr().err


def test_a_taken_port_is_one_sentence() -> None:
    """With the way out."""
    with listen("127.0.0.1", 0) as taken, pytest.raises(UserError, match="Take another port with --port"):
        listen("127.0.0.1", taken.getsockname()[1])
    with pytest.raises(UserError, match=r"cannot listen at 127.0.0.1:99999 \(.*0-65535\)\. Take another port"):
        listen("127.0.0.1", 99999)


def test_a_newly_promoted_model_answers_from_the_next_request_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """The request that is being written ends on the old one; one that does not load is told, and the old goes on."""
    monkeypatch.setattr(server, "RENEW_SECONDS", 0.01)
    writing, changed = threading.Event(), threading.Event()
    old = EchoEngine(before=lambda: writing.set() or changed.wait(20))  # type: ignore[func-returns-value]
    new = EchoEngine()
    new.digest = "e" * 64
    coming: list[EchoEngine | Exception] = [UserError("The adapter cannot be used: a file is missing."), new]

    def newer() -> EchoEngine | None:
        one = coming.pop(0) if writing.is_set() and coming else None
        if isinstance(one, Exception):
            raise one
        return one

    said: list[str] = []

    def say(text: str) -> None:
        said.append(text)
        if "is now" in text:
            changed.set()

    with client(old, newer=newer, say=say) as asked:
        assert asked.get("/v1/models").json()["data"][0]["digest"] == "d" * 64
        answer = asked.post(CHAT, json=asking("to the old")).json()
        assert answer["choices"][0]["message"]["content"] == "to the old "
        assert asked.get("/v1/models").json()["data"][0]["digest"] == "e" * 64
        assert asked.post(CHAT, json=asking("to the new")).is_success
    went_on, renewed = said
    assert went_on.endswith(f"{'d' * 12} goes on answering: The adapter cannot be used: a file is missing.")
    assert renewed == f"echo is now {'e' * 12}; requests that came before end with {'d' * 12}."
    assert [(turns[-1]["content"]) for turns, _ in new.asked] == ["to the new"]
