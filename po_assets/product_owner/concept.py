"""What a concept states in so many words: the needs that the product must meet, and what it will not do.

Read by sentence forms that concepts commonly have; empty where none is found, never a guess. Contrast cases and the
evidence in the training are made from it.
"""

import re

_ASKED = re.compile(r"\b(?:must|shall|should|has to|have to|is to) (?!not\b)([^.;:]+)")
_EXCLUDED = re.compile(r"\b(?:does|do|will|shall|must|should|is to) not (\w[^.,;:\n]+)")


def stated_needs(concept: str) -> list[str]:
    """The verb phrases of its first sentence of the form "must …, … and …", in order; empty without one."""
    asked = _ASKED.search(concept)
    return [need.strip() for need in re.split(r", and |, | and ", asked[1]) if need.strip()] if asked else []


def stated_exclusion(concept: str) -> str:
    """The verb phrase after "does not", "will not" and the like; empty without one."""
    excluded = _EXCLUDED.search(concept)
    return excluded[1].strip() if excluded else ""
