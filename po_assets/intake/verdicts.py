"""The rules of raw_teacher and normalized_teacher: what each looks at, and what it says in numbers and rows.

Nothing here knows Dagster's checks; `checks` runs these and shows what they say. A rule over many rows sees each row
once (`add`) and then gives its verdict, so that one pass over a table serves all its rules in constant memory.
"""

import math
from collections.abc import Mapping
from typing import Any

from upath import UPath

from po_assets.dag import Verdict
from po_assets.dag.violations import Violations
from po_assets.errors import UserError
from po_assets.intake.formats import FORMATS
from po_assets.intake.landing import Source, snapshot_lines
from po_assets.intake.ledger import Balance, Outcome, OutcomeCounts
from po_assets.intake.normalization import COLUMNS
from po_assets.product_owner import STATUSES
from po_assets.text import amount, verb

_FORMATS = {known.name for known in FORMATS}
_TEXTS = ("record_id", "file", "concept", "requirements_yaml", "vision_yaml", "review_yaml", "input_digest")


def has_records(raw: UPath, sources: list[Source], not_taken: Mapping[str, Any]) -> Verdict:
    """The snapshot holds the lines that its manifest promises, and at least one that is not blank.

    A warning when something in the landing folder was not taken in (`landing.not_taken_record`).
    """
    records, lines = 0, sum(source.rows for source in sources)
    without = {source.file: source.rows for source in sources}
    try:
        for line in snapshot_lines(raw, sources):
            if line.data.strip():
                records += 1
                without.pop(line.file, None)
    except UserError as error:
        return Verdict(False, str(error), next_step="Materialize raw_teacher again.")
    others = not_taken.get("count", 0)
    numbers = {"records": records, "blank_lines": lines - records, "files": len(sources), "not_taken": others}
    files = amount(len(sources), "landed file")
    empty = [{"file": name, "lines": rows, "reason": "holds no record"} for name, rows in without.items()]
    if not records:
        return Verdict(
            False,
            f"There is no teacher row: {files} {verb(len(sources), 'holds', 'hold')} nothing but "
            f"{amount(lines, 'blank line')}.",
            next_step="Put teacher rows into the landing folder and materialize raw_teacher again.",
            rows=empty,
            numbers=numbers,
        )
    note = f" {len(empty):,} of the files {verb(len(empty), 'holds', 'hold')} none." if empty else ""
    found = f"There {verb(records, 'is', 'are')} {amount(records, 'record')} in {files}."
    if not others:
        return Verdict(True, f"{found}{note}", rows=empty, numbers=numbers)
    first = not_taken["first"]
    names = ", ".join(f"'{entry['file']}'" for entry in first) + ", …" * (others > len(first))
    return Verdict(
        False,
        f"{found}{note} {amount(others, 'other name')} in the landing folder {verb(others, 'was', 'were')} not taken "
        f"in: {names}.",
        next_step="The table says why. What holds teacher rows belongs directly into the landing folder, readable and "
        "named *.jsonl; move the rest elsewhere, and materialize raw_teacher again.",
        rows=[*first, *empty],
        numbers=numbers,
        severity="WARN",
    )


class SchemaRule:
    """Every normalized row has exactly the columns, with values that can be, in landing order."""

    def __init__(self, sources: list[Source]) -> None:
        self._positions = {source.file: position for position, source in enumerate(sources)}
        self._last = (-1, 0)
        self._rows = 0
        self._violations = Violations()

    def add(self, row: dict[str, Any]) -> bool:
        """Look at one row; whether it is sound."""
        self._rows += 1
        faults = _row_faults(row)
        if not faults:
            place = (self._positions.get(row["file"], -1), row["line"])
            if place <= self._last:
                faults = ["it stands twice or out of landing order, or is of a file that did not land"]
            self._last = max(self._last, place)
        if faults:
            self._violations.add({"file": row.get("file"), "line": row.get("line"), "fault": "; ".join(faults)})
        return not faults

    def verdict(self) -> Verdict:
        """Whether all rows are sound."""
        numbers = {"checked_rows": self._rows, "faulty_rows": self._violations.count}
        if not self._rows:
            return Verdict(
                False,
                "There is no normalized row: every landed line was rejected.",
                next_step="See the reasons under rejected_share, correct the rows and land them again.",
                numbers=numbers,
            )
        if self._violations:
            return Verdict(
                False,
                f"{self._violations.count:,} of {amount(self._rows, 'normalized row')} "
                f"{verb(self._violations.count, 'breaks', 'break')} the schema.",
                next_step="Materialize normalized_teacher again. If the fault stays, the row's record format is "
                "converted wrongly (po_assets/intake/formats.py).",
                rows=self._violations.rows,
                numbers=numbers,
            )
        return Verdict(
            True,
            f"{self._rows:,} of {amount(self._rows, 'row')} have the {len(COLUMNS)} columns with sound values.",
            numbers=numbers,
        )


class DeclaredScoresRule:
    """Declared scores are those that the metric gives."""

    def __init__(self, tolerance: float) -> None:
        self._tolerance = tolerance
        self._rows = self._declared = 0
        self._violations = Violations()
        self._largest = 0.0

    def add(self, row: dict[str, Any]) -> None:
        """Look at one row that passed the schema."""
        self._rows += 1
        declared, metric = row["declared_score"], row["metric_score"]
        if declared is None:
            return
        self._declared += 1
        difference = abs(declared - metric)
        self._largest = max(self._largest, difference)
        if difference > self._tolerance:
            self._violations.add(
                {
                    "file": row["file"],
                    "line": row["line"],
                    "declared": declared,
                    "metric": metric,
                    "difference": declared - metric,
                    "status": row["status"],
                },
                weight=difference,
            )

    def verdict(self) -> Verdict:
        """Whether declared and measured scores agree; a warning, since the policy may trust the declared ones."""
        numbers = {
            "declared_scores": self._declared,
            "missing_scores": self._rows - self._declared,
            "disagreeing_scores": self._violations.count,
            "largest_difference": self._largest,
        }
        missing = self._rows - self._declared
        note = (
            f" {amount(missing, 'row')} {verb(missing, 'declares', 'declare')} none; the metric's score stands in."
            if missing
            else ""
        )
        if not self._violations:
            return Verdict(
                True,
                f"{self._declared:,} of {amount(self._declared, 'declared score')} agree with the metric to within "
                f"{self._tolerance:g}.{note}",
                numbers=numbers,
                severity="WARN",
            )
        return Verdict(
            False,
            f"{self._violations.count:,} of {amount(self._declared, 'declared score')} "
            f"{verb(self._violations.count, 'differs', 'differ')} from the metric's by more than {self._tolerance:g}, "
            f"the worst by {self._largest:.3f}.{note}",
            next_step="Find out who scored these rows and how. To select by the metric's own scores instead, set "
            "`score_source: metric` in the resource `selection`.",
            rows=self._violations.rows,
            numbers=numbers,
            severity="WARN",
        )


def ledger_balances(found: Balance) -> Verdict:
    """Every landed line has exactly one outcome, by counting the files."""
    parts = " + ".join(f"{count:,} {name}" for name, count in found.outcomes.by_outcome().items()) or "nothing"
    numbers = {
        "landed": found.landed,
        "ledger_rows": found.outcomes.total,
        "disagreements": len(found.disagreements),
    }
    if found.disagreements:
        return Verdict(
            False,
            f"The ledger does not balance: {amount(found.landed, 'line')} landed, the ledger says {parts}; "
            f"{amount(len(found.disagreements), 'disagreement')} found.",
            next_step="The files under distillation/ do not belong together. Materialize normalized_teacher and "
            "supervised_dataset again, and change none of them by hand.",
            rows=found.disagreements,
            numbers=numbers,
        )
    return Verdict(True, f"{amount(found.landed, 'landed line')} = {parts}.", numbers=numbers)


def rejected_share(outcomes: OutcomeCounts, max_share: float) -> Verdict:
    """Few enough landed rows were rejected; a warning when any was."""
    rejected, landed = outcomes.of(Outcome.REJECTED), outcomes.total
    share = rejected / landed if landed else 0.0
    numbers = {"rejected": rejected, "rejected_share": share}
    if not rejected:
        return Verdict(True, f"None of {amount(landed, 'landed row')} was rejected.", numbers=numbers)
    above = share > max_share
    reasons = ", ".join(
        f"{count:,} {reason}"
        for (outcome, reason), count in outcomes.counts.most_common()
        if outcome == Outcome.REJECTED
    )
    return Verdict(
        False,
        f"{rejected:,} of {amount(landed, 'landed row')} ({share:.1%}) {verb(rejected, 'was', 'were')} rejected, "
        f"at most {max_share:.1%} may be: {reasons}.",
        next_step="Their lines stand verbatim, with the reason, in distillation/po_teacher_rejected.jsonl: correct "
        "them, land them again as a new file, and delete them from the old one."
        + (" Nothing is trained on this data until then, or until max_rejected_share is raised." if above else ""),
        rows=outcomes.example_rows(Outcome.REJECTED),
        numbers=numbers,
        severity="ERROR" if above else "WARN",
    )


def _row_faults(row: dict[str, Any]) -> list[str]:
    """Everything that is wrong with one normalized row, in words."""
    if list(row) != list(COLUMNS):
        missing, surplus = set(COLUMNS) - set(row), set(row) - set(COLUMNS)
        wrong = [f"no column {name}" for name in sorted(missing)] + [
            f"unknown column {name}" for name in sorted(surplus)
        ]
        return wrong or ["its columns are not in order"]
    faults = [f"{name} is no text or blank" for name in _TEXTS if not _is_text(row[name])]
    if not isinstance(row["line"], int) or row["line"] < 1:
        faults.append(f"line is {row['line']!r}")
    if row["format"] not in _FORMATS:
        faults.append(f"unknown format {row['format']!r}")
    if row["status"] not in STATUSES:
        faults.append(f"unknown status {row['status']!r}")
    faults += [f"{name} is {row[name]!r}" for name in ("score", "metric_score") if not _is_share(row[name])]
    declared = row["declared_score"]
    if declared is not None and not _is_share(declared):
        faults.append(f"declared_score is {declared!r}")
    source = "metric" if declared is None else "declared"
    if row["score_source"] != source or row["score"] != row[f"{source}_score"]:
        faults.append(f"score is not the {source} score")
    if not isinstance(row["valid"], bool) or row["valid"] is bool(row["invalid_reason"]):
        faults.append("valid and invalid_reason contradict each other")
    if not isinstance(row["vision_in_prompt"], bool):
        faults.append(f"vision_in_prompt is {row['vision_in_prompt']!r}")
    if not isinstance(row["metadata"], dict):
        faults.append("metadata is no object")
    return faults


def _is_text(value: object) -> bool:
    return isinstance(value, str) and bool(value.strip())


def _is_share(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value) and 0 <= value <= 1
