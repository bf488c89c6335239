"""Which inputs count as an evaluation case's own, or nearly."""

import re
from random import Random

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from po_assets.dataset.cases import EvalCase
from po_assets.dataset.holdout import HoldOut, Sequences, word_sequences
from po_assets_tests.dataset.tables import case, texts, words

CASES = [EvalCase(**case(number)) for number in range(900, 940)]
HOLD_OUT = HoldOut(CASES, 0.8)


@pytest.mark.parametrize("sort_keys", [True, False])
@pytest.mark.parametrize("flow", [True, False])
@pytest.mark.parametrize("width", [20, 200])
def test_another_yaml_style_hides_no_match(sort_keys: bool, flow: bool, width: int) -> None:
    """Serialized anew, the document says the same."""
    document = yaml.safe_load(CASES[3].requirements_yaml)
    again = yaml.safe_dump(document, sort_keys=sort_keys, default_flow_style=flow, width=width)
    overlap = HOLD_OUT.find(f"  {CASES[3].concept.upper()} ", again)
    assert (overlap.case_id, overlap.same_input) == ("case-903", True)


def test_the_order_of_keys_and_items_hides_no_case() -> None:
    """A reference answer written anew by a tool that sorts its keys, and an input with other ids and turned round."""
    one = CASES[3]
    answer = [yaml.safe_dump(yaml.safe_load(text)) for text in (one.reference_vision_yaml, one.reference_review_yaml)]
    assert HOLD_OUT.find_answer(*answer).similarity == 1
    requirements = yaml.safe_load(one.requirements_yaml.replace("id: FR", "id: R-").replace("id: C", "id: K"))
    turned = {key: value[::-1] for key, value in reversed(requirements.items())}
    assert HOLD_OUT.find(one.concept, yaml.safe_dump(turned, sort_keys=False)).similarity == 1


def test_other_products_do_not_overlap() -> None:
    """Though they share the skeleton of a requirements document."""
    assert all(HOLD_OUT.find(texts(n)["concept"], texts(n)["requirements"]) is None for n in range(50))


def test_the_threshold_decides() -> None:
    """A higher one lets more alike inputs pass."""
    changed = re.sub(r"(description: \w+) \w+", r"\1 other", CASES[0].requirements_yaml, count=1)
    similarity = HOLD_OUT.find(CASES[0].concept, changed)
    assert HoldOut(CASES, similarity.similarity).find(CASES[0].concept, changed) is not None
    assert HoldOut(CASES, 0.99).find(CASES[0].concept, changed) is None


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 39), st.integers(0, 12), st.integers(0, 2**32))
def test_the_index_loses_nothing_against_comparing_everything(number: int, changes: int, seed: int) -> None:
    """The fast way finds exactly what the plain comparison with every case finds."""
    random = Random(seed)
    words = CASES[number].requirements_yaml.split(" ")
    for _ in range(changes):
        words[random.randrange(len(words))] = random.choice(["x", "new", "other"])
    requirements = " ".join(words)
    mine = word_sequences(CASES[number].concept, requirements)
    others = [word_sequences(one.concept, one.requirements_yaml) for one in CASES]
    plain = max(jaccard(mine, other) for other in others)
    held = max(len(mine & other) / len(other) for other in others)
    found = HOLD_OUT.find(CASES[number].concept, requirements)
    wanted = plain if plain >= 0.8 else held if held >= 1.6 / 1.8 else None
    assert (found.similarity if found else None) == wanted


def test_a_case_within_other_text_is_found() -> None:
    """Filler makes the texts unlike, but the row holds nearly every sequence of the case."""
    filler = texts(3)
    concept = f"{filler['concept']}. {CASES[5].concept}. {texts(4)['concept']}"
    requirements = CASES[5].requirements_yaml + texts(4)["requirements"] + filler["requirements"]
    overlap = HOLD_OUT.find(concept, requirements)
    assert (overlap.case_id, overlap.kind) == ("case-905", "input within other text")
    assert overlap.similarity > 0.9
    mine, others = word_sequences(concept, requirements), word_sequences(CASES[5].concept, CASES[5].requirements_yaml)
    assert jaccard(mine, others) < 0.5


def test_a_reference_answer_is_found() -> None:
    """Equal, with a few words changed, or with more around it; another product's is not."""
    vision, review = CASES[8].reference_vision_yaml, CASES[8].reference_review_yaml
    for changed in (vision, vision.replace(words(9084, 2), "other words"), f"{vision}non_goals:\n- {words(1, 60)}\n"):
        overlap = HOLD_OUT.find_answer(changed, review)
        assert (overlap.case_id, overlap.kind) == ("case-908", "nearly the same answer")
    for one, other in ((vision, texts(1)["review"]), (texts(1)["vision"], review)):
        overlap = HOLD_OUT.find_answer(one, other)
        assert overlap.case_id == "case-908"
    assert HOLD_OUT.find_answer(texts(1)["vision"], texts(1)["review"]) is None
    assert HOLD_OUT.find_answer("", "") is None


def test_cases_without_reference_or_of_few_words_give_no_alarm() -> None:
    """What is not there is in no row; a few words stand in many texts by chance."""
    short = EvalCase("s", "", "A shop", "title: sells books", "", "", None)
    hold_out = HoldOut([short], 0.8)
    assert hold_out.find("A shop", "title: it sells books and has many other things to offer to people") is None
    assert hold_out.find_answer("product_name: x", "status: aligned") is None


@given(st.text(max_size=50), st.text(max_size=50))
def test_any_text_may_be_asked_about(concept: str, requirements: str) -> None:
    """Also what is empty or no YAML."""
    HOLD_OUT.find(concept, requirements)


def jaccard(one: Sequences, other: Sequences) -> float:
    """Shared share of two sets: intersection over union."""
    return len(one & other) / len(one | other)


@pytest.mark.parametrize("hide", ["a\u200b", "\u00ada", "\u2060a", "\u0430", "a\u200c", "a\ufe0f"])
def test_characters_that_nobody_sees_hide_no_case(hide: str) -> None:
    """Nor do letters that look like others, nor ids of another style."""
    case_ = CASES[4]
    overlap = HOLD_OUT.find(case_.concept.replace("a", hide), case_.requirements_yaml.replace("a", hide))
    assert (overlap.case_id, overlap.similarity) == ("case-904", 1.0)
    answer = HOLD_OUT.find_answer(case_.reference_vision_yaml.replace("a", hide), case_.reference_review_yaml)
    assert answer is not None
    assert word_sequences("", "id: FR001\n- id: REQ-12\n- id: CON_7\na b c") == {("a", "b", "c")}
