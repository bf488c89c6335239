"""What the checks of supervised_dataset look at, found out again from the bytes of the files.

It is training rows, not normalized ones, so that a fault of the stages before cannot hide itself. What can be said of
a row or a table stands here; what it means, and what to do about it, in `checks`; an overlap is found by `holdout`.
"""

import hashlib
import re
from array import array
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import orjson
import pandas as pd

from po_assets.dag.verdict import SHOWN_ROWS
from po_assets.dataset.holdout import HoldOut, Overlap
from po_assets.dataset.publication import TokenBudget, publication_fault
from po_assets.dataset.selection import NEVER_SAMPLED_AWAY, SCORE_COLUMN
from po_assets.dataset.settings import SelectionSettings
from po_assets.intake.checks import TableEvidence
from po_assets.intake.ledger import CLOSED_BY, Balance, Outcome, balance
from po_assets.intake.normalization import input_digest
from po_assets.product_owner import ParsedAnswer, PromptParts, parse_answer, read_status, read_yaml, split_prompt
from po_assets.product_owner.contract import STATUSES
from po_assets.product_owner.prompts import Prompt
from po_assets.storage import open_buffered, read_manifest, read_rows

_VISION_SECTION = re.compile(r"(?:```yaml )?VISION:?\s*", re.IGNORECASE)
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
        if self.parts.vision_yaml is not None or any(map(_VISION_SECTION.fullmatch, asked.splitlines())):
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


class RepeatedPrompts:
    """Finds the prompts that several rows have, and whether their answers contradict each other."""

    def __init__(self, _: DatasetEvidence) -> None:
        # Compact arrays, one entry per row: a table without a limit on its rows must not fill the memory.
        types = {"prompt": "Q", "pair": "Q", "file": "i", "line": "q", "status": "b"}
        self.columns = {name: array(kind) for name, kind in types.items()}
        self._files: dict[str, int] = {}

    def add(self, row: TrainingRow) -> None:
        """Look at one row."""
        status = STATUSES.index(row.status) if row.status in STATUSES else len(STATUSES)
        texts = (text.encode("utf-8", "surrogatepass") for text in (row.prompt, f"{row.prompt}\x00{row.response}"))
        digests = (int.from_bytes(hashlib.blake2b(text, digest_size=8).digest()) for text in texts)
        values = (*digests, self._files.setdefault(row.file, len(self._files)), row.line, status)
        for column, value in zip(self.columns.values(), values, strict=True):
            column.append(value)

    def counted(self) -> tuple[dict[str, int], list[dict[str, Any]]]:
        """The numbers, and the repeated prompts: those with contradicting answers first, then by how often."""
        table = pd.DataFrame({name: np.asarray(column) for name, column in self.columns.items()})
        answers = table[table["prompt"].duplicated(keep=False)].groupby("prompt")
        repeated = answers["status"].agg(["size", "nunique"])
        repeated["contradict"] = repeated["nunique"] > 1
        # Only those that are shown are looked at one by one: there may be as many as half the rows.
        worst = repeated.sort_values(["contradict", "size"], ascending=False, kind="stable").head(SHOWN_ROWS)
        shown, files = [], list(self._files)
        for found in map(answers.get_group, worst.index):
            statuses = Counter((*STATUSES, "unreadable")[status] for status in found["status"])
            said = ", ".join(f"{count} {name}" for name, count in statuses.most_common())
            place = {"file": files[found["file"].iloc[0]], "line": int(found["line"].iloc[0])}
            shown.append({**place, "answers": len(found), "statuses": said})
        numbers = {"different_prompts": table["prompt"].nunique(), "repeated_prompts": len(repeated)}
        copies, contradicting = table["pair"].duplicated().sum(), repeated["contradict"].sum()
        return numbers | {"exact_copies": int(copies), "contradicting_prompts": int(contradicting)}, shown


def _plain(text: str) -> str:
    return " ".join(text.casefold().split())
