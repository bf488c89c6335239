"""From a landed line to a JSON object, or the reason why not."""

import gzip
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
    "line",
    [b'{"a": 1}', b'\xef\xbb\xbf{"a": 1}', b'{"a": 1}\r', b'{"a": 1}\r\n', b'  {"a" : 1}\t', b'\xef\xbb\xbf {"a":1}'],
)
def test_what_surrounds_the_object_does_not_matter(line: bytes) -> None:
    """A byte-order mark, white space and either line ending are no part of a row."""
    assert read_object(line) == {"a": 1}


@pytest.mark.parametrize(
    ("line", "reason", "detail"),
    [
        (b"", Reason.BLANK_LINE, "nothing but white space"),
        (b" \t\r\n", Reason.BLANK_LINE, "nothing but white space"),
        (b"\xef\xbb\xbf", Reason.BLANK_LINE, "nothing but white space"),
        (b'{"a": 1', Reason.NOT_JSON, "at character 8"),
        (b"{'a': 1}", Reason.NOT_JSON, "\"{'a': 1}\""),
        (b"not JSON at all", Reason.NOT_JSON, "'not JSON at all'"),
        (b'{"a": 1} {"b": 2}', Reason.NOT_JSON, "at character 10"),
        (b'{"a": 1}{"b": 2}', Reason.NOT_JSON, "several objects stand in one line; write one object a line (jq -c .)"),
        (b'{"a": "\xff"}', Reason.NOT_UTF8, "byte 8 (0xff) is not UTF-8 (invalid start byte); save the file as UTF-8"),
        (b'{"a": "x\x00"}', Reason.NOT_JSON, "a NUL byte (byte 9); remove it"),
        ('{"a": 1}'.encode("utf-16-le"), Reason.NOT_JSON, "a NUL byte (byte 2); is the file UTF-16? Save it as UTF-8"),
        (b'{"a": None}', Reason.NOT_JSON, "it is written as Python prints it; write it with json.dumps"),
        (b"{'a': 1}", Reason.NOT_JSON, "it is written as Python prints it; write it with json.dumps"),
        (b"// data", Reason.NOT_JSON, "JSON has no comments; delete the line"),
        (b"<!DOCTYPE html>", Reason.NOT_JSON, "the file is HTML or XML"),
        (b"concept,score", Reason.NOT_JSON, "the file looks like a table (CSV)"),
        (b"- concept: A", Reason.NOT_JSON, "the file looks like YAML"),
        ('{"a": 1}'.encode("utf-16"), Reason.NOT_JSON, "the file is UTF-16; save it as UTF-8 (iconv"),
        (b'{"a": "\\ud800"}', Reason.NOT_JSON, "at character"),
        (b"[1, 2]", Reason.NOT_AN_OBJECT, "an array, a row is a JSON object: '[1, 2]'"),
        (b'"text"', Reason.NOT_AN_OBJECT, "a string"),
        (b"3", Reason.NOT_AN_OBJECT, "a number"),
        (b"null", Reason.NOT_AN_OBJECT, "null"),
        (b"true", Reason.NOT_AN_OBJECT, "a truth value"),
        (b'{"score": NaN}', Reason.BAD_SCORE, "score is NaN, which is not a JSON number"),
        (b'{"score": -Infinity, "b": 1}', Reason.BAD_SCORE, "score is -Infinity"),
        (b'{"metadata": {"seconds": NaN}}', Reason.NOT_JSON, "seconds is NaN"),
        (b'{"metadata": {"score": NaN}}', Reason.NOT_JSON, "score is NaN"),
        (b'{"x": Infinity, "score": NaN}', Reason.BAD_SCORE, "score is NaN"),
        (b'{"a": [1, [NaN]]}', Reason.NOT_JSON, "a holds NaN, which is not a JSON number"),
        (b"[NaN]", Reason.NOT_JSON, "it holds NaN"),
        (b'{"score": "NaN \\": NaN", "x": -Infinity}', Reason.NOT_JSON, "x is -Infinity, which is not a JSON number"),
        (b'{"a": NaN', Reason.NOT_JSON, "at character 7"),
        (
            b'{"score": -' + b"1" * 40_000 + b"}",
            Reason.BAD_SCORE,
            "score is an integer of 40,000 digits, which is more than a number can hold; leave the value out",
        ),
        (b'{"a": 1e999}', Reason.NOT_JSON, "a is 1e999, which is more than a number can hold"),
        (b'{"a": 1, "a": 2}', Reason.DUPLICATE_KEY, '"a" stands more than once'),
        (b'{"a" : 1, "a" :2}', Reason.DUPLICATE_KEY, '"a" stands more than once'),
        (b'{"a": {"b": 1, "b": 1}, "c": ["d\\":"]}', Reason.DUPLICATE_KEY, '"b" stands more than once'),
        (b'{"a": ' + b"[" * 70 + b"]" * 70 + b"}", Reason.NESTED_TOO_DEEP, "more than 64 levels"),
        (b'{"a": ' + b"[" * 5000 + b"]" * 5000 + b"}", Reason.NESTED_TOO_DEEP, "more than 64 levels"),
        (b'{"a":' * 70 + b"1" + b"}" * 70, Reason.NESTED_TOO_DEEP, "more than 64 levels"),
        (b'{"a": "' + b"x" * MAX_ROW_BYTES + b'"}', Reason.LINE_TOO_LONG, "the line has 1,048,585 bytes"),
    ],
)
def test_a_bad_line_is_rejected_for_a_reason_a_person_understands(line: bytes, reason: Reason, detail: str) -> None:
    """Reason for counting, detail with place and value."""
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


@given(st.binary(max_size=200))
def test_any_bytes_give_an_object_or_a_reason(line: bytes) -> None:
    """Nothing that lands can raise anything else."""
    try:
        assert isinstance(read_object(line), dict)
    except Rejected as rejected:
        assert rejected.detail  # noqa: PT017


@pytest.mark.parametrize(
    ("lines", "detail"),
    [
        (gzip.compress(b'{"a": 1}\n{"b": 2}', mtime=0), "the file is compressed with gzip; unpack it (gunzip)"),
        (b"PK\x03\x04\x14\x00\x00\n{}", "the file is a zip archive; unpack it (unzip)"),
        (b"(\xb5/\xfd$\x04\n{}", "the file is compressed with zstd; unpack it (zstd -d)"),
        (b"PAR1\x15\x04\n\x00PAR1", "the file is Parquet (PAR1); write it as JSON lines"),
        (b"ARROW1\x00\x00\n\x00", "the file is Arrow; write it as JSON lines"),
        (b"\xff\xff\xff\xff\x10\n{}", "the file is Arrow; write it as JSON lines"),
        (b"SQLite format 3\x00\n{}", "the file is an SQLite database; write it as JSON lines"),
        (b"7z\xbc\xaf\x27\x1c\n{}", "the file is a 7z archive; unpack it (7z x)"),
        (b"version https://git-lfs.github.com/spec/v1\noid", "a pointer of Git LFS; fetch the file (git lfs pull)"),
        ("{}".encode("utf-32"), "the file is UTF-32; save it as UTF-8"),
        ('{"a": 1}\n{"b": 2}'.encode("utf-16"), "the file is UTF-16; save it as UTF-8 (iconv -f UTF-16 -t UTF-8)"),
        (json.dumps([{"a": 1}, {"b": [2]}], indent=2).encode(), "a JSON array; write one object a line (jq -c '.[]')"),
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


@pytest.mark.parametrize(
    ("line", "detail"),
    [
        (b'[{"a": 1}, {"b": 2}]', "a JSON array; write one object a line (jq -c '.[]')"),
        (b'{"a": 1},', "a comma follows the object, as in an array"),
        ('\u200b{"a": 1}'.encode(), "there stands U+200B (zero width space)"),
        ('{"a":\u00a01}'.encode(), "there stands U+00A0 (no-break space)"),
        ('{"a": 1}\ufeff'.encode(), "there stands U+FEFF (zero width no-break space)"),
        ("{\u201ca\u201d: 1}".encode(), "there stands U+201C (left double quotation mark)"),
    ],
)
def test_what_cannot_be_seen_in_a_line_is_named(line: bytes, detail: str) -> None:
    with pytest.raises(Rejected) as rejected:
        read_object(line)
    assert detail in rejected.value.detail
