"""The checks of supervised_dataset: what its rows are worth, in sentences with the numbers and the next step.

What they look at is `evidence`, their limits belong to `settings`.
"""
# ruff: noqa: D102 - what `add` and `verdict` do is said at `dag.checks.RowCheck`

import hashlib
import math
from array import array
from collections import Counter
from typing import Any

import numpy as np
import pandas as pd

from po_assets.dag import Artifacts, AssetChecks, Severity, Verdict, bar_chart, gate_record, histogram, write_gate
from po_assets.dag.pages import SHOWN_ROWS
from po_assets.dataset.cases import read_eval_cases
from po_assets.dataset.evidence import DatasetEvidence, TrainingRow
from po_assets.dataset.holdout import KINDS, HoldOut
from po_assets.dataset.publication import PARTICULARS, token_budget
from po_assets.dataset.selection import NEVER_SAMPLED_AWAY
from po_assets.dataset.settings import PromptSettings, SelectionSettings
from po_assets.intake.checks import RowCheck, balance_verdict
from po_assets.intake.ledger import Outcome
from po_assets.model import BaseModel
from po_assets.product_owner import STATUSES, validate_answer
from po_assets.storage import file_digest
from po_assets.storage.workers import BLOCK_ROWS
from po_assets.text import amount, verb

_LEFT_OUT_ON_PURPOSE = {
    Outcome.HELD_OUT: "held out for evaluation",
    Outcome.INVALID_TARGET: "left out, since the validator rejects the answer",
}

supervised_checks = AssetChecks[DatasetEvidence]("supervised_dataset", rows=DatasetEvidence.rows)


@supervised_checks.register(blocking=True)
class Schema(RowCheck):
    """Every row is a prompt and a response of the one form, and there are as many as the ledger calls kept."""

    def _fault(self, row: TrainingRow) -> dict[str, Any] | None:
        return {"fault": "; ".join(faults)} if (faults := row.faults) else None

    def verdict(self) -> Verdict:
        kept = self.found.balance.outcomes.of(Outcome.KEPT)
        numbers = {"checked_rows": self.rows, "kept_by_the_ledger": kept, "faulty_rows": self.violations.count}
        faults: list[str] = []
        if self.rows != kept:
            faults.append(f"The file has {amount(self.rows, 'row')}, the ledger calls {kept:,} kept")
        if not self.rows:
            faults.append("There is no training row")
        if self.violations:
            faults.append(f"{self.of_all(self.violations.count, 'is', 'are')} not of the one form")
        sound = "a prompt and a response of the one form, as many as the ledger says"
        summary = "; ".join(faults) or f"{self.of_all(self.rows, 'is', 'are')} {sound}"
        next_step = (
            "Materialize normalized_teacher and supervised_dataset again. With no row left, see the outcomes in the "
            "asset's metadata for where the rows went."
        )
        return Verdict(not faults, f"{summary}.", next_step, self.violations.rows, numbers)


@supervised_checks.register(blocking=True)
def ledger_balances(found: DatasetEvidence) -> Verdict:
    """Every landed line has exactly one final outcome, by counting the files' lines; ledger and rows are of one run."""
    return balance_verdict(found.balance)


@supervised_checks.register(blocking=True)
class ConflictsShare(RowCheck):
    """Enough rows teach the status conflicts, and every one that passed the score filter is there."""

    noun = "training row"

    def __init__(self, found: DatasetEvidence) -> None:
        super().__init__(found)
        self.conflicts = 0
        self.aside: Counter[str] = Counter()
        for row in found.conflicts_left_out():
            if why := _LEFT_OUT_ON_PURPOSE.get(row["outcome"]):
                self.aside[why] += 1
            else:
                self.violations.add(row)

    def _fault(self, row: TrainingRow) -> None:
        self.conflicts += row.status == NEVER_SAMPLED_AWAY

    def verdict(self) -> Verdict:
        settings, conflicts, lost = self.found.settings, self.conflicts, self.violations.count
        least, most = settings.min_conflicts_share, settings.max_conflicts_share
        share = conflicts / self.rows if self.rows else 0.0
        numbers = {"conflicts": conflicts, "conflicts_share": share, "lost_conflicts": lost}
        severity: Severity = "WARN" if settings.conflicts_share == "warn" else "ERROR"
        more = "".join(f" {many:,} more {verb(many, 'is', 'are')} {why}." for why, many in sorted(self.aside.items()))
        said = f"{conflicts:,} of {amount(self.rows, self.noun)} ({share:.1%}) {verb(conflicts, 'is', 'are')} conflicts"
        if lost:
            summary = (
                f"{amount(lost, 'conflicts row')} passed the score filter and {verb(lost, 'is', 'are')} not among the "
                f"training rows; {said}.{more}"
            )
            next_step = (
                "The check's table says why each is missing. Shorten rows that are over length, or raise max_length in "
                "the resource base_model."
            )
            return Verdict(False, summary, next_step, self.violations.rows, numbers, severity, of=lost)
        if share > most:
            next_step = (
                "Conflicts rows are never sampled away, so that they crowd out the others where max_samples is small: "
                "raise it, or land fewer conflicts rows."
            )
            summary = f"{said}, at most {most:.1%} are expected.{more}"
            return Verdict(False, summary, next_step, (), numbers, "WARN")
        if share >= least:
            whole = "every one that passed the score filter is here"
            return Verdict(True, f"{said}, at least {least:.1%} are needed; {whole}.{more}", numbers=numbers)
        missing = numbers["missing_conflicts"] = self._missing()
        summary = f"{said}, at least {least:.1%} are needed: {amount(missing, 'row')} more.{more}"
        next_step = (
            f"{self._gone()}Land more conflicts examples; the job conflicts_on_demand makes them from rows that are "
            "there. What a share was measured to buy, with the recipe's lessons and without, stands in "
            "docs/conflicts.md; conflicts_share: warn in the resource selection goes on without."
        )
        return Verdict(False, summary, next_step, (), numbers, severity)

    def _missing(self) -> int:
        """How many conflicts rows have to be added; where the number of rows is at its limit, they replace others."""
        least, limit = self.found.settings.min_conflicts_share, self.found.settings.max_samples
        added = (least * self.rows - self.conflicts) / (1 - least) if least < 1 else self.rows
        if limit and self.rows + added > limit:
            added = least * max(limit, self.rows) - self.conflicts
        return max(1, math.ceil(round(added, 9)))  # 3.0000000000000004 is three

    def _gone(self) -> str:
        if not (gone := self.found.recorded.get("conflicts_gone", {})):
            return ""
        files = ", ".join(f"{name} ({amount(count, 'conflicts row')})" for name, count in list(gone.items())[:5])
        others = f" and {len(gone) - 5:,} more" if len(gone) > 5 else ""
        return f"Gone from incoming/ since an earlier run: {files}{others}. Put back what went by mistake. "


@supervised_checks.register(blocking=True)
class NoEvalOverlap(RowCheck):
    """No row has the input of an evaluation case or its reference answer, or nearly."""

    noun, worst = "training row", "similarity"

    def __init__(self, found: DatasetEvidence) -> None:
        super().__init__(found)
        self.hold_out = HoldOut(read_eval_cases(found.layout.eval_cases), found.settings.near_duplicate_threshold)
        self.kinds: Counter[str] = Counter()
        self.cases: set[str] = set()

    def _fault(self, row: TrainingRow) -> dict[str, Any] | None:
        if (overlap := row.overlap(self.hold_out)) is None:
            return None
        self.kinds[overlap.kind] += 1
        self.cases.add(overlap.case_id)
        return {"case": overlap.case_id, "overlap": overlap.kind, "similarity": overlap.similarity}

    def verdict(self) -> Verdict:
        count, threshold = self.violations.count, self.found.settings.near_duplicate_threshold
        same, near, within, answer = (self.kinds[kind] for kind in KINDS)
        numbers = {"overlapping_rows": count, "same_input": same, "overlapping_cases": len(self.cases)}
        rarer = f", {within:,} with one within other text" if within else ""
        rarer += f", {answer:,} with nearly its reference answer" if answer else ""
        return self.judge(
            f"None of {amount(self.rows, self.noun)} has the input or the answer of an evaluation case, or one at "
            f"least {threshold:.0%} similar.",
            f"{self.of_all(count, 'gives', 'give')} {amount(len(self.cases), 'evaluation case')} away: {same:,} "
            f"with the same input, {near:,} with one at least {threshold:.0%} similar{rarer}.",
            "Materialize supervised_dataset again: it holds such rows out. If you changed the file by hand, remove the "
            "rows.",
            numbers,
        )


@supervised_checks.register(blocking=True)
class FitsContext(RowCheck):
    """No row loses a token: all fit into the length that the base model is trained with."""

    def __init__(self, found: DatasetEvidence) -> None:
        super().__init__(found)
        self.lengths = array("i")
        self.waiting: list[TrainingRow] = []

    def add(self, row: TrainingRow) -> None:
        self.waiting.append(row)
        if len(self.waiting) == BLOCK_ROWS:  # tokens are counted for many rows at once
            self._measure()

    def _measure(self) -> None:
        lengths = self.found.budget.row_lengths([(row.prompt, row.response) for row in self.waiting])
        self.lengths.extend(lengths)
        for row, tokens in zip(self.waiting, lengths, strict=True):
            if (over := tokens - self.found.budget.max_length) > 0:
                self.violations.add({"file": row.file, "line": row.line, "tokens": tokens, "over": over}, over)
        self.waiting.clear()

    def verdict(self) -> Verdict:
        self._measure()
        self.rows, limit, model = len(self.lengths), self.found.budget.max_length, self.found.budget.model
        longest, over = max(self.lengths, default=0), self.violations.count
        numbers = {"longest_row_tokens": longest, "rows_over_length": over, "tokens": sum(self.lengths)}
        return self.judge(
            f"{self.of_all(self.rows, 'fits', 'fit')} into {limit:,} tokens of {model}; the longest has {longest:,}.",
            f"{self.of_all(over, 'has', 'have')} more than the {limit:,} tokens that {model} is trained with, the "
            f"longest {longest:,}: their ends would be lost.",
            "Materialize supervised_dataset again with this base model: rows over length are then left out and named "
            "in the ledger. Or raise max_length in the resource base_model.",
            numbers,
            extra={"lengths": histogram(self.lengths, "Tokens per training row", "tokens", {"max_length": limit})}
            if self.rows
            else {},
        )


@supervised_checks.register(blocking=True, severity="WARN")
class TargetsPassValidator(RowCheck):
    """The responses pass the validator that students' answers must pass."""

    noun = "response"

    def __init__(self, found: DatasetEvidence) -> None:
        super().__init__(found)
        self.reasons: Counter[str] = Counter()

    def _fault(self, row: TrainingRow) -> dict[str, Any] | None:
        if verdict := validate_answer(row.answer.vision_yaml, row.answer.review_yaml):
            return None
        self.reasons[PARTICULARS.sub("…", verdict.reason)] += 1
        return {"status": row.status, "reason": verdict.reason}

    def verdict(self) -> Verdict:
        outcomes, count = self.found.balance.outcomes, self.violations.count
        left_out = outcomes.of(Outcome.INVALID_TARGET)
        share = count / self.rows if self.rows else 0.0
        numbers = {"invalid_targets": count, "invalid_targets_share": share, "left_out": left_out}
        good = f"{self.of_all(self.rows, 'passes', 'pass')} the validator"
        land_again = "Correct these answers and land them again, or let the teacher answer once more."
        if count:
            reason, often = self.reasons.most_common(1)[0]
            extra = {"reasons": bar_chart(dict(self.reasons.most_common(8)), "Why responses are not valid")}
            summary = (
                f"{count:,} of {amount(self.rows, self.noun)} ({share:.1%}) {verb(count, 'fails', 'fail')} the "
                f"validator that the student's answers must pass, most often ({amount(often, 'time')}) because "
                f"{reason}."
            )
            next_step = (
                f"The student learns what it is shown. {land_again} With `invalid_targets: leave_out` in the resource "
                "selection they are not trained on."
            )
            severity: Severity = "ERROR" if self.found.settings.invalid_targets == "block" else "WARN"
            return Verdict(False, summary, next_step, self.violations.rows, numbers, severity, extra, of=count)
        if not left_out:
            return Verdict(True, f"{good}.", numbers=numbers)
        summary = (
            f"{good}; {amount(left_out, 'row')} {verb(left_out, 'is', 'are')} left out, since the validator rejects "
            f"{verb(left_out, 'its answer', 'their answers')}."
        )
        next_step = f"The ledger names each as invalid_target, with the reason. {land_again}"
        return Verdict(False, summary, next_step, outcomes.example_rows(Outcome.INVALID_TARGET), numbers, of=left_out)


@supervised_checks.register(severity="WARN")
class AnswerNotInPrompt(RowCheck):
    """No prompt holds the vision that the answer must contain."""

    noun = "prompt"

    def _fault(self, row: TrainingRow) -> dict[str, Any] | None:
        return {"status": row.status, "given_away": told} if (told := row.given_away) else None

    def verdict(self) -> Verdict:
        count, landed = self.violations.count, int(self.found.recorded.get("vision_in_landed_prompt", 0))
        cut = f" A vision was cut out of {amount(landed, 'landed prompt')}." if landed else ""
        return self.judge(
            f"None of {amount(self.rows, self.noun)} holds the vision of its answer.{cut}",
            f"{self.of_all(count, 'holds', 'hold')} the vision that the answer must contain, or its summary.{cut}",
            "The student learns to copy instead of to answer. Land these rows with a concept of their own, as the "
            "evaluation cases have.",
            {"answers_in_prompt": count, "visions_cut_out_of_landed_prompts": landed},
        )


@supervised_checks.register(severity="WARN")
class DuplicatePrompts:
    """Every prompt has one answer."""

    def __init__(self, _: DatasetEvidence) -> None:
        # Compact arrays, one entry per row: a table without a limit on its rows must not fill the memory.
        types = {"prompt": "Q", "pair": "Q", "file": "i", "line": "q", "status": "b"}
        self.columns = {name: array(kind) for name, kind in types.items()}
        self.files: dict[str, int] = {}

    def add(self, row: TrainingRow) -> None:
        status = STATUSES.index(row.status) if row.status in STATUSES else len(STATUSES)
        texts = (text.encode("utf-8", "surrogatepass") for text in (row.prompt, f"{row.prompt}\x00{row.response}"))
        digests = (int.from_bytes(hashlib.blake2b(text, digest_size=8).digest()) for text in texts)
        values = (*digests, self.files.setdefault(row.file, len(self.files)), row.line, status)
        for column, value in zip(self.columns.values(), values, strict=True):
            column.append(value)

    def verdict(self) -> Verdict:
        table = pd.DataFrame({name: np.asarray(column) for name, column in self.columns.items()})
        answers = table[table["prompt"].duplicated(keep=False)].groupby("prompt")
        repeated = answers["status"].agg(["size", "nunique"])
        repeated["contradict"] = repeated["nunique"] > 1
        several, contradicting = len(repeated), int(repeated["contradict"].sum())
        prompts, copies = table["prompt"].nunique(), int(table["pair"].duplicated().sum())
        numbers = {"different_prompts": prompts, "repeated_prompts": several}
        numbers |= {"exact_copies": copies, "contradicting_prompts": contradicting}
        different = amount(prompts, "different prompt")
        if not several:
            return Verdict(True, f"{amount(len(table), 'row')}, {different}.", numbers=numbers)
        # Only those that are shown are looked at one by one: there may be as many as half the rows.
        worst = repeated.sort_values(["contradict", "size"], ascending=False, kind="stable").head(SHOWN_ROWS)
        shown, files = [], list(self.files)
        for found in map(answers.get_group, worst.index):
            statuses = Counter((*STATUSES, "unreadable")[status] for status in found["status"])
            said = ", ".join(f"{count} {name}" for name, count in statuses.most_common())
            place = {"file": files[found["file"].iloc[0]], "line": int(found["line"].iloc[0])}
            shown.append({**place, "answers": len(found), "statuses": said})
        summary = (
            f"{len(table):,} rows have only {different}: {several:,} of them {verb(several, 'has', 'have')} several "
            f"answers, {contradicting:,} with different statuses; {amount(copies, 'row')} "
            f"{verb(copies, 'is an exact copy', 'are exact copies')}."
        )
        next_step = (
            "Several answers to one prompt weigh it more. To keep only the best one, set `drop_duplicates: true` in "
            "the resource `selection`. Answers with different statuses contradict each other: correct them."
        )
        return Verdict(False, summary, next_step, shown, numbers, of=several)


@supervised_checks.register(severity="WARN")
def retention(found: DatasetEvidence) -> Verdict:
    """The share of landed rows (those of the raw snapshot) fit for training lies where it is expected."""
    outcomes, landed = found.balance.outcomes, found.balance.landed
    least, most = found.settings.min_retention, found.settings.max_retention
    kept = outcomes.of(Outcome.KEPT)
    fit = kept + outcomes.of(Outcome.OVER_MAX_SAMPLES)
    share = fit / landed if landed else 0.0
    passed = least <= share <= most
    left = ", ".join(f"{count:,} {name}" for name, count in outcomes.by_outcome().items())
    return Verdict(
        passed,
        f"{fit:,} of {amount(landed, 'landed row')} ({share:.1%}) {verb(fit, 'is', 'are')} fit for training, between "
        f"{least:.0%} and {most:.0%} are expected: {left}.",
        "See the outcomes in the asset's metadata. Either the landed data changed its character, or a setting of the "
        "resource selection (min_score, score_source) does not suit it.",
        [] if passed else [row for row in outcomes.table() if row["outcome"] != Outcome.KEPT],
        {"fit_rows": fit, "landed": landed, "retention": share, "kept": kept},
    )


def record_gate(found: DatasetEvidence, verdicts: dict[str, Verdict]) -> None:
    """Make the verdict of all checks last, beside the data that it is about."""
    write_gate(found.layout.supervised_gate, gate_record(file_digest(found.layout.supervised), verdicts))


def supervised_dataset_checks(
    artifacts: Artifacts, selection: SelectionSettings, base_model: BaseModel, prompt: PromptSettings
) -> DatasetEvidence:
    """What training rows are worth; when all checks ran, their verdict becomes the dataset's gate."""
    return DatasetEvidence(artifacts.layout, selection, token_budget(base_model, artifacts.layout, prompt.own))


dataset_checks = [supervised_checks.step(supervised_dataset_checks, complete=record_gate)]
