"""An OpenAI-compatible teacher on 127.0.0.1 that misbehaves on demand, and remembers all it was asked.

What it does with a request is decided by a function of the request's number and of what is asked, so that tests script
faults. It charges for every answer it begins to write, as providers do.
"""

import contextlib
import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from po_assets.product_owner import split_prompt
from po_assets_tests.evaluation.scenes import GOOD

PROMPT_TOKENS, COMPLETION_TOKENS = 900, 400
BILL = {"prompt_tokens": PROMPT_TOKENS, "completion_tokens": COMPLETION_TOKENS, "total_tokens": 1300}


@dataclass
class Asked:
    """One request as the server saw it."""

    number: int
    """From 1."""
    concept: str
    body: dict[str, Any]
    headers: dict[str, str]
    at: float
    answered: bool = False
    """A whole answer was handed to the network."""


@dataclass
class Does:
    """What the server does with one request."""

    status: int = 200
    text: str = GOOD
    finish_reason: str = "stop"
    refusal: str | None = None
    headers: dict[str, str] = field(default_factory=dict)
    raw: bytes | None = None
    """Sent as the whole body, under application/json."""
    error: dict[str, Any] | None = None
    cut_after: int | None = None
    """Characters after which the connection is closed."""
    before: Callable[[], object] = lambda: None
    """Called before anything is sent."""
    after: Callable[[], object] = lambda: None
    """Called when everything is sent."""
    delay: float = 0.0


class Teacher:
    """A running server; `asked` holds what came in, in order."""

    def __init__(self, does: Callable[[Asked], Does]) -> None:
        self.asked: list[Asked] = []
        self.does = does
        self.under_way = self.most_under_way = 0
        self.lock = threading.Lock()
        self.url = ""

    @property
    def by_concept(self) -> Counter[str]:
        """Requests for each concept."""
        return Counter(asked.concept for asked in self.asked)

    @property
    def answered(self) -> Counter[str]:
        """Whole answers given to each concept."""
        return Counter(asked.concept for asked in self.asked if asked.answered)


class Handler(BaseHTTPRequestHandler):
    """Reads bodies and sends JSON, without a word."""

    protocol_version = "HTTP/1.1"

    def log_message(self, *_args: Any) -> None:
        """Say nothing."""

    def body(self) -> bytes:
        """What was sent."""
        return self.rfile.read(int(self.headers.get("content-length") or 0))

    def reply(
        self, content: Any, status: int = 200, headers: dict[str, str] | None = None, cut: int | None = None
    ) -> None:
        """Bytes as they are, anything else as JSON; cut off after so many bytes."""
        sent = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        head = {"content-type": "application/json", "content-length": str(len(sent))} | (headers or {})
        for name, value in head.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(sent[:cut])
        self.wfile.flush()
        self.close_connection = cut is not None


@contextlib.contextmanager
def listening(handler: type[BaseHTTPRequestHandler]) -> Iterator[str]:
    """The address of a server of such requests on 127.0.0.1, which ends with the block."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/v1"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@contextlib.contextmanager
def teacher(does: Callable[[Asked], Does] = lambda _asked: Does()) -> Iterator[Teacher]:
    """A teacher that does what `does` says, on a free port."""
    made = Teacher(does)

    class Asking(Handler):
        def do_POST(self) -> None:
            body = json.loads(self.body())
            concept = split_prompt(body["messages"][-1]["content"]).concept or ""
            with made.lock:
                headers = {name.lower(): value for name, value in self.headers.items()}
                asked = Asked(len(made.asked) + 1, concept, body, headers, time.monotonic())
                made.asked.append(asked)
                made.under_way += 1
                made.most_under_way = max(made.most_under_way, made.under_way)
            try:
                self._do(asked, made.does(asked))
            except (BrokenPipeError, ConnectionResetError):
                self.close_connection = True  # the client is gone
            finally:
                with made.lock:
                    made.under_way -= 1

        def _do(self, asked: Asked, does: Does) -> None:
            does.before()
            time.sleep(does.delay)
            if does.status != 200:
                error = does.error or {"message": f"status {does.status}", "code": None}
                self.reply({"error": error}, does.status, does.headers)
            elif does.raw is not None:
                self.reply(does.raw, headers=does.headers)
            elif asked.body.get("stream"):
                self._stream(asked, does)
            else:
                message = {"role": "assistant", "content": does.text, "refusal": does.refusal}
                choice = {"index": 0, "message": message, "finish_reason": does.finish_reason}
                answer = {"object": "chat.completion", "model": "served-model", "choices": [choice], "usage": BILL}
                self.reply(answer, headers=does.headers, cut=does.cut_after)
                asked.answered = does.cut_after is None
            does.after()

        def _stream(self, asked: Asked, does: Does) -> None:
            self.send_response(200)
            self.send_header("content-type", "text/event-stream")
            self.send_header("transfer-encoding", "chunked")
            self.end_headers()
            text = does.text[: does.cut_after]
            for start in range(0, len(text), 200):
                self._event({"choices": [{"index": 0, "delta": {"content": text[start : start + 200]}}]})
            if does.cut_after is not None:
                self.close_connection = True
                return
            delta = {"refusal": does.refusal} if does.refusal else {}
            self._event({"choices": [{"index": 0, "delta": delta, "finish_reason": does.finish_reason}]})
            self._event({"choices": [], "usage": BILL})
            self._chunk(b"data: [DONE]\n\n")
            self._chunk(b"")
            asked.answered = True

        def _event(self, chunk: dict[str, Any]) -> None:
            record = {"object": "chat.completion.chunk", "model": "served-model"} | chunk
            self._chunk(b"data: " + json.dumps(record).encode() + b"\n\n")

        def _chunk(self, content: bytes) -> None:
            self.wfile.write(b"%x\r\n%s\r\n" % (len(content), content))
            self.wfile.flush()

    with listening(Asking) as made.url:
        yield made


def in_turn(*faults: Does) -> Callable[[Asked], Does]:
    """The first requests get these in turn, all later ones a good answer."""
    return lambda asked: faults[asked.number - 1] if asked.number <= len(faults) else Does()
