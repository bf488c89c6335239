"""The prompts and taking them apart: ours exactly, those of others as far as they name their sections."""

import time
from dataclasses import replace
from itertools import permutations, product

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from po_assets.product_owner import STATUSES, PromptParts, build_prompt, format_answer, split_prompt
from po_assets.product_owner.blocks import without_outer_fence
from po_assets.product_owner.contract import MAX_NARRATIVE_WORDS
from po_assets.product_owner.prompts import teacher_messages
from po_assets.product_owner.templates import AGENT
from po_assets_tests.product_owner.documents_text import REQUIREMENTS, REVIEW, VISION

CONCEPT = "A planner.\nVISION: be the first choice.\n\nIt does not store parcels."
OPENING = "You are a Product Owner. Write the product vision, then review the requirements against it."
CLOSING = "Answer with two fenced YAML blocks: VISION and REVIEW. Cite requirement ids in the review."


def test_the_prompt_is_pinned() -> None:
    """A change of one character makes every trained student stale: raise PROMPT_VERSION with it."""
    assert build_prompt(" A planner. ", "title: Planner\n") == (
        f"{OPENING}\n\nCONCEPT:\nA planner.\n\nREQUIREMENTS:\ntitle: Planner\n\n{CLOSING}"
    )
    assert build_prompt("A planner.", "```yaml\ntitle: P\n```", "product_name: P\n") == (
        f"{OPENING}\n\nCONCEPT:\nA planner.\n\nEXISTING_VISION:\nproduct_name: P\n\nREQUIREMENTS:\ntitle: P\n\n{CLOSING}"
    )


LINES = st.sampled_from(
    [
        *("CONCEPT:", "VISION:", "REQUIREMENTS:", " REQUIREMENTS:", "   REQUIREMENTS:", "EXISTING_VISION:"),
        *("## Concept", "VISION: be the first", "**REQUIREMENTS:** x", "", "", "```", "```yaml VISION", "~~~~"),
        *("  ```yaml", "````", "Provide clear YAML errors.", "Produce a VISION", "Follow the format.", OPENING),
        *("Return two YAML blocks", CLOSING, "title: x", "- id: FR001", "  description: y", "<think>", "a\r"),
        *("b\u2028c\x85d", "Rules:", "---"),
    ]
)
TEXTS = st.lists(LINES | st.text(max_size=12), max_size=8).map("\n".join)


@settings(max_examples=1000)
@given(TEXTS, TEXTS, TEXTS)
@example("x\n\nREQUIREMENTS:\ny", "a: 1\n\nREQUIREMENTS:\nb: 2", "")
@example("x\n\nREQUIREMENTS:", "a: 1", "\n\nREQUIREMENTS:")
@example("", "", "")
@example(OPENING, f"{OPENING}\n\nCONCEPT:\nx\n\n  {OPENING}", f"a\n {OPENING}\n{OPENING}")
@example("x\n\nEXISTING_VISION:\ny", "a: 1", "")
@example("x\n\n REQUIREMENTS:\ny\n\nEXISTING_VISION:", f"a: 1\n\n{CLOSING}", f"v\n\n  REQUIREMENTS:\n\n{CLOSING}")
def test_splitting_undoes_building(concept: str, requirements: str, existing: str) -> None:
    """Whatever the texts hold, so that our own training rows come in again unchanged."""
    prompt = build_prompt(concept, requirements, existing)
    parts = split_prompt(prompt)
    texts = (concept.strip(), without_outer_fence(requirements), without_outer_fence(existing))
    assert parts == PromptParts(texts[0] or None, texts[1] or None, None, texts[2] or None)
    assert build_prompt(parts.concept or "", parts.requirements_yaml or "", parts.existing_vision_yaml or "") == prompt


QUESTION = PromptParts("A planner", REQUIREMENTS.strip())
"""What most prompts below ask."""


STYLES = {
    "capitals": "{NAME}:\n{text}",
    "title": "{Name}:\n{text}",
    "small": "{name}:\n{text}",
    "same line": "{NAME}:  {text}",
    "heading": "## {Name}\n{text}",
    "heading with colon": "# {NAME}:\n{text}",
    "numbered": "### 2. {Name}\n\n{text}",
    "bold": "**{NAME}:**\n{text}",
    "bold name": "**{Name}**: {text}",
    "fenced": "## {Name}\n\n```yaml\n{text}\n```",
    "tildes": "{NAME}:\n~~~\n{text}\n~~~",
    "tags": "<{name}>\n{text}\n</{name}>",
    "tags in a line": "<{NAME}>{text}</{NAME}>",
    "tags around fences": "<{NAME}>\n```yaml\n{text}\n```\n</{NAME}>",
    "brackets": "[{NAME}]\n{text}",
    "rules": "=== {NAME} ===\n{text}",
    "labelled": "Look:\n```yaml {NAME}\n{text}\n```",
}


def section(style: str, name: str, text: str) -> str:
    name = name.replace(" ", "_") if "tags" in style else name
    if name == "concept" and style in {"fenced", "tildes", "tags around fences"}:
        style = "heading"
    elif style == "small" and name == "concept":
        style = "title"  # in the requirements, `concept:` is a key
    names = {"name": name, "Name": name.capitalize(), "NAME": name.upper().replace(" ", "_")}
    return STYLES[style].format(**names, text=text.strip())


@pytest.mark.parametrize(
    ("style", "order"), list(product(STYLES, permutations(("concept", "existing vision", "requirements"))))
)
def test_sections_are_read_in_any_style_and_order(style: str, order: tuple[str, ...]) -> None:
    """Headings, bold, fenced, in any case; the closing line is no part of any."""
    texts = {"concept": "A planner.", "existing vision": VISION, "requirements": REQUIREMENTS}
    body = "\n\n".join(section(style, name, texts[name]) for name in order)
    parts = split_prompt(f"You are a Product Owner.\n\n{body}\n\nFollow the exact output format.")
    assert (parts.requirements_yaml, parts.existing_vision_yaml) == (REQUIREMENTS.strip(), VISION.strip())
    assert (parts.concept or "").startswith("A planner.")
    assert parts.vision_yaml is None


@pytest.mark.parametrize(
    "closing",
    [
        *("Follow the exact output format.", "Provide the two blocks.", "Produce YAML.", "Return VISION and REVIEW."),
        *(CLOSING, "---\nRespond with two fenced YAML blocks: VISION and REVIEW.", "Please answer: in YAML"),
    ],
)
@pytest.mark.parametrize("gap", ["\n", "\n\n"])
def test_closing_instructions_are_no_part_of_the_requirements(closing: str, gap: str) -> None:
    """Also where they read as YAML, as a line with a colon does."""
    parts = split_prompt(f"CONCEPT:\nA planner\n\nREQUIREMENTS:\n{REQUIREMENTS.strip()}{gap}{closing}\n")
    assert parts == QUESTION


@pytest.mark.parametrize(
    "rules",
    [
        *("Rules:\n- Be short\n- Cite ids", "Format: YAML", "Be concise and cite ids.", "- Be short\n- Cite ids"),
        *("## Output\nTwo blocks.", "**Important**\nTwo blocks", "instructions:\n- Cite ids", "===\nThe end of it."),
        *("Output:", "Your answer:"),
    ],
)
@pytest.mark.parametrize("form", ["{}\n", "```yaml\n{}```\n\n"])
def test_rules_behind_the_requirements_are_left_out_and_named(rules: str, form: str) -> None:
    """Most are valid YAML, and would become requirements without a word; behind a fence it is plain to see."""
    parts = split_prompt(f"CONCEPT:\nA planner\n\nREQUIREMENTS:\n{form.format(REQUIREMENTS)}{rules}")
    assert replace(parts, notes=()) == QUESTION
    assert [note.split(": ")[0] for note in parts.notes] == ["text beside the REQUIREMENTS was left out"]


@pytest.mark.parametrize(
    "requirements",
    [
        f"# Functional\n{REQUIREMENTS}\n# Late additions\n\nassumptions:\n- One depot",
        REQUIREMENTS.replace("non_functional", "\n\nnon_functional"),
        "title: P\nReturn policy: 30 days\nKeep: all",
        "FR001: Do it\n\nFR002: Return parcels\n\nC001: No cloud",
        "Title: P\n\nFunctional Requirements:\n- id: FR001\n  description: Do: it",
        "title: P\n\nvision: the first\nconcept: a planner\nrequirements:\n- id: FR001",
        "title: P\nnotes: |\n  ```yaml\n  REQUIREMENTS:\n  ```\n\n  Follow it.\nconstraints: []",
        "title: P\nnotes: |\n  ```yaml VISION\n  a: 1\n  ```\nconstraints: []",
        "title: P\ninput: concept notes\nconstraints:\n- id: C001\n  description: |\n    x\n    ---\n    </div>",
        "title: P\n\nRules:\n- Be fair\n\nconstraints:\n- id: C001\n  description: x",
        "title: P\n# CONCEPT\nconstraints:\n- id: C001\n  description: x\n## Vision\nvision: first",
    ],
)
def test_no_requirement_is_lost(requirements: str) -> None:
    """Blank lines, comments, keys in capitals and keys that are names of sections belong to a document."""
    parts = split_prompt(f"CONCEPT:\nA planner\n\nREQUIREMENTS:\n{requirements}\n\nRespond with YAML blocks.")
    assert parts == PromptParts("A planner", requirements.strip())
    wrapped = split_prompt("CONCEPT: x\nREQUIREMENTS:\n  constraints:\n  - C001: y\nz\n  - id: C002")
    assert "C002" in str(wrapped.requirements_yaml)


@pytest.mark.parametrize("fenced", [True, False])
def test_after_an_example_the_last_sections_count(fenced: bool) -> None:
    """A few-shot prompt; the example's vision is no answer given away."""
    wrap = "```yaml REQUIREMENTS\n{}\n```" if fenced else "REQUIREMENTS:\n{}"
    example_text = (
        f"CONCEPT: A desk\n{wrap.format('title: Desk')}\n\n```yaml VISION\n{VISION}```\n```yaml REVIEW\n{REVIEW}```"
    )
    parts = split_prompt(
        f"Example:\n{example_text}\n\nNow the task:\nCONCEPT: A planner\n{wrap.format(REQUIREMENTS)}\n"
    )
    assert (parts.concept, parts.requirements_yaml, parts.vision_yaml) == ("A planner", REQUIREMENTS.strip(), None)
    assert parts.notes == tuple(
        f"the prompt holds 2 sections {name} that differ; the last one was taken"
        for name in ("CONCEPT", "REQUIREMENTS")
    )


ASKED = f"CONCEPT:\nA planner\n\nREQUIREMENTS:\n{REQUIREMENTS}"
PROSE = f"{CONCEPT}\nRequirements: few and clear."
LINTER = "A linter.\n\nProduce lists of faults for engineers."
FORM = "```yaml VISION\nproduct_name: <name>\n```\n\n```yaml REVIEW\nstatus: <status>\n```"
GIVEN_AWAY = (
    "```yaml VISION\nproduct_name: X\n```\n\n```yaml REQUIREMENTS\nFR001: Do it\n```\n\nRespond with two blocks."
)


@pytest.mark.parametrize(
    ("prompt", "concept", "requirements", "vision"),
    [
        (build_prompt(CONCEPT, REQUIREMENTS).replace("\n", "\r\n") + "\r\n", CONCEPT, REQUIREMENTS, None),
        # `VISION: be the first choice` is a line of the concept, and so is `Requirements: few`.
        (f"CONCEPT:\n{PROSE}\n\nREQUIREMENTS:\n{REQUIREMENTS}", PROSE, REQUIREMENTS, None),
        # Between tags everything is the concept; below its text a heading of another form is a line of it.
        *(
            (f"{before}\n{text}\n{after}\n## Requirements\n{REQUIREMENTS}", text, REQUIREMENTS, None)
            for before, text, after in (
                ("<concept>", f"{PROSE}\n\n## Vision\nTo be first.", "</concept>"),
                ("## Concept", "A planner.\nConcept: proven by 3 pilots.", ""),
                ("## Concept", "A planner.\n1. Vision: be first\n2. Mission: be fair", ""),
                ("## Concept", '"""Smart""" is a form.\nInput: concept notes.', ""),
            )
        ),
        # The form of hand-made records, whose prompt holds the vision that the student should write.
        (f"Review the requirements.\n\n{GIVEN_AWAY}", None, "FR001: Do it", "product_name: X"),
        # A template of the answer shows the form that is wanted, and gives nothing away.
        (f"Write:\n\n{FORM}\n\n{ASKED}", "A planner", REQUIREMENTS, None),
        # Where the concept stands last; `Produce` alone is no instruction about the answer.
        (
            f"REQUIREMENTS:\n{REQUIREMENTS}\nCONCEPT:\n{LINTER}\n\nProduce the VISION and REVIEW blocks.",
            *(LINTER, REQUIREMENTS, None),
        ),
        *((text, None, None, None) for text in ("Write something nice.", "", "Concept art and requirements")),
        ("# Requirements for all", None, None, None),
    ],
)
def test_parts_are_found_and_what_is_not_named_is_none(
    prompt: str, concept: str | None, requirements: str | None, vision: str | None
) -> None:
    """Windows line ends, prose behind a document's name, visions given away and templates of one: never guessed."""
    assert split_prompt(prompt) == PromptParts(concept, requirements and requirements.strip(), vision)


def test_an_example_in_our_own_form_is_told_from_the_task() -> None:
    """Few-shot prompts of the very prompt that training uses."""
    first = f"{build_prompt('A desk', 'title: Desk')}\n\n{format_answer(VISION, REVIEW)}"
    parts = split_prompt(f"{first}\n\n{build_prompt('A planner', REQUIREMENTS)}")
    assert (parts.concept, parts.requirements_yaml, parts.vision_yaml) == ("A planner", REQUIREMENTS.strip(), None)
    assert len(parts.notes) == 2


@pytest.mark.parametrize("empty", ["", "none", "(none)", "N/A", "{}"])
def test_an_existing_vision_may_be_empty(empty: str) -> None:
    """The running agent names the section in its first round, too."""
    prompt = ASKED.replace("\n\nREQ", f"\n\nEXISTING_VISION:\n{empty}\n\nREQ")
    assert split_prompt(f"{prompt}\nFollow the format.") == QUESTION


@pytest.mark.parametrize("before", ["", "CONCEPT: A desk\n\nREQUIREMENTS:\ntitle: Desk\n\n"])
def test_an_unclosed_fence_is_named(before: str) -> None:
    """Its document may have been cut; an example's takes its place no more than a guess would."""
    parts = split_prompt(f"{before}CONCEPT: A planner\n\nREQUIREMENTS:\n```yaml\ntitle: P\n")
    assert (parts.concept, parts.requirements_yaml) == ("A planner", None)
    assert f"the fence of the REQUIREMENTS in line {9 if before else 4} is not closed" in parts.notes


def test_faulty_requirements_are_not_replaced_by_an_examples() -> None:
    """Whoever reads them says what is wrong."""
    faulty = "title: P\nfunctional_requirements:\n- id: FR001\n- id: FR002: x"
    for text in (faulty, "title: P\ntitle: Q"):
        prompt = f"CONCEPT: A desk\nREQUIREMENTS:\ntitle: Desk\n\nCONCEPT: A planner\nREQUIREMENTS:\n{text}"
        assert split_prompt(prompt).requirements_yaml == text


@pytest.mark.parametrize("existing", ["", VISION])
def test_a_consumers_prompt_is_read(existing: str) -> None:
    """Rows logged from the running agent: an existing vision is a part of its own."""
    system, user = AGENT.turns(CONCEPT, REQUIREMENTS, existing)
    assert (system["role"], user["role"]) == ("system", "user")
    assert 2_500 < len(system["content"]) < 3_500
    assert "status: aligned | needs_adjustment | misaligned" in system["content"]
    assert f"at most {MAX_NARRATIVE_WORDS} words" in system["content"]
    assert user["content"].splitlines()[-1].startswith("Follow ")
    assert split_prompt(user["content"]) == PromptParts(
        CONCEPT, REQUIREMENTS.strip(), existing_vision_yaml=existing.strip() or None
    )


def test_a_teacher_is_told_what_was_missing() -> None:
    """The student's prompt behind the instructions; the team's own instructions replace ours."""
    ours = teacher_messages("A planner", REQUIREMENTS)[0]["content"]
    assert f"status: <{' | '.join(STATUSES)}>" in ours
    system, user = teacher_messages("A planner", REQUIREMENTS, "Be kind.", "the REVIEW block is missing")
    assert system["content"] == "Be kind."
    assert user["content"].startswith(build_prompt("A planner", REQUIREMENTS))
    assert "Reminder: your last answer could not be used, because the REVIEW block is missing." in user["content"]


@settings(max_examples=300)
@given(TEXTS)
def test_any_text_is_split_without_an_exception(text: str) -> None:
    """No part is blank."""
    parts = split_prompt(text)
    assert all(part is None or part.strip() for part in (parts.concept, parts.requirements_yaml, parts.vision_yaml))


@pytest.mark.parametrize(
    "text",
    [
        "CONCEPT" + " " * 100_000 + "!",
        "REQUIREMENTS:\na: 1\n" + "Please x\n" * 20_000 + "- id: FR001",
        "REQUIREMENTS:\n" + "a: 1\n\nB: 2\n\n" * 20_000,
        "CONCEPT: a\n" * 10_000,
        "<concept>\nx\n" * 20_000 + "```VISION\n</concept>",
        "<concept>\n# Concept\n" * 10_000 + "</concept>",
        "EXISTING_VISION:\nproduct_name: x\n" + "requirements:\n" * 20_000,
        'CONCEPT:\n"""\n' + " " * 100_000,
        "CONCEPT:\na\n" + "</task>\n" * 20_000 + "`" * 50_000,
        "CONCEPT:\n" + "\n\n \n" * 30_000 + "x",
        "CONCEPT:\nx\n\nREQUIREMENTS:\n" + "a line of prose\n```yaml\nfoo: 1\n```\n" * 20_000,
        "CONCEPT:\nAnswer " + "VISION " * 30_000,
    ],
)
def test_no_prompt_takes_long(text: str) -> None:
    """Long runs of blanks, and thousands of lines that might end a document."""
    start = time.process_time()
    split_prompt(text)
    assert time.process_time() - start < 2


@pytest.mark.parametrize(
    ("concept", "requirements"),
    [
        ("Concept\n=======\n{}", "Requirements\n------------\n{}"),
        ("##Concept ##\n{}", "##Requirements ##\n{}"),
        ("_Concept:_\n{}", "*Requirements:*\n{}"),
        ("CONCEPT\uff1a\n{}", "REQUIREMENTS\u00a0:\n{}"),
        ("[CONCEPT]\n{}\n[/CONCEPT]", "[REQUIREMENTS]\n{}\n[/REQUIREMENTS]"),
        ("--- CONCEPT ---\n{}", "--- REQUIREMENTS ---\n{}\n--- END ---"),
        ('<concept id="1">{}</concept>', "<requirements format='yaml'>\n{}\n</requirements>"),
        ("CONCEPT:\n```text\n{}\n```", "REQUIREMENTS:\n{}"),
        ("concept: {}", "requirements_yaml: |\n{}"),
        ('CONCEPT:\n"""\n{}\n"""', "REQUIREMENTS:\n'''\n{}\n'''"),
        ("\u200bCONCEPT:\n{}", "\ufeffREQUIREMENTS:\n{}"),
        ("<concept>\n# Concept\n{}\n</concept>", "<requirements>\n## Requirements\n{}\n</requirements>"),
        ("<task>\nCONCEPT: {}", "REQUIREMENTS:\n{}\n</task>"),
        ("<task>\nCONCEPT:\n{}\n</task>\n", "<data>\nREQUIREMENTS:\n{}\n</data>"),
        ("<concept>\n{}\n", "<requirements>\n{}\n</requirements>\n</concept>"),
        ("<concept>\nA desk\n\nNow:\n<concept>\n{}\n</concept>", "REQUIREMENTS:\n{}"),
        ("CONCEPT: {}\n\nEXISTING_VISION: none", "  ```yaml REQUIREMENTS\n{}\n  ```"),
        ("CONCEPT:\n{}\n\n---\n", "REQUIREMENTS:\n{}\n\n---\n"),
        ("CONCEPT:\n========\n{}\n***", "REQUIREMENTS:\n=============\n{}"),
        ("\n\nHuman: CONCEPT: {}", "REQUIREMENTS:\n{}\n\nAssistant:"),
        ("### Human: CONCEPT: {}", "REQUIREMENTS:\n{}\nASSISTANT:"),
        (
            "<\uff5cbegin\u2581of\u2581sentence\uff5c><\uff5cUser\uff5c>CONCEPT:\n{}",
            "REQUIREMENTS:\n{}<\uff5cAssistant\uff5c>",
        ),
        ("<s>[INST]CONCEPT: {}", "REQUIREMENTS:\n{}[/INST]"),
        ("CONCEPT: {}", "REQUIREMENTS:\n{}\n\n###"),
        ("CONCEPT (idea): {}", "REQUIREMENTS (as YAML):\n{}"),
        ("<s>[INST]\nCONCEPT: {}", "REQUIREMENTS:\n{}\n[/INST]"),
        ("<|im_start|>user\nCONCEPT: {}", "REQUIREMENTS:\n{}<|im_end|>\n<|im_start|>assistant\n"),
    ],
)
@pytest.mark.parametrize("indent", ["", "  "])
def test_sections_are_read_as_others_write_them(concept: str, requirements: str, indent: str) -> None:
    """Underlined, with closing marks, in other punctuation, fenced, indented."""
    text = REQUIREMENTS.strip().replace("\n", f"\n{indent}")
    parts = split_prompt(f"{concept.format('A planner')}\n\n{requirements.format(indent + text)}\n")
    assert replace(parts, notes=()) == QUESTION


def test_an_example_behind_the_task_and_rules_in_a_concept_are_named() -> None:
    """The example is not the task (one before the task is left out anyway); rules may be the product's, or not."""
    parts = split_prompt(f"{ASKED}\nExample of an input:\nCONCEPT: A desk\nREQUIREMENTS:\ntitle: Desk\n")
    assert replace(parts, notes=()) == QUESTION
    assert parts.notes[0] == "the example behind the task was left out"
    parts = split_prompt(f"{ASKED}\nExample of requirements:\nREQUIREMENTS:\ntitle: Desk\n")
    assert replace(parts, notes=()) == QUESTION
    assert "the example behind the task was left out" in parts.notes
    answered = f"CONCEPT: A desk\nREQUIREMENTS:\ntitle: Desk\n{format_answer(VISION, REVIEW)}"
    for words in ("Ejemplo", "For reference, what was said of another product"):
        parts = split_prompt(f"{ASKED}\n{words}:\n{answered}")
        assert replace(parts, notes=()) == QUESTION
        assert parts.notes[0] == "the example behind the task was left out"
    bare = f"CONCEPT: A desk\nREQUIREMENTS:\ntitle: Desk\n\nVISION:\n{VISION}\nREVIEW:\n{REVIEW}"
    for answered in (f"---\n{bare}", f"Here is an example:\n{bare[: bare.index('VISION')]}"):
        parts = split_prompt(f"{ASKED}\n\n{answered}")
        assert replace(parts, notes=()) == QUESTION
        assert "the example behind the task was left out" in parts.notes
    parts = split_prompt(ASKED.replace("A planner", "A planner\n\nRules:\n- Be brief"))
    assert parts.concept == "A planner\n\nRules:\n- Be brief"
    assert parts.notes == ("the CONCEPT holds 'Rules:', which may be meant for the answer",)


def test_an_existing_vision_of_an_example_is_not_the_tasks() -> None:
    """Whether it stands before the concept or behind it; the task's own is."""
    desk, planner = (f"EXISTING_VISION:\nproduct_name: {name}\n" for name in ("Desk", "Planner"))
    example = f"Example:\nCONCEPT: A desk\n{desk}\nREQUIREMENTS:\ntitle: Desk\n\n{format_answer(VISION, REVIEW)}\n\n"
    assert split_prompt(example + ASKED).existing_vision_yaml is None
    for task in (f"{planner}\n{ASKED}", ASKED.replace("REQ", f"{planner}\nREQ")):
        assert split_prompt(example + task).existing_vision_yaml == "product_name: Planner"


@pytest.mark.parametrize("heading", ["DRAFT VISION:", "## Visi\u00f3n", "**Where we stand**", "VISION (current):"])
def test_a_vision_under_a_heading_of_other_words_is_no_part_of_the_concept(heading: str) -> None:
    """It gives the answer away, or is the product's own already where the heading says so."""
    parts = split_prompt(ASKED.replace("REQ", f"{heading}\n{VISION}\nREQ"))
    assert parts.concept == "A planner"
    assert (parts.existing_vision_yaml if "current" in heading else parts.vision_yaml) == VISION.strip()


def test_what_stands_around_the_sections_is_named() -> None:
    """How to answer, a verdict, a heading in other words; what every prompt says is not worth a word."""
    parts = split_prompt(f"You are a Product Owner.\n\nSpeak like a pirate.\n\n{ASKED}\n\nNever name FR001.")
    assert parts.notes == (
        "text outside the sections was left out: 'Speak like a pirate.'",
        "text beside the REQUIREMENTS was left out: 'Never name FR001.'",
    )
    parts = split_prompt(f"{ASKED}\n\nREQUIREMENTS:\n- Answer in English")
    assert replace(parts, notes=()) == QUESTION
    assert parts.notes == ("text beside the REQUIREMENTS was left out: '- Answer in English'",)
    parts = split_prompt(f"CONCEPT: A planner\n\nExigences :\n```yaml\n{REQUIREMENTS}```\n```yaml REVIEW\n{REVIEW}```")
    assert replace(parts, notes=()) == QUESTION
    assert parts.notes == (
        "text beside the REQUIREMENTS was left out: 'Exigences :'",
        "the prompt holds a REVIEW, which is part of the answer; it was left out of the prompt",
    )


@pytest.mark.parametrize(
    "lead", ["The team agreed on these.", "As of May:", "They were agreed in May.\n\nThree are new."]
)
@pytest.mark.parametrize("heading", ["REQUIREMENTS:", "## Requirements", "**Requirements**"])
def test_prose_between_a_heading_and_its_block_is_no_part_of_anything(lead: str, heading: str) -> None:
    """It is named; neither the concept nor the document holds it."""
    parts = split_prompt(f"CONCEPT: A planner\n\n{heading}\n{lead}\n\n```yaml\n{REQUIREMENTS}```")
    assert replace(parts, notes=()) == QUESTION
    assert parts.notes == (f"text beside the REQUIREMENTS was left out: {' '.join(lead.split())!r}",) or "Three" in lead
    if "Three" in lead:
        return
    existing = f"CONCEPT: A planner\n\nEXISTING_VISION:\n{lead}\n```yaml\n{VISION}```\n\nREQUIREMENTS:\n{REQUIREMENTS}"
    assert replace(split_prompt(existing), notes=()) == replace(QUESTION, existing_vision_yaml=VISION.strip())


def test_requirements_in_several_blocks_are_one_document() -> None:
    """As long as no key comes twice: an example has the same keys."""
    start = REQUIREMENTS.index("non_functional")
    first, second = REQUIREMENTS[:start], REQUIREMENTS[start:]
    for between in ("", "### Others\n"):
        parts = split_prompt(f"CONCEPT: A planner\n\nREQUIREMENTS:\n```yaml\n{first}```\n{between}```yaml\n{second}```")
        assert replace(parts, notes=()) == QUESTION
    example = "Example of a constraint:\n```yaml\nconstraints:\n- id: C009\n```"
    parts = split_prompt(f"CONCEPT: A planner\n\nREQUIREMENTS:\n```yaml\n{first}```\n{example}")
    assert parts.requirements_yaml == first.strip()
    sample = 'Cite as here:\n```yaml\n- id: FR001\n```\n```json\n{"constraints": []}\n```'
    parts = split_prompt(f"CONCEPT: A planner\n\nREQUIREMENTS:\n```yaml\n{REQUIREMENTS}```\n{sample}")
    assert replace(parts, notes=()) == QUESTION


@pytest.mark.parametrize(
    "closing",
    [
        *(
            "Answer:",
            "### Response:",
            "Return only the two YAML blocks.",
            CLOSING,
            f"## Task\n{CLOSING}",
            "---\nRespond in YAML.",
        ),
        "Return this: two fenced YAML blocks",
    ],
)
def test_a_closing_line_is_never_a_section(closing: str) -> None:
    """Where the last section is empty or prose, too."""
    asked = f"CONCEPT: A planner\n\nREQUIREMENTS:\n{REQUIREMENTS}\n\nEXISTING_VISION:\n"
    for existing in ("", "None", "Be first.", "Be first.\n\nBe fair.", "- Be first"):
        parts = split_prompt(f"{asked}{existing}\n\n{closing}")
        expected = None if existing in {"", "None"} else existing
        assert replace(parts, notes=()) == replace(QUESTION, existing_vision_yaml=expected)
    assert split_prompt(f"CONCEPT: A planner\n\nREQUIREMENTS:\n\n{closing}").requirements_yaml is None
    assert split_prompt(f"REQUIREMENTS:\n{REQUIREMENTS}\n\nCONCEPT:\n\n{closing}").concept is None
    assert split_prompt(f"REQUIREMENTS:\n{REQUIREMENTS}\n\nCONCEPT:\nA planner\n\n{closing}").concept == "A planner"
    for concept in ("Review tool for YAML", "Give each courier a fenced yard.", '"""\nA desk.\n\nAnswer in YAML.\n"""'):
        parts = split_prompt(f"REQUIREMENTS:\n{REQUIREMENTS}\n\nCONCEPT:\n{concept}")
        assert parts.concept == concept.strip('"\n')


def test_a_line_across_or_a_last_cue_is_no_part_of_a_text() -> None:
    """Of a vision in prose, or of a concept, without a blank line above it."""
    expected = replace(QUESTION, existing_vision_yaml="Be first.")
    concept, requirements, existing = (
        "CONCEPT:\nA planner",
        f"REQUIREMENTS:\n{REQUIREMENTS}",
        "EXISTING_VISION:\nBe first.",
    )
    for prompt in (
        f"{concept}\n\n{existing}\n\n---\n\n{requirements}",
        f"{concept}\n\n{requirements}\n\n{existing}\nOutput:",
        f"{requirements}\n\n{existing}\n\n{concept}\nAnswer:",
    ):
        assert replace(split_prompt(prompt), notes=()) == expected


@pytest.mark.parametrize("lead", ["Here are its requirements:", "These are the requirements to review."])
@pytest.mark.parametrize("form", ["REQUIREMENTS:\n{}", "```yaml REQUIREMENTS\n{}```", "```yaml\n{}```"])
def test_a_line_that_announces_the_requirements_is_no_part_of_the_concept(lead: str, form: str) -> None:
    """It is named; a line of the concept that only holds the word stays."""
    parts = split_prompt(f"CONCEPT:\nA planner\n\n{lead}\n\n{form.format(REQUIREMENTS)}")
    assert replace(parts, notes=()) == QUESTION
    assert parts.notes == (f"text beside the REQUIREMENTS was left out: {lead!r}",)
    concept = "A planner\n\nThis is our vision:\n\nVISION:\nBe first.\n\nThese requirements of law bind it."
    for end in ("", "\nThese are hard requirements for a team.", "\n\nBelow are only soft requirements."):
        assert split_prompt(f"CONCEPT:\n{concept}{end}\n\n{form.format(REQUIREMENTS)}").concept == concept + end


@pytest.mark.parametrize("name", ["CONCEPT", "REQUIREMENTS"])
def test_an_example_does_not_take_the_place_of_what_the_task_leaves_empty(name: str) -> None:
    """Its concept beside the task's requirements would be a question that nobody asked."""
    example = f"CONCEPT: A desk\nREQUIREMENTS:\ntitle: Desk\n\n{format_answer(VISION, REVIEW)}\n\n"
    task = ASKED.replace("A planner" if name == "CONCEPT" else REQUIREMENTS, "")
    parts = split_prompt(f"{example}{task}\n\n{CLOSING}")
    assert (parts.concept if name == "CONCEPT" else parts.requirements_yaml) is None


def test_a_vision_given_away_makes_no_example_of_the_only_task() -> None:
    """Where the name of the concept stands twice, or is explained."""
    given = f"REQUIREMENTS:\n{REQUIREMENTS}\n\nVISION:\n{VISION}"
    for start in ("<concept>\n# Concept\nA planner\n</concept>", "CONCEPT: the idea\n\nCONCEPT: A planner"):
        parts = split_prompt(f"{start}\n\n{given}")
        assert replace(parts, notes=()) == replace(QUESTION, vision_yaml=VISION.strip())


def test_a_template_of_dots_gives_no_vision_away() -> None:
    """Nothing is noted of it."""
    form = "```yaml VISION\n...\n```\n\n```yaml REVIEW\n...\n```"
    assert split_prompt(f"{ASKED}\n\n## VISION\n\n## REVIEW\n") == QUESTION
    parts = split_prompt(f"{ASKED}\n\nAnswer in this form:\n\n{form}")
    assert parts == replace(QUESTION, notes=("text beside the REQUIREMENTS was left out: 'Answer in this form:'",))


@pytest.mark.parametrize(
    "closing", ["Now write it.", "Important: name ids.", "Think step by step.", "Please be brief."]
)
def test_a_last_paragraph_that_may_be_meant_for_the_answer_is_named(closing: str) -> None:
    """Nobody can tell whether it is the concept's; between sections it is."""
    parts = split_prompt(f"REQUIREMENTS:\n{REQUIREMENTS}\n\nCONCEPT:\nA planner\n\n{closing}")
    assert parts.notes == (f"the CONCEPT holds {closing!r}, which may be meant for the answer",)
    assert not split_prompt(f"CONCEPT:\nA planner\n\n{closing}\n\nREQUIREMENTS:\n{REQUIREMENTS}").notes


@pytest.mark.parametrize("form", ["REQUIREMENTS:\n{}", "<requirements>\n{}\n</requirements>", "## Requirements\n\n{}"])
def test_a_key_above_all_of_a_document_stays(form: str) -> None:
    """`requirements:` with an indented document is no heading within its section."""
    document = "requirements:\n  functional:\n  - id: FR001\n    text: Plan nights"
    assert split_prompt(f"CONCEPT: A planner\n\n{form.format(document)}").requirements_yaml == document
    assert (
        split_prompt(f"concept: A planner\n{document}").requirements_yaml
        == "functional:\n- id: FR001\n  text: Plan nights"
    )


def test_an_existing_vision_may_stand_under_its_key() -> None:
    """It is not the answer's; the name may be that of the column."""
    for text in (VISION.strip(), f"```yaml\n{VISION}```"):
        parts = split_prompt(ASKED.replace("REQ", f"existing_vision_yaml:\n{text}\n\nREQ"))
        assert parts == replace(QUESTION, existing_vision_yaml=VISION.strip())
    wrapped = "vision:\n  product_name: Planner\n  non_goals: []"
    parts = split_prompt(ASKED.replace("REQ", f"EXISTING_VISION:\n{wrapped}\n\nREQ"))
    assert parts == replace(QUESTION, existing_vision_yaml=wrapped)


def test_a_list_of_requirements_ends_before_the_closing_line() -> None:
    """So that the reason why it is refused is the list."""
    parts = split_prompt(f"CONCEPT: A planner\n\nREQUIREMENTS:\n- FR001: Plan\n\n{CLOSING}")
    assert parts.requirements_yaml == "- FR001: Plan"


@pytest.mark.parametrize(
    "marks",
    [
        "# CONCEPT|# EXISTING VISION|# REQUIREMENTS",
        "## 1. Concept|## 2. Existing vision|## 3. Requirements",
        "# Concept|# Existing vision|# Requirements",
    ],
)
def test_headings_need_no_blank_line_above(marks: str) -> None:
    """In a document `# Vision` may be a comment; another section's name, marked as its own is, begins that section."""
    concept, existing, requirements = marks.split("|")
    expected = replace(QUESTION, existing_vision_yaml=VISION.strip())
    prompt = f"{concept}\nA planner\n{existing}\n{VISION}{requirements}\n{REQUIREMENTS}"
    assert split_prompt(prompt) == expected
    commented = VISION.replace("target_users", "# Vision\ntarget_users").strip()
    assert split_prompt(prompt.replace(VISION.strip(), commented)).existing_vision_yaml == commented
    commented = REQUIREMENTS.replace("constraints", "# Concept\nconstraints").strip()
    assert split_prompt(f"# Concept\nA planner\n# Requirements\n{commented}").requirements_yaml == commented


def test_a_prompt_may_be_indented_as_a_whole() -> None:
    """As in a program's text."""
    prompt = f"You are a Product Owner.\n\n{ASKED}\n\n{CLOSING}"
    assert split_prompt("\n" + "\n".join(f"      {line}" if line else "" for line in prompt.split("\n"))) == QUESTION


@pytest.mark.parametrize("existing", ["", "None", "Be first.\n\nBe fair."])
@pytest.mark.parametrize("lead", ["Answer in this form:", "Output format:", "Example:"])
def test_a_form_behind_an_existing_vision_is_not_the_vision(existing: str, lead: str) -> None:
    """The block is told by its keys alone."""
    form = "```yaml\nproduct_name: X\nproduct_summary: Y\n```"
    parts = split_prompt(f"{ASKED}\n\nEXISTING_VISION:\n{existing}\n\n{lead}\n{form}")
    assert "X" not in str(parts.existing_vision_yaml)
