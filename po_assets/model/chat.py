"""From a prompt and an answer to tokens: the one path for token budget, training, baseline and student.

Nothing else in the project turns text into a model's input.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from jinja2 import TemplateError

from po_assets.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_MARK = "\ue000po_assets\ue000"  # private-use characters: in no chat template and in no special token

_MOST_TEMPLATE_TEXT = 20_000  # characters around one user turn; the longest system text of a known model has 4,000


def load_tokenizer(path: str | PathLike[str]) -> PreTrainedTokenizerBase:
    """Load the tokenizer of a base model folder (see `ensure_base_model`); `UserError` if it is not the weights'."""
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(str(path), local_files_only=True, trust_remote_code=False)
    except Exception as error:  # a damaged file fails anywhere in two libraries
        raise UserError(
            f"The tokenizer in {str(path)!r} cannot be loaded ({first_line(error)}); put tokenizer.json, "
            "tokenizer_config.json and config.json of one model there."
        ) from error
    # As loaded: tokens are added in three files. One without weights would end training in an index error.
    rows, tokens = _token_weights(Path(path)), 1 + max(tokenizer.get_vocab().values(), default=-1)
    if rows is not None and rows < tokens:
        raise UserError(
            f"The base model in {str(path)!r} has weights for {rows:,} tokens, but its tokenizer has {tokens:,}: put "
            "the tokenizer there that belongs to it, or give another base_model."
        )
    return cast("PreTrainedTokenizerBase", tokenizer)


def _token_weights(folder: Path) -> int | None:
    """Tokens that a base model has weights for; None in a folder that has only a tokenizer (an adapter's)."""
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        return int((config.get("text_config") or config)["vocab_size"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


class ChatTemplate:
    """The tokenizer's own chat template with one user turn, and the answer with its end-of-sequence token."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        """Raise `UserError` for a tokenizer without chat template or without end-of-sequence token."""
        if not tokenizer.chat_template:
            raise UserError(
                f"The tokenizer of {tokenizer.name_or_path!r} has no chat template; use an instruct (chat) "
                "model as base."
            )
        if tokenizer.eos_token_id is None:
            raise UserError(
                f"The tokenizer of {tokenizer.name_or_path!r} has no end-of-sequence token, so that a student could "
                "not learn to stop; set eos_token in its tokenizer_config.json."
            )
        self.tokenizer = tokenizer
        if problem := self._template_problem():
            raise UserError(
                f"The chat template of {tokenizer.name_or_path!r} cannot be used: {problem}. Correct its "
                "chat_template.jinja, or give another base_model."
            )
        self._special_texts = tuple(str(token) for token in tokenizer.added_tokens_decoder.values() if token.special)

    @property
    def eos_id(self) -> int:
        """The token that ends an answer."""
        return int(cast("int", self.tokenizer.eos_token_id))

    def prompt_ids(self, prompt: str, system: str = "") -> list[int]:
        """Tokens of system text and user turn up to and including the opening of the assistant's turn."""
        return self.conversation_ids(_turns(prompt, system))

    def conversation_ids(self, turns: Sequence[Mapping[str, str]]) -> list[int]:
        """Tokens of the turns (`role`, `content`) up to and including the opening of the assistant's next turn.

        Raise `UserError` for turns that the chat template does not take.
        """
        contents = [turn["content"] for turn in turns]
        if not any(map(self._names_special_token, contents)):
            return self._encode(self._render(turns))
        # Text of the data must never act as a control token: encode it as plain text between the template's parts.
        parts = self._render([{**turn, "content": _MARK} for turn in turns]).split(_MARK)
        if len(parts) != len(contents) + 1:
            raise UserError("The model's chat template does not take these turns one after the other.")
        ids = self._encode(parts[0])
        for content, part in zip(contents, parts[1:], strict=True):
            ids += self._encode(content, split_special_tokens=True) + self._encode(part)
        return ids

    def answer_ids(self, response: str) -> list[int]:
        """Tokens of the answer and one end-of-sequence token, the only one among them."""
        return [*self.piece_ids(response), self.eos_id]

    def piece_ids(self, text: str) -> list[int]:
        """A piece of a text by itself, without special tokens."""
        return self._encode(text, split_special_tokens=self._names_special_token(text))

    def row_length(self, prompt: str, response: str, system: str = "") -> int:
        """Tokens of the whole training row, which is never cut."""
        return len(self.prompt_ids(prompt, system)) + len(self.answer_ids(response))

    def row_lengths(self, rows: Sequence[tuple[str, str]], system: str = "") -> list[int]:
        """`row_length` of many rows (prompt, response) at once: at half the cost, and on all cores."""
        odd = [any(map(self._names_special_token, (*row, system))) for row in rows]
        texts = [
            text
            for row, is_odd in zip(rows, odd, strict=True)
            if not is_odd
            for text in (self._render(_turns(row[0], system)), row[1])
        ]
        encoded = (
            self.tokenizer(texts, add_special_tokens=False, return_attention_mask=False, verbose=False) if texts else {}
        )
        lengths = map(len, encoded.get("input_ids", ()))
        return [
            self.row_length(*row, system) if is_odd else next(lengths) + next(lengths) + 1
            for row, is_odd in zip(rows, odd, strict=True)
        ]

    def answer_text(self, ids: list[int]) -> str:
        """Text of generated ids, without special tokens."""
        return str(self.tokenizer.decode(ids, skip_special_tokens=True))

    def _render(self, turns: Sequence[Mapping[str, str]]) -> str:
        try:
            return str(self.tokenizer.apply_chat_template(list(turns), add_generation_prompt=True, tokenize=False))
        except TemplateError as error:  # templates refuse roles and orders that they do not know
            raise UserError(f"The model's chat template does not take these turns: {first_line(error)}.") from error

    def _template_problem(self) -> str | None:
        """A template comes with a model, from anybody: it runs in a sandbox, and may fail there, or write anything."""
        try:
            text = self._render([{"role": "user", "content": _MARK}])
        except Exception as error:  # noqa: BLE001 - whatever the template's author thought of
            cause = error.__cause__ or error
            return f"it fails with {type(cause).__name__} ({first_line(cause)})"
        if text.count(_MARK) != 1:
            return f"it writes the user's text {text.count(_MARK)} times, not once"
        if len(text) > _MOST_TEMPLATE_TEXT:
            return f"it writes {len(text):,} characters around the user's text"
        return None

    def _encode(self, text: str, **options: Any) -> list[int]:
        # The template writes its own special tokens; a second beginning-of-sequence token would be a fault.
        return list(self.tokenizer(text, add_special_tokens=False, verbose=False, **options)["input_ids"])

    def _names_special_token(self, text: str) -> bool:
        return any(token in text for token in self._special_texts)


def _turns(prompt: str, system: str) -> list[dict[str, str]]:
    return [*([{"role": "system", "content": system}] if system else []), {"role": "user", "content": prompt}]


def first_line(error: BaseException) -> str:
    """An error of a library in one line; its type where it says nothing else."""
    lines = str(error).split("\n")
    lines = [line.strip() for line in lines if line.strip()] or [type(error).__name__]
    said = " ".join(lines[:2]) if lines[0].endswith(":") else lines[0]
    return (f"{type(error).__name__}: {said}" if isinstance(error, LookupError) else said)[:300]
