"""From a landed line to a JSON object, or the reason why not."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from po_assets.intake.lines import MAX_JSON_NESTING, MAX_ROW_BYTES, Reason, Rejected, read_object

JSON_VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda values: st.lists(values, max_size=4) | st.dictionaries(st.text(max_size=8), values, max_size=4),
    max_leaves=12,
)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (b"", "blank line: nothing but white space"),
        (b" \t\r\n", "blank line: nothing but white space"),
        (b"\xef\xbb\xbf", "blank line: nothing but white space"),
        (b'{"a": 1', "not JSON: at character 8"),
        (b"{'a': 1}", "not JSON: \"{'a': 1}\""),
        (b'{"a": 1}{"b": 2}', "not JSON: several objects stand in one line; write one object a line (jq -c .)"),
        (b'{"a": "\xff"}', "not UTF-8: byte 8 (0xff) is not UTF-8 (invalid start byte); save the file as UTF-8"),
        (b'{"a": "x\x00"}', "not JSON: a NUL byte (byte 9); remove it"),
        ('{"a": 1}'.encode("utf-16-le"), "not JSON: a NUL byte (byte 2); is the file UTF-16? Save it as UTF-8"),
        (b'{"a": None}', "not JSON: it is written as Python prints it; write it with json.dumps"),
        (b"{'a': 1}", "not JSON: it is written as Python prints it; write it with json.dumps"),
        (b"// data", "not JSON: JSON has no comments; delete the line"),
        (b"<!DOCTYPE html>", "not JSON: the file is HTML or XML"),
        (b"concept,score", "not JSON: the file looks like a table (CSV)"),
        (b"- concept: A", "not JSON: the file looks like YAML"),
        (b"concept: A", "not JSON: the file looks like YAML"),
        (b",concept,score", "not JSON: the file looks like a table (CSV)"),
        (b"Concept name\tDeclared score", "not JSON: the file looks like a table (CSV)"),
        (b"x\x9c\x01", "not JSON: the file is compressed with zlib; unpack it"),
        (b'"concept";"score"', "not JSON: the file looks like a table (CSV)"),
        (b"teacher_product_vision, score", "not JSON: the file looks like a table (CSV)"),
        (b"<<<<<<< HEAD", "not JSON: a mark of a merge in git"),
        (b"```json", "not JSON: a code fence is no JSON; delete the line"),
        (b"a.jsonl\x00" + b"\x00" * 249 + b"ustar\x0000{}", "not JSON: the file is a tar archive; unpack it (tar xf)"),
        (b'{"concept": "A', "not JSON: the line ends within its object: it was cut, or a line end in a text"),
        (b'"{\\"a\\": 1}"', "not a JSON object: it was written as JSON twice; undo it once (jq -c fromjson)"),
        ('{"a": 1}'.encode("utf-16"), "not JSON: the file is UTF-16; save it as UTF-8 (iconv"),
        (b'{"a": "\\ud800"}', "not JSON: at character"),
        (b"[1, 2]", "not a JSON object: an array, a row is a JSON object: '[1, 2]'"),
        (b'"text"', "not a JSON object: a string"),
        (b"3", "not a JSON object: a number"),
        (b"null", "not a JSON object: null"),
        (b"true", "not a JSON object: a truth value"),
        (b'{"score": NaN}', "unusable score: score is NaN, which is not a JSON number"),
        (b'{"score": -Infinity, "b": 1}', "unusable score: score is -Infinity"),
        (b'{"metadata": {"seconds": NaN}}', "not JSON: seconds is NaN"),
        (b'{"metadata": {"score": NaN}}', "not JSON: score is NaN"),
        (b'{"x": Infinity, "score": NaN}', "unusable score: score is NaN"),
        (b'{"a": [1, [NaN]]}', "not JSON: a holds NaN, which is not a JSON number"),
        (b"[NaN]", "not JSON: it holds NaN"),
        (b'{"score": "NaN \\": NaN", "x": -Infinity}', "not JSON: x is -Infinity, which is not a JSON number"),
        (b'{"a": NaN', "not JSON: at character 7"),
        (
            b'{"score": -' + b"1" * 40_000 + b"}",
            "unusable score: score is an integer of 40,000 digits, which is more than a number can hold; leave the value out",
        ),
        (b'{"a": 1e999}', "not JSON: a is 1e999, which is more than a number can hold"),
        (b'{"a": 1, "a": 2}', 'duplicate JSON key: "a" stands more than once'),
        (b'{"a": {"b": 1, "b": 1}, "c": ["d\\":"]}', 'duplicate JSON key: "b" stands more than once'),
        (b'{"a": ' + b"[" * 70 + b"]" * 70 + b"}", "nested too deep: more than 64 levels"),
        (b'{"a": ' + b"[" * 5000 + b"]" * 5000 + b"}", "nested too deep: more than 64 levels"),
        (b'{"a":' * 70 + b"1" + b"}" * 70, "nested too deep: more than 64 levels"),
        (b'{"a": "' + b"x" * MAX_ROW_BYTES + b'"}', "line too long: the line has 1,048,585 bytes"),
        (b'[{"a": 1}, {"b": 2}]', "not a JSON object: the file is a JSON array; write one object a line (jq -c '.[]')"),
        (b'{"a": 1},', "not JSON: a comma follows the object, as in an array"),
        ('\u200b{"a": 1}'.encode(), "not JSON: there stands U+200B (zero width space)"),
        ('{"a":\u00a01}'.encode(), "not JSON: there stands U+00A0 (no-break space)"),
        ('{"a": 1}\ufeff'.encode(), "not JSON: there stands U+FEFF (zero width no-break space)"),
        ("{\u201ca\u201d: 1}".encode(), "not JSON: there stands U+201C (left double quotation mark)"),
    ],
)
def test_a_bad_line_is_rejected_for_a_reason_a_person_understands(line: bytes, said: str) -> None:
    """Reason for counting, detail with place and value."""
    reason, _, detail = said.partition(": ")
    with pytest.raises(Rejected) as rejected:
        read_object(line)
    assert rejected.value.reason == reason
    assert detail in rejected.value.detail


def test_a_key_like_text_is_no_duplicate_key() -> None:
    """Only real keys count, whatever strings contain."""
    row = {"a": 'he said "a": 1', "b": ['"b":', {"a": "\\"}]}
    assert read_object(json.dumps(row).encode()) == row


def test_nesting_up_to_the_limit_is_read() -> None:
    """The limit is that of the sentence, not one less."""
    depth = MAX_JSON_NESTING - 1
    assert read_object(b'{"a": ' + b"[" * depth + b"]" * depth + b"}")


@given(st.dictionaries(st.text(), JSON_VALUES, max_size=6), st.booleans())
def test_every_object_is_read_as_the_standard_library_reads_it(row: dict[str, object], escape: bool) -> None:
    """The fast reader and its guards change no value and refuse no object."""
    line = json.dumps(row, ensure_ascii=escape).encode("utf-8", "surrogatepass")
    try:
        line.decode()
    except UnicodeDecodeError:  # lone surrogates are no text
        return
    if "\\ud" in line.decode().lower():
        return
    assert read_object(line) == json.loads(line)


@pytest.mark.parametrize(
    ("lines", "detail"),
    [
        (b"PK\x03\x04\x14\x00\x00\n{}", "the file is a zip archive; unpack it (unzip)"),
        (b"(\xb5/\xfd$\x04\n{}", "the file is compressed with zstd; unpack it (zstd -d)"),
        (b"ARROW1\x00\x00\n\x00", "the file is Arrow; write it as JSON lines"),
        (b"\xff\xff\xff\xff\x10\n{}", "the file is Arrow; write it as JSON lines"),
        (b"SQLite format 3\x00\n{}", "the file is an SQLite database; write it as JSON lines"),
        (b"7z\xbc\xaf\x27\x1c\n{}", "the file is a 7z archive; unpack it (7z x)"),
        (b"version https://git-lfs.github.com/spec/v1\noid", "a pointer of Git LFS; fetch the file (git lfs pull)"),
        ("{}".encode("utf-32"), "the file is UTF-32; save it as UTF-8"),
        ('{"a": 1}\n{"b": 2}'.encode("utf-16"), "the file is UTF-16; save it as UTF-8 (iconv -f UTF-16 -t UTF-8)"),
        (b'\xef\xbb\xbf[{"a": 1\n, "b": 2}]', "the file is a JSON array; write one object a line (jq -c '.[]')"),
        (
            json.dumps({"a": {"b": 1}}, indent=4).encode(),
            "JSON printed over several lines; write one object a line (jq -c .)",
        ),
    ],
)
def test_what_is_no_file_of_json_lines_is_named_with_the_way_out(lines: bytes, detail: str) -> None:
    """By the way the file begins, for each of its lines that is not a row."""
    rejected = 0
    for line in lines.split(b"\n"):
        try:
            read_object(line, opening=lines[:16])
        except Rejected as found:
            rejected += 1
            assert detail in found.detail or found.reason in {Reason.BLANK_LINE, Reason.NOT_AN_OBJECT}  # noqa: PT017
    assert rejected
