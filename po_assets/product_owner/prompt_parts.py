"""Taking a prompt apart: the exact inverse of `prompts.build_prompt`, and as far as can be the prompts of others.

Other prompts name their sections: CONCEPT, REQUIREMENTS, VISION and EXISTING_VISION, in any order and case, as
`CONCEPT:`, `## Concept`, `**Concept:**` or as fenced blocks with these labels. Where a section comes several times (an
example before the task), the last one counts. Closing instructions belong to no document. What was left out, or had
to be decided, is noted; what is not found is None, never guessed.
"""

import itertools
import re
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from textwrap import dedent

from po_assets.product_owner.blocks import (
    ABOUT_ANSWERS,
    REQUIREMENT_LINE,
    Block,
    fenced_blocks,
    is_closing,
    is_plain_key,
    label_in,
    lines_of,
    remark_in,
    without_end_of_turn,
    without_outer_fence,
    yaml_part,
)
from po_assets.product_owner.contract import CONCEPT, EXISTING_VISION, REQUIREMENTS, REVIEW, VISION, VISION_KEYS
from po_assets.product_owner.documents import read_yaml, to_text
from po_assets.product_owner.prompts import PromptParts, own_parts

PROMPT_FORM = (
    "CONCEPT: and REQUIREMENTS:, each at the start of a line (or as headings `## Concept`, in bold, or as blocks "
    "fenced as ```yaml REQUIREMENTS)"
)
"""How a prompt must name its parts, for messages about one that does not."""

_NAME = (
    r"(?P<name>(?:PRODUCT[ _-])?(?:CONCEPT"
    r"|(?:(?P<old>EXISTING|CURRENT|PREVIOUS|PRIOR|OLD)[ _-](?:PRODUCT[ _-])?)?VISION"
    r"|REQUIREMENTS(?:[ _-](?:DOCUMENT|YAML))?))"
)
_HEADING = re.compile(
    rf"(?P<mark>[ \t\u200b\ufeff]{{0,3}}(?:#{{1,6}}[ \t]*)?(?:[0-9]{{1,2}}[.)][ \t]+)?(?:\*\*|__|[*_])?){_NAME}"
    r"(?:[ ]\([^()\n]{1,20}\))?(?P<end>\*\*|__|[*_])?[ \t\u00a0]*(?P<colon>[:\uff1a])?(?:\*\*|__|[*_])?[ \t\u00a0]*"
    r"#{0,6}(?P<rest>\S.*)?",
    re.IGNORECASE,
)
# <concept>, [CONCEPT], === CONCEPT ===; what follows a tag on its line belongs to the section.
_TAG = re.compile(rf"[ \t]{{0,3}}<{_NAME}(?:[ \t][^<>]*)?>(?P<rest>.*)", re.IGNORECASE)
_END_TAG = re.compile(
    rf"[ \t]{{0,3}}(?:\[/{_NAME}\]|[=*~-]{{2,20}} ?END(?: OF)?(?: (?:CONCEPT|REQUIREMENTS|VISION))? ?"
    r"[=*~-]{2,20})[ \t]*",
    re.IGNORECASE,
)
_FENCED_SECTION = re.compile(r"[ \t]*(?:```|~~~).*(?:VISION|REVIEW|REQUIREMENTS)", re.IGNORECASE)
_UNDERLINE = re.compile(r"(?:={3,}|-{3,})[ \t]*")
_NAME_ALONE = re.compile(rf"[ \t]{{0,3}}{_NAME}[ \t]*", re.IGNORECASE)
_EXAMPLE = re.compile(
    r"\W{0,6}(?:(?:an?|one|another|for) )?(?:example|sample|instance|ejemplo|beispiel|exemple|esempio)\b.{0,60}",
    re.IGNORECASE,
)
_ANNOUNCES = re.compile(r"#{1,6}[ \t].{1,60}|(\*\*|__).{1,60}\1:?|\S.{0,40}[:\uff1a]")
"""A line that only says what follows it, in any words (`Specification:`)."""
_VISION_BEGINS = re.compile(r"product_(?:name|summary):[ \t]")
_OLD = re.compile(r"existing|current|previous|prior|old|former", re.IGNORECASE)
_USUAL = re.compile(r"(?:You are|You're|Act as)\b|[^:]{1,40}:\Z")
"""How prompts begin before their first section: with the role, or a line that announces the sections."""
_RULES = re.compile(
    r"^[#*_ \t]*(?:rules|instructions?|guidelines|(?:output|answer|response) format)[*_]*:.*",
    re.IGNORECASE | re.MULTILINE,
)
_DECORATED = re.compile(rf"[ \t]{{0,3}}[=*~\[-]{{1,20}} ?{_NAME}:? ?[=*~\]-]{{1,20}}:?", re.IGNORECASE)
_NOTHING = frozenset(("none", "(none)", "n/a", "null", "-", "{}", "(empty)", "empty", "''", '""'))
_BLOCK_SCALAR = frozenset(("|", "|-", "|+", ">", ">-"))
_PLACEHOLDER = re.compile(r"<.*>|\[.*\]|\{.*\}|\.\.\.|…")
_SPEAKER = re.compile(
    r"^[ \t]*(?:Human|User|Question|Input|Q):[ \t]+(?=[#*_\[<=]{1,6} ?CONCEPT\b|(?:PRODUCT )?CONCEPT:)",
    re.IGNORECASE | re.MULTILINE,
)
"""Who asks, as transcripts have it before each question, on its line."""
_KEY_AT_MARGIN = re.compile(rf"[a-z_]+:|- |{REQUIREMENT_LINE.pattern}")
_TAG_ALONE = re.compile(r"\n[ \t]*(?:</?([\w-]{1,30})>|[-=*_]{3,30}|<!--[^\n]{0,30}-->)\Z")
_FIRST = 40
"""A vision has a key of its own within so many lines."""
_FEWEST_KEYS = 3
"""So many keys of a vision tell one in a text; a single one may be a word of the concept."""
_VERDICT = re.compile(r"[a-z_]+", re.IGNORECASE)
_SHOWN = 60


@dataclass
class _Section:
    """One section as it stands: its lines, the first of which is what follows the name on its line."""

    name: str
    heading: str
    lines: list[str] = field(default_factory=list)
    fenced: str | None = None
    """The text of its fenced block, where it has one."""
    after: list[str] = field(default_factory=list)
    """What stands behind that block."""
    plain: bool = True
    """No key at the left margin begins with a capital letter."""
    started: bool = False
    tag: str = ""
    """What ends the section, where a tag begins it."""
    example: bool = False
    """The line above its name says that an example follows."""
    reviewed: bool = False
    """A REVIEW with a verdict stands behind it."""
    cut: bool = False
    """Its fence is not closed, so that nobody knows what is missing."""

    def add(self, *lines: str) -> None:
        """Put lines behind those that are there."""
        (self.lines if self.fenced is None else self.after).extend(lines)
        self.plain = self.plain and all(map(is_plain_key, lines))
        self.started = self.started or any(line.strip() for line in lines)

    @property
    def is_document(self) -> bool:
        return self.name != CONCEPT

    @property
    def is_open(self) -> bool:
        """Whether a line of YAML may follow."""
        return self.is_document and self.fenced is None and self.started


def split_prompt(prompt: str) -> PromptParts:
    """The parts that a prompt holds; one that it does not name is None."""
    return own_parts(prompt) or own_parts("\n".join(lines_of(prompt))) or _foreign_parts(prompt)


def _foreign_parts(prompt: str) -> PromptParts:
    notes: list[str] = []
    read = map(_unquoted, _sections(lines_of(_SPEAKER.sub("", without_end_of_turn(prompt))), notes))
    sections = [_unquoted(section) for section in _with_prose_put_back(read)]
    sections = _without_last_example([one for section in sections for one in _parted(section)], notes)
    sections = list(_without_example_requirements(sections, notes))
    found = [(section, _text(section, notes, last=section is sections[-1])) for section in sections]
    concepts = [text for section, text in found if section.name == CONCEPT and text]
    requirements = [text for section, text in found if section.name == REQUIREMENTS and (text or section.cut)]
    documents = [text for text in requirements if not text or _holds_requirements(text)]
    beside = [text for text in requirements if documents and text not in documents]
    notes += [f"text beside the REQUIREMENTS was left out: {text[:_SHOWN]!r}" for text in beside]
    task, first = _task(sections) if len(concepts) > 1 else (0, 0)
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


def _task(sections: Sequence[_Section]) -> tuple[int, int]:
    """Where the last CONCEPT stands, behind examples, and where its sections begin: each has another name."""
    task = first = max(number for number, section in enumerate(sections) if section.name == CONCEPT)
    names = {section.name for section in sections[task:]}
    while first and sections[first - 1].name not in names:
        first -= 1
        names.add(sections[first].name)
    return task, first


def _parted(section: _Section) -> Iterator[_Section]:
    """A CONCEPT without the vision that stands in it under a heading of other words; the vision follows it."""
    lines = section.lines
    number = next((number for number, line in enumerate(lines) if _VISION_BEGINS.match(line)), 0)
    if section.name != CONCEPT or not "".join(lines[:number]).strip():
        yield section
        return
    vision = _Section(VISION, "", lines[number:])
    if len(set(VISION_KEYS) & set(read_yaml(yaml_part(vision.lines)[0], unique_keys=False).value)) < _FEWEST_KEYS:
        yield section
        return
    section.lines = lines[:number]
    if _OLD.search(_announcement(section)):
        vision.name = EXISTING_VISION
    yield section
    yield vision


def _unquoted(section: _Section) -> _Section:
    """The section with the text between triple quotes as its fenced block."""
    text = "\n".join(section.lines).strip() if section.fenced is None else ""
    inside, closed, after = text[3:].partition(text[:3] or " ")
    if text.startswith(('"""', "'''")) and closed and not after.partition("\n")[0].strip():
        section.fenced, section.lines, section.after = dedent(inside), [], after.split("\n")
    return section


def _announcement(section: _Section) -> str:
    """The last line of a text where it only announces what follows, which is then taken off; else nothing."""
    lines = section.lines
    while lines and not lines[-1].strip():
        lines.pop()
    return lines.pop() if "".join(lines[:-1]).strip() and _ANNOUNCES.fullmatch(lines[-1].strip()) else ""


def _without_last_example(sections: list[_Section], notes: list[str]) -> list[_Section]:
    """Without the example that a prompt gives behind its task: it is called one, or it has its answer beside it."""
    concepts = [number for number, section in enumerate(sections) if section.name == CONCEPT]
    examples = [
        sections[start].example or any(section.reviewed for section in sections[start:end])
        for start, end in itertools.pairwise([*concepts, len(sections)])
    ]
    if not examples or not examples[-1] or all(examples):
        return sections
    notes.append("the example behind the task was left out")
    task = max(number for number, example in enumerate(examples) if not example)
    return sections[: concepts[task + 1]]


def _without_example_requirements(sections: Sequence[_Section], notes: list[str]) -> Iterator[_Section]:
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


def _sections(lines: Sequence[str], notes: list[str]) -> Iterator[_Section]:
    """The sections in their order; a fenced block with a label is one of its own."""
    blocks = {block.start: block for block in fenced_blocks(lines)}
    current: _Section | None = None
    outside = _Section("", "")
    ends: dict[str, list[int]] = {}
    number = 0
    while number < len(lines):
        block = blocks.get(number)
        end = block.end if block else number + 1
        line = lines[number]
        if (
            not block
            and end < len(lines)
            and _UNDERLINE.fullmatch(lines[end])
            and _NAME_ALONE.fullmatch(line.rstrip(": "))
        ):
            line, end = f"## {line.strip()}", end + 1
        if not block and current is not None and _END_TAG.fullmatch(line):
            yield current
            current, number = None, end
            continue
        inside = block is not None and current is not None and current.is_open and _is_deeper(line, current)
        begun = None if inside else _begun_by_block(block, current, notes) if block else _heading(line, current)
        if begun is not None and begun is not current:
            if current is not None:
                _hand_on(current, begun, by_block=block is not None)
                yield current
            above = next((one for one in reversed(lines[max(0, number - 3) : number]) if one.strip()), "")
            begun.example = bool(_EXAMPLE.fullmatch(above))
            current = begun
            if not block and (closing := _closing_line(current, lines, end, ends)):
                current.add(*lines[end : closing + 1])
                end = closing + 1
        elif begun is None and block and block.label == REVIEW and not inside:
            verdict = to_text(read_yaml(block.text).value.get("status"))
            (current or outside).reviewed = bool(_VERDICT.fullmatch(verdict))
        elif begun is None:
            (current or outside).add(*lines[number:end])
        number = end
        if current is not None and current.tag and _takes_end_off(current):
            yield current
            current = None
    if current is not None:
        yield current
    if current is not None and (remark := remark_in(outside.lines, usual=_USUAL)):
        notes.append(f"text outside the sections was left out: {remark[:_SHOWN]!r}")


def _hand_on(section: _Section, begun: _Section, *, by_block: bool) -> None:
    """Give the next section what is its own: the line that announces its block, the tag whose name it says again."""
    prose = section.name == CONCEPT or (section.is_document and not _is_vision_form(section))
    if by_block and prose and section.fenced is None:
        begun.add(_announcement(section))
    if section.name == begun.name and not section.started:
        begun.tag = begun.tag or section.tag


def _closing_line(section: _Section, lines: Sequence[str], start: int, ends: dict[str, list[int]]) -> int:
    """The line with the end tag of a CONCEPT, all of whose lines are its own, headings and all; 0 where there is none.

    `ends` remembers where the end tags stand, and under no name where fences and tags of other sections do.
    """
    tag = section.tag
    if not tag or section.name != CONCEPT or section.lines[-1].rstrip().lower().endswith(tag):
        return 0
    if tag not in ends:
        ends[tag] = [number for number, line in enumerate(lines) if line.rstrip().lower().endswith(tag)]
        ends[""] = [number for number, line in enumerate(lines) if _FENCED_SECTION.match(line) or _TAG.match(line)]
    closing, other = (_first_from(places, start) for places in (ends[tag], ends[""]))
    named = next((lines[number] for number in range(start, closing) if lines[number].strip()), "")
    return 0 if _heading(named, None) or 0 < other < closing else closing


def _first_from(places: Sequence[int], start: int) -> int:
    """The first of the places that is not before `start`; 0 where there is none."""
    place = bisect_left(places, start)
    return places[place] if place < len(places) else 0


def _is_deeper(line: str, document: _Section) -> bool:
    """Whether a line is indented more than the keys that are being read, and so belongs to one of their texts."""
    first = next((one for one in document.lines if one.strip()), line)
    return ":" in first and len(line) - len(line.lstrip(" ")) > len(first) - len(first.lstrip(" "))


def _begun_by_block(block: Block, current: _Section | None, notes: list[str]) -> _Section | None:
    """The section that a block is or belongs to, with the block's text; None for a block that is only text."""
    label = label_in(block.info)
    if not label and current is not None and current.is_document and current.fenced is None and not current.is_open:
        section = current
    else:
        label = label or block.label
        if not label or label == REVIEW:
            return None
        section = _Section(label, "")
    if block.text is None:
        notes.append(f"the fence of the {section.name} in line {block.start + 1} is not closed")
    section.fenced, section.cut = block.text or "", block.text is None
    return section


def _takes_end_off(section: _Section) -> bool:
    """Whether the last line ends the section with its tag, which is then taken off."""
    lines = section.lines if section.fenced is None else section.after
    if not (lines and lines[-1].rstrip().lower().endswith(section.tag)):
        return False
    lines[-1] = lines[-1].rstrip()[: -len(section.tag)]
    return True


def _heading(line: str, current: _Section | None) -> _Section | None:
    match, rest, tag = _HEADING.fullmatch(line), "", ""
    if match is not None:
        rest, marked = match["rest"] or "", bool(match["mark"].strip(" \t\u200b\ufeff0123456789.)"))
        if not match["colon"] and (rest or not marked):
            return None
        if current is not None and current.name == CONCEPT and rest and _goes_on(match, current):
            return None
        if current is not None and current.is_open and not _stands_out(match, current, marked=marked):
            return None
    elif match := _TAG.fullmatch(line):
        rest, tag = match["rest"], f"</{match['name'].lower()}>"
    elif not (match := _DECORATED.fullmatch(line)):
        return None
    word = match["name"].upper()
    kind = next(name for name in (CONCEPT, VISION, REQUIREMENTS) if name in word)
    if kind == VISION and _OLD.search(line.removesuffix(rest)):
        kind = EXISTING_VISION
    section = _Section(kind, line, tag=tag)
    section.add("" if rest in _BLOCK_SCALAR else rest)
    return section


def _goes_on(match: re.Match[str], concept: _Section) -> bool:
    """Whether `Concept: proven` below a line of a concept, named in another form, is its text."""
    first = _HEADING.fullmatch(concept.heading)
    forms = [one and (one["name"], bool(one["mark"].strip())) for one in (match, first)]
    goes_on = bool("".join(concept.lines[-1:]).strip()) and concept.fenced is None
    return goes_on and "CONCEPT" in match["name"].upper() and forms[0] != forms[1]


def _is_vision_form(document: _Section) -> bool:
    """Whether a document may be more than a line of prose behind `Vision:`."""
    keys = {line.partition(":")[0].strip() for line in document.lines[:_FIRST]}
    return document.name == REQUIREMENTS or not keys.isdisjoint(VISION_KEYS)


def _stands_out(match: re.Match[str], document: _Section, *, marked: bool) -> bool:
    """Whether a heading inside a document is one: there, `vision:` is a key as well, and `# Vision` a comment."""
    apart = not document.lines[-1].strip()
    if "REQUIREMENTS" in match["name"].upper() and not match["rest"] and not _is_vision_form(document):
        return True
    if marked or not match["name"].isupper():
        capital = match["name"][0].isupper() and document.plain
        foreign = document.name != REQUIREMENTS or bool(match["old"])
        return apart and (marked or capital or foreign)
    return True


def _with_prose_put_back(sections: Iterator[_Section]) -> list[_Section]:
    """A VISION or REQUIREMENTS that holds no document is text of the concept before it (`VISION: be the first`)."""
    found = list(sections)
    has_requirements = any(section.name == REQUIREMENTS and not _is_prose(section) for section in found)
    kept: list[_Section] = []
    for section in found:
        replaceable = section.name == VISION or (section.name == REQUIREMENTS and has_requirements)
        if kept and kept[-1].name == CONCEPT and section.started and replaceable and _is_prose(section):
            kept[-1].add(section.heading, *section.lines[1:])
        else:
            kept.append(section)
    return kept


def _is_prose(section: _Section) -> bool:
    """Whether what stands behind the name of a document is none."""
    if section.fenced is not None:
        return False
    text = yaml_part(section.lines)[0]
    if section.name == VISION:
        return not set(VISION_KEYS) & set(read_yaml(text, unique_keys=False).value)
    return not _holds_requirements(text)


def _is_vision(text: str) -> bool:
    """Whether a vision is given away; a template to be filled in gives nothing away."""
    name = read_yaml(text).value.get("product_name", "")
    return bool(text) and isinstance(name, str) and not _PLACEHOLDER.fullmatch(name.strip())


def _text(section: _Section, notes: list[str], *, last: bool) -> str:
    beside = section.after
    if not section.is_document:
        text = "\n".join([*section.lines, *([section.fenced] if section.fenced else [])]).strip()
        if last:
            text, closing = _without_closing(text)
            beside = [*beside, *closing]
        text = without_outer_fence(_without_tags(text))
        if rules := _RULES.search(text):
            notes.append(f"the CONCEPT holds {rules[0][:_SHOWN]!r}, which may be meant for the answer")
    elif section.fenced is not None:
        text, beside = section.fenced.strip(), [*section.lines, *beside]
    else:
        lines, behind = _at_the_margin(section.lines)
        text, beside = yaml_part(lines)
        beside = [*beside, *behind]
        text = "" if text.lower() in _NOTHING else text
    if section.name != VISION and (remark := remark_in(beside)):
        notes.append(f"text beside the {section.name} was left out: {remark[:_SHOWN]!r}")
    return text


def _at_the_margin(lines: list[str]) -> tuple[list[str], list[str]]:
    """The lines of a document moved to the margin with its first one, and the prose behind it that stands there."""
    first = next((line for line in lines if line.strip()), "")
    indent = first[: len(first) - len(first.lstrip(" "))]
    end = next((n for n, line in enumerate(lines) if line.strip() and not line.startswith(indent)), len(lines))
    if any(map(_KEY_AT_MARGIN.match, lines[end:])):
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
    """The text, and the instructions about the answer that end it."""
    parts = re.split(r"(\n[ \t]*\n\s*)", text)
    end = len(parts)
    while end > 1 and is_closing(parts[end - 1]) and ABOUT_ANSWERS.search(parts[end - 1]):
        end -= 2
    return "".join(parts[:end]).strip(), parts[end:]
