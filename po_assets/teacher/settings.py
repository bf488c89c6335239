"""The settings of a batch: which teacher, how it is asked, at which pace, and what it may cost.

Only settings stand here; how they are used belongs to `client`, `limits` and `batch`. The API key is none of them: they
name the environment variable that holds it.
"""

import math
import os
import re
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import dagster as dg
from pydantic import ConfigDict, Field

from po_assets.errors import UserError
from po_assets.storage import digest_of

URL_VARIABLE = "PO_TEACHER_BASE_URL"
MODEL_VARIABLE = "PO_TEACHER_MODEL"
_LIMIT_PARAMETERS = ("max_tokens", "max_completion_tokens")
_OWN_PARAMETERS = ("model", "messages", "stream", "stream_options", "temperature", "n", *_LIMIT_PARAMETERS)


@dataclass(frozen=True)
class Endpoint:
    """A teacher and how one question is put to it."""

    base_url: str
    model: str
    api_key_variable: str = ""
    temperature: float | None = None
    max_output_tokens: int = 4096
    token_limit_parameter: str = "max_tokens"  # noqa: S105 - no password
    instructions: str = ""
    extra_body: dict[str, Any] = field(default_factory=dict)
    stream: bool = True
    timeout_seconds: float = 180.0

    def identity(self) -> dict[str, Any]:
        """All that decides what the teacher answers, apart from its own dice.

        The token limit is not part of it: a whole answer is the same under any. (What it cut is asked again when it is
        raised.)
        """
        names = ("base_url", "model", "temperature", "instructions", "extra_body")
        return {name: getattr(self, name) for name in names}

    @property
    def slug(self) -> str:
        """The model's name, fit for a file name."""
        return re.sub(r"[^A-Za-z0-9.]+", "-", self.model).strip("-.")[:40] or "model"

    @property
    def host(self) -> str:
        """The server's name, for people."""
        return urlsplit(self.base_url).hostname or self.base_url


@dataclass(frozen=True)
class Pace:
    """How fast and how stubbornly is asked."""

    concurrency: int = 8
    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    retries: int = 5
    retry_wait_seconds: float = 1.0


@dataclass(frozen=True)
class Prices:
    """Money per million tokens, in whatever currency the limit is in."""

    input: float = 0.0
    output: float = 0.0

    def cost(self, prompt_tokens: int, completion_tokens: int) -> float:
        """What this many tokens cost."""
        return (prompt_tokens * self.input + completion_tokens * self.output) / 1e6


@dataclass(frozen=True)
class Limits:
    """The budget; None is no limit."""

    rows: int | None = None
    tokens: int | None = None
    cost: float | None = None


@dataclass(frozen=True)
class BatchSettings:
    """Everything about a batch but the payloads."""

    endpoint: Endpoint
    pace: Pace = Pace()
    prices: Prices = Prices()
    limits: Limits = Limits()
    tries: int = 1
    min_score: float = 0.82
    min_acceptance: float = 0.5


class TeacherLLM(dg.ConfigurableResource["TeacherLLM"]):
    """The teacher: an OpenAI-compatible endpoint, and how it is asked."""

    model_config = ConfigDict(extra="forbid")  # a misspelt setting must not pass for a setting

    base_url: str = Field(
        default_factory=lambda: os.environ.get(URL_VARIABLE) or "https://api.openai.com/v1",
        description=f"OpenAI-compatible endpoint, up to and including /v1. {URL_VARIABLE} sets the default.",
    )
    model: str = Field(
        default_factory=lambda: os.environ.get(MODEL_VARIABLE) or "",
        description=f"The model's name at that endpoint. {MODEL_VARIABLE} sets the default.",
    )
    api_key_variable: str = Field(
        default="OPENAI_API_KEY",
        description="Name of the environment variable that holds the key; empty for a server that wants none.",
    )
    temperature: float | None = Field(default=None, description="Empty: the server's default.")
    max_output_tokens: int = Field(
        default=4096,
        description="Token limit of one answer, thinking included. What a request may cost at most follows from it.",
    )
    token_limit_parameter: str = Field(
        default="max_tokens",
        description="How the server calls it: max_tokens, or max_completion_tokens (reasoning models of OpenAI).",
    )
    instructions: str = Field(
        default="", description="System message instead of the project's own, which explains the answer's form."
    )
    extra_body: dict[str, Any] = Field(
        default_factory=dict, description="Further fields of the request, such as {reasoning_effort: low}."
    )
    stream: bool = Field(
        default=True, description="Let answers be sent as they are written, which keeps slow connections open."
    )
    timeout_seconds: float = Field(default=180.0, description="Longest time for one request, first byte to last.")
    concurrency: int = Field(default=8, description="Requests under way at once.")
    requests_per_minute: int | None = Field(default=None, description="Rate limit; empty for none.")
    tokens_per_minute: int | None = Field(
        default=None, description="Rate limit over prompt and answer tokens; empty for none."
    )
    retries: int = Field(
        default=5, description="How often a request is sent again after 429, 5xx, a time-out or a cut answer."
    )
    retry_wait_seconds: float = Field(
        default=1.0, description="Wait before the first retry, doubled each time up to a minute; Retry-After wins."
    )
    price_per_million_input_tokens: float = Field(default=0.0, description="Money per million prompt tokens.")
    price_per_million_output_tokens: float = Field(
        default=0.0, description="Money per million answer tokens, thinking included."
    )


class BatchPlan(dg.ConfigurableResource["BatchPlan"]):
    """What is asked, what counts as a row, and where the batch ends."""

    model_config = ConfigDict(extra="forbid")

    payloads: str = Field(
        default="",
        description="JSONL file of what to ask: concept, requirements_yaml, optionally tier and concept_id. "
        "Empty: concepts of the project's own generator.",
    )
    generate: int = Field(default=50, description="How many concepts the generator makes; a longer list begins alike.")
    seed: int = Field(default=7, description="Seed of the generator. Another seed gives other concepts.")
    tries: int = Field(
        default=1, description="Answers asked for one payload until one is accepted; the reminder is not counted."
    )
    min_score: float = Field(default=0.82, description="Answers that the metric gives less do not land.")
    max_rows: int | None = Field(default=None, description="Budget: accepted rows. Empty for no limit.")
    max_tokens: int | None = Field(default=None, description="Budget: prompt and answer tokens. Empty for no limit.")
    max_cost: float | None = Field(default=None, description="Budget: money, in the currency of the prices.")
    min_acceptance: float = Field(
        default=0.5, description="Share of answers that should be accepted; a check warns below it."
    )
    working_folder: str = Field(
        default="",
        description="Local folder of the journals. Empty: teacher_llm/ among the artifacts, where those are local.",
    )


def resolve(llm: TeacherLLM, plan: BatchPlan) -> BatchSettings:
    """The settings as plain values.

    Raises:
        UserError: naming every setting that is wrong.
    """
    if faults := [*_endpoint_faults(llm), *_pace_faults(llm), *_plan_faults(llm, plan)]:
        raise UserError("The settings of teacher_batch are wrong: " + "; ".join(faults) + ".")
    return BatchSettings(
        endpoint=Endpoint(
            base_url=llm.base_url.rstrip("/"),
            model=llm.model,
            api_key_variable=llm.api_key_variable,
            temperature=llm.temperature,
            max_output_tokens=llm.max_output_tokens,
            token_limit_parameter=llm.token_limit_parameter,
            instructions=llm.instructions,
            extra_body=dict(llm.extra_body),
            stream=llm.stream,
            timeout_seconds=llm.timeout_seconds,
        ),
        pace=Pace(llm.concurrency, llm.requests_per_minute, llm.tokens_per_minute, llm.retries, llm.retry_wait_seconds),
        prices=Prices(llm.price_per_million_input_tokens, llm.price_per_million_output_tokens),
        limits=Limits(plan.max_rows, plan.max_tokens, plan.max_cost),
        tries=plan.tries,
        min_score=plan.min_score,
        min_acceptance=plan.min_acceptance,
    )


def api_key(endpoint: Endpoint) -> str:
    """The key from the environment; a stand-in where none is wanted, because the client insists on one."""
    return os.environ[endpoint.api_key_variable].strip() if endpoint.api_key_variable else "none"


def folder_name(endpoint: Endpoint, prompt_version: str) -> str:
    """The journal's folder: the model in readable form, and a digest of all that decides the answers."""
    return f"{endpoint.slug}-{digest_of([endpoint.identity(), prompt_version])[:12]}"


def _endpoint_faults(llm: TeacherLLM) -> list[str]:
    url = urlsplit(llm.base_url)
    faults = []
    if url.scheme not in ("http", "https") or not url.hostname:
        faults.append(f"base_url is {llm.base_url!r}, give a URL such as https://api.openai.com/v1")
    if url.username or url.password or url.query:
        faults.append("base_url carries a user, password or query, which would end up in logs: put the key into the "
                      "environment variable that api_key_variable names")  # fmt: skip
    if not llm.model.strip():
        faults.append(f"model is empty, give the model's name at the endpoint (or set {MODEL_VARIABLE})")
    key = os.environ.get(llm.api_key_variable, "").strip()
    # What looks like a key in this place may be one: it must not be repeated.
    named = llm.api_key_variable if re.fullmatch(r"[A-Z][A-Z0-9_]{0,40}", llm.api_key_variable) else "it names"
    if not (key.isascii() and key.isprintable()):
        faults.append(
            f"the key in the environment variable {named} holds a character that no HTTP header can (a line break, a "
            "control character, or none of ASCII): export it again as the provider shows it"
        )
    if llm.api_key_variable and not key:
        faults.append(
            f"the environment variable {named} is not set: export it where Dagster runs (api_key_variable takes the "
            "variable's name, never the key), or leave api_key_variable empty for a server without key"
        )
    if llm.token_limit_parameter not in _LIMIT_PARAMETERS:
        faults.append(f"token_limit_parameter is {llm.token_limit_parameter!r}, use {' or '.join(_LIMIT_PARAMETERS)}")
    if own := sorted(set(llm.extra_body) & set(_OWN_PARAMETERS)):
        faults.append(f"extra_body sets {', '.join(own)}, which belongs to the other settings")
    faults += _below(llm.max_output_tokens, 1, "max_output_tokens")
    faults += _below(llm.temperature, 0, "temperature")
    if not (math.isfinite(llm.timeout_seconds) and llm.timeout_seconds > 0):
        faults.append(f"timeout_seconds is {llm.timeout_seconds}, use more than 0")
    return faults


def _pace_faults(llm: TeacherLLM) -> list[str]:
    faults = [
        *_below(llm.concurrency, 1, "concurrency"),
        *_below(llm.requests_per_minute, 1, "requests_per_minute"),
        *_below(llm.retries, 0, "retries"),
        *_below(llm.retry_wait_seconds, 0, "retry_wait_seconds"),
        *_below(llm.price_per_million_input_tokens, 0, "price_per_million_input_tokens"),
        *_below(llm.price_per_million_output_tokens, 0, "price_per_million_output_tokens"),
    ]
    if llm.tokens_per_minute is not None and llm.tokens_per_minute < llm.max_output_tokens:
        faults.append(
            f"tokens_per_minute is {llm.tokens_per_minute}, less than one answer may have "
            f"(max_output_tokens is {llm.max_output_tokens}): raise one or lower the other"
        )
    return faults


def _plan_faults(llm: TeacherLLM, plan: BatchPlan) -> list[str]:
    faults = [
        *_below(plan.generate, 1, "generate"),
        *_below(plan.tries, 1, "tries"),
        *_below(plan.max_rows, 0, "max_rows"),
        *_below(plan.max_tokens, 0, "max_tokens"),
        *_below(plan.max_cost, 0, "max_cost"),
        *(
            f"{name} is {value}, use 0 to 1"
            for name, value in (("min_score", plan.min_score), ("min_acceptance", plan.min_acceptance))
            if not 0 <= value <= 1
        ),
    ]
    if plan.tries > 1 and llm.temperature == 0:
        faults.append(f"tries is {plan.tries} with temperature 0: the answers would hardly differ, set a temperature")
    if plan.max_cost is not None and not (llm.price_per_million_input_tokens or llm.price_per_million_output_tokens):
        faults.append(f"max_cost is {plan.max_cost}, but both prices are 0, so that nothing would ever count: set them")
    return faults


def _below(value: float | None, least: float, name: str) -> list[str]:
    if value is None or (math.isfinite(value) and value >= least):
        return []
    return [f"{name} is {value}, use {least} or more"]
