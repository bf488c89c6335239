"""Contrast cases: each changes what is right for a reason that stands in the case, and is judged by the student's own evidence."""

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import yaml
from upath import UPath

from po_assets.dataset.cases import EvalCase, read_eval_cases
from po_assets.evaluation import contrast as module
from po_assets.evaluation.answering import Answer, AnsweringModel
from po_assets.evaluation.answers import AnswerCache
from po_assets.evaluation.contrast import Contrast, contrast_cases, judge_contrasts, own_verdicts, verdict_of
from po_assets.evaluation.scoring import ScoredAnswer
from po_assets.evaluation.settings import Decoding
from po_assets.product_owner import STATUSES
from po_assets.product_owner.contract import ALIGNMENT_KEYS
from po_assets.product_owner.grammar import GrammarLimits
from po_assets_tests.evaluation.scenes import NEEDS_ADJUSTMENT, REVIEW, VISION, case, scored

CONCEPT = "TideTable must list free berths and book a berth. It does not sell fuel."
SAMPLES = Path(__file__).resolve().parents[2] / "artifacts" / "evaluation" / "po_eval_cases.jsonl"


def kinds(*cases: EvalCase) -> dict[str, Contrast]:
    return {one.kind: one for one in contrast_cases(cases) if one.original.case_id == cases[0].case_id}


def descriptions(of: EvalCase) -> list[str]:
    return [entry["description"] for entry in yaml.safe_load(of.requirements_yaml)["functional_requirements"]]


def test_a_need_without_its_requirement_needs_adjustment() -> None:
    """Numbered anew, so that nothing but the missing need tells; not where two may serve one need."""
    found = kinds(case(concept=CONCEPT))["need removed"]
    assert found.changed.status == "needs_adjustment"
    assert len(descriptions(found.changed)) == 1
    assert set(descriptions(found.changed)) < set(descriptions(found.original))
    assert "- id: FR001" in found.changed.requirements_yaml
    assert "FR002" not in found.changed.requirements_yaml
    assert "need removed" not in kinds(case(concept=CONCEPT.replace("and book", ", show the tide and book")))


def test_what_the_concept_excludes_is_a_conflict_once_it_is_demanded() -> None:
    """In the concept's own words; from both other statuses."""
    for status in ({}, NEEDS_ADJUSTMENT):
        found = kinds(case(concept=CONCEPT, **status))["exclusion demanded"]
        assert found.changed.status == "conflicts"
        assert [one for one in descriptions(found.changed) if one not in descriptions(found.original)] == [
            "Let users sell fuel"
        ]
    assert "exclusion demanded" not in kinds(case(concept="TideTable lists free berths."))


def test_the_requirements_of_another_product_conflict() -> None:
    """Under the own title, those that have least in common with the concept."""
    near = case(2, requirements_yaml=case().requirements_yaml.replace("within two", "within three"))
    far = case(3, requirements_yaml="functional_requirements:\n- id: FR001\n  description: Translate subtitles")
    found = kinds(case(concept=CONCEPT), near, far)["another product"]
    assert found.changed.status == "conflicts"
    assert descriptions(found.changed) == ["Translate subtitles"]
    assert yaml.safe_load(found.changed.requirements_yaml)["title"] == "TideTable requirements"


def test_and_back() -> None:
    """A need that the reference misses is served; what it calls a conflict goes, and what is left decides."""
    gap = REVIEW.replace("  gaps: []", "  gaps:\n  - No entry helps to sell fuel")
    served = kinds(case(concept=CONCEPT, status="needs_adjustment", reference_review_yaml=gap))["need served"]
    assert served.changed.status == "aligned"
    assert "Let users sell fuel" in descriptions(served.changed)
    review = REVIEW.replace("conflicts: []", "conflicts:\n  - FR002 must go")
    removed = kinds(case(concept=CONCEPT, status="conflicts", reference_review_yaml=review))["conflict removed"]
    assert (removed.changed.status, len(descriptions(removed.changed))) == ("aligned", 1)


def test_the_sample_cases_give_contrasts_of_every_kind_and_always_the_same() -> None:
    """At least 80 of 40 cases; none has a reference answer, and every document is written by the same hand."""
    cases = read_eval_cases(UPath(SAMPLES))
    found = contrast_cases(cases)
    assert len(found) >= 80
    assert {one.kind for one in found} == set(module._CHANGES)
    assert found == contrast_cases(cases)
    assert found != contrast_cases(cases, seed=7)
    assert not any(one.changed.has_reference for one in found)
    by_id = {one.case_id: one for one in cases}
    assert all(one.original.requirements_yaml == by_id[one.original.case_id].requirements_yaml.strip() for one in found)
    assert contrast_cases([case(reference_vision_yaml="", reference_review_yaml="")]) == []


def test_the_verdict_follows_from_the_students_own_vision_and_evidence(answering: AnsweringModel) -> None:
    """What an untrained model writes there is nonsense, within the grammar of an answer, and ends after the status."""
    vision = f"```yaml VISION\n{VISION}\n```\n\n```yaml REVIEW\n"
    cases = [case(), case(2)]
    words = {key: 6 if key in ("summary", *ALIGNMENT_KEYS) else most for key, most in GrammarLimits().words.items()}
    limits = GrammarLimits(words, dict.fromkeys(GrammarLimits().items, 2), tokens_per_word=30)
    questions = [(case(), "no vision"), *((one, vision) for one in cases)]
    found = own_verdicts(answering, questions, Decoding(), limits)
    verdicts = [(answer.case_id, verdict_of(answer) in STATUSES) for answer in found]
    assert sorted(verdicts) == sorted([(case().prompt, False), *((one.prompt, True) for one in cases)])


def test_a_pair_is_consistent_when_both_statuses_are_right(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A student that reads gets all, one that always says aligned none; and nothing is asked twice."""
    pairs = contrast_cases([case(concept=CONCEPT), case(2, concept=f"New: {CONCEPT}", **NEEDS_ADJUSTMENT)])
    right = {one.prompt: one.status for pair in pairs for one in (pair.original, pair.changed)}
    reader = [scored(pair.original, status=pair.original.status) for pair in pairs]
    loaded: list[str] = []

    def judged(statuses: dict[str, str], cache: str, student: list[ScoredAnswer] = reader) -> Any:
        def say(_model: Any, asked: Any, *_others: Any) -> list[Answer]:
            return [Answer(one.prompt, f"status: {statuses[one.prompt]}", "stop", 1, 0.0) for one, _ in asked]

        monkeypatch.setattr(module, "own_verdicts", say)

        def load() -> Any:
            loaded.append(cache)

        answers = AnswerCache(UPath(tmp_path), cache, cache)
        return judge_contrasts(pairs, student, answers, load, decoding=Decoding(), limits=GrammarLimits())

    reads = judged(right, "reads")
    assert (reads.pairs, reads.consistent) == (len(pairs), len(pairs))
    assert reads.by_kind == {kind: (of, of) for kind, of in Counter(pair.kind for pair in pairs).items()}
    assert "Contrast consistency 1.00" in reads.described
    assert judged(dict.fromkeys(right, "aligned"), "aligned").consistent == 0
    assert judged({}, "reads") == reads
    assert loaded == ["reads", "aligned"]
    wrong = [scored(pair.original, status="conflicts") for pair in pairs]
    originals = {pair.original.prompt: "conflicts" for pair in pairs}
    assert judged(right | originals, "half", wrong).consistent == 0  # right about every twin, and about no original
    assert judged({}, "none", [scored(case(), "nothing")]) is None
