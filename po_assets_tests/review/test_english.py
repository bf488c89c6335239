"""Phrases read off documents, descriptions rewritten, and changed in place."""

import pytest
import yaml

from po_assets.product_owner import RequirementEntry, requirement_entries
from po_assets.review.english import Phrase, read_phrase, rewritten, sentence_ends, verbs_of, with_description

VERBS = verbs_of(["Drivers can report a plug. Staff must plan rounds. It does not sell fuel."])
DOCUMENT = {
    "title": "Portal",
    "functional_requirements": [
        {"id": "FR001", "description": "Offer role-based dashboards that highlight anomalies in the insights."},
        {"id": "FR002", "description": "Users can export data", "priority": "High"},
    ],
    "constraints": [{"id": "C001", "description": "Runs on the cluster"}],
}
OLD = RequirementEntry("FR001", "Old text", "functional_requirements")


@pytest.mark.parametrize(
    ("text", "expected", "is_verb"),
    [
        ("Sell fuel", "sell fuel", True),
        ("TideTable does not bill drivers", "bill drivers", True),
        ("Will not lend money.", "lend money", True),
        ("No tax advice", "tax advice", False),
        ("Direct payment processing (initial phase)", "direct payment processing", False),
        ("Full ERP system replacement; later perhaps", "full ERP system replacement", False),
        ("ERP replacement", "ERP replacement", False),
        ("Support for markets outside India", "support for markets outside India", False),
        ("Herd goats", "herd goats", False),
        *((text, None, False) for text in ("Planning rounds", "Fuel", "Nothing that is not fuel", "Sales: fuel", {})),
    ],
)
def test_phrases_are_read_or_refused(text: object, expected: str | None, is_verb: bool) -> None:
    """Negations go, verbs are known from the documents; what cannot be read is not used."""
    assert read_phrase(text, VERBS) == (Phrase(expected, is_verb) if expected else None)


def test_a_concepts_own_list_tells_verbs() -> None:
    """Where the concept says that the product must do it, it is something to do; else it is something to offer."""
    herd = "herd goats"
    assert read_phrase("Herd goats", VERBS, "It must milk cows and herd goats.") == Phrase(herd, is_verb=True)
    assert Phrase(herd, is_verb=False).action == "offer herd goats"


@pytest.mark.parametrize(
    ("description", "excluded", "expected"),
    [
        ("Drivers can report a plug with a photo.", "sell fuel", "Drivers can sell fuel with a photo."),
        ("Allow drivers to report a plug", "sell fuel", "Allow drivers to sell fuel"),
        ("The portal must be able to report plugs", "sell fuel", "The portal must be able to sell fuel"),
        ("Provide reports on plugs", "sell fuel", "Sell fuel"),
        ("Clerks can plan rounds", "tax advice", "Clerks can use tax advice"),
        ("The portal can plan", "tax advice", "The portal can offer tax advice"),
        ("Dispatchers assign routes", "tax advice", None),
    ],
)
def test_a_description_keeps_its_sentence_form(description: str, excluded: str, expected: str | None) -> None:
    """Who does it, how it is put, and the full stop stay; things are offered by products and used by people."""
    phrase = Phrase(excluded, is_verb=excluded == "sell fuel")
    texts = rewritten(description, phrase, product="Portal", tails=sentence_ends([description]))
    assert expected in texts if expected else texts == []


@pytest.mark.parametrize("style", [None, "'", '"'])
def test_one_description_changes_and_the_style_stays(style: str | None) -> None:
    """As PyYAML itself would have written the changed document, quoted or not."""
    new = "Offer role-based dashboards that highlight all the direct payments."
    first, *others = DOCUMENT["functional_requirements"]
    wanted = DOCUMENT | {"functional_requirements": [first | {"description": new}, *others]}
    text, expected = (
        yaml.dump(document, sort_keys=False, width=10_000, default_style=style) for document in (DOCUMENT, wanted)
    )
    assert with_description(text, requirement_entries(text)[0], new) == expected


@pytest.mark.parametrize(
    "text",
    [
        "functional_requirements:\n- id: FR001\n  description: Old text\n- id: FR002\n  description: Old text\n",
        "functional_requirements:\n- id: FR001\n  description: Old\n    text\n",
        "functional_requirements:\n- &a\n  id: FR001\n  description: Old text\nconstraints:\n- *a\n",
        "title: Old text\nfunctional_requirements: [",
    ],
)
def test_documents_whose_style_cannot_be_kept_are_left_alone(text: str) -> None:
    """The text stands there twice, on two lines, behind an alias that would change with it, or in no YAML."""
    assert with_description(text, OLD, "New text") is None


def test_a_line_that_would_be_wrapped_is_left_alone() -> None:
    """PyYAML, and most who write such documents, wrap after 80 columns; where the old line was longer, nobody did."""
    text = "functional_requirements:\n- id: FR001\n  description: Old text\n"
    assert with_description(text, OLD, "b" * 62) is not None
    assert with_description(text, OLD, "b" * 70) is None
