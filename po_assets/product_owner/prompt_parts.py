"""Taking a prompt apart: the exact inverse of `prompts.build_prompt`, and as far as can be the prompts of others.

Other prompts name their sections: CONCEPT, REQUIREMENTS, VISION and EXISTING_VISION, in any order and case, as
`CONCEPT:`, `## Concept`, `**Concept:**` or as fenced blocks with these labels. Where a section comes several times (an
example before the task), the last one counts. Closing instructions belong to no document. What was left out, or had
to be decided, is noted; what is not found is None, never guessed. Where a section begins and ends is told by
`prompt_sections`.
"""

import itertools
import re
from collections.abc import Iterator, Sequence
from textwrap import dedent

from po_assets.product_owner.blocks import (
    ABOUT_ANSWERS,
    CUE,
    PROMPT_WORD,
    REQUIREMENT_LINE,
    RULE,
    is_closing,
    lines_of,
    remark_in,
    without_end_of_turn,
    without_outer_fence,
    yaml_part,
)
from po_assets.product_owner.contract import CONCEPT, EXISTING_VISION, REQUIREMENTS, VISION, VISION_KEYS
from po_assets.product_owner.documents import read_yaml
from po_assets.product_owner.prompt_sections import KEY_AT_MARGIN, OLD, SHOWN, Section, announcement, read_sections
from po_assets.product_owner.prompts import PromptParts, own_parts

PROMPT_FORM = (
    "CONCEPT: and REQUIREMENTS:, each at the start of a line (or as headings `## Concept`, in bold, or as blocks "
    "fenced as ```yaml REQUIREMENTS)"
)
"""How a prompt must name its parts, for messages about one that does not."""
_VISION_BEGINS = re.compile(r"product_(?:name|summary):[ \t]")
_RULES = re.compile(
    r"^[#*_ \t]*(?:rules|instructions?|guidelines|(?:output|answer|response) format)[*_]*:.*",
    re.IGNORECASE | re.MULTILINE,
)
_NOTHING = frozenset(("none", "(none)", "n/a", "nan", "null", "-", "{}", "(empty)", "empty", "''", '""'))
_PLACEHOLDER = re.compile(r"<.*>|\[.*\]|\{.*\}|\.\.\.|…")
_CONCEPT_FOLLOWS = r"(?=[#*_\[<=]{1,6} ?CONCEPT\b|(?:PRODUCT )?CONCEPT:)"
_SPEAKER = re.compile(
    rf"^[ \t]*(?:#{{1,4}} )?(?:Human|User|Question|Input|Q):[ \t]+{_CONCEPT_FOLLOWS}", re.IGNORECASE | re.MULTILINE
)
"""Who asks, as transcripts have it before each question, on its line."""
_TURN = re.compile(rf"(<[|\uff5c]\w{{1,30}}[|\uff5c]>|\[INST\])[ \t]*{_CONCEPT_FOLLOWS}", re.IGNORECASE)
"""A mark of a chat template that touches the first section."""
_TAG_ALONE = re.compile(r"\n[ \t]*(?:</?([\w-]{1,30})>|[-=*_]{3,30}|<!--[^\n]{0,30}-->)\Z")
_SURELY_ABOUT_ANSWERS = re.compile(r"\b(?:fenced|YAML) (?:YAML |code )?blocks\b|\bVISION\b[^.]{0,60}\bREVIEW\b")
_ADDRESSES = re.compile(r"(?:Now|Please|Think|Remember|Do not|Don't|Never|Always|Make sure|Ensure|Keep|Cite)\b[ ,]")
_COMMENT = re.compile(r"^#.*", re.MULTILINE)
_FEWEST_KEYS = 3
"""So many keys of a vision tell one in a text; a single one may be a word of the concept."""


def split_prompt(prompt: str) -> PromptParts:
    """The parts that a prompt holds; one that it does not name is None."""
    return own_parts(prompt) or own_parts("\n".join(lines_of(prompt))) or _foreign_parts(prompt)


def _foreign_parts(prompt: str) -> PromptParts:
    notes: list[str] = []
    plain = _TURN.sub(r"\1\n", _SPEAKER.sub("", without_end_of_turn(prompt)))
    if plain.lstrip("\n").startswith("    "):  # a text in a program
        plain = dedent(plain)
    read = map(_unquoted, read_sections(lines_of(plain), notes))
    sections = [_unquoted(section) for section in _with_prose_put_back(read)]
    sections = [one for section in sections for one in _parted(section)]
    sections = _without_last_example(list(_without_names(sections)), notes)
    sections = list(_without_example_requirements(sections, notes))
    found = [(section, _text(section, notes, last=section is sections[-1])) for section in sections]
    names = [section.name for section in sections]
    task, first = _task(sections) if names.count(CONCEPT) > 1 else (0, 0)
    # What the task names and leaves empty is missing: an example's does not take its place.
    empty = set(names[first:]) - {section.name for section, text in found[first:] if text}
    given = [(section, text) for section, text in found if section.name not in empty]
    concepts = [text for section, text in given if section.name == CONCEPT and text]
    requirements = [text for section, text in given if section.name == REQUIREMENTS and (text or section.cut)]
    documents = [text for text in requirements if not text or _holds_requirements(text)]
    beside = [text for text in requirements if documents and text not in documents]
    notes += [f"text beside the REQUIREMENTS was left out: {text[:SHOWN]!r}" for text in beside]
    existing = [text for section, text in found[first:] if section.name == EXISTING_VISION]
    visions = [text for section, text in found[task:] if section.name == VISION and _is_vision(text)]
    if any(section.reviewed for section in sections[task:]):
        notes.append("the prompt holds a REVIEW, which is part of the answer; it was left out of the prompt")
    return PromptParts(
        concept=_last(CONCEPT, concepts, notes),
        requirements_yaml=_last(REQUIREMENTS, documents or requirements, notes) or None,
        vision_yaml=_last(VISION, visions, notes),
        existing_vision_yaml=_last(EXISTING_VISION, existing, notes) or None,
        notes=tuple(dict.fromkeys(notes)),
    )


def _task(sections: Sequence[Section]) -> tuple[int, int]:
    """Where the last CONCEPT stands, behind examples, and where its sections begin: each has another name."""
    task = first = max(number for number, section in enumerate(sections) if section.name == CONCEPT)
    names = {section.name for section in sections[task:]}
    while first and sections[first - 1].name not in names:
        first -= 1
        names.add(sections[first].name)
    return task, first


def _parted(section: Section) -> Iterator[Section]:
    """A CONCEPT without the vision that stands in it under a heading of other words; the vision follows it."""
    lines = section.lines
    number = next((number for number, line in enumerate(lines) if _VISION_BEGINS.match(line)), 0)
    if section.name != CONCEPT or not "".join(lines[:number]).strip():
        yield section
        return
    vision = Section(VISION, "", lines[number:])
    if len(set(VISION_KEYS) & set(read_yaml(yaml_part(vision.lines)[0], unique_keys=False).value)) < _FEWEST_KEYS:
        yield section
        return
    section.lines = lines[:number]
    if OLD.search(" ".join(announcement(section))):
        vision.name = EXISTING_VISION
    yield section
    yield vision


def _without_names(sections: Sequence[Section]) -> Iterator[Section]:
    """Without a section that is only a name above the same name (`<concept>` above `# Concept`)."""
    for section, name in zip(sections, [*(section.name for section in sections[1:]), ""], strict=False):
        if section.name != name or section.started or section.fenced is not None:
            yield section


def _unquoted(section: Section) -> Section:
    """The section with the text between triple quotes as its fenced block."""
    text = "\n".join(section.lines).strip() if section.fenced is None else ""
    inside, closed, after = text[3:].partition(text[:3] or " ")
    if text.startswith(('"""', "'''")) and closed and not after.partition("\n")[0].strip():
        section.fenced, section.lines, section.after = dedent(inside), [], after.split("\n")
    return section


def _without_last_example(sections: list[Section], notes: list[str]) -> list[Section]:
    """Without the example that a prompt gives behind its task: it is called one, or it has its answer beside it."""
    concepts = [number for number, section in enumerate(sections) if section.name == CONCEPT]
    asked = any(section.name == REQUIREMENTS for section in sections[: concepts[-1]]) if concepts else False
    examples = [
        sections[start].example
        or any(section.reviewed or (asked and _is_answer(section)) for section in sections[start:end])
        for start, end in itertools.pairwise([*concepts, len(sections)])
    ]
    if not examples or not examples[-1] or all(examples):
        return sections
    notes.append("the example behind the task was left out")
    task = max(number for number, example in enumerate(examples) if not example)
    return sections[: concepts[task + 1]]


def _is_answer(section: Section) -> bool:
    """Whether it is a VISION that is filled in."""
    return section.name == VISION and _is_vision(section.fenced or yaml_part(section.lines)[0])


def _without_example_requirements(sections: Sequence[Section], notes: list[str]) -> Iterator[Section]:
    """Without REQUIREMENTS that are called an example behind those of the task."""
    asked = False
    for section in sections:
        if section.name == REQUIREMENTS and section.example and asked:
            notes.append("the example behind the task was left out")
            continue
        asked = asked or section.name == REQUIREMENTS
        yield section


def _holds_requirements(text: str) -> bool:
    """Whether it is a document, readable or not, and no prose."""
    return bool(read_yaml(text, unique_keys=False).value) or any(map(REQUIREMENT_LINE.match, text.split("\n")))


def _last(name: str, texts: Sequence[str], notes: list[str]) -> str | None:
    if len(set(texts)) > 1:
        notes.append(f"the prompt holds {len(texts)} sections {name} that differ; the last one was taken")
    return texts[-1] if texts else None


def _with_prose_put_back(sections: Iterator[Section]) -> list[Section]:
    """A VISION or REQUIREMENTS that holds no document is text of the concept before it (`VISION: be the first`)."""
    found = list(sections)
    has_requirements = any(section.name == REQUIREMENTS and not _is_prose(section) for section in found)
    kept: list[Section] = []
    for section in found:
        replaceable = section.name == VISION or (section.name == REQUIREMENTS and has_requirements)
        if kept and kept[-1].name == CONCEPT and section.started and replaceable and _is_prose(section):
            kept[-1].add(*section.after, section.heading, *section.lines[1:])
        else:
            kept.append(section)
    return kept


def _is_prose(section: Section) -> bool:
    """Whether what stands behind the name of a document is none."""
    if section.fenced is not None:
        return False
    text = yaml_part(section.lines)[0]
    if section.name == VISION:
        return not set(VISION_KEYS) & set(read_yaml(text, unique_keys=False).value)
    return not _holds_requirements(text)


def _is_vision(text: str) -> bool:
    """Whether a vision is given away; a template to be filled in gives nothing away."""
    text = _COMMENT.sub("", text).strip()
    name = read_yaml(text).value.get("product_name", text)
    return bool(text) and isinstance(name, str) and not _PLACEHOLDER.fullmatch(name.strip())


def _text(section: Section, notes: list[str], *, last: bool) -> str:
    beside = section.after
    if not section.is_document:
        text = "\n".join([*section.lines, *([section.fenced] if section.fenced else [])]).strip()
        if last and section.fenced is None:
            text, closing = _without_closing(text)
            beside = [*beside, *closing]
        text = without_outer_fence(_without_tags(text))
    elif section.fenced is not None:
        text, beside = section.fenced.strip(), [*section.lines, *beside]
    else:
        lines, behind = _at_the_margin(section.lines)
        text, rest = yaml_part(lines)
        beside = [*beside, *rest, *behind]
        is_prose = not read_yaml(text).value
        if last and (is_prose or _closes(text, alone=True)):
            text, closing = _without_closing(text)
            beside = [*closing, *beside]
        if is_prose:
            text = _without_tags(text)
        first, _, rest_of_text = text.partition("\n\n")
        if first.strip().lower() in _NOTHING:
            text, beside = "", [rest_of_text, *beside]
    if section.name in {CONCEPT, EXISTING_VISION} and (
        said := _of_prompt(text, last=last and (section.is_document or "\n\n" in text))
    ):
        notes.append(f"the {section.name} holds {said[:SHOWN]!r}, which may be meant for the answer")
    if section.name != VISION and (remark := remark_in(beside)):
        notes.append(f"text beside the {section.name} was left out: {remark[:SHOWN]!r}")
    return text


def _of_prompt(text: str, *, last: bool) -> str:
    """A line of a text that may tell how to answer: rules, and what ends the last one of a prompt."""
    rules, end = _RULES.search(text), text.rpartition("\n\n")
    if last and (_ADDRESSES.match(end[2]) or PROMPT_WORD.match(end[2])):
        return end[2].split("\n")[0]
    return rules[0] if rules else ""


def _at_the_margin(lines: list[str]) -> tuple[list[str], list[str]]:
    """The lines of a document moved to the margin with its first one, and the prose behind it that stands there."""
    first = next((line for line in lines if line.strip()), "")
    indent = first[: len(first) - len(first.lstrip(" "))]
    end = next((n for n, line in enumerate(lines) if line.strip() and not line.startswith(indent)), len(lines))
    if any(map(KEY_AT_MARGIN.match, lines[end:])):
        end = len(lines)
    return dedent("\n".join(lines[:end])).split("\n"), lines[end:]


def _without_tags(text: str) -> str:
    """The text without last lines that end or begin what stands around it (`</task>`, `<data>`, a line across)."""
    text = text.rstrip()
    for _ in range(4):  # nobody nests deeper
        tag = _TAG_ALONE.search(text[-40:])
        if tag and f"<{tag[1] or tag[0]}" not in (rest := text[: -len(tag[0])]):
            text = rest.rstrip()
    return text


def _without_closing(text: str) -> tuple[str, list[str]]:
    """The text, and the instructions about the answer that end it, or are all of it."""
    before, _, line = text.rpartition("\n")
    if CUE.fullmatch(line):
        text = f"{before}\n\n{line}"
    parts = re.split(r"(\n[ \t]*\n\s*)", text)
    end = len(parts)
    while end > 0 and _closes(parts[end - 1], alone=end == 1):
        end = max(end - 2, 0)
    return "".join(parts[:end]).strip(), parts[end:]


def _closes(paragraph: str, *, alone: bool) -> bool:
    """Whether a paragraph tells how to answer; one that is `alone` may be the text itself, so that it must be sure."""
    line, _, rest = paragraph.partition("\n")
    if RULE.fullmatch(line.strip()) or (line.startswith("#") and PROMPT_WORD.fullmatch(line.strip("# :"))):
        if not rest:
            return True
        paragraph, alone = rest, False
    about = _SURELY_ABOUT_ANSWERS if alone else ABOUT_ANSWERS
    return bool(CUE.fullmatch(paragraph) or (is_closing(paragraph) and about.search(paragraph)))
