"""The checks of supervised_dataset: what its rows are worth, found out again from the bytes of the file.

They see training rows, not normalized ones, so that a fault of the stages before cannot hide itself. Their limits
belong to `settings`, finding an overlap with one evaluation case to `holdout`.
"""

import hashlib
import re
from array import array
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import orjson

from po_assets.dag import (
    Artifacts,
    AssetChecks,
    Verdict,
    Violations,
    bar_chart,
    gate_record,
    histogram,
    write_gate,
)
from po_assets.dataset.cases import read_eval_cases
from po_assets.dataset.holdout import HoldOut
from po_assets.dataset.publication import TokenBudget, token_budget
from po_assets.dataset.selection import NEVER_SAMPLED_AWAY, SCORE_COLUMN
from po_assets.dataset.settings import SelectionSettings
from po_assets.intake.checks import balance_verdict
from po_assets.intake.landing import sources_of
from po_assets.intake.ledger import CLOSED_BY, Balance, Outcome, balance
from po_assets.model import BaseModel
from po_assets.product_owner import (
    STATUSES,
    ParsedAnswer,
    PromptParts,
    build_prompt,
    parse_answer,
    read_status,
    read_yaml,
    split_prompt,
    validate_answer,
)
from po_assets.storage import Layout, file_digest, open_buffered, read_manifest, read_rows
from po_assets.storage.workers import BLOCK_ROWS
from po_assets.text import amount, verb

_PARTICULARS = re.compile(r"'.*'|[0-9]+", re.DOTALL)
"""What differs from row to row in the validator's reasons; without it, they can be counted."""
_HEAD, _BETWEEN, _TAIL = build_prompt("\x00", "\x00").split("\x00")
"""The fixed text of the one prompt, before, between and after concept and requirements."""
_TELLING_SUMMARY_CHARACTERS = 40
"""A product summary this long does not stand in a prompt by chance."""


@dataclass(frozen=True)
class TokenizedRow:
    """A training row as it stands in the file, with the place where it landed; its parts are read when asked for."""

    file: str
    line: int
    row: Mapping[str, Any]

    @property
    def prompt(self) -> str:
        """The prompt, empty when the row has none."""
        return _text(self.row.get("prompt"))

    @property
    def response(self) -> str:
        """The response, empty when the row has none."""
        return _text(self.row.get("response"))

    @cached_property
    def parts(self) -> PromptParts:
        """What the prompt holds."""
        return split_prompt(self.prompt)

    @cached_property
    def answer(self) -> ParsedAnswer:
        """What the response holds."""
        return parse_answer(self.response)

    @property
    def status(self) -> str | None:
        """The status that the response teaches."""
        return read_status(self.answer.review_yaml)

    def named(self, **facts: object) -> dict[str, object]:
        """The row's place with facts about it, for a table."""
        return {"file": self.file, "line": self.line, **facts}


@dataclass(frozen=True)
class DatasetEvidence:
    """What the checks look at: the files as they stand, the settings, the tokenizer."""

    layout: Layout
    settings: SelectionSettings
    budget: TokenBudget

    @cached_property
    def balance(self) -> Balance:
        """Landed lines, ledger rows and training rows, counted in their files."""
        paths = self.layout
        sources = sources_of(read_manifest(paths.raw), paths.raw)
        return balance(paths.raw, sources, paths.ledger, paths.normalized, paths.rejected, supervised=paths.supervised)

    def rows(self) -> Iterator[TokenizedRow]:
        """The training rows, each with the place under which it landed, as far as the ledger has one for it."""
        kept = (entry for entry in read_rows(self.layout.ledger) if entry["outcome"] == Outcome.KEPT)
        for number, row in enumerate(read_rows(self.layout.supervised), start=1):
            entry = next(kept, {"file": self.layout.supervised.name, "line": number})
            yield TokenizedRow(entry["file"], entry["line"], row)


supervised_checks = AssetChecks[DatasetEvidence]("supervised_dataset", rows=DatasetEvidence.rows)


class _RowCheck:
    """Counts the rows and keeps the violating ones."""

    noun = "row"

    def __init__(self, found: DatasetEvidence) -> None:
        self.found = found
        self.rows = 0
        self.violations = Violations()

    def of_all(self, count: int, singular: str, plural: str) -> str:
        """The start of a sentence: `2 of 10 rows are`."""
        return f"{count:,} of {amount(self.rows, self.noun)} {verb(count, singular, plural)}"

    def judge(self, good: str, bad: str, next_step: str, numbers: Mapping[str, float], **more: Any) -> Verdict:
        """Passed where no row violates the rule; the sentence for either case."""
        count = self.violations.count
        return Verdict(not count, bad if count else good, next_step, self.violations.rows, numbers, of=count, **more)


@supervised_checks.register(blocking=True)
class Schema(_RowCheck):
    """Every row is a prompt and a response of the one form, and there are as many as the ledger calls kept."""

    def add(self, row: TokenizedRow) -> None:
        """Look at one row."""
        self.rows += 1
        faults: list[str] = []
        if list(row.row) != ["prompt", "response"]:
            faults.append(f"its keys are {', '.join(map(str, row.row)) or 'none'}, expected are prompt, response")
        if not (row.prompt.startswith(_HEAD) and _BETWEEN in row.prompt and row.prompt.endswith(_TAIL)):
            faults.append("its prompt is not the one that evaluation uses")
        faults += row.answer.missing
        if faults:
            self.violations.add(row.named(fault="; ".join(faults)))

    def verdict(self) -> Verdict:
        """Whether all rows are sound."""
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
    """Every landed line has exactly one final outcome, by counting the files' lines."""
    return balance_verdict(found.balance)


@supervised_checks.register(blocking=True)
class ConflictsShare(_RowCheck):
    """Enough rows teach the status conflicts, and every one that passed the score filter is there."""

    def __init__(self, found: DatasetEvidence) -> None:
        """Look at every conflicts row that passed the score filter and was left out."""
        super().__init__(found)
        self.conflicts = self.held_out = 0
        for entry, row in _conflicts_left_out(found):
            if entry["outcome"] == Outcome.HELD_OUT:
                self.held_out += 1
                continue
            reason = ": ".join(text for text in (entry["reason"], entry["detail"]) if text)
            place = {"file": entry["file"], "line": entry["line"], "score": row["score"]}
            self.violations.add({**place, "outcome": entry["outcome"], "reason": reason})

    def add(self, row: TokenizedRow) -> None:
        """Look at one row."""
        self.rows += 1
        self.conflicts += row.status == "conflicts"

    def verdict(self) -> Verdict:
        """Whether there are enough, and all."""
        least, most = self.found.settings.min_conflicts_share, self.found.settings.max_conflicts_share
        lost = self.violations.count
        share = self.conflicts / self.rows if self.rows else 0.0
        numbers = {"conflicts": self.conflicts, "conflicts_share": share, "lost_conflicts": lost}
        more = f" {self.held_out:,} more {verb(self.held_out, 'is', 'are')} held out for evaluation."
        held_out = more if self.held_out else ""
        rows = f"{self.conflicts:,} of {amount(self.rows, 'training row')} ({share:.1%})"
        count = f"{rows} {verb(self.conflicts, 'is', 'are')} conflicts"
        if lost:
            summary = (
                f"{amount(lost, 'conflicts row')} passed the score filter and {verb(lost, 'is', 'are')} not among the "
                f"training rows; {count}.{held_out}"
            )
            next_step = (
                "The table says why each is missing. Shorten rows that are over length, or raise max_length in the "
                "resource base_model."
            )
            return Verdict(False, summary, next_step, self.violations.rows, numbers, of=lost)
        if share > most:
            next_step = (
                "Conflicts rows are never sampled away, so that they crowd out the others where max_samples is small: "
                "raise it, or land fewer conflicts rows."
            )
            summary = f"{count}, at most {most:.1%} are expected.{held_out}"
            return Verdict(False, summary, next_step, numbers=numbers, severity="WARN")
        enough = share >= least
        whole = "; every one that passed the score filter is here" if enough else ""
        return Verdict(
            enough,
            f"{count}, at least {least:.1%} are needed{whole}.{held_out}",
            "Land more conflicts examples: with fewer the student never learns to say conflicts.",
            numbers=numbers,
        )


def _conflicts_left_out(found: DatasetEvidence) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """Ledger entry and normalized row of every conflicts row that passed the score filter and is not trained on.

    A replaced one is there in its corrected form.
    """
    settings = found.settings
    readable = (entry for entry in read_rows(found.layout.ledger) if entry["decided_by"] == CLOSED_BY)
    with open_buffered(found.layout.normalized) as lines:
        for entry, line in zip(readable, lines, strict=False):
            # Every JSON line that has this value holds these bytes; other lines need no parsing.
            if entry["outcome"] in (Outcome.KEPT, Outcome.REPLACED) or b'"conflicts"' not in line:
                continue
            row = orjson.loads(line)
            if row["status"] == NEVER_SAMPLED_AWAY and row[SCORE_COLUMN[settings.score_source]] >= settings.min_score:
                yield entry, row


@supervised_checks.register(blocking=True)
class NoEvalOverlap(_RowCheck):
    """No row has the input of an evaluation case, or nearly."""

    noun = "training row"

    def __init__(self, found: DatasetEvidence) -> None:
        super().__init__(found)
        self.hold_out = HoldOut(read_eval_cases(found.layout.eval_cases), found.settings.near_duplicate_threshold)
        self.same = 0
        self.cases: set[str] = set()

    def add(self, row: TokenizedRow) -> None:
        """Look at one row."""
        self.rows += 1
        # A prompt that names no sections is compared as a whole.
        overlap = self.hold_out.find(row.parts.concept or "", row.parts.requirements_yaml or row.prompt)
        if overlap:
            self.same += overlap.same_input
            self.cases.add(overlap.case_id)
            kind = "same input" if overlap.same_input else "nearly the same input"
            named = row.named(case=overlap.case_id, overlap=kind, similarity=overlap.similarity)
            self.violations.add(named, overlap.similarity)

    def verdict(self) -> Verdict:
        """Whether evaluation measures something new."""
        count, threshold = self.violations.count, self.found.settings.near_duplicate_threshold
        numbers = {"overlapping_rows": count, "same_input": self.same, "overlapping_cases": len(self.cases)}
        return self.judge(
            f"None of {amount(self.rows, self.noun)} has the input of an evaluation case, or one at least "
            f"{threshold:.0%} similar.",
            f"{self.of_all(count, 'gives', 'give')} {amount(len(self.cases), 'evaluation case')} away: {self.same:,} "
            f"with the same input, {count - self.same:,} with one at least {threshold:.0%} similar.",
            "Materialize supervised_dataset again: it holds such rows out. If you changed the file by hand, remove the "
            "rows.",
            numbers,
        )


@supervised_checks.register(blocking=True)
class FitsContext(_RowCheck):
    """No row loses a token: all fit into the length that the base model is trained with."""

    def __init__(self, found: DatasetEvidence) -> None:
        super().__init__(found)
        self.lengths = array("i")
        self.waiting: list[TokenizedRow] = []

    def add(self, row: TokenizedRow) -> None:
        """Look at one row; tokens are counted for many rows at once."""
        self.waiting.append(row)
        if len(self.waiting) == BLOCK_ROWS:
            self._measure()

    def _measure(self) -> None:
        budget = self.found.budget
        lengths = budget.row_lengths([(row.prompt, row.response) for row in self.waiting])
        self.lengths.extend(lengths)
        for row, tokens in zip(self.waiting, lengths, strict=True):
            if tokens > budget.max_length:
                self.violations.add(row.named(tokens=tokens, over=tokens - budget.max_length), tokens)
        self.waiting.clear()

    def verdict(self) -> Verdict:
        """Whether all rows fit."""
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


@supervised_checks.register(severity="WARN")
class TargetsPassValidator(_RowCheck):
    """The responses pass the validator that students' answers must pass."""

    noun = "response"

    def __init__(self, found: DatasetEvidence) -> None:
        super().__init__(found)
        self.reasons: Counter[str] = Counter()

    def add(self, row: TokenizedRow) -> None:
        """Look at one row."""
        self.rows += 1
        verdict = validate_answer(row.answer.vision_yaml, row.answer.review_yaml)
        if not verdict:
            self.reasons[_PARTICULARS.sub("…", verdict.reason)] += 1
            self.violations.add(row.named(status=row.status, reason=verdict.reason))

    def verdict(self) -> Verdict:
        """Whether the student is taught answers that the evaluation accepts."""
        count = self.violations.count
        share = count / self.rows if self.rows else 0.0
        reason, often = self.reasons.most_common(1)[0] if count else ("", 0)
        reasons = dict(self.reasons.most_common(8))
        return self.judge(
            f"{self.of_all(self.rows, 'passes', 'pass')} the validator.",
            f"{count:,} of {amount(self.rows, self.noun)} ({share:.1%}) {verb(count, 'fails', 'fail')} the validator "
            f"that the student's answers must pass, most often ({amount(often, 'time')}) because {reason}.",
            "The student learns what it is shown. Correct these answers and land them again, or let the teacher answer "
            "once more.",
            {"invalid_targets": count, "invalid_targets_share": share},
            extra={"reasons": bar_chart(reasons, "Why responses are not valid")} if count else {},
        )


@supervised_checks.register(severity="WARN")
class AnswerNotInPrompt(_RowCheck):
    """No prompt holds the vision that the answer must contain."""

    noun = "prompt"

    def add(self, row: TokenizedRow) -> None:
        """Look at one row."""
        self.rows += 1
        if row.parts.vision_yaml is not None:
            self.violations.add(row.named(status=row.status, given_away="a VISION stands in the prompt"), 1)
            return
        summary = read_yaml(row.answer.vision_yaml).value.get("product_summary")
        told = _plain(summary) if isinstance(summary, str) else ""
        if len(told) >= _TELLING_SUMMARY_CHARACTERS and told in _plain(row.prompt):
            self.violations.add(row.named(status=row.status, given_away=f"product_summary: {summary}"))

    def verdict(self) -> Verdict:
        """Whether the prompt leaves the answer to the student."""
        manifest = read_manifest(self.found.layout.supervised)
        landed = int(manifest.extra.get("vision_in_landed_prompt", 0)) if manifest else 0
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
        self._prompts, self._pairs, self._lines = array("Q"), array("Q"), array("q")
        self._files, self._statuses = array("i"), array("b")
        self._file_names: dict[str, int] = {}

    def add(self, row: TokenizedRow) -> None:
        """Look at one row."""
        self._prompts.append(_short_digest(row.prompt))
        self._pairs.append(_short_digest(f"{row.prompt}\x00{row.response}"))
        self._lines.append(row.line)
        self._files.append(self._file_names.setdefault(row.file, len(self._file_names)))
        self._statuses.append(STATUSES.index(row.status) if row.status in STATUSES else len(STATUSES))

    def verdict(self) -> Verdict:
        """Whether prompts repeat; several good answers to one prompt may be wanted."""
        rows = len(self._prompts)
        # Rows ordered by prompt and then as they stand; where each prompt's rows start; how many there are.
        prompts = np.frombuffer(self._prompts, np.uint64)
        order = np.argsort(prompts, kind="stable")
        _, starts, counts = np.unique(prompts[order], return_index=True, return_counts=True)
        copies = rows - len(np.unique(np.frombuffer(self._pairs, np.uint64)))
        repeated = np.flatnonzero(counts > 1)
        violations, contradicting = Violations(), 0
        for position in repeated.tolist():
            members = order[starts[position] : starts[position] + counts[position]].tolist()
            statuses = Counter((*STATUSES, "unreadable")[self._statuses[member]] for member in members)
            contradicting += len(statuses) > 1
            said = ", ".join(f"{count} {name}" for name, count in statuses.most_common())
            place = {"file": list(self._file_names)[self._files[members[0]]], "line": self._lines[members[0]]}
            weight = 1_000_000 * (len(statuses) > 1) + len(members)
            violations.add({**place, "answers": len(members), "statuses": said}, weight)
        numbers = {
            "different_prompts": len(counts),
            "repeated_prompts": len(repeated),
            "exact_copies": copies,
            "contradicting_prompts": contradicting,
        }
        different = amount(len(counts), "different prompt")
        if not len(repeated):
            return Verdict(True, f"{amount(rows, 'row')}, {different}.", numbers=numbers)
        summary = (
            f"{rows:,} rows have only {different}: {len(repeated):,} of them {verb(len(repeated), 'has', 'have')} "
            f"several answers, {contradicting:,} with different statuses; {amount(copies, 'row')} "
            f"{verb(copies, 'is an exact copy', 'are exact copies')}."
        )
        next_step = (
            "Several answers to one prompt weigh it more. To keep only the best one, set `drop_duplicates: true` in "
            "the resource `selection`. Answers with different statuses contradict each other: correct them."
        )
        return Verdict(False, summary, next_step, violations.rows, numbers, of=violations.count)


@supervised_checks.register(severity="WARN")
def retention(found: DatasetEvidence) -> Verdict:
    """The share of landed rows (those of the raw snapshot) fit for training lies where it is expected."""
    outcomes, landed = found.balance.outcomes, found.balance.landed
    least, most = found.settings.min_retention, found.settings.max_retention
    kept = outcomes.of(Outcome.KEPT)
    fit = kept + outcomes.of(Outcome.OVER_MAX_SAMPLES)
    share = fit / landed if landed else 0.0
    left = ", ".join(f"{count:,} {name}" for name, count in outcomes.by_outcome().items())
    return Verdict(
        least <= share <= most,
        f"{fit:,} of {amount(landed, 'landed row')} ({share:.1%}) {verb(fit, 'is', 'are')} fit for training, between "
        f"{least:.0%} and {most:.0%} are expected: {left}.",
        "See the outcomes in the asset's metadata. Either the landed data changed its character, or a setting of the "
        "resource selection (min_score, score_source) does not suit it.",
        [] if least <= share <= most else [row for row in outcomes.table() if row["outcome"] != Outcome.KEPT],
        {"fit_rows": fit, "landed": landed, "retention": share, "kept": kept},
    )


def record_gate(found: DatasetEvidence, verdicts: dict[str, Verdict]) -> None:
    """Make the verdict of all checks last, beside the data that it is about."""
    write_gate(found.layout.supervised_gate, gate_record(file_digest(found.layout.supervised), verdicts))


@supervised_checks.step(complete=record_gate)
def supervised_dataset_checks(
    artifacts: Artifacts, selection: SelectionSettings, base_model: BaseModel
) -> DatasetEvidence:
    """What training rows are worth; when all checks ran, their verdict becomes the dataset's gate."""
    return DatasetEvidence(artifacts.layout, selection, token_budget(base_model, artifacts.layout))


def _text(value: object) -> str:
    return value if isinstance(value, str) else ""


def _plain(text: str) -> str:
    return " ".join(text.casefold().split())


def _short_digest(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest())


dataset_checks = [supervised_dataset_checks]
