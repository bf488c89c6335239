"""Making conflicts rows: which parents are combined, what a row must fulfil, and why others were passed over.

The same parents give the same rows, in whatever order they landed: they are taken in the order of a keyed digest of
their input, and every draw is seeded.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice, zip_longest
from random import Random
from typing import Any

from po_assets.dataset.holdout import HoldOut
from po_assets.dataset.publication import TokenBudget, training_row
from po_assets.product_owner import score_product_owner, validate_answer
from po_assets.review.parents import MADE_BY, SOURCE, Parent
from po_assets.review.patterns import Draft, are_strangers, scope_mismatch, states_non_goal, violated_non_goals
from po_assets.review.phrases import Language
from po_assets.review.review import review_text, write_review

LEAST_SCORE = 0.82
"""Rows are never made below this, whatever the selection's own least score."""
_WRITINGS = 6
"""How often a review is written anew before a draft is given up."""
_WINDOW = 24
"""Parents from whose drafts the next one is chosen."""
_PARTNERS = 200


@dataclass(frozen=True)
class Requirements:
    """What a made row must fulfil besides passing the validator."""

    min_score: float
    hold_out: HoldOut
    budget: TokenBudget


@dataclass
class Made:
    """The rows in landing form, and how many parents gave none of a pattern, by reason."""

    needed: int
    rows: list[dict[str, Any]] = field(default_factory=list)
    passed_over: Counter[str] = field(default_factory=Counter)

    @property
    def short(self) -> int:
        """How many rows could not be made."""
        return self.needed - len(self.rows)


def synthesize(parents: Sequence[Parent], needed: int, wanted: Requirements, seed: int) -> Made:
    """Make `needed` rows, half of each pattern as far as both can be made; each parent is used at most once."""
    if not needed:
        return Made(needed)
    maker = _Maker(parents, wanted, seed)
    # Pairs of mismatches come whole, so that each document of the pair stands once in a mismatch and once by itself.
    mismatches = list(islice(maker.mismatches(), 2 * round(needed / 4)))
    violations = list(islice(maker.violations(), needed - len(mismatches)))
    short = needed - len(mismatches) - len(violations)
    mismatches += islice(maker.mismatches(), short)  # what one pattern lacks, the other makes good
    return Made(needed, [*mismatches, *violations], Counter(maker.reasons.values()))


class _Maker:
    """Makes the rows of both patterns from the parents that are still free."""

    def __init__(self, parents: Sequence[Parent], wanted: Requirements, seed: int) -> None:
        self._parents, self._wanted, self._seed = parents, wanted, seed
        self._language = Language(text for parent in parents for text in _texts(parent))
        self._used: set[str] = set()
        self.reasons: dict[tuple[str, str], str] = {}
        """Why a parent gave no row, by pattern and record id."""

    def mismatches(self) -> Iterator[dict[str, Any]]:
        """Rows of scope mismatches, in pairs."""
        for position, one in enumerate(self._parents):
            if one.record_id in self._used:
                continue
            free = (other for other in self._parents[position + 1 :] if other.record_id not in self._used)
            other = next((other for other in islice(free, _PARTNERS) if are_strangers(one, other)), None)
            if other is None:
                reason = "no requirements of the same shape are about something else"
                self.reasons["scope_mismatch", one.record_id] = reason
                continue
            pair: list[dict[str, Any]] = []
            for concept, requirements in ((one, other), (other, one)):
                row = _written(scope_mismatch(concept, requirements, self._language), self._wanted, self._seed)
                if isinstance(row, str):
                    self.reasons["scope_mismatch", concept.record_id] = row
                else:
                    pair.append(row)
            if len(pair) == 2:
                self._used |= {one.record_id, other.record_id}
                yield from pair

    def violations(self) -> Iterator[dict[str, Any]]:
        """Rows of violated non-goals; first from the concepts that state the non-goal themselves.

        A changed sentence is never quite as long as the old one, and what products exclude may be said in shorter words
        than what they do. So of the next parents' drafts that one is always taken with which the differences from the
        parents add up to the least: over all rows they cancel out.
        """
        waiting = self._with_drafts()
        window = list(islice(waiting, _WINDOW))
        drift: tuple[int, ...] = ()
        while window:
            drafts = [draft for drafts in window for draft in drafts]
            best = min(drafts, key=lambda draft: _size(_sum(drift, draft.drift)))
            parent = best.parents[0]
            row = _written(best, self._wanted, self._seed)
            if isinstance(row, str):
                self.reasons["violated_non_goal", parent.record_id] = row
                window = [rest for each in window if (rest := [draft for draft in each if draft is not best])]
                continue
            window = [drafts for drafts in window if drafts[0].parents[0] is not parent]
            window += islice(waiting, 1)
            self._used.add(parent.record_id)
            self.reasons.pop(("violated_non_goal", parent.record_id), None)
            drift = _sum(drift, best.drift)
            yield row

    def _with_drafts(self) -> Iterator[list[Draft]]:
        """The free parents' violations, those with any."""
        stated = {parent.record_id: states_non_goal(parent, self._language) for parent in self._parents}
        for parent in sorted(self._parents, key=lambda parent: not stated[parent.record_id]):
            if parent.record_id in self._used:
                continue
            if drafts := violated_non_goals(parent, self._language):
                yield drafts
            else:
                reason = "no requirement can be changed into a violation of a non-goal and keep its form and length"
                self.reasons["violated_non_goal", parent.record_id] = reason


def _written(draft: Draft, wanted: Requirements, seed: int) -> dict[str, Any] | str:
    """The row of a draft that fulfils all, or why there is none."""
    if wanted.hold_out.find(draft.concept, draft.requirements_yaml):
        return "the row would be nearly the input of an evaluation case"
    parents = "/".join(parent.record_id for parent in draft.parents)
    rng = Random(f"{seed}/{draft.pattern}/{parents}")  # noqa: S311 - seeded on purpose
    reason = ""
    for _ in range(_WRITINGS):
        review = review_text(write_review(rng, draft.findings))
        verdict = validate_answer(draft.vision_yaml, review)
        score = score_product_owner(draft.requirements_yaml, draft.vision_yaml, review).total
        pair = training_row(_as_normalized(draft, review))
        least = max(LEAST_SCORE, wanted.min_score)
        if not verdict:
            reason = f"the answer is not valid: {verdict.reason}"
        elif score < least:
            reason = f"the score is under {least:g}, mostly for the teacher's thin vision"
        elif wanted.budget.row_lengths([(pair["prompt"], pair["response"])])[0] > wanted.budget.max_length:
            reason = f"the row is longer than {wanted.budget.max_length:,} tokens"
        else:
            return _landed(draft, review, score, seed)
    return reason


def _sum(one: tuple[int, ...], other: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(a + b for a, b in zip_longest(one, other, fillvalue=0))


def _size(drift: tuple[int, ...]) -> int:
    return sum(part * part for part in drift)


def _as_normalized(draft: Draft, review: str) -> dict[str, str]:
    return {
        "concept": draft.concept,
        "requirements_yaml": draft.requirements_yaml,
        "vision_yaml": draft.vision_yaml,
        "review_yaml": review,
    }


def _landed(draft: Draft, review: str, score: float, seed: int) -> dict[str, Any]:
    """The row in the teacher format, as it lands."""
    parents = [parent.record_id for parent in draft.parents]
    row: dict[str, Any] = {
        "concept": draft.concept,
        "requirements_yaml": draft.requirements_yaml,
        "teacher_product_vision": draft.vision_yaml,
        "teacher_product_owner_review": review,
        "score": score,
        "metadata": {
            "source": SOURCE,
            "made_by": MADE_BY,
            "pattern": draft.pattern,
            "parents": parents,
            "seed": seed,
        },
    }
    tier = draft.parents[-1].row["tier"]
    return row | ({"tier": tier} if tier else {})


def _texts(parent: Parent) -> Iterator[str]:
    yield parent.concept
    yield from (entry.description for entry in parent.entries)
    yield str(parent.row["review_yaml"])
