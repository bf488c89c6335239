"""One loaded model that answers conversations: the student, an adapter or the base model.

It decodes as the evaluation does, on the CPU path and with the grammar where a Product Owner question is asked, so that
the gate's verdict holds here too. What is asked over HTTP belongs to `server`, whether an answer is good to `ask`.
"""

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from upath import UPath

from po_assets.dag import read_gate
from po_assets.dataset.cases import read_eval_cases
from po_assets.errors import UserError
from po_assets.evaluation.answering import AnsweringModel, load_baseline, load_student
from po_assets.evaluation.answers import context_of, reference_limits
from po_assets.evaluation.gate import GATE_FILE
from po_assets.evaluation.settings import Decoding
from po_assets.model import (
    BaseModel,
    base_model_digest,
    best_device,
    decide_quantization,
    ensure_base_model,
    require_hardware,
)
from po_assets.product_owner import requirement_entries, split_prompt
from po_assets.product_owner.grammar import GrammarLimits, answer_grammar
from po_assets.product_owner.templates import BUILT_IN, Prompt
from po_assets.storage import Layout, directory_digest, local_copy, published_directory, read_manifest, recorded_digest
from po_assets.training.handover import travelled_prompt
from po_assets.training.student import adapter_problem

Turn = Mapping[str, str]
"""`role` (system, user or assistant) and `content`."""
OnText = Callable[[str], bool]
"""Gets each new piece of an answer; says whether to go on."""
STUDENT_NAME = "po-student"
_NO_TEXT_YET = "\ufffd"


@dataclass(frozen=True)
class Sampling:
    """How one answer is decoded."""

    max_tokens: int | None = None
    """None: as long as the grammar allows, or the evaluation's limit of answers without grammar."""
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0
    stop: tuple[str, ...] = ()
    """Texts that end the answer and are no part of it."""


@dataclass(frozen=True)
class Question:
    """A conversation as the model gets it; made by `prepare`."""

    prompt_ids: list[int]
    grammar: str | None
    decoding: Decoding
    sampling: Sampling


@dataclass(frozen=True)
class Generated:
    """A finished answer. `finish_reason` is `stop`, or `length` where it was cut; `seconds` of computing."""

    text: str
    finish_reason: str
    prompt_tokens: int
    completion_tokens: int
    seconds: float


class ModelEngine:
    """A loaded model, asked for one answer at a time.

    `digest` is the sha256 (hex) of the adapter, or of the base model that answers without one.
    """

    def __init__(
        self,
        answering: AnsweringModel,
        name: str,
        digest: str = "",
        *,
        grammar: bool = True,
        limits: GrammarLimits | None = None,
        prompt: Prompt = BUILT_IN,
    ) -> None:
        """`limits` bound the answers within the grammar; `prompt` is what the model was trained with."""
        self.name, self.digest, self.prompt = name, digest, prompt
        self._answering, self._grammar, self._limits = answering, grammar, limits or GrammarLimits()

    def prepare(self, turns: Sequence[Turn], sampling: Sampling) -> Question:
        """The question as the model gets it.

        Raises:
            UserError: the chat template knows no such turns, or question and answer do not fit the model's context.
        """
        prompt_ids = self._answering.chat.conversation_ids(turns)
        context = context_of(self._answering.model.config) or 1 << 30
        room = context - len(prompt_ids)
        if room < (least := sampling.max_tokens or 1):
            raise UserError(
                f"The prompt has {len(prompt_ids):,} tokens and an answer needs room for {least:,} (max_tokens); "
                f"together that is more than the model's context of {context:,}."
            )
        ids = self._ids_to_cite(turns)
        grammar = None if ids is None else answer_grammar(ids, self._limits)
        free = Decoding.model_fields["free_max_new_tokens"].default
        longest = free if ids is None else self._limits.longest_answer(len(ids))
        most = sampling.max_tokens or min(room, longest)
        decoding = Decoding(max_new_tokens=most, temperature=sampling.temperature, top_p=sampling.top_p)
        return Question(prompt_ids, grammar, decoding, sampling)

    def generate(self, question: Question, on_text: OnText | None = None) -> Generated:
        """The answer; `on_text` gets it piece by piece."""
        from po_assets.evaluation.generate import Request, complete_batch

        started = time.perf_counter()
        listener: Any = _Listener(self._answering, question, on_text)
        request = Request("", question.prompt_ids, listener, question.sampling.seed)
        (done,) = complete_batch(self._answering.model, [request], question.decoding, self._answering.eos_ids)
        text = listener.finish()
        seconds = time.perf_counter() - started
        return Generated(text, done.finish_reason, len(question.prompt_ids), len(done.token_ids), round(seconds, 3))

    def _ids_to_cite(self, turns: Sequence[Turn]) -> list[str] | None:
        """The requirement ids of a Product Owner question; None for any other, which no grammar fits."""
        asked = turns[-1]["content"]
        requirements = (self.prompt.parts(asked) or split_prompt(asked)).requirements_yaml if self._grammar else None
        entries = requirement_entries(requirements) if requirements else []
        return list(dict.fromkeys(entry.id for entry in entries if entry.id)) if entries else None


class _Listener:
    """Stands where the decode loop expects a grammar: it tells the text as its tokens come, and can end the answer.

    What a later token may still change is held back.
    """

    def __init__(self, answering: AnsweringModel, question: Question, on_text: OnText | None) -> None:
        self._inner = answering.constraint(question.grammar)
        self._vocabulary, self._decode = answering.vocabulary, answering.chat.answer_text
        self._stop, self._on_text = question.sampling.stop, on_text
        self._tokens: list[int] = []
        self._text, self._told, self._ended = "", 0, False

    def permits(self, token: int) -> bool:
        return self._inner is None or self._inner.permits(token)

    def permitted_bits(self) -> Any:
        if self._inner is not None:
            return self._inner.permitted_bits()
        return np.full((self._vocabulary + 31) // 32 * 4, 255, dtype=np.uint8)

    def advance(self, token: int) -> None:
        if self._inner is not None:
            self._inner.advance(token)
        self._tokens.append(token)
        if self._stop or self._on_text:
            # Half of a character is whole with the next token; the beginning of a stop text is not told yet.
            held = max((len(one) - 1 for one in self._stop), default=0)
            stopped = self._read()
            self._ended = stopped or not self._tell(len(self._text.rstrip(_NO_TEXT_YET)) - held)

    @property
    def complete(self) -> bool:
        return self._ended or (self._inner is not None and self._inner.complete)

    def finish(self) -> str:
        """Tell the rest; the whole text."""
        self._read()
        self._tell(len(self._text))
        return self._text

    def _read(self) -> bool:
        """Take the tokens' text as far as a stop text, and say whether there is one."""
        text = self._decode(self._tokens)
        end = min((at for one in self._stop if (at := text.find(one)) >= 0), default=len(text))
        self._text = text[:end]
        return end < len(text)

    def _tell(self, end: int) -> bool:
        """Tell the text up to there; whether to go on."""
        if self._on_text is None or end <= self._told:
            return True
        piece, self._told = self._text[self._told : end], end
        return self._on_text(piece)


def load_engine(
    layout: Layout,
    *,
    adapter: Path | None = None,
    base: bool = False,
    grammar: bool = True,
    spec: BaseModel | None = None,
) -> ModelEngine:
    """The current student; or the LoRA adapter of a folder, or the base model alone, asked as the student is.

    Raises:
        UserError: there is no such student or adapter, or it does not fit the base model.
    """
    if adapter and base:
        raise UserError("--adapter and --base exclude each other: the base model is what answers without an adapter.")
    spec = (spec or BaseModel()).resolved()
    with contextlib.ExitStack() as copies:
        instead = ", or take the base model with --base"
        found = None if base else copies.enter_context(student_folder(layout, adapter, instead))
        if best_device() == "cuda" or decide_quantization(spec)[0] == "nf4":  # 16 bits answer on a CPU, too
            require_hardware(spec)
        folder = ensure_base_model(spec, layout)
        name, digest = Path(spec.name).name, base_model_digest(folder)
        if found is None:
            answering = load_baseline(folder, spec)
        else:
            if read_manifest(found) and (problem := adapter_problem(found, digest)):
                raise UserError(
                    f"The adapter cannot be used: {problem}. --base-model names its base model, --adapter another."
                )
            answering = load_student(folder, spec, found)
            name = f"{name}+{adapter.resolve().name}" if adapter else STUDENT_NAME
            digest = adapter_digest(found)
        prompt = travelled_prompt(found or published_directory(layout.current))
    return ModelEngine(answering, name, digest, grammar=grammar, limits=_limits(layout), prompt=prompt)


def adapter_digest(folder: Path) -> str:
    """What tells this adapter from others: its manifest's sha256, or that of its files where another tool wrote it."""
    return recorded_digest(folder) or directory_digest(folder)


def promotions(layout: Layout, known: str) -> Callable[[], bool]:
    """A question to ask now and then: is a student current that was not when it was asked last (at first: `known`)?"""

    def another() -> bool:
        nonlocal known
        before, known = known, recorded_digest(layout.current) or known
        return known != before

    return another


@contextlib.contextmanager
def student_folder(layout: Layout, adapter: Path | None, instead: str = "") -> Iterator[Path]:
    """The folder `adapter`, or of the current student, while the block runs; `instead` ends the sentence of ways out.

    Raises:
        UserError: there is no such student or adapter.
    """
    with contextlib.ExitStack() as copies:
        folder = adapter
        if folder is None:
            with contextlib.suppress(FileNotFoundError):
                folder = copies.enter_context(local_copy(layout.current)).resolve()  # another may be promoted now
            if folder is None or not folder.is_dir():
                raise UserError(
                    f"There is no student yet: {str(layout.current)!r} is missing, since no adapter has passed its "
                    f"gate. Materialize the graph (po-assets run), or name an adapter with --adapter{instead}."
                )
            record, digest = read_gate(UPath(folder) / GATE_FILE), recorded_digest(folder)
            if record and digest != record.sha256:
                raise UserError(
                    f"{str(layout.current)!r} does not hold the adapter that passed the gate ({record.sha256[:12]}), "
                    f"but {digest[:12] or 'one without manifest.json'}. Materialize eval_report, which promotes what "
                    f"passes, or name an adapter with --adapter{instead}."
                )
        if not (folder / "adapter_config.json").is_file():
            raise UserError(
                f"{str(folder)!r} holds no LoRA adapter (adapter_config.json is missing). Give the folder of one with "
                f"--adapter, such as {str(layout.adapter)!r}."
            )
        yield folder


def _limits(layout: Layout) -> GrammarLimits:
    """As in the evaluation, whose gate the student passed; the defaults where there are no cases."""
    try:
        return reference_limits(read_eval_cases(layout.eval_cases))
    except UserError:
        return GrammarLimits()
