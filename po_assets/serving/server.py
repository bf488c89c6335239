"""An OpenAI-compatible server in front of one model: `/v1/chat/completions`, `/v1/models`, `/health`.

One answer is written at a time. It stays on this machine unless a key is set; other hosts' and browsers' requests are
turned away before anything of them is read. What a request may hold belongs to `protocol`, how an answer is written to
`engine`.
"""

import asyncio
import contextlib
import hmac
import ipaddress
import os
import socket
import threading
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import urlsplit

import uvicorn
from starlette.applications import Starlette
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

from po_assets.errors import UserError
from po_assets.serving.engine import Generated, ModelEngine, OnText, Question
from po_assets.serving.protocol import (
    Refused,
    choice,
    error_record,
    event,
    read_question,
    record,
    shown,
    usage,
)

KEY_VARIABLE = "PO_SERVE_KEY"
MAX_BODY_BYTES = 1 << 20
READ_SECONDS = 20.0
"""In which a request must have come, its head and its body each."""
MOST_WAITING = 64
MOST_CONNECTIONS = 512
KEEP_ALIVE_SECONDS = 10.0
"""After so long without a word a comment line keeps a stream open: proxies cut silent ones."""
RENEW_SECONDS = 5.0
"""How often it is asked whether another model is to answer."""
STOPPING_SECONDS = 5
"""In which answers that are being written may come to their end, once the server is to stop."""
_POLL_SECONDS = 0.5


Newer = Callable[[], ModelEngine | None]
"""Loads the model that is to answer from now on; None while that is the one that answers already."""


class _Desk:
    """The queue before the model: one question at a time, in the order in which they came."""

    def __init__(self, engine: ModelEngine) -> None:
        self.engine = engine
        self.closing = threading.Event()
        # A pool of one is a lock that a request which is given up cannot open too early.
        self._one = ThreadPoolExecutor(1, thread_name_prefix="model")
        self._waiting = 0

    def refuse_when_full(self) -> None:
        """Raise `Refused` when too many wait already."""
        if self._waiting >= MOST_WAITING:
            raise Refused(503, f"{MOST_WAITING} questions are waiting already; ask again later.")

    async def answer(
        self, engine: ModelEngine, question: Question, gone: threading.Event, on_text: OnText | None = None
    ) -> Generated:
        """The answer of the engine that prepared the question; stops early when `gone` is set."""

        def tell(piece: str) -> bool:
            return not (gone.is_set() or self.closing.is_set()) and (on_text is None or on_text(piece))

        def generate() -> Generated:
            if gone.is_set() or self.closing.is_set():
                return Generated("", "stop", 0, 0, 0.0)
            return engine.generate(question, tell)

        self._waiting += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(self._one, generate)
        finally:
            self._waiting -= 1

    async def renew(self, newer: Newer, say: Callable[[str], object]) -> None:
        """Take up another model whenever there is one; one that does not load leaves the present one in its place."""
        while True:
            await asyncio.sleep(RENEW_SECONDS)
            old = self.engine.digest[:12]
            try:
                engine = await asyncio.to_thread(newer)
            except Exception as error:  # noqa: BLE001 - whatever it is, the present model goes on
                say(f"The model that is current now cannot be loaded, {old} goes on answering: {error}")
                continue
            if engine:
                self.engine = engine
                say(f"{engine.name} is now {engine.digest[:12]}; requests that came before end with {old}.")

    def close(self) -> None:
        """End what is being written and take no more."""
        self.closing.set()
        self._one.shutdown(cancel_futures=True)


def make_app(
    engine: ModelEngine,
    *,
    key: str = "",
    any_host: bool = False,
    newer: Newer | None = None,
    say: Callable[[str], object] = lambda _text: None,
) -> ASGIApp:
    """The server as an ASGI application.

    Every request but `/health` must carry the `key`, where there is one; with `any_host` it need not be addressed to a
    name of this machine. `newer` is asked now and then for another engine, of which `say` gets a line.
    """
    desk, started = _Desk(engine), int(time.time())

    async def health(_request: Request) -> Response:
        return JSONResponse({"status": "ok", "model": desk.engine.name, "digest": desk.engine.digest})

    async def models(_request: Request) -> Response:
        served = {"id": desk.engine.name, "object": "model", "created": started, "owned_by": "po-assets"}
        return JSONResponse({"object": "list", "data": [served | {"digest": desk.engine.digest}]})

    async def chat(request: Request) -> Response:
        engine = desk.engine
        asked = read_question(await _body(request), engine.name)
        desk.refuse_when_full()
        question = engine.prepare(asked.turns, asked.sampling)
        if asked.stream:
            events = _events(desk, engine, question, include_usage=asked.stream_options.include_usage)
            return StreamingResponse(events, media_type="text/event-stream", headers={"cache-control": "no-cache"})
        generated = await _unless_gone(request, desk, engine, question)
        message = {"role": "assistant", "content": generated.text}
        answer = {"index": 0, "message": message, "finish_reason": generated.finish_reason}
        head = record("chat.completion", engine.name)
        return JSONResponse(head | {"choices": [answer], "usage": usage(generated)})

    @contextlib.asynccontextmanager
    async def lifespan(_app: Starlette) -> AsyncIterator[None]:
        renewing = asyncio.create_task(desk.renew(newer, say)) if newer else None
        with contextlib.suppress(asyncio.CancelledError):  # by a second Ctrl-C
            yield
        if renewing:
            renewing.cancel()
        desk.close()

    app = Starlette(
        routes=[
            Route("/health", health),
            Route("/v1/models", models),
            Route("/v1/chat/completions", chat, methods=["POST"]),
        ],
        exception_handlers=dict.fromkeys((Refused, UserError, HTTPException, Exception), _as_response),
        lifespan=lifespan,
    )
    return _Guard(app, key=key, any_host=any_host)


async def _body(request: Request) -> bytes:
    """The body, within its limits of size and time."""
    content = b""
    try:
        async with asyncio.timeout(READ_SECONDS):
            async for chunk in request.stream():
                content += chunk
                if len(content) > MAX_BODY_BYTES:
                    raise Refused(413, f"The body is larger than {MAX_BODY_BYTES:,} bytes.")
    except TimeoutError:
        raise Refused(408, f"The body did not come within {READ_SECONDS:g} s.") from None
    return content


async def _unless_gone(request: Request, desk: _Desk, engine: ModelEngine, question: Question) -> Generated:
    """The answer; given up when the client is gone."""
    gone = threading.Event()
    task = asyncio.create_task(desk.answer(engine, question, gone))
    try:
        while not task.done():
            await asyncio.wait([task], timeout=_POLL_SECONDS)
            if not task.done() and await request.is_disconnected():
                gone.set()
    except asyncio.CancelledError:  # by the server, which is being stopped; streams just break off
        raise Refused(503, "The server is being stopped; ask again later.") from None
    return task.result()


async def _events(desk: _Desk, engine: ModelEngine, question: Question, *, include_usage: bool) -> AsyncIterator[bytes]:
    """The answer as server-sent events, piece by piece; a comment line every few seconds while nothing comes."""
    loop, gone = asyncio.get_running_loop(), threading.Event()
    pieces: asyncio.Queue[str | None] = asyncio.Queue()

    def on_text(piece: str) -> bool:
        loop.call_soon_threadsafe(pieces.put_nowait, piece)
        return True

    head = record("chat.completion.chunk", engine.name)
    task = asyncio.create_task(desk.answer(engine, question, gone, on_text))
    task.add_done_callback(lambda _task: pieces.put_nowait(None))
    try:
        yield event(head | choice({"role": "assistant", "content": ""}))
        while True:
            try:
                async with asyncio.timeout(KEEP_ALIVE_SECONDS):
                    piece = await pieces.get()
            except TimeoutError:
                yield b": still writing\n\n"
                continue
            if piece is None:
                break
            yield event(head | choice({"content": piece}))
        try:
            generated = task.result()
        except Exception as error:  # noqa: BLE001 - the stream has begun: it must say how it ends
            yield event(error_record(*_said(error)[1:]))
            return
        yield event(head | choice({}, generated.finish_reason))
        if include_usage:
            yield event(head | {"choices": [], "usage": usage(generated)})
        yield b"data: [DONE]\n\n"
    finally:
        gone.set()


def _said(error: Exception) -> tuple[int, str, str | None]:
    """Status, sentence and code of an error."""
    if isinstance(error, Refused):
        return error.status, error.message, error.code
    if isinstance(error, UserError):
        return 400, str(error), None
    if isinstance(error, HTTPException):
        served = "this server answers POST /v1/chat/completions, GET /v1/models and GET /health."
        return error.status_code, f"{error.detail}: {served}", None
    return 500, f"The model failed: {type(error).__name__}: {str(error)[:300]}", None


def _refusal(status: int, message: str, code: str | None = None) -> Response:
    # What is left of a body that was not read must not pass for the next request.
    return JSONResponse(error_record(message, code), status_code=status, headers={"connection": "close"})


async def _as_response(_request: Request, error: Exception) -> Response:
    return _refusal(*_said(error))


class _Guard:
    """Turns away what no client of this server sends, before anything of the body is read."""

    def __init__(self, app: ASGIApp, *, key: str, any_host: bool) -> None:
        self._app, self._key, self._any_host = app, key, any_host

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        refusal = self._refusal(scope, Headers(scope=scope)) if scope["type"] == "http" else None
        await (refusal or self._app)(scope, receive, send)

    def _refusal(self, scope: Scope, headers: Headers) -> Response | None:
        host, origin = headers.get("host", ""), headers.get("origin")
        if not self._any_host and not is_loopback(_name(f"//{host}")):
            # A page of another site whose name was made to mean this machine.
            return _refusal(403, f"The host {shown(host)} is not this machine; ask http://127.0.0.1.")
        if origin is not None and origin.partition("//")[2].lower() != host.lower():
            return _refusal(403, f"The origin {shown(origin)} is another site; pages of other sites may not ask.")
        if self._key and scope["path"] != "/health":
            kind, _, given = headers.get("authorization", "").partition(" ")
            # Bytes against bytes: a header's are read as Latin-1, whatever they are.
            if kind.lower() != "bearer" or not hmac.compare_digest(given.strip().encode("latin-1"), self._key.encode()):
                return _refusal(401, f"The key is missing or wrong; send the one of {KEY_VARIABLE} as bearer token.")
        if (
            scope["method"] == "POST"
            and headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json"
        ):
            return _refusal(
                415, f"The content type is {shown(headers.get('content-type', ''))}; send application/json."
            )
        return None


def _name(url: str) -> str:
    try:
        return urlsplit(url).hostname or ""
    except ValueError:
        return ""


def is_loopback(host: str) -> bool:
    """Whether a name or address is this machine's own."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


class _Impatient(H11Protocol):
    """Closes a connection whose request's head does not come: uvicorn waits for it without end."""

    _alarm: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._watch()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._watch()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop()
        super().connection_lost(exc)

    def _watch(self) -> None:
        if self.cycle is not None and not self.cycle.response_complete:
            self._stop()
        elif self._alarm is None:
            self._alarm = self.loop.call_later(READ_SECONDS, self.transport.close)

    def _stop(self) -> None:
        if self._alarm is not None:
            self._alarm.cancel()
            self._alarm = None


def listen(host: str, port: int) -> socket.socket:
    """A listening socket; port 0 takes a free one. Raises `UserError` if the address cannot be had."""
    try:
        return socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except (OSError, OverflowError) as error:
        number = getattr(error, "errno", None)
        reason = os.strerror(number) if number and number > 0 else str(error).rstrip(".")
        raise UserError(
            f"The server cannot listen at {host}:{port} ({reason}). Take another port with --port (0 takes a free "
            "one), or end what listens there."
        ) from error


def free_port(port: int) -> int:
    """The port, or for 0 a free one, at which nobody on this machine listens now. Raises `UserError` as `listen`."""
    with listen("127.0.0.1", port) as listening:
        return int(listening.getsockname()[1])


def serve(
    engine: ModelEngine,
    listening: socket.socket,
    *,
    key: str,
    say: Callable[[str], object],
    newer: Newer | None = None,
) -> None:
    """Serve until interrupted; `newer` as in `make_app`."""
    host, port = listening.getsockname()[:2]
    app = make_app(engine, key=key, any_host=not is_loopback(host), newer=newer, say=say)
    say(f"{engine.name} answers at http://{f'[{host}]' if ':' in host else host}:{port}/v1")
    config = uvicorn.Config(
        app,
        log_level="warning",
        http=_Impatient,
        ws="none",
        server_header=False,
        limit_concurrency=MOST_CONNECTIONS,
        timeout_keep_alive=30,
        timeout_graceful_shutdown=STOPPING_SECONDS,
    )
    uvicorn.Server(config).run(sockets=[listening])
