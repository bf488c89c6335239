"""The Product Owner metric, version 1: how complete, aligned and specific an answer is, from 0 to 1.

Four parts of 30 points each; the score is their sum over 120. Every threshold of the project is calibrated on exactly
these figures, so its known weaknesses stay: `conflicts` is not among the review's accepted statuses, an unquoted date
is not text, an empty alignment passes, and it does not judge whether the status is *right*. What such weaknesses hide
is reported beside the score (by `evaluation`), never inside it.
"""

import re
from collections import defaultdict
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, NamedTuple

from po_assets.product_owner.documents import (
    RequirementEntry,
    as_list,
    read_yaml,
    requirement_entries,
    to_text,
)

METRIC_VERSION = "1"
PART_POINTS = 30.0

_ACCEPTED_STATUSES = ("aligned", "needs_adjustment", "misaligned")
_REQUIREMENTS, _VISION, _REVIEW = "requirements", "VISION", "REVIEW"
_SCHEMA_ITEMS = 16
_VISION_SCHEMA_ITEMS = 8
_POINTS_PER_SCHEMA_ITEM = PART_POINTS / _SCHEMA_ITEMS
_WORD = re.compile("[A-Za-zÁÉÍÓÚáéíóúÑñ0-9]+")
# fmt: off
_STOP_WORDS = frozenset({
    "the", "and", "with", "para", "con", "los", "las", "una", "unos", "unas",
    "user", "users", "system", "systems", "api", "apis", "rest", "crud",
})
# fmt: on
_COVERED_SHARE = 0.3
_VISION_LISTS = ("target_users", "value_proposition", "key_capabilities", "success_metrics")


@dataclass(frozen=True)
class ProductOwnerScore:
    """A score and what it is made of; the four parts are in points, at most 30 each."""

    total: float
    schema: float
    vision: float
    alignment: float
    specificity: float
    problems: list[str] = field(default_factory=list)
    """In words, what cost points, most costly first; a document that did not parse is one problem, with all it cost."""


class _Loss(NamedTuple):
    points: float
    document: str
    """The document whose fault it is."""
    problem: str


class _Part:
    """Points of one part, and what was lost on the way."""

    def __init__(self) -> None:
        self.points = 0.0
        self.losses: list[_Loss] = []

    def award(self, points: float, of: float, document: str, problem: str) -> None:
        self.points += points
        if points < of:
            self.losses.append(_Loss(of - points, document, problem))

    def forgive(self, surplus: float) -> None:
        """Take what did not cost anything, because more points could be had than count, off the first losses."""
        kept: list[_Loss] = []
        for loss in self.losses:
            forgiven = min(loss.points, surplus)
            surplus -= forgiven
            if loss.points > forgiven:
                kept.append(loss._replace(points=loss.points - forgiven))
        self.losses = kept


def score_product_owner(requirements_yaml: str, vision_yaml: str, review_yaml: str) -> ProductOwnerScore:
    """Score one answer against its requirements; any text may come in, nothing raises."""
    documents = {_REQUIREMENTS: requirements_yaml, _VISION: vision_yaml, _REVIEW: review_yaml}
    readings = {name: read_yaml(text) for name, text in documents.items()}
    vision, review = readings[_VISION].value, readings[_REVIEW].value
    given = review.get("requirements_alignment")
    alignment: dict[Any, Any] = given if isinstance(given, dict) else {}

    schema = _schema(vision, review, alignment_passes=given is None or isinstance(given, dict), alignment=alignment)
    completeness = _completeness(vision)
    coverage = _alignment(requirement_entries(readings[_REQUIREMENTS].value), review, alignment)
    specificity = _specificity(review, alignment)

    parts = (schema, completeness, coverage, specificity)
    return ProductOwnerScore(
        total=min(max(sum(part.points for part in parts) / (len(parts) * PART_POINTS), 0.0), 1.0),
        schema=schema.points,
        vision=completeness.points,
        alignment=coverage.points,
        specificity=specificity.points,
        problems=_problems(
            [loss for part in parts for loss in part.losses],
            {name: reading.error for name, reading in readings.items() if reading.error},
        ),
    )


def _problems(losses: list[_Loss], unread: dict[str, str]) -> list[str]:
    """What cost points, in words; everything that an unread document cost is that one problem."""
    cost: defaultdict[str, float] = defaultdict(float)
    for loss in losses:
        reason = unread.get(loss.document)
        cost[f"the {loss.document} did not parse as YAML: {reason}" if reason else loss.problem] += loss.points
    return [f"{problem} (-{lost:.1f} points)" for problem, lost in sorted(cost.items(), key=lambda item: -item[1])]


def _schema(
    vision: dict[Any, Any], review: dict[Any, Any], *, alignment_passes: bool, alignment: dict[Any, Any]
) -> _Part:
    tests = [
        (_is_text(vision.get("product_name"), 1), "the vision has no product_name"),
        (_is_text(vision.get("product_summary"), 40), "product_summary is no text of 40 characters or more"),
        *((bool(as_list(vision.get(key))), f"the vision's {key} is no list with an item") for key in _VISION_LISTS),
        (isinstance(vision.get("non_goals"), list), "the vision's non_goals is no list"),
        (_is_iso_date(vision.get("last_updated")), "last_updated is no ISO date as text (quote it)"),
        (_is_accepted_status(review.get("status")), f"the review's status is none of {', '.join(_ACCEPTED_STATUSES)}"),
        (bool(as_list(review.get("summary"))), "the review's summary is no list with an item"),
        (alignment_passes, "requirements_alignment is no mapping"),
        *(
            (isinstance(alignment.get(key), list), f"requirements_alignment has no list {key}")
            for key in ("aligned", "gaps", "conflicts")
        ),
        (bool(as_list(review.get("recommended_actions"))), "recommended_actions is no list with an item"),
        (_is_text(review.get("narrative"), 40), "narrative is no text of 40 characters or more"),
    ]
    part = _Part()
    for number, (passed, problem) in enumerate(tests):
        document = _VISION if number < _VISION_SCHEMA_ITEMS else _REVIEW
        part.award(_POINTS_PER_SCHEMA_ITEM if passed else 0.0, _POINTS_PER_SCHEMA_ITEM, document, problem)
    # One multiplication, so that 16 of 16 is exactly 30.
    part.points = PART_POINTS * sum(passed for passed, _ in tests) / _SCHEMA_ITEMS
    return part


def _completeness(vision: dict[Any, Any]) -> _Part:
    part = _Part()
    for key in _VISION_LISTS:
        items = len(as_list(vision.get(key)))
        part.award(
            _step(items, (2, 6.0), (1, 3.0)),
            6.0,
            _VISION,
            f"{key} has {_count(items, 'item')}, two or more are asked for",
        )
    length = _stripped_length(vision.get("product_summary"))
    part.award(
        _step(length, (120, 6.0), (60, 3.0)),
        6.0,
        _VISION,
        f"product_summary has {_count(length, 'character')}, 120 are asked for",
    )
    return part


def _alignment(entries: list[RequirementEntry], review: dict[Any, Any], alignment: dict[Any, Any]) -> _Part:
    part = _Part()
    if not entries:
        part.award(
            0.0, PART_POINTS, _REQUIREMENTS, "the requirements hold no entry that the review could be aligned with"
        )
        return part
    uncovered = _uncovered(entries, _segments(review, alignment))
    coverage = 1 - len(uncovered) / len(entries)
    aligned, gaps, conflicts = (as_list(alignment.get(key)) for key in ("aligned", "gaps", "conflicts"))
    covered_points = _coverage_points((len(entries) - len(uncovered)) / len(entries))
    named = ", ".join(entry.id or repr(entry.description[:40]) for entry in uncovered[:5])
    points = covered_points + 8 * min(len(aligned) / len(entries), 1) + (3 if gaps else 0) + (3 if conflicts else 0)
    part.points = min(points, PART_POINTS)
    if part.points < PART_POINTS:
        part.losses.append(
            _Loss(
                PART_POINTS - part.points,
                _REVIEW,
                f"the review covers {coverage:.0%} of {len(entries)} requirements"
                + (f" (not {named}{', …' if len(uncovered) > 5 else ''})" if uncovered else "")
                + f" and lists {len(aligned)} as aligned",
            )
        )
    return part


def _specificity(review: dict[Any, Any], alignment: dict[Any, Any]) -> _Part:
    part = _Part()
    for key in ("gaps", "conflicts"):
        value = alignment.get(key)
        points = (6.0 if value else 2.0) if isinstance(value, list) else 0.0
        part.award(
            points, 6.0, _REVIEW, f"{key} names nothing" if points else f"requirements_alignment has no list {key}"
        )
    for key, full in (("summary", 6.0), ("recommended_actions", 12.0)):
        items = len(as_list(review.get(key)))
        part.award(
            _step(items, (2, full), (1, full / 2)),
            full,
            _REVIEW,
            f"{key} has {_count(items, 'item')}, two or more are asked for",
        )
    length = _stripped_length(review.get("narrative"))
    part.award(
        _step(length, (160, 6.0), (80, 3.0)),
        6.0,
        _REVIEW,
        f"narrative has {_count(length, 'character')}, 160 are asked for",
    )
    # 36 points can be had and 30 count, so the first 6 points lost cost nothing.
    part.forgive(36.0 - PART_POINTS)
    part.points = min(part.points, PART_POINTS)
    return part


def _segments(review: dict[Any, Any], alignment: dict[Any, Any]) -> list[str]:
    items: list[object] = []
    for value in (review.get("summary"), review.get("recommended_actions")):
        items += [value] if isinstance(value, str) else as_list(value)
    for key in ("aligned", "gaps", "conflicts"):
        items += as_list(alignment.get(key))
    items.append(review.get("narrative"))
    return [text for item in items if (text := to_text(item))]


def _uncovered(entries: list[RequirementEntry], segments: list[str]) -> list[RequirementEntry]:
    joined = " ".join(segments).lower()
    uncited = [entry for entry in entries if not (entry.id and entry.id.lower() in joined)]
    # Most reviews cite every id; only for the others are all their words compared.
    segment_words = [_words(segment) for segment in segments] if uncited else []
    said: set[str] = set().union(*segment_words)

    def covered(entry: RequirementEntry) -> bool:
        words = _words(entry.description)
        if not words or len(words & said) / len(words) < _COVERED_SHARE:  # not even by all segments together
            return False
        return any(len(words & other) / len(words) >= _COVERED_SHARE for other in segment_words)

    return [entry for entry in uncited if not covered(entry)]


def _coverage_points(coverage: float) -> float:
    if coverage >= 0.85:
        return 22.0
    if coverage >= 0.7:
        return 16 + (coverage - 0.7) / 0.15 * 6
    if coverage >= 0.5:
        return 8 + (coverage - 0.5) / 0.2 * 8
    return 8 * coverage


def _step(value: int, *steps: tuple[int, float]) -> float:
    """The points of the first step that the value reaches, else none."""
    return next((points for least, points in steps if value >= least), 0.0)


def _words(text: str) -> set[str]:
    return {word.lower() for word in _WORD.findall(text)} - _STOP_WORDS


def _is_text(value: object, at_least: int) -> bool:
    return _stripped_length(value) >= at_least


def _stripped_length(value: object) -> int:
    return len(value.strip()) if isinstance(value, str) else 0


def _is_accepted_status(value: object) -> bool:
    return isinstance(value, str) and value in _ACCEPTED_STATUSES


def _is_iso_date(value: object) -> bool:
    if not isinstance(value, str):
        return False
    try:
        datetime.fromisoformat(value.replace("Z", "+00:00"))  # noqa: FURB162 - the metric is defined so
    except ValueError:
        return False
    return True


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"
