"""The settings of evaluation: how answers are decoded. They are part of every answer's cache key.

How decoding is done belongs to `engine` and `grammar`.
"""

import math
from dataclasses import asdict, dataclass, replace
from typing import Literal, get_args

import dagster as dg
from pydantic import Field

from po_assets.storage import digest_of

DecodingMode = Literal["constrained", "free"]

ENGINE_VERSION = "2"
"""Raised when the decode loop changes what comes out: cached answers of another version are not taken."""


@dataclass(frozen=True)
class Decoding:
    """How one answer is decoded; baseline and student always share one of these."""

    mode: DecodingMode = "constrained"
    max_new_tokens: int = 4096
    temperature: float = 0.0
    top_p: float = 1.0
    retries: int = 0
    no_repeat_ngram: int = 20
    batch_size: int = 20
    seed: int = 42

    @property
    def greedy(self) -> bool:
        """Whether the most likely token is taken every time."""
        return self.temperature == 0.0

    @property
    def digest(self) -> str:
        """Digest of the settings that decide which answer comes out."""
        return digest_of(asdict(self))

    def described(self) -> str:
        """The settings in words, for reports."""
        sampling = "greedy" if self.greedy else f"temperature {self.temperature:g}, top-p {self.top_p:g}"
        retries = f", up to {self.retries} retries with a reminder" if self.retries else ""
        repetition = f", no {self.no_repeat_ngram}-token sequence twice" if self.no_repeat_ngram else ""
        return f"{self.mode}, {sampling}, at most {self.max_new_tokens:,} new tokens{repetition}{retries}"


class DecodingSettings(dg.ConfigurableResource["DecodingSettings"]):
    """How baseline and student are asked; both always the same way."""

    mode: str = Field(
        default="constrained",
        description="constrained: a grammar of the answer format bounds what can be written; free: nothing does.",
    )
    max_new_tokens: int = Field(
        default=4096,
        description="An answer that is longer is cut and scored as it is. With a grammar it must hold the longest "
        "answer that the grammar allows, so that none is ever cut; answers are mostly a tenth of it. The manual "
        "process's 1,200 go with mode free.",
    )
    temperature: float = Field(default=0.0, description="0 takes the most likely token (greedy, deterministic).")
    top_p: float = Field(default=1.0, description="Nucleus sampling; only with a temperature above 0.")
    retries: int = Field(default=0, description="How often an invalid answer is asked for again, with a reminder.")
    no_repeat_ngram: int = Field(
        default=20,
        description="No sequence of this many tokens is written twice in one answer, which breaks endless repetition; "
        "none of the teacher's 379 sample answers repeats 20. 0 switches it off.",
    )
    batch_size: int = Field(default=20, description="Answers decoded side by side.")
    seed: int = Field(default=42, description="Seed of the sampling.")
    free_cases: int = Field(
        default=8, description="On how many cases the student is also asked without grammar, for the report."
    )

    free_max_new_tokens: int = Field(
        default=768,
        description="Token limit of those answers: without grammar a model may repeat itself without end.",
    )

    def free_decoding(self) -> Decoding:
        """The same settings without grammar, for the student's free answers."""
        decoding = self.decoding()
        limit = min(decoding.max_new_tokens, self.free_max_new_tokens)
        return replace(decoding, mode="free", max_new_tokens=limit)

    def decoding(self) -> Decoding:
        """The validated plain settings.

        Raises:
            ValueError: naming every setting that is out of range.
        """
        faults = [
            fault
            for wrong, fault in (
                (self.mode not in get_args(DecodingMode), f"mode is {self.mode!r}, use constrained or free"),
                (self.max_new_tokens < 1, f"max_new_tokens is {self.max_new_tokens}, use at least 1"),
                (
                    not 0 <= self.temperature < math.inf,
                    f"temperature is {self.temperature}, use 0 (greedy) or more",
                ),
                (not 0 < self.top_p <= 1, f"top_p is {self.top_p}, use more than 0 and at most 1"),
                (self.retries < 0, f"retries is {self.retries}, use 0 or more"),
                (
                    self.retries > 0 and self.temperature == 0,
                    f"retries is {self.retries} with temperature 0: set a temperature, greedy retries hardly differ",
                ),
                (
                    self.no_repeat_ngram < 0 or self.no_repeat_ngram in (1, 2, 3),
                    f"no_repeat_ngram is {self.no_repeat_ngram}, use 0 (off) or at least 4",
                ),
                (self.batch_size < 1, f"batch_size is {self.batch_size}, use at least 1"),
                (self.free_cases < 0, f"free_cases is {self.free_cases}, use 0 or more"),
                (
                    self.free_max_new_tokens < 1,
                    f"free_max_new_tokens is {self.free_max_new_tokens}, use at least 1 (free_cases 0 asks none)",
                ),
            )
            if wrong
        ]
        if faults:
            raise ValueError("the decoding settings are wrong: " + "; ".join(faults))
        return Decoding(
            mode="constrained" if self.mode == "constrained" else "free",
            max_new_tokens=self.max_new_tokens,
            temperature=self.temperature,
            top_p=self.top_p,
            retries=self.retries,
            no_repeat_ngram=self.no_repeat_ngram,
            batch_size=self.batch_size,
            seed=self.seed,
        )
