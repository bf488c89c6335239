"""The Product Owner metric, version 1: how good an answer is for given requirements, from 0 to 1.

Four parts of 30 points: schema, completeness of the vision, alignment of the review with the requirements, and
specificity of the review. The total is points over 120. Every threshold of the project is calibrated on exactly
these figures, so its known weaknesses stay: `conflicts` is not among the review's accepted statuses, an unquoted date
is not text, an empty alignment passes, and it does not judge whether the status is *right*. What such weaknesses hide
is reported beside the score (by `evaluation`), never inside it.
"""

import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, NamedTuple

from po_assets.product_owner.contract import ALIGNMENT_KEYS, REVIEW, VISION, VISION_LISTS
from po_assets.product_owner.documents import RequirementEntry, as_list, read_yaml, requirement_entries, to_text
from po_assets.text import amount

METRIC_VERSION = "1"
PART_POINTS = 30.0

_ACCEPTED_STATUSES = ("aligned", "needs_adjustment", "misaligned")
_REQUIREMENTS = "requirements"
_WORD = re.compile("[A-Za-zÁÉÍÓÚáéíóúÑñ0-9]+")
_STOP_WORDS = frozenset(
    "the and with para con los las una unos unas user users system systems api apis rest crud".split()  # noqa: SIM905 - twenty strings are harder to read
)
_COVERED_SHARE = 0.3
_SPECIFICITY_POINTS = 36.0
"""Points that can be had for specificity; 30 of them count."""


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


class _Award(NamedTuple):
    """Points for one thing, of how many; where some are missing: whose fault it is, and what is wrong."""

    points: float
    of: float
    document: str
    problem: str


def _stepped(count: int, unit: str, steps: tuple[tuple[int, float], ...], document: str, key: str) -> _Award:
    """The points of the first step that the count reaches, of those of the first step; else none."""
    points = next((points for least, points in steps if count >= least), 0.0)
    wanted = "two or more" if unit == "item" else steps[0][0]
    problem = f"{key} has {amount(count, unit)}, {wanted} are asked for"
    return _Award(points, steps[0][1], document, problem)


def score_product_owner(requirements_yaml: str, vision_yaml: str, review_yaml: str) -> ProductOwnerScore:
    """Score one answer against its requirements; any text may come in, nothing raises."""
    documents = {_REQUIREMENTS: requirements_yaml, VISION: vision_yaml, REVIEW: review_yaml}
    readings = {name: read_yaml(text, unique_keys=False) for name, text in documents.items()}
    vision, review = readings[VISION].value, readings[REVIEW].value
    given = review.get("requirements_alignment")
    alignment: dict[Any, Any] = given if isinstance(given, dict) else {}
    schema = _schema(vision, review, alignment)
    completeness = _completeness(vision)
    coverage = _alignment(requirement_entries(readings[_REQUIREMENTS].value), review, alignment)
    specificity = _specificity(review, alignment)
    points = (
        # One multiplication, so that 16 of 16 is exactly 30.
        PART_POINTS * sum(award.points > 0 for award in schema) / len(schema),
        sum(award.points for award in completeness),
        coverage.points,
        min(sum(award.points for award in specificity), PART_POINTS),
    )
    unread = {name: reading.error for name, reading in readings.items() if reading.error}
    problems = _problems([*schema, *completeness, coverage], specificity, unread)
    return ProductOwnerScore(min(max(sum(points) / (len(points) * PART_POINTS), 0.0), 1.0), *points, problems)


def _problems(awards: Sequence[_Award], specificity: Sequence[_Award], unread: dict[str, str]) -> list[str]:
    """What cost points, in words; everything that an unread document cost is that one problem.

    The first points that specificity lacks cost nothing, because more can be had than count.
    """
    cost: defaultdict[str, float] = defaultdict(float)
    surplus = _SPECIFICITY_POINTS - PART_POINTS
    for number, award in enumerate([*awards, *specificity]):
        lost = award.of - award.points
        if number >= len(awards):
            free = min(lost, surplus)
            surplus, lost = surplus - free, lost - free
        if lost > 0:
            reason = unread.get(award.document)
            cost[f"the {award.document} did not parse as YAML: {reason}" if reason else award.problem] += lost
    return [f"{problem} (-{lost:.1f} points)" for problem, lost in sorted(cost.items(), key=lambda item: -item[1])]


def _schema(vision: dict[Any, Any], review: dict[Any, Any], alignment: dict[Any, Any]) -> list[_Award]:
    of_vision = [
        (_length(vision.get("product_name")) >= 1, "the vision has no product_name"),
        (_length(vision.get("product_summary")) >= 40, "product_summary must be text of 40 characters or more"),
        *((bool(as_list(vision.get(key))), f"the vision's {key} must be a list with an item") for key in VISION_LISTS),
        (isinstance(vision.get("non_goals"), list), "the vision's non_goals must be a list"),
        (_is_iso_date(vision.get("last_updated")), "last_updated must be an ISO date as text (quote it)"),
    ]
    accepted = isinstance(status := review.get("status"), str) and status in _ACCEPTED_STATUSES
    of_review = [
        (accepted, f"the review's status is none of {', '.join(_ACCEPTED_STATUSES)}"),
        (bool(as_list(review.get("summary"))), "the review's summary must be a list with an item"),
        (isinstance(review.get("requirements_alignment"), dict | None), "requirements_alignment must be a mapping"),
        *((isinstance(alignment.get(key), list), _no_list(key)) for key in ALIGNMENT_KEYS),
        (bool(as_list(review.get("recommended_actions"))), "recommended_actions must be a list with an item"),
        (_length(review.get("narrative")) >= 40, "narrative must be text of 40 characters or more"),
    ]
    each = PART_POINTS / (len(of_vision) + len(of_review))
    return [
        _Award(each * passed, each, document, problem)
        for document, tests in ((VISION, of_vision), (REVIEW, of_review))
        for passed, problem in tests
    ]


def _completeness(vision: dict[Any, Any]) -> list[_Award]:
    summary = _length(vision.get("product_summary"))
    return [
        *(_stepped(len(as_list(vision.get(key))), "item", ((2, 6.0), (1, 3.0)), VISION, key) for key in VISION_LISTS),
        _stepped(summary, "character", ((120, 6.0), (60, 3.0)), VISION, "product_summary"),
    ]


def _alignment(entries: list[RequirementEntry], review: dict[Any, Any], alignment: dict[Any, Any]) -> _Award:
    if not entries:
        problem = "the requirements hold no entry that the review could be aligned with"
        return _Award(0.0, PART_POINTS, _REQUIREMENTS, problem)
    uncovered = _uncovered(entries, _segments(review, alignment))
    aligned, gaps, conflicts = (as_list(alignment.get(key)) for key in ALIGNMENT_KEYS)
    points = _coverage_points((len(entries) - len(uncovered)) / len(entries))
    points = points + 8 * min(len(aligned) / len(entries), 1) + (3 if gaps else 0) + (3 if conflicts else 0)
    named = ", ".join(entry.id or repr(entry.description[:40]) for entry in uncovered[:5])
    problem = (
        f"the review covers {1 - len(uncovered) / len(entries):.0%} of {len(entries)} requirements"
        + (f" (not {named}{', …' if len(uncovered) > 5 else ''})" if uncovered else "")
        + f" and lists {len(aligned)} as aligned"
    )
    return _Award(min(points, PART_POINTS), PART_POINTS, REVIEW, problem)


def _specificity(review: dict[Any, Any], alignment: dict[Any, Any]) -> list[_Award]:
    awards = []
    for key in ("gaps", "conflicts"):
        value = alignment.get(key)
        points = (6.0 if value else 2.0) if isinstance(value, list) else 0.0
        awards.append(_Award(points, 6.0, REVIEW, f"{key} names nothing" if points else _no_list(key)))
    for key, full in (("summary", 6.0), ("recommended_actions", 12.0)):
        awards.append(_stepped(len(as_list(review.get(key))), "item", ((2, full), (1, full / 2)), REVIEW, key))
    narrative = _length(review.get("narrative"))
    return [*awards, _stepped(narrative, "character", ((160, 6.0), (80, 3.0)), REVIEW, "narrative")]


def _segments(review: dict[Any, Any], alignment: dict[Any, Any]) -> list[str]:
    items: list[object] = []
    for value in (review.get("summary"), review.get("recommended_actions")):
        items += [value] if isinstance(value, str) else as_list(value)
    for key in ALIGNMENT_KEYS:
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


def _words(text: str) -> set[str]:
    return {word.lower() for word in _WORD.findall(text)} - _STOP_WORDS


def _length(value: object) -> int:
    """Characters of a stripped text; 0 for anything but a string."""
    return len(value.strip()) if isinstance(value, str) else 0


def _no_list(key: str) -> str:
    return f"requirements_alignment has no list {key}"


def _is_iso_date(value: object) -> bool:
    if not isinstance(value, str):
        return False
    try:
        datetime.fromisoformat(value.replace("Z", "+00:00"))  # noqa: FURB162 - the metric is defined so
    except ValueError:
        return False
    return True
