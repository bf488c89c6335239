"""The checks of raw_teacher and normalized_teacher: what each looks at, and what it says in numbers and rows.

Which rows are trained on, and the checks of that, belongs to `dataset`.
"""
# ruff: noqa: D102 - what `add` and `verdict` do is said at `dag.checks.RowCheck`

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import dagster as dg

from po_assets.dag import Artifacts, AssetChecks, Verdict, Violations
from po_assets.errors import UserError
from po_assets.intake.assets import IntakeSettings
from po_assets.intake.formats import FORMATS
from po_assets.intake.landing import Source, snapshot_lines, sources_of
from po_assets.intake.ledger import Balance, Outcome, balance
from po_assets.intake.normalization import COLUMNS
from po_assets.product_owner import STATUSES
from po_assets.storage import Layout, read_manifest, read_rows
from po_assets.text import amount, verb

_FORMATS = {known.name for known in FORMATS}
_TEXTS = ("record_id", "file", "concept", "requirements_yaml", "vision_yaml", "review_yaml", "input_digest")


@dataclass(frozen=True)
class TableEvidence:
    """What the checks look at: the files as they stand, and the settings."""

    layout: Layout
    settings: IntakeSettings

    @cached_property
    def sources(self) -> list[Source]:
        """The landed files that the snapshot was made from."""
        return sources_of(self.layout.raw)

    @cached_property
    def balance(self) -> Balance:
        """Landed lines and ledger rows, counted in their files."""
        return balance(self.layout)


raw_checks = AssetChecks[TableEvidence]("raw_teacher")


@raw_checks.register(blocking=True)
def has_records(found: TableEvidence) -> Verdict:
    """The snapshot is whole and holds a line that is not blank; a warning when a file was not taken in."""
    manifest, raw = read_manifest(found.layout.raw), found.layout.raw
    skipped: dict[str, Any] = manifest.extra.get("skipped", {}) if manifest else {}
    records, without = 0, {source.file: source.rows for source in found.sources}
    files, lines, others = len(without), sum(without.values()), skipped.get("count", 0)
    try:
        for line in snapshot_lines(raw, found.sources):
            if line.data.strip():
                records += 1
                without.pop(line.file, None)
    except UserError as error:
        return Verdict(False, str(error), next_step="Materialize raw_teacher again.")
    numbers = {"records": records, "blank_lines": lines - records, "files": files, "skipped": others}
    empty = [{"file": name, "lines": rows, "reason": "holds no record"} for name, rows in without.items()]
    if not records:
        return Verdict(
            False,
            f"There is no teacher row: {amount(files, 'landed file')} {verb(files, 'holds', 'hold')} nothing but "
            f"{amount(lines, 'blank line')}.",
            next_step="Put teacher rows into the landing folder and materialize raw_teacher again.",
            rows=empty,
            numbers=numbers,
        )
    summary = f"There {verb(records, 'is', 'are')} {amount(records, 'record')} in {amount(files, 'landed file')}."
    if empty:
        summary += f" {len(empty):,} of the files {verb(len(empty), 'holds', 'hold')} none."
    if not others:
        return Verdict(True, summary, rows=empty, numbers=numbers)
    first = skipped["first"]
    names = ", ".join(f"'{entry['file']}'" for entry in first) + ", …" * (others > len(first))
    return Verdict(
        False,
        f"{summary} {amount(others, 'other name')} in the landing folder {verb(others, 'was', 'were')} not taken in: "
        f"{names}.",
        next_step="The check's table says why. What holds teacher rows belongs directly into the landing folder, "
        "readable and named *.jsonl; move the rest elsewhere, and materialize raw_teacher again.",
        rows=[*first, *empty],
        numbers=numbers,
        severity="WARN",
        of=others + len(empty),
    )


@raw_checks.step
def raw_teacher_checks(artifacts: Artifacts) -> TableEvidence:
    """Run the check of raw_teacher."""
    return TableEvidence(artifacts.layout, IntakeSettings())


class CheckedRow(NamedTuple):
    """A normalized row with its place, and what is wrong with it alone, in words."""

    file: str
    line: int
    row: dict[str, Any]
    faults: list[str]


normalized_checks = AssetChecks[TableEvidence](
    "normalized_teacher",
    rows=lambda found: (
        CheckedRow(row.get("file", ""), row.get("line", 0), row, row_faults(row))
        for row in read_rows(found.layout.normalized)
    ),
)


class RowCheck:
    """A check that looks at every row of a table: counts them and keeps the violating ones, by `_fault`."""

    noun = "row"
    worst = ""
    """The column of the violations by whose size they are sorted."""

    def __init__(self, found: Any) -> None:
        """`found` is the evidence of the asset's checks."""
        self.found = found
        self.rows = 0
        self.violations = Violations()

    def add(self, row: Any) -> None:
        """Look at one row, which has a `file` and a `line`."""
        self.rows += 1
        if fault := self._fault(row):
            self.violations.add({"file": row.file, "line": row.line, **fault}, abs(fault.get(self.worst, 0.0)))

    def _fault(self, row: Any) -> dict[str, Any] | None:
        """What is wrong with a row, as columns of the table of violations; nothing when it is sound."""
        raise NotImplementedError

    def of_all(self, count: int, singular: str, plural: str) -> str:
        """The start of a sentence: `2 of 10 rows are`."""
        return f"{count:,} of {amount(self.rows, self.noun)} {verb(count, singular, plural)}"

    def judge(self, good: str, bad: str, next_step: str, numbers: Mapping[str, float], **more: Any) -> Verdict:
        """Passed where no row violates the rule; the sentence for either case."""
        count = self.violations.count
        return Verdict(not count, bad if count else good, next_step, self.violations.rows, numbers, of=count, **more)


@normalized_checks.register(blocking=True)
class Schema(RowCheck):
    """Every row has exactly the columns, with sound values, in landing order."""

    noun = "normalized row"

    def __init__(self, found: TableEvidence) -> None:
        super().__init__(found)
        self._positions = {source.file: position for position, source in enumerate(found.sources)}
        self._last = (-1, 0)

    def _fault(self, row: CheckedRow) -> dict[str, Any] | None:
        faults = row.faults
        if not faults:
            place = (self._positions.get(row.file, -1), row.line)
            if place <= self._last:
                faults = ["it stands twice or out of landing order, or is of a file that did not land"]
            self._last = max(self._last, place)
        return {"fault": "; ".join(faults)} if faults else None

    def verdict(self) -> Verdict:
        numbers = {"checked_rows": self.rows, "faulty_rows": self.violations.count}
        if not self.rows:
            return Verdict(
                False,
                "There is no normalized row: every landed line was rejected.",
                next_step="See the reasons under rejected_share, correct the rows and land them again.",
                numbers=numbers,
            )
        return self.judge(
            f"{self.rows:,} of {amount(self.rows, 'row')} have the {len(COLUMNS)} columns with sound values.",
            f"{self.of_all(self.violations.count, 'breaks', 'break')} the schema.",
            "Materialize normalized_teacher again. If the fault stays, the row's record format is converted wrongly "
            "(po_assets/intake/formats.py).",
            numbers,
        )


@normalized_checks.register(blocking=True)
def ledger_balances(found: TableEvidence) -> Verdict:
    """Every landed line has exactly one outcome, by counting the lines of the files themselves."""
    return balance_verdict(found.balance)


@normalized_checks.register(blocking=True)
def rejected_share(found: TableEvidence) -> Verdict:
    """Few enough landed rows were rejected (max_rejected_share); a warning when any was."""
    outcomes, most = found.balance.outcomes, found.settings.max_rejected_share
    rejected, landed = outcomes.of(Outcome.REJECTED), outcomes.total
    share = rejected / landed if landed else 0.0
    numbers = {"rejected": rejected, "rejected_share": share}
    if not rejected:
        return Verdict(True, f"None of {amount(landed, 'landed row')} was rejected.", numbers=numbers)
    above = share > most
    reasons = ", ".join(
        f"{count:,} {reason}"
        for (outcome, reason), count in outcomes.counts.most_common()
        if outcome == Outcome.REJECTED
    )
    return Verdict(
        False,
        f"{rejected:,} of {amount(landed, 'landed row')} ({share:.1%}) {verb(rejected, 'was', 'were')} rejected, "
        f"at most {most:.1%} may be: {reasons}.",
        next_step=f"Run `{found.layout.command('rejected edit')}`, correct the lines in the file that it writes, and "
        f"take them in with `{found.layout.command('rejected land')}`. (They stand verbatim, with the reason, in "
        "distillation/po_teacher_rejected.jsonl.)"
        + (" Nothing is trained on this data until then, or until max_rejected_share is raised." if above else ""),
        rows=outcomes.example_rows(Outcome.REJECTED),
        numbers=numbers,
        severity="ERROR" if above else "WARN",
        extra={"rejected_file": dg.MetadataValue.path(str(found.layout.rejected))},
        of=rejected,
    )


@normalized_checks.register(severity="WARN")  # the policy may trust the declared scores
class DeclaredScoresMatchMetric(RowCheck):
    """The scores that rows declare are those that this project's metric gives them."""

    noun, worst = "declared score", "difference"

    def __init__(self, found: TableEvidence) -> None:
        super().__init__(found)
        self._missing = 0
        self._largest = 0.0

    def add(self, row: CheckedRow) -> None:
        if row.faults:
            return
        if row.row["declared_score"] is None:
            self._missing += 1
        else:
            super().add(row)

    def _fault(self, row: CheckedRow) -> dict[str, Any] | None:
        declared, metric = row.row["declared_score"], row.row["metric_score"]
        difference = declared - metric
        self._largest = max(self._largest, abs(difference))
        if abs(difference) <= self.found.settings.score_tolerance:
            return None
        return {"declared": declared, "metric": metric, "difference": difference, "status": row.row["status"]}

    def verdict(self) -> Verdict:
        differing, missing, tolerance = self.violations.count, self._missing, self.found.settings.score_tolerance
        numbers = {
            "declared_scores": self.rows,
            "missing_scores": missing,
            "disagreeing_scores": differing,
            "largest_difference": self._largest,
        }
        none = f" {amount(missing, 'row')} {verb(missing, 'declares', 'declare')} none; the metric's score stands in."
        note = none if missing else ""
        return self.judge(
            f"{self.of_all(self.rows, 'agree', 'agree')} with the metric to within {tolerance:g}.{note}",
            f"{self.of_all(differing, 'differs', 'differ')} from the metric's by more than {tolerance:g}, the worst by "
            f"{self._largest:.3f}.{note}",
            "Find out who scored these rows and how. To select by the metric's own scores instead, set "
            "`score_source: metric` in the resource `selection`.",
            numbers,
        )


@normalized_checks.step
def normalized_teacher_checks(artifacts: Artifacts, selection: IntakeSettings) -> TableEvidence:
    """Run the selected checks of normalized_teacher: one pass over the table, one over the ledger."""
    return TableEvidence(artifacts.layout, selection)


teacher_checks = [raw_teacher_checks, normalized_teacher_checks]


def balance_verdict(found: Balance) -> Verdict:
    """The verdict of a check `ledger_balances`, here and in `dataset`."""
    parts = " + ".join(f"{count:,} {name}" for name, count in found.outcomes.by_outcome().items()) or "nothing"
    disagreements = len(found.disagreements) + found.unnamed
    numbers = {"landed": found.landed, "ledger_rows": found.outcomes.total, "disagreements": disagreements}
    if not disagreements:
        return Verdict(True, f"{amount(found.landed, 'landed line')} = {parts}.", numbers=numbers)
    return Verdict(
        False,
        f"The ledger does not balance: {amount(found.landed, 'line')} landed, the ledger says {parts}; "
        f"{amount(disagreements, 'disagreement')} found.",
        next_step="The files under distillation/ do not belong together. Materialize normalized_teacher and "
        "supervised_dataset again, and change none of them by hand.",
        rows=found.disagreements,
        of=disagreements,
        numbers=numbers,
    )


def row_faults(row: dict[str, Any]) -> list[str]:
    """Everything that is wrong with one normalized row, in words."""
    if list(row) != list(COLUMNS):
        wrong = [f"no column {name}" for name in sorted(set(COLUMNS) - set(row))]
        wrong += [f"unknown column {name}" for name in sorted(set(row) - set(COLUMNS))]
        return wrong or ["its columns are not in order"]
    faults = [
        f"{name} must be a string that is not blank"
        for name in _TEXTS
        if not (isinstance(row[name], str) and row[name].strip())
    ]
    if not isinstance(row["line"], int) or row["line"] < 1:
        faults.append(f"line is {row['line']!r}")
    if row["format"] not in _FORMATS:
        faults.append(f"unknown format {row['format']!r}")
    if row["status"] not in STATUSES:
        faults.append(f"unknown status {row['status']!r}")
    declared = row["declared_score"]
    scores = ("score", "metric_score") if declared is None else ("score", "metric_score", "declared_score")
    faults += [f"{name} is {row[name]!r}" for name in scores if not _is_share(row[name])]
    source = "metric" if declared is None else "declared"
    if row["score_source"] != source or row["score"] != row[f"{source}_score"]:
        faults.append(f"score is not the {source} score")
    if not isinstance(row["valid"], bool) or row["valid"] is bool(row["invalid_reason"]):
        faults.append("valid and invalid_reason contradict each other")
    if not isinstance(row["vision_in_prompt"], bool):
        faults.append(f"vision_in_prompt is {row['vision_in_prompt']!r}")
    if not isinstance(row["metadata"], dict):
        faults.append("metadata must be an object")
    return faults


def _is_share(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value) and 0 <= value <= 1
