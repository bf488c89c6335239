"""Phrases read off documents, and descriptions changed in place."""

import pytest
import yaml

from po_assets.review.documents import with_description
from po_assets.review.phrases import Language, Phrase, gist, rewritten, sentence_ends

LANGUAGE = Language(["Drivers can report a plug. Staff must plan rounds. It does not sell fuel."])
DOCUMENT = {
    "title": "Portal",
    "functional_requirements": [
        {
            "id": "FR001",
            "description": "Offer role-based dashboards that highlight anomalies in the predictive insights.",
        },
        {"id": "FR002", "description": "Users can export data", "priority": "High"},
    ],
    "constraints": [{"id": "C001", "description": "Runs on the cluster"}],
}


@pytest.mark.parametrize(
    ("text", "phrase"),
    [
        ("Sell fuel", Phrase("sell fuel", "verb")),
        ("Planning rounds", Phrase("plan rounds", "verb")),
        ("TideTable does not bill drivers", Phrase("bill drivers", "verb")),
        ("Will not lend money.", Phrase("lend money", "verb")),
        ("No tax advice", Phrase("tax advice", "thing")),
        ("Direct payment processing (initial phase)", Phrase("direct payment processing", "thing")),
        ("Full ERP system replacement; later perhaps", Phrase("full ERP system replacement", "thing")),
        ("ERP replacement", Phrase("ERP replacement", "thing")),
        ("Support for markets outside India", Phrase("support for markets outside India", "thing")),
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
    """Where the concept says that the product must do it, it is something to do."""
    assert LANGUAGE.phrase("Herd goats", "It must milk cows and herd goats.") == Phrase("herd goats", "verb")
    assert LANGUAGE.phrase("Herd goats") == Phrase("herd goats", "thing")


@pytest.mark.parametrize(
    ("description", "expected"),
    [
        ("Drivers can report a plug with a photo.", "Drivers can sell fuel with a photo."),
        ("Allow drivers to report a plug", "Allow drivers to sell fuel"),
        ("Let drivers report a plug", "Let drivers sell fuel"),
        ("The portal must be able to report plugs", "The portal must be able to sell fuel"),
        ("Provide reports on plugs", "Sell fuel"),
    ],
)
def test_a_description_keeps_its_sentence_form(description: str, expected: str) -> None:
    """Who does it, how it is put, and the full stop stay."""
    ends = sentence_ends([description])
    texts = rewritten(
        description, Phrase("sell fuel", "verb"), LANGUAGE, users=["clerks"], product="Portal", tails=ends
    )
    assert expected in texts


def test_things_are_offered_by_products_and_used_by_people() -> None:
    """And a description of unknown form is left alone."""
    thing = Phrase("tax advice", "thing")
    told = [
        rewritten(text, thing, LANGUAGE, users=[], product="Portal")
        for text in ("Clerks can plan rounds", "The portal can plan")
    ]
    assert "Clerks can use tax advice" in told[0]
    assert "The portal can offer tax advice" in told[1]
    assert rewritten("Dispatchers assign routes", thing, LANGUAGE, users=[], product="Portal") == []


def test_only_clauses_stand_behind_says_that() -> None:
    """Not what is imperative, a mere thing, or no plain text."""
    assert gist("Drivers can report a plug.") == "drivers can report a plug"
    assert [gist(text) for text in ("Allow drivers to report", "Role-based workspaces", "Users can: a #1")] == [
        "",
        "",
        "",
    ]


@pytest.mark.parametrize("width", [80, 10_000])
@pytest.mark.parametrize("style", [None, "'", '"'])
def test_one_description_changes_and_the_style_stays(width: int, style: str | None) -> None:
    """As PyYAML itself would have written the changed document, wrapped or not, quoted or not.

    Lines that end in a backslash, as it wraps double quotes, are left alone.
    """
    new = "Offer role-based dashboards that highlight the anomalies of all our direct payments."
    text = yaml.dump(DOCUMENT, sort_keys=False, width=width, default_style=style)
    entry = DOCUMENT["functional_requirements"][0] | {"description": new}
    wanted = DOCUMENT | {"functional_requirements": [entry, DOCUMENT["functional_requirements"][1]]}
    expected = yaml.dump(wanted, sort_keys=False, width=width, default_style=style)
    assert with_description(text, "FR001", new) == (None if (width, style) == (80, '"') else expected)


@pytest.mark.parametrize(
    "text",
    [
        "functional_requirements:\n- id: FR001\n  description: |\n    In a block\n",
        "functional_requirements:\n- id: FR002\n  description: Another id\n",
        "functional_requirements:\n- id: FR001\n",
        "functional_requirements: [",
        "- a list",
        "functional_requirements:\n- &a\n  id: FR001\n  description: Old text\nconstraints:\n- *a\n",
    ],
)
def test_documents_whose_style_cannot_be_kept_are_left_alone(text: str) -> None:
    """Blocks, other ids, no description, no YAML, an alias that would change with it."""
    assert with_description(text, "FR001", "New text") is None
