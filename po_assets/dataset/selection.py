"""Selection: which normalized rows are trained on, and why each of the others is not.

The order of decisions is fixed: replaced by a correction, score, hold-out, validity, duplicates, length, number. Every
decision depends on the rows' content and the settings alone, never on the order in which files landed. Worker processes
judge rows, so nothing here imports Dagster; reading and writing tables belongs to `publication`.
"""

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import orjson

from po_assets.dataset.cases import EvalCase
from po_assets.dataset.holdout import KINDS, HoldOut
from po_assets.intake.ledger import Outcome
from po_assets.intake.normalization import content_digest, replaced_record
from po_assets.intake.record import EXISTING_VISION
from po_assets.product_owner.templates import BUILT_IN, Prompt

SCORE_COLUMN = {"declared": "score", "metric": "metric_score"}
"""The normalized rows' column, by the setting `score_source`."""
NEVER_SAMPLED_AWAY = "conflicts"
"""Conflicts rows are the rare ones that the student needs most; one that passed the filter is always kept."""

_CODES = {outcome: code for code, outcome in enumerate(Outcome)}
_OUTCOMES = list(Outcome)

Array = np.ndarray[Any, Any]
Measure = Callable[[Sequence[int]], Iterable[int]]
"""From row numbers in ascending order to those rows' lengths in tokens."""


_JUDGED: dict[str, Any] = {
    "file": np.int32,  # position of the landed file, in the order of `files`
    "line": np.int64,
    "score": np.float64,  # the one that counts, by the settings
    "computed": np.bool_,  # the row declares no score, so that the metric's stands in
    "outcome": np.int8,  # its code
    "conflicts": np.bool_,  # the row's status is conflicts
    "key": np.uint64,  # keyed digest of the row's content: the order in which rows are chosen
    "prompt": np.uint64,  # digest of the row's prompt
    "record": np.uint64,  # record id
    "replaces": np.uint64,  # record id of the row that this one corrects, 0 for none
    "case": np.int32,  # position of the evaluation case that the row gives away, -1 for none
    "overlap": np.int8,  # how it does: position in `holdout.KINDS`
    "similarity": np.float32,
}
"""What is said of a row alone, and its type."""


class Decisions(SimpleNamespace):
    """One entry per normalized row, in compact arrays: 72 bytes a row, whatever the rows' size.

    The columns of `_JUDGED`; `tokens`, the length (0 where it was not measured); `winner`, the number of the row that
    stands for this duplicate or replaced row (-1 for none); and the names of `files` and the `case_ids`.
    """

    def __len__(self) -> int:
        return len(self.line)

    def where(self, outcome: Outcome) -> Array:
        """Numbers of the rows with this outcome, ascending."""
        return np.flatnonzero(self.outcome == _CODES[outcome])

    def outcome_of(self, row: int) -> Outcome:
        """A row's outcome."""
        return _OUTCOMES[int(self.outcome[row])]

    def set(self, rows: Array, outcome: Outcome) -> None:
        """Decide about rows."""
        self.outcome[rows] = _CODES[outcome]

    def place(self, row: int) -> tuple[str, int]:
        """File and line under which a row landed."""
        return self.files[int(self.file[row])], int(self.line[row])


def make_judge(
    cases: Sequence[EvalCase], files: Sequence[str], rules: Mapping[str, Any]
) -> Callable[[list[bytes]], dict[str, Array]]:
    """A function that says of a block of normalized rows all that can be said of each row alone.

    `rules` are the values of the selection's settings, whose class would bring Dagster into the worker processes.
    """
    hold_out = HoldOut(cases, rules["near_duplicate_threshold"])
    positions = {case.case_id: position for position, case in enumerate(cases)}
    file_positions = {name: position for position, name in enumerate(files)}
    key = hashlib.blake2b(str(rules["seed"]).encode(), digest_size=16).digest()
    score = SCORE_COLUMN[rules["score_source"]]

    def judge(lines: list[bytes]) -> dict[str, Array]:
        judged = [_judge_row(orjson.loads(line)) for line in lines]
        columns = zip(*judged, strict=True)
        return {name: np.array(column, dtype) for (name, dtype), column in zip(_JUDGED.items(), columns, strict=True)}

    def _judge_row(row: dict[str, Any]) -> tuple[Any, ...]:
        outcome, case, overlaps, similarity = Outcome.KEPT, -1, 0, 0.0
        concept, requirements = row["concept"], row["requirements_yaml"]
        if row[score] < rules["min_score"]:
            outcome = Outcome.BELOW_MIN_SCORE
        elif overlap := (
            hold_out.find(concept, requirements, row["input_digest"])
            or hold_out.find_answer(row["vision_yaml"], row["review_yaml"])
        ):
            outcome, similarity = Outcome.HELD_OUT, overlap.similarity
            case, overlaps = positions[overlap.case_id], list(KINDS).index(overlap.kind)
        elif rules["invalid_targets"] == "leave_out" and not row["valid"]:
            outcome = Outcome.INVALID_TARGET
        digest = content_digest(concept, requirements, row["vision_yaml"], row["review_yaml"], key=key)
        prompt = hashlib.blake2b(prompt_of(row).encode(), digest_size=8).digest()
        return (
            file_positions[row["file"]],
            row["line"],
            row[score],
            row["declared_score"] is None,
            _CODES[outcome],
            row["status"] == NEVER_SAMPLED_AWAY,
            int.from_bytes(digest),
            int.from_bytes(prompt),
            int(row["record_id"], 16),
            int(replaced_record(row["metadata"]) or "0", 16),
            case,
            overlaps,
            similarity,
        )

    return judge


def prompt_of(row: Mapping[str, Any], prompt: Prompt = BUILT_IN) -> str:
    """The user's turn of a normalized row; a vision that the product has already is part of what is asked."""
    return prompt.user(row["concept"], row["requirements_yaml"], row.get("metadata", {}).get(EXISTING_VISION, ""))


def gather(judged: Iterable[dict[str, Array]], files: list[str], case_ids: list[str]) -> Decisions:
    """Put the blocks' judgements together, in order."""
    blocks = list(judged)
    # A block's part of a column goes as soon as the whole column is there: memory never holds the table twice.
    columns = {
        name: np.concatenate([block.pop(name) for block in blocks]) if blocks else np.array([], dtype)
        for name, dtype in _JUDGED.items()
    }
    rows = len(columns["line"])
    more: dict[str, Array] = {"tokens": np.zeros(rows, np.int32), "winner": np.full(rows, -1, np.int64)}
    return Decisions(**columns, **more, files=files, case_ids=case_ids)


def select(
    decisions: Decisions, max_length: int, measure: Measure, *, max_samples: int | None, drop_duplicates: bool
) -> None:
    """Decide about replaced rows, then about every row that is still kept: duplicates, length, number.

    Lengths are only measured as far as needed: rows are taken in the order of their keys until `max_samples` fit, so
    that a million rows cost no more tokenizing than are kept.
    """
    _replace(decisions)
    if drop_duplicates:
        _drop_duplicates(decisions)
    candidates = decisions.where(Outcome.KEPT)
    always = candidates[decisions.conflicts[candidates]]
    others = candidates[~decisions.conflicts[candidates]]
    others = others[np.lexsort((others, decisions.key[others]))]
    room = len(candidates) if max_samples is None else max_samples
    taken = max(0, room - len(always))
    batch, waiting = np.concatenate([always, others[:taken]]), others[taken:]
    fitting = 0
    while len(batch):
        rows = np.sort(batch)
        decisions.tokens[rows] = np.fromiter(measure(rows.tolist()), np.int32, len(rows))
        too_long = rows[decisions.tokens[rows] > max_length]
        decisions.set(too_long, Outcome.OVER_LENGTH)
        fitting += len(rows) - len(too_long)
        taken = max(0, room - fitting)
        batch, waiting = waiting[:taken], waiting[taken:]
    decisions.set(waiting, Outcome.OVER_MAX_SAMPLES)


def _replace(decisions: Decisions) -> None:
    """Take out every row that a correction names, whatever becomes of the correction itself.

    A person found the old answer wrong, so it does not come back when the new one is left out. Of several corrections
    of one row all are kept, and the one with the smallest key is named.
    """
    corrections = np.flatnonzero(decisions.replaces)
    order = np.lexsort((corrections, decisions.key[corrections]))[::-1]
    named = {int(decisions.replaces[row]): row for row in corrections[order].tolist()}
    for row in np.flatnonzero(np.isin(decisions.record, decisions.replaces[corrections])).tolist():
        decisions.winner[row] = named[int(decisions.record[row])]
        decisions.outcome[row] = _CODES[Outcome.REPLACED]


def _drop_duplicates(decisions: Decisions) -> None:
    """Keep one answer to each prompt: conflicts rows first, then the best score, then the smallest key.

    A conflicts row is only dropped for an exact copy of itself.
    """
    rows = decisions.where(Outcome.KEPT)
    keys = (decisions.key[rows], -decisions.score[rows], ~decisions.conflicts[rows], decisions.prompt[rows])
    rows = rows[np.lexsort((rows, *keys))]
    kept: int | None = None
    copies: dict[int, int] = {}
    for row in rows.tolist():
        if kept is None or decisions.prompt[row] != decisions.prompt[kept]:
            kept, copies = row, {}
        key = int(decisions.key[row])
        copy_of = copies.setdefault(key, row)
        winner = copy_of if decisions.conflicts[row] else kept
        if winner != row:
            decisions.winner[row] = winner
            decisions.outcome[row] = _CODES[Outcome.DUPLICATE]
