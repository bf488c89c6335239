"""The one prompt and its inverse."""

from hypothesis import given
from hypothesis import strategies as st

from po_assets.product_owner import build_prompt, split_prompt

LINES = st.text(alphabet="abc XYZ:-.\n'", min_size=1).map(str.strip).filter(bool)


def test_the_prompt_is_pinned() -> None:
    """A change of one character makes every trained student stale: raise PROMPT_VERSION with it."""
    assert build_prompt(" A planner. ", "title: Planner\n") == (
        "You are a Product Owner. Write the product vision, then review the requirements against it.\n\n"
        "CONCEPT:\nA planner.\n\nREQUIREMENTS:\ntitle: Planner\n\n"
        "Answer with two fenced YAML blocks: VISION and REVIEW. Cite requirement ids in the review."
    )


@given(LINES, LINES)
def test_splitting_undoes_building(concept: str, requirements: str) -> None:
    """So that datasets in the pair format can be taken in again."""
    parts = split_prompt(build_prompt(concept, requirements))
    assert (parts.concept, parts.requirements_yaml, parts.vision_yaml) == (concept, requirements, None)


def test_fenced_sections_are_read_and_a_given_away_vision_is_seen() -> None:
    """The form of hand-made records, whose prompt holds the vision that the student should write."""
    prompt = (
        "Review the requirements.\n\n```yaml VISION\nproduct_name: X\n```\n\n```yaml REQUIREMENTS\nFR001: Do it\n```\n\n"
        "Respond with two fenced YAML blocks: VISION and REVIEW."
    )
    parts = split_prompt(prompt)
    assert (parts.concept, parts.requirements_yaml, parts.vision_yaml) == (None, "FR001: Do it", "product_name: X")


def test_a_foreign_closing_instruction_is_no_part_of_the_requirements() -> None:
    """Other generators end their prompts in other words."""
    parts = split_prompt("CONCEPT: A planner\n\nREQUIREMENTS:\ntitle: P\n\nRespond with YAML blocks VISION and REVIEW.")
    assert (parts.concept, parts.requirements_yaml) == ("A planner", "title: P")


def test_a_prompt_without_sections_holds_nothing() -> None:
    """What is not named is None, never guessed."""
    parts = split_prompt("Write something nice.")
    assert (parts.concept, parts.requirements_yaml, parts.vision_yaml) == (None, None, None)
