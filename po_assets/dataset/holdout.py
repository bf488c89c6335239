"""Hold-out: which rows give an evaluation case away, by its input or by its reference answer.

The same input is found by its digest, blind to case, white space and YAML style. Nearly the same is decided by the
Jaccard similarity of three-word sequences, a case within other text by the share of its sequences that the row holds.
No sequence crosses from one entry of a document to the next, so that the order of keys and items hides nothing.
Both are exact: an index from sequences to cases counts what a row shares with each. Most rows share so few sequences
with all cases together that none is counted.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import NamedTuple

from po_assets.dataset.cases import EvalCase
from po_assets.intake.normalization import folded, input_digest
from po_assets.product_owner.contract import ALIGNMENT_KEYS, REQUIREMENT_SECTIONS, REVIEW_KEYS, VISION_KEYS

WORDS_IN_SEQUENCE = 3
_TELLING_SEQUENCES = 12
"""Shorter texts may stand within others by chance."""

_PART = "\0"
"""Stands between a case's id and the name of a document in the index of answers."""
_WORD = re.compile(r"[^\W_]\w*(?:-[0-9]+)*")
_BETWEEN_ENTRIES = re.compile(r" - |: |[\"'],|[\[\]{}]")
"""What parts keys, values and items in YAML or JSON, once white space is one space."""
# The skeleton that all documents of a kind share says nothing about what one of them says.
_SKELETON = {
    *REQUIREMENT_SECTIONS,
    *("title", "description", "id", "priority", "high", "medium", "low", "meta", "original_request"),
}
_ANSWER_SKELETON = {*VISION_KEYS, *REVIEW_KEYS, *ALIGNMENT_KEYS}
_ID = re.compile(r"(?:nfr|fr|req|con|c)[-_]?\d+")

Sequences = set[tuple[str, ...]]
KINDS = {
    "same input": "same input as an evaluation case",
    "nearly the same input": "nearly the input of an evaluation case",
    "input within other text": "an evaluation case's input within other text",
    "nearly the same answer": "nearly the reference answer of an evaluation case",
}
"""How a row gives a case away, and the same as the ledger's reason."""
_SAME, _NEAR, _WITHIN, _ANSWER = KINDS


class Overlap(NamedTuple):
    """The evaluation case that a row gives away, and how; the greater, the more alike."""

    similarity: float
    """1 for the same input; the share of the case that the row holds where it stands within other text."""
    case_id: str
    kind: str
    """One of `KINDS`."""

    @property
    def same_input(self) -> bool:
        """Whether the row asks the very same."""
        return self.kind == _SAME


class HoldOut:
    """Finds the evaluation case whose input an input equals, resembles or holds, and whose answer an answer repeats."""

    def __init__(self, cases: Sequence[EvalCase], threshold: float) -> None:
        self._by_digest = {case.input_digest: case.case_id for case in cases}
        self._inputs = _Index({case.case_id: word_sequences(case.concept, case.requirements_yaml) for case in cases})
        answers = {}
        for case in cases:
            vision, review = case.reference_vision_yaml, case.reference_review_yaml
            # Each document for itself, too: a row may repeat one and have another beside it.
            for part, texts in (("", (vision, review)), ("VISION", (vision, "")), ("REVIEW", ("", review))):
                answers[f"{case.case_id}{_PART}{part}"] = answer_sequences(*texts)
        self._answers = _Index(answers)
        self._threshold = threshold

    def find(self, concept: str, requirements_yaml: str, digest: str | None = None) -> Overlap | None:
        """The case that the input equals, else the most similar one at or above the threshold, else None.

        `digest` is the input's digest where it is known already.
        """
        if case_id := self._by_digest.get(digest or input_digest(concept, requirements_yaml)):
            return Overlap(1.0, case_id, _SAME)
        return self._inputs.nearest(word_sequences(concept, requirements_yaml), self._threshold)

    def find_answer(self, vision_yaml: str, review_yaml: str) -> Overlap | None:
        """The case whose reference answer this is, or nearly, or of which it holds the VISION or the REVIEW."""
        found = self._answers.nearest(answer_sequences(vision_yaml, review_yaml), self._threshold)
        return Overlap(found.similarity, found.case_id.partition(_PART)[0], _ANSWER) if found else None


class _Index:
    """Texts by their word sequences."""

    def __init__(self, texts: dict[str, Sequences]) -> None:
        self._sizes = {name: len(sequences) for name, sequences in texts.items() if sequences}
        self._names: dict[tuple[str, ...], list[str]] = defaultdict(list)
        for name, sequences in texts.items():
            for sequence in sequences:
                self._names[sequence].append(name)
        self._all = frozenset(self._names)
        self._smallest = min((size for size in self._sizes.values() if size >= _TELLING_SEQUENCES), default=0)

    def nearest(self, sequences: Sequences, threshold: float) -> Overlap | None:
        """The most similar text at or above the threshold, else the one that is held as a whole, else None.

        `case_id` is the text's name.
        """
        shared = sequences & self._all
        # Texts of one length that are just similar enough hold this share of each other.
        held = 2 * threshold / (1 + threshold)
        similar = len(shared) >= threshold * len(sequences)
        if not shared or not (similar or (self._smallest and len(shared) >= held * self._smallest)):
            return None
        counts = Counter(name for sequence in shared for name in self._names[sequence])
        sizes, size = self._sizes, len(sequences)
        best = max(Overlap(count / (size + sizes[name] - count), name, _NEAR) for name, count in counts.items())
        if best.similarity >= threshold:
            return best
        telling = ((name, count) for name, count in counts.items() if sizes[name] >= _TELLING_SEQUENCES)
        most = max((Overlap(count / sizes[name], name, _WITHIN) for name, count in telling), default=None)
        return most if most and most.similarity >= held else None


def word_sequences(concept: str, requirements_yaml: str) -> Sequences:
    """All sequences of three words of an input, without the requirements document's skeleton and ids."""
    return _sequences(f"{concept}\n{requirements_yaml}", _SKELETON)


def answer_sequences(vision_yaml: str, review_yaml: str) -> Sequences:
    """All sequences of three words of an answer, without the keys that all answers share and ids."""
    return _sequences(f"{vision_yaml}\n{review_yaml}", _ANSWER_SKELETON)


def _sequences(text: str, skeleton: set[str]) -> Sequences:
    entries = [
        [
            word.rstrip("_")
            for word in _WORD.findall(entry)
            if word not in skeleton and not (word[-1].isdecimal() and _ID.fullmatch(word))
        ]
        for entry in _BETWEEN_ENTRIES.split(folded(text))
    ]
    sequences: Sequences = set()
    for words in entries:
        sequences.update(zip(*(words[start:] for start in range(WORDS_IN_SEQUENCE)), strict=False))
    few = tuple(word for words in entries for word in words)
    return sequences or ({few} if few else set())
