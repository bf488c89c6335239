"""The row ledger: one row for every landed line, with its outcome and why.

`normalized_teacher` opens it (rejected, or for the time being kept), `supervised_dataset` closes it. `reason` is short
and the same for all rows of its kind; `detail` says it in a sentence for this row; `note` is what had to be decided on
the way (a missing score computed, a concept derived) and stays whatever the outcome.

Here are the vocabulary, the pass that opens the ledger (all landed lines through normalization, in constant memory) and
the counting of outcomes from the file. A worker process turns a block of lines into lines of table, ledger and
quarantine (`write_block`), so neither Dagster nor pandas may be imported here. How one line is read belongs to
`normalization`, closing the ledger to `dataset`.
"""

import base64
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from functools import partial
from itertools import zip_longest
from typing import Any

import orjson
from upath import UPath

from po_assets.intake.landing import snapshot_lines, sources_of
from po_assets.intake.lines import Line, Reason, Rejected
from po_assets.intake.normalization import line_id, normalize
from po_assets.product_owner.contract import STATUS_ALIASES
from po_assets.storage import Layout, StagedTable, published_lines, read_rows, recorded_digest, stage_lines
from po_assets.storage.workers import group, map_blocks
from po_assets.text import amount

OPENED_BY = "normalized_teacher"
CLOSED_BY = "supervised_dataset"
EXAMPLES_PER_OUTCOME = 3
PREVIEW_ROWS = 5
SCORE_STEPS = 1000
_COUNTED = ("format", "status", "tier", "score_source", "valid")
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
        self.counts[key] += 1
        if self.counts[key] <= EXAMPLES_PER_OUTCOME:
            self.examples.setdefault(key, []).append(row)

    def merge(self, other: "OutcomeCounts") -> None:
        """Add the counts and, where there is room, the examples of another part of the ledger."""
        self.counts.update(other.counts)
        for key, rows in other.examples.items():
            self.examples[key] = [*self.examples.get(key, ()), *rows][:EXAMPLES_PER_OUTCOME]

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
        table: list[dict[str, object]] = []
        for (outcome, reason), count in self.counts.most_common():
            first, *others = self.examples[outcome, reason]
            named = {"outcome": outcome, "reason": reason or "–", "rows": count, "share": f"{count / self.total:.1%}"}
            example = f"{first['file']}:{first['line']} {first['detail']}".rstrip()
            table.append(named | {"example": example, "also": ", ".join(f"{o['file']}:{o['line']}" for o in others)})
        return table

    def example_rows(self, outcome: Outcome) -> list[dict[str, object]]:
        """A few rows of one outcome, over all its reasons."""
        rows = (row for (name, _), examples in self.examples.items() if name == outcome for row in examples)
        return [{key: row[key] for key in ("file", "line", "reason", "detail")} for row in rows]


@dataclass
class Summary:
    """What the pass found, for people."""

    outcomes: OutcomeCounts = field(default_factory=OutcomeCounts)
    counts: dict[str, Counter[Any]] = field(default_factory=lambda: defaultdict(Counter))
    """Rows by the values of `_COUNTED`; of scores by thousandths, so that the distribution costs constant memory."""
    preview: list[dict[str, object]] = field(default_factory=list)

    def add_row(self, row: dict[str, Any]) -> None:
        """Count one normalized row."""
        for column in _COUNTED:
            self.counts[column][row[column]] += 1
        self.counts["score"][round(row["score"] * SCORE_STEPS)] += 1
        if len(self.preview) < PREVIEW_ROWS:
            self.preview.append({key: row[key] for key in ("file", "line", "format", "status", "score", "concept")})

    def merge(self, other: "Summary") -> None:
        """Add what another block of rows held."""
        self.outcomes.merge(other.outcomes)
        for column, counts in other.counts.items():
            self.counts[column].update(counts)
        self.preview = [*self.preview, *other.preview][:PREVIEW_ROWS]

    @property
    def rows(self) -> int:
        """Normalized rows."""
        return self.counts["format"].total()


@dataclass
class WrittenBlock:
    """What a block of lines became: JSON lines for three files, and their summary."""

    normalized: list[bytes] = field(default_factory=list)
    ledger: list[bytes] = field(default_factory=list)
    rejected: list[bytes] = field(default_factory=list)
    summary: Summary = field(default_factory=Summary)

    def enter(self, line: Line, format_name: str | None, outcome: Outcome, **texts: str) -> None:
        """Write a line's ledger row."""
        row = {
            "file": line.file,
            "line": line.number,
            "record_id": line_id(line.data),
            "format": format_name,
            "outcome": outcome.value,
            **{name: texts.get(name, "") for name in ("reason", "detail", "note")},
            "decided_by": OPENED_BY,
        }
        self.ledger.append(orjson.dumps(row))
        self.summary.outcomes.add(row)

    def reject(self, line: Line, rejected: Rejected) -> None:
        """Write the ledger row of a line that cannot be used, and put it into quarantine verbatim."""
        why = {"reason": rejected.reason.value, "detail": rejected.detail}
        self.enter(line, rejected.format_name, Outcome.REJECTED, **why)
        record: dict[str, object] = {"file": line.file, "line": line.number, **why}
        if len(line.data) < line.length:
            record["only_the_first_bytes"] = len(line.data)
        try:
            record["text"] = line.data.decode()
        except UnicodeDecodeError:
            record["base64"] = base64.b64encode(line.data).decode()
        self.rejected.append(orjson.dumps(record))


def normalize_snapshot(
    layout: Layout, workers: int | None = None, status_aliases: Mapping[str, str] = STATUS_ALIASES
) -> tuple[StagedTable, Summary]:
    """Normalize every line of the raw snapshot, whose digest is noted as input of all that is made.

    Publishes the opened ledger and the quarantine; the normalized table is returned staged, for the IO manager.

    Raises:
        UserError: there is no complete snapshot.
    """
    sources, inputs, summary = sources_of(layout.raw), {"raw_teacher": recorded_digest(layout.raw)}, Summary()
    with published_lines(layout.ledger) as ledger, published_lines(layout.rejected) as rejected:

        def normalized() -> Iterator[bytes]:
            """The table's lines; those of the other files are written on the way."""
            blocks = group(snapshot_lines(layout.raw, sources), size=lambda line: len(line.data))
            for block in map_blocks(make_work, (status_aliases,), blocks, workers):
                ledger.write(block.ledger)
                rejected.write(block.rejected)
                summary.merge(block.summary)
                yield from block.normalized

        staged = stage_lines(layout.normalized, normalized()).with_manifest(inputs=inputs)
        ledger.inputs = inputs | {"normalized_teacher": staged.sha256}
        rejected.inputs = inputs
    return staged, summary


def make_work(status_aliases: Mapping[str, str]) -> Callable[[list[Line]], WrittenBlock]:
    """The function that worker processes apply to each block."""
    return partial(write_block, status_aliases=status_aliases)


def write_block(lines: list[Line], status_aliases: Mapping[str, str] = STATUS_ALIASES) -> WrittenBlock:
    """Normalize a block of lines; whatever a line holds, it ends in the ledger."""
    written = WrittenBlock()
    for line in lines:
        try:
            normalized = normalize(line, status_aliases)
            # Raises for what JSON cannot carry, so that every row that is written can be read again.
            encoded = orjson.dumps(normalized.row)
        except Rejected as rejected:
            written.reject(line, rejected)
        except Exception as error:  # noqa: BLE001  a row that trips over a fault of ours must not stop the others
            detail = f"{type(error).__name__} while reading the row: {str(error)[:300]}; please report this"
            written.reject(line, Rejected(Reason.UNEXPECTED, detail))
        else:
            written.normalized.append(encoded)
            written.summary.add_row(normalized.row)
            written.enter(line, normalized.row["format"], Outcome.KEPT, note=normalized.notes)
    return written


@dataclass(frozen=True)
class Balance:
    """What counting the files found: landed lines, ledger rows by outcome, and every disagreement, in words."""

    landed: int
    outcomes: OutcomeCounts
    disagreements: list[dict[str, object]]
    unnamed: int
    """Disagreements beyond those named."""


def balance(layout: Layout, *, closed: bool = False) -> Balance:
    """Count landed lines, ledger rows, normalized rows and quarantined rows, each in its own file, and compare.

    The ledger must name every landed line once, in landing order; the order makes one pass in constant memory enough.
    A closed one has decided about every row, and calls as many kept as there are training rows.

    Raises:
        UserError: there is no complete snapshot.
    """
    sources, outcomes = sources_of(layout.raw), OutcomeCounts()
    known = {outcome.value for outcome in Outcome}
    faults: list[dict[str, object]] = []
    undecided = unnamed = 0
    expected = ((source.file, number) for source in sources for number in range(1, source.rows + 1))
    for row, due in zip_longest(read_rows(layout.ledger), expected):
        if row is None:
            missing = "the ledger has no row for this line and those after it"
            faults.append({"file": due[0], "line": due[1], "fault": missing})
            break
        outcomes.add(row)
        undecided += row["decided_by"] != CLOSED_BY and row["outcome"] != Outcome.REJECTED
        name = f"{due[0]}, line {due[1]}" if due else "missing: there are no more landed lines"
        wrong = [f"the ledger's row {outcomes.total} should be {name}"] if (row["file"], row["line"]) != due else []
        wrong += [f"unknown outcome {row['outcome']!r}"] if row["outcome"] not in known else []
        named = wrong if len(faults) < _NAMED_FAULTS else []
        faults += [{"file": row["file"], "line": row["line"], "fault": fault} for fault in named]
        unnamed += len(wrong) - len(named)
    landed, rejected = count_lines(layout.raw), outcomes.of(Outcome.REJECTED)
    counts = [
        (landed, sum(source.rows for source in sources), "lines in the raw snapshot, by its manifest"),
        (outcomes.total, landed, "rows in the ledger, one for each landed line"),
        (count_lines(layout.normalized), outcomes.total - rejected, "normalized rows, one for each row not rejected"),
        (count_lines(layout.rejected), rejected, "quarantined rows, one for each rejected row"),
    ]
    if closed:
        training, kept = count_lines(layout.supervised), outcomes.of(Outcome.KEPT)
        counts += [
            (undecided, 0, "rows that supervised_dataset has not decided about"),
            (training, kept, "training rows, one for each row that the ledger calls kept"),
        ]
    faults += [
        {"file": "", "line": None, "fault": f"{found:,} found where {due:,} are due: {what}"}
        for found, due, what in counts
        if found != due
    ]
    return Balance(landed, outcomes, faults, unnamed)


def count_lines(path: UPath) -> int:
    """Lines of a file, each of which ends in a newline; 0 where there is no file."""
    if not path.exists():
        return 0
    with path.open("rb") as file:
        return sum(block.count(b"\n") for block in iter(lambda: file.read(1 << 20), b""))
