"""Rows of every format give the same record; rows of none say what was found."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from po_assets.dag.pages import CELL_CHARACTERS
from po_assets.intake.formats import FORMATS
from po_assets.intake.lines import Reason, Rejected
from po_assets.intake.normalization import Normalized, input_digest, normalize
from po_assets.product_owner import build_prompt
from po_assets.product_owner.templates import AGENT
from po_assets_tests.intake.landed_rows import (
    BUILDERS,
    CONCEPT,
    batch_row,
    chat_row,
    completion_row,
    line_of,
    nested_row,
    pair_row,
    prompt_output_row,
    teacher_row,
    vision_prompt_row,
)
from po_assets_tests.product_owner.documents_text import REQUIREMENTS, REVIEW, VISION


def reject(row: dict[str, Any]) -> Rejected:
    """The rejection of a row."""
    with pytest.raises(Rejected) as rejected:
        normalize(line_of(row))
    return rejected.value


@pytest.mark.parametrize("name", BUILDERS)
def test_each_format_is_detected_and_gives_the_same_texts(name: str) -> None:
    """What the student is shown does not depend on the format in which it landed."""
    row = kept(BUILDERS[name]()).row
    assert (row["format"], row["status"], row["vision_in_prompt"]) == (name, "needs_adjustment", False)


def test_every_format_has_a_row_in_these_tests() -> None:
    """A new format brings its test with it."""
    assert [known.name for known in FORMATS] == list(BUILDERS)


def test_identifiers_and_metadata_are_kept() -> None:
    """What the teacher said about a row is not lost, wherever in the row it stands."""
    row = normalize(line_of(nested_row())).row
    assert (row["concept_id"], row["tier"]) == ("C-1", "medium")
    assert row["metadata"] == {"region": "EU", "seconds": 3}


def test_an_unknown_row_names_its_keys_and_the_known_formats() -> None:
    """The person who landed it can see what is missing from which format."""
    rejected = reject({"question": "?", "answer": "!"})
    assert rejected.reason == Reason.UNKNOWN_FORMAT
    assert rejected.detail == (
        "the row has question, answer; known formats are teacher, nested, prompt/output, pair, prompt/completion, "
        "preference, chat, sharegpt, alpaca, batch (see docs/formats.md)"
    )
    assert len(reject({f"key_{number}": 1 for number in range(50)}).detail) <= CELL_CHARACTERS


def test_of_several_turns_the_last_answered_one_is_read() -> None:
    """As in few-shot prompts; the others are named, and the last question must stand for itself."""
    earlier = chat_row({"concept": "An appointment desk for village vets"})["messages"]
    row = chat_row(messages=[*earlier, *chat_row()["messages"][1:], {"role": "user", "content": "Thank you."}])
    normalized = normalize(line_of(row))
    assert normalized.row["concept"] == CONCEPT
    assert "2 earlier messages before the last question were not read" in normalized.notes
    assert "1 later message after the answer was not read" in normalized.notes
    row["messages"] += [{"role": "assistant", "content": pair_row()["response"]}]
    assert "the prompt has no CONCEPT section" in reject(row).detail


def test_a_vision_in_the_prompt_is_flagged_and_stands_in_for_a_missing_concept() -> None:
    """The template rows show the vision instead of a concept: its name and summary are all that is known."""
    normalized = normalize(line_of(vision_prompt_row()))
    assert normalized.row["vision_in_prompt"]
    assert normalized.row["concept"].startswith("Route Planner: A planner that helps dispatchers")
    assert normalized.row["metadata"] == {"concept_from": "vision"}
    assert "it was made from product_name and product_summary" in normalized.notes
    assert "it was left out of the prompt" in normalized.notes


PROMPT, TEXT = pair_row().values()
USER, ANSWER = {"role": "user", "content": PROMPT}, {"role": "assistant", "content": TEXT}
OTHER = pair_row({"review": REVIEW.replace("needs_adjustment", "aligned")})["response"]
GEMINI = [{"role": role, "parts": [{"text": text}]} for role, text in (("user", PROMPT), ("model", TEXT))]
SHAREGPT = [{"from": "human", "value": PROMPT}, {"from": "gpt", "value": TEXT}]
PARTS = [{"type": "text", "text": TEXT}]
IN_PARTS = ANSWER | {"content": PARTS}
THINKING = ANSWER | {"content": [{"type": "thinking", "thinking": "Hm."}, *PARTS]}
WITH_CALL = ANSWER | {"content": [*PARTS, {"type": "tool_use", "name": "search", "input": {}}]}
CALL = {"type": "web_search_call", "id": "1"}
MESSAGE = {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": TEXT}]}
UNTYPED = [said | {"role": None, "type": kind} for said, kind in ((USER, "human"), (ANSWER, "ai"))]
NOT_THE_ANSWER = {"role": "assistant", "content": "Hm.", "weight": 0}
ASKED = {"messages": [USER]}
CUT = {"body": {"status": "incomplete", "output": [ANSWER | {"type": "message"}]}}
FILTERED = {"body": {"choices": [{"message": ANSWER, "finish_reason": "content_filter"}]}}
INPUT = nested_row()["input"]
CHOICES = [{"message": ANSWER}, {"message": ANSWER | {"content": OTHER}}]


def chat(*messages: Any) -> dict[str, Any]:
    """A row of these messages."""
    return {"messages": list(messages)}


def system(text: str | None, role: str = "system") -> dict[str, Any]:
    """A system message."""
    return {"role": role, "content": text}


def kept(row: dict[str, Any]) -> Normalized:
    """The normalized row of the documents that all these rows hold."""
    normalized = normalize(line_of(row))
    found = normalized.row
    assert (found["concept"], found["requirements_yaml"]) == (CONCEPT, REQUIREMENTS.strip())
    assert (found["vision_yaml"], found["review_yaml"]) == (VISION.strip(), REVIEW.strip())
    return normalized


NO_SYSTEM = "the system message was left out of the prompt"
NO_VALUES = (None, "", [], {}, {"a": None, "b": {"c": None}}, [None])


@given(
    st.sampled_from(list(BUILDERS)),
    st.dictionaries(
        st.sampled_from(sorted({key for build in BUILDERS.values() for key in build()} - {"score"})),
        st.sampled_from(NO_VALUES),
    ),
)
def test_columns_without_a_value_are_absent(name: str, empty: dict[str, object]) -> None:
    """As exports of mixed rows write them: they decide about no format, and nothing is said of them."""
    row = BUILDERS[name]()
    normalized = kept({key: value for key, value in empty.items() if key not in row} | row)
    assert normalized.row["format"] == name
    assert normalized.notes == kept(row).notes


READ: list[tuple[dict[str, Any], str, str]] = [
    (chat(USER | {"role": "human"}, ANSWER | {"role": "ai"}), "chat", ""),
    (chat(system("Be kind.", "developer"), USER, ANSWER | {"role": "model"}), "chat", NO_SYSTEM),
    ({"contents": GEMINI}, "chat", ""),
    ({"conversations": [USER, ANSWER], "system": "Be kind."}, "sharegpt", "not read: system 'Be kind.'"),
    (chat(*SHAREGPT), "chat", ""),
    (ASKED | {"response": TEXT}, "chat", ""),
    (chat(USER, ANSWER | {"reasoning_content": "Hm."}), "chat", "left out of the messages: reasoning_content"),
    (chat(USER, THINKING), "chat", "left out of the messages: thinking"),
    # Parts that belong together without a line end between them.
    (chat(USER | {"content": PROMPT.split("\n\n")}, ANSWER | {"content": TEXT.partition("\n\n")[::2]}), "chat", ""),
    (
        chat(USER | {"content": [PROMPT[: PROMPT.index("onfirm")], PROMPT[PROMPT.index("onfirm") :]]}, ANSWER),
        "chat",
        "",
    ),
    (chat(USER, ANSWER | {"weight": 1}), "chat", ""),
    (chat(USER, NOT_THE_ANSWER, USER, ANSWER), "chat", "2 earlier messages before the last question were not read"),
    (
        chat(system(PROMPT), USER | {"content": "Begin."}, ANSWER),
        "chat",
        "the sections stand in the system message",
    ),
    ({"prompt": [USER], "completion": TEXT}, "prompt/completion", ""),
    ({"chosen": [USER, ANSWER], "rejected": [USER]}, "preference", "not read: rejected"),
    ({"input": PROMPT, "output": TEXT}, "alpaca", ""),
    (
        {"custom_id": "1", "params": ASKED, "result": {"message": IN_PARTS | {"stop_reason": "end_turn"}}},
        "batch",
        "",
    ),
    ({"request": ASKED, "response": {"choices": [{"message": ANSWER}, {"message": ANSWER}]}}, "batch", ""),
    (
        {
            "custom_id": "1",
            "body": {"input": PROMPT},
            "response": {"body": {"output": [{"type": "reasoning"}, MESSAGE]}},
        },
        "batch",
        "",
    ),
    (teacher_row(messages=[USER, ANSWER]), "teacher", "not read: messages"),
    (teacher_row(weight=0.5, reviewed=False, tags=[]), "teacher", "not read: weight 0.5, reviewed False"),
    (pair_row(label=0, teacher_product_vision="nan", messages="null"), "pair", "not read: label 0"),
    (nested_row(output=TEXT), "nested", ""),
    ({"concept": "\ufeff" + CONCEPT, "requirements_yaml": REQUIREMENTS, "response": TEXT}, "teacher", ""),
    ({"custom_id": "1", "params": {"system": "Hi."} | ASKED, "result": {"message": IN_PARTS}}, "batch", NO_SYSTEM),
    # Traces and logs have the request in any envelope, and the answer as text, as a message or in the response.
    ({"request": ASKED, "response": TEXT}, "batch", ""),
    ({"input": ASKED, "output": ANSWER}, "batch", ""),
    (ASKED | {"message": ANSWER}, "batch", ""),
    ({"modelInput": ASKED, "modelOutput": IN_PARTS | {"stop_reason": "end_turn"}}, "batch", ""),
    ({"contents": GEMINI[:1], "candidates": [{"content": GEMINI[1]}]}, "batch", ""),
    (ASKED | {"output": {"message": ANSWER}}, "batch", ""),
    ({"request": ASKED, "response": {"output": {"message": ANSWER}, "stopReason": "end_turn"}}, "batch", ""),
    ({"prompt": PROMPT, "chosen": ANSWER}, "preference", ""),
    ({"conversations": SHAREGPT[:1], "chosen": SHAREGPT[1], "rejected": SHAREGPT[1]}, "sharegpt", "not read: rejected"),
    (
        chat(USER, ANSWER) | {"teacher_product_vision": "N/A", "split": "nan", "flag": "bad"},
        "chat",
        "not read: flag 'bad'",
    ),
    (chat(*UNTYPED), "chat", ""),
    (chat(system(None), USER, ANSWER), "chat", ""),
    (chat(USER, WITH_CALL), "chat", "left out of the messages: tool_use"),
    (
        chat(USER, ANSWER | {"channel": "analysis", "content": OTHER}, ANSWER | {"channel": "final"}),
        "chat",
        "left out of the messages: channel analysis",
    ),
    (nested_row(flags={"bad": 1}, reviewer="x" * 60), "nested", "not read: flags, reviewer"),
    (teacher_row(metadata="from May"), "teacher", "metadata must be an object, got 'from May'; it was not read"),
]


@pytest.mark.parametrize(("row", "name", "note"), READ)
def test_what_others_write_is_read_and_the_rest_is_named(row: dict[str, Any], name: str, note: str) -> None:
    """Other tools' rows give the same four texts; what of them is not read stands in the note."""
    normalized = kept(row)
    assert normalized.row["format"] == name
    assert note in normalized.notes
    assert note or "not read" not in normalized.notes


REFUSED: dict[str, dict[str, Any]] = {
    # One rejection says everything that is wrong with the row's form.
    "missing part: concept is blank; requirements_yaml is missing; teacher_product_owner_review is missing": {
        "concept": " ",
        "teacher_product_vision": VISION,
    },
    "missing part: input.concept is missing; input.requirements_yaml is missing; output.product_owner_review is missing; output.product_vision must be a string, got {'a': 1}": {
        "input": {},
        "output": {"product_vision": {"a": 1}},
    },
    "missing part: the prompt has no CONCEPT section": prompt_output_row(prompt="Hello"),
    "missing part: the prompt has no REQUIREMENTS": prompt_output_row(prompt="Hello"),
    "missing part: the REVIEW block is missing": prompt_output_row(output="```yaml VISION\na: 1\n```"),
    "missing part: the VISION block is missing": pair_row(response="no blocks"),
    "missing part: there is no question of a user (roles found: none); there is no answer (roles found: none)": chat(),
    "missing part: there is no question of a user (roles found: assistant)": chat(ANSWER),
    "missing part: there is no answer": chat(USER, ANSWER | {"content": "", "reasoning_content": TEXT}),
    "missing part: there is no answer (roles found: system, user)": batch_row(response=None),
    "missing part: there is no answer (roles found: user); not read: answers": pair_row(response=None, answers=[TEXT]),
    "missing part: the service gave no answer but an error: {'code': 'x'}": batch_row(
        response=None, error={"code": "x"}
    ),
    "missing part: there is no answer (roles found: user); not read: response.type 'expired'": {
        "request": ASKED,
        "response": {"type": "expired"},
    },
    "missing part: the answer rests on tool calls": {"request": ASKED, "response": {"output": [CALL, MESSAGE]}},
    "missing part: the answer rests on tool calls, which": {"input": PROMPT, "output": [CALL]},
    "missing part: but an error: 429": batch_row(response={"status_code": 429}),
    "missing part: the line has no request (body.messages): put the body of the same custom_id": batch_row(body=None),
    "missing part: message 2: the answer is a refusal: 'I cannot.'": chat(
        USER, ANSWER | {"content": None, "refusal": "I cannot."}
    ),
    "missing part: teacher_product_vision is missing; teacher_product_owner_review is missing": {
        "concept": "x",
        "requirements_yaml": "a: 1",
    },
    "missing part: it must name CONCEPT: and REQUIREMENTS:": {"prompt": "x"},
    # What a person sees in the row is not just missing: it is said why it does not count.
    "missing part: what its reasoning marks (such as </think>) close, or open, is not the answer": pair_row(
        response=f"<think>\n{TEXT}\n</think>"
    ),
    "missing part: line 1 begins a document without a fence": pair_row(response=f"{VISION}\n{REVIEW}"),
    "missing part: the fence of the REQUIREMENTS in line 3 is not closed": pair_row(
        prompt=f"CONCEPT: {CONCEPT}\nREQUIREMENTS:\n```yaml\n{REQUIREMENTS}"
    ),
    "missing part: 2 earlier messages before the last question were not read": chat(
        USER, ANSWER, USER | {"content": "Thanks"}, ANSWER | {"content": "Bye."}
    ),
    "missing part: the prompt has no CONCEPT section and no vision to take it from": prompt_output_row(
        prompt="```yaml VISION\na: 1\n```\n```yaml REQUIREMENTS\nFR001: x\n```"
    ),
    "schema: concept must be a string, got 7": teacher_row(concept=7),
    "schema: messages must be an array, got 'hi'": chat_row(messages="hi"),
    "schema: message 1 must have role and content as strings": chat({"role": "user"}),
    "schema: message 1 must have role and content": chat(3),
    "schema: input.existing_vision_yaml must be a string, got {'a': 1}": nested_row(
        input=INPUT | {"existing_vision_yaml": {"a": 1}}
    ),
    "schema: message 1 holds a part of type 'inlineData'; only text is read": chat(
        USER | {"content": [{"inlineData": {"mimeType": "image/png"}}]}, ANSWER
    ),
    "schema: message 1 has the role 'narrator'; known roles are user, human": chat(USER | {"role": "narrator"}, ANSWER),
    "weight 0: weight is 0: whoever wrote the row does not want it trained on": teacher_row(weight=0),
    "weight 0: message 2: train is False": chat(USER, ANSWER | {"train": False}),
    "weight 0: metadata.weight is 0.0": teacher_row(metadata={"weight": 0.0}),
    "weight 0: weight is '0.0'": teacher_row(weight="0.0"),
    "weight 0: sample_weight is 0": teacher_row(sample_weight=0),
    "weight 0: train is 'False'": teacher_row(train="False"),
    "weight 0: message 2: loss is False": chat(USER, ANSWER | {"loss": False}),
    "weight 0: input.weight is 0": nested_row(input=INPUT | {"weight": 0}),
    "weight 0: label is False: the row says that its answer is a bad one": completion_row(label=False),
    "weight 0: label is 'false'": completion_row(label="false"),
    "answer cut: finish_reason is 'MAX_TOKENS': the answer was cut": pair_row(finish_reason="MAX_TOKENS"),
    "answer cut: truncated is True": pair_row(truncated=True),
    "answer cut: stopped_limit is True": pair_row(stopped_limit=True),
    "answer cut: the response's stopReason": {
        "request": ASKED,
        "response": {"output": {"message": ANSWER}, "stopReason": "max_tokens"},
    },
    "answer cut: is_truncated is 'true'": pair_row(is_truncated="true"),
    "answer cut: metadata.review_finish_reason": teacher_row(metadata={"review_finish_reason": "length"}),
    "answer cut: metadata.finish_reason": teacher_row(
        metadata={"finish_reason": {"vision": "stop", "review": "length"}}
    ),
    "answer cut: response_metadata.finish_reason": pair_row(
        response_metadata={"finish_reason": "FinishReason.MAX_TOKENS"}
    ),
    "answer cut: message 2: metadata.incomplete_details": chat(
        USER, ANSWER | {"metadata": {"incomplete_details": {"reason": "max_output_tokens"}}}
    ),
    "answer cut: metadata.calls.2.finish_reason is 'length'": teacher_row(
        metadata={"calls": [{"finish_reason": "stop"}, {"finish_reason": "length"}]}
    ),
    "answer cut: the response's status is 'incomplete'": batch_row(response=CUT),
    "answer cut: metadata.stop_reason is 'length'": teacher_row(metadata='{"stop_reason": "length"}'),
    "answer cut: output.done_reason": nested_row(output=nested_row()["output"] | {"done_reason": "length"}),
    "answer cut: the service stopped the answer": batch_row(response=FILTERED),
    "ambiguous: the row holds two answers that differ, as teacher (concept, requirements_yaml": teacher_row(
        response=TEXT.replace("aligned", "conflicts")
    ),
    "ambiguous: 2 different choices": batch_row(response={"body": {"choices": CHOICES}}),
    "ambiguous: the response holds 2 different choices": ASKED | {"choices": CHOICES},
    "ambiguous: as prompt/output (prompt, output": pair_row(output=OTHER),
}


@pytest.mark.parametrize("said", REFUSED)
def test_what_cannot_or_must_not_be_trained_on_is_refused_in_a_sentence(said: str) -> None:
    """Parts missing, cut, refused, weighted with nothing, answered twice, or no text at all."""
    reason, _, detail = said.partition(": ")
    rejected = reject(REFUSED[said])
    assert rejected.reason == reason
    assert detail in rejected.detail
    assert rejected.format_name is not None


def test_metadata_written_as_json_text_is_read() -> None:
    """Tables of some tools have no objects."""
    replaced = {"replaces": "0123456789abcdef"}
    assert kept(teacher_row(metadata=json.dumps(replaced))).row["metadata"] == replaced


@pytest.mark.parametrize("existing", ["", "product_name: Old planner\nproduct_summary: It plans."])
def test_logs_of_the_running_agent_are_read(existing: str) -> None:
    """As chat and as one prompt; the existing vision is a part of its own, which the input's digest counts."""
    system, user = AGENT.turns(CONCEPT, REQUIREMENTS, existing)
    prompt = f"{system['content']}\n\n{user['content']}"
    rows = [
        kept({"messages": [system, user, ANSWER]}),
        kept({"prompt": prompt, "output": TEXT}),
        kept(pair_row(prompt=build_prompt(CONCEPT, REQUIREMENTS, existing))),
        kept(teacher_row(existing_vision_yaml=existing or "(none)", metadata={})),
        kept(teacher_row(metadata={"existing_vision_yaml": existing.replace("\n", "\r\n")})),
    ]
    for row in rows:
        assert row.row["metadata"] == ({"existing_vision_yaml": existing} if existing else {})
        assert row.row["input_digest"] == input_digest(CONCEPT, REQUIREMENTS, existing)
        assert not row.row["vision_in_prompt"]
    assert (input_digest(CONCEPT, REQUIREMENTS, existing) == input_digest(CONCEPT, REQUIREMENTS)) == (not existing)


@pytest.mark.parametrize(
    "existing",
    [
        "No existing vision.",
        "(none yet)",
        "There is no vision yet",
        "Not provided",
        "None so far; it is new.",
        "None. Write one.",
        "No hay visi\u00f3n",
        "NaN",
        "undefined",
        "# none yet",
        "**None**",
    ],
)
def test_an_existing_vision_may_be_said_to_be_none(existing: str) -> None:
    """In words, too; a vision that begins with *No* is one."""
    assert "existing_vision_yaml" not in kept(teacher_row(existing_vision_yaml=existing)).row["metadata"]
    slogan = "No more paper in our clinics."
    assert kept(teacher_row(existing_vision_yaml=slogan)).row["metadata"]["existing_vision_yaml"] == slogan
