"""The rules of supervised_dataset about form, length, validity and number of rows.

Nothing here knows Dagster's checks; `checks` runs these and shows what they say. The rules about what a prompt gives
away are in `leakage`.
"""

import re
from array import array
from collections import Counter
from collections.abc import Mapping
from typing import Any

from po_assets.dag import Verdict, bar_chart, histogram
from po_assets.dag.violations import Violations
from po_assets.dataset.token_budget import TokenBudget
from po_assets.dataset.training_row import TrainingRow
from po_assets.intake.ledger import Balance, Outcome
from po_assets.product_owner import build_prompt, validate_answer
from po_assets.storage.workers import BLOCK_ROWS
from po_assets.text import amount, verb

_PARTICULARS = re.compile(r"'.*'|[0-9]+", re.DOTALL)
"""What differs from row to row in the validator's reasons; without it, they can be counted."""

_HEAD, _BETWEEN, _TAIL = build_prompt("\x00", "\x00").split("\x00")
"""The fixed text of the one prompt, before, between and after concept and requirements."""


class SchemaRule:
    """Every row is a prompt and a response of the one form, and there are as many as the ledger calls kept."""

    def __init__(self, kept: int) -> None:
        self._kept = kept
        self._rows = 0
        self._violations = Violations()

    def add(self, row: TrainingRow) -> None:
        """Look at one row."""
        self._rows += 1
        faults: list[str] = []
        if list(row.row) != ["prompt", "response"]:
            faults.append(f"its keys are {', '.join(map(str, row.row)) or 'none'}, expected are prompt, response")
        if not (row.prompt.startswith(_HEAD) and _BETWEEN in row.prompt and row.prompt.endswith(_TAIL)):
            faults.append("its prompt is not the one that evaluation uses")
        faults += row.answer.missing
        if faults:
            self._violations.add(row.named(fault="; ".join(faults)))

    def verdict(self) -> Verdict:
        """Whether all rows are sound."""
        numbers = {"checked_rows": self._rows, "kept_by_the_ledger": self._kept, "faulty_rows": self._violations.count}
        faults: list[str] = []
        if self._rows != self._kept:
            faults.append(f"The file has {amount(self._rows, 'row')}, the ledger calls {self._kept:,} kept")
        if not self._rows:
            faults.append("There is no training row")
        if self._violations:
            faults.append(
                f"{self._violations.count:,} of {amount(self._rows, 'row')} {verb(self._violations.count, 'is', 'are')} "
                "not of the one form"
            )
        if faults:
            return Verdict(
                False,
                f"{'; '.join(faults)}.",
                next_step="Materialize normalized_teacher and supervised_dataset again. With no row left, see the "
                "outcomes in the asset's metadata for where the rows went.",
                rows=self._violations.rows,
                numbers=numbers,
            )
        return Verdict(
            True,
            f"{self._rows:,} of {amount(self._rows, 'row')} {verb(self._rows, 'is', 'are')} a prompt and a response of "
            "the one form, as many as the ledger says.",
            numbers=numbers,
        )


class ConflictsRule:
    """Enough conflicts rows, and none that passed the score filter is missing."""

    def __init__(self, min_share: float, max_share: float = 1.0) -> None:
        self._min_share, self._max_share = min_share, max_share
        self._rows = self._conflicts = self._held_out = 0
        self._lost = Violations()

    def add(self, row: TrainingRow) -> None:
        """Look at one row."""
        self._rows += 1
        self._conflicts += row.status == "conflicts"

    def add_left_out(self, entry: Mapping[str, Any], normalized: Mapping[str, Any]) -> None:
        """Look at a conflicts row that passed the score filter and is not trained on."""
        if entry["outcome"] == Outcome.HELD_OUT:
            self._held_out += 1
        else:
            self._lost.add(
                {
                    "file": entry["file"],
                    "line": entry["line"],
                    "score": normalized["score"],
                    "outcome": entry["outcome"],
                    "reason": ": ".join(text for text in (entry["reason"], entry["detail"]) if text),
                }
            )

    def verdict(self) -> Verdict:
        """Whether there are enough, and all."""
        share = self._conflicts / self._rows if self._rows else 0.0
        numbers = {"conflicts": self._conflicts, "conflicts_share": share, "lost_conflicts": self._lost.count}
        held_out = (
            f" {self._held_out:,} more {verb(self._held_out, 'is', 'are')} held out for evaluation."
            if self._held_out
            else ""
        )
        found = (
            f"{self._conflicts:,} of {amount(self._rows, 'training row')} ({share:.1%}) "
            f"{verb(self._conflicts, 'is', 'are')} conflicts"
        )
        if self._lost:
            return Verdict(
                False,
                f"{amount(self._lost.count, 'conflicts row')} passed the score filter and "
                f"{verb(self._lost.count, 'is', 'are')} not among the training rows; "
                f"{found}.{held_out}",
                next_step="The table says why each is missing. Shorten rows that are over length, or raise max_length "
                "in the resource base_model.",
                rows=self._lost.rows,
                numbers=numbers,
            )
        if share < self._min_share:
            return Verdict(
                False,
                f"{found}, at least {self._min_share:.1%} are needed.{held_out}",
                next_step="Land more conflicts examples: with fewer the student never learns to say conflicts.",
                numbers=numbers,
            )
        if share > self._max_share:
            return Verdict(
                False,
                f"{found}, at most {self._max_share:.1%} are expected.{held_out}",
                next_step="Conflicts rows are never sampled away, so that they crowd out the others where max_samples "
                "is small: raise it, or land fewer conflicts rows.",
                numbers=numbers,
                severity="WARN",
            )
        return Verdict(
            True,
            f"{found}, at least {self._min_share:.1%} are needed; every one that passed the score filter is here."
            f"{held_out}",
            numbers=numbers,
        )


class FitsContextRule:
    """No row is longer than the model is trained with, so that none loses a token."""

    def __init__(self, budget: TokenBudget) -> None:
        self._budget = budget
        self._lengths = array("i")
        self._violations = Violations()
        self._waiting: list[TrainingRow] = []

    def add(self, row: TrainingRow) -> None:
        """Look at one row; tokens are counted for many rows at once."""
        self._waiting.append(row)
        if len(self._waiting) == BLOCK_ROWS:
            self._measure()

    def _measure(self) -> None:
        lengths = self._budget.row_lengths([(row.prompt, row.response) for row in self._waiting])
        self._lengths.extend(lengths)
        for row, tokens in zip(self._waiting, lengths, strict=True):
            if tokens > self._budget.max_length:
                self._violations.add(row.named(tokens=tokens, over=tokens - self._budget.max_length), tokens)
        self._waiting.clear()

    def verdict(self) -> Verdict:
        """Whether all rows fit."""
        self._measure()
        rows, limit = len(self._lengths), self._budget.max_length
        longest = max(self._lengths, default=0)
        numbers = {
            "longest_row_tokens": longest,
            "rows_over_length": self._violations.count,
            "tokens": sum(self._lengths),
        }
        extra = (
            {"lengths": histogram(self._lengths, "Tokens per training row", "tokens", {"max_length": limit})}
            if rows
            else {}
        )
        if self._violations:
            return Verdict(
                False,
                f"{self._violations.count:,} of {amount(rows, 'row')} {verb(self._violations.count, 'has', 'have')} more "
                f"than the {limit:,} tokens that {self._budget.model} is trained with, the longest {longest:,}: "
                "their ends would be lost.",
                next_step="Materialize supervised_dataset again with this base model: rows over length are then left "
                "out and named in the ledger. Or raise max_length in the resource base_model.",
                rows=self._violations.rows,
                numbers=numbers,
                extra=extra,
            )
        return Verdict(
            True,
            f"{rows:,} of {amount(rows, 'row')} {verb(rows, 'fits', 'fit')} into {limit:,} tokens of "
            f"{self._budget.model}; the longest has {longest:,}.",
            numbers=numbers,
            extra=extra,
        )


class ValidTargetsRule:
    """The responses pass the validator that students' answers must pass."""

    def __init__(self) -> None:
        self._rows = 0
        self._reasons: Counter[str] = Counter()
        self._violations = Violations()

    def add(self, row: TrainingRow) -> None:
        """Look at one row."""
        self._rows += 1
        verdict = validate_answer(row.answer.vision_yaml, row.answer.review_yaml)
        if not verdict:
            self._reasons[_PARTICULARS.sub("…", verdict.reason)] += 1
            self._violations.add(row.named(status=row.status, reason=verdict.reason))

    def verdict(self) -> Verdict:
        """Whether the student is taught answers that the evaluation accepts; a warning."""
        count = self._violations.count
        share = count / self._rows if self._rows else 0.0
        numbers = {"invalid_targets": count, "invalid_targets_share": share}
        if not count:
            return Verdict(
                True,
                f"{self._rows:,} of {amount(self._rows, 'response')} {verb(self._rows, 'passes', 'pass')} the "
                "validator.",
                numbers=numbers,
                severity="WARN",
            )
        reason, often = self._reasons.most_common(1)[0]
        return Verdict(
            False,
            f"{count:,} of {amount(self._rows, 'response')} ({share:.1%}) {verb(count, 'fails', 'fail')} the validator "
            f"that the student's answers must pass, most often ({amount(often, 'time')}) because {reason}.",
            next_step="The student learns what it is shown. Correct these answers and land them again, or let the "
            "teacher answer once more.",
            rows=self._violations.rows,
            numbers=numbers,
            severity="WARN",
            extra={"reasons": bar_chart(dict(self._reasons.most_common(8)), "Why responses are not valid")},
        )


def retention(counted: Balance, least: float, most: float) -> Verdict:
    """The share of landed rows (those of the raw snapshot) fit for training lies where it is expected; a warning."""
    outcomes, landed = counted.outcomes, counted.landed
    fit = outcomes.of(Outcome.KEPT) + outcomes.of(Outcome.OVER_MAX_SAMPLES)
    share = fit / landed if landed else 0.0
    numbers = {"fit_rows": fit, "landed": landed, "retention": share, "kept": outcomes.of(Outcome.KEPT)}
    left = ", ".join(f"{count:,} {name}" for name, count in outcomes.by_outcome().items())
    found = f"{fit:,} of {amount(landed, 'landed row')} ({share:.1%}) {verb(fit, 'is', 'are')} fit for training"
    band = f"between {least:.0%} and {most:.0%} are expected"
    if least <= share <= most:
        return Verdict(True, f"{found}, {band}: {left}.", numbers=numbers, severity="WARN")
    return Verdict(
        False,
        f"{found}, {band}: {left}.",
        next_step="See the outcomes in the asset's metadata. Either the landed data changed its character, or a "
        "setting of the resource selection (min_score, score_source) does not suit it.",
        rows=[row for row in outcomes.table() if row["outcome"] != Outcome.KEPT],
        numbers=numbers,
        severity="WARN",
    )
