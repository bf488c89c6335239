"""The GPU path, measured and proved (by `gpu_correct`) on one card: what a session that is lent one runs.

    python -m benchmarks.gpu --json gpu.json            one H100 or H200, no network, 8 minutes
    python -m benchmarks.gpu --device cpu --tiny        the same code on a CPU; its speeds say nothing

Weights are random, made on the device in the shapes of Qwen2.5 (0.5B, 1.5B, 7B). Each part has a process of its own.

* `peak`: what the card itself reaches: bfloat16 matrix products and copies.
* `correct`: in 16 and in 4 bits (extra `cuda`): weights held as the log says, the loss falls, an adapter is noticed as
  trained or not, packed rows have the gradient that transformers' own attention gives row by row, an interrupted
  training ends as one that was not, a `deterministic` one repeats; a machine without a GPU is refused with its own
  reason. The exit status is 1 where one of them does not hold.
* `train`: tokens a second as `lora_adapter` trains, its share of the peak (MFU) and peak memory. Counted are products
  that LoRA needs: forward, and backward to the inputs; frozen weights have no gradient.
* `trl`: TRL's `SFTTrainer`, bfloat16, the best of several batch sizes, with Liger's kernels where they are installed.
* `decode`: answers with and without grammar beside `generate` (compiled on a GPU), and the roofline: weights and cache
  read once for each token of a batch.
"""

import argparse
import gc
import importlib.util
import json
import os
import random
import resource
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.gpu_correct import correct
from benchmarks.machine import machine
from benchmarks.training import trl_trainer
from po_assets.model import BaseModel, ChatTemplate
from po_assets.model.chat import first_line
from po_assets.training.adapter import add_adapter, trainable
from po_assets.training.gradients import StepRow, make_engine
from po_assets.training.rows import TokenizedRow
from po_assets.training.settings import TrainingSettings

_SHARED = {"vocab_size": 151_936, "num_hidden_layers": 28, "num_key_value_heads": 2, "tie_word_embeddings": True}
SHAPES: dict[str, dict[str, Any]] = {
    "tiny": {
        **_SHARED,
        "vocab_size": 259,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
    },
    "0.5B": {
        **_SHARED,
        "hidden_size": 896,
        "intermediate_size": 4_864,
        "num_hidden_layers": 24,
        "num_attention_heads": 14,
    },
    "1.5B": {**_SHARED, "hidden_size": 1_536, "intermediate_size": 8_960, "num_attention_heads": 12},
    "7B": {
        "vocab_size": 152_064,
        "hidden_size": 3_584,
        "intermediate_size": 18_944,
        "num_hidden_layers": 28,
        "num_attention_heads": 28,
        "num_key_value_heads": 4,
        "tie_word_embeddings": False,
    },
}
_CHAT = "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '\n' }}{% endfor %}assistant: "


@dataclass(frozen=True)
class Bench:
    """Where and how large."""

    device: str
    tiny: bool
    seconds: float
    """That a measurement lasts, about."""

    @property
    def rows(self) -> list[TokenizedRow]:
        """Rows of random tokens, as long as real ones (300 to 1,500 tokens), half of each its prompt."""
        draw = random.Random(7)
        least, most = (20, 60) if self.tiny else (300, 1_500)
        lengths = [draw.randint(least, most) for _ in range(48)]
        return [TokenizedRow(tuple(draw.randrange(2, 250) for _ in range(n)), n // 2) for n in lengths]

    def recipe(self, **settings: Any) -> TrainingSettings:
        """As `lora_adapter` has it; the shape stands for the base model."""
        return TrainingSettings(base_model=BaseModel(profile="embedded"), **settings).resolved()

    def model(self, shape: str, **changes: Any) -> Any:
        """Random weights in bfloat16, made on the device."""
        import torch
        from transformers import AutoModelForCausalLM, Qwen2Config

        torch.manual_seed(0)
        with torch.device(self.device):
            model = AutoModelForCausalLM.from_config(Qwen2Config(**SHAPES[shape] | changes), dtype=torch.bfloat16)
        return model.eval()

    def timed(self, run: Callable[[], int]) -> float:
        """Tokens a second of `run`, which returns the tokens it took, after a first time that does not count."""
        run()
        self.wait()
        began, tokens = time.perf_counter(), 0
        while not tokens or time.perf_counter() - began < self.seconds:
            tokens += run()
            self.wait()
        return tokens / (time.perf_counter() - began)

    def wait(self) -> None:
        """Until the device has done what it was told."""
        import torch

        if self.device == "cuda":
            torch.cuda.synchronize()

    def peak_gib(self) -> float:
        """Highest use of the device's memory by this process."""
        import torch

        used = torch.cuda.max_memory_allocated() if self.device == "cuda" else 0
        return (used or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024) / 2**30


def peak(bench: Bench, _shape: str) -> dict[str, Any]:
    """Matrix products (TFLOP/s) and copies (GB/s read and written), by PyTorch alone."""
    import torch

    size = 256 if bench.tiny else 8_192
    a = torch.randn(size, size, device=bench.device, dtype=torch.bfloat16)
    out, source = torch.empty_like(a), torch.empty((1 << 20) if bench.tiny else (1 << 30), device=bench.device)
    target = torch.empty_like(source)
    products = bench.timed(lambda: (torch.mm(a, a, out=out), 2 * size**3)[1])
    copies = bench.timed(lambda: (target.copy_(source), 2 * source.nbytes)[1])
    return {"bfloat16_tflops": products / 1e12, "memory_gb_s": copies / 1e9}


def training(bench: Bench, shape: str) -> dict[str, Any]:
    """Ours: optimizer step included, as many rows a step as the profile `paper` has."""
    import torch

    recipe, rows = bench.recipe(gradient_accumulation=12, fast_path=False), bench.rows
    model = add_adapter(bench.model(shape), recipe, Path(shape))
    parameters = list(trainable(model).values())
    optimizer = torch.optim.AdamW(parameters, lr=1e-5, foreach=True)
    longest = max(len(row.ids) for row in rows)
    steps = [[StepRow(row, i) for i, row in enumerate(rows[start : start + 12])] for start in range(0, len(rows), 12)]
    with make_engine(model, parameters, fast=False, longest=longest) as engine:

        def step() -> int:
            some = steps.pop(0)
            steps.append(some)
            engine.compute(some)
            optimizer.step()
            return sum(len(item.row.ids) for item in some)

        speed = bench.timed(step)
    each = sum(_flops(model, row) for row in rows) / sum(len(row.ids) for row in rows)
    return {
        "tokens_s": speed,
        "tflops": speed * each / 1e12,
        "peak_gib": bench.peak_gib(),
        "how": engine.description,
    }


def _flops(model: Any, row: TokenizedRow) -> float:
    """Of a row's matrix products: frozen ones forward and to the input, LoRA's also to the weight, attention thrice."""
    config = model.config
    frozen = sum(p.numel() for n, p in model.named_parameters() if ".layers." in n and not p.requires_grad)
    lora = sum(p.numel() for p in trainable(model).values())
    tokens, output = len(row.ids), config.vocab_size * config.hidden_size
    attention = 3 * 2 * tokens**2 * config.hidden_size * config.num_hidden_layers  # causal: half of the square, twice
    return float(tokens * (4 * frozen + 6 * lora) + row.trained * 4 * output + attention)


def trl(bench: Bench, shape: str) -> dict[str, Any]:
    """`SFTTrainer` on the same rows, tuned: the fastest of the batch sizes that fit into memory."""
    import torch

    best: dict[str, Any] = {"tokens_s": 0.0}
    for batch in (1, 4, 12):
        try:
            found = _trl(bench, shape, batch)
        except torch.OutOfMemoryError:
            if not best["tokens_s"]:
                raise
            return best | {"no_memory_for_batch": batch}
        best = max(best, found, key=lambda one: float(one["tokens_s"]))
    return best


def _trl(bench: Bench, shape: str, batch: int) -> dict[str, Any]:
    import torch

    times: list[float] = []

    def on_step() -> None:
        bench.wait()
        times.append(time.perf_counter())

    gc.collect()  # the trainer before, with its model
    if bench.device == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    liger = importlib.util.find_spec("liger_kernel") is not None
    data = [
        {"input_ids": list(row.ids), "completion_mask": [0] * row.prompt_length + [1] * row.trained}
        for row in bench.rows
    ]
    trl_trainer(
        bench.model(shape), byte_tokenizer(), data, on_step, max_steps=4, per_device_train_batch_size=batch,
        gradient_accumulation_steps=12 // batch, bf16=True, gradient_checkpointing=shape == "7B",
        use_cpu=bench.device == "cpu", use_liger_kernel=liger, train_sampling_strategy="sequential",
    ).train()  # fmt: skip
    speed = sum(len(row.ids) for row in bench.rows[12:48]) / (times[3] - times[0])
    return {"tokens_s": speed, "batch": batch, "liger": liger, "peak_gib": bench.peak_gib()}


def decode(bench: Bench, shape: str) -> dict[str, Any]:
    """Ours free and with grammar, and `generate`, on the same prompts.

    Random weights would favour a token that no grammar permits, each time; a student is mostly right. So one answer
    that the grammar permits is made the favourite in both.
    """
    import torch

    from po_assets.evaluation.answering import AnsweringModel
    from po_assets.evaluation.generate import Request, complete_batch, left_padded
    from po_assets.evaluation.settings import Decoding
    from po_assets.product_owner.grammar import answer_grammar

    batch, new = (4, 24) if bench.tiny else (32, 256)
    model, prompts = bench.model(shape), [list(row.ids) for row in bench.rows[:batch]]
    answering = AnsweringModel(model, ChatTemplate(byte_tokenizer()))
    grammar = answer_grammar(("FR001", "NFR001"))
    scripted = _Scripted(model, _permitted_answer(answering.constraint(grammar), new))

    def ours(grammar: str | None) -> int:
        requests = [Request(str(i), ids, answering.constraint(grammar)) for i, ids in enumerate(prompts)]
        decoding = Decoding(mode="constrained" if grammar else "free", max_new_tokens=new, no_repeat_ngram=0)
        answers = complete_batch(scripted, requests, decoding, answering.eos_ids if grammar else [-1])
        return sum(len(answer.token_ids) for answer in answers)

    ids, attention = (tensor.to(bench.device) for tensor in left_padded(prompts))
    options = {"cache_implementation": "static"} if bench.device == "cuda" else {}

    def theirs() -> int:
        with torch.inference_mode():
            out = model.generate(
                input_ids=ids, attention_mask=attention, max_new_tokens=new, min_new_tokens=new, do_sample=False,
                pad_token_id=0, **options,
            )  # fmt: skip
        return int(out.shape[0] * new)

    free = bench.timed(lambda: ours(None))
    constrained = bench.timed(lambda: ours(grammar))
    try:
        beside: dict[str, Any] = {"generate_tokens_s": bench.timed(theirs)}
    except Exception as error:  # noqa: BLE001 - compiling may lack something; ours is measured already
        beside = {"generate_failed": _sentence(error)}
    config = model.config
    length = sum(map(len, prompts)) / batch + new / 2
    cache = 2 * 2 * config.num_hidden_layers * config.num_key_value_heads * length
    cache *= config.hidden_size // config.num_attention_heads
    return {
        "free_tokens_s": free,
        "grammar_tokens_s": constrained,
        "grammar_costs": 1 - constrained / free,
        **beside,
        "bytes_a_token": sum(p.nbytes for p in model.parameters()) / batch + cache,
    }


class _Scripted:
    """A model whose favourites are those of one answer."""

    def __init__(self, model: Any, answer: Sequence[int]) -> None:
        self.device, self._model, self._answer = model.device, model, answer
        self._step = 0

    def __call__(self, **inputs: Any) -> Any:
        output = self._model(**inputs)
        self._step = 0 if inputs["input_ids"].shape[1] > 1 else self._step + 1  # a prompt begins an answer
        output.logits[:, -1, self._answer[self._step % len(self._answer)]] = 1e4
        return output


def _permitted_answer(constraint: Any, tokens: int) -> list[int]:
    """The beginning of some answer of the grammar."""
    draw, answer = random.Random(7), []
    while len(answer) < tokens and not constraint.complete:
        answer.append(draw.choice(constraint.permitted().nonzero()[:, 0].tolist()))
        constraint.advance(answer[-1])
    return answer


def byte_tokenizer() -> Any:
    """One token a byte, and three special ones: the weights are random, no vocabulary would mean anything to them."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    special = ["<|pad|>", "<|end|>", "<|start|>"]
    names = [*special, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    tokenizer = Tokenizer(models.BPE(vocab={name: i for i, name in enumerate(names)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(name, special=True) for name in special])
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token=special[0], eos_token=special[1])
    fast.chat_template = _CHAT
    return fast


PARTS: dict[str, Callable[[Bench, str], dict[str, Any]]] = {
    "peak": peak,
    "correct": correct,
    "train": training,
    "trl": trl,
    "decode": decode,
}


def plan(*, tiny: bool) -> list[str]:
    """The parts in order, each with its size: what says most comes first, should the time run out."""
    sizes = ["tiny"] if tiny else ["7B", "1.5B", "0.5B"]
    return [
        "peak:", "correct:none", "correct:nf4",
        *(f"{part}:{size}" for size in sizes for part in ("train", "trl", "decode")),
    ]  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the parts, print them, and write JSON; 1 where something that must hold does not."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--tiny", action="store_true", help="a model of 100,000 weights, for a look at the code")
    parser.add_argument("--json", type=Path, help="where the results go")
    parser.add_argument("--seconds", type=float, default=480, help="after which no further part begins")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    bench = Bench(options.device, options.tiny, 0.0 if options.tiny else 8.0)
    if options.one:
        part, _, size = options.one.partition(":")
        try:
            print(json.dumps(PARTS[part](bench, size)))
        except Exception as error:  # noqa: BLE001 - the others go on
            print(json.dumps({"failed": _sentence(error), "trace": traceback.format_exc()[-4_000:]}))
        return 0
    import torch  # noqa: F401 - with it, `machine` names the card

    began, results = time.perf_counter(), {}
    print(machine())
    for name in plan(tiny=options.tiny):
        left = options.seconds - (time.perf_counter() - began)
        results[name] = _in_own_process(name, options, left) if left > 0 else {"not_run": "the time is up"}
        shown = {key: value for key, value in _with_shares(results[name], results).items() if key != "trace"}
        print(f"{name:<14} {json.dumps(shown)}", flush=True)
    document = {"machine": machine(), "device": options.device, "tiny": options.tiny, "parts": results}
    if options.json:
        options.json.write_text(json.dumps(document, indent=1))
    broken = [name for name, found in results.items() if "failed" in found or not all(found.get("holds", {}).values())]
    print(f"Failed: {', '.join(broken)}." if broken else "All that must hold holds.")
    return int(bool(broken))


def _in_own_process(name: str, options: argparse.Namespace, left: float) -> dict[str, Any]:
    needs = "bitsandbytes" if name == "correct:nf4" else "trl" if name.startswith("trl") else None
    if needs and subprocess.run([sys.executable, "-c", f"import {needs}"], capture_output=True, check=False).returncode:
        extra = {"bitsandbytes": "cuda", "trl": "bench"}[needs]
        return {"not_run": f"{needs} is not installed (extra {extra})"}
    command = [sys.executable, "-W", "ignore", "-m", "benchmarks.gpu", "--device", options.device, "--one", name]
    try:
        done = subprocess.run(
            [*command, *(["--tiny"] if options.tiny else [])],
            capture_output=True, text=True, check=False, timeout=max(60, left),
            env=os.environ | {"HF_HUB_OFFLINE": "1"},
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return {"not_run": "the time is up"}
    if done.returncode:  # a signal, or a fault before the part began
        said = (done.stderr.strip().splitlines() or ["without a word"])[-1][:500]
        return {"failed": f"exit status {done.returncode}: {said}", "trace": done.stderr[-4_000:]}
    found: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


def _sentence(error: Exception) -> str:
    """CUDA's own reason comes first, and advice after it."""
    return f"{type(error).__name__}: {first_line(error)}"[:500]


def _with_shares(found: dict[str, Any], results: dict[str, Any]) -> dict[str, Any]:
    """Add what a figure is of the card's own peak."""
    card = results.get("peak:", {})
    if "tflops" in found and "bfloat16_tflops" in card:
        found["mfu"] = found["tflops"] / card["bfloat16_tflops"]
    if "bytes_a_token" in found and "memory_gb_s" in card:
        found["roofline_tokens_s"] = card["memory_gb_s"] * 1e9 / found["bytes_a_token"]
    return found


if __name__ == "__main__":
    sys.exit(main())
