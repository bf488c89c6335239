"""From the normalized rows to the training rows and the closed ledger, in few passes over the tables.

What decides about a row belongs to `selection`. Three passes over the normalized table: judge each row alone (in worker
processes), measure the rows that may be chosen, write. Memory holds one small entry per row, never the rows.
"""

import hashlib
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache, partial
from itertools import compress
from pathlib import Path
from typing import Any

import numpy as np
import orjson
from upath import UPath

from po_assets.dag import read_gate
from po_assets.dataset.cases import EvalCase
from po_assets.dataset.holdout import KINDS
from po_assets.dataset.selection import NEVER_SAMPLED_AWAY, Array, Decisions, gather, make_judge, prompt_of, select
from po_assets.dataset.settings import SelectionSettings
from po_assets.errors import UserError
from po_assets.intake.ledger import CLOSED_BY, Outcome, OutcomeCounts
from po_assets.intake.normalization import REPLACES
from po_assets.model import BaseModel, ChatTemplate, ensure_tokenizer, load_tokenizer
from po_assets.product_owner import format_answer
from po_assets.product_owner.templates import BUILT_IN, Prompt
from po_assets.storage import Layout, LineWriter, StagedTable, open_buffered, read_manifest, read_rows
from po_assets.storage.tables import published_lines, stage_lines
from po_assets.storage.workers import group, map_blocks
from po_assets.text import verb

RowLengths = Callable[[Sequence[tuple[str, str]]], list[int]]
"""From prompts and responses to the tokens of the training rows: with system text, chat template and end."""
PREVIEW_ROWS = 3
PARTICULARS = re.compile(r"'.*'|[0-9]+", re.DOTALL)
"""What differs from row to row in the validator's reasons; without it, they can be counted."""
_REMEMBERED_LENGTHS = 1 << 17
"""Rows; some 20 MB."""


@dataclass(frozen=True)
class TokenBudget:
    """The longest row that fits, and the function that counts the tokens of rows."""

    model: str
    max_length: int
    row_lengths: RowLengths
    prompt: Prompt = BUILT_IN
    """What the rows are asked with."""


def token_budget(base_model: BaseModel, layout: Layout, prompt: Prompt = BUILT_IN) -> TokenBudget:
    """The budget of the configured base model, by the tokenizer and chat template that training uses.

    Raises:
        UserError: the base model's settings are wrong, or it is not available.
    """
    spec = base_model.resolved()
    lengths = _row_lengths(ensure_tokenizer(spec, layout), prompt.system)
    return TokenBudget(spec.name, spec.max_length, lengths, prompt)


@lru_cache(maxsize=2)
def _row_lengths(folder: Path, system: str) -> RowLengths:
    """The asset and its checks share a process and would each load the same tokenizer, which takes seconds."""
    return remembered(partial(ChatTemplate(load_tokenizer(folder)).row_lengths, system=system))


def remembered(count: RowLengths) -> RowLengths:
    """The same counts, remembered by the digests of the texts: a check meets the asset's rows again."""
    known: dict[bytes, int] = {}

    def lengths(rows: Sequence[tuple[str, str]]) -> list[int]:
        if len(known) > _REMEMBERED_LENGTHS:
            known.clear()
        texts = (f"{len(prompt)} {prompt}{response}".encode("utf-8", "surrogatepass") for prompt, response in rows)
        digests = [hashlib.blake2b(text, digest_size=16).digest() for text in texts]
        new = {digest: row for digest, row in zip(digests, rows, strict=True) if digest not in known}
        known.update(zip(new, count(list(new.values())), strict=True))
        return [known[digest] for digest in digests]

    return lengths


@dataclass
class SelectionResult:
    """What the selection came to, for people and for the manifest."""

    decisions: Decisions
    outcomes: OutcomeCounts = field(default_factory=OutcomeCounts)
    statuses: Counter[str] = field(default_factory=Counter)
    tiers: Counter[str] = field(default_factory=Counter)
    vision_in_prompt: int = 0
    """Kept rows whose landed prompt gave away a vision."""
    conflicts_by_file: Counter[str] = field(default_factory=Counter)
    """Kept conflicts rows of each landed file."""
    preview: list[dict[str, object]] = field(default_factory=list)
    ledger_sha256: str = ""
    """Of the ledger that was closed for these rows."""

    def keep(self, row: dict[str, Any], prompt: Prompt) -> bytes:
        """Count a normalized row that is trained on; its training row as a JSON line."""
        pair = training_row(row, prompt)
        self.statuses[row["status"]] += 1
        self.tiers[row["tier"] or "not said"] += 1
        self.conflicts_by_file[row["file"]] += row["status"] == NEVER_SAMPLED_AWAY
        self.vision_in_prompt += row["vision_in_prompt"]
        if len(self.preview) < PREVIEW_ROWS:
            self.preview.append({"file": row["file"], "line": row["line"], **pair})
        return orjson.dumps(pair)


def training_row(row: dict[str, Any], prompt: Prompt = BUILT_IN) -> dict[str, str]:
    """The training row of a normalized row: the user's turn, and the teacher's answer in the one form."""
    return {"prompt": prompt_of(row, prompt), "response": format_answer(row["vision_yaml"], row["review_yaml"])}


def build_supervised(
    layout: Layout, settings: SelectionSettings, cases: list[EvalCase], budget: TokenBudget, workers: int | None = None
) -> tuple[StagedTable, SelectionResult]:
    """Choose the training rows.

    Publishes the closed ledger; the training rows are returned staged, for the IO manager, in landing order.

    Raises:
        UserError: a table is missing, or the ledger was opened for another normalized table.
    """
    files = landed_file_names(layout)
    chosen = SelectionResult(decide(lambda: _lines(layout.normalized), files, settings, cases, budget, workers=workers))
    opened = read_manifest(layout.ledger)
    with published_lines(layout.ledger) as ledger:
        staged = stage_lines(layout.supervised, _close_ledger(layout, ledger, chosen, settings, budget))
        ledger.inputs = dict(opened.inputs if opened else {})
    chosen.ledger_sha256 = ledger.sha256
    return staged, chosen


def publication_fault(layout: Layout) -> str | None:
    """How ledger and training rows are of different runs, as a run that was killed between the two leaves them.

    The manifest of the training rows is written last and names the ledger that was closed for them.
    """
    supervised, ledger = read_manifest(layout.supervised), read_manifest(layout.ledger)
    named = supervised.extra.get("ledger_sha256") if supervised else None
    if supervised is None or ledger is None:
        return f"{(layout.ledger if supervised else layout.supervised).name} has no manifest"
    if named in (None, ledger.sha256):  # None: written before manifests named the ledger
        return None
    return (
        f"{layout.supervised.name} was made with the ledger {named[:12]}, and {layout.ledger.name} is "
        f"{ledger.sha256[:12]}: they are of different runs"
    )


def conflicts_gone(layout: Layout, files: Iterable[str]) -> dict[str, int]:
    """Landed files that the last runs had conflicts rows of, and that are not among these files; with their number.

    A file stays named until it has landed again.
    """
    last = read_manifest(layout.supervised)
    known = {**last.extra.get("conflicts_gone", {}), **last.extra.get("conflicts_by_file", {})} if last else {}
    here = set(files)
    return {name: count for name, count in sorted(known.items()) if count and name not in here}


def decide(
    lines: Callable[[], Iterable[bytes]],
    files: list[str],
    settings: SelectionSettings,
    cases: list[EvalCase],
    budget: TokenBudget,
    *,
    workers: int | None = None,
) -> Decisions:
    """What would become of these lines of the normalized table (a function that reads them anew); writes nothing."""
    judged = map_blocks(make_judge, (cases, files, settings.values()), group(lines(), size=len), workers)
    decisions = gather(judged, files, [case.case_id for case in cases])
    select(
        decisions,
        budget.max_length,
        lambda rows: _lengths(lines(), rows, budget),
        max_samples=settings.max_samples,
        drop_duplicates=settings.drop_duplicates,
    )
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
    wanted: Array = np.zeros(rows[-1] + 1 if rows else 0, np.bool_)
    wanted[list(rows)] = True
    for block in group(compress(lines, wanted), size=len):
        pairs = [training_row(orjson.loads(line), budget.prompt) for line in block]
        yield from budget.row_lengths([(pair["prompt"], pair["response"]) for pair in pairs])


def _close_ledger(
    layout: Layout, ledger: LineWriter, chosen: SelectionResult, settings: SelectionSettings, budget: TokenBudget
) -> Iterator[bytes]:
    """Close the ledger row by row and yield the training rows, both in landing order."""
    decisions = chosen.decisions
    rows = enumerate(_lines(layout.normalized))
    for block in group(read_rows(layout.ledger), size=lambda _: 0):  # ledger rows are short: only their number counts
        closed: list[bytes] = []
        for opened in block:
            entry = opened
            if opened["outcome"] != Outcome.REJECTED:
                number, line = next(rows, (len(decisions), b""))
                if number >= len(decisions) or decisions.place(number) != (opened["file"], opened["line"]):
                    raise UserError(
                        f"The ledger's row for {opened['file']}, line {opened['line']} has no normalized row. "
                        "Materialize normalized_teacher again."
                    )
                entry = opened | _outcome(number, decisions, settings, budget)
                if entry["outcome"] == Outcome.INVALID_TARGET:
                    entry["detail"] = orjson.loads(line)["invalid_reason"]
                    entry["reason"] = f"not valid: {PARTICULARS.sub('…', entry['detail'])}"
                if entry["outcome"] == Outcome.KEPT:
                    row = orjson.loads(line)
                    entry["detail"] = _replaces(row["metadata"], number, decisions)
                    yield chosen.keep(row, budget.prompt)
            chosen.outcomes.add(entry)
            closed.append(orjson.dumps(entry))
        ledger.write(closed)
    if next(rows, None) is not None:
        raise UserError("The normalized table has rows that the ledger lacks. Materialize normalized_teacher again.")


def _outcome(number: int, decisions: Decisions, settings: SelectionSettings, budget: TokenBudget) -> dict[str, str]:
    """A row's final outcome in the ledger, with the reason and the figures behind it."""
    outcome = decisions.outcome_of(number)
    reason = detail = ""
    match outcome:
        case Outcome.BELOW_MIN_SCORE:
            source = "metric" if decisions.computed[number] else settings.score_source
            reason = f"{source} score under {settings.min_score:g}"
            detail = f"its score is {decisions.score[number]:.4f}"
        case Outcome.HELD_OUT:
            overlap = int(decisions.overlap[number])
            reason = list(KINDS.values())[overlap]
            detail = f"case {decisions.case_ids[int(decisions.case[number])]}"
            detail += f", similarity {decisions.similarity[number]:.2f}" if overlap else ""
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
            reason = f"{settings.max_samples:,} rows are enough (max_samples)"
    return {"outcome": outcome.value, "reason": reason, "detail": detail, "decided_by": CLOSED_BY}


def _replaces(metadata: dict[str, Any], number: int, decisions: Decisions) -> str:
    """What a kept row that claims to replace another one really replaced."""
    if REPLACES not in metadata:
        return ""
    wanted = decisions.replaces[number]
    replaced = np.flatnonzero(decisions.record == wanted) if wanted else ()
    if not len(replaced):
        return f"it replaces nothing: no row has landed with the record id {str(metadata[REPLACES])[:60]!r}"
    return "it replaces " + ", ".join("{}:{}".format(*decisions.place(row)) for row in map(int, replaced[:5]))


def refusal(gate: UPath, supervised_sha256: str) -> str | None:
    """Why data with this digest must not be trained on, in a sentence with the way out; None where it may be."""
    record = read_gate(gate)
    way_out = "Materialize supervised_dataset with its checks."
    if record is None:
        return f"The supervised dataset has no gate record ({str(gate)!r}): its checks did not run. {way_out}"
    if record.sha256 != supervised_sha256:
        return (
            f"The gate record is for other data (sha256 {record.sha256[:12]}, not {supervised_sha256[:12]}): the "
            f"dataset changed after its checks ran. {way_out}"
        )
    if not record.passed:
        failed = "; ".join(f"{name}: {check['summary']}" for name, check in record.failed.items())
        return f"The supervised dataset did not pass its gate. {failed} Correct the data and materialize it again."
    return None
