"""What the checks of supervised_dataset look at: its rows with their places, the balance, the settings; their registry.

What each check says belongs to `checks`.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import orjson

from po_assets.dag import AssetChecks
from po_assets.dataset.publication import TokenBudget
from po_assets.dataset.selection import NEVER_SAMPLED_AWAY, SCORE_COLUMN
from po_assets.dataset.settings import SelectionSettings
from po_assets.intake.landing import sources_of
from po_assets.intake.ledger import CLOSED_BY, Balance, Outcome, balance
from po_assets.product_owner import ParsedAnswer, PromptParts, parse_answer, read_status, split_prompt
from po_assets.product_owner.templates import BUILT_IN, Prompt
from po_assets.storage import Layout, open_buffered, read_manifest, read_rows


@dataclass(frozen=True)
class TrainingRow:
    """A training row as it stands in the file, with the place where it landed; its parts are read when asked for."""

    file: str
    line: int
    row: Mapping[str, Any]
    asked_with: Prompt = BUILT_IN

    @property
    def prompt(self) -> str:
        """The prompt, empty when the row has none."""
        return value if isinstance(value := self.row.get("prompt"), str) else ""

    @property
    def response(self) -> str:
        """The response, empty when the row has none."""
        return value if isinstance(value := self.row.get("response"), str) else ""

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


@dataclass(frozen=True)
class DatasetEvidence:
    """What the checks look at: the files as they stand, the settings, the tokenizer."""

    layout: Layout
    settings: SelectionSettings
    budget: TokenBudget

    @cached_property
    def balance(self) -> Balance:
        """Landed lines, ledger rows and training rows, counted in their files."""
        paths = self.layout
        sources = sources_of(read_manifest(paths.raw), paths.raw)
        return balance(paths.raw, sources, paths.ledger, paths.normalized, paths.rejected, supervised=paths.supervised)

    def rows(self) -> Iterator[TrainingRow]:
        """The training rows, each with the place under which it landed, as far as the ledger has one for it."""
        kept = (entry for entry in read_rows(self.layout.ledger) if entry["outcome"] == Outcome.KEPT)
        for number, row in enumerate(read_rows(self.layout.supervised), start=1):
            entry = next(kept, {"file": self.layout.supervised.name, "line": number})
            yield TrainingRow(entry["file"], entry["line"], row, self.budget.prompt)

    def conflicts_left_out(self) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
        """Ledger entry and normalized row of every conflicts row that passed the score filter and is not trained on.

        A replaced one is there in its corrected form.
        """
        score, least = SCORE_COLUMN[self.settings.score_source], self.settings.min_score
        readable = (entry for entry in read_rows(self.layout.ledger) if entry["decided_by"] == CLOSED_BY)
        with open_buffered(self.layout.normalized) as lines:
            for entry, line in zip(readable, lines, strict=False):
                # Every JSON line that has this value holds these bytes; other lines need no parsing.
                if entry["outcome"] in (Outcome.KEPT, Outcome.REPLACED) or b'"conflicts"' not in line:
                    continue
                row = orjson.loads(line)
                if row["status"] == NEVER_SAMPLED_AWAY and row[score] >= least:
                    yield entry, row


supervised_checks = AssetChecks[DatasetEvidence]("supervised_dataset", rows=DatasetEvidence.rows)
