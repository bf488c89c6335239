"""The two patterns of conflicts rows: one product's concept with another's requirements, and a violated non-goal.

Both keep the form of what they are made from. A scope mismatch recombines documents as they stand; a violated non-goal
changes one description into one of the same sentence form and, to a few characters, the same length. What is wrong
with the result is said in `Findings`; the words are `review`'s.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from po_assets.product_owner import RequirementEntry, cited_ids
from po_assets.product_owner.documents import as_list, to_text
from po_assets.review.documents import with_description
from po_assets.review.parents import Parent
from po_assets.review.phrases import Language, Phrase, content_words, form_of, lower_first, rewritten, sentence_ends
from po_assets.review.review import NOWHERE, Findings

Pattern = Literal["scope_mismatch", "violated_non_goal"]

MOST_SHARED_WORDS = 0.15
"""Two inputs that share more of their words (Jaccard index) may be about one and the same thing."""
LENGTH_TOLERANCE = 3
"""Characters by which a changed description may be longer or shorter than the old one."""
WORDS_TOLERANCE = 3
"""Words of a changed description that may have a length which the old one's words have not."""
_LONG_WORD = 15
_COVERED = 0.5
_MOST_USER_WORDS = 6


@dataclass(frozen=True)
class Draft:
    """A conflicts row before its review is written."""

    pattern: Pattern
    parents: tuple[Parent, ...]
    """The one whose concept and vision it has, then the one whose requirements it has, where that is another."""
    requirements_yaml: str
    findings: Findings
    drift: tuple[int, ...] = ()
    """How the form differs from the parent: lengths of the text and its words. Empty where nothing was rewritten."""

    @property
    def concept(self) -> str:
        """Its concept."""
        return self.parents[0].concept

    @property
    def vision_yaml(self) -> str:
        """Its vision, which follows from the concept alone."""
        return str(self.parents[0].row["vision_yaml"])


def are_strangers(one: Parent, other: Parent) -> bool:
    """Whether the requirements of one cannot pass for those of the other, and both documents have the same shape."""
    if one.shape != other.shape or not one.product or one.product.lower() in _text(other) or not other.product:
        return False
    if other.product.lower() in _text(one):
        return False
    return len(one.words & other.words) <= MOST_SHARED_WORDS * len(one.words | other.words)


def scope_mismatch(concept: Parent, requirements: Parent, language: Language) -> Draft:
    """The concept of one with the requirements of the other; they must be strangers."""
    entries = requirements.entries
    named = requirements.product.lower() in requirements.requirements_yaml.lower()
    findings = Findings(
        product=concept.product,
        users=_users(concept),
        offending=[entry for entry in entries if entry.section == "functional_requirements"],
        limits=[entry for entry in entries if entry.section != "functional_requirements"],
        missing=_capabilities(concept, language),
        other=requirements.product if named else NOWHERE,
    )
    return Draft("scope_mismatch", (concept, requirements), requirements.requirements_yaml, findings)


def violated_non_goals(parent: Parent, language: Language) -> list[Draft]:
    """The parent with one description changed so that it does what a non-goal excludes, in every way that fits."""
    excluded, users = _non_goals(parent, language), _users(parent)
    functional = [entry for entry in parent.entries if entry.section == "functional_requirements"]
    tails = sentence_ends(entry.description for entry in functional)
    drafts: list[Draft] = []
    for entry in functional:
        missing = _missing_without(parent, entry, language)
        for non_goal in excluded:
            for text in rewritten(
                entry.description, non_goal, language, users=users, product=parent.product, tails=tails
            ):
                if not _of_one_form(text, entry.description):
                    continue
                if (changed := with_description(parent.requirements_yaml, entry.id, text)) is None:
                    continue
                found = _breach(parent, entry, RequirementEntry(entry.id, text, entry.section), non_goal, missing)
                edges = [len(text) - len(entry.description)] * (entry in (functional[0], functional[-1]))
                drift = (*_drift(text, entry.description), sum(edges))
                drafts.append(Draft("violated_non_goal", (parent,), changed, found, drift))
    return drafts


def _drift(text: str, old: str) -> list[int]:
    """Characters more, and words more of each length."""
    lengths, others = (Counter(min(len(word), _LONG_WORD) for word in each.split()) for each in (text, old))
    return [len(text) - len(old), *(lengths[length] - others[length] for length in range(1, _LONG_WORD + 1))]


def _of_one_form(one: str, other: str) -> bool:
    """Alike in marks and number of words, nearly alike in length and in the lengths of the words."""
    if abs(len(one) - len(other)) > LENGTH_TOLERANCE or form_of(one) != form_of(other):
        return False
    lengths, others = (Counter(map(len, text.split())) for text in (one, other))
    return (lengths - others).total() <= WORDS_TOLERANCE


def states_non_goal(parent: Parent, language: Language) -> bool:
    """Whether the concept itself says what the product does not do, so that the prompt alone shows the violation."""
    told = content_words(parent.concept)
    return any(content_words(phrase.text) <= told for phrase in _non_goals(parent, language))


def _breach(
    parent: Parent, entry: RequirementEntry, changed: RequirementEntry, excluded: Phrase, missing: Sequence[Phrase]
) -> Findings:
    alignment = parent.review.get("requirements_alignment")
    told: dict[str, Any] = alignment if isinstance(alignment, dict) else {}
    aligned = [item for item in as_list(told.get("aligned")) if entry.id.upper() not in cited_ids(to_text(item))]
    gaps = [item for item in as_list(told.get("gaps")) if entry.id.upper() not in cited_ids(to_text(item))]
    said = {identifier for item in aligned for identifier in cited_ids(to_text(item))}
    others = [other.id for other in parent.entries if other.id and other.id != entry.id]
    return Findings(
        product=parent.product,
        users=_users(parent),
        offending=[changed],
        excluded=excluded,
        missing=missing,
        aligned=aligned,
        unsaid=[identifier for identifier in others if identifier.upper() not in said],
        gaps=gaps,
        fitting=[other.id for other in parent.entries if other.id in others and other.section == entry.section],
    )


def _missing_without(parent: Parent, entry: RequirementEntry, language: Language) -> list[Phrase]:
    """Capabilities of the vision that this requirement alone serves, by the teacher's review and by its own words.

    Nothing is called missing unless it is known of every other functional requirement what else it serves.
    """
    alignment = parent.review.get("requirements_alignment")
    items = [to_text(item) for item in as_list(alignment.get("aligned") if isinstance(alignment, dict) else None)]
    functional = {other.id.upper() for other in parent.entries if other.section == entry.section}
    serving: dict[Phrase, set[str]] = {}
    for capability in _capabilities(parent, language):
        words = content_words(capability.text)
        ids = {other.id.upper() for other in parent.entries if _covers(other.description, words)}
        ids |= {identifier for item in items if _covers(item, words) for identifier in cited_ids(item)}
        serving[capability] = ids & functional
    known = set().union(*serving.values())
    if known != functional:
        return []
    return [capability for capability, ids in serving.items() if ids == {entry.id.upper()}]


def _covers(text: str, words: frozenset[str]) -> bool:
    return bool(words) and len(words & content_words(text)) >= _COVERED * len(words)


def _non_goals(parent: Parent, language: Language) -> list[Phrase]:
    served = [content_words(entry.description) for entry in parent.entries]
    phrases = [
        language.phrase(_bare(item, parent.product), parent.concept) for item in as_list(parent.vision.get("non_goals"))
    ]
    # A non-goal that a requirement seems to serve already is too close to the product to be a clear violation.
    return [
        phrase
        for phrase in phrases
        if phrase and (words := content_words(phrase.text)) and not any(words <= other for other in served)
    ]


def _bare(item: object, product: str) -> object:
    """A non-goal without the product's name in front of it."""
    return item.removeprefix(f"{product} ") if isinstance(item, str) and product else item


def _capabilities(parent: Parent, language: Language) -> list[Phrase]:
    phrases = [language.phrase(item, parent.concept) for item in as_list(parent.vision.get("key_capabilities"))]
    return [phrase for phrase in phrases if phrase]


def _users(parent: Parent) -> list[str]:
    users = [to_text(user).strip().rstrip(".") for user in as_list(parent.vision.get("target_users"))]
    return [
        lower_first(user)
        for user in users
        if 0 < len(user.split()) <= _MOST_USER_WORDS and user.replace(" ", "").replace("-", "").isalnum()
    ]


def _text(parent: Parent) -> str:
    return f"{parent.concept} {parent.requirements_yaml}".lower()
