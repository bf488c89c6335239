"""Reading YAML that language models wrote."""

import pytest
import yaml

from po_assets.product_owner import cited_ids, read_status, read_yaml, requirement_entries
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
        ("plain", "a mapping of keys to values, got plain text"),
        ("a: 2024-13-45", "a value that YAML cannot read: month must be in 1..12"),
        ("a: " + "9" * 5000, "a value that YAML cannot read"),
        ("a: b: c", "line 1, column 5: mapping values are not allowed"),
        ("a: [1, 2", "did not find expected"),
        ("a" * 50_001, "it has 50,001 characters, at most 50,000 are read"),
        ("[" * 50 + "]" * 50, "it nests more than 40 levels deep"),
        ("a: &x {b: *x}", "aliases expand"),
    ],
)
def test_what_cannot_be_read_has_a_reason(text: str | None, reason: str) -> None:
    """The mapping is empty then, and a person understands why."""
    reading = read_yaml(text)
    assert reading.value == {}
    assert reason in (reading.error or "")


def test_ids_are_cited_in_order_and_once() -> None:
    """Any case, as whole words, two digits or more."""
    assert cited_ids("nfr02, FR001 and FR001, con10; C1, XFR001 and FRX") == ["NFR02", "FR001", "CON10"]


def test_requirement_entries_need_an_id_or_a_description() -> None:
    """Other items of the lists, and lists of other names, are no entries."""
    text = "functional_requirements: [{id: FR001}, {description: d}, {priority: High}, x]\nother: [{id: FR002}]"
    assert [(entry.id, entry.description) for entry in requirement_entries(text)] == [("FR001", ""), ("", "d")]


def test_the_status_is_read_in_lower_case() -> None:
    """A status that is no text is none."""
    assert [read_status(text) for text in ("status: Aligned", "status: [a]", "x", "")] == ["aligned", None, None, None]
