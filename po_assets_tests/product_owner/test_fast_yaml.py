"""The fast reader gives what PyYAML gives, or says that it is unsure."""

import datetime as dt
import time

import pytest
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st

from po_assets.product_owner import documents, fast_yaml, read_yaml, strip_fences
from po_assets.product_owner.fast_yaml import UNSURE, read_plain
from po_assets.sample_data import generate_rows
from po_assets_tests.product_owner.documents_text import REQUIREMENTS, REVIEW, VISION

pytest.importorskip("ryaml")


def same(text: str) -> bool:
    """Whether the fast reader was sure; if so, its value must be PyYAML's to the type and the order of keys."""
    fast = read_plain(text, 40)
    if fast is UNSURE:
        return False
    assert repr(fast) == repr(yaml.safe_load(text)), text
    return True


def test_the_sample_datas_documents_are_read_fast_and_alike() -> None:
    """Every document of two hundred rows; the few unsure ones are read by PyYAML itself."""
    keys = {"requirements_yaml", "teacher_product_vision", "teacher_product_owner_review", "product_vision"}
    documents_of_rows = [
        part[key]
        for row in generate_rows(200)
        for part in (row, row.get("input", {}), row.get("output", {}))
        for key in keys & set(part)
        if isinstance(part, dict)
    ]
    assert len(documents_of_rows) > 400
    assert sum(same(text) for text in documents_of_rows) > 0.9 * len(documents_of_rows)


# One document a line; \\n, \\t and the like are escapes here.
UNSURE_DOCUMENTS = r"""
a: yes|a: Off|a: 1_000|a: 0o7|a: 010|a: 1e3|a: 1:30|a: 190:20:30|a: -.5|a: 3|a: <<|<<: {b: 1}|a: =|a: true|a: 1.5
yes: a|1: a|a: [1]|a: {b: no}|2024-01-01: a|a: &x b|a: &x b\nc: *x|a: !!str 1|a: !foo b|a: !|a: [!x b]|{? !x a : b}
- a|a||a: 1\na: 2|a: x\na: y|--- a|---\na: b|a: b\n...|a: b\n---\nc: d|%YAML 1.1\n---\na: b|a:\n  b: 2024-01-01
a: [2024-01-01]|a: "2024\\x2d01-01"|a: 2024-01-01 # c|a: 2024-99-99|a: '2024-01-01'\nb: a|? a\n: 2024-01-01
{a: 2024-01-01}|a: \x01|a: b: c|a: [|x: "\na: 2024-01-01\n"\n"\\x61": "2024-01-01"|a:\tb|\ufeffa: b|a: b\n\ufeffc: d
"""
SURE_DOCUMENTS = r"""
a: null|a: ~|a:|a: NULL|a: nUll|a: ''|a: y|a: 99.9%|a: Great!|a: R & D|a: 3 * 4|last: 2024-01-01|last: '2024-01-01'
last: 2024-01-01 10:00:00+00:00|last: "2024-01-01T10:00:00Z"|a: >-\n  x\n  y\n|a: 'it''s'|a: "x\\ty"|a: b # c|a: 😀
a: b\r\nlast: 2024-01-01\r\n|a: {b: c, d}|a: [b: c]|a: []|{}|a: 2024-1-1x|last: 2024-10-1|a: .|a: -x|a: "Wait!" # so
"""


def listed(table: str) -> list[str]:
    """The documents of a table."""
    found = [entry for line in table.strip("\n").split("\n") for entry in line.split("|")]
    return [entry.encode("latin-1", "backslashreplace").decode("unicode_escape") for entry in found]


@pytest.mark.parametrize(
    "text", [*listed(UNSURE_DOCUMENTS), "a: |# c\n  d", "a: >-# c\n  d", "a: \ud800", "a: " + "[" * 41 + "]" * 41]
)
def test_what_means_more_than_its_text_is_left_to_pyyaml(text: str) -> None:
    """Numbers, truth values, dates out of sight, tags, aliases, repeated keys, errors, deep nesting, tabs."""
    assert read_plain(text, 40) is UNSURE


@pytest.mark.parametrize(
    "text", [*listed(SURE_DOCUMENTS), "a: |\n  x\n\n  y\n", REQUIREMENTS, REVIEW, VISION, VISION.replace("'", '"')]
)
def test_plain_documents_are_read_fast_and_alike(text: str) -> None:
    """Each of these is certain: dates bare or quoted, folded lines, nested lists."""
    assert same(text)


# Tokens divided by bars, since a bar and what holds one stand apart.
TOKEN_TABLE = r"""
a|b:|last: |- |  |\n|\n  |\n- |: |'|"|\\|>|#| #|[|]|{|}|,|?|? |&x|*x|!|!!str |~|null|yes|1|1:30|2024-01-01|<<|=|---|...
%|>#|\ufeff|\t|\r|\r\n|\x85|\u2028|é|😀|\x00|key: value\n|list:\n- one\n- two\n|0x1|.|@|`|\xa0|-|:|>-\n  x\n|''|+|\\x41
"""
TOKENS = st.sampled_from([*listed(TOKEN_TABLE), "|", "|#", "|+\n  x\n"])
TEXTS = st.lists(TOKENS, max_size=14).map("".join)


@settings(max_examples=300, deadline=None)
@given(
    st.recursive(
        st.text(max_size=20) | st.none() | st.booleans() | st.integers() | st.dates() | st.floats(allow_nan=False),
        lambda values: st.lists(values, max_size=4) | st.dictionaries(st.text(max_size=10), values, max_size=4),
        max_leaves=12,
    ),
    st.booleans(),
    st.booleans(),
)
def test_what_pyyaml_writes_is_read_back(value: object, unicode: bool, flow: bool) -> None:
    """Any document, in both of PyYAML's styles."""
    same(yaml.safe_dump({"top": value}, allow_unicode=unicode, default_flow_style=flow))


@settings(max_examples=1500, deadline=None)
@given(TEXTS | st.text(max_size=80))
@example("last: 2024-01-01\n'last'")
@example("a: '\nlast: 2024-01-01'\n")
@example("a:\tb")
@example("a: b\n\ufeffc: d")
@example("a: |# c\n  d")
@example("a: !")
def test_every_document_is_read_as_safe_load_reads_it(text: str) -> None:
    """The metric is defined by PyYAML's own Python parser; no shortcut may change what it reads."""
    same(text)
    try:
        plain = yaml.safe_load(strip_fences(text))
    except Exception:  # noqa: BLE001 - PyYAML raises many kinds
        plain = None
    reading = read_yaml(text, unique_keys=False)
    assert repr(reading.value) == repr(plain if isinstance(plain, dict) else {}), text
    assert (reading.error is None) == isinstance(plain, dict)
    strict = read_yaml(text)
    assert strict.value == reading.value or any(why in str(strict.error) for why in ("twice (line", "is indented with"))


def test_without_ryaml_the_results_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is a speed-up and nothing else."""
    documents._read.cache_clear()
    fast = [read_yaml(text) for text in (REQUIREMENTS, VISION, REVIEW)]
    documents._read.cache_clear()
    monkeypatch.setattr(fast_yaml, "_parse", None)
    assert [read_yaml(text) for text in (REQUIREMENTS, VISION, REVIEW)] == fast


def bomb(first: str, line: str) -> str:
    """Forty lines, each of which repeats the one before twice."""
    return first + "".join(line.format(new=number, old=number - 1) for number in range(1, 40))


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (bomb("a0: &a0 {x: 1}\n", "a{new}: &a{new} {{<<: [*a{old}, *a{old}], k: 1}}\n"), "aliases expand to"),
        (bomb("a0: &a0 [x]\n", "a{new}: &a{new} [*a{old}, *a{old}]\n"), "aliases expand to more than 50,000"),
        ('a: &a "' + "x" * 20_000 + '"\nb: [' + ", ".join(["*a"] * 7_000) + "]", "aliases expand to more than 50,000"),
        ("a: 1" + ":59" * 16_000, "a base-60 integer of more than 20 digits"),
        *((text, "it nests more than 40 levels deep") for text in ("[" * 40_000, "- " * 20_000 + "x", "{b: " * 10_000)),
        ("[" * 100_000, "it has 100,000 characters, at most 50,000 are read"),
    ],
)
def test_a_bomb_is_defused_before_it_is_built(text: str, reason: str) -> None:
    """Merge keys double at every level while the document is built; base-60 integers take quadratic time."""
    start = time.process_time()
    assert reason in str(read_yaml(text).error)
    assert time.process_time() - start < 2


def test_a_date_before_a_long_run_of_blanks_takes_no_time() -> None:
    """Looking for the end of the value must not try every blank; a minute, once."""
    start = time.process_time()
    assert read_yaml("a: b\nlast: 2024-01-01" + " " * 40_000 + "# c").value["last"] == dt.date(2024, 1, 1)
    assert time.process_time() - start < 2
