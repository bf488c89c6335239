"""How a teacher is asked: the student's own prompt, preceded by what the student learns from rows and a teacher cannot.

The student's prompt itself belongs to `product_owner.prompt`.
"""

from po_assets.product_owner import PROMPT_VERSION, STATUSES, build_prompt
from po_assets.teacher.payloads import Payload

TEACHER_PROMPT_VERSION = f"1+prompt.{PROMPT_VERSION}"
"""Raised with every change of the texts below: answers to another question are not taken from the journal."""

INSTRUCTIONS = f"""\
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


def messages_for(payload: Payload, instructions: str = "", reminder: str = "") -> list[dict[str, str]]:
    """The conversation that asks about a payload; `reminder` says what was missing in the last answer."""
    question = build_prompt(payload.concept, payload.requirements_yaml)
    if reminder:
        question += (
            f"\n\nReminder: your last answer could not be used, because {reminder}. Write both fenced YAML blocks, "
            "complete and closed, and nothing else."
        )
    return [
        {"role": "system", "content": instructions or INSTRUCTIONS},
        {"role": "user", "content": question},
    ]
