"""The student's own prompt (one for training, baseline and use), and the conversation that asks a teacher.

The student's prompt can be taken apart again, whatever its texts hold. What a teacher has to be told, and the student
learns from rows, is `teacher.txt`. The prompts of others are read by `prompt_parts`, those of a team by `templates`.
"""

import re
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

from po_assets.product_owner.blocks import without_outer_fence
from po_assets.product_owner.contract import CONCEPT, EXISTING_VISION, REQUIREMENTS

PROMPT_VERSION = "1"
"""Raised with every change of the student's prompt: whatever was trained or evaluated with another one is stale."""
TEACHER_PROMPT_VERSION = f"1+prompt.{PROMPT_VERSION}"
"""Raised with every change of the teacher's texts: answers to another question are not taken from the journal."""

_OPENING = "You are a Product Owner. Write the product vision, then review the requirements against it."
_CLOSING = "Answer with two fenced YAML blocks: VISION and REVIEW. Cite requirement ids in the review."

_SEPARATOR = re.compile(rf"\n\n({EXISTING_VISION}|{REQUIREMENTS}):\n")
# A line of a text that would read as such a separator, or as the beginning of another prompt, is indented by a space
# more, which `own_parts` takes off again.
_LIKE_OPENING = re.compile(rf"^(?= *{re.escape(_OPENING)}$)", re.MULTILINE)
_INDENTED_OPENING = re.compile(rf"^ (?= *{re.escape(_OPENING)}$)", re.MULTILINE)
_LIKE_SEPARATOR = re.compile(rf"(?<=\n\n)(?= *(?:{EXISTING_VISION}|{REQUIREMENTS}):(?:\n|\Z))")
_INDENTED_SEPARATOR = re.compile(rf"(?<=\n\n) (?= *(?:{EXISTING_VISION}|{REQUIREMENTS}):(?:\n|\Z))")


@dataclass(frozen=True)
class PromptParts:
    """What a prompt holds; None for a part that it does not name."""

    concept: str | None
    requirements_yaml: str | None
    vision_yaml: str | None = None
    """Set where the prompt gives away the vision that the answer must contain."""
    existing_vision_yaml: str | None = None
    """The vision that the product has already: part of the question."""
    notes: tuple[str, ...] = ()
    """What was left out or had to be decided."""


@cache
def own_text(name: str) -> str:
    """A text that the role brings along, without the line end of its file."""
    return files("po_assets.product_owner").joinpath(name).read_text("utf-8").removesuffix("\n")


def build_prompt(concept: str, requirements_yaml: str, existing_vision_yaml: str = "") -> str:
    """The prompt for one product concept, its requirements and, if it has one already, its vision (YAML texts)."""
    existing = without_outer_fence(existing_vision_yaml)
    sections = [f"{CONCEPT}:\n{_LIKE_SEPARATOR.sub(' ', concept.strip())}"]
    if existing:
        sections.append(f"{EXISTING_VISION}:\n{_LIKE_SEPARATOR.sub(' ', existing)}")
    sections.append(f"{REQUIREMENTS}:\n{without_outer_fence(requirements_yaml)}")
    return "\n\n".join([_OPENING, *(_LIKE_OPENING.sub(" ", section) for section in sections), _CLOSING])


def own_parts(prompt: str) -> PromptParts | None:
    """The parts of a prompt that `build_prompt` wrote, character for character; None for any other text."""
    text, head, tail = prompt.strip(), f"{_OPENING}\n\n{CONCEPT}:\n", f"\n\n{_CLOSING}"
    if not (text.startswith(head) and text.endswith(tail)):
        return None
    rest = text[len(head) : -len(tail)]
    if _OPENING in rest and _OPENING in rest.split("\n"):
        return None  # another prompt is an example before this one
    rest = _INDENTED_OPENING.sub("", rest)
    names, texts = [CONCEPT], []
    while names[-1] != REQUIREMENTS:
        separator = _SEPARATOR.search(rest)
        if separator is None:
            return None
        texts.append(_INDENTED_SEPARATOR.sub("", rest[: separator.start()]))
        names.append(separator[1])
        rest = rest[separator.end() :]
    parts = dict(zip(names, [*texts, rest], strict=True))
    return PromptParts(
        concept=parts[CONCEPT] or None,
        requirements_yaml=rest or None,
        existing_vision_yaml=parts.get(EXISTING_VISION),
    )


def teacher_messages(
    concept: str, requirements_yaml: str, instructions: str = "", reminder: str = ""
) -> list[dict[str, str]]:
    """The conversation that asks a teacher; `reminder` says what was missing in its last answer."""
    question = build_prompt(concept, requirements_yaml)
    if reminder:
        question += (
            f"\n\nReminder: your last answer could not be used, because {reminder}. Write both fenced YAML blocks, "
            "complete and closed, and nothing else."
        )
    return [
        {"role": "system", "content": instructions or own_text("teacher.txt")},
        {"role": "user", "content": question},
    ]
