"""Finding the two blocks of an answer, and the validator's order."""

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from po_assets.product_owner import format_answer, parse_answer, validate_answer
from po_assets_tests.product_owner.documents_text import REVIEW, VISION


def test_what_is_formatted_is_parsed_again() -> None:
    """The answer that training teaches is the answer that evaluation reads."""
    parsed = parse_answer(format_answer(VISION, REVIEW))
    assert (parsed.vision_yaml, parsed.review_yaml, parsed.missing) == (VISION.strip(), REVIEW.strip(), ())


@pytest.mark.parametrize(
    "text",
    [
        "Here you are:\n```yaml VISION\na: 1\n```\n```yaml REVIEW\nb: 2\n```\nThat is all.",
        "```YAML vision\na: 1\n```\n\n```yml Review\nb: 2\n```",
        "``` VISION\na: 1\n```\n``` REVIEW\nb: 2\n```",
        "```yaml VISION\r\na: 1\r\n```\r\n```yaml REVIEW\r\nb: 2\r\n```",
    ],
)
def test_blocks_are_found_however_models_fence_them(text: str) -> None:
    """Chatter around, upper and lower case, a forgotten closing fence before the next block, Windows line ends."""
    parsed = parse_answer(text)
    assert (parsed.vision_yaml, parsed.review_yaml) == ("a: 1", "b: 2")


def test_unlabelled_blocks_are_told_apart_by_their_keys() -> None:
    """A chat model often writes two plain yaml blocks."""
    parsed = parse_answer("```yaml\nproduct_name: X\n```\ntext\n```yaml\nstatus: aligned\n```")
    assert (parsed.vision_yaml, parsed.review_yaml) == ("product_name: X", "status: aligned")


def test_a_cut_answer_says_what_is_missing() -> None:
    """A block that was never closed is not taken for a whole one."""
    assert parse_answer("```yaml VISION\na: 1\n```\n```yaml REVIEW\nstatus: al").missing == (
        "the REVIEW block is not closed",
    )
    assert parse_answer("no idea").missing == ("the VISION block is missing", "the REVIEW block is missing")


@given(st.text(alphabet=st.sampled_from("`yamlVISIONREW \n:-a"), max_size=200))
def test_any_text_is_parsed_without_an_exception(text: str) -> None:
    """A block is either text or named as missing."""
    parsed = parse_answer(text)
    assert len(parsed.missing) == [parsed.vision_yaml, parsed.review_yaml].count(None)


def test_a_good_answer_is_valid() -> None:
    """The validator has nothing to say about it."""
    assert validate_answer(VISION, REVIEW).reason == ""
    assert validate_answer(VISION, REVIEW)


def _without(text: str, start: str, end: str | None = None) -> str:
    return text[: text.index(start)] + (text[text.index(end) :] if end else "")


LONG = "narrative: " + "word " * 121
FAULTS = [
    (VISION, None, "the REVIEW block is missing"),
    (None, None, "the VISION and the REVIEW block are missing"),
    ("a: b: c", "also: b: c", "the VISION does not parse as YAML: line 1, column 5"),
    (VISION, "a: b: c", "the REVIEW does not parse as YAML"),
    (VISION, "- a", "the REVIEW does not parse as YAML: it must be a mapping of keys to values, got a list"),
    (_without(VISION, "product_name", "target_users"), REVIEW, "the VISION has no product_name and no product_summary"),
    (VISION, _without(REVIEW, "narrative"), "the REVIEW has no narrative"),
    (
        VISION,
        _without(REVIEW, "  aligned", "recommended").replace("alignment:", "alignment: []"),
        "must be a mapping, got '[]'",
    ),
    (VISION, _without(REVIEW, "  gaps", "  conflicts"), "requirements_alignment has no list gaps"),
    (VISION, REVIEW.replace("FR0", "R0").replace("C0", "K0").replace("NR0", "N0"), "names a requirement id"),
    (VISION, REVIEW.replace("- Keep FR001 and FR002 as they are.\n", ""), "recommended_actions holds 1, at least 2"),
    (VISION, _without(REVIEW, "narrative") + "narrative: 7", "narrative must be text, got '7'"),
    (VISION, _without(REVIEW, "narrative") + LONG, "narrative has 121 words, at most 120"),
]


@pytest.mark.parametrize(("vision", "review", "reason"), FAULTS)
def test_the_first_fault_is_named(vision: str | None, review: str | None, reason: str) -> None:
    """One fault each, in the validator's order."""
    verdict = validate_answer(vision, review)
    assert not verdict
    assert reason in verdict.reason


def test_a_fence_before_a_long_run_of_blanks_takes_no_time() -> None:
    """Blanks after a fence could be divided among three patterns in cubically many ways."""
    start = time.monotonic()
    assert parse_answer("```" + " " * 100_000 + "!\n```yaml" + " \t:" * 50_000 + "!").missing
    assert time.monotonic() - start < 2
