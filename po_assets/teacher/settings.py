"""The settings of a batch: which teacher, how it is asked, at which pace, and what it may cost.

How they are used belongs to `client` and `batch`. The API key is none of them: they name the environment variable that
holds it.
"""

import os
import re
from typing import Any, ClassVar, Literal
from urllib.parse import urlsplit

from pydantic import ConfigDict, Field, field_validator, model_validator

from po_assets.dag import Settings
from po_assets.errors import all_faults
from po_assets.product_owner.contract import MIN_SCORE
from po_assets.storage import digest_of

URL_VARIABLE = "PO_TEACHER_BASE_URL"
MODEL_VARIABLE = "PO_TEACHER_MODEL"
_OWN_PARAMETERS = {
    *("model", "messages", "stream", "stream_options", "temperature", "n", "max_tokens", "max_completion_tokens")
}


class TeacherLLM(Settings):
    """The teacher: an OpenAI-compatible endpoint, and how it is asked."""

    model_config = ConfigDict(allow_inf_nan=False)
    noun: ClassVar[str] = "the settings of the resource teacher_llm"
    # All but these decides what the teacher answers, apart from its own dice. (A whole answer is the same under any
    # token limit; what the limit cut is asked again when it is raised.)
    without_effect: ClassVar[frozenset[str]] = frozenset(
        (
            *("api_key_variable", "max_output_tokens", "token_limit_parameter", "stream", "timeout_seconds"),
            *("concurrency", "requests_per_minute", "tokens_per_minute", "retries", "retry_wait_seconds"),
            *("price_per_million_input_tokens", "price_per_million_output_tokens"),
            *("delivery", "batch_price_share", "batch_poll_seconds"),
        )
    )

    base_url: str = Field(
        default_factory=lambda: os.environ.get(URL_VARIABLE) or "https://api.openai.com/v1",
        validate_default=True,
        description=f"OpenAI-compatible endpoint, up to and including /v1. {URL_VARIABLE} sets the default.",
    )
    model: str = Field(
        default_factory=lambda: os.environ.get(MODEL_VARIABLE) or "",
        description=f"The model's name at that endpoint. {MODEL_VARIABLE} sets the default.",
    )
    api_key_variable: str = "OPENAI_API_KEY"
    """Name of the environment variable that holds the key; empty for a server that wants none."""
    temperature: float | None = Field(default=None, ge=0)
    """Empty: the server's default."""
    max_output_tokens: int = Field(default=4096, ge=1)
    """Token limit of one answer, thinking included. What a request may cost at most follows from it."""
    token_limit_parameter: Literal["max_tokens", "max_completion_tokens"] = Field(default="max_tokens")
    """How the server calls it: max_tokens, or max_completion_tokens (reasoning models of OpenAI)."""
    instructions: str = ""
    """System message instead of the project's own, which explains the answer's form."""
    extra_body: dict[str, Any] = Field(default_factory=dict)
    """Further fields of the request, such as {reasoning_effort: low}."""
    stream: bool = True
    """Let answers be sent as they are written, which keeps slow connections open."""
    timeout_seconds: float = Field(default=180.0, gt=0)
    """Longest time for one request, first byte to last."""
    concurrency: int = Field(default=8, ge=1)
    """Requests under way at once."""
    requests_per_minute: int | None = Field(default=None, ge=1)
    """Rate limit; empty for none."""
    tokens_per_minute: int | None = None
    """Rate limit over prompt and answer tokens; empty for none."""
    retries: int = Field(default=5, ge=0)
    """How often a request is sent again after 429, 5xx, a time-out or a cut answer."""
    retry_wait_seconds: float = Field(default=1.0, ge=0)
    """Wait before the first retry, doubled each time up to a minute; Retry-After wins."""
    price_per_million_input_tokens: float = Field(default=0.0, ge=0)
    """Money per million prompt tokens."""
    price_per_million_output_tokens: float = Field(default=0.0, ge=0)
    """Money per million answer tokens, thinking included."""

    delivery: Literal["live", "batch"] = "live"
    """`live`, or `batch`: questions are handed to the provider's batch endpoint and collected when it is done, within
    24 hours, at a lower price; pace, stream and concurrency do not matter then."""
    batch_price_share: float = Field(default=0.5, ge=0, le=1)
    """What a request in a batch costs, as a share of the prices."""
    batch_poll_seconds: float = Field(default=60.0, gt=0)
    """How often a batch is looked at."""

    @field_validator("base_url")
    @classmethod
    def _is_an_address(cls, value: str) -> str:
        try:
            url = urlsplit(value)
            _ = url.port  # read when it is asked for
        except ValueError as error:
            raise ValueError(f"base_url is no URL ({error}); give one such as https://api.openai.com/v1.") from None
        if url.username or url.password or url.query:  # not quoted: it would end up in logs
            raise ValueError(
                "base_url carries a user, password or query, which would end up in logs; put the key into the "
                "environment variable that api_key_variable names."
            )
        if url.scheme not in {"http", "https"} or not url.hostname or url.path.endswith("/chat/completions"):
            raise ValueError(f"base_url is {value!r}; give a URL up to /v1, such as https://api.openai.com/v1.")
        return value.rstrip("/")

    @field_validator("extra_body")
    @classmethod
    def _leaves_the_rest_alone(cls, value: dict[str, Any]) -> dict[str, Any]:
        if own := sorted(_OWN_PARAMETERS & set(value)):
            raise ValueError(f"extra_body sets {', '.join(own)}, which belongs to the other settings.")
        return value

    @model_validator(mode="after")
    def _one_answer_fits_a_minute(self) -> "TeacherLLM":
        if self.tokens_per_minute is not None and self.tokens_per_minute < self.max_output_tokens:
            raise ValueError(
                f"tokens_per_minute is {self.tokens_per_minute}, less than one answer may have "
                f"(max_output_tokens is {self.max_output_tokens}): raise one or lower the other."
            )
        return self

    @property
    def slug(self) -> str:
        """The model's name, fit for a file name."""
        return re.sub(r"[^A-Za-z0-9.]+", "-", self.model).strip("-.")[:40] or "model"

    @property
    def host(self) -> str:
        """The server's name, for people."""
        return urlsplit(self.base_url).hostname or self.base_url

    @property
    def api_key(self) -> str:
        """The key from the environment; a stand-in where none is wanted, because the client insists on one."""
        return os.environ[self.api_key_variable].strip() if self.api_key_variable else "none"

    def cost(self, prompt_tokens: int, completion_tokens: int, *, hosted: bool = False) -> float:
        """What this many tokens cost, live or in a `hosted` batch, in whatever currency the prices are in."""
        prompt, completion = self.price_per_million_input_tokens, self.price_per_million_output_tokens
        share = self.batch_price_share if hosted else 1.0
        return (prompt_tokens * prompt + completion_tokens * completion) / 1e6 * share

    def folder_name(self, prompt_version: str) -> str:
        """The journal's folder: the model in readable form, and a digest of all that decides the answers."""
        return f"{self.slug}-{digest_of([self.effective(), prompt_version])[:12]}"


class BatchPlan(Settings):
    """What is asked, what counts as a row, and where the batch ends."""

    model_config = ConfigDict(allow_inf_nan=False)
    noun: ClassVar[str] = "the settings of the resource batch_plan"

    payloads: str = ""
    """JSONL file of what to ask: concept, requirements_yaml, optionally tier and concept_id. Empty: concepts of the
    project's own generator."""
    generate: int = Field(default=50, ge=1)
    """How many concepts the generator makes; a longer list begins alike."""
    seed: int = 7
    """Seed of the generator. Another seed gives other concepts."""
    tries: int = Field(default=1, ge=1)
    """Answers asked for one payload until one is accepted; the reminder is not counted."""
    min_score: float = Field(default=MIN_SCORE, ge=0, le=1)
    """Answers that the metric gives less do not land."""
    max_rows: int | None = Field(default=None, ge=0)
    """Budget: accepted rows. Empty for no limit."""
    max_tokens: int | None = Field(default=None, ge=0)
    """Budget: prompt and answer tokens. Empty for no limit."""
    max_cost: float | None = Field(default=None, ge=0)
    """Budget: money, in the currency of the prices."""
    min_acceptance: float = Field(default=0.5, ge=0, le=1)
    """Share of answers that should be accepted; a check warns below it."""
    cancel: bool = False
    """Ask nothing, and cancel what is with the provider's batch endpoint: what is answered lands."""
    working_folder: str = ""
    """Local folder of the journals. Empty: teacher_llm/ among the artifacts, where those are local."""


def check_ready(llm: TeacherLLM, plan: BatchPlan) -> None:
    """What one setting alone does not show: model and key of the environment, and what must go together.

    Raises:
        UserError: naming every fault; the key is in none of them.
    """
    faults = []
    if not llm.model.strip():
        faults.append(f"model is empty, give the model's name at the endpoint (or set {MODEL_VARIABLE}).")
    key = os.environ.get(llm.api_key_variable, "").strip()
    # What looks like a key in this place may be one: it must not be repeated.
    named = llm.api_key_variable if re.fullmatch(r"[A-Z][A-Z0-9_]{0,40}", llm.api_key_variable) else "it names"
    if not (key.isascii() and key.isprintable()):
        faults.append(
            f"the key in the environment variable {named} holds a character that no HTTP header can (a line break, a "
            "control character, or none of ASCII): export it again as the provider shows it."
        )
    if llm.api_key_variable and not key:
        faults.append(
            f"the environment variable {named} is not set: export it where Dagster runs (api_key_variable takes the "
            "variable's name, never the key), or leave api_key_variable empty for a server without key."
        )
    if plan.tries > 1 and llm.temperature == 0:
        faults.append(f"tries is {plan.tries} with temperature 0: the answers would hardly differ, set a temperature.")
    if plan.max_cost is not None and not (llm.price_per_million_input_tokens or llm.price_per_million_output_tokens):
        faults.append(
            f"max_cost is {plan.max_cost}, but both prices are 0, so that nothing would ever count: set them."
        )
    if faults:
        raise all_faults("The settings of teacher_batch cannot be used", faults)
