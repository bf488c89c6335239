"""Inputs made after public bug reports (`cases/`): each comes out as the text beside it (`*.expect.txt`) says.

What the text says about leakage (an answer of an evaluation case, look-alike letters) is tested in `dataset`; here such a
row only has to be read.
"""

from collections.abc import Mapping
from pathlib import Path

import pytest

from po_assets.intake.lines import Line, Rejected
from po_assets.intake.normalization import normalize

FOLDER = Path(__file__).parent / "cases"


Expected = tuple[str, tuple[str, ...], Mapping[str, str], tuple[str, ...]]
"""What becomes of a case's first line: `kept` or the reason of the rejection; texts in the ledger's note or detail; texts
in columns of the normalized row; texts in none of the row's four documents."""


def kept(*says: str, lacks: tuple[str, ...] = (), **holds: str) -> Expected:
    return "kept", says, holds, lacks


def rejected(reason: str, *says: str) -> Expected:
    return reason, says, {}, ()


CASES = {
    "01-f01-think-draft": kept("reasoning", lacks=("DRAFT",), status="needs_adjustment"),
    "03-f02-think-only-review-draft": kept("reasoning", lacks=("DRAFT",), status="needs_adjustment"),
    "06-f05-self-correction": kept(
        "2 answers that differ", "the last complete one", lacks=("DRAFT",), status="needs_adjustment"
    ),
    "07-v17-hf-null-columns": kept(format="chat"),
    "09-v20-hf-null-columns-nested": kept(format="nested"),
    "10-y08b-fence-in-scalar-chat": kept(vision_yaml="  ```yaml\n  route: 7\n  ```\nnon_goals:\n- Warehouse"),
    "12-y08-fence-in-scalar": kept(vision_yaml="  ```yaml\n  route: 7\n  ```\n  End of the example."),
    "14-x02-concept-names-yaml": kept(
        concept="A linter for configuration files.\nProduce clear YAML errors for junior engineers and mend them at once."
        "\nIt serves platform teams in banks."
    ),
    "16-x03-concept-has-vision-line": kept(
        concept="A route planner.\nVISION: be the first choice of every courier in the Alps.\nIt does not store parcels."
    ),
    "18-x01b-fewshot-fenced": kept(
        "2 sections CONCEPT that differ; the last one was taken", lacks=("vets", "Vets", "Vet desk")
    ),
    "19-y13-dupkeys": rejected("YAML does not parse", "REVIEW", "'status' twice", "line 20"),
    "21-y13c-dupkeys-align": rejected("YAML does not parse", "REVIEW", "'gaps' twice", "line 12"),
    "22-x18-vision-cut-notclosed-then-review": rejected("missing part", "the VISION block is not closed"),
    "23-y07b-trailing-prose-narr": kept("I hope this helps! Happy to adjust.", lacks=("I hope",)),
    "25-x05-req-fenced-then-text": kept(lacks=("Be concise",), requirements_yaml="existing cluster."),
    "26-x04-rules-after-req": kept("Rules:", lacks=("Rules", "Be short")),
    "28-f12-weight0": rejected("weight 0", "message 2: weight is 0"),
    "30-f17-history": kept("not read: history"),
    "31-f19-system-extra-instr": kept("the system message was left out of the prompt", lacks=("pirate",)),
    "32-x08-extra-columns": kept("not read: model 't-2', split 'test', quality_flag 'rejected by reviewer'"),
    "34-f27-messages-and-teacher": rejected("ambiguous", "two answers that differ", "teacher (", "chat ("),
    "35-y09-crlf-teacher": kept(lacks=("\r",), vision_yaml="product_name: Route Planner\nproduct_summary"),
    "37-w04-answer-leak": kept(status="aligned"),
    "38-j07-gz-named-jsonl": rejected("not JSON", "compressed with gzip; unpack it"),
    "39-j14-parquet": rejected("not JSON", "Parquet (PAR1)", "JSON lines"),
    "40-j01-array-pretty": rejected("not JSON", "a JSON array", "one object a line (jq -c '.[]')"),
    "42-v28-prompt-md-headings": kept(concept="A route planner for small delivery companies"),
    "43-v29-prompt-bold": kept(concept="A route planner for small delivery companies"),
    "45-v12-four-ticks": kept(status="needs_adjustment"),
    "46-v11-tildes": kept(status="needs_adjustment"),
    "47-v10-label-words": kept(status="needs_adjustment"),
    "50-f20-roles-human": kept(format="chat"),
    "52-f14-toolcalls": rejected("missing part", "the answer rests on tool calls"),
    "53-f15-image": rejected("schema", "message 1 holds a part of type 'image_url'"),
    "55-v23-u2028": rejected("YAML does not parse", "VISION", "line 2 holds U+2028 (line separator)"),
    "56-v24-formfeed": kept(concept="companies\x85for rural areas\u2028and islands"),
    "57-y22-empty-aligned": rejected("schema", "the REQUIREMENTS '{}' ask for nothing"),
    "58-f07-think-in-teacher-col": rejected("schema", "VISION: it holds a model's reasoning (such as <think>"),
    "59-y04b-status-bool": rejected("schema", "the REVIEW's status is 'no'"),
    "61-y11-nbsp-indent": rejected("YAML does not parse", "line 6 is indented with U+00A0 (no-break space)"),
    "62-w01-teacher-vision-line": kept(concept="VISION: be the first choice of every courier in the Alps."),
    "63-f29-finish-length-teacher": rejected("answer cut", "metadata.finish_reason is 'length'"),
    "64-e08-homoglyph": kept("the concept mixes two scripts in one word", "U+043E (cyrillic small letter o)"),
    "65-x19-tool-extra": kept("left out of the messages: tool_calls"),
}


def test_every_case_has_its_expectation() -> None:
    assert {path.name.split(".")[0] for path in FOLDER.iterdir()} == set(CASES)


@pytest.mark.parametrize("name", CASES)
def test_a_case_comes_out_as_its_text_says(name: str) -> None:
    """The first line of the file; what is said of it stands in the ledger's note or detail."""
    expected, says, holds, lacks = CASES[name]
    data = (FOLDER / f"{name}.jsonl").read_bytes()
    first = data.split(b"\n")[0]
    try:
        normalized = normalize(Line(f"{name}.jsonl", 1, first, len(first), data[:16]))
        outcome, said, row = "kept", normalized.notes, normalized.row
    except Rejected as found:
        outcome, said, row = found.reason.value, found.detail, {}
    assert outcome == expected, said
    assert all(text in said for text in says), said
    for column, text in holds.items():
        assert text in row[column]
    documents = [row.get(key, "") for key in ("concept", "requirements_yaml", "vision_yaml", "review_yaml")]
    assert not [text for text in lacks for document in documents if text in document]
    if outcome == "kept" and "concept" not in holds and name not in {"37-w04-answer-leak", "64-e08-homoglyph"}:
        assert row["valid"]
        assert row["concept"] == "A route planner for small delivery companies"
