"""Selection over the tables: reads the normalized rows, writes the training rows and closes the ledger, in few passes.

What decides about a row belongs to `selection`. Three passes over the normalized table: judge each row alone (in worker
processes), measure the rows that may be chosen, write. Memory holds one small entry per row, never the rows.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import orjson
from upath import UPath

from po_assets.dataset.cases import EvalCase
from po_assets.dataset.selection import SAME_INPUT, Decisions, ScoreSource, SelectionRules, gather, make_judge, select
from po_assets.dataset.token_budget import TokenBudget
from po_assets.errors import UserError
from po_assets.intake.identity import REPLACES
from po_assets.intake.ledger import CLOSED_BY, OPENED_BY, Outcome, OutcomeCounts
from po_assets.product_owner import build_prompt, format_answer
from po_assets.storage import (
    Layout,
    LineWriter,
    StagedTable,
    open_buffered,
    published_lines,
    read_manifest,
    read_rows,
    stage_lines,
)
from po_assets.storage.workers import group, map_blocks
from po_assets.text import verb

PREVIEW_ROWS = 3


@dataclass
class Closed:
    """What the selection came to, for people and for the manifest."""

    decisions: Decisions
    outcomes: OutcomeCounts = field(default_factory=OutcomeCounts)
    statuses: Counter[str] = field(default_factory=Counter)
    tiers: Counter[str] = field(default_factory=Counter)
    vision_in_prompt: int = 0
    """Kept rows whose landed prompt gave away a vision."""
    preview: list[dict[str, object]] = field(default_factory=list)


def build_supervised(
    layout: Layout, rules: SelectionRules, cases: list[EvalCase], budget: TokenBudget, workers: int | None = None
) -> tuple[StagedTable, Closed]:
    """Choose the training rows.

    Publishes the closed ledger; the training rows are returned staged, for the IO manager, in landing order.

    Raises:
        UserError: a table is missing, or the ledger was opened for another normalized table.
    """
    files = landed_file_names(layout)
    closed = Closed(decide(lambda: _lines(layout.normalized), files, rules, cases, budget, workers=workers))
    ledger_manifest = read_manifest(layout.ledger)
    with published_lines(layout.ledger) as ledger:
        staged = stage_lines(layout.supervised, _write(layout, ledger, closed, rules, budget))
        ledger.inputs = dict(ledger_manifest.inputs if ledger_manifest else {})
    return staged, closed


def decide(
    lines: Callable[[], Iterable[bytes]],
    files: list[str],
    rules: SelectionRules,
    cases: list[EvalCase],
    budget: TokenBudget,
    *,
    workers: int | None = None,
) -> Decisions:
    """What would become of these lines of the normalized table (a function that reads them anew); writes nothing."""
    judged = map_blocks(make_judge, (rules, cases, files), group(lines(), size=len), workers)
    decisions = gather(judged, files, [case.case_id for case in cases])
    select(decisions, rules, budget.max_length, lambda rows: _lengths(lines(), rows, budget))
    return decisions


def landed_file_names(layout: Layout) -> list[str]:
    """The landed files in order, after making sure that the three tables belong together.

    Raises:
        UserError: a table is missing, or the ledger was opened for another normalized table.
    """
    paths = (layout.raw, layout.normalized, layout.ledger)
    raw, normalized, ledger = manifests = [read_manifest(path) if path.exists() else None for path in paths]
    if raw is None or normalized is None or ledger is None:
        missing = [path.name for path, manifest in zip(paths, manifests, strict=True) if manifest is None]
        raise UserError(
            f"{' and '.join(missing)} {verb(len(missing), 'is', 'are')} missing under "
            f"{str(layout.normalized.parent)!r}, or without manifest. "
            "Materialize raw_teacher and normalized_teacher first."
        )
    if ledger.inputs.get("normalized_teacher") != normalized.sha256:
        raise UserError(
            f"The ledger {str(layout.ledger)!r} was opened for another normalized table. "
            "Materialize normalized_teacher again."
        )
    return [source["file"] for source in raw.extra["sources"]]


def _lines(path: UPath) -> Iterator[bytes]:
    with open_buffered(path) as file:
        yield from file


def _lengths(lines: Iterable[bytes], rows: Sequence[int], budget: TokenBudget) -> Iterator[int]:
    """Lengths in tokens of the rows with these (ascending) numbers."""
    for block in group(_numbered(lines, rows), size=len):
        pairs = [training_row(orjson.loads(line)) for line in block]
        yield from budget.row_lengths([(pair["prompt"], pair["response"]) for pair in pairs])


def _numbered(lines: Iterable[bytes], rows: Sequence[int]) -> Iterator[bytes]:
    """The lines with these (ascending) numbers."""
    wanted = iter(rows)
    due = next(wanted, None)
    for number, line in enumerate(lines):
        if due is None:
            return
        if number == due:
            yield line
            due = next(wanted, None)


def training_row(row: dict[str, Any]) -> dict[str, str]:
    """The training row of a normalized row: the one prompt, and the teacher's answer in the one form."""
    return {
        "prompt": build_prompt(row["concept"], row["requirements_yaml"]),
        "response": format_answer(row["vision_yaml"], row["review_yaml"]),
    }


def _write(
    layout: Layout, ledger: LineWriter, closed: Closed, rules: SelectionRules, budget: TokenBudget
) -> Iterator[bytes]:
    """Close the ledger row by row and yield the training rows, both in landing order."""
    decisions = closed.decisions
    rows = enumerate(_lines(layout.normalized))
    for block in group(read_rows(layout.ledger), size=_small):
        closed_rows: list[bytes] = []
        for entry in block:
            if not _was_rejected(entry):
                number, line = next(rows, (len(decisions), b""))
                if number >= len(decisions) or decisions.place(number) != (entry["file"], entry["line"]):
                    raise UserError(
                        f"The ledger's row for {entry['file']}, line {entry['line']} has no normalized row. "
                        "Materialize normalized_teacher again."
                    )
                _close(entry, number, decisions, rules, budget)
                if entry["outcome"] == Outcome.KEPT:
                    row = orjson.loads(line)
                    entry["detail"] = _replaces(row["metadata"], number, decisions)
                    yield _keep(row, closed)
            closed.outcomes.add(entry)
            closed_rows.append(orjson.dumps(entry))
        ledger.write(closed_rows)
    if next(rows, None) is not None:
        raise UserError("The normalized table has rows that the ledger lacks. Materialize normalized_teacher again.")


def _was_rejected(entry: dict[str, Any]) -> bool:
    return bool(entry["outcome"] == Outcome.REJECTED and entry["decided_by"] == OPENED_BY)


def _small(_: object) -> int:
    return 0  # ledger rows are short: only their number bounds a block


def _keep(row: dict[str, Any], closed: Closed) -> bytes:
    pair = training_row(row)
    closed.statuses[row["status"]] += 1
    closed.tiers[row["tier"] or "not said"] += 1
    closed.vision_in_prompt += row["vision_in_prompt"]
    if len(closed.preview) < PREVIEW_ROWS:
        closed.preview.append({"file": row["file"], "line": row["line"], **pair})
    return orjson.dumps(pair)


def _close(
    entry: dict[str, Any], number: int, decisions: Decisions, rules: SelectionRules, budget: TokenBudget
) -> None:
    """Enter a row's final outcome, with the reason and the figures behind it."""
    outcome = decisions.outcome_of(number)
    reason = detail = ""
    match outcome:
        case Outcome.BELOW_MIN_SCORE:
            source = ScoreSource.metric if decisions.computed[number] else rules.score_source
            reason = f"{source} score under {rules.min_score:g}"
            detail = f"its score is {decisions.score[number]:.4f}"
        case Outcome.HELD_OUT:
            similarity = float(decisions.similarity[number])
            same = similarity == SAME_INPUT
            reason = "same input as an evaluation case" if same else "nearly the input of an evaluation case"
            detail = f"case {decisions.case_ids[int(decisions.case[number])]}"
            detail += "" if same else f", similarity {similarity:.2f}"
        case Outcome.REPLACED:
            file, line = decisions.place(int(decisions.winner[number]))
            reason, detail = "replaced by a corrected row", f"replaced by {file}:{line}"
        case Outcome.DUPLICATE:
            file, line = decisions.place(int(decisions.winner[number]))
            copy = decisions.key[number] == decisions.key[int(decisions.winner[number])]
            reason = "exact copy of another row" if copy else "another answer to the same prompt is kept"
            detail = f"kept is {file}, line {line}"
        case Outcome.OVER_LENGTH:
            reason = f"longer than {budget.max_length:,} tokens"
            detail = f"it has {int(decisions.tokens[number]):,} tokens"
        case Outcome.OVER_MAX_SAMPLES:
            reason = f"{rules.max_samples:,} rows are enough (max_samples)"
    entry |= {"outcome": outcome.value, "reason": reason, "detail": detail, "decided_by": CLOSED_BY}


def _replaces(metadata: dict[str, Any], number: int, decisions: Decisions) -> str:
    """What a kept row that claims to replace another one really replaced."""
    if REPLACES not in metadata:
        return ""
    wanted = decisions.replaces[number]
    replaced = np.flatnonzero(decisions.record == wanted) if wanted else ()
    if not len(replaced):
        return f"it replaces nothing: no row has landed with the record id {str(metadata[REPLACES])[:60]!r}"
    return "it replaces " + ", ".join("{}:{}".format(*decisions.place(row)) for row in map(int, replaced[:5]))


def kept_places(ledger: Iterable[dict[str, Any]]) -> Iterator[tuple[str, int]]:
    """File and line of every kept row, in the order of the training rows."""
    return ((entry["file"], entry["line"]) for entry in ledger if entry["outcome"] == Outcome.KEPT)
