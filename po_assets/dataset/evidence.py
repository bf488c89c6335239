"""What the checks of supervised_dataset look at, found out again from the bytes of the files.

It is training rows, not normalized ones, so that a fault of the stages before cannot hide itself. What a
row holds, and how the files agree, stands here; what it means, and what to do about it, in `checks`; an overlap is
found by `holdout`.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import orjson

from po_assets.dataset.holdout import HoldOut, Overlap
from po_assets.dataset.publication import TokenBudget, publication_fault
from po_assets.dataset.selection import NEVER_SAMPLED_AWAY, SCORE_COLUMN
from po_assets.dataset.settings import SelectionSettings
from po_assets.intake.checks import TableEvidence
from po_assets.intake.ledger import CLOSED_BY, Balance, Outcome, balance
from po_assets.intake.normalization import input_digest
from po_assets.product_owner import ParsedAnswer, PromptParts, parse_answer, read_status, read_yaml, split_prompt
from po_assets.product_owner.contract import VISION_KEYS
from po_assets.product_owner.templates import Prompt
from po_assets.storage import open_buffered, read_manifest, read_rows

_VISION_SECTION = re.compile(
    rf"^(?:```yaml )?VISION:?\s*(?:```\w*\s*)?^[- ]*(?:{'|'.join(VISION_KEYS)}):", re.IGNORECASE | re.MULTILINE
)
"""A concept may have a line `Vision:` of its own; a key below it tells the document."""
_TELLING_SUMMARY_CHARACTERS = 40
"""A product summary this long does not stand in a prompt by chance."""


@dataclass(frozen=True)
class TrainingRow:
    """A training row as it stands in the file, with the place where it landed; a text that it lacks is empty."""

    file: str
    line: int
    keys: list[str]
    prompt: str
    response: str
    asked_with: Prompt

    @cached_property
    def parts(self) -> PromptParts:
        """What the prompt holds."""
        return self.asked_with.parts(self.prompt) or split_prompt(self.prompt)

    @cached_property
    def answer(self) -> ParsedAnswer:
        """What the response holds."""
        return parse_answer(self.response)

    @property
    def status(self) -> str | None:
        """The status that the response teaches."""
        return read_status(self.answer.review_yaml)

    @property
    def faults(self) -> list[str]:
        """What keeps it from being a prompt and a response of the one form."""
        faults: list[str] = []
        if self.keys != ["prompt", "response"]:
            faults.append(f"its keys are {', '.join(self.keys) or 'none'}, expected are prompt, response")
        if self.asked_with.parts(self.prompt) is None:
            faults.append("its prompt is not the one that evaluation uses")
        return [*faults, *self.answer.missing]

    @property
    def given_away(self) -> str:
        """What the prompt holds of the vision that the answer must contain; empty for nothing."""
        asked = self.parts.concept or self.prompt
        if self.parts.vision_yaml is not None or _VISION_SECTION.search(asked):
            return "a VISION stands in the prompt"
        summary = read_yaml(self.answer.vision_yaml).value.get("product_summary")
        told = _plain(summary) if isinstance(summary, str) else ""
        # What an existing vision says may stand in the new one.
        if len(told) >= _TELLING_SUMMARY_CHARACTERS and told in _plain(f"{asked}\n{self.parts.requirements_yaml}"):
            return f"product_summary: {summary}"
        return ""

    def overlap(self, hold_out: HoldOut) -> Overlap | None:
        """The evaluation case whose input or answer it has, or nearly."""
        # A prompt that names no sections is compared as a whole.
        concept, requirements = self.parts.concept or "", self.parts.requirements_yaml or self.prompt
        digest = input_digest(concept, requirements, self.parts.existing_vision_yaml or "")
        asked = hold_out.find(concept, requirements, digest)
        return asked or hold_out.find_answer(self.answer.vision_yaml or "", self.answer.review_yaml or "")


@dataclass(frozen=True)
class DatasetEvidence(TableEvidence):
    """What the checks look at: the files as they stand, the settings, the tokenizer."""

    settings: SelectionSettings
    budget: TokenBudget

    @cached_property
    def balance(self) -> Balance:
        """Landed lines, ledger rows and training rows, counted in their files; and whether they are of one run."""
        counted = balance(self.layout, closed=True)
        if fault := publication_fault(self.layout):
            counted.disagreements.append({"file": "", "line": None, "fault": fault})
        return counted

    @cached_property
    def recorded(self) -> Mapping[str, Any]:
        """What the manifest of the training rows says of them besides."""
        manifest = read_manifest(self.layout.supervised)
        return manifest.extra if manifest else {}

    def rows(self) -> Iterator[TrainingRow]:
        """The training rows, each with the place under which it landed, as far as the ledger has one for it."""
        kept = (entry for entry in read_rows(self.layout.ledger) if entry["outcome"] == Outcome.KEPT)
        for number, row in enumerate(read_rows(self.layout.supervised), start=1):
            entry = next(kept, {"file": self.layout.supervised.name, "line": number})
            prompt, response = (text if isinstance(text := row.get(key), str) else "" for key in ("prompt", "response"))
            yield TrainingRow(entry["file"], entry["line"], list(row), prompt, response, self.budget.prompt)

    def conflicts_left_out(self) -> Iterator[dict[str, Any]]:
        """Every conflicts row that passed the score filter and is not trained on, not even in a corrected form."""
        score, least = SCORE_COLUMN[self.settings.score_source], self.settings.min_score
        readable = (entry for entry in read_rows(self.layout.ledger) if entry["decided_by"] == CLOSED_BY)
        with open_buffered(self.layout.normalized) as lines:
            for entry, line in zip(readable, lines, strict=False):
                # Every JSON line that has this value holds these bytes; other lines need no parsing.
                if entry["outcome"] not in (Outcome.KEPT, Outcome.REPLACED) and b'"conflicts"' in line:
                    row = orjson.loads(line)
                    if row["status"] == NEVER_SAMPLED_AWAY and row[score] >= least:
                        place = {"file": entry["file"], "line": entry["line"], "score": row["score"]}
                        reason = ": ".join(filter(None, (entry["reason"], entry["detail"])))
                        yield {**place, "outcome": entry["outcome"], "reason": reason}


def _plain(text: str) -> str:
    return " ".join(text.casefold().split())
