"""What answers: the base model or the student, loaded with its chat format, or a model of an OpenAI-compatible server.

A question and an answer are the same for both; which questions are asked belongs to `answers`, how tokens are chosen to
`generate`. A server, such as vLLM with LoRA, is for large sets of cases; its name for the student holds the adapter's
digest, so that no other adapter's answers are taken for it.
"""

import hashlib
import os
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from po_assets.dataset.cases import EvalCase
from po_assets.errors import UserError
from po_assets.evaluation.settings import KEY_VARIABLE, Decoding
from po_assets.model import (
    BaseModel,
    ChatTemplate,
    best_device,
    choose_precision,
    decide_quantization,
    load_base_model,
    load_tokenizer,
)
from po_assets.model.chat import first_line
from po_assets.training.memory import is_out_of_memory

if TYPE_CHECKING:
    from llguidance import LLTokenizer
    from openai import OpenAI

    from po_assets.evaluation.generate import GrammarConstraint, Request


@dataclass
class Question:
    """What is asked for one case; `digest` is of everything that decides the answer besides model and decoding."""

    case: EvalCase
    grammar: str | None
    max_new_tokens: int
    digest: str
    attempts: int = 0
    reason: str = ""
    """Why the last answer was not valid."""
    seconds: float = 0.0

    @property
    def prompt(self) -> str:
        """The case's, with a reminder where it is asked again."""
        if not self.reason:
            return self.case.prompt
        return (
            f"{self.case.prompt}\n\nReminder: your last answer could not be used, because {self.reason}. "
            "Write both fenced YAML blocks, complete, with every key."
        )

    def seed(self, decoding: Decoding) -> int:
        """Of the draws of this attempt; 63 bits."""
        seed = hashlib.sha256(f"{decoding.seed}/{self.digest}/{self.attempts}".encode()).digest()
        return int.from_bytes(seed[:8], "big") >> 1


@dataclass(frozen=True)
class Answer:
    """One model's answer to one case."""

    case_id: str
    text: str
    finish_reason: str
    """`stop`: the model or the grammar ended it; `length`: it was cut at the token limit."""
    tokens: int
    seconds: float
    """Computing time: each forward pass divided among the answers in it, so that the sum over answers is the whole."""
    attempts: int = 1


@dataclass(frozen=True)
class AnsweringModel:
    """A loaded model with its chat format. `model` is called like a transformers causal language model."""

    model: Any
    chat: ChatTemplate

    @property
    def eos_ids(self) -> list[int]:
        """The tokens that end an answer: the chat format's, then those of the model's generation config."""
        configured = getattr(getattr(self.model, "generation_config", None), "eos_token_id", None)
        others = configured if isinstance(configured, list) else [configured]
        return list(dict.fromkeys([self.chat.eos_id, *(token for token in others if isinstance(token, int))]))

    @cached_property
    def vocabulary(self) -> int:
        """The model's number of logits."""
        return int(self.model.config.vocab_size)

    def constraint(self, grammar: str | None) -> "GrammarConstraint | None":
        """What keeps one answer within the grammar; None without one."""
        from po_assets.evaluation.generate import GrammarConstraint

        return GrammarConstraint(self._tokenizer, grammar) if grammar else None

    @cached_property
    def _tokenizer(self) -> "LLTokenizer":
        from po_assets.evaluation.generate import grammar_tokenizer

        return grammar_tokenizer(self.chat.tokenizer, self.vocabulary)

    def request(self, question: Question, decoding: Decoding) -> "Request":
        """The question in tokens."""
        from po_assets.evaluation.generate import Request

        return Request(
            key=question.case.case_id,
            prompt_ids=self.chat.prompt_ids(question.prompt, question.case.asked_with.system),
            constraint=self.constraint(question.grammar),
            seed=question.seed(decoding),
            max_new_tokens=question.max_new_tokens,
        )

    def complete(
        self, batch: "Sequence[Request]", decoding: Decoding, on_step: Callable[[int], None] = lambda _rows: None
    ) -> Iterator[Answer]:
        """The answers to one batch as they are finished; `on_step` as in `generate.complete_batch`."""
        from po_assets.evaluation import generate

        for done in generate.complete_batch(self.model, batch, decoding, self.eos_ids, on_step):
            text = self.chat.answer_text(done.token_ids)
            yield Answer(done.key, text, done.finish_reason, len(done.token_ids), done.seconds)


def load_baseline(folder: Path, spec: BaseModel) -> AnsweringModel:
    """The base model as it is."""
    from po_assets.model.cpu import prepare_for_decoding

    model = load_base_model(folder, quantization=decide_quantization(spec)[0])
    prepare_for_decoding(model)
    return AnsweringModel(model, ChatTemplate(load_tokenizer(folder)))


def load_student(folder: Path, spec: BaseModel, adapter: Path) -> AnsweringModel:
    """The base model with the adapter.

    Merged where the weights allow it, each layer in float32 and rounded once to the precision that the baseline runs
    in: each forward pass is then as fast as the base model's. A quantized base keeps its adapter beside it.

    Raises:
        UserError: the folder holds no adapter for this base model, or one that changes nothing.
    """
    from peft import PeftModel

    from po_assets.model.cpu import prepare_for_decoding

    quantization, _ = decide_quantization(spec)
    base = load_base_model(folder, quantization=quantization)
    try:
        student = PeftModel.from_pretrained(base, str(adapter))
    except (OSError, ValueError, RuntimeError) as error:
        if is_out_of_memory(error):  # which has another way out than a new adapter
            raise
        raise UserError(
            f"The adapter does not load onto {spec.name}: {first_line(error)}. Materialize lora_adapter again."
        ) from error
    student.eval()
    if not _changes_weights(student):
        raise UserError(f"The adapter changes no weight of {spec.name}: it was not trained. Materialize lora_adapter.")
    if quantization == "none":
        student = merged(student).eval()
        prepare_for_decoding(student)
    return AnsweringModel(student, ChatTemplate(load_tokenizer(folder)))


def merged(student: Any) -> Any:
    """The base model with the adapter of a PEFT model in its weights; layer by layer, so that 16 bits stay 16."""
    from peft.tuners.lora import LoraLayer

    for module in student.modules():
        if isinstance(module, LoraLayer):
            layer = module.get_base_layer()
            dtype = layer.weight.dtype
            layer.float()
            module.merge()
            layer.to(dtype)
    return student.unload()


def computed_in() -> str:
    """Where and in which precision this machine answers: the same question has other last bits elsewhere."""
    import torch

    device = torch.cuda.get_device_name() if best_device() == "cuda" else "cpu"
    return f"{device}, {choose_precision().dtype}"


def _changes_weights(student: Any) -> bool:
    """Whether any LoRA product of a PEFT model is not zero: an untrained adapter would measure the base model."""
    import torch

    return any(
        bool(torch.count_nonzero(up.weight)) and bool(torch.count_nonzero(module.lora_A[name].weight))
        for module in student.modules()
        for name, up in getattr(module, "lora_B", {}).items()
    )


@dataclass(frozen=True)
class ServedModel:
    """A model of a server, by the server's name for it."""

    client: "OpenAI"
    name: str

    def answers(self, questions: Sequence[Question], decoding: Decoding) -> Iterator[Answer]:
        """The answers as they come, `batch_size` asked side by side; each has its share of their time, about.

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

    def _answer(self, question: Question, decoding: Decoding) -> Answer:
        began = time.perf_counter()
        messages: Any = [*question.case.turns[:-1], {"role": "user", "content": question.prompt}]
        # vLLM's field (backend guidance, which reads Lark); a server that knows none refuses it.
        grammar = {"structured_outputs": {"grammar": question.grammar}} if question.grammar else {}
        made = self.client.chat.completions.create(
            model=self.name,
            messages=messages,
            max_tokens=question.max_new_tokens,
            temperature=decoding.temperature,
            top_p=decoding.top_p,
            seed=question.seed(decoding) % 2**31,
            extra_body=grammar,
        )
        choice, seconds = made.choices[0], time.perf_counter() - began
        tokens = made.usage.completion_tokens if made.usage else 0
        reason = "length" if choice.finish_reason == "length" else "stop"
        text = choice.message.content or ""
        return Answer(question.case.case_id, text, reason, tokens, seconds / decoding.batch_size)


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
