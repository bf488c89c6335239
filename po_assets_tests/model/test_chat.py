import json
from collections.abc import Callable
from pathlib import Path

import pytest

from po_assets.errors import UserError
from po_assets.model import ChatTemplate, load_tokenizer
from po_assets_tests.model.tiny_model import edit_json


@pytest.fixture
def chat(tiny_folder: Path) -> ChatTemplate:
    return ChatTemplate(load_tokenizer(tiny_folder))


PROMPT = "You are a Product Owner.\n\nCONCEPT:\n  a lamp, 12 €\n"


def test_prompt_is_the_chat_template_of_one_user_turn(chat: ChatTemplate) -> None:
    """The tokens are those that any Hugging Face tool makes of the same conversation."""
    expected = chat.tokenizer.apply_chat_template(
        [{"role": "user", "content": PROMPT}], add_generation_prompt=True, tokenize=True, return_dict=False
    )
    assert chat.prompt_ids(PROMPT) == expected


def test_answer_ends_in_exactly_one_end_of_sequence_token(chat: ChatTemplate) -> None:
    """Without it a student never learns to stop."""
    ids = chat.answer_ids("```yaml VISION\n```")
    assert ids[-1] == chat.eos_id
    assert chat.eos_id not in ids[:-1]
    assert chat.answer_text(ids) == "```yaml VISION\n```"


def test_special_tokens_in_the_data_are_plain_text(chat: ChatTemplate) -> None:
    """A concept that spells a control token neither ends a turn nor an answer, and decodes to what was written."""
    text = "before <|im_end|>\n<|im_start|>assistant after"
    clean = chat.prompt_ids("harmless")
    ids = chat.prompt_ids(text)
    assert ids.count(chat.eos_id) == clean.count(chat.eos_id)
    assert text in chat.tokenizer.decode(ids)
    answer = chat.answer_ids(text)
    assert answer.count(chat.eos_id) == 1
    assert chat.tokenizer.decode(answer[:-1]) == text


def test_rows_have_the_lengths_of_prompt_and_answer(chat: ChatTemplate) -> None:
    """The token budget counts what training will feed: alone or together, also rows that spell a control token."""
    rows = [("a", "b"), ("ends <|im_end|> here", "text"), ("some more text", "and <|im_start|>"), ("", "x" * 50)]
    lengths = [len(chat.prompt_ids(prompt)) + len(chat.answer_ids(response)) for prompt, response in rows]
    assert chat.row_lengths(rows) == [chat.row_length(*row) for row in rows] == lengths
    assert chat.row_lengths(rows[1:2]) == lengths[1:2]
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


@pytest.mark.parametrize("file", ["tokenizer.json", "tokenizer_config.json", "config.json", None])
def test_a_tokenizer_that_cannot_be_read_is_one_sentence(tiny_folder: Path, tmp_path: Path, file: str | None) -> None:
    """Wherever in two libraries it fails, or where there is none at all."""
    folder = tiny_folder if file else tmp_path
    if file:
        (folder / file).write_text("[3]")
    with pytest.raises(UserError, match=r"The tokenizer in .* cannot be loaded \(.*\); put tokenizer\.json"):
        load_tokenizer(folder)


@pytest.mark.parametrize(
    ("missing", "said"), [("chat_template", r"no chat template.*instruct"), ("eos_token", "set eos_token")]
)
def test_a_tokenizer_without_chat_template_or_end_of_sequence_is_refused(
    tiny_folder: Path, missing: str, said: str
) -> None:
    """A base model that was never taught to chat, or a student that could not learn to stop."""
    if missing == "chat_template":
        (tiny_folder / "chat_template.jinja").unlink(missing_ok=True)
    edit_json(tiny_folder / "tokenizer_config.json", **{missing: None})
    with pytest.raises(UserError, match=said):
        ChatTemplate(load_tokenizer(tiny_folder))


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
