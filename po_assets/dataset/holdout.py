"""Hold-out: which training rows ask the same, or nearly the same, as an evaluation case.

The same is decided by the digest of the input, blind to case, white space and YAML style. Nearly the same is decided by
the Jaccard similarity of three-word sequences: MinHash (datasketch) finds the cases that may be similar, the exact
similarity of those decides. A cheap bound in front of it spares nearly every row the MinHash: the similarity of a row
with any one case is at most the share of the row's sequences that occur in any case at all.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from po_assets.dataset.cases import EvalCase
from po_assets.intake.normalization import input_digest

WORDS_IN_SEQUENCE = 3
_PERMUTATIONS = 128
_CANDIDATE_SHARE = 0.5
"""MinHash looks for cases of half the wanted similarity (0.4 at 0.8: 32 bands of 4 rows), so that it misses one that
counts with a probability of (1 - 0.8^4)^32 = 5e-8."""

_WORD = re.compile(r"\w+")
# The skeleton that every requirements document shares says nothing about what it asks for.
_SKELETON = frozenset(
    (
        *("title", "description", "functional_requirements", "non_functional_requirements", "constraints"),
        *("id", "priority", "high", "medium", "low", "meta", "original_request"),
    )
)
_ID = re.compile(r"(?:nfr|fr|req|con|c)\d+")

Sequences = set[tuple[str, ...]]


@dataclass(frozen=True)
class Overlap:
    """A row's input and the evaluation case that it equals or resembles; similarity is 1 where they are the same."""

    case_id: str
    similarity: float
    same_input: bool


class HoldOut:
    """Finds the evaluation case that an input equals or resembles."""

    def __init__(self, cases: Sequence[EvalCase], threshold: float) -> None:
        self._threshold = threshold
        self._by_digest = {input_digest(case.concept, case.requirements_yaml): case.case_id for case in cases}
        self._sequences = {case.case_id: word_sequences(case.concept, case.requirements_yaml) for case in cases}
        self._all: Sequences = set().union(*self._sequences.values())

    def find(self, concept: str, requirements_yaml: str, digest: str | None = None) -> Overlap | None:
        """The case that the input equals, else the most similar one at or above the threshold, else None.

        `digest` is the input's digest where it is known already.
        """
        if case_id := self._by_digest.get(digest or input_digest(concept, requirements_yaml)):
            return Overlap(case_id, 1.0, same_input=True)
        sequences = word_sequences(concept, requirements_yaml)
        if not sequences or len(sequences & self._all) < self._threshold * len(sequences):
            return None
        candidates = [
            (jaccard(sequences, self._sequences[name]), name) for name in self._index.query(_minhash(sequences))
        ]
        similarity, case_id = max(candidates, default=(0.0, ""))
        return Overlap(case_id, similarity, same_input=False) if similarity >= self._threshold else None

    @cached_property
    def _index(self) -> Any:
        """Cases by MinHash; made when first needed, since most tables hold no row that comes near a case."""
        from datasketch import MinHashLSH  # takes a second to import

        index = MinHashLSH(threshold=self._threshold * _CANDIDATE_SHARE, num_perm=_PERMUTATIONS)
        for case_id, sequences in self._sequences.items():
            index.insert(case_id, _minhash(sequences))
        return index


def word_sequences(concept: str, requirements_yaml: str) -> Sequences:
    """All sequences of three words of an input, without the requirements document's skeleton and ids."""
    words = [
        word
        for word in _WORD.findall(f"{concept}\n{requirements_yaml}".casefold())
        if word not in _SKELETON and not (word[-1].isdecimal() and _ID.fullmatch(word))
    ]
    if len(words) < WORDS_IN_SEQUENCE:
        return {tuple(words)} if words else set()
    return set(zip(*(words[start:] for start in range(WORDS_IN_SEQUENCE)), strict=False))


def jaccard(one: Sequences, other: Sequences) -> float:
    """Shared share of two sets: intersection over union."""
    return len(one & other) / len(one | other)


def _minhash(sequences: Sequences) -> Any:
    from datasketch import MinHash

    signature = MinHash(num_perm=_PERMUTATIONS)
    signature.update_batch([" ".join(words).encode("utf-8", "surrogatepass") for words in sorted(sequences)])
    return signature
