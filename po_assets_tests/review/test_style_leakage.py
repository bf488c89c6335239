"""Form gives nothing away: the made rows pass, and the same test finds every leak that is put in on purpose."""

from collections.abc import Callable
from dataclasses import replace
from random import Random
from typing import Any

import numpy as np
import pytest

from po_assets.dataset.holdout import HoldOut
from po_assets.product_owner import requirement_entries
from po_assets.review import conflicts
from po_assets.review.checks import MadeRows, StylePrompt, skeleton, style_leak, style_leakage, style_prompts
from po_assets.storage import Layout, read_rows
from po_assets_tests.review.scenes import land, synthesis, take_in, teacher_rows


@pytest.fixture(scope="module")
def layout(tmp_path_factory: pytest.TempPathFactory) -> Layout:
    return take_in(land(tmp_path_factory.mktemp("root"), teacher=teacher_rows(1400)))


@pytest.fixture(scope="module")
def made(layout: Layout) -> MadeRows:
    rows = synthesis(layout, target_conflicts_share=0.1).rows
    assert len(rows) > 130
    return MadeRows(rows, {}, {row["record_id"]: row for row in read_rows(layout.normalized)}, HoldOut([], 0.8))


@pytest.fixture(scope="module")
def prompts(made: MadeRows) -> list[StylePrompt]:
    return style_prompts(made.rows, made.parents)


def changed(prompts: list[StylePrompt], change: Callable[[str], str]) -> list[StylePrompt]:
    """The conflicts prompts with another form."""
    return [
        replace(prompt, requirements_yaml=change(prompt.requirements_yaml)) if prompt.conflicts else prompt
        for prompt in prompts
    ]


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_form_does_not_tell_made_rows_from_their_parents(prompts: list[StylePrompt], seed: int) -> None:
    """Over 130 rows of both patterns, against the rows they were made from, in three partitions into folds."""
    found = style_leak(prompts, seed)
    assert found.p_value > 0.05, found
    assert found.auc < 0.55


@pytest.mark.parametrize("pattern", ["scope_mismatch", "violated_non_goal"])
def test_neither_pattern_is_told_by_its_form(made: MadeRows, pattern: str) -> None:
    """What one pattern gave away must not be hidden by the other."""
    chosen = [row for row in made.rows if row["metadata"]["pattern"] == pattern]
    verdict = style_leakage(replace(made, rows=chosen))
    assert verdict.passed, verdict.summary
    assert verdict.numbers["p_value"] > 0.05


def with_first(document: str, change: Callable[[str], str]) -> str:
    """The document with another first description."""
    first = requirement_entries(document)[0].description
    return document.replace(first, change(first), 1)


MORE = "- id: FR009\n  description: Staff can export data\nnon_functional_requirements:"
LEAKS: dict[str, Callable[[str], str]] = {
    "one requirement more": lambda document: document.replace("non_functional_requirements:", MORE),
    "a full stop": lambda document: with_first(document, lambda first: f"{first.rstrip('.')}."),
    "two ids swapped": lambda document: document.replace("FR001", "X").replace("FR002", "FR001").replace("X", "FR002"),
    "a shorter sentence": lambda document: with_first(document, lambda first: " ".join(first.split()[:4])),
    "a quoted title": lambda document: document.replace("title: ", "title: '", 1).replace("\n", "'\n", 1),
}


@pytest.mark.parametrize("leak", LEAKS)
def test_a_leak_in_the_form_is_found(prompts: list[StylePrompt], leak: str) -> None:
    """One more entry, a full stop, the order of ids, a shorter sentence, a YAML style: each is enough."""
    found = style_leak(changed(prompts, LEAKS[leak]))
    assert found.tells, found
    assert found.auc > found.limit


def test_rewriting_without_regard_to_form_is_found(layout: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    """The very same pattern, but with any wording that comes first: that is what the care in `conflicts` is for."""
    monkeypatch.setattr(conflicts, "_of_one_form", lambda _one, _other: True)
    monkeypatch.setattr(conflicts, "_lengths", lambda _text: np.zeros(17))
    found = synthesis(layout, target_conflicts_share=0.1)
    verdict = found.verdicts["style_leakage"]
    assert not verdict.passed, verdict.summary
    assert found.landed == "Nothing was landed: style_leakage failed."


def test_words_are_not_seen(prompts: list[StylePrompt]) -> None:
    """Another word of the same length in every conflicts prompt is content, and changes nothing."""
    assert style_leak(changed(prompts, lambda text: text.replace("can", "may"))) == style_leak(prompts)
    assert skeleton("Démo-Wörter: 12 can") == "xxxx-xxxxxx: 99 xxx"


def test_too_few_rows_are_not_judged() -> None:
    """Four pairs say nothing; the verdict says so."""
    flags = [(group, conflicts) for group in range(4) for conflicts in (True, False)]
    assert style_leak([StylePrompt("A concept", f"title: {group}\n", group, flag) for group, flag in flags]) is None
    verdict = style_leakage(MadeRows([], {}, {}, HoldOut([], 0.8)))
    assert verdict.passed
    assert "too few to tell" in verdict.summary


@pytest.mark.slow
def test_shuffled_labels_are_called_telling_as_often_as_the_significance_says(prompts: list[StylePrompt]) -> None:
    """With labels exchanged at random inside the groups, p-values are spread evenly: about half lie below 0.5."""
    rng, below = Random(0), 0
    for _ in range(40):
        flipped = {prompt.group: rng.random() < 0.5 for prompt in prompts}
        mixed = [replace(prompt, conflicts=prompt.conflicts ^ flipped[prompt.group]) for prompt in prompts]
        below += style_leak(mixed, permutations=200).p_value < 0.5
    assert 10 <= below <= 30


def test_rows_of_common_parents_are_of_one_group() -> None:
    """Also through a third row, so that no fold sees a parent of another."""
    text: dict[str, Any] = {"concept": "", "requirements_yaml": ""}
    rows = [text | {"metadata": {"parents": list(parents)}} for parents in ("ab", "cd", "e", "bc")]
    prompts = style_prompts(rows, {name: text | {"concept": name} for name in "abcde"})
    groups = {prompt.concept: prompt.group for prompt in prompts if not prompt.conflicts}
    assert len({groups[name] for name in "abcd"}) == 1
    assert groups["e"] != groups["a"]
    assert len({prompt.group for prompt in prompts if prompt.conflicts}) == 2
