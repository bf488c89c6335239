"""The checks of synthetic_conflicts, and the classifier behind `style_leakage`.

If the form of the prompts gave conflicts away, a student would learn the form. A classifier that sees no word therefore
tries to tell made rows from their parents: by lengths, punctuation, the order of ids, requirements per section, YAML
style, and character sequences of the text with every letter made `x` and every digit `9`. Ridge regression on the two
classes is cross-validated in folds of whole groups, where a group holds the rows made from one another: otherwise it
would recognise a row by its parent. Its AUC is compared with those of labels shuffled inside the groups (Ojala and
Garriga, "Permutation tests for studying classifier performance", JMLR 11, 2010).
"""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from po_assets.dag import Artifacts, AssetChecks, Verdict, Violations
from po_assets.dataset.cases import read_eval_cases
from po_assets.dataset.holdout import HoldOut
from po_assets.dataset.settings import SelectionSettings
from po_assets.errors import UserError
from po_assets.product_owner import read_status, requirement_entries, score_product_owner, validate_answer
from po_assets.product_owner.contract import REQUIREMENT_SECTIONS
from po_assets.storage import Layout, read_manifest, read_rows
from po_assets.text import amount, verb

SIGNIFICANCE = 0.01
"""Form tells when so few of the shuffled labels are told apart as well: a false alarm in one of a hundred data sets."""
PERMUTATIONS = 2_000
FOLDS = 5
PATTERNS = ("scope_mismatch", "violated_non_goal")
_SEQUENCE, _SEQUENCES = 4, 200
"""Length of the character sequences, and how many of them (the most frequent) the classifier sees."""
_LONG_WORD = 15

Array = np.ndarray[Any, Any]
Row = Mapping[str, Any]


@dataclass(frozen=True)
class MadeRows:
    """What the checks look at."""

    rows: Sequence[Row]
    record: Row
    """The figures of the synthesis: the extra of the table's manifest."""
    parents: Mapping[str, Row]
    """The normalized rows that the rows were made from, by record id."""
    hold_out: HoldOut


conflicts_checks = AssetChecks[MadeRows]("synthetic_conflicts")


@conflicts_checks.register(severity="WARN")
def share_reached(found: MadeRows) -> Verdict:
    """With the made rows, the training rows have the wanted share of conflicts."""
    record = found.record
    needed, made, target = record["needed"], record["made"], record["target"]
    before = (
        f"{record['conflicts_before']:,} of {amount(record['rows_before'], 'row')} that would be trained on "
        f"({record['share_before']:.1%}) {verb(record['conflicts_before'], 'is', 'are')} conflicts"
    )
    said = f"{before}; {made:,} of the {needed:,} missing for {target:.1%} were made, which gives {record['share']:.1%}"
    if not needed:
        said = f"{before}; the target of {target:.1%} is met, nothing was made"
    elif made < needed:
        said = f"{said}: {amount(needed - made, 'row')} could not be made"
    return Verdict(
        made >= needed,
        f"{said}.",
        next_step="The check's table says why parents gave no row. Land more different teacher rows of status aligned "
        "whose visions name non-goals, or lower target_conflicts_share in the resource curation.",
        rows=[] if made >= needed else table_of_reasons(record),
        numbers={name: record[name] for name in ("share", "share_before", "target", "needed", "made")},
    )


def table_of_reasons(record: Row) -> list[dict[str, Any]]:
    """How many parents gave no row, by reason."""
    return [{"reason": reason, "parents": count} for reason, count in record["passed_over"].items()]


@conflicts_checks.register(blocking=True)
def rows_are_sound(found: MadeRows) -> Verdict:
    """Every made row passes the validator, scores enough by the metric, and says where it comes from."""
    violations, lowest, least, made = Violations(), 1.0, found.record["least_score"], len(found.rows)
    for number, row in enumerate(found.rows, start=1):
        answer = row["teacher_product_vision"], row["teacher_product_owner_review"]
        score = score_product_owner(row["requirements_yaml"], *answer).total
        lowest = min(lowest, score)
        if faults := _faults(row, score, found):
            violations.add({"row": number, "pattern": row["metadata"].get("pattern"), "fault": "; ".join(faults)})
    faulty = violations.count
    said = f"{faulty:,} of {amount(made, 'made row')} {verb(faulty, 'is', 'are')} not sound"
    if not violations:
        valid = f"{verb(made, 'is', 'are')} valid and {verb(made, 'scores', 'score')} at least {least:g} by the metric"
        lowest_said = f", the lowest scores {lowest:.3f}" if made else ""
        said = f"{made:,} of {amount(made, 'made row')} {valid}{lowest_said}"
    return Verdict(
        not violations,
        f"{said}.",
        next_step="The file was changed by hand, or the teacher tables were since: materialize synthetic_conflicts "
        "again. If a fault stays, please report it.",
        rows=violations.rows,
        of=faulty,
        numbers={"made_rows": made, "faulty_rows": faulty, "lowest_score": lowest if made else 0.0},
    )


@conflicts_checks.register(blocking=True)
def style_leakage(found: MadeRows) -> Verdict:
    """A classifier that sees no word tells made rows from their parents no better than chance."""
    prompts, count = style_prompts(found.rows, found.parents), len(found.rows)
    made, leak = f"{amount(count, 'made row')} {verb(count, 'is', 'are')}", style_leak(prompts)
    if leak is None:
        said = f"{made} too few to tell whether their form gives them away."
        return Verdict(True, said, numbers={"made_rows": count})
    return Verdict(
        not leak.tells,
        f"By form alone {made} told from the {len(prompts) - count:,} they were made from with an AUC of "
        f"{leak.auc:.2f} (0.5 is chance; p = {leak.p_value:.3f}; for so few rows an AUC of {leak.limit:.2f} would be "
        "telling).",
        next_step="The student could learn the form instead of the content, so nothing was landed. Another seed in the "
        "resource curation makes other rows; if it stays, the teacher's documents have a form that rewriting does not "
        "keep: please report it with a few of them.",
        numbers={"auc": leak.auc, "auc_limit": leak.limit, "p_value": leak.p_value, "made_rows": count},
    )


@conflicts_checks.step
def synthetic_conflicts_checks(artifacts: Artifacts, selection: SelectionSettings) -> MadeRows:
    """Audit the published table again, from the files as they stand."""
    layout = artifacts.layout
    manifest = read_manifest(layout.synthetic_conflicts)
    if manifest is None or "target" not in manifest.extra:
        raise UserError(
            f"There is no complete table {str(layout.synthetic_conflicts)!r}. Materialize synthetic_conflicts again."
        )
    hold_out = HoldOut(read_eval_cases(layout.eval_cases), selection.near_duplicate_threshold)
    return made_rows(layout, list(read_rows(layout.synthetic_conflicts)), manifest.extra, hold_out)


def made_rows(layout: Layout, rows: Sequence[Row], record: Row, hold_out: HoldOut) -> MadeRows:
    """The rows with their parents from the normalized table."""
    wanted = {identifier for row in rows for identifier in row["metadata"]["parents"]}
    parents = {row["record_id"]: row for row in read_rows(layout.normalized) if row["record_id"] in wanted}
    return MadeRows(rows, record, parents, hold_out)


def _faults(row: Row, score: float, found: MadeRows) -> list[str]:
    least, metadata = found.record["least_score"], row["metadata"]
    verdict = validate_answer(row["teacher_product_vision"], row["teacher_product_owner_review"])
    overlap = found.hold_out.find(row["concept"], row["requirements_yaml"])
    missing = [identifier for identifier in metadata["parents"] if identifier not in found.parents]
    tests = (
        (bool(verdict), f"it is not valid: {verdict.reason}"),
        (score >= least, f"it scores {score:.3f}, at least {least:g} is wanted"),
        (row["score"] == score, f"it declares {row['score']}, the metric gives {score}"),
        (read_status(row["teacher_product_owner_review"]) == "conflicts", "its status is not conflicts"),
        (metadata.get("source") == "synthetic", "its metadata does not say source: synthetic"),
        (metadata.get("pattern") in PATTERNS, f"its pattern is {metadata.get('pattern')!r}"),
        (not missing, f"its parents {', '.join(missing)} are not teacher rows any more"),
        (overlap is None, f"it is nearly the input of evaluation case {overlap.case_id if overlap else ''}"),
    )
    return [fault for holds, fault in tests if not holds]


@dataclass(frozen=True)
class StylePrompt:
    """The input of a row, the group of rows that it belongs to, and whether it is a conflicts row."""

    concept: str
    requirements_yaml: str
    group: int
    conflicts: bool


@dataclass(frozen=True)
class StyleLeak:
    """How well form tells the two classes apart."""

    auc: float
    """Area under the ROC curve, 0.5 is chance."""
    p_value: float
    """Share of shuffled labels that are told apart at least as well."""
    limit: float
    """The AUC from which on form would be called telling, for this many rows."""

    @property
    def tells(self) -> bool:
        """Whether form gives the status away."""
        return self.p_value < SIGNIFICANCE


def style_prompts(rows: Sequence[Row], parents: Mapping[str, Row]) -> list[StylePrompt]:
    """The made rows and their parents; rows that share a parent, also through a third row, are of one group."""
    group: dict[str, int] = {}
    for number, row in enumerate(rows):
        ids = row["metadata"]["parents"]
        joined = {group[identifier] for identifier in ids if identifier in group}
        group |= {identifier: number for identifier, of in group.items() if of in joined}
        group |= dict.fromkeys(ids, number)
    every = [(row, group[row["metadata"]["parents"][0]], True) for row in rows]
    every += [(parents[identifier], number, False) for identifier, number in group.items() if identifier in parents]
    return [StylePrompt(row["concept"], row["requirements_yaml"], number, made) for row, number, made in every]


def style_leak(prompts: Sequence[StylePrompt], seed: int = 0, permutations: int = PERMUTATIONS) -> StyleLeak | None:
    """Test whether form tells conflicts prompts from the others; None for fewer than `FOLDS` groups of both classes."""
    labels = np.array([prompt.conflicts for prompt in prompts], dtype=float)
    names, groups = np.unique([prompt.group for prompt in prompts], return_inverse=True)
    if sum(len(set(labels[groups == group])) == 2 for group in range(len(names))) < FOLDS:
        return None
    rng = np.random.default_rng(seed)
    folds = rng.permutation(np.arange(len(names)) % FOLDS)[groups]
    features = _features(prompts)
    varying = features.std(axis=0) > 0
    features = (features[:, varying] - features[:, varying].mean(axis=0)) / features[:, varying].std(axis=0)
    columns = np.stack([labels, *(_shuffled(labels, groups, rng) for _ in range(permutations))], axis=1)
    aucs = np.mean([_fold_aucs(features, columns, folds == fold) for fold in range(FOLDS)], axis=0)
    by_chance = np.sort(aucs[1:])
    return StyleLeak(
        auc=float(aucs[0]),
        p_value=float((1 + (by_chance >= aucs[0] - 1e-12).sum()) / (1 + permutations)),
        limit=float(by_chance[min(int((1 - SIGNIFICANCE) * permutations), permutations - 1)]),
    )


def skeleton(text: str) -> str:
    """The text without its words: every letter is `x`, every digit `9`."""
    return re.sub(r"[0-9]", "9", re.sub(r"[^\W\d_]", "x", text))


def _features(prompts: Sequence[StylePrompt]) -> Array:
    masked = [skeleton(f"{prompt.concept}\n{prompt.requirements_yaml}") for prompt in prompts]
    counted = [Counter(text[i : i + _SEQUENCE] for i in range(len(text) - _SEQUENCE + 1)) for text in masked]
    spread = Counter(sequence for counts in counted for sequence in counts)
    frequent = sorted(spread, key=lambda sequence: (-spread[sequence], sequence))[:_SEQUENCES]
    words = [Counter(min(len(word), _LONG_WORD) for word in re.findall(r"x+", text)) for text in masked]
    rows = [
        [*_shape(prompt), *(lengths[size] for size in range(1, _LONG_WORD + 1)), *(counts[each] for each in frequent)]
        for prompt, lengths, counts in zip(prompts, words, counted, strict=True)
    ]
    features: Array = np.array(rows, dtype=float)
    return features


def _shape(prompt: StylePrompt) -> list[float]:
    """Lengths, punctuation, requirements per section, the order of their ids, YAML style."""
    document, concept = prompt.requirements_yaml, prompt.concept
    entries, lines = requirement_entries(document), document.split("\n")
    lengths = [len(entry.description) for entry in entries] or [0]
    words = [len(entry.description.split()) for entry in entries] or [0]
    numbers = [int(digits) for entry in entries if (digits := re.sub(r"\D", "", entry.id)[:9])]
    return [
        *(len(concept), len(document), len(concept.split()), len(lines), max(map(len, lines)), len(lines[0])),
        *(text.count(mark) for text in (concept, document) for mark in ".,;:'-\"()/%#|>"),
        *(sum(entry.section == section for entry in entries) for section in REQUIREMENT_SECTIONS),
        *(float(np.mean(lengths)), float(np.std(lengths)), min(lengths), max(lengths), lengths[0], lengths[-1]),
        *(float(np.mean(words)), min(words), max(words), document.count("priority:")),
        sum(entry.description.endswith(".") for entry in entries),
        sum(entry.description[:1].isupper() for entry in entries),
        *(sum(one > other for one, other in pairwise(numbers)), max(numbers, default=0)),
        sum(len(line) - len(line.lstrip(" ")) for line in lines),
    ]


def _shuffled(labels: Array, groups: Array, rng: np.random.Generator) -> Array:
    """Labels exchanged at random inside each group."""
    mixed = np.empty_like(labels)
    mixed[np.argsort(groups, kind="stable")] = labels[np.lexsort((rng.random(len(labels)), groups))]
    return mixed


def _fold_aucs(features: Array, labels: Array, held_out: Array) -> Array:
    """AUC on one fold for each column of labels, of ridge regression on the other folds; ties count half.

    The prediction is linear in the labels, so that all columns share one solution of the normal equations. The penalty
    is one for each feature, heavy, since rows are few.
    """
    from scipy.stats import rankdata

    train, test, known = features[~held_out], features[held_out], labels[~held_out]
    kernel = train @ train.T + features.shape[1] * np.eye(len(train))
    ranks = rankdata(test @ (train.T @ np.linalg.solve(kernel, known - known.mean(axis=0))), axis=0)
    positives = labels[held_out].sum(axis=0)
    pairs = positives * (held_out.sum() - positives)
    areas = ((ranks * labels[held_out]).sum(axis=0) - positives * (positives + 1) / 2) / np.maximum(pairs, 1)
    known_areas: Array = np.where(pairs > 0, areas, 0.5)
    return known_areas
