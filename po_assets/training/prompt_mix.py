"""Which training rows are shown under a consumer's prompt instead of the own one, so that the student holds under both.

How often is the recipe's `prompt_mix`; which prompts there are belongs to `dataset.settings`.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from po_assets.dataset.settings import PromptSettings
from po_assets.errors import UserError
from po_assets.product_owner.prompts import BUILT_IN, Prompt
from po_assets.text import amount

Example = tuple[str, str, str]
"""The user's turn, the answer, the system text (empty for none)."""


@dataclass(frozen=True)
class Prompts:
    """What the rows were written with, and consumers' prompts that they may be shown under."""

    own: Prompt = BUILT_IN
    consumers: tuple[Prompt, ...] = ()


def prompts_of(settings: PromptSettings) -> Prompts:
    """The prompts that are set."""
    return Prompts(settings.own, settings.consumers)


@dataclass
class MixedRows:
    """The rows as they are trained, and how many under which prompt."""

    examples: list[Example]
    shown: dict[str, int] = field(default_factory=dict)
    """By name of the consumer's prompt."""
    kept: int = 0
    """Rows that were to be shown under a consumer's prompt, and do not fit into the model's length under it."""

    @property
    def described(self) -> str:
        """One sentence; empty where nothing is mixed."""
        if not self.shown:
            return ""
        others = ", ".join(f"{count:,} under {name}" for name, count in self.shown.items())
        kept = f" ({self.kept:,} more would not fit under one and stayed)" if self.kept else ""
        own = len(self.examples) - sum(self.shown.values())
        return f"Of {amount(len(self.examples), 'row')} {own:,} are trained under the own prompt, {others}{kept}."


def mix_fault(share: float, consumers: Sequence[Prompt]) -> str | None:
    """Why this share cannot be had, in a sentence with the way out."""
    if share and not consumers:
        return (
            f"prompt_mix is {share:g}, and no other prompt is named: name some in consumer_prompts (resource prompt)."
        )
    if share * len(consumers) > 1:
        return (
            f"prompt_mix is {share:g} for each of {len(consumers)} prompts, which is more than all rows: lower it to "
            f"{1 / len(consumers):.2g} or less, or name fewer in consumer_prompts (resource prompt)."
        )
    return None


def mixed(
    pairs: Sequence[tuple[str, str]],
    prompts: Prompts,
    share: float,
    *,
    seed: int,
    fits: Callable[[Example], bool],
) -> MixedRows:
    """The (prompt, response) pairs, of which each consumer's prompt gets about `share`.

    All answers to one question are shown under one prompt. A row that does not fit under its new prompt, or in whose
    prompt the question cannot be found, stays under the own one.

    Raises:
        UserError: as `mix_fault` says.
    """
    if fault := mix_fault(share, prompts.consumers):
        raise UserError(fault)
    result = MixedRows([(*pair, prompts.own.system) for pair in pairs])
    if not share:
        return result
    rows_of: dict[str, list[int]] = {}
    for row, (prompt, _) in enumerate(pairs):
        rows_of.setdefault(prompt, []).append(row)
    questions = list(rows_of)
    random.Random(seed).shuffle(questions)  # noqa: S311
    drawn = iter(questions)
    for consumer in prompts.consumers:
        taken = shown = 0
        while taken < round(share * len(pairs)) and (question := next(drawn, None)) is not None:
            parts = prompts.own.parts(question)
            asked = ""
            if parts:
                texts = (parts.concept or "", parts.requirements_yaml or "", parts.existing_vision_yaml or "")
                asked = consumer.user(*texts)
            for row in rows_of[question]:
                taken += 1
                example = (asked, pairs[row][1], consumer.system)
                if asked and fits(example):
                    result.examples[row] = example
                    shown += 1
        result.shown[consumer.name] = shown
        result.kept += taken - shown
    return result
