"""Rows of every format give the same record; rows of none say what was found."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from po_assets.dag.verdict import CELL_CHARACTERS
from po_assets.intake.formats import FORMATS, read_record
from po_assets.intake.lines import Reason, Rejected
from po_assets.intake.normalization import Normalized, input_digest, normalize
from po_assets.product_owner import build_prompt
from po_assets.product_owner.prompts import AGENT
from po_assets_tests.intake.landed_rows import (
    BUILDERS,
    CONCEPT,
    batch_row,
    chat_row,
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
    row = normalize(line_of(BUILDERS[name]())).row
    assert row["format"] == name
    assert row["concept"] == CONCEPT
    assert row["requirements_yaml"] == REQUIREMENTS.strip()
    assert row["vision_yaml"] == VISION.strip()
    assert row["review_yaml"] == REVIEW.strip()
    assert row["status"] == "needs_adjustment"
    assert not row["vision_in_prompt"]


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


USER = {"role": "user", "content": pair_row()["prompt"]}
ANSWER = {"role": "assistant", "content": pair_row()["response"]}
OTHER = pair_row({"review": REVIEW.replace("needs_adjustment", "aligned")})["response"]
GEMINI = [{"role": role, "parts": [{"text": said["content"]}]} for role, said in (("user", USER), ("model", ANSWER))]
SHAREGPT = [{"from": "human", "value": USER["content"]}, {"from": "gpt", "value": ANSWER["content"]}]
SYSTEM = [{"role": "system", "content": USER["content"]}, {"role": "user", "content": "Begin."}, ANSWER]
IN_PARTS = {"role": "assistant", "content": [{"type": "text", "text": ANSWER["content"]}]}
THINKING = {"role": "assistant", "content": [{"type": "thinking", "thinking": "Hm."}, *IN_PARTS["content"]]}
WITH_CALL = {
    "role": "assistant",
    "content": [*IN_PARTS["content"], {"type": "tool_use", "name": "search", "input": {}}],
}
MESSAGE = {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": ANSWER["content"]}]}
CUT = {"body": {"status": "incomplete", "output": [ANSWER | {"type": "message"}]}}
FILTERED = {"body": {"choices": [{"message": ANSWER, "finish_reason": "content_filter"}]}}
DIFFERENT = {"body": {"choices": [{"message": ANSWER}, {"message": ANSWER | {"content": OTHER}}]}}


def kept(row: dict[str, Any]) -> Normalized:
    """The normalized row of the documents that all these rows hold."""
    normalized = normalize(line_of(row))
    found = normalized.row
    assert (found["concept"], found["requirements_yaml"]) == (CONCEPT, REQUIREMENTS.strip())
    assert (found["vision_yaml"], found["review_yaml"]) == (VISION.strip(), REVIEW.strip())
    return normalized


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


@pytest.mark.parametrize(
    ("row", "name", "note"),
    [
        (chat_row(messages=[USER | {"role": "human"}, ANSWER | {"role": "ai"}]), "chat", ""),
        (
            chat_row(messages=[{"role": "developer", "content": "Be kind."}, USER, ANSWER | {"role": "model"}]),
            "chat",
            "the system message was left out of the prompt",
        ),
        ({"contents": GEMINI}, "chat", ""),
        ({"conversations": [USER, ANSWER], "system": "Be kind."}, "sharegpt", "not read: system 'Be kind.'"),
        ({"messages": SHAREGPT}, "chat", ""),
        ({"messages": [USER], "response": ANSWER["content"]}, "chat", ""),
        (
            chat_row(messages=[USER, ANSWER | {"reasoning_content": "Hm."}]),
            "chat",
            "left out of the messages: reasoning_content",
        ),
        (chat_row(messages=[USER, THINKING]), "chat", "left out of the messages: thinking"),
        ({"messages": [USER, ANSWER | {"weight": 1}]}, "chat", ""),
        (
            {"messages": [USER, {"role": "assistant", "content": "Hm.", "weight": 0}, USER, ANSWER]},
            "chat",
            "2 earlier messages before the last question were not read",
        ),
        ({"messages": SYSTEM}, "chat", "the sections stand in the system message"),
        ({"prompt": [USER], "completion": ANSWER["content"]}, "prompt/completion", ""),
        ({"chosen": [USER, ANSWER], "rejected": [USER]}, "preference", "not read: rejected"),
        ({"input": USER["content"], "output": ANSWER["content"]}, "alpaca", ""),
        (
            {
                "custom_id": "1",
                "params": {"messages": [USER]},
                "result": {"message": IN_PARTS | {"stop_reason": "end_turn"}},
            },
            "batch",
            "",
        ),
        (
            {"request": {"messages": [USER]}, "response": {"choices": [{"message": ANSWER}, {"message": ANSWER}]}},
            "batch",
            "",
        ),
        (
            {
                "custom_id": "1",
                "body": {"input": USER["content"]},
                "response": {"body": {"output": [{"type": "reasoning"}, MESSAGE]}},
            },
            "batch",
            "",
        ),
        (teacher_row(messages=[USER, ANSWER]), "teacher", "not read: messages"),
        (teacher_row(weight=0.5, reviewed=False, tags=[]), "teacher", "not read: weight 0.5, reviewed False"),
        (pair_row(label=0, teacher_product_vision="nan", messages="null"), "pair", "not read: label 0"),
        (nested_row(output=ANSWER["content"]), "nested", ""),
        (
            {"concept": "\ufeff" + CONCEPT, "requirements_yaml": REQUIREMENTS, "response": ANSWER["content"]},
            "teacher",
            "",
        ),
        (
            {"custom_id": "1", "params": {"system": "Be brief.", "messages": [USER]}, "result": {"message": IN_PARTS}},
            "batch",
            "the system message was left out of the prompt",
        ),
        # Traces and logs have the request in any envelope, and the answer as text, as a message or in the response.
        ({"request": {"messages": [USER]}, "response": ANSWER["content"]}, "batch", ""),
        ({"input": {"messages": [USER]}, "output": ANSWER}, "batch", ""),
        ({"messages": [USER], "message": ANSWER}, "batch", ""),
        ({"modelInput": {"messages": [USER]}, "modelOutput": IN_PARTS | {"stop_reason": "end_turn"}}, "batch", ""),
        (
            {"messages": [said | {"role": None, "type": kind} for said, kind in ((USER, "human"), (ANSWER, "ai"))]},
            "chat",
            "",
        ),
        (chat_row(messages=[{"role": "system", "content": None}, USER, ANSWER]), "chat", ""),
        (chat_row(messages=[USER, WITH_CALL]), "chat", "left out of the messages: tool_use"),
        (
            chat_row(
                messages=[USER, ANSWER | {"channel": "analysis", "content": OTHER}, ANSWER | {"channel": "final"}]
            ),
            "chat",
            "left out of the messages: channel analysis",
        ),
        (nested_row(flags={"bad": 1}, reviewer="x" * 60), "nested", "not read: flags, reviewer"),
        (teacher_row(metadata="from May"), "teacher", "metadata must be an object, got 'from May'; it was not read"),
    ],
)
def test_what_others_write_is_read_and_the_rest_is_named(row: dict[str, Any], name: str, note: str) -> None:
    """Other tools' rows give the same four texts; what of them is not read stands in the note."""
    normalized = kept(row)
    assert normalized.row["format"] == name
    assert note in normalized.notes
    assert note or "not read" not in normalized.notes


@pytest.mark.parametrize(
    ("row", "said"),
    [
        # One rejection says everything that is wrong with the row's form.
        (
            {"concept": " ", "teacher_product_vision": VISION},
            "missing part: concept is blank; requirements_yaml is missing; teacher_product_owner_review is missing",
        ),
        (teacher_row(concept=7), "schema: concept must be a string, got 7"),
        (
            {"input": {}, "output": {"product_vision": {"a": 1}}},
            "missing part: input.concept is missing; input.requirements_yaml is missing; output.product_owner_review is missing; output.product_vision must be a string, got {'a': 1}",
        ),
        (prompt_output_row(prompt="Hello"), "missing part: the prompt has no CONCEPT section"),
        (prompt_output_row(prompt="Hello"), "missing part: the prompt has no REQUIREMENTS"),
        (prompt_output_row(output="```yaml VISION\na: 1\n```"), "missing part: the REVIEW block is missing"),
        (pair_row(response="no blocks"), "missing part: the VISION block is missing"),
        (
            chat_row(messages=[]),
            "missing part: there is no question of a user (roles found: none); there is no answer (roles found: none)",
        ),
        (chat_row(messages="hi"), "schema: messages must be an array, got 'hi'"),
        (chat_row(messages=[{"role": "user"}]), "schema: message 1 must have role and content as strings"),
        (chat_row(messages=[3]), "schema: message 1 must have role and content"),
        (teacher_row(weight=0), "weight 0: weight is 0: whoever wrote the row does not want it trained on"),
        (chat_row(messages=[USER, ANSWER | {"train": False}]), "weight 0: message 2: train is False"),
        (teacher_row(metadata={"weight": 0.0}), "weight 0: metadata.weight is 0.0"),
        (pair_row(finish_reason="MAX_TOKENS"), "answer cut: finish_reason is 'MAX_TOKENS': the answer was cut"),
        (pair_row(truncated=True), "answer cut: truncated is True"),
        (pair_row(is_truncated="true"), "answer cut: is_truncated is 'true'"),
        (teacher_row(weight="0.0"), "weight 0: weight is '0.0'"),
        (
            teacher_row(response=ANSWER["content"].replace("aligned", "conflicts")),
            "ambiguous: the row holds two answers that differ, as teacher (concept, requirements_yaml",
        ),
        (
            nested_row(input=nested_row()["input"] | {"existing_vision_yaml": {"a": 1}}),
            "schema: input.existing_vision_yaml must be a string, got {'a': 1}",
        ),
        (teacher_row(sample_weight=0), "weight 0: sample_weight is 0"),
        (teacher_row(train="False"), "weight 0: train is 'False'"),
        (chat_row(messages=[USER, ANSWER | {"loss": False}]), "weight 0: message 2: loss is False"),
        (nested_row(input=nested_row()["input"] | {"weight": 0}), "weight 0: input.weight is 0"),
        (
            {"prompt": [USER], "completion": [ANSWER], "label": False},
            "weight 0: label is False: the row says that its answer is a bad one",
        ),
        ({"prompt": [USER], "completion": [ANSWER], "label": "false"}, "weight 0: label is 'false'"),
        (teacher_row(metadata={"review_finish_reason": "length"}), "answer cut: metadata.review_finish_reason"),
        (
            teacher_row(metadata={"finish_reason": {"vision": "stop", "review": "length"}}),
            "answer cut: metadata.finish_reason",
        ),
        (
            pair_row(response_metadata={"finish_reason": "FinishReason.MAX_TOKENS"}),
            "answer cut: response_metadata.finish_reason",
        ),
        (
            chat_row(messages=[USER, ANSWER | {"metadata": {"incomplete_details": {"reason": "max_output_tokens"}}}]),
            "answer cut: message 2: metadata.incomplete_details",
        ),
        (
            teacher_row(metadata={"calls": [{"finish_reason": "stop"}, {"finish_reason": "length"}]}),
            "answer cut: metadata.calls.2.finish_reason is 'length'",
        ),
        (batch_row(response=CUT), "answer cut: the response's status is 'incomplete'"),
        (teacher_row(metadata='{"stop_reason": "length"}'), "answer cut: metadata.stop_reason is 'length'"),
        (nested_row(output=nested_row()["output"] | {"done_reason": "length"}), "answer cut: output.done_reason"),
        (batch_row(response=FILTERED), "answer cut: the service stopped the answer"),
        (batch_row(response=DIFFERENT), "ambiguous: 2 different choices"),
        (
            batch_row(response=None, error={"code": "x"}),
            "missing part: the service gave no answer but an error: {'code': 'x'}",
        ),
        (batch_row(response={"status_code": 429}), "missing part: but an error: 429"),
        (
            batch_row(body=None),
            "missing part: the line has no request (body.messages): put the body of the same custom_id",
        ),
        (batch_row(response=None), "missing part: there is no answer (roles found: system, user)"),
        (
            {"messages": [USER], "choices": DIFFERENT["body"]["choices"]},
            "ambiguous: the response holds 2 different choices",
        ),
        (
            chat_row(messages=[USER | {"content": [{"inlineData": {"mimeType": "image/png"}}]}, ANSWER]),
            "schema: message 1 holds a part of type 'inlineData'; only text is read",
        ),
        (
            pair_row(response=None, answers=[ANSWER["content"]]),
            "missing part: there is no answer (roles found: user); not read: answers",
        ),
        (pair_row(output=OTHER), "ambiguous: as prompt/output (prompt, output"),
        (
            chat_row(messages=[USER, ANSWER | {"content": None, "refusal": "I cannot."}]),
            "missing part: message 2: the answer is a refusal: 'I cannot.'",
        ),
        (
            chat_row(messages=[USER | {"role": "narrator"}, ANSWER]),
            "schema: message 1 has the role 'narrator'; known roles are user, human",
        ),
        (chat_row(messages=[ANSWER]), "missing part: there is no question of a user (roles found: assistant)"),
        (
            chat_row(messages=[USER, ANSWER | {"content": "", "reasoning_content": ANSWER["content"]}]),
            "missing part: there is no answer",
        ),
        (
            {"concept": "x", "requirements_yaml": "a: 1"},
            "missing part: teacher_product_vision is missing; teacher_product_owner_review is missing",
        ),
        ({"prompt": "x"}, "missing part: it must name CONCEPT: and REQUIREMENTS:"),
        # What a person sees in the row is not just missing: it is said why it does not count.
        (
            pair_row(response=f"<think>\n{ANSWER['content']}\n</think>"),
            "missing part: what its reasoning marks (such as </think>) close, or open, is not the answer",
        ),
        (pair_row(response=f"{VISION}\n{REVIEW}"), "missing part: line 1 begins a document without a fence"),
        (
            pair_row(prompt=f"CONCEPT: {CONCEPT}\nREQUIREMENTS:\n```yaml\n{REQUIREMENTS}"),
            "missing part: the fence of the REQUIREMENTS in line 3 is not closed",
        ),
        (
            chat_row(messages=[USER, ANSWER, {"role": "user", "content": "Thanks"}, ANSWER | {"content": "Bye."}]),
            "missing part: 2 earlier messages before the last question were not read",
        ),
        (
            prompt_output_row(prompt="```yaml VISION\na: 1\n```\n```yaml REQUIREMENTS\nFR001: x\n```"),
            "missing part: the prompt has no CONCEPT section and no vision to take it from",
        ),
    ],
)
def test_what_cannot_or_must_not_be_trained_on_is_refused_in_a_sentence(row: dict[str, Any], said: str) -> None:
    """Parts missing, cut, refused, weighted with nothing, answered twice, or no text at all."""
    reason, _, detail = said.partition(": ")
    rejected = reject(row)
    assert rejected.reason == reason
    assert detail in rejected.detail
    assert rejected.format_name is not None


def test_metadata_written_as_json_text_is_read() -> None:
    """Tables of some tools have no objects."""
    assert kept(teacher_row(metadata='{"replaces": "0123456789abcdef"}')).row["metadata"] == {
        "replaces": "0123456789abcdef"
    }


@pytest.mark.parametrize("existing", ["", "product_name: Old planner\nproduct_summary: It plans."])
def test_logs_of_the_running_agent_are_read(existing: str) -> None:
    """As chat and as one prompt; the existing vision is a part of its own, which the input's digest counts."""
    system, user = AGENT.turns(CONCEPT, REQUIREMENTS, existing)
    prompt = f"{system['content']}\n\n{user['content']}"
    rows = [
        kept({"messages": [system, user, ANSWER]}),
        kept({"prompt": prompt, "output": ANSWER["content"]}),
        kept(pair_row(prompt=build_prompt(CONCEPT, REQUIREMENTS, existing))),
        kept(teacher_row(existing_vision_yaml=existing or "(none)", metadata={})),
        kept(teacher_row(metadata={"existing_vision_yaml": existing})),
    ]
    for row in rows:
        assert row.row["metadata"] == ({"existing_vision_yaml": existing} if existing else {})
        assert row.row["input_digest"] == input_digest(CONCEPT, REQUIREMENTS, existing)
        assert not row.row["vision_in_prompt"]
    assert (input_digest(CONCEPT, REQUIREMENTS, existing) == input_digest(CONCEPT, REQUIREMENTS)) == (not existing)


@pytest.mark.parametrize(
    "row",
    [
        {"concept": CONCEPT, "requirements_yaml": REQUIREMENTS},
        {"prompt": USER["content"]},
        {"messages": [USER]},
        {"custom_id": "1", "body": {"messages": [USER]}},
        {"input": nested_row()["input"]},
    ],
)
def test_a_question_can_be_read_without_an_answer(row: dict[str, Any]) -> None:
    """Evaluation cases need none."""
    _, record = read_record(row, answer_needed=False)
    assert (record.concept, record.requirements_yaml.strip()) == (CONCEPT, REQUIREMENTS.strip())
    assert not record.vision_yaml + record.review_yaml


@pytest.mark.parametrize(
    "existing",
    ["No existing vision.", "(none yet)", "There is no vision yet", "Not provided", "None so far; it is new."],
)
def test_an_existing_vision_may_be_said_to_be_none(existing: str) -> None:
    """In words, too; a vision that begins with *No* is one."""
    assert "existing_vision_yaml" not in kept(teacher_row(existing_vision_yaml=existing)).row["metadata"]
    slogan = "No more paper in our clinics."
    assert kept(teacher_row(existing_vision_yaml=slogan)).row["metadata"]["existing_vision_yaml"] == slogan
