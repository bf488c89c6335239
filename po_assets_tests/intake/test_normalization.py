"""What is said about a row from the row alone: score, status, validity, identity."""

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from po_assets.intake.lines import Reason, Rejected
from po_assets.intake.normalization import input_digest, normalize, read_score
from po_assets.product_owner import read_status
from po_assets_tests.intake.landed_rows import BUILDERS, CONCEPT, line_of, teacher_row
from po_assets_tests.product_owner.documents_text import REQUIREMENTS, REVIEW, VISION


@pytest.mark.parametrize(("value", "number"), [(0, 0.0), (1, 1.0), (0.875, 0.875), ("0.91", 0.91), (" 1 ", 1.0)])
def test_numbers_and_numbers_written_as_text_are_scores(value: object, number: float) -> None:
    """A number in quotation marks is read, and noted."""
    assert read_score(value)[0] == number
    assert bool(read_score(value)[1]) == isinstance(value, str)


@pytest.mark.parametrize(
    "value",
    [-0.01, 1.01, 90, "high", "", "nan", "inf", True, [0.9], {"value": 0.9}, 10**400, "0.8_5", "٠.٩", "１", "0x1"],
)
def test_a_score_that_is_no_number_from_0_to_1_rejects_the_row(value: object) -> None:
    """A wrong score must not pass for a missing one; the value is quoted."""
    with pytest.raises(Rejected) as rejected:
        read_score(value)
    assert rejected.value.reason == Reason.BAD_SCORE
    assert f"the declared score is {value!r:.60}, a number from 0 to 1 is expected" in rejected.value.detail


@pytest.mark.parametrize(
    ("texts", "detail"),
    [
        ({"review": REVIEW.replace("summary:", "summary: x: y")}, "REVIEW: line 2, column 11: mapping values are not"),
        ({"vision": "just text"}, "VISION: it must be a mapping of keys to values, got plain text"),
        ({"requirements": "- a\n- b"}, "REQUIREMENTS: it must be a mapping of keys to values, got a list"),
        ({"vision": "a: [1", "review": "b: ]"}, "VISION: line 2, column 1: did not find expected"),
        ({"vision": "a: [1", "review": "b: ]"}, "REVIEW: line 1"),
        ({"vision": "a: " + "[" * 60 + "]" * 60}, "nests more than 40 levels"),
        ({"requirements": "a: " + "x" * 300_000}, "characters, at most 50,000 are read"),
        ({"vision": "a: " + "9" * 5000}, "VISION: it holds an integer of 5000 digits; put it in quotes or correct it"),
        ({"vision": "last_updated: 2024-99-99"}, "a value that YAML cannot read: month must be in 1..12"),
        ({"vision": "a: b\nc: \x07"}, "VISION: line 2 holds U+0007 (a control character), which YAML does not allow"),
        ({"vision": f"<answer>\n\n{VISION}"}, "line 1 is neither a key nor an item: '<answer>'"),
        ({"vision": "a: |\n  ```yaml VISION\n  b: 1\n  ```"}, "it was read without the code fences in it"),
        # The line that is prose, the colon that is none, line ends that were escaped twice.
        ({"vision": f"{VISION}Hope it helps."}, "line 19 is neither a key nor an item: 'Hope it helps.'"),
        ({"vision": VISION.replace("name:", "name\uff1a", 1)}, "line 1 holds U+FF1A (fullwidth colon)"),
        ({"vision": VISION.replace("\n", "\\n")}, r"its line ends are written as \n (two characters)"),
    ],
)
def test_yaml_that_does_not_read_rejects_the_row_with_pyyamls_reason(texts: dict[str, str], detail: str) -> None:
    """Each unreadable document is named, with line and column where PyYAML gives them."""
    with pytest.raises(Rejected) as rejected:
        normalize(line_of(teacher_row(texts)))
    assert rejected.value.reason == Reason.BAD_YAML
    assert detail in rejected.value.detail
    assert rejected.value.format_name == "teacher"


def test_texts_are_kept_as_the_teacher_wrote_them_without_fences() -> None:
    """Training shows the student the teacher's own YAML, style and all."""
    fenced = f"```yaml\n{VISION}```"
    assert normalize(line_of(teacher_row({"vision": fenced}))).row["vision_yaml"] == VISION.strip()


def test_a_nul_in_the_concept_is_refused() -> None:
    """Some tokenizers end a text there."""
    with pytest.raises(Rejected, match="the concept holds a NUL character"):
        normalize(line_of(teacher_row({"concept": "a\x00b"})))


@pytest.mark.parametrize("mark", ["[truncated]", "<cut off>", "[...]", "[truncated 234 chars]", "<truncated by size>"])
def test_an_answer_that_says_it_was_cut_is_refused(mark: str) -> None:
    """As loggers shorten what they write down."""
    with pytest.raises(Rejected, match="the REVIEW ends in") as rejected:
        normalize(line_of(teacher_row({"review": f"{REVIEW.strip()} {mark}\n"})))
    assert rejected.value.reason == Reason.ANSWER_CUT
    for notes in ("long names are shown (truncated)", "Orders [cut off at 5 pm]", "Show <truncated cone>"):
        assert normalize(line_of(teacher_row({"vision": f"{VISION}notes: {notes}\n"})))


def test_the_record_id_depends_on_the_line_alone() -> None:
    """The same line has the same id in every file, at every place, with either line ending."""
    data = line_of(teacher_row()).data
    here, there = normalize(line_of(data)), normalize(line_of(data + b"\r", number=7, file="b.jsonl"))
    assert here.row["record_id"] == there.row["record_id"]
    assert here.row["record_id"] != normalize(line_of(teacher_row(score=0.1))).row["record_id"]


@pytest.mark.parametrize(
    "other",
    [
        REQUIREMENTS.upper(),
        REQUIREMENTS.replace("description: ", "description:    "),
        REQUIREMENTS.replace("Route Planner", '"Route Planner"'),
        "constraints: [{description: The service runs in the existing cluster., id: C001}]\n"
        + REQUIREMENTS.partition("constraints:")[0],
    ],
    ids=["case", "white space", "quotes", "key order and flow style"],
)
def test_the_input_digest_is_blind_to_style(other: str) -> None:
    """Nothing but what it says counts."""
    assert input_digest(f"  {CONCEPT.upper()}\n", other) == input_digest(CONCEPT, REQUIREMENTS)


def test_the_input_digest_tells_inputs_apart() -> None:
    """One changed word is another input, also where the YAML does not parse."""
    digests = {
        input_digest(CONCEPT, REQUIREMENTS),
        input_digest(CONCEPT + "s", REQUIREMENTS),
        input_digest(CONCEPT, REQUIREMENTS.replace("photo", "film")),
        input_digest(CONCEPT, "a: ["),
        input_digest(CONCEPT, "b: ["),
    }
    assert len(digests) == 5


TEXTS = st.text(st.characters(codec="utf-8"), max_size=60) | st.sampled_from(
    [VISION, REVIEW, REQUIREMENTS, "a: 1", "&a [*a]"]
)
ENVELOPES = ("contents", "result", "choices", "request", "params", "weight", "finish_reason", "truncated", "output")
MESSAGE_KEYS = ("role", "from", "content", "value", "parts", "type", "text", "refusal", "message", "messages", "body")
VALUES = st.recursive(
    TEXTS
    | st.none()
    | st.integers(-(2**53), 2**53)
    | st.booleans()
    | st.sampled_from(["user", "assistant", "message", 0.5]),
    lambda values: (
        st.lists(values, max_size=3) | st.dictionaries(st.sampled_from((*MESSAGE_KEYS, *ENVELOPES)), values, max_size=4)
    ),
    max_leaves=6,
)


@settings(max_examples=300, deadline=None)
@given(
    st.fixed_dictionaries(
        {},
        optional=dict.fromkeys(sorted({*ENVELOPES, *(key for build in BUILDERS.values() for key in build())}), VALUES),
    )
)
def test_any_row_gives_a_row_that_json_can_carry_or_a_reason(row: dict[str, object]) -> None:
    """Nothing that lands can stop the others."""
    try:
        assert orjson.loads(orjson.dumps(normalize(line_of(orjson.dumps(row))).row))
    except Rejected as rejected:
        assert rejected.detail  # noqa: PT017


@pytest.mark.parametrize(
    "written",
    ["misaligned", "'Misaligned'", '"misaligned"', "MISALIGNED  # sic", "misaligned\nnotes: |\n  ```\n  a\n  ```"],
)
def test_an_alias_of_a_status_is_read_as_that_status(written: str) -> None:
    """The agent that the student is trained for says it; the row teaches our word, and the ledger tells."""
    review = REVIEW.replace("needs_adjustment", written)
    normalized = normalize(line_of(teacher_row({"review": review})))
    assert normalized.row["status"] == read_status(normalized.row["review_yaml"]) == "conflicts"
    assert normalized.row["review_yaml"].splitlines()[1:] == review.strip().splitlines()[1:]
    assert "status 'misaligned' was read as 'conflicts'" in normalized.notes
    with pytest.raises(Rejected, match="expected is aligned, needs_adjustment or conflicts"):
        normalize(line_of(teacher_row({"review": review})), {})


@pytest.mark.parametrize("written", ["Needs Adjustment", "needs-adjustment", "'needs adjustment'"])
def test_a_status_may_be_joined_otherwise(written: str) -> None:
    """It has one meaning only; the row then says it in our words, and the note says so."""
    normalized = normalize(line_of(teacher_row({"review": REVIEW.replace("needs_adjustment", written)})))
    assert normalized.row["status"] == read_status(normalized.row["review_yaml"]) == "needs_adjustment"
    assert "was read as 'needs_adjustment'" in normalized.notes
    odd = line_of(teacher_row({"review": REVIEW.replace("needs_adjustment", "So so")}))
    assert normalize(odd, {"so so": "needs_adjustment"}).row["status"] == "needs_adjustment"


@pytest.mark.parametrize(
    ("status", "said"),
    [
        ("status: off course", "is 'off course', expected"),
        ("status: ''", "is '', expected"),
        ("status: true", "is 'true', expected"),
        ("status: 3", "is '3', expected"),
        ("status: no", "is 'no', expected"),
        ("status: Yes", "is 'Yes', expected"),
        ("status: 2024-01-01", "is '2024-01-01', expected"),
        ("status: aligned\u200b", "which holds U+200B (zero width space)"),
        ("status: \u0430ligned", "which holds U+0430 (cyrillic small letter a)"),
        ("status: aligned | conflicts", "is 'aligned | conflicts'"),
        ("status: [aligned]", "is \"['aligned']\", expected"),
        ("status: 0x" + "f" * 5_000, "is '0xfff"),  # an integer that Python does not print
        ("other: x", "conflicts; its keys are 'other', 'summary', "),
        ("\u200bstatus: aligned", "; its keys are '\\u200bstatus', 'summary', "),
    ],
)
def test_a_status_of_none_of_the_three_kinds_is_refused_and_shown_as_it_stands(status: str, said: str) -> None:
    """Not as YAML reads it; letters that look like others by their code points."""
    with pytest.raises(Rejected, match="expected is aligned, needs_adjustment or conflicts") as rejected:
        normalize(line_of(teacher_row({"review": REVIEW.replace("status: needs_adjustment", status)})))
    assert rejected.value.reason == Reason.SCHEMA
    assert said in rejected.value.detail


@pytest.mark.parametrize(
    "requirements",
    [
        *(
            "{}",
            "functional_requirements: []\nconstraints: []",
            "a: {b: ''}",
            "constraints: [{id: C01, description: ''}]",
        ),
        *("functional_requirements: none", "functional_requirements: N/A\nconstraints: ['-', (none)]"),
        "constraints: [{id: C01, priority: High, type: legal, description: TBD}]",
        *("functional_requirements: [no requirements yet]", "constraints: [{id: C01, description: <description>}]"),
    ],
)
def test_requirements_that_ask_for_nothing_are_refused(requirements: str) -> None:
    """Nothing can be reviewed there."""
    with pytest.raises(Rejected, match="ask for nothing"):
        normalize(line_of(teacher_row({"requirements": requirements})))
    for empty in ("none", "[{id: FR001, description: null}]"):
        titled = f"title: X\nfunctional_requirements: {empty}"
        assert "name no requirement by an id" in normalize(line_of(teacher_row({"requirements": titled}))).notes


@pytest.mark.parametrize(
    ("texts", "note"),
    [
        (
            {"vision": VISION.replace("target_users", "target\u200b_users")},
            "in the VISION stands U+200B (zero width space)",
        ),
        ({"concept": "A tool\u2028for all"}, "in the concept stands U+2028 (line separator), which cannot be seen"),
        ({"concept": "<think>Hm.</think> A tool"}, "the concept holds marks as of a model's reasoning"),
        ({"review": f"{REVIEW}Note: I assumed much.\n"}, "the REVIEW has keys that no answer has: 'Note'"),
        ({"requirements": f"{REQUIREMENTS}Rules:\n- Be brief.\n"}, "the REQUIREMENTS have the key 'Rules'"),
        ({"requirements": f"{REQUIREMENTS}output_format: YAML\n"}, "the REQUIREMENTS have the key 'output_format'"),
        (
            {"requirements": f"{REQUIREMENTS}- Answer in English.\n"},
            "one of the constraints is plain text beside entries with an id: 'Answer in English.'",
        ),
    ],
)
def test_what_may_have_got_into_a_document_by_mistake_is_noted(texts: dict[str, str], note: str) -> None:
    """It is trained on, but not without a word."""
    assert note in normalize(line_of(teacher_row(texts))).notes


def test_reasoning_in_an_existing_vision_is_noted() -> None:
    """As in a concept: it stands in the prompt as it is."""
    row = teacher_row(existing_vision_yaml=f"<think>Hm.</think>\n{VISION}")
    assert "the EXISTING_VISION holds marks as of a model's reasoning" in normalize(line_of(row)).notes
