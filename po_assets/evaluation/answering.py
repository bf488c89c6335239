"""All cases answered by one model: from the cache where possible, else batch by batch, with progress in the log.

How tokens are chosen belongs to `engine`; files belong to `answers`.
"""

import hashlib
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from po_assets.evaluation.answers import Answer, AnswerCache
from po_assets.evaluation.cases import EvaluationCase
from po_assets.evaluation.settings import ENGINE_VERSION, Decoding
from po_assets.product_owner import parse_answer, validate_answer
from po_assets.product_owner.grammar import GrammarLimits, answer_grammar, limits_of
from po_assets.storage import digest_of

if TYPE_CHECKING:
    from po_assets.evaluation.engine import Completion, Request
    from po_assets.model import ChatFormat

Log = Callable[[str], None]

_LOG_SECONDS = 15.0
_EXPECTED_TOKENS = 300  # of an answer, until the first is finished


@dataclass(frozen=True)
class AnsweringModel:
    """A loaded model with its chat format. `model` is called like a transformers causal language model."""

    model: Any
    chat: "ChatFormat"

    @property
    def eos_ids(self) -> list[int]:
        """The tokens that end an answer: the chat format's, then those of the model's generation config."""
        configured = getattr(getattr(self.model, "generation_config", None), "eos_token_id", None)
        others = configured if isinstance(configured, list) else [configured]
        return list(dict.fromkeys([self.chat.eos_id, *(token for token in others if isinstance(token, int))]))


@dataclass
class _Question:
    """What is asked for one case; `asked` is the digest of everything that decides the answer besides the model."""

    case: EvaluationCase
    grammar: str | None
    asked: str
    attempts: int = 0
    reason: str = ""
    seconds: float = 0.0


def answer_cases(
    cases: Sequence[EvaluationCase],
    decoding: Decoding,
    cache: AnswerCache,
    load_model: Callable[[], AnsweringModel],
    *,
    log: Log = lambda _message: None,
    name: str = "the model",
) -> list[Answer]:
    """One answer per case, in the order of the cases; the model is loaded only when one is missing.

    Raises:
        ValueError: with a grammar, `max_new_tokens` is too small for the longest answer that the grammar allows; or
            prompt and answer may be longer than the model's context.
    """
    limits = limits_of((case.reference_vision_yaml, case.reference_review_yaml) for case in cases)
    everything = [_question(case, decoding, limits) for case in cases]
    known = {q.case.case_id: answer for q in everything if (answer := cache.get(q.asked))}
    questions = [question for question in everything if question.case.case_id not in known]
    if questions:
        _refuse_short_limit(questions, decoding, limits)
        log(f"{name}: {len(known)} of {len(cases)} answers are cached, {len(questions)} are to be generated")
        answering = load_model()
        progress = _Progress(name, len(questions), log)
        for question, answer in _answered(answering, questions, decoding, progress):
            cache.add(question.asked, answer)
            known[question.case.case_id] = answer
        progress.finish()
    else:
        log(f"{name}: all {len(cases)} answers are cached, nothing is generated")
    # A cached answer belongs to the question, whatever the case was called when it was asked.
    return [replace(known[case.case_id], case_id=case.case_id) for case in cases]


def _answered(
    answering: AnsweringModel, questions: list[_Question], decoding: Decoding, progress: "_Progress"
) -> Iterator[tuple[_Question, Answer]]:
    """Final answers as they come; with retries, an invalid one is asked for again after all others had their turn."""
    from po_assets.evaluation.engine import batches_by_length, complete_batch

    by_case = {question.case.case_id: question for question in questions}
    requests = _requests(answering, questions, decoding)
    while requests:
        again: list[_Question] = []
        for batch in batches_by_length(requests, decoding.batch_size):
            progress.longest = 0
            for completion in complete_batch(answering.model, batch, decoding, answering.eos_ids, progress.step):
                question = by_case[completion.key]
                answer = _answer(answering, question, completion)
                verdict = validate_answer(*_blocks(answer.text))
                if verdict or question.attempts > decoding.retries:
                    progress.done(answer)
                    yield question, answer
                else:
                    question.reason = verdict.reason
                    again.append(question)
        requests = _requests(answering, again, decoding)


def _requests(answering: AnsweringModel, questions: list[_Question], decoding: Decoding) -> "list[Request]":
    from po_assets.evaluation.constraint import GrammarConstraint, grammar_tokenizer
    from po_assets.evaluation.engine import Request

    if not questions:
        return []
    vocabulary = int(answering.model.config.vocab_size)
    tokenizer = grammar_tokenizer(answering.chat.tokenizer, vocabulary) if decoding.mode == "constrained" else None
    requests = []
    for question in questions:
        question.attempts += 1
        seed = hashlib.sha256(f"{decoding.seed}/{question.asked}/{question.attempts}".encode()).digest()
        requests.append(
            Request(
                key=question.case.case_id,
                prompt_ids=answering.chat.prompt_ids(_prompt(question)),
                constraint=GrammarConstraint(tokenizer, question.grammar) if tokenizer and question.grammar else None,
                seed=int.from_bytes(seed[:8], "big") >> 1,
            )
        )
    _refuse_short_context(answering.model, requests, decoding)
    return requests


def _refuse_short_context(model: Any, requests: "Sequence[Request]", decoding: Decoding) -> None:
    config = getattr(model.config, "text_config", None) or model.config
    context = getattr(config, "max_position_embeddings", None)
    longest = max(requests, key=lambda request: len(request.prompt_ids))
    if isinstance(context, int) and len(longest.prompt_ids) + decoding.max_new_tokens > context:
        raise ValueError(
            f"The prompt of case {longest.key} has {len(longest.prompt_ids):,} tokens; with max_new_tokens "
            f"{decoding.max_new_tokens:,} that is more than the model's context of {context:,}. Lower max_new_tokens, "
            "or use a base model with a longer context."
        )


def _prompt(question: _Question) -> str:
    if not question.reason:
        return question.case.prompt
    return (
        f"{question.case.prompt}\n\nReminder: your last answer could not be used, because {question.reason}. "
        "Write both fenced YAML blocks, complete, with every key."
    )


def _answer(answering: AnsweringModel, question: _Question, completion: "Completion") -> Answer:
    question.seconds += completion.seconds
    return Answer(
        case_id=question.case.case_id,
        text=answering.chat.answer_text(completion.token_ids),
        finish_reason=completion.finish_reason,
        tokens=len(completion.token_ids),
        seconds=round(question.seconds, 3),
        attempts=question.attempts,
    )


def _blocks(text: str) -> tuple[str | None, str | None]:
    parsed = parse_answer(text)
    return parsed.vision_yaml, parsed.review_yaml


def _question(case: EvaluationCase, decoding: Decoding, limits: GrammarLimits) -> _Question:
    grammar = answer_grammar(case.requirement_ids, limits) if decoding.mode == "constrained" else None
    return _Question(case, grammar, asked=digest_of([case.prompt, grammar, ENGINE_VERSION]))


def _refuse_short_limit(questions: Sequence[_Question], decoding: Decoding, limits: GrammarLimits) -> None:
    if decoding.mode != "constrained":
        return
    needed, case_id = max((limits.longest_answer(len(q.case.requirement_ids)), q.case.case_id) for q in questions)
    if decoding.max_new_tokens < needed:
        raise ValueError(
            f"max_new_tokens is {decoding.max_new_tokens}, but the grammar allows answers of up to {needed} tokens "
            f"(case {case_id}): an answer could be cut. Set it to {needed} or more; only long answers use it."
        )


def tokens_left(mean: float, *, running: int, written: int, waiting: int) -> float:
    """Tokens still to come, about: answers have `mean` tokens, those being written have `written` already.

    One that is longer than most is taken to need half an answer more, since nothing else is known of it.
    """
    return running * max(mean - written, mean / 2) + waiting * mean


@dataclass
class _Progress:
    """Throttled log lines: answers done, tokens a second, time left."""

    name: str
    answers: int
    log: Log
    started: float = field(default_factory=time.monotonic)
    logged: float = field(default_factory=time.monotonic)
    tokens: int = 0
    finished: list[int] = field(default_factory=list)
    longest: int = 0
    """Tokens of the longest answer that is being written."""

    def step(self, rows: int) -> None:
        """Count one forward pass that gave this many rows a token."""
        self.tokens += rows
        self.longest += 1
        if time.monotonic() - self.logged >= _LOG_SECONDS:
            self.logged = time.monotonic()
            speed = self.tokens / (self.logged - self.started)
            mean = sum(self.finished) / len(self.finished) if self.finished else _EXPECTED_TOKENS
            waiting = self.answers - len(self.finished) - rows
            left = tokens_left(mean, running=rows, written=self.longest, waiting=max(waiting, 0)) / speed
            self.log(
                f"{self.name}: {len(self.finished)} of {self.answers} answers, {speed:.0f} tokens/s, "
                f"about {left:.0f} s left"
            )

    def done(self, answer: Answer) -> None:
        """Count a final answer."""
        self.finished.append(answer.tokens)

    def finish(self) -> None:
        """Say what it took."""
        seconds = time.monotonic() - self.started
        self.log(
            f"{self.name}: {len(self.finished)} answers, {sum(self.finished):,} tokens in {seconds:.0f} s "
            f"({self.tokens / max(seconds, 1e-9):.0f} tokens/s)"
        )
