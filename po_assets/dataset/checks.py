"""The checks of supervised_dataset: what its rows are worth, found out again from the bytes of the file.

They see training rows, not normalized ones, so that a fault of the stages before cannot hide itself. Their limits
belong to `settings`, finding an overlap with an evaluation case to `holdout`.
"""
# ruff: noqa: D102 - what `add` and `verdict` do is said at `dag.checks.RowCheck`

import hashlib
import math
import re
from array import array
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import orjson
import pandas as pd

from po_assets.dag import Artifacts, AssetChecks, Severity, Verdict, bar_chart, gate_record, histogram, write_gate
from po_assets.dag.verdict import SHOWN_ROWS
from po_assets.dataset.cases import read_eval_cases
from po_assets.dataset.holdout import KINDS, HoldOut
from po_assets.dataset.publication import PARTICULARS, TokenBudget, publication_fault, token_budget
from po_assets.dataset.selection import NEVER_SAMPLED_AWAY, SCORE_COLUMN
from po_assets.dataset.settings import PromptSettings, SelectionSettings
from po_assets.intake.checks import RowCheck, TableEvidence, balance_verdict
from po_assets.intake.ledger import CLOSED_BY, Balance, Outcome, balance
from po_assets.intake.normalization import input_digest
from po_assets.model import BaseModel
from po_assets.product_owner import (
    STATUSES,
    ParsedAnswer,
    PromptParts,
    parse_answer,
    read_status,
    read_yaml,
    split_prompt,
    validate_answer,
)
from po_assets.product_owner.templates import BUILT_IN, Prompt
from po_assets.storage import file_digest, open_buffered, read_manifest, read_rows
from po_assets.storage.workers import BLOCK_ROWS
from po_assets.text import amount, verb

_VISION_SECTION = re.compile(r"(?:```yaml )?VISION:?\s*", re.IGNORECASE)
_LEFT_OUT_ON_PURPOSE = {
    Outcome.HELD_OUT: "held out for evaluation",
    Outcome.INVALID_TARGET: "left out, since the validator rejects the answer",
}
_TELLING_SUMMARY_CHARACTERS = 40
"""A product summary this long does not stand in a prompt by chance."""


@dataclass(frozen=True)
class TrainingRow:
    """A training row as it stands in the file, with the place where it landed; its parts are read when asked for."""

    file: str
    line: int
    row: Mapping[str, Any]
    asked_with: Prompt = BUILT_IN

    @property
    def prompt(self) -> str:
        """The prompt, empty when the row has none."""
        return value if isinstance(value := self.row.get("prompt"), str) else ""

    @property
    def response(self) -> str:
        """The response, empty when the row has none."""
        return value if isinstance(value := self.row.get("response"), str) else ""

    @cached_property
    def parts(self) -> PromptParts:
        """What the prompt holds."""
        return self.asked_with.parts(self.prompt) or split_prompt(self.prompt)

    @cached_property
    def answer(self) -> ParsedAnswer:
        """What the response holds."""
        return parse_answer(self.response)

    @property
    def status(self) -> str | None:
        """The status that the response teaches."""
        return read_status(self.answer.review_yaml)


@dataclass(frozen=True)
class DatasetEvidence(TableEvidence):
    """What the checks look at: the files as they stand, the settings, the tokenizer."""

    settings: SelectionSettings
    budget: TokenBudget

    @cached_property
    def balance(self) -> Balance:
        """Landed lines, ledger rows and training rows, counted in their files."""
        return balance(self.layout, self.sources, closed=True)

    @cached_property
    def recorded(self) -> Mapping[str, Any]:
        """What the manifest of the training rows says of them besides."""
        manifest = read_manifest(self.layout.supervised)
        return manifest.extra if manifest else {}

    def rows(self) -> Iterator[TrainingRow]:
        """The training rows, each with the place under which it landed, as far as the ledger has one for it."""
        kept = (entry for entry in read_rows(self.layout.ledger) if entry["outcome"] == Outcome.KEPT)
        for number, row in enumerate(read_rows(self.layout.supervised), start=1):
            entry = next(kept, {"file": self.layout.supervised.name, "line": number})
            yield TrainingRow(entry["file"], entry["line"], row, self.budget.prompt)

    def conflicts_left_out(self) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
        """Ledger entry and normalized row of every conflicts row that passed the score filter and is not trained on.

        A replaced one is there in its corrected form.
        """
        score, least = SCORE_COLUMN[self.settings.score_source], self.settings.min_score
        readable = (entry for entry in read_rows(self.layout.ledger) if entry["decided_by"] == CLOSED_BY)
        with open_buffered(self.layout.normalized) as lines:
            for entry, line in zip(readable, lines, strict=False):
                # Every JSON line that has this value holds these bytes; other lines need no parsing.
                if entry["outcome"] in (Outcome.KEPT, Outcome.REPLACED) or b'"conflicts"' not in line:
                    continue
                row = orjson.loads(line)
                if row["status"] == NEVER_SAMPLED_AWAY and row[score] >= least:
                    yield entry, row


supervised_checks = AssetChecks[DatasetEvidence]("supervised_dataset", rows=DatasetEvidence.rows)


@supervised_checks.register(blocking=True)
class Schema(RowCheck):
    """Every row is a prompt and a response of the one form, and there are as many as the ledger calls kept."""

    def _fault(self, row: TrainingRow) -> dict[str, Any] | None:
        faults: list[str] = []
        if list(row.row) != ["prompt", "response"]:
            faults.append(f"its keys are {', '.join(map(str, row.row)) or 'none'}, expected are prompt, response")
        if self.found.budget.prompt.parts(row.prompt) is None:
            faults.append("its prompt is not the one that evaluation uses")
        faults += row.answer.missing
        return {"fault": "; ".join(faults)} if faults else None

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
        sound = (
            f"{self.of_all(self.rows, 'is', 'are')} a prompt and a response of the one form, as many as the ledger says"
        )
        next_step = (
            "Materialize normalized_teacher and supervised_dataset again. With no row left, see the outcomes in the "
            "asset's metadata for where the rows went."
        )
        return Verdict(not faults, f"{'; '.join(faults) or sound}.", next_step, self.violations.rows, numbers)


@supervised_checks.register(blocking=True)
def ledger_balances(found: DatasetEvidence) -> Verdict:
    """Every landed line has exactly one final outcome, by counting the files' lines; ledger and rows are of one run."""
    counted = found.balance
    if fault := publication_fault(found.layout):
        different: dict[str, object] = {"file": "", "line": None, "fault": fault}
        counted = replace(counted, disagreements=[*counted.disagreements, different])
    return balance_verdict(counted)


@supervised_checks.register(blocking=True)
class ConflictsShare(RowCheck):
    """Enough rows teach the status conflicts, and every one that passed the score filter is there."""

    noun = "training row"

    def __init__(self, found: DatasetEvidence) -> None:
        """Look at every conflicts row that passed the score filter and was left out."""
        super().__init__(found)
        self.conflicts = 0
        self.elsewhere: Counter[str] = Counter()
        for entry, row in found.conflicts_left_out():
            if why := _LEFT_OUT_ON_PURPOSE.get(entry["outcome"]):
                self.elsewhere[why] += 1
                continue
            reason = ": ".join(filter(None, (entry["reason"], entry["detail"])))
            place = {"file": entry["file"], "line": entry["line"], "score": row["score"]}
            self.violations.add({**place, "outcome": entry["outcome"], "reason": reason})

    def _fault(self, row: TrainingRow) -> None:
        self.conflicts += row.status == NEVER_SAMPLED_AWAY

    def verdict(self) -> Verdict:
        settings, lost = self.found.settings, self.violations.count
        least, most = settings.min_conflicts_share, settings.max_conflicts_share
        share = self.conflicts / self.rows if self.rows else 0.0
        numbers = {"conflicts": self.conflicts, "conflicts_share": share, "lost_conflicts": lost}
        severity: Severity = "WARN" if settings.conflicts_share == "warn" else "ERROR"
        more = "".join(
            f" {count:,} more {verb(count, 'is', 'are')} {why}." for why, count in sorted(self.elsewhere.items())
        )
        rows = f"{self.conflicts:,} of {amount(self.rows, self.noun)} ({share:.1%})"
        count = f"{rows} {verb(self.conflicts, 'is', 'are')} conflicts"
        if lost:
            summary = (
                f"{amount(lost, 'conflicts row')} passed the score filter and {verb(lost, 'is', 'are')} not among the "
                f"training rows; {count}.{more}"
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
            summary = f"{count}, at most {most:.1%} are expected.{more}"
            return Verdict(False, summary, next_step, numbers=numbers, severity="WARN")
        if share >= least:
            whole = "every one that passed the score filter is here"
            return Verdict(True, f"{count}, at least {least:.1%} are needed; {whole}.{more}", numbers=numbers)
        missing = numbers["missing_conflicts"] = self._missing()
        return Verdict(
            False,
            f"{count}, at least {least:.1%} are needed: {amount(missing, 'row')} more.{more}",
            f"{self._gone()}Land more conflicts examples: with fewer the student never learns to say conflicts. The "
            "job conflicts_on_demand makes them from rows that are there; what a share was measured to buy stands in "
            "docs/conflicts.md.",
            numbers=numbers,
            severity=severity,
        )

    def _missing(self) -> int:
        """How many conflicts rows have to be added; where the number of rows is at its limit, they replace others."""
        settings = self.found.settings
        least, limit = settings.min_conflicts_share, settings.max_samples
        added = math.ceil((least * self.rows - self.conflicts) / (1 - least)) if least < 1 else self.rows
        if limit and self.rows + added > limit:
            added = math.ceil(least * max(limit, self.rows)) - self.conflicts
        return max(1, added)

    def _gone(self) -> str:
        gone: dict[str, int] = self.found.recorded.get("conflicts_gone", {})
        if not gone:
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
        # A prompt that names no sections is compared as a whole.
        concept, requirements = row.parts.concept or "", row.parts.requirements_yaml or row.prompt
        digest = input_digest(concept, requirements, row.parts.existing_vision_yaml or "")
        asked = self.hold_out.find(concept, requirements, digest)
        overlap = asked or self.hold_out.find_answer(row.answer.vision_yaml or "", row.answer.review_yaml or "")
        if overlap is None:
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
        verdict = validate_answer(row.answer.vision_yaml, row.answer.review_yaml)
        if verdict:
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
            picture = bar_chart(dict(self.reasons.most_common(8)), "Why responses are not valid")
            return Verdict(
                False,
                f"{count:,} of {amount(self.rows, self.noun)} ({share:.1%}) {verb(count, 'fails', 'fail')} the "
                f"validator that the student's answers must pass, most often ({amount(often, 'time')}) because "
                f"{reason}.",
                f"The student learns what it is shown. {land_again} With `invalid_targets: leave_out` in the resource "
                "selection they are not trained on.",
                self.violations.rows,
                numbers,
                "ERROR" if self.found.settings.invalid_targets == "block" else "WARN",
                {"reasons": picture},
                of=count,
            )
        if not left_out:
            return Verdict(True, f"{good}.", numbers=numbers)
        return Verdict(
            False,
            f"{good}; {amount(left_out, 'row')} {verb(left_out, 'is', 'are')} left out, since the validator rejects "
            f"{verb(left_out, 'its answer', 'their answers')}.",
            f"The ledger names each as invalid_target, with the reason. {land_again}",
            outcomes.example_rows(Outcome.INVALID_TARGET),
            numbers,
            of=left_out,
        )


@supervised_checks.register(severity="WARN")
class AnswerNotInPrompt(RowCheck):
    """No prompt holds the vision that the answer must contain."""

    noun = "prompt"

    def _fault(self, row: TrainingRow) -> dict[str, Any] | None:
        asked = row.parts.concept or row.prompt
        if row.parts.vision_yaml is not None or any(map(_VISION_SECTION.fullmatch, asked.splitlines())):
            return {"status": row.status, "given_away": "a VISION stands in the prompt"}
        summary = read_yaml(row.answer.vision_yaml).value.get("product_summary")
        told = _plain(summary) if isinstance(summary, str) else ""
        # What an existing vision says may stand in the new one.
        if len(told) >= _TELLING_SUMMARY_CHARACTERS and told in _plain(f"{asked}\n{row.parts.requirements_yaml}"):
            return {"status": row.status, "given_away": f"product_summary: {summary}"}
        return None

    def verdict(self) -> Verdict:
        landed = int(self.found.recorded.get("vision_in_landed_prompt", 0))
        cut = f" A vision was cut out of {amount(landed, 'landed prompt')}." if landed else ""
        count = self.violations.count
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
        self._columns = {name: array(kind) for name, kind in types.items()}
        self._files: dict[str, int] = {}

    def add(self, row: TrainingRow) -> None:
        status = STATUSES.index(row.status) if row.status in STATUSES else len(STATUSES)
        digests = (_short_digest(row.prompt), _short_digest(f"{row.prompt}\x00{row.response}"))
        values = (*digests, self._files.setdefault(row.file, len(self._files)), row.line, status)
        for column, value in zip(self._columns.values(), values, strict=True):
            column.append(value)

    def verdict(self) -> Verdict:
        table = pd.DataFrame({name: np.asarray(column) for name, column in self._columns.items()})
        rows, prompts, copies = len(table), table["prompt"].nunique(), int(table["pair"].duplicated().sum())
        answers = table[table["prompt"].duplicated(keep=False)].groupby("prompt")
        repeated = answers["status"].agg(["size", "nunique"])
        repeated["contradict"] = repeated["nunique"] > 1
        contradicting, several = int(repeated["contradict"].sum()), len(repeated)
        # Only those that are shown are looked at one by one: there may be as many as half the rows.
        worst = repeated.sort_values(["contradict", "size"], ascending=False, kind="stable").head(SHOWN_ROWS)
        shown, files = [], list(self._files)
        for found in map(answers.get_group, worst.index):
            statuses = Counter((*STATUSES, "unreadable")[status] for status in found["status"])
            said = ", ".join(f"{count} {name}" for name, count in statuses.most_common())
            place = {"file": files[found["file"].iloc[0]], "line": int(found["line"].iloc[0])}
            shown.append({**place, "answers": len(found), "statuses": said})
        numbers = {"different_prompts": prompts, "repeated_prompts": several}
        numbers |= {"exact_copies": copies, "contradicting_prompts": contradicting}
        different = amount(prompts, "different prompt")
        if not several:
            return Verdict(True, f"{amount(rows, 'row')}, {different}.", numbers=numbers)
        summary = (
            f"{rows:,} rows have only {different}: {several:,} of them {verb(several, 'has', 'have')} "
            f"several answers, {contradicting:,} with different statuses; {amount(copies, 'row')} "
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


def _plain(text: str) -> str:
    return " ".join(text.casefold().split())


def _short_digest(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest())


dataset_checks = [supervised_checks.step(supervised_dataset_checks, complete=record_gate)]
