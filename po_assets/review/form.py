"""Whether the form of prompts gives conflicts away: a classifier that sees no word, and a permutation test.

It sees lengths, punctuation, the order of ids, requirements per section, YAML style, and character sequences of the
text with every letter made `x` and every digit `9`. A ridge classifier (least squares on the two classes) is
cross-validated in folds of whole groups, where a group holds the rows made from one another: otherwise it would
recognise a row by its parent. Its AUC is compared with those of labels shuffled inside the groups (Ojala and Garriga,
"Permutation tests for studying classifier performance", JMLR 11, 2010), which takes the dependence into account that
the groups bring.
"""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from po_assets.product_owner import requirement_entries
from po_assets.product_owner.documents import REQUIREMENT_SECTIONS

SIGNIFICANCE = 0.01
"""Form tells when so few of the shuffled labels are told apart as well: a false alarm in one of a hundred data sets."""
PERMUTATIONS = 2_000
FOLDS = 5
_SEQUENCE = 4
_SEQUENCES = 200
"""The most frequent character sequences that the classifier sees."""
_RIDGE = 1.0
"""Penalty in units of the number of features, which are standardized: heavy, since rows are few."""

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Prompt:
    """The input of a row, the group of rows that it belongs to, and whether it is a conflicts row."""

    concept: str
    requirements_yaml: str
    group: int
    conflicts: bool


@dataclass(frozen=True)
class Telling:
    """How well form tells the two classes apart."""

    auc: float
    """Area under the ROC curve, 0.5 is chance."""
    p_value: float
    """Share of shuffled labels that are told apart at least as well."""
    limit: float
    """The AUC from which on form would be called telling, for this many rows."""
    rows: int

    @property
    def tells(self) -> bool:
        """Whether form gives the status away."""
        return self.p_value < SIGNIFICANCE


def how_telling(prompts: Sequence[Prompt], seed: int = 0, permutations: int = PERMUTATIONS) -> Telling | None:
    """Test whether form tells conflicts prompts from the others; None for fewer than `FOLDS` groups of both classes."""
    labels = np.array([prompt.conflicts for prompt in prompts], dtype=float)
    groups = np.array([prompt.group for prompt in prompts])
    mixed = [group for group in np.unique(groups) if len(set(labels[groups == group])) == 2]
    if len(mixed) < FOLDS:
        return None
    rng = np.random.default_rng(seed)
    folds = _folds(groups, rng)
    features = _standardized(_features(prompts))
    shuffled = np.stack([labels, *(_shuffled(labels, groups, rng) for _ in range(permutations))], axis=1)
    aucs = np.mean([_fold_aucs(features, shuffled, folds == fold) for fold in range(FOLDS)], axis=0)
    by_chance = np.sort(aucs[1:])
    return Telling(
        auc=float(aucs[0]),
        p_value=float((1 + (by_chance >= aucs[0] - 1e-12).sum()) / (1 + permutations)),
        limit=float(by_chance[min(int((1 - SIGNIFICANCE) * permutations), permutations - 1)]),
        rows=len(prompts),
    )


def skeleton(text: str) -> str:
    """The text without its words: every letter is `x`, every digit `9`."""
    return re.sub(r"[0-9]", "9", re.sub(r"[^\W\d_]", "x", text))


def _features(prompts: Sequence[Prompt]) -> Array:
    texts = [f"{prompt.concept}\n{prompt.requirements_yaml}" for prompt in prompts]
    masked = [skeleton(text) for text in texts]
    counted = [Counter(text[i : i + _SEQUENCE] for i in range(len(text) - _SEQUENCE + 1)) for text in masked]
    spread = Counter(sequence for counts in counted for sequence in counts)
    frequent = sorted(spread, key=lambda sequence: (-spread[sequence], sequence))[:_SEQUENCES]
    rows = [
        [*_shape(prompt), *_lengths_of_words(text), *(counts[sequence] for sequence in frequent)]
        for prompt, text, counts in zip(prompts, masked, counted, strict=True)
    ]
    features: Array = np.array(rows, dtype=float)
    return features


def _shape(prompt: Prompt) -> list[float]:
    """Lengths, punctuation, requirements per section, the order of their ids, YAML style."""
    document = prompt.requirements_yaml
    entries = requirement_entries(document)
    lengths = [len(entry.description) for entry in entries] or [0]
    words = [len(entry.description.split()) for entry in entries] or [0]
    numbers = [int(digits) for entry in entries if (digits := re.sub(r"\D", "", entry.id)[:9])]
    lines = document.split("\n")
    return [
        *(len(text) for text in (prompt.concept, document, prompt.concept.split())),
        *(prompt.concept.count(mark) for mark in ".,;'-\"()"),
        *(document.count(mark) for mark in ".,;:'-\"()/%#|>"),
        *(sum(entry.section == section for entry in entries) for section in REQUIREMENT_SECTIONS),
        float(np.mean(lengths)),
        float(np.std(lengths)),
        *(min(lengths), max(lengths), lengths[0], lengths[-1]),
        *(float(np.mean(words)), min(words), max(words)),
        sum(entry.description.endswith(".") for entry in entries),
        sum(entry.description[:1].isupper() for entry in entries),
        sum(one > other for one, other in pairwise(numbers)),
        max(numbers, default=0),
        *(len(lines), max(len(line) for line in lines), len(lines[0])),
        sum(len(line) - len(line.lstrip(" ")) for line in lines),
        document.count("priority:"),
    ]


def _lengths_of_words(masked: str) -> list[int]:
    counts = Counter(min(len(word), 15) for word in re.findall(r"x+", masked))
    return [counts[length] for length in range(1, 16)]


def _standardized(features: Array) -> Array:
    deviation = features.std(axis=0)
    varying = deviation > 0
    standardized: Array = (features[:, varying] - features[:, varying].mean(axis=0)) / deviation[varying]
    return standardized


def _folds(groups: Array, rng: np.random.Generator) -> Array:
    """A fold for each row, the same for all rows of a group."""
    names, places = np.unique(groups, return_inverse=True)
    folds: Array = rng.permutation(np.arange(len(names)) % FOLDS)[places]
    return folds


def _shuffled(labels: Array, groups: Array, rng: np.random.Generator) -> Array:
    """Labels exchanged at random inside each group."""
    order = np.lexsort((rng.random(len(labels)), groups))
    mixed = np.empty_like(labels)
    mixed[np.argsort(groups, kind="stable")] = labels[order]
    return mixed


def _fold_aucs(features: Array, labels: Array, held_out: Array) -> Array:
    """AUC on one fold for each column of labels, of ridge regression on the other folds.

    The prediction is linear in the labels, so that all columns share one solution of the normal equations.
    """
    train, test = features[~held_out], features[held_out]
    kernel = train @ train.T
    penalty = _RIDGE * features.shape[1] * np.eye(len(train))
    weights = np.linalg.solve(kernel + penalty, labels[~held_out] - labels[~held_out].mean(axis=0))
    return _aucs(test @ (train.T @ weights), labels[held_out])


def _aucs(scores: Array, labels: Array) -> Array:
    """Area under the ROC curve of each column, by ranks; ties count half."""
    from scipy.stats import rankdata

    ranks = rankdata(scores, axis=0)
    positives = labels.sum(axis=0)
    negatives = len(labels) - positives
    pairs = positives * negatives
    sums = (ranks * labels).sum(axis=0) - positives * (positives + 1) / 2
    areas: Array = np.where(pairs > 0, sums / np.where(pairs > 0, pairs, 1), 0.5)
    return areas
