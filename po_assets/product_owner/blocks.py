"""What a model wrote, before anyone reads it as YAML: reasoning, fenced blocks, and where YAML ends and prose begins.

Fences follow CommonMark with three differences, all against gluing documents together: a closing fence is indented no
more than its opening one (a fence inside a text stays text), marks and end tags may touch it, and a labelled fence
inside an open block says that the open one was never closed. Which blocks make an answer belongs to `answer`, what a
prompt holds to `prompt_parts`.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from po_assets.product_owner.contract import EXISTING_VISION, REQUIREMENTS, REVIEW, VISION

_FENCE = re.compile(r"( {0,3})(`{3,}|~{3,})(.*)", re.DOTALL)
_GLUED = re.compile(r"\S.*?(`{3,}|~{3,})[ \t]*(ya?ml[ \t]+(?:VISION|REVIEW))[ \t]*")
_LABEL = re.compile(r"(?<![A-Z])(EXISTING[_ -]?VISION|VISION|REVIEW|REQUIREMENTS|CONCEPT)(?![A-Z])", re.IGNORECASE)
_YAML_INFO = re.compile(r"ya?ml\b", re.IGNORECASE)
_CODE = frozenset(
    ("python", "py", "js", "javascript", "ts", "java", "sh", "bash", "sql", "html", "xml", "diff", "mermaid")
)
# A heading says no more than whose block follows: "## Product Vision", "**REVIEW (corrected):**", "2. VISION".
_HEADING = re.compile(
    r"(?:here is |here's )?(?:the |my )?(?:final |corrected |updated |revised )?(?:product |po |owner ){0,3}"
    r"(vision|review|requirements)(?: yaml| block| document| corrected| updated| final| v?[0-9]+){0,2}",
    re.IGNORECASE,
)
# An unlabelled block is recognised by the first key that only this document has.
_TELLING_KEY = re.compile(
    r"^[ {]{0,4}[\"']?(?:(product_name|product_summary)|(status|requirements_alignment)"
    r"|((?:non_)?functional_requirements))[\"']?[ \t]*:",
    re.MULTILINE,
)
_TOLD = (VISION, REVIEW, REQUIREMENTS)

_WORDS = (
    r"(?:think(?:ing)?|thoughts?|reason(?:ing)?|reflect(?:ions?)?|scratch_?pad|analysis|monologue"
    r"|critique|deliberation|draft|plan(?:ning)?|cot)"
)
_TAG = rf"(?:\w{{1,20}}:)?[a-z_-]{{0,20}}?{_WORDS}(?:[_-](?:content|process|trace|steps?|block|section))?"
_MARK = re.compile(
    rf"""(?P<open><{_TAG}(?:[ \t][^<>\n]{{0,200}})?>|\[(?-i:THINK(?:ING)?)\]|◁think▷
      |<\|(?:begin_of_|start_)?{_WORDS}\|>|<\|channel\|?>\s*(?:analysis|commentary|thought)\b|^Thinking\.\.\.$)
    |(?P<close></{_TAG}\s*>|<channel\|>|\[/(?-i:THINK(?:ING)?)\]|◁/think▷|<\|(?:end_of_|end_|/){_WORDS}\|>
      |(?:<\|start\|>assistant)?<\|channel\|>\s*final\b(?:<\|message\|>)?|assistantfinal
      |^\.\.\.done[ ]thinking\.$)""",
    re.IGNORECASE | re.VERBOSE | re.MULTILINE,
)
_HINTS = ("<", "◁", "THINK]", "THINKING]", "Thinking...", "assistantfinal", "done thinking.")
_KINDS = ("channel", "think", "thought", "reason", "reflect", "scratch", "analysis", "monologue")
_COMMON_WORDS = re.compile(r"</?(?:analysis|critique|deliberation|draft|plan(?:ning)?)\b", re.IGNORECASE)
"""Names of tags that a document may hold as well, such as `the <plan>basic</plan> tariff`."""
_LINE_END = re.compile(r"[^\S\n]*(?:\n|\Z)")
_TURN_MARK = r"<[|｜][\w▁]{1,30}[|｜]>|\[\|\w{1,30}\|\]|\[/INST\]|</s>|<eos>|<end_of_turn>"
"""Marks of a server or a chat template."""
_END_OF_TURN = re.compile(rf"(?:<\|\w{{1,30}}\|>assistant|<start_of_turn>model|{_TURN_MARK})\Z")
_BEHIND_FENCE = re.compile(
    rf"(?:{_TURN_MARK}|</[\w-]{{1,30}}>|\[(?:[A-Z]{{2,10}}|\^?[0-9]{{1,3}})\]|END|###|[\u200b-\u200d\u2060\ufeff])*"
)
"""What may touch a closing fence: marks, end tags, stop words (` END`), footnotes, characters that nobody sees."""

_INSTRUCTION = re.compile(
    r"(?:Answer|Respond|Reply|Return|Write|Produce|Output|Provide|Please|Follow|Use|Give|Generate|Create|Emit|Do not"
    r"|Don't|Never|Always|Make sure|Ensure|Remember|Now|Keep|Cite|Review|Think|Your (?:answer|task|output)"
    r"|The (?:answer|output))\b[ ,]"
)
_MANNER = re.compile(r"(?:Do not|Don't|Never|Always|Make sure|Ensure|Remember|Keep|Use)\b")
ABOUT_ANSWERS = re.compile(r"\b(?:YAML|VISION|REVIEW|JSON|format|fenced|blocks?)\b", re.IGNORECASE)
_KEY = re.compile(r"([^\s:#\"'][^:]*):(?:[ \t]|$)")
_ID = re.compile(r"[A-Z]{1,6}[-_ ]?[0-9]+\b")
PROMPT_WORD = re.compile(
    r"(?:rules|instructions?|guidelines|(?:output|response|answer)(?: format)?|format|task|notes?|important|remember"
    r"|reminder|hints?|tips?)\b",
    re.IGNORECASE,
)
_SURE_PROMPT_WORD = re.compile(r"instructions?:|guidelines:|(?:output|response|answer) format:")
REQUIREMENT_LINE = re.compile(r"[ \t]*- id:|(?:non_)?functional_requirements:|constraints:|(?:- )?(?:N?FR|REQ)-?[0-9]")
CUE = re.compile(
    r"(?:(?:Your|The|Final) )?(?:[Oo]utput|[Aa]nswer|[Rr]esponse|Result|Assistant|ASSISTANT|AI|A)[ \t]*:[ \t]*"
    r"|#{1,6} (?:(?:Your|The|Final) )?(?:Output|Answer|Response|Result):?[ \t]*|###"
)
"""The last line of a prompt, behind which the model writes on."""
RULE = re.compile(r"-{3,}|={3,}|\*{3,}|_{3,}|</[\w-]{1,30}>")
"""A line across the page, or the end tag of what stands around the sections (`</task>`)."""


@dataclass(frozen=True)
class Block:
    """One fenced block; `text` is None where it is never closed. Lines count from 0; `end` is the line after it."""

    info: str
    """What stands behind the opening fence."""
    text: str | None
    start: int
    end: int
    label: str
    """VISION, REVIEW, REQUIREMENTS, CONCEPT or EXISTING_VISION; empty where nothing tells."""


def lines_of(text: str) -> list[str]:
    """The lines of a text, with Windows line ends read; other separators (U+2028, form feeds) stay in their line."""
    return text.replace("\r\n", "\n").split("\n")


def fenced_blocks(lines: Sequence[str], *, most_indent: int = 3, glued: bool = False) -> list[Block]:
    """The fenced blocks in their order.

    Args:
        lines: the text's lines.
        most_indent: a fence that is indented more opens none.
        glued: a labelled fence at the end of a line of text opens a block, too (```Sure: ```yaml VISION```).
    """
    blocks: list[Block] = []
    opened: tuple[int, str, str, int] | None = None  # indent, fence, info, line
    for number, line in enumerate(lines):
        indent, fence, info = _fence(line)
        # Inside a block only behind what may be its closing fence: other lines are its text.
        may_be_glued = glued and not fence and ("```" in line or "~~~" in line)
        if may_be_glued and (opened is None or line[:1] in "`~") and (match := _GLUED.fullmatch(line)):
            indent, fence, info = 0, match[1], match[2]
        if opened is None:
            if fence and indent <= most_indent:
                opened = (indent, fence, info, number)
        elif fence and indent <= opened[0]:
            same = fence[0] == opened[1][0] and len(fence) >= len(opened[1])
            if same and _BEHIND_FENCE.fullmatch(info) and not label_in(info.split("<")[0]):
                blocks.append(_block(lines, blocks, opened, number, closed=True))
                opened = None
            elif label_in(info) or (
                _YAML_INFO.match(info) and (same or not (label_in(opened[2]) or _YAML_INFO.match(opened[2])))
            ):
                blocks.append(_block(lines, blocks, opened, number, closed=False))
                opened = (indent, fence, info, number)
    if opened is not None:
        blocks.append(_block(lines, blocks, opened, len(lines), closed=False))
    return blocks


def label_in(info: str) -> str:
    """The one label in a fence's info string (`yaml # VISION`, `yaml PRODUCT_OWNER_REVIEW`), else nothing."""
    if info.split(" ", 1)[0].lower() in _CODE:
        return ""
    found = {match.upper() for match in _LABEL.findall(info)}
    label = found.pop() if len(found) == 1 else ""
    return EXISTING_VISION if label.startswith("EXISTING") else label


def without_outer_fence(text: str) -> str:
    """The text without surrounding white space and without a fence around all of it; fences inside stay."""
    text = text.strip()
    while text.startswith(("```", "~~~")):
        lines = lines_of(text)
        _, opening, _ = _fence(lines[0])
        marks = [(number, *_fence(line)) for number, line in enumerate(lines)][1:]
        closing = [
            n for n, indent, fence, info in marks if opening and fence.startswith(opening) and not (indent or info)
        ]
        if closing != [len(lines) - 1]:
            break
        text = "\n".join(lines[1:-1]).strip()
    return text


def strip_reasoning(text: str) -> tuple[str, bool]:
    """The text without what a model thought before it answered, and whether there was any.

    Thoughts stand between two marks (`<think>`, `[THINK]`, `<|channel|>analysis` and their kin), before a lone closing
    mark, or after an opening mark that is never closed.
    """
    # Asked first, since nearly all texts hold none and the search for all marks is slow.
    marks = list(_MARK.finditer(text)) if any(hint in text for hint in _HINTS) else []
    if not marks:
        return without_end_of_turn(text), False
    kept, start = list[str](), 0
    for mark, closing in zip(marks, _closing(marks), strict=True):
        if mark.start() < start:  # within a thought
            continue
        if mark.lastgroup == "close":
            if mark[0].lower() != "assistantfinal" or text.lstrip().startswith("analysis"):
                kept, start = [], mark.end()
        elif closing and _is_within_a_line(text, "".join([*kept[-1:], text[start : mark.start()]]), mark, closing):
            kept.append(text[start : closing.end()])
            start = closing.end()
        elif closing or _begins_or_ends_a_line(text, start, mark):
            kept.append(text[start : mark.start()])
            start = closing.end() if closing else len(text)
    bare = "".join([*kept, text[start:]])
    return without_end_of_turn(bare), len(bare.strip()) < len(text.strip())


def _fence(line: str) -> tuple[int, str, str]:
    """Indentation, fence and info string of a fence line; an empty fence for any other line."""
    match = _FENCE.fullmatch(line) if line.lstrip(" ")[:1] in {"`", "~"} else None
    if match is None or (match[2][0] == "`" and "`" in match[3]):
        return 0, "", ""
    return len(match[1]), match[2], match[3].strip()


def _block(
    lines: Sequence[str], before: Sequence[Block], opened: tuple[int, str, str, int], end: int, *, closed: bool
) -> Block:
    indent, _, info, start = opened
    inside = lines[start + 1 : end]
    # A fence within a list moves its text, too; where only the fence is indented, the text stays as it is.
    if indent and all(line.startswith(" " * indent) for line in inside if line.strip()):
        inside = [line[min(indent, len(line) - len(line.lstrip(" "))) :] for line in inside]
    inner = "\n".join(inside)
    label = label_in(info)
    if not label and (not info or _YAML_INFO.match(info) or info.split()[0].lower() in {"json", "text", "txt"}):
        told = _TELLING_KEY.search(inner)
        above = lines[before[-1].end if before else 0 : start]
        label = _TOLD[(told.lastindex or 1) - 1] if told else _told_by_heading(above)
    return Block(info, inner if closed else None, start, end + 1 if closed else end, label)


def _told_by_heading(lines: Sequence[str]) -> str:
    """The label in the last line before a block, where the line is a heading."""
    line = next((line for line in reversed(lines) if line.strip()), "")
    match = _HEADING.fullmatch(" ".join(re.sub(r"[#*_:.()\d\[\]-]+", " ", line[:100]).split()))
    return match[1].upper() if match else ""


def _closing(marks: Sequence[re.Match[str]]) -> list[re.Match[str] | None]:
    """For each mark, the one that closes it: the next of its kind, else the next."""
    found, nearest = list[re.Match[str] | None](), dict[str, re.Match[str]]()
    for mark in reversed(marks):
        kind = next((kind for kind in _KINDS if kind in mark[0].lower()), "")
        found.append(nearest.get(kind) or nearest.get(""))
        if mark.lastgroup == "close":
            nearest[kind] = nearest[""] = mark
    return found[::-1]


def _is_within_a_line(text: str, before: str, mark: re.Match[str], closing: re.Match[str]) -> bool:
    """A tag of a common word with its end tag in the middle of one line is a word of the text."""
    if not _COMMON_WORDS.match(mark[0]) or "\n" in text[mark.start() : closing.end()]:
        return False
    return bool(before.rpartition("\n")[2].strip()) and not _LINE_END.match(text, closing.end())


def _begins_or_ends_a_line(text: str, start: int, mark: re.Match[str]) -> bool:
    """A mark in the middle of a line that is never closed is only spoken of."""
    return (
        not text[start : mark.start()].rpartition("\n")[2].strip() or not text[mark.end() :].partition("\n")[0].strip()
    )


def without_end_of_turn(text: str) -> str:
    """The text without the marks of a chat template behind it, behind which the last fence would close nothing."""
    end, found = len(text.rstrip()), False
    while match := _END_OF_TURN.search(text[max(0, end - 40) : end]):
        end, found = end - len(match[0]), True
        while end and text[end - 1].isspace():
            end -= 1
    return text[:end] if found else text


def yaml_part(lines: list[str]) -> tuple[str, list[str]]:
    """The YAML that a bare text begins with, and the lines behind it that are no part of it.

    A line with a requirement behind it never ends the document, so that no requirement is lost.
    """
    last = max((number for number, line in enumerate(lines) if REQUIREMENT_LINE.match(line)), default=-1)
    has_key, plain, mapped_items = False, True, set[bool]()
    end = max((number for number, line in enumerate(lines) if line.strip()), default=-1)
    for number, line in enumerate(lines):
        if number > last and has_key and line[:1].strip():
            apart = not lines[number - 1].strip()
            cue = number == end and CUE.fullmatch(line)
            if cue or _ends_document(line, apart=apart, plain=plain, mapped=mapped_items == {True}):
                return "\n".join(lines[:number]).strip(), lines[number:]
        if line.startswith("- "):
            mapped_items.add(bool(_KEY.match(line[2:])))
        elif _KEY.match(line):
            has_key, plain = True, plain and is_plain_key(line)
    return "\n".join(lines).strip(), []


def _ends_document(line: str, *, apart: bool, plain: bool, mapped: bool) -> bool:
    """Whether a line at the left margin is text of the prompt instead of YAML.

    Args:
        line: the line.
        apart: it stands behind a blank line.
        plain: all keys before it begin with a small letter, or are ids.
        mapped: all list items before it begin with a key, and there are some.
    """
    key = _KEY.match(line)
    if RULE.fullmatch(line.strip()) or is_closing(line):
        return True
    if not apart:
        return False
    if line.startswith("- "):
        return mapped and not _KEY.match(line[2:])
    if key is None:
        heading = re.match(r"(#{1,6}) +(?=\w)", line)
        if heading:  # one `#` may as well begin a comment
            return len(heading[1]) > 1 or bool(PROMPT_WORD.match(line, heading.end()))
        return line[0] not in "#\"'{[]}?"
    if not key[1][0].isupper():
        return bool(_SURE_PROMPT_WORD.match(line))
    return not _ID.match(line) and (plain or bool(PROMPT_WORD.match(line)))


def is_plain_key(line: str) -> bool:
    """False for a key at the left margin that begins with a capital letter and is no id."""
    key = _KEY.match(line)
    return not (key and key[1][0].isupper()) or bool(_ID.match(line))


def is_closing(text: str) -> bool:
    """Whether a line or paragraph tells what to do with the answer, as prompts do at their end."""
    return bool(_INSTRUCTION.match(text)) and (_KEY.match(text) is None or bool(ABOUT_ANSWERS.search(text)))


def remark_in(lines: Sequence[str], usual: re.Pattern[str] | None = None) -> str:
    """The first paragraph that is no instruction about the answer's form, in one line; empty where there is none.

    `usual` is how other paragraphs begin that are not worth a word.
    """
    text = "\n".join("" if RULE.fullmatch(line.strip()) else line.rstrip() for line in lines)
    parts = (" ".join(part.split()) for part in re.split(r"\n{2,}", text))
    return next((part for part in parts if part and not _is_usual(part) and not (usual and usual.match(part))), "")


def _is_usual(paragraph: str) -> bool:
    """Whether prompts end so: what to answer. How to answer (`Never name a price`) may be seen in the answer."""
    return is_closing(paragraph) and not (_MANNER.match(paragraph) and not ABOUT_ANSWERS.search(paragraph))
