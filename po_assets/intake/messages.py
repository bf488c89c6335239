"""Chats: the messages of a row, whoever wrote them, and the one question and answer that are taken from them.

What the question and the answer hold belongs to `formats` and `product_owner`.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import takewhile
from typing import Any

from po_assets.intake.lines import Reason, Rejected
from po_assets.text import amount, verb

_ROLES = {
    "user": ("user", "human", "prompter"),
    "assistant": ("assistant", "gpt", "ai", "model", "bot", "chatgpt"),
    "system": ("system", "developer"),
    "tool": ("tool", "function", "observation", "function_call", "function_response", "tool_call", "tool_response"),
}
_ROLE_OF = {name: role for role, names in _ROLES.items() for name in names}
_TEXT_PARTS = ("text", "input_text", "output_text")
_REASONING = ("reasoning", "reasoning_content", "reasoning_details", "thinking", "thoughts", "redacted_thinking")
_ASIDE = ("analysis", "commentary")
"""Channels of a model that answers in another one."""
_CALLS = ("tool_calls", "function_call", "tool_use", "server_tool_use", "functionCall")
_SPOKEN = re.compile(r"message|\w+_call")
"""Types of a response's items: what was said, and calls of tools that it rests on."""
_CONTENT = ("content", "value", "parts", "text")
_READ = frozenset(
    (
        *(*_CONTENT, "role", "from", "type", "channel", "weight", "refusal"),
        *("finish_reason", "stop_reason", "stop_sequence", "id", "index", "model", "usage"),  # bookkeeping
    )
)
_CUT = (
    *("length", "max_tokens", "max_output_tokens", "max_length", "model_length", "incomplete"),
    *("limit", "token_limit", "model_context_window_exceeded"),
)
_STOPPED = (
    *("content_filter", "refusal", "safety", "error", "recitation", "blocklist", "prohibited_content"),
    *("content_filtered", "guardrail_intervened", "abort"),
)
_WEIGHTS = (
    *("weight", "sample_weight", "loss_weight", "loss", "loss_mask"),
    *("train", "trainable", "training", "train_on_turn"),
)
_REASONS = re.compile(
    r"\w*(?:finish|stop|done|completion)[_ -]?reasons?|(?:finish|incomplete)_details|stop_type", re.IGNORECASE
)
_ENDS = re.compile(rf"{_REASONS.pattern}|(?:is_|was_)?truncated|stopped_limit", re.IGNORECASE)
"""Keys that say how an answer ended."""
_ON_CALLS = "the answer rests on tool calls, which are not taken; only a user's text and the answer to it are read"
_SHOWN = 100
_KEY_SHOWN = 30
_WITHIN = re.compile(r"[\w,(-][a-z0-9_,.;:!?)]|\s.|.\s", re.DOTALL)
"""Two characters between which a text goes on."""


@dataclass(frozen=True)
class Message:
    """One message: who says what, and what of it was not read."""

    role: str
    """user, assistant, system or tool."""
    text: str
    left_out: tuple[str, ...] = ()
    calls_tools: bool = False
    place: str = field(default="", compare=False)
    flags: Mapping[str, Any] = field(default_factory=dict, compare=False)
    """The message as it landed, for what it says about itself."""


@dataclass(frozen=True)
class Exchange:
    """A question and the answer that follows it; None where there is none."""

    question: str | None
    answer: str | None
    system: str
    roles: tuple[str, ...]
    """Who spoke, in order of first appearance."""
    notes: tuple[str, ...]


def text_or_messages(value: object, place: str, role: str = "") -> list[Message]:
    """The messages of a list, of one message, or, where `role` is said, of a text in that role.

    Raises:
        Rejected: a message has no role or content that can be read; names the message and what stands there.
    """
    if value is None or value == []:
        return []
    if isinstance(value, str) and role:
        return [Message(role, value)]
    if isinstance(value, dict) and role:
        return [_message(value, place, role)]
    if not isinstance(value, list):
        wanted = "a string or an array of messages" if role else "an array"
        raise Rejected(Reason.SCHEMA, f"{place} must be {wanted}, got {value!r:.60}")
    return [_message(message, f"message {number}", role) for number, message in enumerate(value, start=1)]


def exchange_of(messages: Sequence[Message]) -> Exchange:
    """The last question that is answered, with its answer; without an answer, the last question.

    Messages in a row by the same speaker are one turn. What comes before and after is named in the notes, the system
    text, too: none of it is part of the prompt.

    Raises:
        Rejected: the answer rests on tool calls, which are not read; or it is a refusal, was cut, or has the weight 0.
    """
    spoken = [message for message in messages if message.role != "system"]
    answers = [number for number, message in enumerate(spoken, start=1) if message.role == "assistant"]
    end = max((number for number in answers if spoken[number - 1].text.strip()), default=answers[-1] if answers else 0)
    before = spoken[: end or None]
    said = [*takewhile(lambda message: message.role in {"assistant", "tool"}, reversed(before))][::-1] if end else []
    asked = [*takewhile(lambda message: message.role == "user", reversed(before[: len(before) - len(said)]))][::-1]
    if any(message.role == "tool" for message in (said if answers else spoken)) or any(
        message.calls_tools and not message.text for message in said
    ):
        raise Rejected(Reason.MISSING_PART, _ON_CALLS)
    for message in said:
        refuse_flags(message.flags, f"{message.place}: ")
        for name, one in message.flags.items():
            refuse_nested_ends(one if isinstance(one, dict) else None, f"{message.place}: {name}")
    earlier, later = len(before) - len(said) - len(asked), len(spoken) - end if end else 0
    notes = [
        f"{amount(number, f'{which} message')} {where} {verb(number, 'was', 'were')} not read"
        for number, which, where in (
            (earlier, "earlier", "before the last question"),
            (later, "later", "after the answer"),
        )
        if number
    ]
    if left_out := dict.fromkeys(name for message in (*asked, *said) for name in message.left_out):
        notes.append(f"left out of the messages: {', '.join(left_out)}")
    question, answer = ("\n\n".join(message.text for message in turn) or None for turn in (asked, said))
    system = "\n\n".join(message.text for message in messages if message.role == "system")
    return Exchange(question, answer, system, tuple(dict.fromkeys(m.role for m in messages)), tuple(notes))


def choice_of(body: Mapping[str, Any]) -> list[Message]:
    """The answer in the body of a service's response, whatever the service calls it.

    Raises:
        Rejected: several choices that differ, or an answer that was cut or refused.
    """
    if body.get("status") == "incomplete":
        raise Rejected(Reason.ANSWER_CUT, "the response's status is 'incomplete': the answer was cut; ask for it again")
    if isinstance(body.get("output"), dict):
        refuse_flags(body, "the response's ")
        body = body["output"]
    items = body["output"] if isinstance(body.get("output"), list) else []
    spoken = [item for item in items if isinstance(item, dict) and _SPOKEN.fullmatch(str(item.get("type")))]
    choices = body.get("choices") or body.get("candidates") or ([{"message": spoken}] if spoken else [body])
    answers: list[list[Message]] = []
    for choice in choices if isinstance(choices, list) else []:
        keys = ("message", "content", "text") if isinstance(choice, dict) else ()
        if said := next((choice[key] for key in keys if choice.get(key)), None):
            refuse_flags(choice, "the answer's ")
            answers.append(text_or_messages(said, "the answer", "assistant"))
    if any(other != answers[0] for other in answers[1:]):
        raise Rejected(Reason.AMBIGUOUS, f"the response holds {len(answers)} different choices; leave one of them")
    return answers[0] if answers else []


def refuse_flags(flags: Mapping[str, Any], place: str = "") -> None:
    """Raise where a row, a message or a service's choice says that it is not to be trained on.

    Raises:
        Rejected: its weight is 0, or the answer was cut at the token limit or stopped by the service.
    """
    if refusal := flags.get("refusal"):
        raise Rejected(Reason.MISSING_PART, f"{place}the answer is a refusal: {refusal!r:.{_SHOWN}}")
    for name in _WEIGHTS:
        if name in flags and is_nothing(flags[name]) and (name != "loss" or flags[name] is False):
            detail = f"{place}{name} is {flags[name]!r}: whoever wrote the row does not want it trained on"
            raise Rejected(Reason.WEIGHT_0, f"{detail}; delete the line, or the {name}")
    _refuse_ends(flags, place, _ENDS)


def refuse_nested_ends(value: Any, place: str, depth: int = 4) -> None:
    """Raise where an object, or one in it, says that an answer is not whole, as services' own metadata do."""
    if isinstance(value, dict):
        _refuse_ends(value, f"{place}.", _REASONS)
    if depth and isinstance(value, dict | list):
        for name, one in value.items() if isinstance(value, dict) else enumerate(value, start=1):
            refuse_nested_ends(one, f"{place}.{name}", depth - 1)


def _refuse_ends(flags: Mapping[str, Any], place: str, ends: re.Pattern[str]) -> None:
    """Raise where one of the keys that say how an answer ended says that it is not whole."""
    for name in flags:
        if len(name) > _SHOWN or not _tells_end(name, ends):
            continue
        value = flags[name]
        parts = value if isinstance(value, list) else value.values() if isinstance(value, dict) else [value]
        ended = {str(one).lower().rpartition(".")[2] for one in parts}  # a service's enum says its own name, too
        if not ended.isdisjoint(_CUT) or (
            name.endswith(("truncated", "limit")) and not ended.isdisjoint(("true", "1", "yes"))
        ):
            raise Rejected(Reason.ANSWER_CUT, f"{place}{name} is {value!r}: the answer was cut; ask for it again")
        if not ended.isdisjoint(_STOPPED):
            raise Rejected(Reason.ANSWER_CUT, f"{place}{name} is {value!r}: the service stopped the answer")


@lru_cache(maxsize=1024)  # rows share their keys
def _tells_end(name: str, ends: re.Pattern[str]) -> bool:
    return ends.fullmatch(name) is not None


def is_nothing(weight: object) -> bool:
    """Whether a weight, or a flag that stands for one, says that nothing is to be learnt."""
    if isinstance(weight, str):
        text = weight.strip().lower()
        weight = 0 if text in {"false", "no", "off"} else text
    try:
        return float(weight) <= 0  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return False


def _message(message: object, place: str, default_role: str) -> Message:
    wanted = f"{place} must have role and content as strings"
    if not isinstance(message, dict):
        raise Rejected(Reason.SCHEMA, f"{wanted}, got {message!r:.60}")
    kind = message.get("type")
    if isinstance(kind, str):
        default_role = "tool" if kind.endswith("_call") else kind if kind in _ROLE_OF else default_role
    said_role = message.get("role", message.get("from", default_role))
    role = _ROLE_OF.get(said_role.strip().lower(), "") if isinstance(said_role, str) else ""
    if isinstance(said_role, str) and said_role and not role:
        known = ", ".join(_ROLE_OF)
        raise Rejected(Reason.SCHEMA, f"{place} has the role {said_role!r:.40}; known roles are {known}")
    left_out = [key for key, value in message.items() if key not in _READ and value not in ("", [], {})]
    content = next((message[key] for key in _CONTENT if key in message), None)
    text = _text("" if content is None and role in {"assistant", "system", "tool"} else content, place, left_out, role)
    if text is None or not role:
        shape = ", ".join(f"{key[:_KEY_SHOWN]} {value!r:.{_KEY_SHOWN}}" for key, value in message.items())
        raise Rejected(Reason.SCHEMA, f"{wanted}, got {shape or 'no keys at all'}")
    if (channel := message.get("channel")) in _ASIDE:
        text, left_out = "", [*left_out, f"channel {channel}"]
    return Message(role, text, tuple(left_out), any(name in _CALLS for name in left_out), place, message)


def _text(content: object, place: str, left_out: list[str], role: str) -> str | None:
    """A message's text; some services split it into parts, of which only text is read."""
    if isinstance(content, str):
        return content
    if not isinstance(content, list) or not content:
        return None
    texts: list[str] = []
    for part in content:
        said = part if isinstance(part, dict) else {"text": part}
        # Without a type, a part is what its key says: text, inlineData, functionCall.
        kind, text = said.get("type") or ("text" if "text" in said else ", ".join(said)), said.get("text", "")
        if kind in _REASONING or said.get("thought") is True:
            left_out.append(str(kind) if kind in _REASONING else "thought")
        elif kind in _CALLS:
            left_out.append(kind)
        elif kind in _TEXT_PARTS and isinstance(text, str):
            # Parts are paragraphs, or go on in mid-sentence; an answer's end anywhere, but a fence begins a line.
            within = texts and _WITHIN.fullmatch(texts[-1][-1:] + text[:1])
            paragraph = role != "assistant" or text.startswith(("```", "~~~"))
            texts.append(f"\n\n{text}" if texts and paragraph and not within else text)
        else:
            raise Rejected(Reason.SCHEMA, f"{place} holds a part of type {str(kind)[:40]!r}; only text is read")
    return "".join(texts)
