"""The one prompt, for training, baseline and student, and its inverse.

`split_prompt` also reads the prompts of others (teacher records in prompt/output form), as far as they name their
sections. What the answer must look like belongs to `answer`.
"""

import re
from dataclasses import dataclass

from po_assets.product_owner.answer import fenced_blocks
from po_assets.product_owner.documents import strip_fences

PROMPT_VERSION = "1"
"""Raised with every change of the text below: whatever was trained or evaluated with another prompt is stale."""

_OPENING = "You are a Product Owner. Write the product vision, then review the requirements against it."
_CLOSING = "Answer with two fenced YAML blocks: VISION and REVIEW. Cite requirement ids in the review."

_SECTION = re.compile(r"^[ \t]*(?:#+[ \t]*)?(CONCEPT|REQUIREMENTS|VISION)[ \t]*:[ \t]*(.*)$")
_INSTRUCTION = re.compile(
    r"^(?:Answer|Respond|Reply|Return|Write|Produce|Output|Provide|Please)\b.*\b(?:YAML|VISION)\b"
)


@dataclass(frozen=True)
class PromptParts:
    """What a prompt holds. `vision_yaml` is set where the prompt gives away the vision that the answer must contain."""

    concept: str | None
    requirements_yaml: str | None
    vision_yaml: str | None = None


def build_prompt(concept: str, requirements_yaml: str) -> str:
    """The prompt for one product concept and its requirements document (YAML text)."""
    return (
        f"{_OPENING}\n\nCONCEPT:\n{concept.strip()}\n\nREQUIREMENTS:\n{strip_fences(requirements_yaml).strip()}"
        f"\n\n{_CLOSING}"
    )


def split_prompt(prompt: str) -> PromptParts:
    """The concept, requirements and (leaked) vision that a prompt holds; a part it does not name is None.

    Reads `CONCEPT:` / `REQUIREMENTS:` / `VISION:` sections and fenced blocks labelled VISION or REQUIREMENTS.
    """
    blocks = fenced_blocks(prompt)
    sections = _sections(prompt)
    return PromptParts(
        concept=sections.get("CONCEPT"),
        requirements_yaml=blocks.get("REQUIREMENTS") or sections.get("REQUIREMENTS"),
        vision_yaml=blocks.get("VISION") or sections.get("VISION"),
    )


def _sections(prompt: str) -> dict[str, str]:
    found: dict[str, list[str]] = {}
    current: list[str] | None = None
    for line in prompt.splitlines():
        heading = _SECTION.match(line)
        if heading and heading[1] not in found:
            current = found.setdefault(heading[1], [heading[2]])
        elif current is not None:
            current.append(line)
    texts = {name: strip_fences(_without_instruction(lines)).strip() for name, lines in found.items()}
    return {name: text for name, text in texts.items() if text}


def _without_instruction(lines: list[str]) -> str:
    """The section's lines up to the closing instruction, which stands at the left margin after the last section."""
    for number, line in enumerate(lines):
        if line == _CLOSING or _INSTRUCTION.match(line):
            return "\n".join(lines[:number])
    return "\n".join(lines)
