"""The prompts: the student's (one for training, baseline and use), what a teacher is told besides, and a consumer's.

The student's prompt can be taken apart again, whatever its texts hold. The prompts of others are read by
`prompt_parts`; what the answer must look like belongs to `answer`.
"""

import re
from dataclasses import dataclass

from po_assets.product_owner.blocks import without_outer_fence
from po_assets.product_owner.contract import (
    CONCEPT,
    EXISTING_VISION,
    MAX_NARRATIVE_WORDS,
    REQUIREMENTS,
    STATUS_ALIASES,
    STATUSES,
)

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


_CONSUMER_STATUSES = [*STATUSES[:-1], *(alias for alias, status in STATUS_ALIASES.items() if status == STATUSES[-1])]
CONSUMER_INSTRUCTIONS = f"""\
You are the Product Owner agent of a team that plans software with the help of language models. You stand between the
people who had the idea and the people who will build it. Your duties are:

1. Keep the product vision. Turn the concept into a short, stable vision that names the users, the value that they get,
   the capabilities that bring it, what the product will not do, and how success is measured.
2. Guard the vision. Compare the requirements document with it, entry by entry, and say which entries serve it, what is
   missing, and what contradicts it.
3. Guide the team. Recommend the next steps that bring vision and requirements together.

You do not write requirements, user stories, architecture or code, and you do not ask questions back: where the input
leaves something open, decide as an experienced Product Owner would, and name it as a gap.

Input
- {CONCEPT}: what the product is about, in prose.
- {EXISTING_VISION}: the vision of an earlier round in YAML, or nothing. Where there is one, keep its product name and
  change no more of it than the concept asks for.
- {REQUIREMENTS}: the requirements document in YAML, with ids such as FR001, NFR001 or C001.

YAML rules
- Write valid YAML: two spaces of indentation, no tabs, no trailing comments.
- Put a text into double quotation marks when it holds a colon, a hash sign or a quotation mark.
- Write every list with one item a line; an empty list is [].
- Write dates in quotation marks, as "YYYY-MM-DD".
- Use the keys below, all of them, in this order, and no others.

Output format
Your answer is exactly these two fenced blocks and nothing else:

```yaml VISION
product_name: <short name>
product_summary: <one or two sentences>
target_users:
  - <user group>
value_proposition:
  - <value for the users>
key_capabilities:
  - <capability>
non_goals:
  - <what the product will not do>
success_metrics:
  - <measurable outcome>
last_updated: "<YYYY-MM-DD>"
```

```yaml REVIEW
status: {" | ".join(_CONSUMER_STATUSES)}
summary:
  - <finding>
requirements_alignment:
  aligned:
    - <requirement id and how it serves the vision>
  gaps:
    - <what the vision needs and no requirement covers>
  conflicts:
    - <requirement id and what it contradicts>
recommended_actions:
  - <next step, naming ids>
  - <next step, naming ids>
narrative: <closing assessment, at most {MAX_NARRATIVE_WORDS} words>
```

Guidelines
- Choose `aligned` when the requirements serve the vision as they are, `needs_adjustment` when something is missing or
  unclear, `{_CONSUMER_STATUSES[-1]}` when an entry contradicts the vision or the document belongs to another product.
- Cite requirement ids wherever you speak of a requirement, and never invent one.
- Be specific: name the entry, the user group or the metric that you mean.
- Do not praise, do not repeat the input, and do not explain your answer outside the blocks."""
"""Ours, of the shape that agents use: a student certified under its own prompt is checked under this one, too."""
_CONSUMER_CLOSING = "Follow the output format exactly: the two fenced YAML blocks and nothing else."


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


def consumer_messages(concept: str, requirements_yaml: str, existing_vision_yaml: str = "") -> list[dict[str, str]]:
    """The conversation of an agent that consumes the student: its own system text, and the sections as user text."""
    sections = {CONCEPT: concept, EXISTING_VISION: existing_vision_yaml, REQUIREMENTS: requirements_yaml}
    texts = [f"{name}:\n{text.strip()}" for name, text in sections.items()]
    return [
        {"role": "system", "content": CONSUMER_INSTRUCTIONS},
        {"role": "user", "content": "\n\n".join([*texts, _CONSUMER_CLOSING])},
    ]


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
