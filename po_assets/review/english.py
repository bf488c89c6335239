"""English for conflicts rows: phrases read off documents, and descriptions rewritten in place.

No grammar of English: which words are verbs is learned from the documents themselves (what follows "can", "must",
"does not"), and a phrase that cannot be read with confidence is not used. Words and sentences stand in `english.yaml`;
which rows are made of them belongs to `conflicts`.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import lru_cache
from importlib.resources import files
from typing import Any, NamedTuple

import yaml

from po_assets.product_owner import RequirementEntry, requirement_entries
from po_assets.text import first_upper

MAX_WORDS = 14
AUTHORED: dict[str, Any] = yaml.safe_load(files("po_assets.review").joinpath("english.yaml").read_text("utf-8"))
_WORDS = {name: frozenset(words.split()) for name, words in AUTHORED["words"].items()}
WRAP_WIDTH = 80
"""Column after which PyYAML, which writes most such documents, wraps lines."""

_BEFORE_VERB = re.compile(
    r"\b(?:can|cannot|must|shall|should|will|may|not|(?:able|ha[sv]e?|needs?|helps?|is|job is) to)\s+([a-z]{3,})\b"
)
_LISTED_VERBS = r"\b(?:must|shall|will|not|(?:ha[sv]e?|needs?|is) to)\b[^.]*\b{}\b"
_PLAIN = re.compile(r"[A-Za-z0-9][A-Za-z0-9 ,'’/&+%.-]*")
"""Text that stands as a plain YAML scalar and reads as part of a sentence."""
_DENIES = re.compile(
    r"^(?:[\w-]+(?: [\w-]+){0,3} )?(?:(?:does|do|will|shall|must|should) not|never|won't)\s+", re.IGNORECASE
)
_DENIES_THING = re.compile(r"^(?:no|not an?|not|without|excludes?|excluding|out of scope:?)\s+", re.IGNORECASE)
_NEGATIVE = re.compile(r"\b(?:not|no|never|without)\b|n't\b", re.IGNORECASE)
_LEAD = re.compile(
    r"^(?:(?:Allow|Enable|Permit|Help) (?P<whom>\S.{1,60}?) to|(?P<who>\S.{1,60}?) "
    r"(?:(?:must|shall|should|will) be able to|can|may|must|shall|should|will)) (?=[a-z])"
)


class Phrase(NamedTuple):
    """What a product does or does not, in lower case: a verb phrase ("bill drivers") or a thing ("tax advice")."""

    text: str
    is_verb: bool

    @property
    def action(self) -> str:
        """As a verb phrase."""
        return self.text if self.is_verb else f"offer {self.text}"


def verbs_of(texts: Iterable[str]) -> frozenset[str]:
    """The verbs of a collection of documents."""
    known = frozenset(word for text in texts for word in _BEFORE_VERB.findall(text))
    return known - _WORDS["no_verbs"] | _WORDS["imperatives"]


def read_phrase(text: object, verbs: frozenset[str], concept: str = "") -> Phrase | None:
    """A non-goal or capability as a phrase without its negation; None where it cannot be read with confidence.

    `concept` is the product's: what it lists behind "must" or "does not" are verb phrases.
    """
    if not isinstance(text, str):
        return None
    bare = re.sub(r"\s*\([^)]*\)", "", " ".join(text.split())).split(";")[0].strip(" .,-–")
    denied = _DENIES.match(bare)
    bare = bare[denied.end() :] if denied else _DENIES_THING.sub("", bare, count=1)
    words = bare.split()
    if not 1 < len(words) <= MAX_WORDS or not _PLAIN.fullmatch(bare) or _NEGATIVE.search(bare):
        return None
    bare = lower_first(bare)
    listed = re.search(_LISTED_VERBS.format(re.escape(bare)), concept)
    is_verb = words[0].lower() in verbs and words[1] not in ("for", "of", "and", "or")
    if denied or listed or is_verb:
        return Phrase(bare, is_verb=True)
    return None if words[0].endswith("ing") else Phrase(bare, is_verb=False)  # nobody can use "managing stocks"


def rewritten(description: str, excluded: Phrase, *, product: str, tails: Sequence[str] = ()) -> list[str]:
    """The description made to do what is excluded, in its own sentence form, in every wording that fits.

    Empty where the form cannot be kept. `tails` are ends of sentences of the same document ("with a photo").
    """
    match = _LEAD.match(description)
    if not match and description.split(" ", 1)[0].lower() not in _WORDS["imperatives"]:
        return []
    who = (match["whom"] or match["who"]).lower() if match else ""
    builds = not match or product.lower() in who or bool(_WORDS["products"] & set(who.split()))
    verbs = ("offer", "provide", "include", "support") if builds else ("use", "rely on", "work with", "ask for")
    cores = [excluded.text] if excluded.is_verb else [f"{verb} {excluded.text}" for verb in verbs]
    starts = [match.group() + core if match else first_upper(core) for core in cores]
    stop = "." if description.endswith(".") else ""
    return [f"{start}{tail}{stop}" for start in starts for tail in ("", *(f" {tail}" for tail in tails))]


def sentence_ends(descriptions: Iterable[str]) -> list[str]:
    """What stands at the end of sentences from a preposition on: "Drivers can report a plug with a photo"."""
    sentences = [description.rstrip(".").split() for description in descriptions]
    ends = (
        " ".join(words[number:])
        for words in sentences
        for number, word in enumerate(words)
        if number >= 3 and word in _WORDS["prepositions"] and 1 < len(words) - number <= 5
    )
    return list(dict.fromkeys(ends))


def with_description(document: str, entry: RequirementEntry, description: str) -> str | None:
    """The document with another description of one requirement, all else to the character.

    None where that cannot be: the old one stands there twice or on several lines, or the new line would be wrapped.
    """
    before, old, after = document.partition(entry.description)
    if not old or old in after:
        return None
    changed = f"{before}{description}{after}"
    width = len(before.rpartition("\n")[2]) + len(description)
    if width > WRAP_WIDTH >= width - len(description) + len(old):
        return None
    entries = requirement_entries(document)
    wanted = [replace(entry, description=description) if one == entry else one for one in entries]
    return changed if requirement_entries(changed) == wanted != entries else None


def lower_first(text: str) -> str:
    """The text with its first letter in lower case, unless its first word is a name or an abbreviation."""
    first = text.split(" ", 1)[0]
    return text if first[1:] != first[1:].lower() else text[:1].lower() + text[1:]


@lru_cache(maxsize=4096)
def content_words(text: str) -> frozenset[str]:
    """The words that carry a text's meaning, cut to six letters so that "payment" and "payments" are one."""
    return frozenset(word[:6] for word in re.findall(r"[a-z]{4,}", text.lower())) - _WORDS["common"]
