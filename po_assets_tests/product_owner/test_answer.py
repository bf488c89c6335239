"""What is read as the answer, in a model's output and in a column; and the validator's order."""

import re
import time
from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from po_assets.product_owner import ParsedAnswer, format_answer, parse_answer, validate_answer
from po_assets.product_owner.answer import column_document
from po_assets.product_owner.blocks import strip_reasoning, without_outer_fence
from po_assets_tests.product_owner.documents_text import REVIEW, VISION

ANSWER = format_answer(VISION, REVIEW)
DRAFT = format_answer(VISION.replace("Route Planner", "DRAFT"), REVIEW.replace("needs_adjustment", "aligned"))
FENCED = "Example:\n  ```yaml\n  route: 7\n  ```\n  ~~~\n  End."
WITH_FENCE = VISION.replace("non_goals:", f"notes: |\n  {FENCED}\nnon_goals:")


def blocks(vision: str = "a: 1", review: str = "b: 2", fence: str = "```") -> str:
    return f"{fence}yaml VISION\n{vision}\n{fence}\n\n{fence}yaml REVIEW\n{review}\n{fence}"


@pytest.mark.parametrize("vision", [VISION, WITH_FENCE, VISION.replace("- Drivers", "- Writes ```yaml VISION")])
def test_what_is_formatted_is_parsed_again(vision: str) -> None:
    """The answer that training teaches is the answer that evaluation reads; fences inside a text stay in it."""
    parsed = parse_answer(format_answer(f"```yaml\n{vision}\n```", REVIEW))
    assert parsed == ParsedAnswer(vision.strip(), REVIEW.strip())


def test_a_label_may_stand_on_a_line_of_its_own_in_the_fence() -> None:
    """It becomes no part of the document."""
    text = ANSWER.replace("VISION\n", "\nVISION:\n").replace("REVIEW\n", "\n**REVIEW**\n")
    assert parse_answer(text) == ParsedAnswer(VISION.strip(), REVIEW.strip())


@pytest.mark.parametrize(
    "text",
    [
        "Here you are:\n```yaml VISION\na: 1\n```\n```yaml REVIEW\nb: 2\n```\nThat is all.",
        "```YAML vision\na: 1\n```\n\n```yml Review\nb: 2\n```",
        "``` VISION\na: 1\n```\n``` REVIEW\nb: 2\n```",
        "```yaml VISION\r\na: 1\r\n```\r\n```yaml REVIEW\r\nb: 2\r\n```",
        blocks(fence="````"),
        blocks(fence="~~~"),
        "~~~yaml VISION\na: 1\n~~~~~\n```yaml REVIEW\nb: 2\n`````   ",
        "  ```yaml VISION\n  a: 1\n  ```\n   ```yaml REVIEW\n   b: 2\n  ```",
        "```VISION yaml\na: 1\n```\n```yaml:REVIEW\nb: 2\n```",
        "```yaml PRODUCT VISION\na: 1\n```\n```yaml PRODUCT_OWNER_REVIEW\nb: 2\n```",
        '```yaml # VISION\na: 1\n```\n```yaml title="REVIEW"\nb: 2\n```',
        "## VISION\n```yaml\na: 1\n```\n**REVIEW**\n\n```yml\nb: 2\n```",
        "VISION:\n```\na: 1\n```\n### 2. Product Owner Review:\n```text\nb: 2\n```",
        "````markdown\n```yaml VISION\na: 1\n```\n\n```yaml REVIEW\nb: 2\n```\n````",
        "```markdown\n```yaml VISION\na: 1\n```\n\n```yaml REVIEW\nb: 2\n```\n```",
        f"{blocks()}<|im_end|>",
        f"{blocks()}</s> <|endoftext|>\n",
        f"Sure: {blocks()}",  # glued to a line of text
        f"{blocks('a: 3', 'b: 4')}<channel|>{blocks()}",  # and to the fence before
        blocks().replace("```", "  ```"),  # only the fences are indented
        f"<answer>{blocks()}</answer>",
        # Marks of any model, end tags and characters that nobody sees touch a closing fence.
        f"{blocks()}<\uff5cend\u2581of\u2581sentence\uff5c>",
        f"<review>{blocks()}</review></answer>[EOS]",
        f"{blocks()} END",
        blocks().replace("\n```\n", "\n```</vision>\n"),
        blocks().replace("\n```", "\n```\u200b"),
        "```[VISION]\na: 1\n```\n```[REVIEW]\nb: 2\n```[|endofturn|]",
        blocks("product_vision:\n  a: 1", "product_owner_review:\n  b: 2"),
        blocks("a: 1\n---", "b: 2\n..."),
        blocks("## Vision\n\na: 1", "# Review\nb: 2"),
        blocks("```yaml\na: 1\n```", "```yaml\nb: 2\n```", fence="````"),
    ],
)
def test_blocks_are_found_however_models_fence_them(text: str) -> None:
    """Chatter around, any case, Windows line ends, fences of any kind and length, labels in or before the fence."""
    parsed = parse_answer(text)
    assert (str(parsed.vision_yaml).strip(), str(parsed.review_yaml).strip(), parsed.missing) == ("a: 1", "b: 2", ())


@pytest.mark.parametrize("behind", ["<details>", "[link]", "python", "Ending", "<br>x"])
def test_a_fence_with_other_text_behind_it_closes_nothing(behind: str) -> None:
    """As in CommonMark, but for end tags and marks of models."""
    vision = f"a: |\n```{behind}\n1"
    assert parse_answer(blocks(vision)).vision_yaml == vision


NONE = "the VISION block is missing, the REVIEW block is missing"
OPEN = "the VISION block is not closed"


@pytest.mark.parametrize(
    ("text", "missing"),
    [
        ("no idea", NONE),
        ("```yaml VISION\na: 1\n```\n```yaml REVIEW\nstatus: al", "the REVIEW block is not closed"),
        ("```yaml VISION\na: 1\n\n```yaml REVIEW\nb: 2\n```", OPEN),
        ("```yaml VISION\na: 1\n~~~yaml REVIEW\nb: 2\n~~~", OPEN),
        ("```yaml\nproduct_name: X\n```yaml\nstatus: aligned\n```", OPEN),
        ("````yaml VISION\na: 1\n```\n```yaml REVIEW\nb: 2\n```", OPEN),
        ("```yaml VISION\na: 1\n ```\n", f"{OPEN}, the REVIEW block is missing"),
        ("```python vision.py\na: 1\n```", NONE),
        (f"<think>\n{ANSWER}\n</think>\nDone.", NONE),
        (f"<think>\n{ANSWER}", NONE),
        # A chat model often writes two plain yaml blocks, told apart by their keys; what it writes besides is neither.
        ("```\nx = 1\n```\n```yaml\nproduct_name: X\n```\ntext\n```yaml\nstatus: aligned\n```", ""),
    ],
)
def test_what_is_missing_is_said(text: str, missing: str) -> None:
    """A block that was cut is never taken for a whole one, nor glued to the next; reasoning holds no answer."""
    assert ", ".join(parse_answer(text).missing) == missing


MARKS = [
    *((f"<{name}>", f"</{name}>") for name in ("think", "thinking", "reasoning", "thought", "THINK", "seed:think")),
    *((f"<{name}>", f"</{name}>") for name in ("reflection", "scratchpad", "analysis", "inner_monologue")),
    *((f"<{name}>", f"</{name}>") for name in ("antThinking", "chain_of_thought", "self_critique", "draft", "plan")),
    *((f"<{name}>", f"</{name}>") for name in ("chain-of-thought", "thinking_process", "reasoning_content")),
    ('<think budget="9">', "</think >"),
    ("[THINK]", "[/THINK]"),
    ("◁think▷", "◁/think▷"),
    ("Thinking...\n", "\n...done thinking.\n"),
    ("<|begin_of_thought|>", "<|end_of_thought|>"),
    ("<|START_THINKING|>", "<|END_THINKING|>"),
    ("<|channel|>analysis<|message|>", "<|end|><|start|>assistant<|channel|>final<|message|>"),
    ("<|channel>thought\n", "<channel|>"),
]
WAYS = [
    "{open}{draft}{close}\n{answer}",
    "{open}\n{draft}\n{close}{answer}",
    "{draft}{close}\n{answer}",
    "Well. {open}{draft}{close}\n\n{answer}",
    "{open}a{close}{draft}\n{open}b <i> c{close}\n{answer}\n{open}\nIs it right?",
    "{answer}\n{open}\n{draft}",
    "{draft}{close}{answer}\n{open} so {close}{open}{draft}",
    "{answer}\n\n{open}\n{draft}\n{close}\n",
]


@pytest.mark.parametrize(("marks", "way"), list(product(MARKS, WAYS)))
def test_reasoning_is_never_the_answer(marks: tuple[str, str], way: str) -> None:
    """In marks of any model, before a lone closing mark, behind one that is never closed."""
    text = way.format(open=marks[0], close=marks[1], draft=DRAFT, answer=ANSWER)
    parsed = parse_answer(text)
    assert (parsed.vision_yaml, parsed.review_yaml, parsed.missing) == (VISION.strip(), REVIEW.strip(), ())
    assert parsed.notes[0] == "reasoning before the answer was left out"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "- the <plan>basic</plan> <plan>full</plan> tariff\n</b>",
        "a < b > c",
        "write <b>think</b> twice",
        "a tag <think> in a line",
        "[thinking]: #",
        "assistantfinal",
    ],
)
def test_what_only_looks_like_reasoning_stays(text: str) -> None:
    """A mark in the middle of a line that is never closed is spoken of, not used."""
    assert strip_reasoning(text) == (text, False)


def test_a_lost_channel_mark_still_ends_the_analysis() -> None:
    """Decoded without special tokens, gpt-oss writes `analysis…assistantfinal…`."""
    assert strip_reasoning(f"analysisWe draft.{DRAFT}assistantfinal{ANSWER}") == (ANSWER, True)


TAKEN = "answers that differ; the last complete one was taken"


@pytest.mark.parametrize(
    ("text", "vision", "review", "note"),
    [
        (f"{blocks()}\nCorrected version:\n{blocks('a: 3', 'b: 4')}", "a: 3", "b: 4", f"it holds 2 {TAKEN}"),
        (f"{blocks()}\n{blocks()}", "a: 1", "b: 2", ""),
        (f"{blocks()}\nThe review again:\n```yaml REVIEW\nb: 4\n```", "a: 1", "b: 4", f"it holds 2 {TAKEN}"),
        (f"```yaml VISION\na: 0\n```\n{blocks()}", "a: 1", "b: 2", f"it holds 2 {TAKEN}"),
        (f"{blocks()}\n```yaml VISION\na: 3\n```\n```yaml REVIEW\nb:", "a: 1", "b: 2", f"it holds 2 {TAKEN}"),
        (f"{blocks()}\n```yaml VISION\na: 3\n```yaml REVIEW\nb: 4\n```", "a: 1", "b: 2", f"it holds 2 {TAKEN}"),
        (f"{blocks()}\n```yaml VISION\na: 3", "a: 1", "b: 2", f"it holds 2 {TAKEN}"),
        (
            "```yaml VISION\na: 1\n```\n```yaml VISION\na: 3\n```yaml REVIEW\nb: 4\n```",
            None,
            "b: 4",
            "it holds 2 answers, none of them complete",
        ),
    ],
)
def test_of_several_answers_the_last_complete_one_counts(
    text: str, vision: str | None, review: str | None, note: str
) -> None:
    """A corrected version replaces the first one, and that is said; the same answer twice is one."""
    parsed = parse_answer(text)
    assert (parsed.vision_yaml, parsed.review_yaml) == (vision, review)
    assert parsed.notes == ((note,) if note else ())


@given(st.text(alphabet=st.sampled_from("`~yamlVISIONREW \n:-a<>/think"), max_size=200))
def test_any_text_is_parsed_without_an_exception(text: str) -> None:
    """A block is either text or named as missing."""
    parsed = parse_answer(text)
    assert len(parsed.missing) == [parsed.vision_yaml, parsed.review_yaml].count(None)


BESIDE = "text beside the document was left out: "
AROUND = "text {} the fenced document was left out: {!r}"


@pytest.mark.parametrize(
    ("text", "document", "notes"),
    [
        (VISION, VISION.strip(), ""),
        (WITH_FENCE, WITH_FENCE.strip(), ""),
        (f"\n```yaml\n{WITH_FENCE}```\n", WITH_FENCE.strip(), ""),
        (f"~~~~yml VISION\n{VISION}~~~~", VISION.strip(), ""),
        ("  ```\n  a: 1\n    b\n  ```", "a: 1\n  b", ""),
        ("a: 1\r\nb: 2\r\n", "a: 1\nb: 2", ""),
        ("]a: 1", "a: 1", ""),
        (f"REVIEW:\n{REVIEW}---\n", REVIEW.strip(), ""),  # its label, and the end mark of YAML
        (f"Here is the vision:\n{VISION}", VISION.strip(), f"{BESIDE}'Here is the vision:'"),
        (f"Of course. Here you are:\n{VISION}", VISION.strip(), f"{BESIDE}'Of course. Here you are:'"),
        (
            f"\u00a1Claro! Aqu\u00ed est\u00e1:\n\n{REVIEW}",
            REVIEW.strip(),
            f"{BESIDE}'\u00a1Claro! Aqu\u00ed est\u00e1:'",
        ),
        (f"Here it is:\n{REVIEW}\nNote: short.", REVIEW.strip(), f"{BESIDE}'Here it is: Note: short.'"),
        (f"**Product Vision**\n\n{VISION}", VISION.strip(), ""),
        (f"````yaml\n```yaml\n{VISION}```\n````", VISION.strip(), ""),
        (f"{REVIEW}\nI hope: this helps!", REVIEW.strip(), f"{BESIDE}'I hope: this helps!'"),
        ("a: 1\n\nb:\n- c\n\n# d\ne: 2", "a: 1\n\nb:\n- c\n\n# d\ne: 2", ""),
        ("a: 1\n```\n", "a: 1", "a closing fence without an opening one was left out"),
        ("```yaml # VISION: the final one\na: 1\n```", "a: 1", ""),
        ("<think>\nplan\n</think>\na: 1", "a: 1", "reasoning before the answer was left out"),
        (
            "Here it is:\n```yaml\na: 1\n```\n  I hope this helps!",
            "a: 1",
            f"{AROUND.format('before', 'Here it is:')}; {AROUND.format('after', 'I hope this helps!')}",
        ),
    ],
)
def test_a_column_holds_one_document(text: str, document: str, notes: str) -> None:
    """Bare or fenced; what stands around it is left out and named, what stands in it stays."""
    found, said = column_document(text)
    assert (found, "; ".join(said)) == (document, notes)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("```yaml\na: 1", "the code fence in line 1 is not closed; close it, or take it off"),
        ("a: 1\n\n```yaml\nb: 1", "the code fence in line 3 is not closed"),
        ("```yaml a: 1\nb: 2\n```", "text stands behind the code fence in line 1; put it on a line of its own"),
        (blocks(), "it holds 2 fenced blocks; leave the one that is the document"),
        (f"{VISION}\n```\nb: 2\n```", "it holds a document before the fenced one; leave one of them"),
        (f"{REVIEW}\nCorrected version:\n\n{REVIEW}", "it holds two documents; leave one of them"),
    ],
)
def test_a_column_that_holds_no_one_document_is_refused(text: str, reason: str) -> None:
    """Nothing is glued together and nothing is guessed."""
    with pytest.raises(ValueError, match=reason):
        column_document(text)


@pytest.mark.parametrize(
    ("text", "bare"),
    [("```\n~~~yaml\na\n~~~\n```", "a"), (" a ", "a"), ("```\na\n```\nb\n```\nc\n```", None), ("```\na", None)],
)
def test_only_a_fence_around_the_whole_is_taken_off(text: str, bare: str | None) -> None:
    """As often as there is one."""
    assert without_outer_fence(text) == (text if bare is None else bare)


def _without(text: str, start: str, end: str | None = None) -> str:
    return text[: text.index(start)] + (text[text.index(end) :] if end else "")


NARRATIVE = _without(REVIEW, "narrative")
NO_MAPPING = _without(REVIEW, "  aligned", "recommended").replace("alignment:", "alignment: []")
FAULTS = [
    (VISION, None, "the REVIEW block is missing"),
    (None, None, "the VISION and the REVIEW block are missing"),
    ("a: b: c", "also: b: c", "the VISION does not parse as YAML: line 1, column 5"),
    (VISION, "a: b: c", "the REVIEW does not parse as YAML"),
    (VISION, REVIEW + "status: aligned", "the REVIEW does not parse as YAML: it has the key 'status' twice (line 20)"),
    (VISION, "- a", "the REVIEW does not parse as YAML: it must be a mapping of keys to values, got a list"),
    (_without(VISION, "product_name", "target_users"), REVIEW, "the VISION has no product_name and no product_summary"),
    (VISION, NARRATIVE, "the REVIEW has no narrative"),
    (VISION, NO_MAPPING, "requirements_alignment must be a mapping, got '[]'"),
    (VISION, _without(REVIEW, "  gaps", "  conflicts"), "requirements_alignment has no list gaps"),
    (VISION, REVIEW.replace("FR0", "R0").replace("C0", "K0").replace("NR0", "N0"), "names a requirement id"),
    (VISION, REVIEW.replace("- Keep FR001 and FR002 as they are.\n", ""), "recommended_actions holds 1, at least 2"),
    (VISION, f"{NARRATIVE}narrative: 7", "narrative must be text, got '7'"),
    (VISION, f"{NARRATIVE}narrative: no", "narrative must be text, got 'no'"),  # YAML makes False of it
    (VISION, NO_MAPPING.replace("[]", "off"), "requirements_alignment must be a mapping, got 'off'"),
    (VISION, f"{NARRATIVE}narrative: {'word ' * 121}", "narrative has 121 words, at most 120"),
]


@pytest.mark.parametrize(("vision", "review", "reason"), FAULTS)
def test_the_first_fault_is_named(vision: str | None, review: str | None, reason: str) -> None:
    """One fault each, in the validator's order; a good answer has none."""
    verdict = validate_answer(vision, review)
    assert not verdict
    assert reason in verdict.reason
    assert validate_answer(VISION, REVIEW)


@pytest.mark.parametrize(
    "text",
    [
        "```" + " " * 100_000 + "!\n```yaml" + " \t:" * 50_000 + "!",
        "``` x" + " " * 100_000 + "y",
        "<think>" * 30_000,
        "<think></reflection>" * 30_000,
        "</think>" * 30_000 + "<|channel|>" + " " * 100_000,
        "x" + "<eos>\n" * 100_000,
        "x <plan>b</plan> y" * 50_000,
        "```yaml VISION\nVISION" + "*" * 100_000 + "x\na: 1\n```",
        "```yaml VISION\n" * 20_000,
        "```yaml VISION\nx\n```\n" * 20_000,
    ],
)
def test_no_text_takes_long(text: str) -> None:
    """Blanks that patterns could divide among them, marks that open and never close, ends of turns."""
    start = time.process_time()
    assert parse_answer(text).missing
    assert parse_answer(f"{ANSWER}\n{'<->' * 40}x").notes
    assert time.process_time() - start < 2


@pytest.mark.parametrize(
    "text",
    [
        f"{DRAFT}\n\nCorrected:\n\n{VISION}\n{REVIEW}",
        ANSWER.replace("non_goals:", "notes: |\n  like\n```\n  route: 7\n```\nnon_goals:"),
        ANSWER.replace("last_updated:", "notes: |\n  like\n```\n  route: 7\n```\nlast_updated:"),
    ],
)
def test_a_document_outside_the_fences_is_never_dropped_silently(text: str) -> None:
    """It may be the correction, or the rest of a document that its own fence ended."""
    parsed = parse_answer(text)
    assert (parsed.vision_yaml, parsed.review_yaml) == (None, None)
    assert re.search(r"outside the fences .*; put it into a fence of its own", parsed.missing[0])


@pytest.mark.parametrize("named", ["CONCEPT:\nA desk", "## Concept\n\nA desk", "```yaml CONCEPT\nA desk\n```"])
def test_the_answer_to_another_question_is_not_taken(named: str) -> None:
    """A model that does not stop makes up the next question, and answers it."""
    asked = f"User: Next.\n\n{named}\n\nREQUIREMENTS:\ntitle: Desk\n\n"
    assert "another question begins in line 45; leave" in parse_answer(f"{ANSWER}\n{asked}{DRAFT}").missing[0]
    assert "another question" in parse_answer(f"{ANSWER}\n{asked}```yaml REVIEW\n{REVIEW}```").missing[0]
    assert parse_answer(f"{asked}{ANSWER}\n{asked}").vision_yaml == VISION.strip()


@pytest.mark.parametrize("part", ["```yaml REVIEW\nstatus: aligned\n```", '```json\n{"status": "aligned"}\n```'])
def test_a_part_of_a_document_does_not_take_the_place_of_the_whole(part: str) -> None:
    """It may be a correction or a summary; before the answer it is a draft."""
    assert parse_answer(f"{ANSWER}\n{part}").missing == (
        "the REVIEW block in line 43 holds only a part of one; leave one whole REVIEW block",
    )
    assert parse_answer(f"{part}\n{ANSWER}").review_yaml == REVIEW.strip()


@pytest.mark.parametrize(
    ("text", "note"),
    [
        (f"{ANSWER}\n\nWait: it conflicts.\n</output>", "text outside the fences was left out: 'Wait: it conflicts."),
        # The answer behind a draft counts; a single line with a key may be prose.
        (f"{VISION}\n{ANSWER}", "text outside the fences was left out: "),
        (f"{ANSWER}\nsummary: I wrote both.", "text outside the fences was left out: "),
        ("```js\n1\n```\n\n~~~vue 3\n~~~", "fences without a label that is read: 'js' in line 1, 'vue 3' in line 5"),
        (
            f"{VISION}\n{REVIEW}",
            "line 1 begins a document without a fence; write ```yaml VISION or ```yaml REVIEW above",
        ),
        (
            f"```yaml\n{VISION}---\n{REVIEW}```",
            "the block in line 1 holds both documents; put each into a fence of its own",
        ),
        (
            "```yaml\nvision:\n  product_name: X\nreview:\n  status: aligned\n```",
            "the block in line 1 holds both documents",
        ),
        ("    " + ANSWER.replace("\n", "\n    "), "the fence in line 1 is indented by four spaces or more"),
        ('{"vision": "product_name: X\\nnon_goals: []"}', "it is JSON; write both documents as YAML, each in a fence"),
        (ANSWER.replace("\n", "\u2028"), "it holds U+2028 (line separator) where a line feed ends a line"),
        (
            ANSWER.replace("\n", "\\n"),
            "its line ends are written as \\n (two characters): it was escaped once too often",
        ),
    ],
)
def test_what_is_seen_and_not_read_is_named(text: str, note: str) -> None:
    """Without fences, with fences that are text, with other line ends: a person knows why it was not found."""
    assert note in parse_answer(text).notes[0]
