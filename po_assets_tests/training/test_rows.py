from pathlib import Path

import pytest

from po_assets.errors import UserError
from po_assets.model import ChatTemplate, load_tokenizer
from po_assets.training.checks import label_faults
from po_assets.training.gradients import collate
from po_assets.training.rows import tokenize_rows


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


@pytest.mark.parametrize(("pair", "part"), [(("", "b"), "prompt"), (("a", " \n"), "response")])
def test_an_empty_part_is_refused(chat: ChatTemplate, pair: tuple[str, str], part: str):
    """An empty answer would teach the student to say nothing."""
    with pytest.raises(UserError, match=f"row 1 has an empty {part}"):
        tokenize_rows([pair], chat, 2048)


def test_no_rows_at_all_are_refused(chat: ChatTemplate):
    """With the way out."""
    with pytest.raises(UserError, match="supervised_dataset is empty"):
        tokenize_rows([], chat, 2048)


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
