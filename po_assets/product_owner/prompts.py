"""Prompts: the student's own, those of a team as templates, and the conversation that asks a teacher.

One prompt serves training, baseline and use: the built-in one unless a team names its own (`dataset.settings`). It can
be taken apart again, whatever its texts hold. Its template is what travels with an adapter; `build_prompt` writes the
same here. What a teacher has to be told, and the student learns from rows, is `teacher.txt`. The prompts of others are
read by `prompt_parts`.
"""

import difflib
import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib.resources import files

from jinja2 import StrictUndefined, TemplateSyntaxError, meta
from jinja2.sandbox import SandboxedEnvironment

from po_assets.errors import all_faults
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

VARIABLES = ("concept", "requirements_yaml", "existing_vision_yaml")
"""What a template gets: texts without white space around them, the YAML ones without a fence; the last may be empty."""
_NEEDED = VARIABLES[:2]
_ENVIRONMENT = SandboxedEnvironment(undefined=StrictUndefined)
_SYSTEM = re.compile(r"\{%[-+]?\s*block\s+system\b.*?%\}(.*?)\{%[-+]?\s*endblock\b.*?%\}", re.DOTALL)
_MARKS = {f"\ue000{number}\ue001": name for number, name in enumerate(VARIABLES)}  # private-use characters
_MARK = re.compile("(\ue000[0-2]\ue001)")
_EXAMPLE = (
    "A planner.\n\nIt is for two.",
    "title: Planner\nconstraints:\n- id: C001",
    "product_name: P\nnon_goals: []",
)


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


@dataclass(frozen=True)
class Prompt:
    """What a model is asked with."""

    name: str
    source: str
    """Jinja template of the user's turn, of `VARIABLES`."""
    system: str = ""
    """The system text, the same for every question; empty for none."""

    @property
    def digest(self) -> str:
        """Digest (sha256, hex) of all that a model sees of it besides the question."""
        return hashlib.sha256(f"{self.system}\0{self.source}".encode()).hexdigest()

    def user(self, concept: str, requirements_yaml: str, existing_vision_yaml: str = "") -> str:
        """The user's turn for one question."""
        if self.source == BUILT_IN.source:
            return build_prompt(concept, requirements_yaml, existing_vision_yaml)
        texts = (concept.strip(), without_outer_fence(requirements_yaml), without_outer_fence(existing_vision_yaml))
        return _rendered(self.source, texts)

    def turns(self, concept: str, requirements_yaml: str, existing_vision_yaml: str = "") -> list[dict[str, str]]:
        """The conversation (`role`, `content`) for one question."""
        system = [{"role": "system", "content": self.system}] if self.system else []
        return [*system, {"role": "user", "content": self.user(concept, requirements_yaml, existing_vision_yaml)}]

    def parts(self, user: str) -> PromptParts | None:
        """What was asked in a user's turn that `user` wrote; None for any other text."""
        if self.source == BUILT_IN.source:
            return own_parts(user)
        for pattern in _patterns(self.source):
            found = pattern.fullmatch(user)
            values = [found.groupdict().get(name) or "" for name in VARIABLES] if found else None
            if values and self.user(*values) == user:
                return PromptParts(values[0] or None, values[1] or None, existing_vision_yaml=values[2] or None)
        return None


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


def read_prompt(text: str, name: str) -> Prompt:
    """The prompt in the text of a template file: `{% block system %}…{% endblock %}`, if any, and the user's turn.

    Raises:
        UserError: with every fault of the file: it is no Jinja template, names an unknown variable or lacks a needed
            one, or the question cannot be found again in what it writes.
    """
    system = _SYSTEM.search(text)
    source = _SYSTEM.sub("", text, count=1).strip()
    faults: list[str] = []
    try:
        _ENVIRONMENT.from_string(text)
        named = _variables(source)
        faults += [f"{missing} does not stand in it." for missing in _NEEDED if missing not in named]
        faults += [_unknown(variable) for variable in sorted(named - set(VARIABLES))]
        faults += [
            f"its system text names the variable {variable!r}; it is the same for every question, so put the variable "
            "into the user's text."
            for variable in sorted(_variables(system[1]) if system else ())
        ]
        prompt = Prompt(name, source, _ENVIRONMENT.from_string(system[1]).render().strip() if system else "")
        if not faults and (fault := _question_fault(prompt, named)):
            faults.append(fault)
    except TemplateSyntaxError as error:
        faults.append(f"it is no Jinja template: line {error.lineno}: {str(error.message).rstrip('.')}.")
    except Exception as error:  # noqa: BLE001 - a template runs what its author wrote, and may fail there in any way
        faults = faults or [f"it fails with {type(error).__name__}: {str(error).rstrip('.')}."]
    if faults:
        raise all_faults(f"The prompt {name!r} cannot be used (a Jinja template of {', '.join(VARIABLES)})", faults)
    return prompt


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
        {"role": "system", "content": instructions or _TEACHER},
        {"role": "user", "content": question},
    ]


def _variables(source: str) -> set[str]:
    return meta.find_undeclared_variables(_ENVIRONMENT.parse(source))


def _unknown(variable: str) -> str:
    close = difflib.get_close_matches(variable, VARIABLES, n=1)
    hint = f"did you mean {close[0]!r}?" if close else f"known are {', '.join(VARIABLES)}."
    return f"{variable!r} is not a variable; {hint}"


def _question_fault(prompt: Prompt, named: set[str]) -> str | None:
    """The checks of the training rows, and the grammar in use, must find concept and requirements again."""
    example = [text if name in named else "" for name, text in zip(VARIABLES, _EXAMPLE, strict=True)]
    for texts in (example, [*example[:2], ""]):
        found = prompt.parts(prompt.user(*texts))
        if found is None or [found.concept, found.requirements_yaml, found.existing_vision_yaml or ""] != texts:
            return (
                "concept and requirements cannot be found again in what it writes: let each variable stand as it is, "
                "without a filter that changes its text, and with text between them."
            )
    return None


_compiled = lru_cache(maxsize=16)(_ENVIRONMENT.from_string)


def _rendered(source: str, texts: Sequence[str]) -> str:
    return str(_compiled(source).render(zip(VARIABLES, texts, strict=True)))


@lru_cache(maxsize=16)
def _patterns(source: str) -> list[re.Pattern[str]]:
    """What the template writes with and without an existing vision; of a heading that stands twice the last counts."""
    patterns = []
    *needed, existing = _MARKS
    for vision in (existing, ""):
        pattern = ""
        for piece in _MARK.split(_rendered(source, [*needed, vision])):
            name = _MARKS.get(piece)
            group = f"(?P={name})" if f"(?P<{name}>" in pattern else f"(?P<{name}>.*)"
            pattern += group if name else re.escape(piece)
        patterns.append(re.compile(pattern, re.DOTALL))
    return patterns


def _own_text(name: str) -> str:
    """A text that the role brings along, without the line end of its file."""
    return files("po_assets.product_owner").joinpath(name).read_text("utf-8").removesuffix("\n")


BUILT_IN = Prompt("built-in", _own_text("built_in.jinja"))
"""The project's own prompt unless a team names its own; `build_prompt` writes it."""
AGENT = read_prompt(_own_text("agent.jinja"), "agent")
"""Ours, of the shape that consuming agents use: a student certified under its own prompt is checked under this, too."""
KNOWN = {prompt.name: prompt for prompt in (BUILT_IN, AGENT)}
_TEACHER = _own_text("teacher.txt")
