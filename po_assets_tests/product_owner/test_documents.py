"""Reading YAML that language models wrote."""

import pytest
import yaml

from po_assets.product_owner import cited_ids, read_status, read_yaml, requirement_entries, score_product_owner
from po_assets.product_owner.contract import STATUS_ALIASES, STATUSES
from po_assets.product_owner.documents import canonical_status, with_status, written_value
from po_assets_tests.product_owner.documents_text import REQUIREMENTS, REVIEW, VISION


@pytest.mark.parametrize("text", [REQUIREMENTS, VISION, REVIEW, "a: 2024-01-01", "a: 1:30", "a: yes", "? x\n: y"])
def test_values_are_those_of_pyyamls_own_loader(text: str) -> None:
    """Dates become dates and `yes` becomes true, because published scores were computed so."""
    assert read_yaml(text).value == yaml.load(text, Loader=yaml.SafeLoader)


@pytest.mark.parametrize("fence", ["```yaml\n{}\n```", "```YML\n{}```", "```\n{}\n```", "]]{}", "\n]\n{}"])
def test_fences_and_leading_brackets_are_stripped(fence: str) -> None:
    """What models put around a document is not part of it."""
    assert read_yaml(fence.format("a: 1")).value == {"a": 1}


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "it is empty"),
        (None, "it is empty"),
        ("plain", "a mapping of keys to values, got plain text 'plain'"),
        ("a: 1\nb: `c`", "for the next token); the line is 'b: `c`'"),
        ("a: 2024-13-45", "a value that YAML cannot read: month must be in 1..12"),
        ("a: " + "9" * 5000, "a value that YAML cannot read"),
        ("a: b: c", "line 1, column 5: mapping values are not allowed"),
        ("a: [1, 2", "did not find expected"),
        ("a: &x {b: *x}", "aliases expand"),
    ],
)
def test_what_cannot_be_read_has_a_reason(text: str | None, reason: str) -> None:
    """The mapping is empty then, and a person understands why."""
    reading = read_yaml(text)
    assert reading.value == {}
    assert reason in (reading.error or "")


def test_ids_entries_and_status_are_read() -> None:
    """Ids in any case, as whole words, each once; entries with an id or a description; a status that is text."""
    assert cited_ids("nfr02, FR001 and FR001, con10; C1, XFR001 and FRX") == ["NFR02", "FR001", "CON10"]
    text = "functional_requirements: [{id: FR001}, {description: d}, {priority: High}, x]\nother: [{id: FR002}]"
    assert [(entry.id, entry.description) for entry in requirement_entries(text)] == [("FR001", ""), ("", "d")]
    assert [read_status(text) for text in ("status: Aligned", "status: [a]", "x", "")] == ["aligned", None, None, None]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("a: x\nb: y\na: z", "it has the key 'a' twice (line 3)"),
        ("a: 1\na: 2", "it has the key 'a' twice (line 2)"),
        ("a:\n  b: [{c: 1, 'c': 2}]", "it has the key 'c' twice (line 2)"),
        ("a: {b: x,\n  b: x}", "it has the key 'b' twice (line 2)"),
        ("a: &x {b: 1}\nc:\n  <<: *x\n  d: 1\n  d: 2", "it has the key 'd' twice (line 5)"),
        ("? x\n: 1\nx: 2", "it has the key 'x' twice (line 3)"),
        ("- a: 1\n  a: 2", "it must be a mapping of keys to values, got a list"),
    ],
)
def test_a_key_that_comes_twice_is_refused_at_any_level(text: str, reason: str) -> None:
    """As duplicate JSON keys are; PyYAML silently takes the last, and the metric, which is defined by it, does, too."""
    assert read_yaml(text).error == reason
    plain = yaml.safe_load(text)
    assert read_yaml(text, unique_keys=False).value == (plain if isinstance(plain, dict) else {})
    twice = f"status: nonsense\n{REVIEW}"
    assert score_product_owner(REQUIREMENTS, VISION, twice) == score_product_owner(REQUIREMENTS, VISION, REVIEW)


@pytest.mark.parametrize(
    "text", ["a: &x {b: 1}\nc: {<<: *x, b: 2}\nd: {<<: *x, b: 3}", "a: {b: 1}\nc: {b: 1}", "1: a\n'1': b"]
)
def test_merge_keys_and_equal_keys_of_other_mappings_are_no_duplicates(text: str) -> None:
    """What a merge brings in may be overridden; that is what merging is for."""
    assert read_yaml(text).error is None
    assert read_yaml(text).value == yaml.safe_load(text)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("a:\n\xa0\xa0b: x\n", "line 2 is indented with U+00A0 (no-break space), which only looks like a space"),
        ("a:\n- x\n\u200b- y\n", "line 3 holds U+200B (zero width space), which cannot be seen"),
        ("a: x\u2028b\nc: y", "line 1 holds U+2028 (line separator), which cannot be seen"),
        ("a: x\n\u200bb\nc: y", "line 2 holds U+200B (zero width space), which cannot be seen"),
    ],
)
def test_characters_that_cannot_be_seen_are_named(text: str, reason: str) -> None:
    """A person looks in vain for what is wrong."""
    assert reason in str(read_yaml(text).error)
    assert read_yaml("a: b\xa0c\nd: |\n  \u3000e\n").error is None


def test_a_status_of_other_words_is_translated() -> None:
    """The running agent says `misaligned` for what the data call `conflicts`; a team may have words of its own."""
    assert [canonical_status(text) for text in (" Misaligned ", "ALIGNED", "no")] == ["conflicts", "aligned", "no"]
    assert canonical_status("ok", {"ok": "aligned"}) == "aligned"
    assert set(STATUS_ALIASES.values()) <= set(STATUSES)


@pytest.mark.parametrize(
    ("review", "expected"),
    [
        ("status: misaligned\nnote: status is misaligned", "status: conflicts\nnote: status is misaligned"),
        ("a:\n  status: misaligned\nstatus:  Misaligned  # why", "a:\n  status: misaligned\nstatus:  conflicts  # why"),
        ("status: 'misaligned'\nb: 1", "status: 'conflicts'\nb: 1"),
        ('{"status": "misaligned", "b": "é"}', '{"status": "conflicts", "b": "é"}'),
        ("é: 😀\n'status' : misaligned", "é: 😀\n'status' : conflicts"),
        ("status:\n  misaligned\nb: 1", "status:\n  conflicts\nb: 1"),
        ("status: >-\n  misaligned\nb: 1", "status: conflicts\nb: 1"),
        ("status: no", "status: conflicts"),
    ],
)
def test_only_the_status_is_rewritten(review: str, expected: str) -> None:
    """Every other character stays as the teacher wrote it."""
    assert with_status(review, "conflicts") == expected


@pytest.mark.parametrize("review", ["status: [a]", "b: 1", "x", "status: &s misaligned\nb: *s"])
def test_a_status_that_cannot_be_rewritten_is_refused(review: str) -> None:
    """Nothing is written that would read otherwise."""
    with pytest.raises(ValueError, match="status"):
        with_status(review, "conflicts")


def test_what_stands_there_can_be_shown() -> None:
    """A person who wrote `no` does not find a False."""
    texts = ("status: no", "a: 1", "status: >\n  a\n  b", "a: b: c")
    assert [written_value(text, "status") for text in texts] == ["no", "", "> a b", ""]
