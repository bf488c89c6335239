"""All landed lines through normalization: table, ledger and quarantine in one pass and in constant memory.

What becomes of a block of lines belongs to `block`; what Dagster shows of the pass belongs to `assets`.
"""

from collections.abc import Iterable, Iterator

from po_assets.intake.block import Summary, WrittenBlock, make_work
from po_assets.intake.landing import Source, snapshot_lines
from po_assets.storage import Layout, LineWriter, StagedTable, published_lines, stage_lines
from po_assets.storage.workers import group, map_blocks


def normalize_snapshot(
    layout: Layout, sources: list[Source], raw_sha256: str, workers: int | None = None
) -> tuple[StagedTable, Summary]:
    """Normalize every line of the raw snapshot.

    Publishes the opened ledger and the quarantine; the normalized table is returned staged, for the IO manager.

    Args:
        layout: where the artifacts are.
        sources: the landed files that the snapshot was made from, in order.
        raw_sha256: digest of the snapshot, noted as the ledger's input.
        workers: worker processes; by default one for each processor.
    """
    summary = Summary()
    with published_lines(layout.ledger) as ledger, published_lines(layout.rejected) as rejected:
        blocks = group(snapshot_lines(layout.raw, sources), size=lambda line: len(line.data))
        written = map_blocks(make_work, (), blocks, workers)
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
