"""All landed lines through normalization: table, ledger and quarantine in one pass and in constant memory.

A worker process turns a block of lines into lines of the three files (`write_block`), so neither Dagster nor pandas may
be imported here. How one line is read belongs to `normalization`; what Dagster shows of the pass, to `assets`.
"""

import base64
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import orjson

from po_assets.intake.landing import Source, snapshot_lines
from po_assets.intake.ledger import OPENED_BY, Outcome, OutcomeCounts
from po_assets.intake.lines import Line, Reason, Rejected
from po_assets.intake.normalization import line_id, normalize
from po_assets.product_owner.contract import STATUS_ALIASES
from po_assets.storage import Layout, LineWriter, StagedTable, published_lines, stage_lines
from po_assets.storage.workers import group, map_blocks

PREVIEW_ROWS = 5
_SCORE_STEPS = 1000
_COUNTED = ("format", "status", "tier", "score_source", "valid")


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
        self.counts["score"][round(row["score"] * _SCORE_STEPS)] += 1
        if len(self.preview) < PREVIEW_ROWS:
            self.preview.append({key: row[key] for key in ("file", "line", "format", "status", "score", "concept")})

    def merge(self, other: "Summary") -> None:
        """Add what another block of rows held."""
        self.outcomes.merge(other.outcomes)
        for column, counts in other.counts.items():
            self.counts[column].update(counts)
        self.preview += other.preview[: PREVIEW_ROWS - len(self.preview)]

    @property
    def rows(self) -> int:
        """Normalized rows."""
        return self.counts["format"].total()

    def scores(self, limit: int = 20_000) -> list[float]:
        """The scores to a thousandth, thinned out evenly where there are more than `limit`, for a histogram."""
        every = max(1, -(-self.counts["score"].total() // limit))
        steps = (step for step, count in sorted(self.counts["score"].items()) for _ in range(count))
        return [step / _SCORE_STEPS for number, step in enumerate(steps) if number % every == 0]


@dataclass
class WrittenBlock:
    """What a block of lines became: JSON lines for three files, and their summary."""

    normalized: list[bytes] = field(default_factory=list)
    ledger: list[bytes] = field(default_factory=list)
    rejected: list[bytes] = field(default_factory=list)
    summary: Summary = field(default_factory=Summary)


def normalize_snapshot(
    layout: Layout,
    sources: list[Source],
    raw_sha256: str,
    workers: int | None = None,
    status_aliases: Mapping[str, str] = STATUS_ALIASES,
) -> tuple[StagedTable, Summary]:
    """Normalize every line of the raw snapshot, whose digest is noted as the ledger's input.

    Publishes the opened ledger and the quarantine; the normalized table is returned staged, for the IO manager.
    """
    summary = Summary()
    with published_lines(layout.ledger) as ledger, published_lines(layout.rejected) as rejected:
        blocks = group(snapshot_lines(layout.raw, sources), size=lambda line: len(line.data))
        written = map_blocks(make_work, (status_aliases,), blocks, workers)
        staged = stage_lines(layout.normalized, _distribute(written, ledger, rejected, summary))
        ledger.inputs = {"raw_teacher": raw_sha256, "normalized_teacher": staged.sha256}
        rejected.inputs = {"raw_teacher": raw_sha256}
    return staged, summary


def _distribute(
    written: Iterable[WrittenBlock], ledger: LineWriter, rejected: LineWriter, summary: Summary
) -> Iterator[bytes]:
    """Write ledger and quarantine lines, merge the summaries and pass the normalized lines on."""
    for block in written:
        ledger.write(block.ledger)
        rejected.write(block.rejected)
        summary.merge(block.summary)
        yield from block.normalized


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
            _reject(written, line, rejected)
            continue
        except Exception as error:  # noqa: BLE001  a row that trips over a fault of ours must not stop the others
            detail = f"{type(error).__name__} while reading the row: {str(error)[:300]}; please report this"
            _reject(written, line, Rejected(Reason.UNEXPECTED, detail))
            continue
        written.normalized.append(encoded)
        written.summary.add_row(normalized.row)
        _enter(written, line, normalized.row["format"], Outcome.KEPT, note=normalized.notes)
    return written


def _reject(written: WrittenBlock, line: Line, rejected: Rejected) -> None:
    _enter(written, line, rejected.format_name, Outcome.REJECTED, reason=rejected.reason.value, detail=rejected.detail)
    record: dict[str, object] = {
        "file": line.file,
        "line": line.number,
        "reason": rejected.reason.value,
        "detail": rejected.detail,
    }
    if not line.is_whole:
        record["only_the_first_bytes"] = len(line.data)
    try:
        record["text"] = line.data.decode()
    except UnicodeDecodeError:
        record["base64"] = base64.b64encode(line.data).decode()
    written.rejected.append(orjson.dumps(record))


def _enter(written: WrittenBlock, line: Line, format_name: str | None, outcome: Outcome, **texts: str) -> None:
    row = {
        "file": line.file,
        "line": line.number,
        "record_id": line_id(line.data),
        "format": format_name,
        "outcome": outcome.value,
        **{name: texts.get(name, "") for name in ("reason", "detail", "note")},
        "decided_by": OPENED_BY,
    }
    written.ledger.append(orjson.dumps(row))
    written.summary.outcomes.add(row)
