"""Whether an exported form answers as the adapter does, by the runtime that will serve it: the check `export_parity`.

A form must read a prompt as the adapter does, end its answers as the adapter does, and score no worse than the cases
can resolve; where it does not, the answers are shown side by side. How forms are written belongs to `export`.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
from upath import UPath

from po_assets.dag import AssetChecks, CannotJudge, Verdict, gate_record, write_gate
from po_assets.dataset.cases import EvalCase, read_eval_cases
from po_assets.errors import UserError
from po_assets.evaluation.answering import AnsweringModel, load_baseline, load_student
from po_assets.evaluation.settings import Decoding
from po_assets.evaluation.statistics import paired_difference
from po_assets.model import BaseModel, ensure_base_model
from po_assets.product_owner import parse_answer, score_product_owner
from po_assets.serving.engine import Turn, adapter_digest, student_folder
from po_assets.storage import Layout, file_digest, local_copy, published_directory
from po_assets.storage.workers import available_cpus
from po_assets.text import amount
from po_assets.training.handover import travelled_prompt

FEWEST_CASES = 5
"""All of fewer answers may score lower by chance alone."""
MAX_TOKENS = 1_024
RECORD, MERGED, VERDICT = "export.json", "merged", "parity.json"
"""In an exported folder: what it is, the merged model, and what `export_parity` said of it."""
_CONTEXT = 4_096
"""Tokens of prompt and answer for which llama.cpp makes room: what the profile `paper` trains at most."""
_SHOWN = 400


@dataclass(frozen=True)
class Said:
    """A greedy answer, whether the model ended it itself, and the prompt's tokens as the model got them."""

    text: str
    finished: bool
    prompt_ids: list[int] = field(default_factory=list)


@dataclass(frozen=True)
class Exported:
    """What `export_parity` looks at: the folder of an export, and the adapter (the current one by default)."""

    layout: Layout
    folder: UPath | Path
    spec: BaseModel
    cases: int
    """How many evaluation cases each form is asked, from the first on."""
    adapter: Path | None = None


exported_checks = AssetChecks[Exported]("exported_student")


@exported_checks.register(blocking=True)
def export_parity(found: Exported) -> Verdict:
    """Each exported form, by the runtime that serves it, answers no worse than the adapter on the same cases."""
    try:
        verdicts = _judge(found)
    except (UserError, FileNotFoundError) as error:
        raise CannotJudge(f"The exported forms cannot be asked: {error}") from error
    bad = [verdict for verdict in verdicts.values() if not verdict.passed]
    return Verdict(
        not bad,
        " ".join(f"{name}: {verdict.summary}" for name, verdict in verdicts.items()),
        next_step=bad[0].next_step if bad else "",
        rows=[{"form": form, **row} for form, one in verdicts.items() if one in bad or not bad for row in one.rows],
        numbers={f"{name}: {key}": value for name, one in verdicts.items() for key, value in one.numbers.items()},
    )


def keep_verdict(found: Exported, verdicts: dict[str, Verdict]) -> None:
    """Put the verdict beside what it is about, tied to the digests of all its files, for whoever ships it."""
    folder = published_directory(found.folder)
    if (folder / RECORD).exists():
        write_gate(folder / VERDICT, gate_record(file_digest(folder / RECORD), verdicts))


def _judge(found: Exported) -> dict[str, Verdict]:
    """The verdict on each form, by its name."""
    with local_copy(found.folder) as folder, student_folder(found.layout, found.adapter) as adapter:
        if not (folder / RECORD).is_file():
            raise UserError(
                f"{str(found.folder)!r} holds no export ({RECORD} is missing). Materialize exported_student."
            )
        made_of, given = json.loads((folder / RECORD).read_text())["adapter_digest"], adapter_digest(adapter)
        if made_of != given:
            raise UserError(f"They were made of the adapter {made_of[:12]}, and this is {given[:12]}. Export it anew.")
        cases = read_eval_cases(found.layout.eval_cases, travelled_prompt(adapter))[: found.cases]
        asked = [case.turns for case in cases]
        base = ensure_base_model(found.spec, found.layout)
        ours = ask_model(load_student(base, found.spec, adapter), asked)
        forms = {file.name: ask_gguf(file, asked) for file in sorted(folder.glob("*.gguf"))}
        if (merged := folder / MERGED).is_dir():
            plain = BaseModel(base_model=str(merged), quantization="none").resolved()
            forms[MERGED] = ask_model(load_baseline(merged, plain), asked)
        return {name: parity(cases, ours, theirs) for name, theirs in forms.items()}


def parity(cases: Sequence[EvalCase], adapter: Sequence[Said], exported: Sequence[Said]) -> Verdict:
    """The verdict on one form: what it said against what the adapter said, case by case.

    It fails where the form reads a prompt otherwise (another chat template or tokenizer), and where it scores lower or
    ends fewer answers than chance among these cases explains: the 95 % interval of the paired difference is below 0.
    """
    scores = [[_score(case, one.text) for case, one in zip(cases, said, strict=True)] for said in (adapter, exported)]
    score = paired_difference(*scores)
    ends = paired_difference(*([float(one.finished) for one in said] for said in (adapter, exported)))
    pairs = list(zip(adapter, exported, strict=True))
    misread = sum(one.prompt_ids != other.prompt_ids for one, other in pairs)
    same, of = sum(one.text == other.text for one, other in pairs), amount(len(cases), "case")
    interval = f"(95 % interval {score.low:+.3f} to {score.high:+.3f})"
    faults = []
    if misread:
        way_out = "Another chat template or tokenizer: take those of the adapter's folder."
        faults.append((f"it reads {misread} of {amount(len(cases), 'prompt')} otherwise", way_out))
    if ends.high < 0:
        way_out = "The stop token is lost: the end-of-sequence id must be in the file."
        faults.append((f"it does not end {-ends.mean:.0%} of its answers that should end", way_out))
    if score.high < 0:
        way_out = "Where the rest is right, this is damage by quantization: serve q8_0 or f16 instead."
        faults.append((f"its mean score is {-score.mean:.3f} lower {interval}", way_out))
    said = "; ".join(fault for fault, _ in faults) or f"its mean score differs by {score.mean:+.3f} {interval}"
    return Verdict(
        not faults,
        f"against the adapter on {of}, {said}; {same} of the answers are the same.",
        next_step=" ".join(["Compare the answers.", *(way_out for _, way_out in faults)]),
        rows=[
            {
                "case": case.case_id,
                "adapter": one.text[:_SHOWN],
                "exported": other.text[:_SHOWN],
                "adapter_score": ours,
                "exported_score": theirs,
                "adapter_ends": one.finished,
                "exported_ends": other.finished,
                "same_prompt": one.prompt_ids == other.prompt_ids,
            }
            for case, (one, other), ours, theirs in zip(cases, pairs, *scores, strict=True)
        ],
        numbers={"score_difference": score.mean, "ends_difference": ends.mean, "misread_prompts": misread},
    )


def _score(case: EvalCase, text: str) -> float:
    answer = parse_answer(text)
    return score_product_owner(case.requirements_yaml, answer.vision_yaml or "", answer.review_yaml or "").total


def ask_model(
    answering: AnsweringModel, asked: Sequence[Sequence[Turn]], *, max_tokens: int = MAX_TOKENS
) -> list[Said]:
    """What a loaded model answers to each conversation, greedily and without grammar, as other runtimes are asked."""
    from po_assets.evaluation.generate import Request, batches_by_length, complete_batch

    decoding = Decoding(mode="free", max_new_tokens=max_tokens, no_repeat_ngram=0)
    chat = answering.chat
    requests = [Request(str(n), chat.conversation_ids(turns), None, 0) for n, turns in enumerate(asked)]
    done = {
        one.key: one
        for batch in batches_by_length(requests, decoding.batch_size)
        for one in complete_batch(answering.model, batch, decoding, answering.eos_ids)
    }
    return [
        Said(chat.answer_text(one.token_ids), one.finish_reason == "stop", request.prompt_ids)
        for request in requests
        for one in [done[request.key]]
    ]


def ask_gguf(gguf: Path, asked: Sequence[Sequence[Turn]], *, max_tokens: int = MAX_TOKENS) -> list[Said]:
    """The same of a GGUF file, by llama.cpp (the package `xllamacpp`), with the template and stop tokens in the file.

    Raises:
        UserError: the runtime is not installed, or refuses the file or a prompt.
    """
    try:
        import xllamacpp
    except ModuleNotFoundError as error:
        raise UserError("Asking a GGUF file needs the extra `export`: make setup EXTRAS=export.") from error
    settings = xllamacpp.CommonParams()
    settings.model.path = str(gguf)
    settings.n_ctx, settings.n_parallel, settings.warmup, settings.use_jinja = _CONTEXT, 1, False, True
    settings.cpuparams.n_threads = settings.cpuparams_batch.n_threads = available_cpus()
    settings.verbosity = -1
    try:
        server = xllamacpp.Server(settings)
    except RuntimeError as error:
        raise UserError(f"llama.cpp cannot load {gguf.name} ({error}); serve the safetensors form instead.") from error

    def post(path: str, **request: Any) -> Any:
        return httpx.post(f"{server.listening_address}{path}", json=request, trust_env=False, timeout=60).json()

    said = []
    for turns in asked:
        messages = [dict(turn) for turn in turns]
        reply = server.handle_chat_completions({"messages": messages, "max_tokens": max_tokens, "temperature": 0})
        if "choices" not in reply:
            raise UserError(f"llama.cpp refused the prompt: {str(reply)[:300]}")
        choice = reply["choices"][0]
        read = post("/tokenize", content=post("/apply-template", messages=messages)["prompt"], parse_special=True)
        said.append(Said(choice["message"]["content"] or "", choice["finish_reason"] == "stop", read["tokens"]))
    return said
