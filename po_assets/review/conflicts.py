"""Conflicts rows on demand: how many are wanted, made from which parents, audited, and landed if they pass.

The file in the landing folder is always made anew from the teacher's own rows, so that nothing piles up and no made row
is the parent of another. The same parents give the same rows, in whatever order they landed: they are taken in the
order of a keyed digest of their input, and every draw is seeded. How phrases are read and descriptions rewritten
belongs to `english`, the audit to `checks`.
"""

import hashlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import count, islice, product
from random import Random
from string import Formatter
from typing import Any

import numpy as np
import orjson
from upath import UPath

from po_assets.dag import Verdict
from po_assets.dataset.cases import EvalCase, read_eval_cases
from po_assets.dataset.holdout import HoldOut
from po_assets.dataset.publication import TokenBudget, decide, landed_file_names, training_row
from po_assets.dataset.settings import SelectionSettings
from po_assets.errors import UserError
from po_assets.intake.ledger import Outcome
from po_assets.product_owner import (
    RequirementEntry,
    cited_ids,
    read_alignment,
    read_yaml,
    requirement_entries,
    score_product_owner,
    validate_answer,
)
from po_assets.product_owner.contract import ALIGNMENT_KEYS, MIN_SCORE, REQUIREMENT_SECTIONS
from po_assets.product_owner.documents import as_list, to_text, write_yaml
from po_assets.review import english
from po_assets.review.checks import PATTERNS, conflicts_checks, made_rows
from po_assets.review.entries import land_lines
from po_assets.review.settings import ReviewSettings
from po_assets.storage import Layout, open_buffered
from po_assets.text import join

LANDED_NAME = "synthetic_conflicts.jsonl"
"""One stable name: landing again replaces the file."""
MADE_BY, SOURCE = "synthetic_conflicts", "synthetic"
MOST_SHARED_WORDS = 0.15
"""Two inputs that share more of their words (Jaccard index) may be about one and the same thing."""
TOLERANCE = 2
"""Characters by which a changed description may differ in length, and words of it in theirs."""
_PARTNERS = 200
"""Parents that are tried as the other half of a mismatch."""
_MOST_USER_WORDS = 6
_LONG_WORD = 15
_NO_STRANGER = "no requirements of the same shape are about something else"
_NO_BREACH = "no requirement can be changed into a violation of a non-goal and keep its form and length"

Array = np.ndarray[Any, Any]
Row = dict[str, Any]


@dataclass(frozen=True)
class _Parent:
    """A training row of status aligned, with its documents read."""

    row: Row
    key: str
    """Keyed digest of its input: the order in which parents are taken."""

    @cached_property
    def vision(self) -> Mapping[Any, Any]:
        return read_yaml(self.row["vision_yaml"]).value

    @cached_property
    def entries(self) -> list[RequirementEntry]:
        return requirement_entries(self.row["requirements_yaml"])

    @cached_property
    def product(self) -> str:
        return to_text(self.vision.get("product_name")).strip()

    @cached_property
    def users(self) -> list[str]:
        users = [to_text(user).strip().rstrip(".") for user in as_list(self.vision.get("target_users"))]
        short = [user for user in users if 0 < len(user.split()) <= _MOST_USER_WORDS]
        return [english.lower_first(user) for user in short if user.replace(" ", "").replace("-", "").isalnum()]

    @cached_property
    def shape(self) -> list[int]:
        return [sum(entry.section == section for entry in self.entries) for section in REQUIREMENT_SECTIONS]

    @cached_property
    def words(self) -> frozenset[str]:
        return english.content_words(f"{self.row['concept']} {' '.join(entry.description for entry in self.entries)}")

    def names(self, product: str) -> bool:
        return product.lower() in f"{self.row['concept']} {self.row['requirements_yaml']}".lower()

    def is_stranger_to(self, other: "_Parent") -> bool:
        """Whether the requirements of one cannot pass for the other's, and both documents have the same shape."""
        if self.shape != other.shape or not (self.product and other.product):
            return False
        if self.names(other.product) or other.names(self.product):
            return False
        return len(self.words & other.words) <= MOST_SHARED_WORDS * len(self.words | other.words)


@dataclass(frozen=True)
class Basis:
    """What would be trained on without the rows that we made, and which of it can be built on."""

    kept: int
    conflicts: int
    limit: int | None
    """`max_samples`: the most rows that are trained on."""
    parents: list[_Parent]

    def share_with(self, more: int) -> float:
        """Share of conflicts rows with so many more; beyond the limit they take the place of others."""
        return (self.conflicts + more) / self._rows_with(more)

    def needed(self, target: float) -> int:
        """The fewest further conflicts rows with which the share reaches the target."""
        return next(more for more in count() if self.conflicts + more >= target * self._rows_with(more) - 1e-9)

    def _rows_with(self, more: int) -> int:
        together = self.kept + more
        return together if self.limit is None else max(min(together, self.limit), self.conflicts + more)


@dataclass(frozen=True)
class Synthesis:
    """What was found, made and landed."""

    basis: Basis
    rows: list[Row]
    """In the format in which they land."""
    record: Row
    """The figures, for the table's manifest, from which the checks work."""
    verdicts: dict[str, Verdict]
    landed: str
    """What became of the file in the landing folder, in a sentence."""


def make_conflicts(
    layout: Layout, settings: ReviewSettings, selection: SelectionSettings, budget: TokenBudget
) -> Synthesis:
    """Fill the conflicts rows up to the target; rows that fail an audit do not land.

    Raises:
        UserError: the evaluation cases cannot be used; teacher tables are missing, or do not belong together; no row
            would be trained on.
    """
    cases = read_eval_cases(layout.eval_cases)
    basis = read_basis(layout, selection, cases, budget, settings.seed)
    needed = basis.needed(settings.target_conflicts_share)
    hold_out = HoldOut(cases, selection.near_duplicate_threshold)
    maker = _Maker(basis.parents, hold_out, budget, max(MIN_SCORE, selection.min_score), settings.seed)
    rows = maker.rows(needed)
    record: Row = {
        "target": settings.target_conflicts_share,
        "rows_before": basis.kept,
        "conflicts_before": basis.conflicts,
        "share_before": basis.share_with(0),
        "share": basis.share_with(len(rows)),
        "needed": needed,
        "made": len(rows),
        "passed_over": dict(Counter(maker.reasons.values()).most_common()),
        "least_score": maker.least_score,
    }
    verdicts = conflicts_checks.verdicts(made_rows(layout, rows, record, hold_out))
    failed = [name for name, found in verdicts.items() if not found.passed and found.severity == "ERROR"]
    landed = _land(layout.incoming / LANDED_NAME, needed, rows, failed)
    return Synthesis(basis, rows, record, verdicts, landed)


def _land(path: UPath, needed: int, rows: list[Row], failed: list[str]) -> str:
    if not needed:
        if not path.exists():
            return "Nothing was landed: the target is met."
        return (
            f"Nothing was landed: the target is met by the teacher's rows alone. The earlier {path.name} is no longer "
            "needed; delete it from the landing folder to train without it."
        )
    if not rows:
        return "Nothing was landed: no row could be made."
    if failed:
        return f"Nothing was landed: {' and '.join(failed)} failed."
    if land_lines(path, map(orjson.dumps, rows)):
        return f"{len(rows)} rows landed in {path.name}; the sensor takes them from there."
    return f"{path.name} holds these {len(rows)} rows already; nothing was written."


def read_basis(
    layout: Layout, selection: SelectionSettings, cases: list[EvalCase], budget: TokenBudget, seed: int
) -> Basis:
    """Select as training would, leaving out our own rows.

    Parents are the chosen rows of status aligned with a valid answer, one for each input, that are not synthetic and
    do not speak of the product of an evaluation case; errors as `make_conflicts`.
    """
    files = landed_file_names(layout)
    decisions = decide(lambda: _teacher_lines(layout), files, selection, cases, budget)
    kept = set(decisions.where(Outcome.KEPT).tolist())
    if not kept:
        raise UserError(
            "No row would be trained on, so nothing can be made. Materialize normalized_teacher, and see the ledger "
            "for where the rows went."
        )
    names = [to_text(read_yaml(case.reference_vision_yaml).value.get("product_name")).strip() for case in cases]
    parents: dict[str, _Parent] = {}
    for row in (orjson.loads(line) for number, line in enumerate(_teacher_lines(layout)) if number in kept):
        texts = [row[part] for part in ("concept", "requirements_yaml", "vision_yaml")]
        usable = row["status"] == "aligned" and row["valid"] and row["metadata"].get("source") != SOURCE
        if not usable or any(name in text for name in names if name for text in texts):
            continue
        key = hashlib.blake2b(f"{seed}/{row['input_digest']}".encode(), digest_size=16).hexdigest()
        other = parents.setdefault(key, _Parent(row, key))
        if row["record_id"] < other.row["record_id"]:  # of several answers the same, whatever landed first
            parents[key] = _Parent(row, key)
    conflicts = int(decisions.conflicts[sorted(kept)].sum())
    return Basis(len(kept), conflicts, selection.max_samples, [parents[key] for key in sorted(parents)])


def _teacher_lines(layout: Layout) -> Iterator[bytes]:
    """The normalized lines that were not made here."""
    with open_buffered(layout.normalized) as file:
        for line in file:
            metadata = orjson.loads(line)["metadata"] if MADE_BY.encode() in line else {}
            if (metadata.get("source"), metadata.get("made_by")) != (SOURCE, MADE_BY):
                yield line


@dataclass(frozen=True)
class _Draft:
    """A conflicts row before its review is written."""

    parents: Sequence[_Parent]
    """The one whose concept and vision it has, then the one whose requirements it has, where that is another."""
    requirements_yaml: str
    offending: Sequence[str]
    """Ids of the requirements that do not fit."""
    phrases: Sequence[english.Phrase]
    """The non-goal that is violated; where the scope is wrong, the capabilities that nothing serves."""

    @property
    def pattern(self) -> str:
        return PATTERNS[len(self.parents) == 1]


class _Maker:
    """Makes the rows of both patterns from parents that are still free."""

    def __init__(
        self, parents: Sequence[_Parent], hold_out: HoldOut, budget: TokenBudget, least_score: float, seed: int
    ) -> None:
        self._parents, self._hold_out, self._budget, self._seed = parents, hold_out, budget, seed
        self.least_score = least_score
        self._verbs = english.verbs_of(
            text for one in parents for text in (one.row["concept"], *(entry.description for entry in one.entries))
        )
        self._used: set[str] = set()
        self.reasons: dict[tuple[str, str], str] = {}
        """Why a parent gave no row, by pattern and record id."""

    def rows(self, needed: int) -> list[Row]:
        """So many rows, half of each pattern as far as both can be made; each parent is used at most once."""
        # Pairs of mismatches come whole, so that each document of a pair stands once in a mismatch and once by itself.
        mismatches = list(islice(self._mismatches(), 2 * round(needed / 4)))
        violations = list(islice(self._violations(), needed - len(mismatches)))
        # What one pattern lacks, the other makes good.
        return [*mismatches, *islice(self._mismatches(), needed - len(mismatches) - len(violations)), *violations]

    def _mismatches(self) -> Iterator[Row]:
        """One product's concept with another's requirements, both as they stand; in pairs."""
        for position, one in enumerate(self._parents):
            if one.key in self._used:
                continue
            free = (other for other in self._parents[position + 1 :] if other.key not in self._used)
            other = next((other for other in islice(free, _PARTNERS) if one.is_stranger_to(other)), None)
            if other is None:
                self.reasons[PATTERNS[0], one.row["record_id"]] = _NO_STRANGER
                continue
            drafts = []
            for asked, given in ((one, other), (other, one)):
                offending, phrases = [entry.id for entry in given.entries], self._phrases(asked, "key_capabilities")
                drafts.append(_Draft((asked, given), given.row["requirements_yaml"], offending, phrases))
            pair = list(filter(None, map(self._written, drafts)))
            if len(pair) == 2:
                self._used |= {one.key, other.key}
                yield from pair

    def _violations(self) -> Iterator[Row]:
        """One description changed into what the vision excludes; first where the concept states the non-goal itself.

        A changed sentence is never quite as long as the old one, and what products exclude may be said in shorter words
        than what they do. So of each parent's drafts that one is taken with which the differences from the parents add
        up to the least: over all rows they cancel out.
        """
        total = np.zeros(_LONG_WORD + 2)
        for parent in sorted(self._parents, key=lambda parent: not self._states_non_goal(parent)):
            if parent.key in self._used:
                continue
            drafts = list(self._drafts(parent))
            if not drafts:
                self.reasons[PATTERNS[1], parent.row["record_id"]] = _NO_BREACH
                continue
            drift, draft = min(drafts, key=lambda found: float(((total + found[0]) ** 2).sum()))
            if row := self._written(draft):
                self._used.add(parent.key)
                total = total + drift
                yield row

    def _drafts(self, parent: _Parent) -> Iterator[tuple[Array, _Draft]]:
        """Every way to change one description into a violation and keep its form, with how its lengths differ."""
        document = parent.row["requirements_yaml"]
        functional = [entry for entry in parent.entries if entry.section == REQUIREMENT_SECTIONS[0]]
        tails = english.sentence_ends(entry.description for entry in functional)
        for entry, excluded in product(functional, self._non_goals(parent)):
            for text in english.rewritten(entry.description, excluded, product=parent.product, tails=tails):
                alike = _of_one_form(text, entry.description)
                if alike and (changed := english.with_description(document, entry, text)):
                    drift = _lengths(text) - _lengths(entry.description)
                    drift[0] *= entry in (functional[0], functional[-1])
                    yield drift, _Draft((parent,), changed, [entry.id], [excluded])

    def _phrases(self, parent: _Parent, key: str) -> list[english.Phrase]:
        items = as_list(parent.vision.get(key))
        bare = [item.removeprefix(f"{parent.product} ") if isinstance(item, str) else item for item in items]
        concept = parent.row["concept"]
        return [phrase for item in bare if (phrase := english.read_phrase(item, self._verbs, concept))]

    def _non_goals(self, parent: _Parent) -> list[english.Phrase]:
        """Those that no requirement seems to serve: they are too close to the product to be a clear violation."""
        served = [english.content_words(entry.description) for entry in parent.entries]
        return [
            phrase
            for phrase in self._phrases(parent, "non_goals")
            if (words := english.content_words(phrase.text)) and not any(words <= other for other in served)
        ]

    def _states_non_goal(self, parent: _Parent) -> bool:
        told = english.content_words(parent.row["concept"])
        return any(english.content_words(phrase.text) <= told for phrase in self._non_goals(parent))

    def _written(self, draft: _Draft) -> Row | None:
        """The row of a draft, if it fulfils all that is asked of it."""
        first, last = draft.parents[0].row, draft.parents[-1].row
        concept, vision, ids = first["concept"], first["vision_yaml"], [one.row["record_id"] for one in draft.parents]
        rng = Random(f"{self._seed}/{draft.pattern}/{'/'.join(ids)}")  # noqa: S311 - seeded on purpose
        review = write_review(rng, draft)
        verdict = validate_answer(vision, review)
        score = score_product_owner(draft.requirements_yaml, vision, review).total
        texts = {"concept": concept, "requirements_yaml": draft.requirements_yaml}
        pair = training_row({**texts, "vision_yaml": vision, "review_yaml": review})
        (tokens,) = self._budget.row_lengths([(pair["prompt"], pair["response"])])
        near = self._hold_out.find(concept, draft.requirements_yaml)
        least, most = self.least_score, self._budget.max_length
        faults = (
            (near, "the row would be nearly the input of an evaluation case"),
            (not verdict, f"the answer is not valid: {verdict.reason}"),
            (score < least, f"the score is under {least:g}, mostly for the teacher's thin vision"),
            (tokens > most, f"the row is longer than {most:,} tokens"),
        )
        if reason := next((said for holds, said in faults if holds), ""):
            self.reasons[draft.pattern, ids[0]] = reason
            return None
        origin = {"source": SOURCE, "made_by": MADE_BY, "pattern": draft.pattern, "parents": ids, "seed": self._seed}
        answer = {"teacher_product_vision": vision, "teacher_product_owner_review": review}
        tier = {"tier": last["tier"]} if last["tier"] else {}
        return {**texts, **answer, "score": score, "metadata": origin, **tier}


def write_review(rng: Random, draft: _Draft) -> str:
    """The review as YAML: which offend, what is missing and what to do, all from the documents of the row.

    Where one requirement offends, what the teacher said of the others stays.
    """
    first, last = draft.parents[0], draft.parents[-1]
    told = read_alignment(first.row["review_yaml"] if first is last else None)
    wrong = {identifier.upper() for identifier in draft.offending}
    still = {key: [item for item in told[key] if not _cited([item]) & wrong] for key in ALIGNMENT_KEYS}
    said = wrong | _cited(still["aligned"])
    unsaid = [entry.id for entry in last.entries if entry.id and entry.id.upper() not in said]
    other = last.product if last.names(last.product) else "another product"
    forms = english.AUTHORED[draft.pattern] | english.AUTHORED["both"]

    def fill(pool: str, number: int = 1, about: Sequence[english.Phrase] = draft.phrases, **words: str) -> list[str]:
        """So many different forms of a pool; a form that asks for what there is none of is not drawn."""
        user = rng.choice(first.users) if first.users else ""
        named = {"product": first.product, "other": other, "user": user, "ids": join(draft.offending)}
        values = named | {"vp": about[0].action if about else ""} | words
        usable = [
            form for form in forms[pool] if all(values[name] for _, name, _, _ in Formatter().parse(form) if name)
        ]
        return [form.format(**values) for form in rng.sample(usable, min(number, len(usable)))]

    *summary, narrative = fill("summary", 3)
    corrections = fill("correct", 2)
    alignment = {
        "aligned": [*still["aligned"], *(fill("fits", ids=join(unsaid)) if unsaid else [])],
        "gaps": [*still["gaps"], *(gap for phrase in draft.phrases[:2] for gap in fill("gap", about=[phrase]))],
        "conflicts": [item for identifier in draft.offending for item in fill("conflict", id=identifier)],
    }
    review = {
        "status": "conflicts",
        "summary": summary,
        "requirements_alignment": alignment,
        "recommended_actions": [corrections[0], *(fill("restore") or corrections[1:])],
        "narrative": " ".join([f"{narrative}.", *fill("close", 2)]),
    }
    return write_yaml(review)


def _cited(items: Sequence[object]) -> set[str]:
    return {identifier for item in items for identifier in cited_ids(to_text(item))}


def _of_one_form(one: str, other: str) -> bool:
    """Alike in marks, capitals and number of words, nearly alike in length and in the lengths of the words."""
    forms = [
        [len(text.split()), sum(map(str.isupper, text)), *(text.count(mark) for mark in ",-'/%()")]
        for text in (one, other)
    ]
    lengths, others = (Counter(map(len, text.split())) for text in (one, other))
    return (
        forms[0] == forms[1]
        and lengths[1] == others[1]
        and abs(len(one) - len(other)) <= TOLERANCE
        and (lengths - others).total() <= TOLERANCE
    )


def _lengths(text: str) -> Array:
    """Characters of a description, twice (the first and last of a document weigh more), and words of each length."""
    words = Counter(min(len(word), _LONG_WORD) for word in text.split())
    lengths: Array = np.array([len(text), len(text), *(words[length] for length in range(1, _LONG_WORD + 1))])
    return lengths
