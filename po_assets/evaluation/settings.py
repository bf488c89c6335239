"""The settings of evaluation: how answers are decoded, and what the gate asks for.

How decoding is done belongs to `generate` and `product_owner.grammar`, how the gate judges to `checks`.
"""

import re
from typing import Any, ClassVar, Literal, Self

from pydantic import Field, field_validator, model_validator

from po_assets.dag.settings import Settings
from po_assets.product_owner import contract
from po_assets.storage import digest_of

KEY_VARIABLE = "PO_EVAL_KEY"
ENGINE_VERSION = "2"
"""Raised when the decode loop changes what comes out: cached answers of another version are not taken."""


class Decoding(Settings):
    """How baseline and student are asked; both always the same way."""

    noun: ClassVar[str] = "the decoding settings"
    # They concern the answers without grammar, whose decoding has a fingerprint of its own.
    without_effect: ClassVar[frozenset[str]] = frozenset({"free_cases", "free_max_new_tokens"})

    mode: Literal["constrained", "free"] = "constrained"
    """constrained: a grammar of the answer format bounds what can be written; free: nothing does."""
    max_new_tokens: int | None = Field(default=None, ge=1)
    """Empty: as many as the longest answer that the grammar allows, which the reference answers decide. A number cuts
    longer answers, which are scored as they are; with a grammar none may be cut, so a number that is too small is
    refused before anything is trained. The manual process's 1,200 go with mode free."""
    temperature: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    """0 takes the most likely token (greedy, deterministic)."""
    top_p: float = Field(default=1.0, gt=0, le=1)
    """Nucleus sampling; only with a temperature above 0."""
    retries: int = Field(default=0, ge=0)
    """How often an invalid answer is asked for again, with a reminder."""
    no_repeat_ngram: int = Field(default=20, ge=0)
    """No sequence of this many tokens is written twice in one answer, which breaks endless repetition; none of the
    teacher's 379 sample answers repeats 20. 0 switches it off."""
    batch_size: int = Field(default=40, ge=1)
    """Answers decoded side by side."""
    seed: int = 42
    """Seed of the sampling."""
    address: str = ""
    """Of an OpenAI-compatible server that answers instead of this process, such as vLLM with LoRA
    (http://127.0.0.1:8000/v1); PO_EVAL_KEY is its key. It serves the base model under its name, and the student as
    po-student- with 12 digits of its digest. There no_repeat_ngram has no effect."""
    free_cases: int = Field(default=8, ge=0)
    """On how many cases the student is also asked without grammar, for the report."""
    free_max_new_tokens: int = Field(default=768, ge=1)
    """Token limit of those answers: without grammar a model may repeat itself without end."""

    @field_validator("no_repeat_ngram")
    @classmethod
    def _no_single_words(cls, size: int) -> int:
        if size in (1, 2, 3):
            raise ValueError(f"no_repeat_ngram is {size}; use 0 (off) or at least 4.")
        return size

    @model_validator(mode="after")
    def _retries_differ(self) -> Self:
        if self.retries and self.greedy:
            raise ValueError(
                f"retries is {self.retries} with temperature 0: set a temperature, greedy retries hardly differ."
            )
        return self

    @field_validator("address")
    @classmethod
    def _is_an_address(cls, address: str) -> str:
        if address and not re.fullmatch(r"https?://[^\s/]+(/\S*)?", address):
            raise ValueError(f"address is {address!r}; give one like http://127.0.0.1:8000/v1, or leave it empty.")
        return address

    def effective(self) -> dict[str, Any]:
        """What answers depend on; an address only where one is given, so that earlier answers stay valid."""
        settings = super().effective()
        return settings if self.address else {name: value for name, value in settings.items() if name != "address"}

    @property
    def greedy(self) -> bool:
        """Whether the most likely token is taken every time."""
        return self.temperature == 0.0

    def with_values(self, **changes: Any) -> "Decoding":
        """The same settings but for these."""
        return Decoding(**self.values() | changes)

    def free(self) -> "Decoding":
        """The same settings without grammar, for the student's free answers."""
        limit = min(self.max_new_tokens or self.free_max_new_tokens, self.free_max_new_tokens)
        return self.with_values(mode="free", max_new_tokens=limit)

    def report_fingerprint(self) -> str:
        """Digest (sha256, hex) of all that a student's report depends on: the free answers too."""
        return digest_of([self.fingerprint(), self.free().fingerprint(), self.free_cases])

    def described(self) -> str:
        """The settings in words, for reports."""
        sampling = "greedy" if self.greedy else f"temperature {self.temperature:g}, top-p {self.top_p:g}"
        retries = f", up to {self.retries} retries with a reminder" if self.retries else ""
        repetition = f", no {self.no_repeat_ngram}-token sequence twice" if self.no_repeat_ngram else ""
        if self.address:
            repetition = f", by the server {self.address}"
        limit = f"at most {self.max_new_tokens:,} new tokens" if self.max_new_tokens else "as long as references need"
        return f"{self.mode}, {sampling}, {limit}{repetition}{retries}"


CRITERIA = (
    "case_count",
    "mean_score",
    "score_std",
    "delta_vs_baseline",
    "valid_answers",
    "judges",
    "non_inferiority",
    "status_accuracy",
    "worst_case",
    "own_questions",
    "consumer_prompts",
)
"""The gate's criteria, each a check of `eval_report`."""
SCORES = CRITERIA[:5]
"""Those on the scores; `literal` blocks on them."""
_BUILT_IN = {"literal": SCORES, "reviewer": (*SCORES, "judges")}
"""Profiles that differ in what blocks only; every other name is a team's own."""


class GateProfile(Settings):
    """What the gate asks for, under a name that stands wherever its verdict does.

    `literal` and `reviewer` are built in, with the thresholds below; whoever changes one gives the profile a name.
    """

    noun: ClassVar[str] = "the gate profile"

    name: str = "literal"
    """literal, reviewer (as literal; `judges` blocks too), or a name of your own with your own values."""
    case_count: int | None = Field(default=contract.GATE_CASES, ge=1)
    """Evaluation cases, exactly; empty: minimum_cases decides."""
    minimum_cases: int = Field(default=1, ge=1)
    """Evaluation cases, at least, where case_count is empty."""
    mean_score: float = Field(default=contract.GATE_MEAN_SCORE, ge=0, le=1)
    """Least mean score."""
    score_std: float = Field(default=contract.GATE_SCORE_STD, ge=0, le=1)
    """Greatest sample standard deviation of the scores."""
    delta_vs_baseline: float = Field(default=contract.GATE_DELTA, ge=-1, le=1)
    """Least difference of the means, student less baseline; a student may be better by any amount."""
    margin: float = Field(default=-contract.GATE_DELTA, ge=0, le=1)
    """non_inferiority: the 95 % interval of the paired difference excludes that it is worse by more."""
    valid_answers: float = Field(default=contract.GATE_VALID_SHARE, ge=0, le=1)
    """Least share of answers that the validator accepts."""
    worst_case: float = Field(default=contract.GATE_WORST_SCORE, ge=0, le=1)
    """Below this score a case is warned of."""
    blocking: list[str] | None = Field(
        default=None,
        description=f"The criteria without which an adapter is not promoted; the others warn. Empty: "
        f"{', '.join(SCORES)}. Known are also {', '.join(CRITERIA[len(SCORES) :])}.",
    )

    @field_validator("name")
    @classmethod
    def _plain_name(cls, name: str) -> str:
        if not re.fullmatch(r"[A-Za-z0-9][\w.-]{0,39}", name):
            raise ValueError(f"name is {name!r}; use at most 40 letters, digits, dots and dashes.")
        return name

    @field_validator("blocking")
    @classmethod
    def _known_criteria(cls, names: list[str] | None) -> list[str] | None:
        if unknown := [name for name in names or () if name not in CRITERIA]:
            raise ValueError(f"blocking names {', '.join(map(repr, unknown))}; known are {', '.join(CRITERIA)}.")
        return names

    @model_validator(mode="after")
    def _names_say_what_they_hold(self) -> Self:
        changed = [
            field
            for field, info in type(self).model_fields.items()
            if field != "name" and getattr(self, field) != info.default
        ]
        if self.name in _BUILT_IN and changed:
            raise ValueError(
                f"name is {self.name!r}, which is built in, but {', '.join(changed)} differ"
                f"{'s' if len(changed) == 1 else ''} from it; give the profile a name of its own."
            )
        return self

    def blocks(self, criterion: str) -> bool:
        """Whether an adapter that fails the criterion is not promoted."""
        return criterion in (_BUILT_IN.get(self.name, SCORES) if self.blocking is None else self.blocking)
