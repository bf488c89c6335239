"""The prompts: the student's (one for training, baseline and use) with its inverse, and what a teacher is told besides.

`split_prompt` also reads the prompts of others (teacher records in prompt/output form), as far as they name their
sections. What the answer must look like belongs to `answer`.
"""

import re
from dataclasses import dataclass

from po_assets.product_owner.blocks import fenced_blocks, lines_of
from po_assets.product_owner.contract import REQUIREMENTS, STATUSES, VISION
from po_assets.product_owner.documents import strip_fences

PROMPT_VERSION = "1"
"""Raised with every change of the student's prompt: whatever was trained or evaluated with another one is stale."""
TEACHER_PROMPT_VERSION = f"1+prompt.{PROMPT_VERSION}"
"""Raised with every change of the teacher's texts: answers to another question are not taken from the journal."""

_OPENING = "You are a Product Owner. Write the product vision, then review the requirements against it."
_CLOSING = "Answer with two fenced YAML blocks: VISION and REVIEW. Cite requirement ids in the review."

_SECTION = re.compile(r"^[ \t]*(?:#+[ \t]*)?(CONCEPT|REQUIREMENTS|VISION)[ \t]*:[ \t]*(.*)$")
_INSTRUCTION = re.compile(
    r"^(?:Answer|Respond|Reply|Return|Write|Produce|Output|Provide|Please)\b.*\b(?:YAML|VISION)\b"
)

TEACHER_INSTRUCTIONS = f"""\
You review software requirements as an experienced Product Owner. You get a product concept and its requirements
document. Your whole answer is two fenced YAML blocks, in this order, with nothing before, between or after them:

```yaml VISION
product_name: <name>
product_summary: <one or two sentences, at least 120 characters>
target_users:
- <two or more>
value_proposition:
- <two or more>
key_capabilities:
- <two or more>
non_goals:
- <what the concept excludes; [] when it excludes nothing>
success_metrics:
- <two or more, measurable>
last_updated: '<today as YYYY-MM-DD, in quotation marks>'
```

```yaml REVIEW
status: <{" | ".join(STATUSES)}>
summary:
- <two or more findings>
requirements_alignment:
  aligned:
  - <one item for each requirement that serves the vision, naming its id>
  gaps:
  - <what the concept needs and no requirement serves>
  conflicts:
  - <each requirement that contradicts the vision, by id, and why>
recommended_actions:
- <two or more next steps, naming ids>
narrative: <a closing assessment of 160 characters or more, at most 110 words>
```

Write the vision from the concept alone. Then compare every requirement with it, by its id. The status is `conflicts`
when a requirement does what the concept excludes or when the document was written for another product;
`needs_adjustment` when something the concept asks for is missing; otherwise `aligned`. Report only what is there: an
empty list is `[]`, and a gap or conflict that does not exist is a fault. Every value is plain text on one line; put it
into quotation marks when it holds a colon, a hash sign or a quotation mark."""
"""What the student learns from rows and a teacher has to be told."""


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
        {"role": "system", "content": instructions or TEACHER_INSTRUCTIONS},
        {"role": "user", "content": question},
    ]


def split_prompt(prompt: str) -> PromptParts:
    """The concept, requirements and (leaked) vision that a prompt holds; a part it does not name is None.

    Reads `CONCEPT:` / `REQUIREMENTS:` / `VISION:` sections and fenced blocks labelled VISION or REQUIREMENTS.
    """
    blocks: dict[str, str] = {
        block.label: block.text for block in reversed(fenced_blocks(lines_of(prompt))) if block.text and block.label
    }
    sections = _sections(prompt)
    return PromptParts(
        concept=sections.get("CONCEPT"),
        requirements_yaml=blocks.get(REQUIREMENTS) or sections.get(REQUIREMENTS),
        vision_yaml=blocks.get(VISION) or sections.get(VISION),
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
