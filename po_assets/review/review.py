"""Writing the review of a conflicts row: which requirements offend, what is missing, what to do, in varied words.

Everything it says comes from the documents of the row. The sentence forms stand in `review_forms`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from string import Formatter
from typing import Any

import yaml

from po_assets.product_owner import RequirementEntry
from po_assets.review import review_forms as forms
from po_assets.review.phrases import Phrase, gist, joined

NOWHERE = "another product"
_ENDINGS = ("s", "es", "was", "it", "its")
_MOST_MISSING = 2
"""More missing capabilities than this are not listed: the review has made its point."""


@dataclass(frozen=True)
class Findings:
    """What is wrong with a document, for `write_review`."""

    product: str
    users: Sequence[str]
    offending: Sequence[RequirementEntry]
    limits: Sequence[RequirementEntry] = ()
    """Qualities and constraints that offend together with the functional requirements."""
    excluded: Phrase | None = None
    """The non-goal that is violated; None where the scope is wrong."""
    missing: Sequence[Phrase] = ()
    aligned: Sequence[Any] = ()
    """Items on requirements that fit, in the teacher's words."""
    unsaid: Sequence[str] = ()
    """Ids of requirements that fit and that no such item names."""
    gaps: Sequence[Any] = ()
    """Gaps that the teacher named and that are still there."""
    other: str = NOWHERE
    """The product that the requirements were written for, if they name it."""
    fitting: Sequence[str] = ()
    """Ids of the functional requirements that fit."""


def write_review(rng: Random, found: Findings) -> dict[str, Any]:
    """The review as a mapping in the order of its keys."""
    writer = _Writer(rng, found)
    scope = found.excluded is None
    missing = list(found.missing[:_MOST_MISSING])
    boundary = [found.excluded] if found.excluded and not missing else []
    gaps = [*found.gaps, *writer.each(forms.MISSING, missing), *writer.each(forms.NO_BOUNDARY, boundary)]
    restore = writer.each(forms.RESTORE, missing[:1]) or writer.each(forms.SET_BOUNDARY, boundary)
    phrase = found.excluded or next(iter(missing), None)
    tell = writer.some(forms.TELL_SCOPE if scope else forms.TELL_BREACH, 1, phrase)
    return {
        "status": "conflicts",
        "summary": writer.some(
            forms.SUMMARY_SCOPE if scope else forms.SUMMARY_BREACH, 1 if rng.random() < 0.6 else 2, phrase
        ),
        "requirements_alignment": {
            "aligned": [*found.aligned, *writer.rest()],
            "gaps": gaps,
            "conflicts": [*writer.violations(), *writer.limits()],
        },
        "recommended_actions": [
            *writer.some(forms.CORRECT_SCOPE if scope else forms.CORRECT_BREACH, 1, phrase),
            *restore,
        ],
        "narrative": " ".join([*tell, *writer.some(forms.CLOSE, 1 if rng.random() < 0.7 else 2, phrase)]),
    }


def review_text(review: dict[str, Any]) -> str:
    """The review as YAML, in the style that PyYAML and most teachers write."""
    text: str = yaml.safe_dump(review, sort_keys=False, allow_unicode=True, width=10_000)
    return text.strip()


class _Writer:
    """Fills forms; a form that asks for what there is none of is not drawn."""

    def __init__(self, rng: Random, found: Findings) -> None:
        self._rng, self._found = rng, found
        self._ids = [entry.id for entry in found.offending]

    def some(self, pool: Sequence[str], number: int, phrase: Phrase | None, **words: str) -> list[str]:
        """So many different forms of a pool, filled."""
        values = {**self._values(phrase), **words}
        usable = [form for form in pool if all(values.get(name) for name in _names(form))]
        chosen = self._rng.sample(usable, min(number, len(usable)))
        return [form.format(**values) for form in chosen]

    def each(self, pool: Sequence[str], phrases: Sequence[Phrase]) -> list[str]:
        """A sentence on each phrase."""
        return [sentence for phrase in phrases for sentence in self.some(pool, 1, phrase)]

    def rest(self) -> list[str]:
        """One item on the fitting requirements that the teacher's words do not name."""
        unsaid = self._found.unsaid
        return self.some(forms.FITS, 1, None, ids=joined(unsaid), **_endings(len(unsaid))) if unsaid else []

    def violations(self) -> list[str]:
        """An item on each offending functional requirement."""
        found, items = self._found, []
        pool = list(forms.FOREIGN if found.excluded is None else forms.BREACH)
        for entry in found.offending:
            phrase = found.excluded or next(iter(found.missing), None)
            words = {"id": entry.id, "gist": gist(entry.description)}
            if phrase and phrase.kind == "verb":
                words["capability"] = phrase.text
            items += self.some(pool, 1, phrase, **words)
        return items

    def limits(self) -> list[str]:
        """Items on the qualities and constraints that belong to another product: one by one, or all in one."""
        ids = [entry.id for entry in self._found.limits]
        groups = [[identifier] for identifier in ids] if self._rng.random() < 0.4 else [ids]
        return [
            item
            for group in groups
            if group
            for item in self.some(forms.FOREIGN_LIMITS, 1, None, ids=joined(group), **_endings(len(group)))
        ]

    def _values(self, phrase: Phrase | None) -> dict[str, str]:
        found = self._found
        return {
            "product": found.product,
            "other": found.other,
            "user": self._rng.choice(list(found.users)) if found.users else "",
            "ids": joined(self._ids),
            "fitting": joined(found.fitting) if len(found.fitting) > 1 else "",
            "vp": phrase.text if phrase and phrase.kind == "verb" else "",
            "np": phrase.text if phrase and phrase.kind == "thing" else "",
            **_endings(len(self._ids)),
        }


def _endings(number: int) -> dict[str, str]:
    """Endings of verbs, and pronouns, for so many subjects."""
    one, many = ("s", "es", "was", "it", "its"), ("", "", "were", "them", "their")
    return dict(zip(_ENDINGS, one if number == 1 else many, strict=True))


def _names(form: str) -> list[str]:
    """The words that a form cannot do without."""
    return [name for _, name, _, _ in Formatter().parse(form) if name and name not in _ENDINGS]
