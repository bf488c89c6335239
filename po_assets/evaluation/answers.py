"""All cases answered by one model: from the cache where possible, else batch by batch, with progress in the log.

Also the cache, which lets an interrupted evaluation go on. What answers is in `answering`, how tokens are chosen in
`generate`; what an answer is worth belongs to `scoring`.
"""

import contextlib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from upath import UPath

from po_assets.dataset.cases import EvalCase
from po_assets.errors import UserError
from po_assets.evaluation.answering import Answer, AnsweringModel, Question, ServedModel
from po_assets.evaluation.settings import ENGINE_VERSION, Decoding
from po_assets.model import ChatTemplate
from po_assets.product_owner import parse_answer, validate_answer
from po_assets.product_owner.grammar import GrammarLimits, answer_grammar, limits_of
from po_assets.storage import digest_of, full_disk_named, is_local, replace_file
from po_assets.text import Progress, duration, shown
from po_assets.training.memory import memory_named

Log = Callable[[str], None]

_LOG_SECONDS = 15.0
_TELLING_TOKENS = 10  # after so many of a batch the speed is that of writing
_EXPECTED_TOKENS = 300  # of an answer, until the first is finished


class AnswerCache:
    """Finished answers of one model under one decoding, by the digest of what was asked; one JSON line per answer.

    A line is appended and synced per answer, so that nothing finished is lost; a line cut by a crash is ignored.
    """

    def __init__(self, folder: UPath, model_digest: str, decoding: str) -> None:
        """`decoding` is the fingerprint of the decoding settings."""
        self.path = folder / f"{model_digest[:16]}-{decoding[:16]}.jsonl"
        self._answers = dict(_read_lines(self.path))

    def get(self, asked: str) -> Answer | None:
        """The answer to what has this digest, if it is there."""
        return self._answers.get(asked)

    def add(self, asked: str, answer: Answer) -> None:
        """Keep a finished answer, on disk when this returns."""
        self._answers[asked] = answer
        if is_local(self.path):
            _append_synced(Path(str(self.path)), _line(asked, answer))
        else:  # an object store cannot append; the file is small
            replace_file(self.path, b"".join(_line(asked, answer) for asked, answer in self._answers.items()))


def answer_cases(
    cases: Sequence[EvalCase],
    decoding: Decoding,
    cache: AnswerCache,
    load_model: Callable[[], AnsweringModel | ServedModel],
    *,
    log: Log = lambda _message: None,
    name: str = "the model",
) -> list[Answer]:
    """One answer per case, in the order of the cases; the model is loaded only when one is missing.

    Raises:
        UserError: as `decoding_faults` says.
    """
    limits = reference_limits(cases)
    everything = [_question(case, decoding, limits) for case in cases]
    known = {q.case.case_id: answer for q in everything if (answer := cache.get(q.digest))}
    questions = [question for question in everything if question.case.case_id not in known]
    if questions:
        asked = [question.case for question in questions]
        _refuse(decoding_faults(asked, decoding, limits))
        log(f"{name}: {len(known)} of {len(cases)} answers are cached, {len(questions)} are to be generated")
        way_out = (
            f"Lower batch_size of the decoding settings (now {decoding.batch_size}) and materialize baseline_report "
            "and eval_report again: the adapter stays in place, nothing is trained anew."
        )
        with memory_named(lambda: f"while {name} answered", lambda: way_out):
            answering = load_model()
            if isinstance(answering, AnsweringModel):  # a server knows its own context, and refuses what exceeds it
                _refuse(decoding_faults(asked, decoding, limits, answering.chat, context_of(answering.model.config)))
            meter = _Meter(name, len(questions), log)
            for question, answer in _answered(answering, questions, decoding, meter):
                cache.add(question.digest, answer)
                known[question.case.case_id] = answer
        meter.finish()
    else:
        log(f"{name}: all {len(cases)} answers are cached, nothing is generated")
    # A cached answer belongs to the question, whatever the case was called when it was asked.
    return [replace(known[case.case_id], case_id=case.case_id) for case in cases]


def reference_limits(cases: Sequence[EvalCase]) -> GrammarLimits:
    """How long answers may be: as the reference answers of all cases need."""
    return limits_of((case.reference_vision_yaml, case.reference_review_yaml) for case in cases)


def decoding_faults(
    cases: Sequence[EvalCase],
    decoding: Decoding,
    limits: GrammarLimits | None = None,
    chat: ChatTemplate | None = None,
    context: int | None = None,
) -> list[str]:
    """Why these cases cannot be answered so, in sentences with the way out; also before any model is there.

    `limits` are those of `reference_limits`. Without the model's chat template and context length (in tokens) only the
    settings are judged.
    """
    limits = limits or reference_limits(cases)
    faults = []
    needed, case_id = max((limits.longest_answer(len(case.requirement_ids)), case.case_id) for case in cases)
    if decoding.mode == "constrained" and decoding.max_new_tokens and decoding.max_new_tokens < needed:
        faults.append(
            f"max_new_tokens is {decoding.max_new_tokens}, but the grammar allows answers of up to {needed} tokens "
            f"(case {shown(case_id)}): an answer could be cut. Leave it empty, or set it to {needed} or more."
        )
    if chat and context:
        needs = []
        for case in cases:
            most = decoding.max_new_tokens or limits.longest_answer(len(case.requirement_ids))
            needs.append((len(chat.prompt_ids(case.prompt, case.asked_with.system)), most, case.case_id))
        length, most, case_id = max(needs, key=lambda need: need[0] + need[1])
        if length + most > context:
            faults.append(
                f"The prompt of case {shown(case_id)} has {length:,} tokens; with an answer of up to {most:,} that is "
                f"more than the model's context of {context:,}. Lower max_new_tokens (with mode free), shorten the "
                "reference answers, or use a base model with a longer context."
            )
    return faults


def context_of(config: Any) -> int | None:
    """The context length in tokens of a model's configuration (transformers' object, or its `config.json`)."""
    if isinstance(config, dict):
        found = config.get("text_config", config).get("max_position_embeddings")
    else:
        found = getattr(getattr(config, "text_config", None) or config, "max_position_embeddings", None)
    return found if isinstance(found, int) else None


def _refuse(faults: Sequence[str]) -> None:
    if faults:
        raise UserError(" ".join(faults))


def _question(case: EvalCase, decoding: Decoding, limits: GrammarLimits) -> Question:
    most = decoding.max_new_tokens or limits.longest_answer(len(case.requirement_ids))
    # Only without a grammar does the limit decide what comes out.
    grammar = None if decoding.mode == "free" else answer_grammar(case.requirement_ids, limits)
    system = [case.asked_with.system] if case.asked_with.system else []
    return Question(case, grammar, most, digest_of([*system, case.prompt, grammar or most, ENGINE_VERSION]))


def _answered(
    answering: AnsweringModel | ServedModel, questions: list[Question], decoding: Decoding, meter: "_Meter"
) -> Iterator[tuple[Question, Answer]]:
    """Final answers as they come; with retries, an invalid one is asked for again after all others had their turn."""
    by_case, asking = {question.case.case_id: question for question in questions}, questions
    while asking:
        again: list[Question] = []
        for given in _given(answering, asking, decoding, meter):
            question = by_case[given.case_id]
            question.seconds += given.seconds
            answer = replace(given, seconds=round(question.seconds, 3), attempts=question.attempts)
            parsed = parse_answer(answer.text)
            verdict = validate_answer(parsed.vision_yaml, parsed.review_yaml)
            if verdict or question.attempts > decoding.retries:
                meter.finished.append(answer.tokens)
                yield question, answer
            else:
                question.reason = verdict.reason
                again.append(question)
        asking = again


def _given(
    answering: AnsweringModel | ServedModel, questions: list[Question], decoding: Decoding, meter: "_Meter"
) -> Iterator[Answer]:
    """An answer to each question as it comes, by a server or batch by batch in this process."""
    from po_assets.evaluation.generate import batches_by_length

    for question in questions:
        question.attempts += 1
    if isinstance(answering, ServedModel):
        for answer in answering.answers(questions, decoding):
            meter.step(0, answer.tokens)
            yield answer
        return
    requests = [answering.request(question, decoding) for question in questions]
    for batch in batches_by_length(requests, decoding.batch_size):
        meter.longest = 0
        yield from answering.complete(batch, decoding, meter.step)


def tokens_left(mean: float, *, running: int, written: int, waiting: int) -> float:
    """Tokens still to come, about: answers have `mean` tokens, those being written have `written` already.

    One that is longer than most is taken to need half an answer more, since nothing else is known of it.
    """
    return running * max(mean - written, mean / 2) + waiting * mean


class _Meter:
    """Counts of an evaluation under way, told at a bearable rate: answers done, tokens a second, time left."""

    def __init__(self, name: str, answers: int, log: Log) -> None:
        self._name, self._answers = name, answers
        self._progress = Progress(log, every_seconds=_LOG_SECONDS)
        self._progress.due()  # what stands in the log already is the first report
        self._started = self._progress.clock()
        self._tokens = 0
        self.finished: list[int] = []
        """Tokens of each finished answer."""
        self.longest = 0
        """Tokens of the longest answer that is being written."""

    def step(self, rows: int, tokens: int = 0) -> None:
        """Count one forward pass that gave this many rows a token, or a whole answer of so many tokens."""
        self._tokens += rows + tokens
        self.longest += 1
        if self._progress.due():
            speed = self._tokens / (self._progress.clock() - self._started)
            mean = sum(self.finished) / len(self.finished) if self.finished else _EXPECTED_TOKENS
            waiting = max(self._answers - len(self.finished) - rows, 0)
            left = tokens_left(mean, running=rows, written=self.longest, waiting=waiting) / speed
            # Before that, the time is that of the prompts.
            told = f", about {duration(left)} left" if self.finished or self.longest >= _TELLING_TOKENS else ""
            self._progress.say(
                f"{self._name}: {len(self.finished)} of {self._answers} answers, {speed:.0f} tokens/s{told}"
            )

    def finish(self) -> None:
        """Say what it took."""
        seconds = self._progress.clock() - self._started
        self._progress.say(
            f"{self._name}: {len(self.finished)} answers, {sum(self.finished):,} tokens in {seconds:.0f} s "
            f"({self._tokens / max(seconds, 1e-9):.0f} tokens/s)"
        )


def _line(asked: str, answer: Answer) -> bytes:
    return json.dumps({"asked": asked, **asdict(answer)}).encode() + b"\n"


def _append_synced(path: Path, line: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with full_disk_named(path, path, wanted=len(line)), path.open("ab+", buffering=0) as file:
        end = file.tell()
        if end:
            file.seek(-1, os.SEEK_END)
            if file.read(1) != b"\n":
                line = b"\n" + line  # shuts off a line that a crash cut
        try:
            rest = memoryview(line)
            while rest:
                rest = rest[file.write(rest) :]
            os.fsync(file.fileno())
        except OSError:
            file.truncate(end)
            raise


def _read_lines(path: UPath) -> Iterable[tuple[str, Answer]]:
    if not path.exists():
        return
    for line in path.read_bytes().splitlines():
        # A cut line: its answer is made again.
        with contextlib.suppress(ValueError, TypeError, KeyError, AttributeError):
            record = json.loads(line)
            yield record.pop("asked"), Answer(**record)
