"""From the lines of a prompt to its sections: where each begins and ends, whatever form its name has.

What the sections hold, and which of them are the task's, belongs to `prompt_parts`.
"""

import re
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from po_assets.product_owner.blocks import (
    PROMPT_WORD,
    REQUIREMENT_LINE,
    Block,
    fenced_blocks,
    is_closing,
    is_plain_key,
    label_in,
    remark_in,
)
from po_assets.product_owner.contract import (
    CONCEPT,
    EXISTING_VISION,
    REQUIREMENT_SECTIONS,
    REQUIREMENTS,
    REVIEW,
    VISION,
    VISION_KEYS,
)
from po_assets.product_owner.documents import read_yaml, to_text

_NAME = (
    r"(?P<name>(?:PRODUCT[ _-])?(?:CONCEPT"
    r"|(?:(?:(?P<old>EXISTING|CURRENT|PREVIOUS|PRIOR|OLD)[ _-](?:PRODUCT[ _-])?)?VISION|REQUIREMENTS)"
    r"(?:[ _-](?:DOCUMENT|YAML))?))"
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
    r"\W{0,6}(?:(?:here|below|this|the following|consider|see)(?:'s| is| are)? )?"
    r"(?:(?:an?|one|another|for|some|this) )?(?:example|sample|instance|ejemplo|beispiel|exemple|esempio)\b.{0,60}",
    re.IGNORECASE,
)
_ANNOUNCES = re.compile(r"#{1,6}[ \t].{1,60}|(\*\*|__).{1,60}\1:?|\S.{0,40}[:\uff1a]")
"""A line that only says what follows it, in any words (`Specification:`)."""
OLD = re.compile(r"existing|current|previous|prior|old|former", re.IGNORECASE)
"""Words of a heading that calls a vision the one that is there already."""
_USUAL = re.compile(r"(?:You are|You're|Act as)\b|[^:]{1,40}:\Z")
"""How prompts begin before their first section: with the role, or a line that announces the sections."""
_DECORATED = re.compile(rf"[ \t]{{0,3}}[=*~\[-]{{1,20}} ?{_NAME}:? ?[=*~\]-]{{1,20}}:?", re.IGNORECASE)
_ANNOUNCES_BY_NAME = {
    word: re.compile(
        rf"(?!#).{{0,60}}\b{word}\b.{{0,40}}[:\uff1a]"
        r"|(?:Here|Below|These|The following) (?:is|are) (?:all )?(?:the|its|our|their) "
        rf"(?:\w+ )?{word}\b[^:.]{{0,40}}\.",
        re.IGNORECASE,
    )
    for word in ("requirements", "vision", "concept")
}
"""One that names the section that follows (`These are its requirements.`), whatever begins it."""
_BLOCK_SCALAR = frozenset(("|", "|-", "|+", ">", ">-"))
_FIRST = 40
"""A vision has a key of its own within so many lines, and no prose above a document is longer."""
_FIRST_KEY = re.compile(r"[a-z_]+:[ \t]*")
KEY_AT_MARGIN = re.compile(rf"[a-z_]+:|- |{REQUIREMENT_LINE.pattern}")
_VERDICT = re.compile(r"[a-z_]+", re.IGNORECASE)
SHOWN = 60
"""Characters of a text that a note quotes."""


@dataclass
class Section:
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
        """Whether it is YAML, and no text."""
        return self.name != CONCEPT

    @property
    def is_bare(self) -> bool:
        """Whether it is YAML that stands in no fence, as far as is known."""
        return self.is_document and self.fenced is None

    @property
    def is_open(self) -> bool:
        """Whether a line of YAML may follow."""
        return self.is_bare and self.started


def announcement(section: Section, *patterns: re.Pattern[str]) -> list[str]:
    """The last line of a text where it only announces what follows, which is then taken off; else nothing."""
    last = next((number for number in reversed(range(len(section.lines))) if section.lines[number].strip()), 0)
    before, line = section.lines[:last], section.lines[last:]
    announces = any(pattern.fullmatch(line[0].strip()) for pattern in patterns or (_ANNOUNCES,) if line)
    if not announces or not "".join(before).strip():
        return []
    section.lines = before
    return line


def read_sections(lines: Sequence[str], notes: list[str]) -> Iterator[Section]:
    """The sections in their order; a fenced block with a label is one of its own."""
    blocks = {block.start: block for block in fenced_blocks(lines)}
    current: Section | None = None
    outside = Section("", "")
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
        inside = inside or _is_first_key(lines[number : end + 1], current)
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
        notes.append(f"text outside the sections was left out: {remark[:SHOWN]!r}")


def _hand_on(section: Section, begun: Section, *, by_block: bool) -> None:
    """Give the next section what is its own: the line that announces its block, the tag whose name it says again."""
    prose = section.name == CONCEPT or (section.is_document and not _is_vision_form(section))
    if prose and section.fenced is None:
        named = _ANNOUNCES_BY_NAME[begun.name.lower().removeprefix("existing_")]
        begun.after += announcement(section, named, *([_ANNOUNCES] if by_block else []))
    if section.name == begun.name and not section.started:
        begun.tag = begun.tag or section.tag


def _closing_line(section: Section, lines: Sequence[str], start: int, ends: dict[str, list[int]]) -> int:
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


def _is_deeper(line: str, document: Section) -> bool:
    """Whether a line is indented more than the keys that are being read, and so belongs to one of their texts."""
    first = next((one for one in document.lines if one.strip()), line)
    return ":" in first and len(line) - len(line.lstrip(" ")) > len(first) - len(first.lstrip(" "))


def _is_first_key(lines: Sequence[str], current: Section | None) -> bool:
    """Whether a line is the key above all of a document (`requirements:`), and not a name of a section."""
    if current is None or current.name not in {REQUIREMENTS, EXISTING_VISION}:
        return False
    begins = current.fenced is None and not current.started
    return begins and len(lines) > 1 and bool(_FIRST_KEY.fullmatch(lines[0])) and lines[1].startswith((" ", "- "))


def _begun_by_block(block: Block, current: Section | None, notes: list[str]) -> Section | None:
    """The section that a block is or belongs to, with the block's text; None for a block that is only text."""
    label = label_in(block.info)
    if current is not None and current.name == REQUIREMENTS and _goes_on_in(block, current):
        current.fenced = f"{(current.fenced or '').rstrip()}\n{block.text}"
        return current
    bare = None if label or current is None or not current.is_bare else current
    if bare is not None and (not bare.started or _only_announces(bare, block)):
        section = bare
    else:
        label = label or block.label
        if not label or label == REVIEW:
            return None
        section = Section(label, "")
    if block.text is None:
        notes.append(f"the fence of the {section.name} in line {block.start + 1} is not closed")
    section.fenced, section.cut = block.text or "", block.text is None
    return section


def _goes_on_in(block: Block, document: Section) -> bool:
    """Whether a block holds more sections of the REQUIREMENTS whose first ones stand in a block before it."""
    if not document.fenced or not block.text or block.label not in {"", REQUIREMENTS} or block.info.startswith("json"):
        return False
    if _EXAMPLE.fullmatch(next((line for line in reversed(document.after) if line.strip()), "")):
        return False
    before, more = (set(read_yaml(text, unique_keys=False).value) for text in (document.fenced, block.text))
    return bool(before) and not before & more and not more.isdisjoint(REQUIREMENT_SECTIONS)


def _only_announces(document: Section, block: Block) -> bool:
    """Whether nothing but prose stands between a document's name, alone on its line, and the block that it is in."""
    if document.lines[0].strip() or len(document.lines) > _FIRST:
        return False
    prose = [line.strip() for line in document.lines if line.strip()]
    if any(map(_is_no_lead, prose)):
        return False
    if document.name == REQUIREMENTS and not block.label:
        return any(map(REQUIREMENT_LINE.match, (block.text or "").split("\n")))
    # Behind more than a line, the vision is the prose, and the block a form to be filled in.
    old = (block.label, document.name, len(prose)) == (VISION, EXISTING_VISION, 1)
    return block.label == document.name or old


def _is_no_lead(line: str) -> bool:
    """Whether a line is no sentence that leads to a document, but a key, an instruction, an example's, or *none*."""
    patterns = (KEY_AT_MARGIN, PROMPT_WORD, _EXAMPLE)
    return " " not in line or is_closing(line) or any(pattern.match(line) for pattern in patterns)


def _takes_end_off(section: Section) -> bool:
    """Whether the last line ends the section with its tag, which is then taken off."""
    lines = section.lines if section.fenced is None else section.after
    if not (lines and lines[-1].rstrip().lower().endswith(section.tag)):
        return False
    lines[-1] = lines[-1].rstrip()[: -len(section.tag)]
    return True


def _heading(line: str, current: Section | None) -> Section | None:
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
    if kind == VISION and OLD.search(line.removesuffix(rest)):
        kind = EXISTING_VISION
    section = Section(kind, line, tag=tag)
    section.add("" if rest in _BLOCK_SCALAR else rest)
    return section


def _goes_on(match: re.Match[str], concept: Section) -> bool:
    """Whether `Concept: proven` below a line of a concept, named in another form, is its text."""
    first = _HEADING.fullmatch(concept.heading)
    forms = [one and (one["name"], bool(one["mark"].strip())) for one in (match, first)]
    goes_on = bool("".join(concept.lines[-1:]).strip()) and concept.fenced is None
    return goes_on and "CONCEPT" in match["name"].upper() and forms[0] != forms[1]


def _is_vision_form(document: Section) -> bool:
    """Whether a document may be more than a line of prose behind `Vision:`."""
    keys = {line.partition(":")[0].strip() for line in document.lines[:_FIRST]}
    return document.name == REQUIREMENTS or not keys.isdisjoint(VISION_KEYS)


def _style(heading: re.Match[str]) -> tuple[str, bool, bool]:
    """How a heading is marked, whatever its number, and whether it is in capitals and has a colon."""
    return re.sub(r"[0-9.)\s]", "", heading["mark"]), heading["name"].isupper(), bool(heading["colon"])


def _stands_out(match: re.Match[str], document: Section, *, marked: bool) -> bool:
    """Whether a heading inside a document is one: there, `vision:` is a key as well, and `# Vision` a comment.

    Another section's name that is marked just as the document's own is a heading; `# Concept` in REQUIREMENTS is none.
    """
    apart = not document.lines[-1].strip()
    other = document.name.removeprefix("EXISTING_") not in match["name"].upper()
    foreign = document.name != REQUIREMENTS or bool(match["old"])
    sure = foreign or match["name"].isupper() or match["mark"].strip() != "#"
    own = _HEADING.fullmatch(document.heading) if marked and other and sure else None
    if own is not None and _style(own) == _style(match):
        return True
    if "REQUIREMENTS" in match["name"].upper() and not match["rest"] and not _is_vision_form(document):
        return True
    if marked or not match["name"].isupper():
        capital = match["name"][0].isupper() and document.plain
        return apart and (marked or capital or foreign)
    return True
