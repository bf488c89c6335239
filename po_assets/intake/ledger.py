"""The row ledger: one row for every landed line, with its outcome and why.

`normalized_teacher` opens it (rejected, or for the time being kept), `supervised_dataset` closes it. `reason` is short
and the same for all rows of its kind; `detail` says it in a sentence for this row; `note` is what had to be decided on
the way (a missing score computed, a concept derived) and stays whatever the outcome. Deciding belongs to those who
decide; here are the vocabulary and the counting of outcomes from the file.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from upath import UPath

from po_assets.intake.landing import Source
from po_assets.storage import read_rows
from po_assets.text import amount

OPENED_BY = "normalized_teacher"
CLOSED_BY = "supervised_dataset"
EXAMPLES_PER_OUTCOME = 3
_NAMED_FAULTS = 20


class Outcome(StrEnum):
    """Where a landed line ended."""

    KEPT = "kept"
    REJECTED = "rejected"
    REPLACED = "replaced"
    DUPLICATE = "duplicate"
    BELOW_MIN_SCORE = "below_min_score"
    HELD_OUT = "held_out"
    INVALID_TARGET = "invalid_target"
    OVER_LENGTH = "over_length"
    OVER_MAX_SAMPLES = "over_max_samples"


@dataclass
class OutcomeCounts:
    """Rows by outcome and reason, with a few examples of each."""

    counts: Counter[tuple[str, str]] = field(default_factory=Counter)
    examples: dict[tuple[str, str], list[Mapping[str, Any]]] = field(default_factory=dict)

    def add(self, row: Mapping[str, Any]) -> None:
        """Count one ledger row."""
        key = (str(row["outcome"]), str(row["reason"]))
        before = self.counts.get(key, 0)
        self.counts[key] = before + 1
        if before < EXAMPLES_PER_OUTCOME:
            self.examples.setdefault(key, []).append(row)

    def merge(self, other: "OutcomeCounts") -> None:
        """Add the counts and, where there is room, the examples of another part of the ledger."""
        self.counts.update(other.counts)
        for key, rows in other.examples.items():
            kept = self.examples.setdefault(key, [])
            kept += rows[: EXAMPLES_PER_OUTCOME - len(kept)]

    @property
    def total(self) -> int:
        """All rows."""
        return self.counts.total()

    def of(self, outcome: Outcome) -> int:
        """Rows of one outcome."""
        return sum(count for (name, _), count in self.counts.items() if name == outcome)

    def by_outcome(self) -> dict[str, int]:
        """Rows of each outcome that occurs, in the order of `Outcome`."""
        return {outcome.value: count for outcome in Outcome if (count := self.of(outcome))}

    def lines(self) -> list[str]:
        """One sentence per outcome and reason, most frequent first."""
        return [
            f"**{outcome}**{f', {reason}' if reason else ''}: {amount(count, 'row')} ({count / self.total:.1%})"
            for (outcome, reason), count in self.counts.most_common()
        ]

    def table(self) -> list[dict[str, object]]:
        """One row per outcome and reason, most frequent first: how many, their share, an example, more places."""
        return [
            {
                "outcome": outcome,
                "reason": reason or "–",
                "rows": count,
                "share": f"{count / self.total:.1%}",
                "example": _example(self.examples[outcome, reason][0]),
                "also": ", ".join(f"{row['file']}:{row['line']}" for row in self.examples[outcome, reason][1:]),
            }
            for (outcome, reason), count in self.counts.most_common()
        ]

    def example_rows(self, outcome: Outcome) -> list[dict[str, object]]:
        """A few rows of one outcome, over all its reasons."""
        return [
            {"file": row["file"], "line": row["line"], "reason": row["reason"], "detail": row["detail"]}
            for (name, _), rows in self.examples.items()
            if name == outcome
            for row in rows
        ]


@dataclass(frozen=True)
class Balance:
    """What counting the files found: landed lines, ledger rows by outcome, and every disagreement, in words."""

    landed: int
    outcomes: OutcomeCounts
    disagreements: list[dict[str, object]]
    unnamed: int = 0
    """Disagreements beyond those named."""


def balance(
    raw: UPath,
    sources: list[Source],
    ledger: UPath,
    normalized: UPath,
    rejected: UPath,
    *,
    supervised: UPath | None = None,
) -> Balance:
    """Count landed lines, ledger rows, normalized rows and quarantined rows, each in its own file, and compare.

    The ledger must name every landed line once, in landing order; the order makes one pass in constant memory enough.
    With the `supervised` rows it must be closed, too: every outcome final, and as many kept as there are training rows.
    """
    outcomes = OutcomeCounts()
    faults, undecided, unnamed = _ledger_faults(ledger, sources, outcomes)
    landed, rejected_rows = count_lines(raw), outcomes.of(Outcome.REJECTED)
    counts = [
        (landed, sum(source.rows for source in sources), "lines in the raw snapshot, by its manifest"),
        (outcomes.total, landed, "rows in the ledger, one for each landed line"),
        (count_lines(normalized), outcomes.total - rejected_rows, "normalized rows, one for each row not rejected"),
        (count_lines(rejected), rejected_rows, "quarantined rows, one for each rejected row"),
    ]
    if supervised is not None:
        kept = outcomes.of(Outcome.KEPT)
        counts += [
            (undecided, 0, "rows that supervised_dataset has not decided about"),
            (count_lines(supervised), kept, "training rows, one for each row that the ledger calls kept"),
        ]
    faults += [
        {"file": "", "line": None, "fault": f"{found:,} found where {due:,} are due: {what}"}
        for found, due, what in counts
        if found != due
    ]
    return Balance(landed, outcomes, faults, unnamed)


def _ledger_faults(
    ledger: UPath, sources: list[Source], outcomes: OutcomeCounts
) -> tuple[list[dict[str, object]], int, int]:
    """Count the ledger's rows into `outcomes`; the first faults of rows, the undecided rows, and further faults."""
    faults: list[dict[str, object]] = []
    expected = ((source.file, number) for source in sources for number in range(1, source.rows + 1))
    known = {outcome.value for outcome in Outcome}
    undecided = found = 0
    for row in read_rows(ledger):
        outcomes.add(row)
        undecided += row["decided_by"] != CLOSED_BY and row["outcome"] != Outcome.REJECTED
        place, due = (row["file"], row["line"]), next(expected, None)
        wrong = [f"the ledger's row {outcomes.total} should be {_name(due)}"] if place != due else []
        if row["outcome"] not in known:
            wrong.append(f"unknown outcome {row['outcome']!r}")
        found += len(wrong)
        if len(faults) < _NAMED_FAULTS:
            faults += [{"file": place[0], "line": place[1], "fault": fault} for fault in wrong]
    unnamed = found - len(faults)
    if (due := next(expected, None)) is not None:
        fault = "the ledger has no row for this line and those after it"
        faults.append({"file": due[0], "line": due[1], "fault": fault})
    return faults, undecided, unnamed


def count_lines(path: UPath) -> int:
    """Lines of a file, each of which ends in a newline; 0 where there is no file."""
    if not path.exists():
        return 0
    total = 0
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            total += block.count(b"\n")
    return total


def _example(row: Mapping[str, Any]) -> str:
    text = f"{row['file']}:{row['line']}"
    return f"{text} {row['detail']}".rstrip()


def _name(place: tuple[str, int] | None) -> str:
    return f"{place[0]}, line {place[1]}" if place else "missing: there are no more landed lines"
