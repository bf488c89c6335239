"""Whether an exported form answers as the adapter does, by the runtime that will serve it.

The exported form must not be worse than the cases can resolve; a wrong template, a lost stop token or damaged weights
show in the scores, the endings or the first words, and the answers are shown side by side.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import Any

from po_assets.dag import Verdict
from po_assets.dataset.cases import EvalCase
from po_assets.errors import UserError
from po_assets.evaluation.answers import load_student
from po_assets.evaluation.settings import Decoding
from po_assets.evaluation.statistics import paired_difference
from po_assets.product_owner import parse_answer, score_product_owner
from po_assets.text import amount

MAX_TOKENS = 1_024
OPENING = 16
"""Characters at the beginning of an answer that both must have in common in most cases."""
_SHOWN = 400


@dataclass(frozen=True)
class Said:
    """An answer, and whether the model ended it itself."""

    text: str
    finished: bool


Ask = Callable[[str], Said]
"""From a prompt (the user's turn) to the greedy answer."""


def parity(cases: Sequence[EvalCase], adapter: Ask, exported: Ask) -> Verdict:
    """The verdict `export_parity`: both are asked every case, and compared answer by answer.

    It fails where the exported form scores worse than chance among these cases explains (95 % interval of the paired
    difference), where it does not end answers that the adapter ends, or where most answers begin otherwise.
    """
    rows, ours, theirs, lost_ends, other_openings = [], [], [], 0, 0
    for case in cases:
        one, other = adapter(case.prompt), exported(case.prompt)
        ours.append(_score(case, one.text))
        theirs.append(_score(case, other.text))
        same = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(one.text, other.text, strict=False)))
        lost_ends += one.finished and not other.finished
        other_openings += same < min(OPENING, len(one.text))
        rows.append(
            {
                "case": case.case_id,
                "adapter": one.text[:_SHOWN],
                "exported": other.text[:_SHOWN],
                "same_characters": same,
                "adapter_score": ours[-1],
                "exported_score": theirs[-1],
                "ends": "both"
                if one.finished and other.finished
                else f"adapter {one.finished}, exported {other.finished}",
            }
        )
    difference = paired_difference(ours, theirs)
    faults = []
    if difference.high < 0:
        interval = f"95 % interval {difference.low:+.3f} to {difference.high:+.3f}"
        faults.append(f"its mean score is {-difference.mean:.3f} lower ({interval})")
    if lost_ends:
        faults.append(f"{lost_ends} of {amount(len(cases), 'answer')} did not end where the adapter's did")
    if other_openings > len(cases) / 2:
        faults.append(f"{other_openings} of {amount(len(cases), 'answer')} begin otherwise")
    identical = sum(row["adapter"] == row["exported"] for row in rows)
    said = (
        "; ".join(faults) or f"its mean score differs by {difference.mean:+.3f}, all of its answers end as they should"
    )
    return Verdict(
        not faults,
        f"The exported form against the adapter on {amount(len(cases), 'case')}: {said}; {identical} are the same.",
        next_step="Compare the answers in the table. Other first words mean another chat template or tokenizer, "
        "missing ends a lost stop token, worse scores with the right beginning damage by quantization: serve f16 then.",
        rows=rows,
        numbers={"mean_difference": difference.mean, "lost_ends": lost_ends, "other_openings": other_openings},
    )


def _score(case: EvalCase, text: str) -> float:
    answer = parse_answer(text)
    return score_product_owner(case.requirements_yaml, answer.vision_yaml or "", answer.review_yaml or "").total


def ask_gguf(gguf: Path, *, max_tokens: int = MAX_TOKENS) -> Ask:
    """Ask a GGUF file by llama.cpp (the package `xllamacpp`), with the chat template and stop tokens in the file.

    Raises:
        UserError: the runtime is not installed.
    """
    try:
        import xllamacpp
    except ModuleNotFoundError as error:
        raise UserError("Asking a GGUF file needs the extra `export`: pip install 'po-assets[export]'.") from error
    settings = xllamacpp.CommonParams()
    settings.model.path = str(gguf)
    settings.n_ctx, settings.n_parallel, settings.warmup, settings.use_jinja = 4_096, 1, False, True
    settings.cpuparams.n_threads = settings.cpuparams_batch.n_threads = 2
    settings.verbosity = -1
    server = xllamacpp.Server(settings)

    def ask(prompt: str) -> Said:
        request: dict[str, Any] = {
            "messages": [{"role": "user", "content": prompt}],
            "max_tokens": max_tokens,
            "temperature": 0,
        }
        reply = server.handle_chat_completions(request)
        if "choices" not in reply:
            raise UserError(f"llama.cpp refused the prompt: {str(reply)[:300]}")
        choice = reply["choices"][0]
        return Said(choice["message"]["content"] or "", choice["finish_reason"] == "stop")

    return ask


def ask_adapter(base: Path, spec: Any, adapter: Path, *, max_tokens: int = MAX_TOKENS) -> Ask:
    """Ask the base model with the adapter, greedily and without grammar, as the exported forms are asked."""
    from po_assets.evaluation.generate import Request, complete_batch

    answering = load_student(base, spec, adapter)
    decoding = Decoding(mode="free", max_new_tokens=max_tokens, no_repeat_ngram=0)

    def ask(prompt: str) -> Said:
        request = Request("", answering.chat.prompt_ids(prompt), None, 0)
        (done,) = complete_batch(answering.model, [request], decoding, answering.eos_ids)
        return Said(answering.chat.answer_text(done.token_ids), done.finish_reason == "stop")

    return ask
