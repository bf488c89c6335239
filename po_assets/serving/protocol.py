"""What the server reads and writes: OpenAI's chat completions, as far as they are served.

Fields that ask for something that is not done are refused, never ignored.
"""

import time
import uuid
from typing import Annotated, Any, Literal

import orjson
from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from po_assets.serving.engine import Generated, Sampling

# Fields of the protocol that this server does not act on, with the values that ask for nothing.
_NOTHING: dict[str, tuple[Any, ...]] = {
    "n": (1,),
    "logprobs": (False,),
    "top_logprobs": (0,),
    "presence_penalty": (0,),
    "frequency_penalty": (0,),
    "logit_bias": ({},),
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "parallel_tool_calls": (True, False),  # nothing without tools
    "response_format": ({"type": "text"},),
    "modalities": (["text"],),
    "store": (False,),
}
_WITHOUT_EFFECT = {"user", "metadata", "safety_identifier"}
"""Who asks; no server's answer depends on it."""


class Refused(Exception):  # noqa: N818 - an answer to the client
    """The request is refused, with this status and sentence."""

    def __init__(self, status: int, message: str, code: str | None = None) -> None:
        super().__init__(message)
        self.status, self.message, self.code = status, message, code


class _Strict(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)


class _Part(_Strict):
    type: Literal["text"]
    text: str


class _Message(_Strict):
    role: Literal["system", "developer", "user", "assistant"]
    content: str | Annotated[list[_Part], Field(min_length=1)]
    name: str = ""
    """Who speaks (AutoGen says it); no chat template shows it."""

    def turn(self) -> dict[str, str]:
        content = self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)
        return {"role": "system" if self.role == "developer" else self.role, "content": content}


class _StreamOptions(_Strict):
    include_usage: bool = False


_StopText = Annotated[str, StringConstraints(min_length=1, max_length=200)]


class Asked(_Strict):
    """A request as far as this server acts on it."""

    model: str = ""
    messages: list[_Message] = Field(min_length=1)
    max_tokens: int | None = Field(default=None, ge=1)
    temperature: float = Field(default=0.0, ge=0, le=2)
    top_p: float = Field(default=1.0, gt=0, le=1)
    seed: int = Field(default=0, ge=-(2**63), lt=2**63)
    stop: _StopText | Annotated[list[_StopText], Field(max_length=4)] = []
    stream: bool = False
    stream_options: _StreamOptions = _StreamOptions()

    @property
    def turns(self) -> list[dict[str, str]]:
        """The conversation as the engine takes it."""
        return [message.turn() for message in self.messages]

    @property
    def sampling(self) -> Sampling:
        """How the answer is decoded."""
        stop = (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)
        return Sampling(self.max_tokens, self.temperature, self.top_p, self.seed, stop)


def read_question(content: bytes, served: str) -> Asked:
    """The question in a request's body, for the model of the name `served`.

    Raises:
        Refused: it is not JSON, holds what this server does not do, or asks another model.
    """
    try:
        body = orjson.loads(content)
    except orjson.JSONDecodeError as error:
        raise Refused(400, f"The body cannot be read as JSON: {str(error)[:200]}.") from None
    if not isinstance(body, dict):
        raise Refused(400, "The body must be a JSON object.")
    for message in body["messages"] if isinstance(body.get("messages"), list) else ():
        if isinstance(message, dict):  # null and an empty list (tool_calls) are absent
            for name in [name for name, value in message.items() if value in (None, [])]:
                del message[name]
    try:
        asked = Asked.model_validate(_fields(body))
    except ValidationError as error:
        raise Refused(400, _sentence(error)) from None
    if asked.model not in {"", served}:
        raise Refused(404, f"The model {shown(asked.model)} is not served here, {served!r} is.", "model_not_found")
    if asked.messages[-1].role != "user":
        raise Refused(400, "The last message must be the user's: answers that were begun are not continued.")
    return asked


def _fields(body: dict[str, Any]) -> dict[str, Any]:
    """The fields that this server acts on, without those that are null or ask for nothing.

    Raises:
        Refused: there are others.
    """
    wanted: dict[str, Any] = {}
    for name, value in body.items():
        if value is None or name in _WITHOUT_EFFECT:
            continue
        known = "max_tokens" if name == "max_completion_tokens" else name
        if name in _NOTHING:
            if value not in _NOTHING[name]:
                raise Refused(400, f"{name} is {shown(value)}, which this server does not do; leave it out.")
        elif known not in Asked.model_fields:
            raise Refused(400, f"{shown(name)} is not a field that this server knows; leave it out.")
        elif wanted.setdefault(known, value) != value:
            raise Refused(400, "max_tokens and max_completion_tokens differ; give one.")
    return wanted


def _sentence(error: ValidationError) -> str:
    # Of the ways in which a value might have fitted, the one that it came nearest to.
    first = max(error.errors(), key=lambda one: len(one["loc"]))
    kinds = ("list[", "constrained-")
    place = ".".join(str(part)[:80] for part in first["loc"] if part != "str" and not str(part).startswith(kinds))
    if first["type"] == "extra_forbidden":
        return f"{place} is not something that this server does; leave it out."
    if first["type"] == "literal_error":
        return f"{place} is {shown(first['input'])}; this server knows {first['ctx']['expected']}."
    if first["type"] == "missing":
        return f"{place} is missing."
    return f"{place} is {shown(first['input'])}: {first['msg'][:1].lower()}{first['msg'][1:]}."


def shown(value: object) -> str:
    """A value from a request in a few characters."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:79]}…"


def choice(delta: dict[str, str], finish_reason: str | None = None) -> dict[str, Any]:
    """What a piece of a stream adds."""
    return {"choices": [{"index": 0, "delta": delta, "finish_reason": finish_reason}]}


def event(record: dict[str, Any]) -> bytes:
    """A server-sent event."""
    return b"data: " + orjson.dumps(record) + b"\n\n"


def record(kind: str, model: str) -> dict[str, Any]:
    """The head of an answer, whole (`chat.completion`) or a piece (`chat.completion.chunk`)."""
    return {"id": f"chatcmpl-{uuid.uuid4().hex}", "object": kind, "created": int(time.time()), "model": model}


def usage(generated: Generated) -> dict[str, int]:
    """The tokens of question and answer."""
    prompt, completion = generated.prompt_tokens, generated.completion_tokens
    return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}


def error_record(message: str, code: str | None = None) -> dict[str, Any]:
    """An error as OpenAI's clients read it."""
    return {"error": {"message": message, "type": "invalid_request_error", "param": None, "code": code}}
