"""The invariants of everything that reads what lands, on the fuzzer's seeds, on drawn inputs, and on what it found.

`make fuzz` looks for more; an input that it finds is pinned here.
"""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks import fuzz
from benchmarks.invariants import check_documents, check_landed, check_texts, check_yaml
from po_assets_tests.intake.landed_rows import BUILDERS, encode, vision_prompt_row
from po_assets_tests.intake.test_pipeline import BAD_LINES

SEEDS = [
    *fuzz.seeds(),
    *(b"L" + encode(build()) for build in (*BUILDERS.values(), vision_prompt_row)),
    *(b"L" + line for line, _ in BAD_LINES.values() if len(line) < fuzz.MAX_INPUT_BYTES),
]


@pytest.mark.parametrize("seed", SEEDS, ids=range(len(SEEDS)))
def test_the_invariants_hold_for_the_seeds(seed: bytes) -> None:
    """Rows of the generator and of every format, and lines of every nasty kind."""
    fuzz.run_input(seed)


@pytest.mark.parametrize("text", ["{a: b?}", "a: [b?c]", '{"a":yes"b? c", "d": e}', "{a: [b], c?}", "a: [] # b?\n"])
def test_a_question_mark_in_a_flow_collection_is_read_as_pyyaml_reads_it(text: str) -> None:
    """Found by `make fuzz`: it ends a scalar for PyYAML's own parser, but not for libyaml."""
    check_yaml(text)


FRAGMENTS = st.lists(st.sampled_from(fuzz.TOKENS) | st.text(max_size=6), max_size=20).map("".join)


@settings(max_examples=200, deadline=None)
@given(FRAGMENTS, FRAGMENTS, FRAGMENTS)
def test_the_invariants_hold_for_drawn_documents(requirements: str, vision: str, review: str) -> None:
    """Put together from what YAML and the formats take notice of."""
    check_documents(requirements, vision, review)
    check_texts(requirements + vision, review)


@settings(max_examples=200, deadline=None)
@given(st.sampled_from(SEEDS), st.integers(0, 5_000), st.binary(max_size=4), st.integers(0, 3))
def test_the_invariants_hold_for_damaged_rows(seed: bytes, place: int, bytes_in: bytes, taken: int) -> None:
    """A few bytes of a sound row lost, changed or added."""
    line = seed[1:]
    place %= len(line) + 1
    check_landed(line[:place] + bytes_in + line[place + taken :])
