"""A prompt as a thing of its own: a Jinja template of the user's turn, with a system text or without.

The project's own prompt is the built-in one unless a team names its template; consumers' prompts are of the same kind.
Its template is what travels with an adapter, and is written by `prompts.build_prompt` here; which one is set belongs to
`dataset.settings`.
"""

import difflib
import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from jinja2 import DictLoader, StrictUndefined, TemplateNotFound, TemplateSyntaxError, meta, nodes
from jinja2.sandbox import SandboxedEnvironment

from po_assets.errors import all_faults
from po_assets.product_owner.blocks import without_outer_fence
from po_assets.product_owner.prompts import PromptParts, build_prompt, own_parts, own_text

VARIABLES = ("concept", "requirements_yaml", "existing_vision_yaml")
"""What a template gets: texts without white space around them, the YAML ones without a fence; the last may be empty."""
_NEEDED = VARIABLES[:2]
_ENVIRONMENT = SandboxedEnvironment(undefined=StrictUndefined, loader=DictLoader({}))
_COMMENT = re.compile(r"\{#.*?#\}", re.DOTALL)
_SYSTEM = re.compile(r"\{%[-+]?\s*block\s+system\b.*?%\}(.*?)\{%[-+]?\s*endblock\b.*?%\}", re.DOTALL)
_MARKS = {f"\ue000{number}\ue001": name for number, name in enumerate(VARIABLES)}  # private-use characters
_MARK = re.compile("(\ue000[0-2]\ue001)")
_EXAMPLE = (
    "A planner.\n\nIt is for two.",
    "title: Planner\nconstraints:\n- id: C001",
    "product_name: P\nnon_goals: []",
)


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


def read_prompt(text: str, name: str) -> Prompt:
    """The prompt in the text of a template file: `{% block system %}…{% endblock %}`, if any, and the user's turn.

    Raises:
        UserError: with every fault of the file: it is no Jinja template, names an unknown variable or lacks a needed
            one, or the question cannot be found again in what it writes.
    """
    text = _COMMENT.sub("", text)
    system = _SYSTEM.search(text)
    source = _SYSTEM.sub("", text, count=1).strip()
    faults: list[str] = []
    try:
        _ENVIRONMENT.compile(text)  # a block that stands twice is found here only
        blocks = [block.name for block in _ENVIRONMENT.parse(text).find_all(nodes.Block)]
        faults += [
            f"its block {name!r} would stand in the user's text; did you mean {{% block system %}}?"
            for name in blocks
            if name != "system" and difflib.get_close_matches(name.lower(), ["system"])
        ]
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
    except TemplateNotFound as error:
        faults.append(
            f"it takes {error.name!r} from another file; a prompt must be whole, as it goes with the adapter."
        )
    except Exception as error:  # noqa: BLE001 - a template runs what its author wrote, and may fail there in any way
        faults = faults or [f"it fails with {type(error).__name__}: {str(error).rstrip('.')}."]
    if faults:
        raise all_faults(f"The prompt {name!r} cannot be used (a Jinja template of {', '.join(VARIABLES)})", faults)
    return prompt


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


BUILT_IN = Prompt("built-in", own_text("built_in.jinja"))
"""The project's own prompt unless a team names its own; `build_prompt` writes it."""
AGENT = read_prompt(own_text("agent.jinja"), "agent")
"""Ours, of the shape that consuming agents use: a student certified under its own prompt is checked under this, too."""
KNOWN = {prompt.name: prompt for prompt in (BUILT_IN, AGENT)}
