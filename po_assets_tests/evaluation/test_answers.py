"""Answering all cases: nothing is asked twice, an interruption costs one batch, retries are asked for after the others."""

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from upath import UPath

from po_assets.dataset.cases import EvalCase
from po_assets.errors import UserError
from po_assets.evaluation import generate
from po_assets.evaluation.answering import Answer, AnsweringModel
from po_assets.evaluation.answers import AnswerCache, answer_cases, decoding_faults, reference_limits, tokens_left
from po_assets.evaluation.settings import Decoding
from po_assets.product_owner import parse_answer
from po_assets_tests.evaluation.scenes import GOOD, case, cases

FREE = Decoding(mode="free", max_new_tokens=12, batch_size=2)


def cache_in(folder: Path, decoding: Decoding = FREE) -> AnswerCache:
    return AnswerCache(UPath(folder), "model-digest", decoding.fingerprint())


Ask = Callable[..., list[Answer]]


@pytest.fixture
def ask(tmp_path: Path, answering: AnsweringModel) -> Ask:
    """Ask the tiny model; what it answered before is in the folder's cache."""

    def answers(asked: Sequence[EvalCase], decoding: Decoding = FREE, folder: str = "", **others: Any) -> list[Answer]:
        return answer_cases(asked, decoding, cache_in(tmp_path / folder, decoding), lambda: answering, **others)

    return answers


@pytest.fixture
def batches(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The `asked` keys, batch by batch; with `stop` (batch, answers, error) a batch breaks off after so many answers."""
    real = generate.complete_batch
    seen: dict[str, Any] = {"asked": [], "stop": None}

    def decode(model: Any, batch: Any, *others: Any) -> Any:
        seen["asked"].append([request.key for request in batch])
        number, answers, error = seen["stop"] or (0, 0, None)
        for done, answer in enumerate(real(model, batch, *others)):
            if number == len(seen["asked"]) and done == answers:
                raise error
            yield answer

    monkeypatch.setattr(generate, "complete_batch", decode)
    return seen


def lines_of(folder: Path) -> list[dict[str, Any]]:
    """What the only cache in a folder holds; people look into it."""
    (file,) = folder.iterdir()
    return [json.loads(line) for line in file.read_text().splitlines()]


def never() -> AnsweringModel:
    raise AssertionError("the model was loaded although every answer is cached")


def test_answered_cases_are_never_asked_again(tmp_path: Path, ask: Ask) -> None:
    """Not even the model is loaded; the cache has a JSON line for each answer."""
    first = ask(cases(3))
    messages: list[str] = []
    again = answer_cases(cases(3), FREE, cache_in(tmp_path), never, log=messages.append, name="student")
    assert again == first
    assert messages == ["student: all 3 answers are cached, nothing is generated"]
    assert {line["case_id"] for line in lines_of(tmp_path)} == {"EVAL-01", "EVAL-02", "EVAL-03"}
    assert all(line["finish_reason"] == "length" and line["tokens"] == 12 for line in lines_of(tmp_path))


def test_only_what_changed_is_asked(ask: Ask, batches: dict[str, Any]) -> None:
    """One case has another concept."""
    ask(cases(5))
    batches["asked"].clear()
    ask([*cases(4), case(5, concept="Quite another product.")])
    assert batches["asked"] == [["EVAL-05"]]


def test_other_decoding_or_another_model_asks_anew(tmp_path: Path, ask: Ask) -> None:
    """Each has its own file."""
    ask(cases(2))
    longer = FREE.with_values(max_new_tokens=20)
    for cache in (cache_in(tmp_path, longer), AnswerCache(UPath(tmp_path), "other-model", FREE.fingerprint())):
        with pytest.raises(AssertionError, match="the model was loaded"):
            answer_cases(cases(2), FREE, cache, never)


@pytest.mark.parametrize(("stop", "kept"), [((3, 0), 4), ((1, 1), 1)], ids=["between batches", "in a batch"])
def test_an_interrupted_evaluation_goes_on_and_ends_the_same(
    tmp_path: Path, ask: Ask, batches: dict[str, Any], stop: tuple[int, int], kept: int
) -> None:
    """An answer is on disk as soon as it is finished, and what comes out is what would have come out."""
    whole = ask(cases(6), folder="whole")
    batches |= {"asked": [], "stop": (*stop, KeyboardInterrupt())}
    with pytest.raises(KeyboardInterrupt):
        ask(cases(6), folder="cut")
    assert len(lines_of(tmp_path / "cut")) == kept
    messages: list[str] = []
    resumed = ask(cases(6), folder="cut", log=messages.append)
    assert f"{kept} of 6 answers are cached, {6 - kept} are to be generated" in messages[0]
    if stop == (3, 0):  # else the rest forms other batches
        assert [replace(answer, seconds=0) for answer in resumed] == [replace(answer, seconds=0) for answer in whole]


def test_out_of_memory_says_what_leaves_the_training_alone(tmp_path: Path, ask: Ask, batches: dict[str, Any]) -> None:
    """A sentence with a setting of the decoding; answers that were finished are kept."""
    batches["stop"] = (2, 0, torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"))
    with pytest.raises(
        UserError, match=r"ran out while student answered.*batch_size .*\(now 2\).*nothing is trained anew"
    ):
        ask(cases(5), name="student")
    assert len(lines_of(tmp_path)) == 2


def test_a_prompt_without_room_for_the_answer_is_refused(ask: Ask, answering: AnsweringModel) -> None:
    """Beyond its context a model writes nonsense, and nothing would say why."""
    context = answering.model.config.max_position_embeddings
    said = rf"The prompt of case EVAL-\d+ has .*more than the model's context of {context:,}"
    with pytest.raises(UserError, match=said):
        ask(cases(2), FREE.with_values(max_new_tokens=context))


def test_a_line_that_a_crash_cut_is_ignored_and_shut_off(tmp_path: Path) -> None:
    """The next line does not glue itself to it."""
    cache, answer = cache_in(tmp_path), Answer("EVAL-03", "text", "stop", 3, 0.1)
    cache.add("one", answer)
    path = Path(str(cache.path))
    path.write_bytes(path.read_bytes() + b'{"asked": "two", "case_id": "EV')
    cache_in(tmp_path).add("three", answer)
    assert [cache_in(tmp_path).get(asked) for asked in ("one", "two", "three")] == [answer, None, answer]


def test_the_cache_works_where_nothing_can_be_appended() -> None:
    """An object store (fsspec's memory file system stands for one)."""
    answers = {f"asked-{number}": Answer(f"EVAL-{number}", "text", "stop", 3, 0.1) for number in (1, 2)}
    for asked, answer in answers.items():
        AnswerCache(UPath("memory://answers"), "m", "d").add(asked, answer)
    reread = AnswerCache(UPath("memory://answers"), "m", "d")
    assert {asked: reread.get(asked) for asked in answers} == answers


def test_with_the_grammar_even_a_model_without_sense_answers_in_form(ask: Ask) -> None:
    """Random weights, one token per byte."""
    for answer in ask(cases(2), Decoding(mode="constrained", batch_size=4)):
        assert parse_answer(answer.text).missing == ()
        assert answer.finish_reason == "stop"
        assert answer.tokens < 4_000


def test_the_longest_answer_is_derived_from_the_references(ask: Ask) -> None:
    """Where nothing is set; also without grammar, where it is what ends an answer that goes on and on."""
    most = reference_limits(cases(2)).longest_answer(4)
    assert decoding_faults(cases(2), Decoding()) == []
    assert [answer.tokens for answer in ask(cases(1), Decoding(mode="free"))] == [most]


def test_a_limit_that_could_cut_an_answer_is_refused_before_anything_is_loaded(tmp_path: Path) -> None:
    """With the number that is needed and the case that needs it."""
    decoding = Decoding(mode="constrained", max_new_tokens=300)
    with pytest.raises(UserError, match=r"max_new_tokens is 300, but the grammar allows answers of up to \d+ tokens"):
        answer_cases(cases(2), decoding, cache_in(tmp_path, decoding), never)


def test_an_invalid_answer_is_asked_for_again_with_the_reason(
    ask: Ask, answering: AnsweringModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At most `retries` times, after all others; the last answer counts, and how often it was asked is kept."""
    prompts: dict[str, list[str]] = {}
    tokenizer = answering.chat.tokenizer

    def answers(_model: Any, batch: Any, *_others: Any) -> Any:
        for request in batch:
            asked = prompts.setdefault(request.key, [])
            asked.append(tokenizer.decode(request.prompt_ids))
            good = request.key == "EVAL-01" or (request.key == "EVAL-02" and len(asked) == 2)
            text = GOOD if good else "I cannot do that."
            yield generate.Completion(request.key, tokenizer(text)["input_ids"], "stop", 1.0)

    monkeypatch.setattr(generate, "complete_batch", answers)
    found = ask(cases(3), FREE.with_values(temperature=0.2, top_p=0.9, retries=2, batch_size=8))
    assert [(answer.attempts, answer.seconds) for answer in found] == [(1, 1.0), (2, 2.0), (3, 3.0)]
    assert [answer.text == GOOD for answer in found] == [True, True, False]
    reminder = "Reminder: your last answer could not be used, because the VISION and the REVIEW block are missing"
    assert [reminder in prompt for prompt in prompts["EVAL-02"]] == [False, True]


def test_the_time_left_counts_waiting_answers_whole_and_long_ones_by_half() -> None:
    """Also the last answer, longer than all others, is no reason to expect hours."""
    assert tokens_left(300, running=4, written=100, waiting=10) == 4 * 200 + 10 * 300
    assert tokens_left(300, running=1, written=3_000, waiting=0) == 150
