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
def made(layout: Layout) -> list[dict[str, Any]]:
    rows = synthesis(layout, target_conflicts_share=0.1).rows
    assert len(rows) > 130
    return rows


@pytest.fixture(scope="module")
def parents(layout: Layout) -> dict[str, dict[str, Any]]:
    return {row["record_id"]: row for row in read_rows(layout.normalized)}


@pytest.fixture(scope="module")
def prompts(made: list[dict[str, Any]], parents: dict[str, dict[str, Any]]) -> list[StylePrompt]:
    return style_prompts(made, parents)


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
def test_neither_pattern_is_told_by_its_form(
    made: list[dict[str, Any]], parents: dict[str, dict[str, Any]], pattern: str
) -> None:
    """What one pattern gave away must not be hidden by the other."""
    chosen = [row for row in made if row["metadata"]["pattern"] == pattern]
    verdict = style_leakage(MadeRows(chosen, {}, parents, HoldOut([], 0.8)))
    assert verdict.passed, verdict.summary
    assert verdict.numbers["p_value"] > 0.05


def one_requirement_more(document: str) -> str:
    return document.replace(
        "non_functional_requirements:",
        "- id: FR009\n  description: Staff can export data\nnon_functional_requirements:",
    )


def full_stop(document: str) -> str:
    first = requirement_entries(document)[0].description
    return document.replace(first, f"{first.rstrip('.')}.", 1)


def ids_swapped(document: str) -> str:
    return document.replace("FR001", "FR00X").replace("FR002", "FR001").replace("FR00X", "FR002")


def shorter(document: str) -> str:
    first = requirement_entries(document)[0].description
    return document.replace(first, " ".join(first.split()[:4]), 1)


def quoted_title(document: str) -> str:
    head, rest = document.split("\n", 1)
    return f"title: '{head.removeprefix('title: ')}'\n{rest}"


@pytest.mark.parametrize("leak", [one_requirement_more, full_stop, ids_swapped, shorter, quoted_title])
def test_a_leak_in_the_form_is_found(prompts: list[StylePrompt], leak: Callable[[str], str]) -> None:
    """One more entry, a full stop, the order of ids, a shorter sentence, a YAML style: each is enough."""
    found = style_leak(changed(prompts, leak))
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
    pairs = [
        StylePrompt("A concept", f"title: Number {group}\n", group, conflicts)
        for group in range(4)
        for conflicts in (True, False)
    ]
    assert style_leak(pairs) is None
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
        found = style_leak(mixed, permutations=200)
        below += found.p_value < 0.5
    assert 10 <= below <= 30


def test_rows_of_common_parents_are_of_one_group() -> None:
    """Also through a third row, so that no fold sees a parent of another."""
    rows = [
        {"concept": "", "requirements_yaml": "", "metadata": {"parents": list(parents)}}
        for parents in ("ab", "cd", "e", "bc")
    ]
    texts = {name: {"concept": name, "requirements_yaml": ""} for name in "abcde"}
    groups = {prompt.concept: prompt.group for prompt in style_prompts(rows, texts) if not prompt.conflicts}
    assert len({groups[name] for name in "abcd"}) == 1
    assert groups["e"] != groups["a"]
    made = [prompt.group for prompt in style_prompts(rows, texts) if prompt.conflicts]
    assert np.unique(made).size == 2
