"""Reading phrases off requirements and visions, as far as is needed to write sentences with them.

No grammar of English: which words are verbs is learned from the documents themselves (what follows "can", "must",
"does not"), and a phrase that cannot be read with confidence is not used.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

MAX_WORDS = 14

_BEFORE_VERB = re.compile(
    r"\b(?:can|cannot|must|shall|should|will|may|not|(?:able|ha[sv]e?|needs?|helps?|is|job is) to)\s+([a-z]{3,})\b"
)
_LIST_OF_VERBS = r"\b(?:must|shall|will|not|(?:ha[sv]e?|needs?|is) to)\b"
_NO_VERB = frozenset(
    ("the", "not", "only", "also", "all", "any", "its", "their", "this", "that", "never", "now", "yet", "for", "just")
)
_PLAIN = re.compile(r"[A-Za-z0-9][A-Za-z0-9 ,'’/&+%.-]*")
"""Text that stands as a plain YAML scalar and reads as part of a sentence."""
_DENIES_VERB = re.compile(
    r"^(?:[\w-]+(?: [\w-]+){0,3} )?(?:(?:does|do|will|shall|must|should) not|never|won't)\s+", re.IGNORECASE
)
_DENIES_THING = re.compile(r"^(?:no|not an?|not|without|excludes?|excluding|out of scope:?)\s+", re.IGNORECASE)
_NEGATIVE = re.compile(r"\b(?:not|no|never|without)\b|n't\b", re.IGNORECASE)
_MODAL = re.compile(
    r"^(?P<lead>(?P<who>\S.{1,60}?) (?:(?:must|shall|should|will) be able to|can|may|must|shall|should|will)) "
    r"(?P<action>[a-z].*)$"
)
_FINITE = re.compile(r" (?:can|must|shall|should|will|may|is|are) ")
_ALLOW = re.compile(r"^(?P<lead>(?:Allow|Enable|Permit|Help) (?P<who>\S.{1,60}?) to) (?P<action>[a-z].*)$")
_COMMON_VERBS = (
    "provide offer support generate integrate expose trigger configure deliver include display show send track manage "
    "create store export import record monitor synchronize automate notify publish collect calculate ensure implement "
    "add facilitate streamline serve replace process reduce improve assign define detect guide handle"
)
_IMPERATIVES = frozenset(_COMMON_VERBS.split())
"""Verbs that requirements and capabilities begin with; the documents' own verbs are learned."""
_PREPOSITIONS = frozenset(
    ("with", "for", "from", "at", "in", "on", "by", "after", "before", "per", "during", "through", "within", "across")
)
_MOST_END_WORDS = 5
_PRODUCT_WORDS = frozenset(
    ("system", "platform", "product", "solution", "app", "application", "portal", "tool", "service")
)


@dataclass(frozen=True)
class Phrase:
    """What a product does or does not, in lower case: a verb phrase ("bill drivers") or a thing ("tax advice")."""

    text: str
    kind: Literal["verb", "thing"]


@dataclass(frozen=True)
class Clause:
    """A requirement's description, cut in front of what is done: "Drivers can" + "see free chargers"."""

    lead: str
    who: str
    action: str


class Language:
    """The verbs of a collection of documents, and what can be read with them."""

    def __init__(self, texts: Iterable[str]) -> None:
        self._verbs = {word for text in texts for word in _BEFORE_VERB.findall(text)} - _NO_VERB

    def phrase(self, text: object, concept: str = "") -> Phrase | None:
        """A non-goal or capability as a phrase without its negation; None where it cannot be read with confidence.

        `concept` is the product's: what it lists behind "must" or "does not" are verb phrases.
        """
        if not isinstance(text, str):
            return None
        bare = re.sub(r"\s*\([^)]*\)", "", " ".join(text.split())).split(";")[0].strip(" .,-–")
        denied = _DENIES_VERB.match(bare)
        bare = bare[denied.end() :] if denied else _DENIES_THING.sub("", bare, count=1)
        words = bare.split()
        if not 1 < len(words) <= MAX_WORDS or not _PLAIN.fullmatch(bare) or _NEGATIVE.search(bare):
            return None
        first, rest = words[0], words[1:]
        listed = re.search(rf"{_LIST_OF_VERBS}[^.]*\b{re.escape(lower_first(bare))}\b", concept)
        known = first.lower() in self._verbs or first.lower() in _IMPERATIVES
        if denied or listed or (known and rest[0] not in ("for", "of", "and", "or")):
            return Phrase(lower_first(bare), "verb")
        if first.lower().endswith("ing"):
            verb = next((verb for verb in _stems(first.lower()) if verb in self._verbs | _IMPERATIVES), None)
            if verb:
                return Phrase(" ".join([verb, *rest]), "verb")
        return Phrase(lower_first(bare), "thing")

    def clause(self, description: str) -> Clause | None:
        """Who does what in a requirement's description; None where that cannot be told."""
        if match := _ALLOW.match(description) or _MODAL.match(description):
            return Clause(match["lead"], match["who"], match["action"])
        words = description.split()
        if words[:1] == ["Let"]:
            for number, word in enumerate(words[2:], start=2):
                if word in self._verbs:
                    who = " ".join(words[1:number])
                    return Clause(f"Let {who}", who, " ".join(words[number:]))
        return None


def is_imperative(description: str) -> bool:
    """Whether a description tells what to build ("Provide analytics on tasks")."""
    return description.split(" ", 1)[0].lower() in (_IMPERATIVES | {"allow", "let", "enable", "permit", "help"})


def rewritten(
    description: str,
    excluded: Phrase,
    language: Language,
    *,
    users: Sequence[str],
    product: str,
    tails: Sequence[str] = (),
) -> list[str]:
    """The description made to do what is excluded, in its own sentence form, in every wording that fits.

    Empty where the description's form cannot be kept. `tails` are ends of sentences of the same document ("with a
    photo"); `users` are its users.
    """
    if excluded.text.split(" ", 1)[0].endswith("ing"):
        return []  # "Users can use managing stocks": what is managed cannot be used
    stop = "." if description.endswith(".") else ""
    clause = language.clause(description.rstrip("."))
    if clause is not None:
        who = clause.who.lower()
        others = [user for user in users if user not in who and user not in excluded.text]
        builds = product.lower() in who or bool(_PRODUCT_WORDS & set(who.split()))
        uses = ("offer", "provide", "include", "support") if builds else ("use", "rely on", "work with", "ask for")
        cores = [excluded.text] if excluded.kind == "verb" else [f"{verb} {excluded.text}" for verb in uses]
        ends = [
            "",
            *(f" {tail}" for tail in tails),
            *(f" {word} {user}" for user in others for word in ("with", "for")),
        ]
        return [f"{clause.lead} {core}{end}{stop}" for core in cores for end in ends]
    if description.split(" ", 1)[0].lower() in _IMPERATIVES:
        if excluded.kind == "verb":
            cores = [first_upper(excluded.text)]
        else:
            cores = [f"{verb} {excluded.text}" for verb in ("Provide", "Offer", "Support", "Include")]
        ends = ["", *(f" {tail}" for tail in tails), *(f" for {user}" for user in users)]
        return [f"{core}{end}{stop}" for core in cores for end in ends]
    return []


def sentence_ends(descriptions: Iterable[str]) -> list[str]:
    """What stands at the end of sentences from a preposition on: "Drivers can report a plug with a photo"."""
    ends: dict[str, None] = {}
    for description in descriptions:
        words = description.rstrip(".").split()
        for number, word in enumerate(words[3:], start=3):
            if word in _PREPOSITIONS and 1 < len(words) - number <= _MOST_END_WORDS:
                ends[" ".join(words[number:])] = None
    return list(ends)


def form_of(text: str) -> tuple[int, ...]:
    """What two sentences of the same form share: numbers of words, of words of one letter, of marks and capitals."""
    words = text.split()
    marks = [text.count(mark) for mark in ",-'/%()"]
    return (len(words), sum(len(word) == 1 for word in words), *marks, sum(letter.isupper() for letter in text))


def gist(description: str) -> str:
    """A description to stand behind "says that"; empty where it is no plain, short clause."""
    text = lower_first(description.strip().rstrip("."))
    fits = _PLAIN.fullmatch(text) and len(text.split()) <= MAX_WORDS + 2 and not is_imperative(text)
    return text if fits and _FINITE.search(text) else ""


def lower_first(text: str) -> str:
    """The text with its first letter in lower case, unless its first word is a name or an abbreviation."""
    first = text.split(" ", 1)[0]
    return text if first[1:] != first[1:].lower() else text[:1].lower() + text[1:]


def first_upper(text: str) -> str:
    """The text with its first letter in upper case."""
    return text[:1].upper() + text[1:]


def joined(items: Sequence[str]) -> str:
    """The items as English prose: "a", "a and b", "a, b and c"."""
    return " and ".join(filter(None, [", ".join(items[:-1]), *items[-1:]]))


@lru_cache(maxsize=4096)
def content_words(text: str) -> frozenset[str]:
    """The words that carry a text's meaning, cut to six letters so that "payment" and "payments" are one."""
    return frozenset(word[:6] for word in re.findall(r"[a-z]{4,}", text.lower())) - _COMMON


_COMMON = frozenset(
    ("with", "that", "this", "from", "their", "them", "they", "must", "have", "will", "shall", "should", "into", "when")
)


def _stems(gerund: str) -> list[str]:
    """What a gerund may come from: providing → provid, provide; planning → plan."""
    stem = gerund.removesuffix("ing")
    return [stem, f"{stem}e", *([stem[:-1]] if len(stem) > 2 and stem[-1] == stem[-2] else [])]
