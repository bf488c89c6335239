"""Rows as tokens: what is trained, under which prompt, and what is held out."""

from pathlib import Path

import pytest
from safetensors.numpy import load_file

from po_assets.errors import UserError
from po_assets.model import ChatTemplate, load_tokenizer
from po_assets.product_owner import format_answer
from po_assets.product_owner.templates import AGENT, BUILT_IN, read_prompt
from po_assets.storage import Layout, read_manifest, write_manifest
from po_assets.training.checks import StudentUnderTest, label_faults, training_is_sane
from po_assets.training.gradients import collate
from po_assets.training.handover import travelled_prompt
from po_assets.training.rows import MixedRows, Prompts, TokenizedRow, mixed, split_rows, tokenize_rows, training_rows
from po_assets_tests.evaluation.scenes import CONCEPT, REQUIREMENTS, REVIEW, VISION
from po_assets_tests.model.tiny_model import make_tiny_model
from po_assets_tests.training.tiny_training import make_recipe, publish, tiny_recipe, write_supervised


@pytest.fixture(scope="module")
def chat(tiny: Path) -> ChatTemplate:
    return ChatTemplate(load_tokenizer(tiny))


def test_exactly_the_answer_and_its_end_are_trained(chat: ChatTemplate):
    """The prompt, template included, is context only."""
    (row,) = tokenize_rows([("what?", "this")], chat, 2048)
    trained = [token for token, weight in zip(row.ids, row.token_weights, strict=True) if weight]
    assert chat.tokenizer.decode(trained) == "this<|im_end|>"
    assert list(row.ids[: row.prompt_length]) == chat.prompt_ids("what?")


def test_a_row_over_the_limit_is_refused_and_never_cut(chat: ChatTemplate):
    """The message counts tokens and says where such rows belong."""
    long = ("p" * 50, "r" * 50)
    length = chat.row_length(*long)
    assert len(tokenize_rows([long], chat, length)[0].ids) == length
    with pytest.raises(UserError, match=rf"row 2 has {length} tokens, max_length is {length - 1}.*never cut.*ledger"):
        tokenize_rows([("a", "b"), long], chat, length - 1)


@pytest.mark.parametrize(
    ("pairs", "said"),
    [
        ([("", "b")], "row 1 has an empty prompt"),
        ([("a", " \n")], "row 1 has an empty response"),
        ([], "supervised_dataset is empty"),
    ],
)
def test_empty_parts_and_an_empty_dataset_are_refused(chat: ChatTemplate, pairs: list[tuple[str, str]], said: str):
    """An empty answer would teach the student to say nothing."""
    with pytest.raises(UserError, match=said):
        tokenize_rows(pairs, chat, 2048)


def test_rows_of_a_batch_stand_one_behind_the_other(chat: ChatTemplate):
    """Nothing is padded; positions begin anew, and no row is trained to predict the first token of the next."""
    short, long = tokenize_rows([("a", "b"), ("a" * 9, "b" * 9)], chat, 2048)
    batch = collate([short, long])
    length = len(short.ids)
    assert batch.ids[0].tolist() == [*short.ids, *long.ids]
    assert batch.positions[0].tolist() == [*range(length), *range(len(long.ids))]
    assert batch.token_weights[0].tolist() == [*short.token_weights, *long.token_weights]
    assert batch.ids[0, length - 1] == chat.eos_id
    assert batch.token_weights[0, [length - 1, length]].tolist() == [1, 0]
    assert batch.starts.tolist() == [0, length, length + len(long.ids)]
    assert label_faults([short, long], chat.eos_id) == []


# Held out for the validation loss.


def row(prompt: int, answer: int) -> TokenizedRow:
    return TokenizedRow((prompt, answer, 1), 1)


def test_no_prompt_is_on_both_sides():
    """However many answers a prompt has; every row is on one side, and about the share is held out."""
    rows = [row(10 + i % 37, i) for i in range(200)]
    trained, held = split_rows(rows, make_recipe(validation_share=0.1))
    assert {r.ids[0] for r in trained}.isdisjoint({r.ids[0] for r in held})
    assert sorted(r.ids for r in [*trained, *held]) == sorted(r.ids for r in rows)
    assert 15 <= len(held) <= 20


def test_the_draw_follows_the_seed_and_not_the_order_of_rows():
    """Two seeds hold out other prompts."""
    rows = [row(10 + i, i) for i in range(60)]
    draws = [
        {r.ids for r in split_rows(some, make_recipe(validation_share=0.2, seed=seed))[1]}
        for some, seed in ((rows, 1), (rows[::-1], 1), (rows, 2))
    ]
    assert draws[0] == draws[1] != draws[2]


def test_rows_that_cannot_be_split_are_refused():
    """Of one prompt, with the share and the ways out."""
    with pytest.raises(
        UserError, match=r"validation_share is 0\.1, and 12 rows of 1 prompt cannot be split.*set it to 0"
    ):
        split_rows([row(5, i) for i in range(12)], make_recipe(validation_share=0.1))


# Under consumers' prompts.

ANSWER = format_answer(VISION, REVIEW)
ROWS = [(BUILT_IN.user(f"{CONCEPT} It is number {n // 2}.", REQUIREMENTS), f"{ANSWER} {n}") for n in range(24)]
"""12 questions, each with two answers."""
BOTH = Prompts(BUILT_IN, (AGENT, read_prompt("Idea:\n{{ concept }}\n\nSpec:\n{{ requirements_yaml }}", "short")))


def mix(share: float, prompts: Prompts = BOTH, *, seed: int = 42, longest: int = 1 << 30) -> MixedRows:
    return mixed(ROWS, prompts, share, seed=seed, fits=lambda row: sum(map(len, row)) <= longest)


def test_each_prompt_gets_its_share_and_all_answers_to_a_question_stay_together() -> None:
    """Seeded; the answers and their order are as before, and the same question is asked."""
    found = mix(0.25)
    assert found.shown == {"agent": 6, "short": 6}
    assert [answer for _, answer, _ in found.examples] == [answer for _, answer in ROWS]
    for number in range(0, 24, 2):
        (asked, _, system), (again, _, system_again) = found.examples[number : number + 2]
        assert (asked, system) == (again, system_again)
        prompt = next(one for one in (BUILT_IN, *BOTH.consumers) if one.system == system and one.parts(asked))
        parts, given = prompt.parts(asked), BUILT_IN.parts(ROWS[number][0])
        assert parts == given
    assert found.examples == mix(0.25).examples != mix(0.25, seed=1).examples
    assert found.described == "Of 24 rows 12 are trained under the own prompt, 6 under agent, 6 under short."


def test_by_default_every_row_is_trained_under_the_own_prompt() -> None:
    """With its system text, where it has one."""
    assert mix(0).examples == [(*pair, "") for pair in ROWS]
    assert mix(0).described == ""
    assert {system for *_, system in mix(0, Prompts(AGENT)).examples} == {AGENT.system}


def test_rows_that_do_not_fit_under_a_prompt_stay_with_the_own_one_and_are_counted() -> None:
    """The agent's system text alone has some 3,000 characters; nothing is cut."""
    longest = max(len(prompt) + len(answer) for prompt, answer in ROWS)
    found = mix(0.25, longest=longest)
    assert (found.shown, found.kept) == ({"agent": 0, "short": 6}, 6)
    assert "(6 more would not fit under one and stayed)" in found.described


@pytest.mark.parametrize(
    ("share", "prompts", "sentence"),
    [
        (0.6, BOTH, "prompt_mix is 0.6 for each of 2 prompts, which is more than all rows: lower it to 0.5 or less"),
        (0.1, Prompts(), "prompt_mix is 0.1, and no other prompt is named"),
    ],
)
def test_a_share_that_cannot_be_had_is_refused(share: float, prompts: Prompts, sentence: str) -> None:
    """In the preflight, too, which asks the same function."""
    with pytest.raises(UserError, match=sentence):
        mix(share, prompts)


LONG = {"max_length": 8192, "epochs": 0.2}


@pytest.fixture
def mixable(layout: Layout) -> Layout:
    """Where these rows are the dataset, with a base model that reads them under every prompt."""
    make_tiny_model(Path(str(layout.root)) / "tiny", context=8192)
    write_supervised(layout, ROWS)
    return layout


def test_the_mix_is_trained_and_stands_in_log_card_and_digest(mixable: Layout) -> None:
    """Other weights, another digest; the checks see the very rows that were trained."""
    plain, _ = publish(mixable, ROWS, BOTH, **LONG)
    plain_weights = load_file(Path(plain.folder) / "adapter_model.safetensors")
    student, said = publish(mixable, ROWS, BOTH, **LONG, prompt_mix=0.25)
    sentence = "Of 24 rows 12 are trained under the own prompt, 6 under agent, 6 under short."
    assert any(sentence in line for line in said)
    assert student.manifest.config != plain.manifest.config
    weights = load_file(Path(student.folder) / "adapter_model.safetensors")
    assert any((weights[name] != plain_weights[name]).any() for name in weights)
    assert sentence in (Path(student.folder) / "README.md").read_text()
    recipe = tiny_recipe(Path(str(mixable.root)) / "tiny", **LONG, prompt_mix=0.25)
    checked = StudentUnderTest(mixable, recipe, BOTH)
    rows = training_rows(ROWS, checked.chat, recipe, BOTH).rows
    assert checked.rows == rows
    assert sum(AGENT.system in checked.chat.tokenizer.decode(row.ids) for row in rows) == 6
    assert "rows are trained on the wrong tokens" not in training_is_sane(checked).summary


def test_the_prompt_travels_with_the_adapter_and_another_one_is_refused(mixable: Layout) -> None:
    """System text and template; rows that were written with another prompt than the one set are not trained on."""
    with pytest.raises(UserError, match=r"were written with the prompt 'built-in' .* set now is 'agent'"):
        publish(mixable, ROWS, Prompts(AGENT), **LONG)
    manifest = read_manifest(mixable.supervised)
    assert manifest is not None
    manifest.extra["prompt"] = {"name": "agent", "digest": AGENT.digest}
    write_manifest(mixable.supervised, manifest)
    student, _ = publish(mixable, ROWS, Prompts(AGENT), **LONG)
    assert travelled_prompt(Path(student.folder)) == AGENT
    assert student.manifest.extra["prompt"] == {"name": "agent", "digest": AGENT.digest}
    assert publish(mixable, ROWS, Prompts(AGENT), **LONG)[0].unchanged
