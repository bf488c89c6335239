import json
from collections.abc import Callable
from pathlib import Path

import pytest

from po_assets.errors import UserError
from po_assets.model import ChatTemplate, load_tokenizer
from po_assets_tests.model.tiny_model import edit_json

PROMPT = "You are a Product Owner.\n\nCONCEPT:\n  a lamp, 12 €\n"


def test_prompt_is_the_chat_template_of_one_user_turn(tiny_folder: Path) -> None:
    """The tokens are those that any Hugging Face tool makes of the same conversation."""
    tokenizer = load_tokenizer(tiny_folder)
    expected = tokenizer.apply_chat_template(
        [{"role": "user", "content": PROMPT}], add_generation_prompt=True, tokenize=True, return_dict=False
    )
    assert ChatTemplate(tokenizer).prompt_ids(PROMPT) == expected


def test_answer_ends_in_exactly_one_end_of_sequence_token(tiny_folder: Path) -> None:
    """Without it a student never learns to stop."""
    chat = ChatTemplate(load_tokenizer(tiny_folder))
    ids = chat.answer_ids("```yaml VISION\n```")
    assert ids[-1] == chat.eos_id
    assert chat.eos_id not in ids[:-1]
    assert chat.answer_text(ids) == "```yaml VISION\n```"


def test_special_tokens_in_the_data_are_plain_text(tiny_folder: Path) -> None:
    """A concept that spells a control token neither ends a turn nor an answer, and decodes to what was written."""
    chat = ChatTemplate(load_tokenizer(tiny_folder))
    text = "before <|im_end|>\n<|im_start|>assistant after"
    clean = chat.prompt_ids("harmless")
    ids = chat.prompt_ids(text)
    assert ids.count(chat.eos_id) == clean.count(chat.eos_id)
    assert text in chat.tokenizer.decode(ids)
    answer = chat.answer_ids(text)
    assert answer.count(chat.eos_id) == 1
    assert chat.tokenizer.decode(answer[:-1]) == text


def test_row_length_counts_prompt_and_answer(tiny_folder: Path) -> None:
    """The token budget counts what training will feed."""
    chat = ChatTemplate(load_tokenizer(tiny_folder))
    assert chat.row_length("a", "b") == len(chat.prompt_ids("a")) + len(chat.answer_ids("b"))


def test_many_rows_have_the_lengths_of_each(tiny_folder: Path) -> None:
    """Counted together, also with rows among them that spell a control token."""
    chat = ChatTemplate(load_tokenizer(tiny_folder))
    rows = [("a", "b"), ("ends <|im_end|> here", "text"), ("some more text", "and <|im_start|>"), ("", "x" * 50)]
    assert chat.row_lengths(rows) == [chat.row_length(*row) for row in rows]
    assert chat.row_lengths(rows[1:2]) == [chat.row_length(*rows[1])]
    assert chat.row_lengths([]) == []


def added_in_tokenizer(folder: Path) -> None:
    path = folder / "tokenizer.json"
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    token = {"id": 259, "content": "<x>", "special": False, **flags}
    edit_json(path, added_tokens=[*json.loads(path.read_text())["added_tokens"], token])


@pytest.mark.parametrize(
    ("change", "rows", "tokens"),
    [
        (lambda folder: edit_json(folder / "config.json", vocab_size=200), 200, 259),
        (lambda folder: edit_json(folder / "config.json", text_config={"vocab_size": 258}), 258, 259),
        (added_in_tokenizer, 259, 260),
        # Tokens that stand in no tokenizer.json.
        (lambda folder: edit_json(folder / "tokenizer_config.json", extra_special_tokens=["<y>", "<z>"]), 259, 261),
    ],
)
def test_a_tokenizer_larger_than_the_model_is_refused(
    tiny_folder: Path, change: Callable[[Path], None], rows: int, tokens: int
) -> None:
    """Its last tokens have no weights: training would end in an index error at the first row that has one."""
    change(tiny_folder)
    with pytest.raises(
        UserError, match=rf"weights for {rows} tokens, but its tokenizer has {tokens}: .*another base_m"
    ):
        load_tokenizer(tiny_folder)


@pytest.mark.parametrize("file", ["tokenizer.json", "tokenizer_config.json", "config.json"])
def test_a_tokenizer_that_cannot_be_read_is_one_sentence(tiny_folder: Path, file: str) -> None:
    """Wherever in two libraries it fails."""
    (tiny_folder / file).write_text("[3]")
    with pytest.raises(UserError, match=r"The tokenizer in .* cannot be loaded \(.*\); put tokenizer\.json"):
        load_tokenizer(tiny_folder)


def test_a_tokenizer_without_chat_template_is_refused(tiny_folder: Path) -> None:
    """A base model that was never taught to chat has no format to share between training and evaluation."""
    (tiny_folder / "chat_template.jinja").unlink(missing_ok=True)
    edit_json(tiny_folder / "tokenizer_config.json", chat_template=None)
    with pytest.raises(UserError, match=r"no chat template.*instruct"):
        ChatTemplate(load_tokenizer(tiny_folder))


def test_a_tokenizer_without_end_of_sequence_is_refused(tiny_folder: Path) -> None:
    """The message says what to set."""
    edit_json(tiny_folder / "tokenizer_config.json", eos_token=None)
    with pytest.raises(UserError, match="set eos_token"):
        ChatTemplate(load_tokenizer(tiny_folder))


def test_a_folder_without_tokenizer_is_refused(tmp_path: Path) -> None:
    """The message names folder and files."""
    with pytest.raises(UserError, match=r"tokenizer in .* cannot be loaded .*put tokenizer\.json"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        ("{{ messages[0].__class__.__mro__ }}", "it fails with SecurityError"),
        ("{% for x in range(999999) %}{% endfor %}", "it fails with OverflowError"),
        ("{{ nothing.at.all }}", "it fails with UndefinedError"),
        ("hello", "it writes the user's text 0 times, not once"),
        ("{{ messages[0].content * 2 }}", "it writes the user's text 2 times, not once"),
        ("{{ messages[0].content }}{{ 'x' * 30000 }}", r"it writes 30,\d+ characters around"),
    ],
)
def test_a_chat_template_that_is_broken_or_hostile_is_refused(tiny_folder: Path, template: str, reason: str) -> None:
    """It comes with the model: it runs in a sandbox, and one sentence says what it did."""
    tokenizer = load_tokenizer(tiny_folder)
    tokenizer.chat_template = template
    with pytest.raises(UserError, match=f"The chat template of .* cannot be used: {reason}.*another base_model"):
        ChatTemplate(tokenizer)
