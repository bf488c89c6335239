"""The form of an answer: two fenced YAML blocks, VISION and REVIEW; writing, finding and validating them.

Whether an answer is good belongs to `metric`; whether it is well-formed is said here.
"""

import re
from dataclasses import dataclass

from po_assets.product_owner.contract import (
    ALIGNMENT_KEYS,
    MAX_NARRATIVE_WORDS,
    MIN_ACTIONS,
    NEEDED_VISION_KEYS,
    REQUIREMENTS,
    REVIEW,
    REVIEW_KEYS,
    VISION,
)
from po_assets.product_owner.documents import as_list, cited_ids, read_yaml, strip_fences, to_text

# CommonMark: a fence may be indented by up to three spaces; what follows it on the line is its info string.
# Possessive, since what may be repeated here overlaps: a long run of blanks would be tried in every division.
_FENCE_LINE = re.compile(r"^ {0,3}```[ \t]*+(?:ya?ml)?+[ \t:]*+([A-Za-z]*+)[ \t]*+$", re.IGNORECASE)
_LABELS = (VISION, REVIEW, REQUIREMENTS)
# An unlabelled block is recognised by the first key that only this document has.
_TELLING_KEYS = {"product_name:": VISION, "status:": REVIEW}


@dataclass(frozen=True)
class ParsedAnswer:
    """The two YAML texts of an answer, None where a block is missing, and in words what is missing."""

    vision_yaml: str | None
    review_yaml: str | None
    missing: tuple[str, ...] = ()


@dataclass(frozen=True)
class AnswerVerdict:
    """Whether an answer is well-formed, and if not the first reason why; true when it is."""

    ok: bool
    reason: str = ""

    def __bool__(self) -> bool:
        return self.ok


def format_answer(vision_yaml: str, review_yaml: str) -> str:
    """The answer that training teaches and `parse_answer` reads."""
    vision, review = (strip_fences(text).strip() for text in (vision_yaml, review_yaml))
    return f"```yaml VISION\n{vision}\n```\n\n```yaml REVIEW\n{review}\n```"


def parse_answer(text: str) -> ParsedAnswer:
    """Find the VISION and REVIEW blocks of an answer; a block that is never closed counts as missing."""
    blocks = fenced_blocks(text)
    missing = tuple(
        f"the {label} block is {'not closed' if label in blocks else 'missing'}"
        for label in ("VISION", "REVIEW")
        if blocks.get(label) is None
    )
    return ParsedAnswer(blocks.get("VISION"), blocks.get("REVIEW"), missing)


def validate_answer(vision_yaml: str | None, review_yaml: str | None) -> AnswerVerdict:
    """Whether the two documents form an answer that can be used; the first reason why not, in the validator's order."""
    if vision_yaml is None or review_yaml is None:
        absent = [name for name, text in (("VISION", vision_yaml), ("REVIEW", review_yaml)) if text is None]
        return AnswerVerdict(
            False, f"the {' and the '.join(absent)} block {'is' if len(absent) == 1 else 'are'} missing"
        )
    vision, review = read_yaml(vision_yaml), read_yaml(review_yaml)
    if vision.error:
        return AnswerVerdict(False, f"the VISION does not parse as YAML: {vision.error}")
    if review.error:
        return AnswerVerdict(False, f"the REVIEW does not parse as YAML: {review.error}")
    reason = _vision_fault(vision.value) or _review_fault(review.value)
    return AnswerVerdict(not reason, reason)


def fenced_blocks(text: str) -> dict[str, str | None]:
    """The fenced blocks by label (VISION, REVIEW, REQUIREMENTS), the first of each; None for one never closed."""
    found: dict[str, str | None] = {}
    label = ""
    lines: list[str] | None = None
    for line in text.splitlines():
        fence = _FENCE_LINE.match(line)
        if lines is None:
            if fence:
                label, lines = fence[1].upper(), []
        elif fence is None:
            lines.append(line)
        else:
            _keep(found, label, lines, closed=True)
            # A labelled fence inside an open block starts the next one: models forget to close.
            label, lines = (fence[1].upper(), []) if fence[1].upper() in _LABELS else ("", None)
    if lines is not None:
        _keep(found, label, lines, closed=False)
    return found


def _keep(found: dict[str, str | None], label: str, lines: list[str], *, closed: bool) -> None:
    if label not in _LABELS:
        starts = (line.split(" ")[0] for line in lines)
        label = next((_TELLING_KEYS[start] for start in starts if start in _TELLING_KEYS), "")
    if label and found.get(label) is None:
        found[label] = "\n".join(lines) if closed else None


def _vision_fault(vision: dict[object, object]) -> str:
    absent = [key for key in NEEDED_VISION_KEYS if key not in vision]
    return f"the VISION has no {' and no '.join(absent)}" if absent else ""


def _review_fault(review: dict[object, object]) -> str:
    absent = [key for key in REVIEW_KEYS if key not in review]
    if absent:
        return f"the REVIEW has no {' and no '.join(absent)}"
    alignment = review["requirements_alignment"]
    if not isinstance(alignment, dict):
        return f"requirements_alignment must be a mapping, got {to_text(alignment)[:60]!r}"
    wrong = [key for key in ALIGNMENT_KEYS if not isinstance(alignment.get(key), list)]
    if wrong:
        return f"requirements_alignment has no list {' and no list '.join(wrong)}"
    if not any(cited_ids(to_text(item)) for key in ALIGNMENT_KEYS for item in alignment[key]):
        return "no item of requirements_alignment names a requirement id (such as FR001)"
    actions = as_list(review["recommended_actions"])
    if len(actions) < MIN_ACTIONS:
        return f"recommended_actions holds {len(actions)}, at least {MIN_ACTIONS} are needed"
    narrative = review["narrative"]
    if not isinstance(narrative, str):
        return f"narrative must be text, got {to_text(narrative)[:60]!r}"
    words = len(narrative.split())
    return (
        f"narrative has {words} words, at most {MAX_NARRATIVE_WORDS} are allowed" if words > MAX_NARRATIVE_WORDS else ""
    )
