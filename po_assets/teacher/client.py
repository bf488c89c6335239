"""One request to an OpenAI-compatible endpoint, through the `openai` client; every way it can end becomes a `Reply`.

Nothing is trusted: servers send HTML under status 200, streams without an end, usage without numbers, redirects to
somewhere else. What a reply makes of the journal's attempt is `answered`; retries, pace and budget belong to `batch`.

The client sends, but its objects are not used: making one of every piece of a stream takes it 15 ms an answer, most of
a core at thirty answers a second (`benchmarks/teacher_batch.py`).
"""

import asyncio
import datetime as dt
import json
import math
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, replace
from email.utils import parsedate_to_datetime
from typing import Any, NamedTuple

from po_assets.errors import UserError
from po_assets.teacher.journal import Attempt
from po_assets.teacher.settings import TeacherLLM

BYTES_PER_TOKEN = 2
"""At least, in text of any language with the usual tokenizers; English has 4. What is reserved is an upper bound."""
_DETAIL_CHARACTERS = 300
_REQUEST_TIMEOUT, _CONFLICT, _RATE_LIMITED, _SERVER_ERROR = 408, 409, 429, 500
_USELESS = {401: "key refused", 402: "account without credit", 404: "no such model or address"}
"""What no other payload would change. (403 may be about this one: OpenRouter's moderation answers so.)"""
_OUT_OF_MONEY = "insufficient_quota"
"""OpenAI's code for an account without credit, under 429."""
# Names, because the exception classes are those of httpx or httpx2, as the openai package has it.
_NEVER_ARRIVED = {"ConnectError", "ConnectTimeout", "PoolTimeout", "ProxyError"}
_NEVER_SENT, _NEVER_ENCODED = "LocalProtocolError", "UnicodeEncodeError"
"""Our own side refuses the request, a header above all, before a byte has left."""
_TIME_OUT, _TRANSPORT = "TimeoutException", "TransportError"
_WRONG_CERTIFICATE = "CERTIFICATE_VERIFY_FAILED"
_BROKEN_OFF = {"error", "abort", "insufficient_system_resource"}
"""Finish reasons of answers that are not whole (OpenRouter, vLLM, DeepSeek)."""


class Usage(NamedTuple):
    """Tokens that the server says it charges."""

    prompt: int
    completion: int


@dataclass(frozen=True)
class Fault:
    """Why no whole answer came; `reason` is short, and the same for all of its kind."""

    reason: str
    detail: str = ""
    cut: bool = False  # an answer had begun, or may have
    again: bool = False  # the same request may succeed in a while
    stops: bool = False  # no request can succeed until somebody changes something
    free: bool = False  # turned away before any work; any other counts as the most that the request can cost
    wait: float | None = None  # seconds that the server asks for


@dataclass(frozen=True)
class Reply:
    """What one request brought; `fault` is None when a whole answer came, however bad or short it is."""

    text: str = ""
    finish_reason: str = ""
    refusal: str = ""
    model: str = ""  # as the server names it
    usage: Usage | None = None
    fault: Fault | None = None


class TeacherClient:
    """Asks one endpoint. Close it with `close`; its connections are pooled."""

    def __init__(self, llm: TeacherLLM) -> None:
        from openai import AsyncOpenAI, DefaultAsyncHttpxClient

        self._llm, self._key = llm, llm.api_key
        try:
            http = DefaultAsyncHttpxClient(event_hooks={"response": [_stay_at_this_origin]})
        except (ImportError, OSError, ValueError) as error:
            raise UserError(
                "The proxy or certificates that the environment names (HTTPS_PROXY, ALL_PROXY, SSL_CERT_FILE and their "
                f"kin) cannot be used: {str(error).rstrip('.')}. Set them right or unset them."
            ) from error
        # Retried by us: each request is to have its own row in the ledger.
        options: dict[str, Any] = {"max_retries": 0, "timeout": llm.timeout_seconds, "http_client": http}
        self._client = AsyncOpenAI(base_url=llm.base_url, api_key=self._key, **options)

    async def close(self) -> None:
        """Close the connections."""
        await self._client.close()

    async def ask(self, messages: list[dict[str, str]], name: str = "") -> Reply:  # noqa: ARG002 - for a batch
        """Send one request; whatever happens to it is in the reply. Only cancellation is raised."""
        received = Received()
        try:
            async with asyncio.timeout(self._llm.timeout_seconds):
                await self._send(messages, received)
        except Exception as error:  # noqa: BLE001 - what no server should send still has to end in the ledger
            fault = self.fault_of(error)
            return Reply(text="".join(received.parts), model=received.model, usage=received.usage, fault=fault)
        return received.reply(self._redacted)

    def fault_of(self, error: Exception) -> Fault:
        """What went wrong with a request, by the exception that it ended in."""
        import openai

        match error:
            case openai.APIStatusError():
                wait = retry_after(error.response.headers)
                return self._refused_by_status(error.status_code, error.code, error, wait)
            case _RedirectError():
                return self._fault("redirected elsewhere", error, stops=True, free=True)
            case AnswerError():
                if error.code:
                    return self._refused_by_status(error.code, error.code, error)
                return self._fault("server error in the answer", error, cut=True, again=True)
            case json.JSONDecodeError():
                return self._fault("not a chat completion", f"no JSON came: {error.doc[:100]!r}", again=True)
        # The client wraps what happens before the response begins; what happens after it comes as it is.
        wrapped = isinstance(error, openai.APIConnectionError)
        cause = error.__cause__ or error if wrapped else error
        kinds, said = {kind.__name__ for kind in type(cause).__mro__}, f"{type(cause).__name__}: {cause}"
        never_arrived = wrapped and not kinds.isdisjoint(_NEVER_ARRIVED)
        if isinstance(error, TimeoutError | openai.APITimeoutError) or _TIME_OUT in kinds:
            if never_arrived:
                return Fault("no connection", "the server did not accept it in time", again=True, free=True)
            detail = f"no whole answer within {self._llm.timeout_seconds:g} s (timeout_seconds)"
            return Fault("time-out", detail, again=True)
        if never_arrived and _WRONG_CERTIFICATE in said:
            detail = f"{self._llm.base_url}: {cause}; SSL_CERT_FILE names a file with certificates of your own"
            return self._fault("certificate refused", detail, stops=True, free=True)
        if never_arrived:
            return self._fault("no connection", f"{self._llm.base_url}: {cause}", again=True, free=True)
        if _NEVER_ENCODED in kinds or (wrapped and _NEVER_SENT in kinds):
            # Any other payload would be refused in the same way: all have the same headers and settings.
            return self._fault("request cannot be sent", said, stops=True, free=True)
        if wrapped or _TRANSPORT in kinds:
            return self._fault("connection lost", said, cut=True, again=True)
        return self._fault("not a chat completion", error, again=True)

    def _options(self) -> dict[str, Any]:
        """The fields of a request besides model and messages."""
        llm = self._llm
        options: dict[str, Any] = {llm.token_limit_parameter: llm.max_output_tokens}
        return options | ({} if llm.temperature is None else {"temperature": llm.temperature})

    async def _send(self, messages: list[dict[str, str]], received: "Received") -> None:
        llm, options = self._llm, self._options()
        if llm.extra_body:
            options["extra_body"] = llm.extra_body
        if llm.stream:
            options |= {"stream": True, "stream_options": {"include_usage": True}}
        send: Callable[..., Any] = self._client.chat.completions.with_streaming_response.create
        async with send(model=llm.model, messages=messages, **options) as response:
            # What came decides, not what was asked for: a server that does not stream has answered all the same.
            if "text/event-stream" in response.headers.get("content-type", ""):
                async for line in _lines(response):
                    if line.startswith("data:") and (event := line[5:].strip()) != "[DONE]":
                        received.take(json.loads(event))
            else:
                received.take(json.loads(await response.read()))

    def _refused_by_status(self, status: Any, code: object, error: object, wait: float | None = None) -> Fault:
        if code == _OUT_OF_MONEY:
            return self._fault("account without credit", error, stops=True, free=True)
        if status in _USELESS:
            return self._fault(f"{_USELESS[status]} ({status})", error, stops=True, free=True)
        if status >= _SERVER_ERROR or status in (_REQUEST_TIMEOUT, _CONFLICT, _RATE_LIMITED):
            kind = "rate limited" if status == _RATE_LIMITED else "server error"
            return self._fault(f"{kind} ({status})", error, again=True, wait=wait, free=True)
        return self._fault(f"request refused ({status})", error, free=True)

    def _fault(self, reason: str, said: object, **options: Any) -> Fault:
        return Fault(reason, self._redacted(str(said) or type(said).__name__), **options)

    def _redacted(self, text: str) -> str:
        """Servers repeat the key in their error messages, and HTTP libraries as Python writes it, with escapes."""
        if self._key.strip() and self._key != "none":
            for key in (self._key, repr(self._key)[1:-1], self._key.strip()):
                text = text.replace(key, "[key]")
        return text if len(text) <= _DETAIL_CHARACTERS else f"{text[: _DETAIL_CHARACTERS - 1]}…"


class _RedirectError(Exception):
    """The server sends the request to another origin."""


async def _stay_at_this_origin(response: Any) -> None:
    """Called by the HTTP library for each response, before it follows a redirect: a prompt is for one server.

    Raises:
        _RedirectError: it leads to another scheme, host or port.
    """
    if not response.has_redirect_location:
        return
    here, there = response.url, response.url.join(response.headers["location"])
    if (here.scheme, here.host, here.port) != (there.scheme, there.host, there.port):
        raise _RedirectError(
            f"{here.scheme}://{here.netloc.decode()} redirects to {there.scheme}://{there.netloc.decode()}, where the "
            "prompt is not carried; set base_url to that address if it is the teacher's"
        )


async def _lines(response: Any) -> AsyncIterator[str]:
    """The lines of a stream; those of the HTTP library end at U+2028 too, which JSON may hold as it is."""
    rest = b""
    async for piece in response.iter_bytes():
        *lines, rest = (rest + piece).split(b"\n")
        for line in lines:
            yield line.decode("utf-8", "replace")
    yield rest.decode("utf-8", "replace")


class AnswerError(Exception):
    """A response of status 200 that reports an error."""

    def __init__(self, error: Any, *, begun: bool) -> None:
        record = error if isinstance(error, dict) else {}
        super().__init__(record.get("message") or str(error))
        code = record.get("code")
        known = code == _OUT_OF_MONEY or (isinstance(code, int) and code >= 400)
        self.code = code if known and not begun else None
        """The status, or OpenAI's code, that it would have been refused with before an answer had begun."""


class Received:
    """An answer as far as it has come."""

    def __init__(self) -> None:
        self.parts: list[str] = []
        self.refusal: list[str] = []
        self.finish_reason = ""
        self.model = ""
        self.usage: Usage | None = None

    def take(self, record: Any) -> None:
        """Add a piece of a stream, or a whole answer; anything in it may be missing or of another type.

        Raises:
            AnswerError: it reports an error.
        """
        if not isinstance(record, dict):
            return
        if isinstance(model := record.get("model"), str):
            self.model = model
        self.usage = _usage(record.get("usage")) or self.usage
        choices = record.get("choices")
        choice = choices[0] if isinstance(choices, list) and choices and isinstance(choices[0], dict) else {}
        if error := record.get("error") or choice.get("error"):
            raise AnswerError(error, begun=any(self.parts))
        content = choice.get("delta") or choice.get("message")
        if isinstance(content, dict):
            self.parts.append(_text(content.get("content")))
            self.refusal.append(_text(content.get("refusal")))
        if isinstance(reason := choice.get("finish_reason"), str):
            self.finish_reason = reason

    def reply(self, redacted: Callable[[str], str]) -> Reply:
        """What it amounts to, once nothing more comes."""
        text, refusal = "".join(self.parts), "".join(self.refusal)
        if self.finish_reason and self.finish_reason not in _BROKEN_OFF:
            return Reply(text, self.finish_reason, redacted(refusal), self.model, self.usage)
        if text or refusal or self.finish_reason:
            detail = f"the answer broke off with the finish reason {self.finish_reason or None!r}"
            fault = Fault("ended early", detail, cut=True, again=True)
        else:
            fault = Fault("not a chat completion", "the response holds no answer", again=True)
        return Reply(text, model=self.model, usage=self.usage, fault=fault)


def _text(content: Any) -> str:
    """A text, or that of its parts; reasoning is a part of another type (Mistral)."""
    parts = content if isinstance(content, list) else [{"type": "text", "text": content}]
    texts = (part.get("text") for part in parts if isinstance(part, dict) and part.get("type") == "text")
    return "".join(text for text in texts if isinstance(text, str))


def retry_after(headers: Any) -> float | None:
    """Seconds that a response asks to wait (`Retry-After` in seconds or as a date, RFC 9110; `retry-after-ms`)."""
    for name, divisor in (("retry-after-ms", 1000.0), ("retry-after", 1.0)):
        try:
            seconds = float(headers.get(name, "")) / divisor
        except ValueError:
            continue
        return seconds if math.isfinite(seconds) and seconds >= 0 else None
    try:
        return max(parsedate_to_datetime(headers.get("retry-after", "")).timestamp() - time.time(), 0.0)
    except (ValueError, TypeError, OverflowError):
        return None


def _usage(usage: Any) -> Usage | None:
    if not isinstance(usage, dict):
        return None
    prompt, completion = usage.get("prompt_tokens"), usage.get("completion_tokens")
    if isinstance(prompt, int) and isinstance(completion, int) and prompt >= 0 and completion >= 0:
        # Gemini's endpoint leaves its thinking out of completion_tokens and only adds it to the total.
        total = usage.get("total_tokens")
        thinking = total - prompt - completion if isinstance(total, int) else 0
        return Usage(prompt, completion + max(thinking, 0))
    return None


def answered(attempt: Attempt, reply: Reply, seconds: float) -> Attempt:
    """The attempt with what came back."""
    fault = reply.fault
    bill = reply.usage or (Usage(0, 0) if fault and fault.free else None)
    usage = bill or attempt.tokens
    if bill is None and fault is None:
        written = len((reply.text + reply.refusal).encode("utf-8", "replace")) // BYTES_PER_TOKEN + 1
        usage = usage[0], min(written, usage[1])
    return replace(
        attempt,
        answered_at=timestamp(),
        seconds=round(seconds, 3),
        text=_storable(reply.text),
        finish_reason=_storable(reply.finish_reason),
        refusal=_storable(reply.refusal),
        model=_storable(reply.model),
        fault=fault.reason if fault else "",
        detail=_storable(fault.detail) if fault else "",
        cut=bool(fault and fault.cut),
        prompt_tokens=usage[0],
        completion_tokens=usage[1],
        estimated=bill is None,
    )


def _storable(text: str) -> str:
    """The text without lone surrogates, which no UTF-8 file can hold; pairs that a stream split are put together."""
    return text if text.isascii() else text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def timestamp() -> str:
    """The time, as the journal has it."""
    return dt.datetime.now(dt.UTC).isoformat(timespec="seconds")
