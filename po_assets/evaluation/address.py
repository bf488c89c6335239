"""Answers of an OpenAI-compatible server, such as vLLM with LoRA, instead of this process: for large sets of cases.

The server's name for the student holds the adapter's digest, so that no other adapter's answers are taken for it.
"""

import os
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from po_assets.errors import UserError
from po_assets.evaluation.settings import KEY_VARIABLE, Decoding
from po_assets.model.chat import first_line

if TYPE_CHECKING:
    from openai import OpenAI


@dataclass(frozen=True)
class Asked:
    """One question to a server; `key` is given back with its answer."""

    key: str
    turns: Sequence[dict[str, str]]
    grammar: str | None
    max_new_tokens: int
    seed: int


@dataclass(frozen=True)
class Said:
    """An answer; `seconds` is its share of the time of all that were asked side by side, about."""

    key: str
    text: str
    finish_reason: str
    tokens: int
    seconds: float


@dataclass(frozen=True)
class ServedModel:
    """A model of a server, by the server's name for it."""

    client: "OpenAI"
    name: str

    def answers(self, questions: Sequence[Asked], decoding: Decoding) -> Iterator[Said]:
        """The answers as they come, `batch_size` asked side by side.

        Raises:
            UserError: the server refuses or cannot be reached.
        """
        from openai import OpenAIError

        with ThreadPoolExecutor(decoding.batch_size) as pool:
            futures = [pool.submit(self._answer, question, decoding) for question in questions]
            try:
                for future in as_completed(futures):
                    yield future.result()
            except OpenAIError as error:
                raise UserError(
                    f"The server {decoding.address!r} does not answer: {first_line(error)}. Answers that are finished "
                    "are kept; mend the server or leave address empty, and materialize the report again."
                ) from error
            finally:
                pool.shutdown(cancel_futures=True)

    def _answer(self, question: Asked, decoding: Decoding) -> Said:
        began = time.perf_counter()
        messages: Any = question.turns
        # vLLM's field (backend guidance, which reads Lark); a server that knows none refuses it.
        grammar = {"structured_outputs": {"grammar": question.grammar}} if question.grammar else {}
        made = self.client.chat.completions.create(
            model=self.name,
            messages=messages,
            max_tokens=question.max_new_tokens,
            temperature=decoding.temperature,
            top_p=decoding.top_p,
            seed=question.seed % 2**31,
            extra_body=grammar,
        )
        choice, seconds = made.choices[0], time.perf_counter() - began
        tokens = made.usage.completion_tokens if made.usage else 0
        reason = "length" if choice.finish_reason == "length" else "stop"
        return Said(question.key, choice.message.content or "", reason, tokens, seconds / decoding.batch_size)


def served(address: str, name: str, adapter: Path | None = None) -> ServedModel:
    """The model that the server calls `name`; vLLM is asked to load the `adapter` under it where it is not there.

    Raises:
        UserError: the server cannot be reached, or has no such model.
    """
    import httpx
    from openai import OpenAI, OpenAIError

    key = os.environ.get(KEY_VARIABLE) or "none"
    client = OpenAI(base_url=address, api_key=key)
    try:
        names = [model.id for model in client.models.list()]
        if name not in names and adapter:
            loaded = httpx.post(
                f"{address.rstrip('/')}/load_lora_adapter",
                json={"lora_name": name, "lora_path": str(adapter)},
                headers={"Authorization": f"Bearer {key}"},
                timeout=300,
            )
            names += [name] if loaded.is_success else []
    except (OpenAIError, httpx.HTTPError) as error:
        raise UserError(
            f"The server {address!r} (address of the decoding settings) cannot be asked: {first_line(error)}. Start "
            "it, or leave address empty."
        ) from error
    if name not in names:
        how = (
            "start vLLM with --enable-lora and VLLM_ALLOW_RUNTIME_LORA_UPDATING=True, so that it loads the adapter "
            f"itself, or with --lora-modules {name}=FOLDER"
            if adapter
            else f"start it with --served-model-name {name}"
        )
        raise UserError(
            f"The server {address!r} has no model {name!r}, but {', '.join(names) or 'none'}: {how}; or leave address "
            "empty."
        )
    return ServedModel(client, name)
