"""The settings of the resource `selection`: which readable rows are trained on, and the limits of the checks.

How they are applied belongs to `selection` and `checks`; what the intake tolerates is inherited from it. And those of
the resource `prompt`, which the data's stage is the first to use.
"""

import os
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal, Self, TypeVar

from pydantic import Field, model_validator

from po_assets.dag.settings import Settings
from po_assets.errors import UserError
from po_assets.intake.assets import IntakeSettings
from po_assets.product_owner.contract import MIN_SCORE
from po_assets.product_owner.templates import BUILT_IN, KNOWN, Prompt, read_prompt
from po_assets.storage import digest_of

ScoreSource = Literal["declared", "metric"]


class SelectionSettings(IntakeSettings):
    """Which rows are trained on, and the limits of the checks."""

    noun: ClassVar[str] = "the selection"
    without_effect: ClassVar[frozenset[str]] = frozenset(
        (
            *("max_rejected_share", "score_tolerance", "min_conflicts_share", "max_conflicts_share"),
            *("min_retention", "max_retention", "conflicts_share"),
        )
    )
    """The limits of checks, and whether they stop the graph, change no row."""

    min_score: float = Field(default=MIN_SCORE, ge=0, le=1)
    """Rows that score less are left out."""
    score_source: ScoreSource = "declared"
    """Which score counts: `declared` (by the teacher; a missing one is computed) or `metric` (this project's own)."""
    max_samples: int | None = Field(default=400, ge=1)
    """At most this many rows; null for no limit. The choice depends on the rows' content and the seed alone. Conflicts
    rows are never sampled away."""
    seed: int = Field(default=42, ge=0)
    """Changes which rows are chosen where there are too many."""
    drop_duplicates: bool = False
    """Keep one answer to a prompt, the best scored. Conflicts rows are only dropped as exact copies."""
    near_duplicate_threshold: float = Field(default=0.8, gt=0, le=1)
    """Rows whose input is this similar to an evaluation case (Jaccard similarity of three-word sequences) are held out
    of training; so are rows whose answer is this similar to its reference answer, and rows that hold the case within
    other text."""
    invalid_targets: Literal["leave_out", "warn", "block"] = "leave_out"
    """What becomes of rows whose answer the validator rejects: `leave_out` (each is named in the ledger), or trained on
    with a warning (`warn`), or none is trained on until they are corrected (`block`)."""
    conflicts_share: Literal["warn", "block"] = "block"
    """Whether too few conflicts rows, or a missing one, stop the graph."""
    min_conflicts_share: float = Field(default=0.025, ge=0, le=1)
    """Least share of conflicts rows among the training rows."""
    max_conflicts_share: float = Field(default=0.5, ge=0, le=1)
    """A warning when more of the training rows are conflicts rows."""
    min_retention: float = Field(default=0.8, ge=0, le=1)
    """A warning when a smaller share of the landed rows is fit for training."""
    max_retention: float = Field(default=1.0, ge=0, le=1)
    """A warning when a larger share of the landed rows is fit for training."""


Case = TypeVar("Case")


class PromptSettings(Settings):
    """The prompt that the student is trained, evaluated and served with, and others under which it is tried.

    A template is a Jinja file with the user's turn, of the variables concept, requirements_yaml and, where there is one
    already, existing_vision_yaml; a system text stands in it as {% block system %}…{% endblock %}.
    """

    noun: ClassVar[str] = "the prompt"

    template: str | None = None
    """The own prompt: a template file, named from the folder of the settings file (without one, the current folder), or
    `agent`. Empty: the built-in prompt."""
    consumer_prompts: list[str] = Field(default=["agent"])
    """Other prompts that the student may meet: template files, `agent` (a system text and sections, as an agent sends
    them) or `built-in`. The check `consumer_prompts` tries them; the recipe's prompt_mix trains them."""
    consumer_cases: int = Field(default=10, ge=0)
    """On how many evaluation cases the student is asked through each of them."""
    seed: int = Field(default=42, ge=0)
    """Changes which cases these are."""

    @model_validator(mode="after")
    def _prompts_are_usable(self) -> Self:
        faults: list[str] = []
        for name in dict.fromkeys([*([self.template] if self.template else []), *self.consumer_prompts]):
            try:
                _prompt(name)
            except UserError as error:
                faults.append(str(error))
        named = [_name(name) for name in self.consumer_prompts]
        if repeated := sorted({name for name in named if named.count(name) > 1}):
            faults.append(
                f"consumer_prompts has {', '.join(map(repr, repeated))} twice; give the files different names."
            )
        if faults:
            raise ValueError("\n".join(faults))
        return self

    @property
    def own(self) -> Prompt:
        """The own prompt."""
        return _prompt(self.template) if self.template else BUILT_IN

    @property
    def consumers(self) -> tuple[Prompt, ...]:
        """The consumers' prompts, without the own one."""
        own = self.own.digest
        return tuple(prompt for prompt in map(_prompt, self.consumer_prompts) if prompt.digest != own)

    def consumer_share(self, cases: Sequence[Case]) -> list[Case]:
        """The cases that are asked through them, in their order."""
        chosen = random.Random(self.seed).sample(range(len(cases)), min(self.consumer_cases, len(cases)))  # noqa: S311
        return [cases[index] for index in sorted(chosen)]

    def effective(self) -> dict[str, Any]:
        """By what the files say, wherever they are."""
        consumers = [prompt.digest for prompt in self.consumers]
        return super().effective() | {"template": self.own.digest, "consumer_prompts": consumers}

    def trained_on(self, share: float) -> str:
        """Digest of what is trained when each consumer prompt has this share of the rows (`prompt_mix`)."""
        return digest_of([self.own.digest, *([prompt.digest for prompt in self.consumers] if share else [])])


def _name(name: str) -> str:
    return name if name in KNOWN else Path(name).stem


def _prompt(name: str) -> Prompt:
    """The built-in prompt of that name, else that of the file."""
    if name in KNOWN:
        return KNOWN[name]
    settings = os.environ.get("PO_SETTINGS")
    path = (Path(settings).parent if settings else Path()) / Path(name).expanduser()
    try:
        return read_prompt(path.read_text(encoding="utf-8-sig"), _name(name))
    except OSError as error:
        raise UserError(
            f"The prompt {name!r} cannot be read: {error.strerror} ({path.absolute()}). Name a template file, or one "
            f"of {', '.join(KNOWN)}."
        ) from error
    except UnicodeDecodeError as error:
        raise UserError(f"The prompt {name!r} must be UTF-8 text: {error} ({path.absolute()}).") from error
