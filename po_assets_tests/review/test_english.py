"""Phrases read off documents, descriptions rewritten, and changed in place."""

import pytest
import yaml

from po_assets.product_owner import RequirementEntry, requirement_entries
from po_assets.review.english import Language, Phrase, rewritten, sentence_ends, with_description

LANGUAGE = Language(["Drivers can report a plug. Staff must plan rounds. It does not sell fuel."])
DOCUMENT = {
    "title": "Portal",
    "functional_requirements": [
        {"id": "FR001", "description": "Offer role-based dashboards that highlight anomalies in the insights."},
        {"id": "FR002", "description": "Users can export data", "priority": "High"},
    ],
    "constraints": [{"id": "C001", "description": "Runs on the cluster"}],
}


@pytest.mark.parametrize(
    ("text", "phrase"),
    [
        ("Sell fuel", Phrase("sell fuel", is_verb=True)),
        ("TideTable does not bill drivers", Phrase("bill drivers", is_verb=True)),
        ("Will not lend money.", Phrase("lend money", is_verb=True)),
        ("No tax advice", Phrase("tax advice", is_verb=False)),
        ("Direct payment processing (initial phase)", Phrase("direct payment processing", is_verb=False)),
        ("Full ERP system replacement; later perhaps", Phrase("full ERP system replacement", is_verb=False)),
        ("ERP replacement", Phrase("ERP replacement", is_verb=False)),
        ("Support for markets outside India", Phrase("support for markets outside India", is_verb=False)),
        ("Planning rounds", None),
        ("Fuel", None),
        ("Nothing that is not fuel", None),
        ("Sales: fuel", None),
        ({"not": "text"}, None),
    ],
)
def test_phrases_are_read_or_refused(text: object, phrase: Phrase | None) -> None:
    """Negations go, verbs are known from the documents; what cannot be read is not used."""
    assert LANGUAGE.phrase(text) == phrase


def test_a_concepts_own_list_tells_verbs() -> None:
    """Where the concept says that the product must do it, it is something to do; else it is something to offer."""
    assert LANGUAGE.phrase("Herd goats", "It must milk cows and herd goats.") == Phrase("herd goats", is_verb=True)
    thing = LANGUAGE.phrase("Herd goats")
    assert (thing, thing.action) == (Phrase("herd goats", is_verb=False), "offer herd goats")


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
    text = yaml.dump(DOCUMENT, sort_keys=False, width=10_000, default_style=style)
    first, *others = DOCUMENT["functional_requirements"]
    wanted = DOCUMENT | {"functional_requirements": [first | {"description": new}, *others]}
    expected = yaml.dump(wanted, sort_keys=False, width=10_000, default_style=style)
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
    assert with_description(text, RequirementEntry("FR001", "Old text", "functional_requirements"), "New text") is None


def test_a_line_that_would_be_wrapped_is_left_alone() -> None:
    """PyYAML, and most who write such documents, wrap after 80 columns; where the old line was longer, nobody did."""
    entry = RequirementEntry("FR001", "a" * 60, "functional_requirements")
    text = "functional_requirements:\n- id: FR001\n  description: {}\n"
    assert with_description(text.format("a" * 60), entry, "b" * 62) is not None
    assert with_description(text.format("a" * 60), entry, "b" * 70) is None
