"""The rules of supervised_dataset about leaks and repetition: what a prompt gives away, and to whom.

Nothing here knows Dagster's checks; `checks` runs these and shows what they say. Finding an overlap with one evaluation
case belongs to `holdout`.
"""

import hashlib
from array import array
from collections import Counter
from typing import Any

import numpy as np

from po_assets.dag import Verdict
from po_assets.dag.violations import Violations
from po_assets.dataset.holdout import HoldOut
from po_assets.dataset.training_row import TrainingRow
from po_assets.product_owner import STATUSES, read_yaml
from po_assets.text import amount, verb

_TELLING_SUMMARY_CHARACTERS = 40
"""A product summary this long does not stand in a prompt by chance."""


class OverlapRule:
    """No training row asks what an evaluation case asks, or nearly."""

    def __init__(self, hold_out: HoldOut, threshold: float) -> None:
        self._hold_out = hold_out
        self._threshold = threshold
        self._rows = self._same = 0
        self._cases: set[str] = set()
        self._violations = Violations()

    def add(self, row: TrainingRow) -> None:
        """Look at one row."""
        self._rows += 1
        # A prompt that names no sections is compared as a whole.
        overlap = self._hold_out.find(row.parts.concept or "", row.parts.requirements_yaml or row.prompt)
        if overlap:
            self._same += overlap.same_input
            self._cases.add(overlap.case_id)
            kind = "same input" if overlap.same_input else "nearly the same input"
            self._violations.add(
                row.named(case=overlap.case_id, overlap=kind, similarity=overlap.similarity), overlap.similarity
            )

    def verdict(self) -> Verdict:
        """Whether evaluation measures something new."""
        count = self._violations.count
        numbers = {"overlapping_rows": count, "same_input": self._same, "overlapping_cases": len(self._cases)}
        if not count:
            return Verdict(
                True,
                f"None of {amount(self._rows, 'training row')} has the input of an evaluation case, or one at least "
                f"{self._threshold:.0%} similar.",
                numbers=numbers,
            )
        return Verdict(
            False,
            f"{count:,} of {amount(self._rows, 'training row')} {verb(count, 'gives', 'give')} "
            f"{amount(len(self._cases), 'evaluation case')} away: {self._same:,} with the same input, "
            f"{count - self._same:,} with one at least {self._threshold:.0%} similar.",
            next_step="Materialize supervised_dataset again: it holds such rows out. If you changed the file by hand, "
            "remove the rows.",
            rows=self._violations.rows,
            numbers=numbers,
        )


class AnswerNotInPromptRule:
    """The prompt does not hold the vision that the answer must contain."""

    def __init__(self, vision_in_landed_prompt: int = 0) -> None:
        self._landed = vision_in_landed_prompt
        self._rows = 0
        self._violations = Violations()

    def add(self, row: TrainingRow) -> None:
        """Look at one row."""
        self._rows += 1
        if row.parts.vision_yaml is not None:
            self._violations.add(row.named(status=row.status, given_away="a VISION stands in the prompt"), 1)
            return
        summary = read_yaml(row.answer.vision_yaml).value.get("product_summary")
        told = _plain(summary) if isinstance(summary, str) else ""
        if len(told) >= _TELLING_SUMMARY_CHARACTERS and told in _plain(row.prompt):
            self._violations.add(row.named(status=row.status, given_away=f"product_summary: {summary}"))

    def verdict(self) -> Verdict:
        """Whether the prompt leaves the answer to the student; a warning."""
        count = self._violations.count
        numbers = {"answers_in_prompt": count, "visions_cut_out_of_landed_prompts": self._landed}
        cut = f" A vision was cut out of {amount(self._landed, 'landed prompt')}." if self._landed else ""
        if not count:
            return Verdict(
                True,
                f"None of {amount(self._rows, 'prompt')} holds the vision of its answer.{cut}",
                numbers=numbers,
                severity="WARN",
            )
        return Verdict(
            False,
            f"{count:,} of {amount(self._rows, 'prompt')} {verb(count, 'holds', 'hold')} the vision that the answer "
            f"must contain, or its summary.{cut}",
            next_step="The student learns to copy instead of to answer. Land these rows with a concept of their own, "
            "as the evaluation cases have.",
            rows=self._violations.rows,
            numbers=numbers,
            severity="WARN",
        )


class DuplicatePromptsRule:
    """Every prompt has one answer."""

    def __init__(self) -> None:
        # Compact arrays, one entry per row: a table without a limit on its rows must not fill the memory.
        self._prompts, self._pairs, self._lines = array("Q"), array("Q"), array("q")
        self._files, self._statuses = array("i"), array("b")
        self._file_names: dict[str, int] = {}

    def add(self, row: TrainingRow) -> None:
        """Look at one row."""
        self._prompts.append(_short_digest(row.prompt))
        self._pairs.append(_short_digest(f"{row.prompt}\x00{row.response}"))
        self._lines.append(row.line)
        self._files.append(self._file_names.setdefault(row.file, len(self._file_names)))
        self._statuses.append(STATUSES.index(row.status) if row.status in STATUSES else len(STATUSES))

    def verdict(self) -> Verdict:
        """Whether prompts repeat; a warning, since several good answers to one prompt may be wanted."""
        rows = len(self._prompts)
        order, starts, counts = self._groups()
        copies = rows - len(np.unique(np.frombuffer(self._pairs, np.uint64)))
        repeated = np.flatnonzero(counts > 1)
        violations, contradicting = Violations(), 0
        for position in repeated.tolist():
            members = order[starts[position] : starts[position] + counts[position]].tolist()
            statuses = Counter(self._status(member) for member in members)
            contradicting += len(statuses) > 1
            violations.add(
                {
                    "file": list(self._file_names)[self._files[members[0]]],
                    "line": self._lines[members[0]],
                    "answers": len(members),
                    "statuses": ", ".join(f"{count} {name}" for name, count in statuses.most_common()),
                },
                weight=1_000_000 * (len(statuses) > 1) + len(members),
            )
        numbers = {
            "different_prompts": len(counts),
            "repeated_prompts": len(repeated),
            "exact_copies": copies,
            "contradicting_prompts": contradicting,
        }
        if not len(repeated):
            return Verdict(
                True, f"{amount(rows, 'row')}, {amount(rows, 'different prompt')}.", numbers=numbers, severity="WARN"
            )
        return Verdict(
            False,
            f"{rows:,} rows have only {amount(len(counts), 'different prompt')}: {len(repeated):,} of them "
            f"{verb(len(repeated), 'has', 'have')} several answers, {contradicting:,} with different statuses; "
            f"{amount(copies, 'row')} {verb(copies, 'is an exact copy', 'are exact copies')}.",
            next_step="Several answers to one prompt weigh it more. To keep only the best one, set `drop_duplicates: "
            "true` in the resource `selection`. Answers with different statuses contradict each other: correct them.",
            rows=violations.rows,
            numbers=numbers,
            severity="WARN",
        )

    def _groups(self) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any], np.ndarray[Any, Any]]:
        """Rows ordered by prompt and then as they stand; where each prompt's rows start; how many there are."""
        prompts = np.frombuffer(self._prompts, np.uint64)
        order = np.argsort(prompts, kind="stable")
        _, starts, counts = np.unique(prompts[order], return_index=True, return_counts=True)
        return order, starts, counts

    def _status(self, row: int) -> str:
        code = self._statuses[row]
        return STATUSES[code] if code < len(STATUSES) else "unreadable"


def _plain(text: str) -> str:
    return " ".join(text.casefold().split())


def _short_digest(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest())
