"""Answering all cases: nothing is asked twice, an interruption costs one batch, retries are asked for after the others."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from upath import UPath

from po_assets.errors import UserError
from po_assets.evaluation import generate
from po_assets.evaluation.answering import Answer, AnsweringModel, load_student, merged
from po_assets.evaluation.answers import (
    AnswerCache,
    answer_cases,
    decoding_faults,
    reference_limits,
    tokens_left,
)
from po_assets.evaluation.settings import Decoding
from po_assets.model import BaseModel, ChatTemplate, load_base_model, load_tokenizer
from po_assets.product_owner import parse_answer
from po_assets_tests.evaluation.scenes import GOOD, case, cases
from po_assets_tests.model.tiny_model import make_tiny_model
from po_assets_tests.training.tiny_training import tiny_recipe, tiny_student

FREE = Decoding(mode="free", max_new_tokens=12, batch_size=2)


@pytest.fixture(scope="module")
def answering(tmp_path_factory: pytest.TempPathFactory) -> AnsweringModel:
    folder = make_tiny_model(tmp_path_factory.mktemp("tiny"), context=8192)
    return AnsweringModel(load_base_model(folder, "float32", device="cpu"), ChatTemplate(load_tokenizer(folder)))


def cache_in(folder: Path, decoding: Decoding = FREE) -> AnswerCache:
    return AnswerCache(UPath(folder), "model-digest", decoding.fingerprint())


def never() -> AnsweringModel:
    raise AssertionError("the model was loaded although every answer is cached")


def test_answered_cases_are_never_asked_again(tmp_path: Path, answering: AnsweringModel) -> None:
    """Not even the model is loaded."""
    first = answer_cases(cases(5), FREE, cache_in(tmp_path), lambda: answering)
    messages: list[str] = []
    again = answer_cases(cases(5), FREE, cache_in(tmp_path), never, log=messages.append, name="student")
    assert again == first
    assert messages == ["student: all 5 answers are cached, nothing is generated"]


def test_only_what_changed_is_asked(tmp_path: Path, answering: AnsweringModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """One case has another concept."""
    answer_cases(cases(5), FREE, cache_in(tmp_path), lambda: answering)
    asked: list[str] = []
    real = generate.complete_batch

    def spy(model: Any, batch: Any, *others: Any) -> Any:
        asked.extend(request.key for request in batch)
        return real(model, batch, *others)

    monkeypatch.setattr(generate, "complete_batch", spy)
    changed = [*cases(4), case(5, concept="Quite another product.")]
    answer_cases(changed, FREE, cache_in(tmp_path), lambda: answering)
    assert asked == ["EVAL-05"]


def test_other_decoding_or_another_model_asks_anew(tmp_path: Path, answering: AnsweringModel) -> None:
    """Each has its own file."""
    answer_cases(cases(2), FREE, cache_in(tmp_path), lambda: answering)
    longer = FREE.with_values(max_new_tokens=20)
    for cache in (cache_in(tmp_path, longer), AnswerCache(UPath(tmp_path), "other-model", FREE.fingerprint())):
        with pytest.raises(AssertionError, match="the model was loaded"):
            answer_cases(cases(2), FREE, cache, never)


def test_an_interrupted_evaluation_goes_on_and_ends_the_same(
    tmp_path: Path, answering: AnsweringModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped in the third batch of three: the first two are on disk, and what comes out is what would have come out."""
    whole = answer_cases(cases(6), FREE, cache_in(tmp_path / "whole"), lambda: answering)
    real, batches = generate.complete_batch, 0

    def stops(*arguments: Any) -> Any:
        nonlocal batches
        batches += 1
        if batches == 3:
            raise KeyboardInterrupt
        return real(*arguments)

    monkeypatch.setattr(generate, "complete_batch", stops)
    with pytest.raises(KeyboardInterrupt):
        answer_cases(cases(6), FREE, cache_in(tmp_path / "cut"), lambda: answering)
    (file,) = (tmp_path / "cut").iterdir()
    assert len(file.read_text().splitlines()) == 4
    messages: list[str] = []
    resumed = answer_cases(cases(6), FREE, cache_in(tmp_path / "cut"), lambda: answering, log=messages.append)
    assert "4 of 6 answers are cached, 2 are to be generated" in messages[0]
    assert [replace(answer, seconds=0) for answer in resumed] == [replace(answer, seconds=0) for answer in whole]


def test_an_answer_is_on_disk_as_soon_as_it_is_finished(
    tmp_path: Path, answering: AnsweringModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also when its batch is stopped before the others are."""
    real = generate.complete_batch

    def stops(*arguments: Any) -> Any:
        yield next(real(*arguments))
        raise KeyboardInterrupt

    monkeypatch.setattr(generate, "complete_batch", stops)
    with pytest.raises(KeyboardInterrupt):
        answer_cases(cases(6), FREE, cache_in(tmp_path), lambda: answering)
    (file,) = tmp_path.iterdir()
    assert len(file.read_text().splitlines()) == 1


def test_a_prompt_without_room_for_the_answer_is_refused(tmp_path: Path, answering: AnsweringModel) -> None:
    """Beyond its context a model writes nonsense, and nothing would say why."""
    context = answering.model.config.max_position_embeddings
    decoding = FREE.with_values(max_new_tokens=context)
    with pytest.raises(
        UserError, match=rf"The prompt of case EVAL-\d+ has .*more than the model's context of {context:,}"
    ):
        answer_cases(cases(2), decoding, cache_in(tmp_path, decoding), lambda: answering)


def test_out_of_memory_says_what_leaves_the_training_alone(
    tmp_path: Path, answering: AnsweringModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A sentence with a setting of the decoding; answers that were finished are kept."""
    real = generate.complete_batch
    batches: list[int] = []

    def second_too_large(*arguments: Any) -> Any:
        batches.append(1)
        if len(batches) == 2:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        yield from real(*arguments)

    monkeypatch.setattr(generate, "complete_batch", second_too_large)
    with pytest.raises(
        UserError, match=r"ran out while student answered.*batch_size .*\(now 2\).*nothing is trained anew"
    ):
        answer_cases(cases(5), FREE, cache_in(tmp_path), lambda: answering, name="student")
    assert len(cache_in(tmp_path)._answers) == 2


def test_a_gpu_without_room_is_not_taken_for_a_wrong_adapter(
    tmp_path: Path, answering: AnsweringModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The advice would be to train it anew."""

    def no_room(*_arguments: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    spec = BaseModel(base_model=str(tmp_path), quantization="none").resolved()
    monkeypatch.setattr("po_assets.evaluation.answering.load_base_model", lambda *_a, **_o: answering.model)
    monkeypatch.setattr("peft.PeftModel.from_pretrained", no_room)
    with pytest.raises(UserError, match=r"ran out while student answered.*nothing is trained anew"):
        answer_cases(cases(2), FREE, cache_in(tmp_path), lambda: load_student(tmp_path, spec, tmp_path), name="student")


def test_an_adapter_is_merged_in_float32_layer_by_layer(tmp_path: Path) -> None:
    """Each merged weight is the sum in float32, rounded once; what was 16 bits is 16 bits again."""
    folder = make_tiny_model(tmp_path / "tiny")
    student = tiny_student(folder, tiny_recipe(folder, precision="bfloat16"))
    for name, parameter in student.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    layer = student.get_base_model().model.layers[1].mlp.up_proj
    expected = (layer.get_base_layer().weight.float() + layer.get_delta_weight("default")).bfloat16()
    assert expected.ne(layer.get_base_layer().weight).any()
    whole = merged(student)
    assert torch.equal(whole.model.layers[1].mlp.up_proj.weight, expected)
    assert {parameter.dtype for parameter in whole.parameters()} == {torch.bfloat16}
    assert not [name for name, _ in whole.named_parameters() if "lora" in name]


def test_a_line_that_a_crash_cut_is_ignored_and_shut_off(tmp_path: Path) -> None:
    """The next line does not glue itself to it."""
    cache = cache_in(tmp_path)
    cache.add("one", Answer("EVAL-01", "text", "stop", 3, 0.1))
    path = Path(str(cache.path))
    path.write_bytes(path.read_bytes() + b'{"asked": "two", "case_id": "EV')
    cache_in(tmp_path).add("three", Answer("EVAL-03", "text", "stop", 3, 0.1))
    reread = cache_in(tmp_path)
    assert reread.get("one") is not None
    assert reread.get("two") is None
    assert reread.get("three") == Answer("EVAL-03", "text", "stop", 3, 0.1)


def test_the_cache_works_where_nothing_can_be_appended() -> None:
    """An object store (fsspec's memory file system stands for one)."""
    folder = UPath("memory://answers")
    for number in (1, 2):
        cache = AnswerCache(folder, "m", "d")
        cache.add(f"asked-{number}", Answer(f"EVAL-{number}", "text", "stop", 3, 0.1))
    assert {AnswerCache(folder, "m", "d").get(f"asked-{number}") for number in (1, 2)} == {
        Answer("EVAL-1", "text", "stop", 3, 0.1),
        Answer("EVAL-2", "text", "stop", 3, 0.1),
    }


def test_with_the_grammar_even_a_model_without_sense_answers_in_form(tmp_path: Path, answering: AnsweringModel) -> None:
    """Random weights, one token per byte."""
    decoding = Decoding(mode="constrained", batch_size=4)
    for answer in answer_cases(cases(2), decoding, cache_in(tmp_path, decoding), lambda: answering):
        assert parse_answer(answer.text).missing == ()
        assert answer.finish_reason == "stop"
        assert answer.tokens < 4_000


def test_the_longest_answer_is_derived_from_the_references(tmp_path: Path, answering: AnsweringModel) -> None:
    """Where nothing is set; also without grammar, where it is what ends an answer that goes on and on."""
    most = reference_limits(cases(2)).longest_answer(4)
    decoding = Decoding(mode="free")
    assert decoding_faults(cases(2), Decoding()) == []
    assert [answer.tokens for answer in answer_cases(cases(1), decoding, cache_in(tmp_path), lambda: answering)] == [
        most
    ]


def test_a_limit_that_could_cut_an_answer_is_refused_before_anything_is_loaded(tmp_path: Path) -> None:
    """With the number that is needed and the case that needs it."""
    decoding = Decoding(mode="constrained", max_new_tokens=300)
    with pytest.raises(UserError, match=r"max_new_tokens is 300, but the grammar allows answers of up to \d+ tokens"):
        answer_cases(cases(2), decoding, cache_in(tmp_path, decoding), never)


def test_an_invalid_answer_is_asked_for_again_with_the_reason(
    tmp_path: Path, answering: AnsweringModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At most `retries` times, after all others; the last answer counts, and how often it was asked is kept."""
    prompts: dict[str, list[str]] = {}
    tokenizer = answering.chat.tokenizer

    def answers(model: Any, batch: Any, decoding: Any, eos: Any, on_step: Any) -> Any:
        for request in batch:
            asked = prompts.setdefault(request.key, [])
            asked.append(tokenizer.decode(request.prompt_ids))
            good = request.key == "EVAL-01" or (request.key == "EVAL-02" and len(asked) == 2)
            text = GOOD if good else "I cannot do that."
            yield generate.Completion(request.key, tokenizer(text)["input_ids"], "stop", 1.0)

    monkeypatch.setattr(generate, "complete_batch", answers)
    decoding = FREE.with_values(temperature=0.2, top_p=0.9, retries=2, batch_size=8)
    found = answer_cases(cases(3), decoding, cache_in(tmp_path, decoding), lambda: answering)
    assert [(answer.attempts, answer.seconds) for answer in found] == [(1, 1.0), (2, 2.0), (3, 3.0)]
    assert [answer.text == GOOD for answer in found] == [True, True, False]
    assert (
        "Reminder: your last answer could not be used, because the VISION and the REVIEW block are missing"
        in (prompts["EVAL-02"][1])
    )
    assert "Reminder" not in prompts["EVAL-02"][0]


def test_the_cache_is_one_json_line_per_answer(tmp_path: Path, answering: AnsweringModel) -> None:
    """People look into it."""
    cache = cache_in(tmp_path)
    answer_cases(cases(2), FREE, cache, lambda: answering)
    lines = [json.loads(line) for line in Path(str(cache.path)).read_text().splitlines()]
    assert {line["case_id"] for line in lines} == {"EVAL-01", "EVAL-02"}
    assert all(line["finish_reason"] == "length" and line["tokens"] == 12 for line in lines)


def test_the_time_left_counts_waiting_answers_whole_and_long_ones_by_half() -> None:
    """Also the last answer, longer than all others, is no reason to expect hours."""
    assert tokens_left(300, running=4, written=100, waiting=10) == 4 * 200 + 10 * 300
    assert tokens_left(300, running=1, written=3_000, waiting=0) == 150
