"""The form of an answer: two fenced YAML blocks, VISION and REVIEW; writing, finding and validating them.

Whether an answer is good belongs to `metric`; whether it is well-formed is said here. How fences and reasoning are
found in a text belongs to `blocks`.
"""

import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from textwrap import dedent

from po_assets.product_owner.blocks import (
    Block,
    fenced_blocks,
    lines_of,
    strip_reasoning,
    without_outer_fence,
    yaml_part,
)
from po_assets.product_owner.contract import (
    ALIGNMENT_KEYS,
    CONCEPT,
    MAX_NARRATIVE_WORDS,
    MIN_ACTIONS,
    NEEDED_VISION_KEYS,
    REVIEW,
    REVIEW_KEYS,
    REVIEW_ORDER,
    VISION,
    VISION_KEYS,
)
from po_assets.product_owner.documents import as_list, cited_ids, named, read_yaml, to_text, written_value
from po_assets.text import verb

# "Here is the vision:" is a key without a value for YAML.
_INTRODUCTION = re.compile(r"(?:Here|Sure|Certainly|Below|This|The|My)\b[^:]{0,200}[.:!]")
_SENTENCE = re.compile(r"[A-Z\u00a1\u00bf-\u00de][^ :\n]*[ ][^:\n]{0,200}[.:!]")
_SMALL_KEY = re.compile(r"[a-z_]+:(?:[ \t]|\Z)")
_KEY_IN_INFO = re.compile(r"(?:ya?ml[ \t]+)?[a-z_]+:[ \t]+\S")
_QUESTION = re.compile(r"[^\w\n]{0,8}(?:ya?ml )?(?:CONCEPT|Concept)[^\w\n:]{0,4}(?::|\Z)")
_NO_WORDS = re.compile(r"(?:</?\w[\w-]{0,30}>|\W)*")
_BLANK_LINE = re.compile(r"\n[ \t]*\n(?=\S)")
_ANSWER_KEY = re.compile(rf"(?:{'|'.join((*VISION_KEYS, *REVIEW_KEYS))}):(?:[ \t]|\Z)")
_DEEP_FENCE = re.compile(r"^(?: {4,}| *\t[ \t]*)(`{3,}|~{3,})[ \t]*\w", re.MULTILINE)
_ODD_LINE_END = re.compile(r"[\x0b\x0c\x85\u2028\u2029]")
_LABEL_LINE = re.compile(r"[#*\s]*(?:(?:PRODUCT|OWNER|PO)[ _]){0,2}(?:VISION|REVIEW)[*\s]*(?::[*\s]*)?", re.IGNORECASE)
_END_OF_DOCUMENT = re.compile(r"(?:\n(?:---|\.\.\.)[ \t]*)+\s*\Z")
NOTE_OF_REASONING = "reasoning before the answer was left out"


@dataclass(frozen=True)
class ParsedAnswer:
    """The two YAML texts of an answer, None where a block is missing, and in words what is missing or left out."""

    vision_yaml: str | None
    review_yaml: str | None
    missing: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    """What was left out: reasoning, an earlier answer, blocks that are neither."""


@dataclass(frozen=True)
class AnswerVerdict:
    """Whether an answer is well-formed, and if not the first reason why; true when it is."""

    ok: bool
    reason: str = ""

    def __bool__(self) -> bool:
        return self.ok


def format_answer(vision_yaml: str, review_yaml: str) -> str:
    """The answer that training teaches and `parse_answer` reads."""
    vision, review = (without_outer_fence(text).strip() for text in (vision_yaml, review_yaml))
    return f"```yaml {VISION}\n{vision}\n```\n\n```yaml {REVIEW}\n{review}\n```"


def in_order(answer: str) -> str:
    """The answer with the keys of its REVIEW in the order of the contract, its texts as they are."""
    parsed = parse_answer(answer)
    review = parsed.review_yaml
    if not (parsed.vision_yaml and review):
        return answer
    blocks: dict[str, list[str]] = {}
    for line in review.splitlines():
        if key := re.match(r"(\w+):", line):
            blocks[key[1]] = []
        if not blocks:
            return answer
        next(reversed(blocks.values())).append(line)
    if set(blocks) != set(REVIEW_ORDER):
        return answer
    return format_answer(parsed.vision_yaml, "\n".join("\n".join(blocks[key]) for key in REVIEW_ORDER))


def parse_answer(text: str) -> ParsedAnswer:
    """Find the VISION and REVIEW blocks of an answer; a block that is never closed counts as missing.

    Reasoning is no part of the answer. Of several answers the last complete one counts; a block that comes again alone
    corrects the one before it.
    """
    bare, reasoned = strip_reasoning(text)
    lines = lines_of(bare)
    blocks = fenced_blocks(lines, glued=True)
    answers = _answers(blocks)
    chosen = next((answer for answer in reversed(answers) if _is_complete(answer)), answers[-1] if answers else {})
    notes = [NOTE_OF_REASONING] if reasoned else []
    if any(_texts(answer) != _texts(chosen) for answer in answers):
        notes.append(
            f"it holds {len(answers)} answers that differ; the last complete one was taken"
            if _is_complete(chosen)
            else f"it holds {len(answers)} answers, none of them complete"
        )
    missing = tuple(
        f"the {label} block is {'not closed' if label in chosen else 'missing'}"
        for label in (VISION, REVIEW)
        if label not in chosen or chosen[label].text is None
    )
    fenced = {number for block in blocks if block.label for number in range(block.start, block.end)}
    unfenced = [number for number, line in enumerate(lines) if number not in fenced and _ANSWER_KEY.match(line)]
    if missing:
        return ParsedAnswer(*_texts(chosen), missing, (*notes, *_not_read(bare, blocks, unfenced)))
    if (
        fault := _another_text(lines, unfenced, chosen)
        or _another_question(lines, blocks, answers)
        or _part(chosen, answers)
    ):
        return ParsedAnswer(None, None, (fault,), tuple(notes))
    end = max(block.end for block in chosen.values())
    after = " ".join(lines[number].strip() for number in range(end, len(lines)) if number not in fenced).strip()
    if unfenced or not _NO_WORDS.fullmatch(after):
        said = lines[unfenced[-1]] if unfenced else after
        notes.append(f"text outside the fences was left out: {said[:60]!r}")
    return ParsedAnswer(*_texts(chosen), missing, tuple(notes))


def column_document(text: str) -> tuple[str, tuple[str, ...]]:
    """The YAML of a column that holds one document, bare or fenced, and what was left out.

    Raises:
        ValueError: a fence is not closed, or there is more than one document.
    """
    bare, reasoned = strip_reasoning(text)
    notes = [NOTE_OF_REASONING] if reasoned else []
    if bare.lstrip("\r\n")[:1] in {" ", "\t"}:  # all lines move to the left margin with the first, as far as they can
        bare = dedent(bare.replace("\r\n", "\n"))
    whole = _without_label(bare.replace("\r\n", "\n").strip())
    # Prose begins with no small letter, or stands at the margin behind a blank line. (One pattern for both is slow.)
    may_be_prose = not "a" <= whole[:1] <= "z" or _BLANK_LINE.search(whole)
    if "```" not in whole and "~~~" not in whole and not may_be_prose:
        return whole.lstrip("]").strip(), tuple(notes)
    lines = lines_of(whole)
    blocks = fenced_blocks(lines, most_indent=0)
    if len(blocks) == 1 and blocks[0].start > 0 and not blocks[0].info and not any(lines[blocks[0].start + 1 :]):
        blocks, lines = [], lines[: blocks[0].start]
        notes.append("a closing fence without an opening one was left out")
    if blocks:
        document, left_out = _fenced_document(lines, blocks)
    else:
        lines, beside = _bare_document(lines)
        keys = sum(bool(_ANSWER_KEY.match(line)) for line in beside)
        said = "\n".join(line for line in beside if not _SENTENCE.fullmatch(line))
        if keys > 1 or len(read_yaml(said, unique_keys=False).value) > 1:
            raise ValueError("it holds two documents; leave one of them")
        document, left_out = "\n".join(lines), {"beside the": beside}
    for place, around in left_out.items():
        if left := " ".join(" ".join(around).split()):
            notes.append(f"text {place} document was left out: {left[:60]!r}")
    return document.lstrip("]").strip(), tuple(notes)


def validate_answer(vision_yaml: str | None, review_yaml: str | None) -> AnswerVerdict:
    """Whether the two documents form an answer that can be used; the first reason why not, in the validator's order."""
    reason = next(_faults({VISION: vision_yaml, REVIEW: review_yaml}), "")
    return AnswerVerdict(not reason, reason)


def _answers(blocks: Sequence[Block]) -> list[dict[str, Block]]:
    """The answers in their order: a label that comes again begins the next one."""
    answers: list[dict[str, Block]] = [{}]
    for block in blocks:
        if block.label in {VISION, REVIEW}:
            if block.label in answers[-1]:
                answers.append({})
            answers[-1][block.label] = block
    if len(answers) > 1 and len(answers[-1]) == 1:
        # A VISION or REVIEW alone corrects that of the answer before.
        answers[-1] = answers[-2] | answers[-1]
    return answers


def _another_text(lines: Sequence[str], unfenced: Sequence[int], chosen: Mapping[str, Block]) -> str:
    """What is wrong where a document stands behind the fences, or only the key that a fenced one lacks."""
    behind = [number for number in unfenced if number > min(block.start for block in chosen.values())]
    if not behind:
        return ""
    key = lines[behind[0]].partition(":")[0]
    block = chosen[VISION if key in VISION_KEYS else REVIEW]
    if len(behind) == 1 and key in read_yaml(_text(block), unique_keys=False).value:
        return ""
    place = f"{lines[behind[0]][:40]!r} in line {behind[0] + 1}"
    return f"a document goes on, or is written anew, outside the fences ({place}); put it into a fence of its own"


def _another_question(lines: Sequence[str], blocks: Sequence[Block], answers: Sequence[Mapping[str, Block]]) -> str:
    """What is wrong where a question stands between answers: a model that did not stop made it up, and its answer."""
    if len(answers) < 2:
        return ""
    first, last = min(block.start for block in answers[0].values()), max(block.start for block in answers[-1].values())
    inside = {number for block in blocks for number in range(block.start, block.end) if block.label != CONCEPT}
    asked = (number for number in range(first, last) if number not in inside and _QUESTION.match(lines[number]))
    fault = "another question begins in line {}; leave the answer to the one that was asked"
    return next((fault.format(number + 1) for number in asked), "")


def _part(chosen: Mapping[str, Block], answers: Sequence[Mapping[str, Block]]) -> str:
    """Why a block does not take the place of one before: it holds less than half of its keys. Else nothing."""
    known = {VISION: VISION_KEYS, REVIEW: REVIEW_KEYS}
    for label, block in chosen.items() if len(answers) > 1 else ():
        longest = max((_text(answer[label]) or "" for answer in answers if label in answer), key=len)
        readings = [read_yaml(text, unique_keys=False) for text in (_text(block), longest)]
        keys, most = (len(set(known[label]) & set(reading.value)) for reading in readings)
        if 2 * keys < most and not readings[0].error:
            return (
                f"the {label} block in line {block.start + 1} holds only a part of one; leave one whole {label} block"
            )
    return ""


def _not_read(text: str, blocks: Sequence[Block], unfenced: Sequence[int]) -> list[str]:
    """What stands in an incomplete answer and was not read, with the way out."""
    found: list[str] = []
    if unread := [block for block in blocks if not block.label]:
        shown = ", ".join(f"{block.info[:40]!r} in line {block.start + 1}" for block in unread[:5])
        found.append(f"fences without a label that is read: {shown}")
    if unfenced:
        found.append(
            f"line {unfenced[0] + 1} begins a document without a fence; write ```yaml VISION or ```yaml REVIEW above"
        )
    for block in blocks:
        keys = {line.partition(":")[0] for line in (block.text or "").split("\n")}
        names = {key.lower().removeprefix("product_").removeprefix("owner_") for key in keys}
        if {"vision", "review"} <= names or not (keys.isdisjoint(VISION_KEYS) or keys.isdisjoint(REVIEW_KEYS)):
            found.append(f"the block in line {block.start + 1} holds both documents; put each into a fence of its own")
    if deep := _DEEP_FENCE.search(text):
        line = text.count("\n", 0, deep.start(1)) + 1
        found.append(f"the fence in line {line} is indented by four spaces or more, which makes it text")
    if separator := _ODD_LINE_END.search(text):
        found.append(f"it holds {named(separator[0])} where a line feed ends a line")
    if text.lstrip().startswith("{"):
        found.append("it is JSON; write both documents as YAML, each in a fence")
    elif "\n" not in text and "\\n" in text:
        found.append(r"its line ends are written as \n (two characters): it was escaped once too often")
    return found


def _without_label(text: str) -> str:
    """The document without a first line that is only its label (`VISION:`), which YAML would take for a key.

    It may stand under the label as under a key, indented; and marks of its end are taken off.
    """
    if text.rstrip()[-3:] in {"---", "..."}:
        text = _END_OF_DOCUMENT.sub("", text)
    first, _, rest = text.partition("\n")
    rest = rest.lstrip("\n")
    if not _LABEL_LINE.fullmatch(first):
        return text
    document = dedent(rest) if rest[:1] == " " else rest
    return document if document[:1].isalpha() else text


def _fenced_document(lines: list[str], blocks: Sequence[Block]) -> tuple[str, dict[str, list[str]]]:
    """The document of the one block, and the lines before and behind it."""
    block = blocks[0]
    if len(blocks) > 1:
        raise ValueError(f"it holds {len(blocks)} fenced blocks; leave the one that is the document")
    if block.text is None:
        raise ValueError(f"the code fence in line {block.start + 1} is not closed; close it, or take it off")
    if _KEY_IN_INFO.match(block.info):
        raise ValueError(f"text stands behind the code fence in line {block.start + 1}; put it on a line of its own")
    left_out = {"before the fenced": lines[: block.start], "after the fenced": lines[block.end :]}
    for place, around in left_out.items():
        if len(read_yaml("\n".join(around)).value) > 1:
            raise ValueError(f"it holds a document {place} one; leave one of them")
    return without_outer_fence(block.text), left_out


def _bare_document(lines: list[str]) -> tuple[list[str], list[str]]:
    """The lines of a bare document, and those of the sentences around it, which would be keys or errors in it."""
    beside: list[str] = []
    follows = next((line for line in lines[1:] if line.strip()), "")
    sentence = _SENTENCE.fullmatch(lines[0]) and _SMALL_KEY.match(follows)
    if sentence or (len(lines) > 1 and _INTRODUCTION.fullmatch(lines[0])):
        beside, lines = lines[:1], lines[1:]
    if any(line[:1].strip() and not before.strip() for before, line in itertools.pairwise(lines)):
        text, rest = yaml_part(lines)
        lines, beside = text.split("\n"), [*beside, *rest]
    return lines, beside


def _is_complete(answer: dict[str, Block]) -> bool:
    return None not in _texts(answer)


def _texts(answer: dict[str, Block]) -> tuple[str | None, str | None]:
    vision, review = (_text(answer[label]) if label in answer else None for label in (VISION, REVIEW))
    return vision, review


def _text(block: Block) -> str | None:
    """The document in a block, without its label and without a second fence around it."""
    text = block.text
    if text and text.lstrip().startswith(("```", "~~~")):
        text = without_outer_fence(text)
    return text and _without_label(text)


def _faults(texts: Mapping[str, str | None]) -> Iterator[str]:
    """What keeps the documents from being an answer, in the validator's order; each supposes that none came before."""
    if absent := [name for name, text in texts.items() if text is None]:
        yield f"the {' and the '.join(absent)} block {verb(len(absent), 'is', 'are')} missing"
    readings = {name: read_yaml(text) for name, text in texts.items()}
    for name, reading in readings.items():
        if reading.error:
            yield f"the {name} does not parse as YAML: {reading.error}"
    for name, keys in ((VISION, NEEDED_VISION_KEYS), (REVIEW, REVIEW_KEYS)):
        if absent := [key for key in keys if key not in readings[name].value]:
            yield f"the {name} has no {' and no '.join(absent)}"
    review = readings[REVIEW].value
    alignment, actions, narrative = (
        review[key] for key in ("requirements_alignment", "recommended_actions", "narrative")
    )
    if not isinstance(alignment, dict):
        said = written_value(texts[REVIEW] or "", "requirements_alignment") or to_text(alignment)
        yield f"requirements_alignment must be a mapping, got {said[:60]!r}"
    if wrong := [key for key in ALIGNMENT_KEYS if not isinstance(alignment.get(key), list)]:
        yield f"requirements_alignment has no list {' and no list '.join(wrong)}"
    if not any(cited_ids(to_text(item)) for key in ALIGNMENT_KEYS for item in alignment[key]):
        yield "no item of requirements_alignment names a requirement id (such as FR001)"
    if len(as_list(actions)) < MIN_ACTIONS:
        yield f"recommended_actions holds {len(as_list(actions))}, at least {MIN_ACTIONS} are needed"
    if not isinstance(narrative, str):
        said = written_value(texts[REVIEW] or "", "narrative") or to_text(narrative)
        yield f"narrative must be text, got {said[:60]!r}"
    if (words := len(narrative.split())) > MAX_NARRATIVE_WORDS:
        yield f"narrative has {words} words, at most {MAX_NARRATIVE_WORDS} are allowed"
