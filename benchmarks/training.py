"""Tokens a second of training: this project's path beside the manual process, TRL, and the bare matrix products.

    python -m benchmarks.training                     every way, about 10 minutes on 2 free cores
    python -m benchmarks.training --ways ours limit   without TRL (extra `bench`), about 2 minutes

SmolLM2-135M-Instruct with LoRA of rank 32, alpha 64, dropout 0.05 on all linear layers, on rows of the sample data.
Counted are real tokens: prompt and answer, no padding. Each way runs in a process of its own; loading and the first
step are not part of the time. Processor seconds are given beside the clock, since a busy machine distorts them less.

* `manual`: what the manual process does: float32, every row padded to 2,048 tokens, loss on every position.
* `trl`: TRL's `SFTTrainer` with its defaults (8 rows a batch, padded to the longest, gradient checkpointing, bfloat16
  autocast as far as it switches it on by itself).
* `trl-tuned`: the same with weights in bfloat16, no gradient checkpointing, 1, 2 or 4 rows a batch (the best counts).
* `ours`: `po_assets.training.gradients` as `lora_adapter` uses it, optimizer step included.
* `ours-long`: the same on rows of about 1,150 tokens, for their peak memory.
* `limit`: the same matrix products alone (frozen linears, LoRA, attention, output layer on the answers), bfloat16,
  forward and backward, nothing between them.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

from benchmarks.machine import machine
from po_assets.dag import Artifacts
from po_assets.intake.formats import read_record
from po_assets.model import BaseModel, ChatTemplate, ensure_base_model, load_base_model, load_tokenizer
from po_assets.product_owner import build_prompt, format_answer
from po_assets.storage.workers import available_cpus
from po_assets.training.adapter import add_adapter, trainable
from po_assets.training.gradients import StepRow, make_engine
from po_assets.training.rows import TokenizedRow, tokenize_rows
from po_assets.training.settings import TrainingSettings

MANUAL_LENGTH = 2_048
TRL_BATCHES = (1, 2, 4)


def main() -> None:
    """Measure and print tables; `--one` measures a single way in this process."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=16, help="rows that each way trains on (manual: 2)")
    parser.add_argument("--ways", nargs="*", default=list(WAYS), choices=list(WAYS))
    parser.add_argument("--one", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        print(json.dumps(RUNS[arguments.one](arguments.rows)))
        return
    print(f"{machine()}, {arguments.rows} rows", flush=True)
    print(f"{'way':<12} {'tokens/s':>9} {'tokens/cpu s':>13} {'padding':>8} {'peak GiB':>9} {'ours is':>8}")
    results = {way: _best(way, arguments.rows) for way in arguments.ways}
    ours = results.get("ours", {}).get("speed")
    for way, result in results.items():
        ratio = f"{ours / result['speed']:.2f} x" if ours else ""
        print(
            f"{way:<12} {result['speed']:>9.1f} {result['cpu_speed']:>13.1f} {result['padding']:>8.0%} "
            f"{result['peak_gib']:>9.2f} {ratio:>8}  {result.get('note', '')}"
        )


def _best(way: str, rows: int) -> dict[str, Any]:
    results = [_in_own_process(run, rows) for run in RUNS if run.partition(":")[0] == way]
    return max(results, key=lambda result: float(result["speed"]))


def _in_own_process(run: str, rows: int) -> dict[str, Any]:
    command = [sys.executable, "-m", "benchmarks.training", "--one", run, "--rows", str(rows)]
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    if done.returncode:
        way = run.partition(":")[0]
        sys.exit(f"{way}: {done.stderr.strip().splitlines()[-1] if done.stderr.strip() else 'failed'}")
    result: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return result


def sample_pairs() -> Iterator[tuple[str, str]]:
    """Prompt and answer of the landed sample rows, shuffled in a fixed way so that any few are typical."""
    lines = [line for path in sorted(Artifacts().layout.incoming.glob("*.jsonl")) for line in path.open("rb")]
    for i in range(len(lines)):
        yield pair_of(json.loads(lines[i * 163 % len(lines)]))  # 163 and 379 have no common divisor


def pair_of(row: dict[str, Any]) -> tuple[str, str]:
    """Prompt and answer of a landed row."""
    _, record = read_record(row)
    return (
        build_prompt(record.concept, record.requirements_yaml),
        format_answer(record.vision_yaml, record.review_yaml),
    )


def base_folder() -> Path:
    """The converted embedded model."""
    return ensure_base_model(BaseModel(profile="embedded").resolved(), Artifacts().layout)


def sample_rows(count: int) -> list[TokenizedRow]:
    """The first `count` sample rows as tokens."""
    chat = ChatTemplate(load_tokenizer(base_folder()))
    return tokenize_rows(list(islice(sample_pairs(), count)), chat, 2048)


def long_rows(count: int) -> list[TokenizedRow]:
    """Rows of about 1,150 tokens: each a sample row in the prompt of the next."""
    rows = sample_rows(count + 1)
    return [
        TokenizedRow((*first.ids, *second.ids), len(first.ids) + second.prompt_length)
        for first, second in pairwise(rows)
    ]


def student(recipe: TrainingSettings, precision: str) -> Any:
    """The embedded model with fresh LoRA matrices."""
    return add_adapter(load_base_model(base_folder(), precision), recipe, base_folder())  # type: ignore[arg-type]


def timed(run: Callable[[], object], tokens: int, padded: int, note: str = "") -> dict[str, Any]:
    """Tokens a second of `run`, by the clock and by the processor."""
    began = now()
    run()
    return measured(began, now(), tokens, padded, note)


def now() -> tuple[float, float]:
    """Seconds of the clock and of the processor."""
    return time.perf_counter(), time.process_time()


def measured(
    began: tuple[float, float], ended: tuple[float, float], tokens: int, padded: int, note: str
) -> dict[str, Any]:
    """What is printed of a way."""
    return {
        "speed": tokens / (ended[0] - began[0]),
        "cpu_speed": tokens / (ended[1] - began[1]),
        "padding": 1 - tokens / padded,
        "peak_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
        "note": note,
    }


def manual(_count: int) -> dict[str, Any]:
    """float32, padded to 2,048, loss on every position."""
    import torch

    model = student(TrainingSettings(base_model=BaseModel()).resolved(), "float32")
    rows = sample_rows(3)
    optimizer = torch.optim.AdamW(trainable(model).values(), lr=8e-5)

    def step(row: TokenizedRow) -> None:
        padding = (0,) * (MANUAL_LENGTH - len(row.ids))
        ids = torch.tensor([[*row.ids, *padding]])
        attention = (torch.arange(MANUAL_LENGTH) < len(row.ids)).long().unsqueeze(0)
        model(input_ids=ids, attention_mask=attention, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    step(rows[0])
    tokens = sum(len(row.ids) for row in rows[1:])
    return timed(lambda: [step(row) for row in rows[1:]], tokens, 2 * MANUAL_LENGTH)


def ours(count: int, make_rows: Callable[[int], list[TokenizedRow]] = sample_rows) -> dict[str, Any]:
    """The project's engine and optimizer step."""
    import torch

    recipe = TrainingSettings(base_model=BaseModel()).resolved()
    rows = make_rows(count + recipe.rows_per_step)
    model = student(recipe, "bfloat16")
    parameters = list(trainable(model).values())
    optimizer = torch.optim.AdamW(parameters, lr=1e-4)
    chunks = [rows[i : i + recipe.rows_per_step] for i in range(0, len(rows), recipe.rows_per_step)]
    with make_engine(model, parameters) as engine:

        def step(part: Sequence[TokenizedRow]) -> None:
            engine.compute([StepRow(row, 1) for row in part])
            optimizer.step()
            engine.parameters_changed()

        step(chunks[0])
        tokens = sum(len(row.ids) for part in chunks[1:] for row in part)
        return timed(lambda: [step(part) for part in chunks[1:]], tokens, tokens, engine.description)


def trl(count: int, *, batch: int = 8, tuned: bool = False) -> dict[str, Any]:
    """`SFTTrainer` as it comes, or with bfloat16 weights and without gradient checkpointing."""
    rows = max(1, count // batch)
    times: list[tuple[float, float]] = []
    pairs = list(islice(sample_pairs(), (1 + rows) * batch))
    trainer = sample_trainer(pairs, lambda: times.append(now()), 1 + rows, batch=batch, tuned=tuned, learning_rate=1e-4)
    # Sorted batches would flatter it: rows come in the order of the trainer's own sampler, as in its normal use.
    seen: list[tuple[int, int]] = []
    collator = trainer.data_collator

    def counting(examples: Any) -> Any:
        made = collator(examples)
        real = int(made["attention_mask"].sum()) if "attention_mask" in made else made["input_ids"].numel()
        seen.append((real, made["input_ids"].numel()))
        return made

    trainer.data_collator = counting
    trainer.train()
    tokens, padded = (sum(column) for column in zip(*seen[1 : 1 + rows], strict=True))
    return measured(times[0], times[-1], tokens, padded, f"{batch} row(s) a batch")


def sample_trainer(
    pairs: Sequence[tuple[str, str]],
    on_step: Callable[[], None],
    steps: int,
    *,
    batch: int,
    tuned: bool,
    dropout: float = 0.05,
    **settings: Any,
) -> Any:
    """`SFTTrainer` of the embedded model at a constant rate; `settings` are more of those of `SFTConfig`."""
    conversations = [
        {"prompt": [{"role": "user", "content": p}], "completion": [{"role": "assistant", "content": a}]}
        for p, a in pairs
    ]
    if tuned:
        settings |= {"gradient_checkpointing": False, "bf16": True}
    model = load_base_model(base_folder(), "bfloat16" if tuned else "float32")
    return trl_trainer(
        model, load_tokenizer(base_folder()), conversations, on_step, dropout=dropout, max_steps=steps,
        per_device_train_batch_size=batch, lr_scheduler_type="constant", logging_steps=1, use_cpu=True, **settings,
    )  # fmt: skip


def trl_trainer(
    model: Any,
    tokenizer: Any,
    data: Sequence[dict[str, Any]],
    on_step: Callable[[], None],
    *,
    dropout: float = 0.05,
    **settings: Any,
) -> Any:
    """`SFTTrainer` with LoRA as ours on these rows; `on_step` is called after each step."""
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import TrainerCallback
    from trl import SFTConfig, SFTTrainer

    class Watch(TrainerCallback):
        def on_step_end(self, *_args: Any, **_options: Any) -> None:
            on_step()

    # Its default length cuts rows at 1,024 tokens, end-of-sequence first.
    config = SFTConfig(output_dir=tempfile.mkdtemp(), save_strategy="no", report_to="none", max_length=None, **settings)
    lora = LoraConfig(r=32, lora_alpha=64, lora_dropout=dropout, target_modules="all-linear", task_type="CAUSAL_LM")
    return SFTTrainer(
        model=model, args=config, train_dataset=Dataset.from_list(list(data)), processing_class=tokenizer,
        peft_config=lora, callbacks=[Watch()],
    )  # fmt: skip


def limit(count: int) -> dict[str, Any]:
    """The matrix products alone, one row per core side by side, as ours computes them."""
    from concurrent.futures import ThreadPoolExecutor

    import torch

    from po_assets.model.cpu.attention import BLOCK

    torch.set_num_threads(1)
    bf16 = torch.bfloat16
    config: Any = load_base_model(base_folder(), "bfloat16").config
    size, inner = config.hidden_size, config.intermediate_size
    heads, kv = config.num_attention_heads, config.num_key_value_heads
    head = size // heads
    attention = [(size, size), (size, kv * head), (size, kv * head)]
    linears = [attention, [(size, size)], [(size, inner)] * 2, [(inner, size)]]
    weights = [[torch.randn(out, into, dtype=bf16) for into, out in group] for group in linears]
    low = [
        (torch.randn(32 * len(group), group[0][0], dtype=bf16), [torch.randn(out, 32, dtype=bf16) for _, out in group])
        for group in linears
    ]
    output = torch.randn(config.vocab_size, size, dtype=bf16)

    def row(length: int, answer: int) -> None:
        x = {width: torch.randn(length, width, dtype=bf16) for width in {size, inner, kv * head}}
        for _ in range(config.num_hidden_layers):
            for group, (a, bs) in zip(weights, low, strict=True):
                into = x[group[0].shape[1]]
                for product in (into @ a.t(), into @ a.t()):  # forward; backward computes one of the same size for A
                    for w, b, part in zip(group, bs, product.split(32, 1), strict=True):
                        _ = into @ w.t(), part @ b.t()  # forward; backward's products have the same sizes
                for b in bs:
                    _ = x[b.shape[0]].t() @ product[:, :32]
                _ = product.t() @ into
            for start in range(0, length, BLOCK):
                end = min(length, start + BLOCK)
                q = torch.randn(kv, (end - start) * heads // kv, head, dtype=bf16)
                k = torch.randn(kv, end, head, dtype=bf16)
                scores = q @ k.transpose(1, 2)
                for _ in range(2):  # values; gradient of queries
                    _ = scores @ k
                for _ in range(2):  # gradient of keys; of values
                    _ = scores.transpose(1, 2) @ q
                _ = q @ k.transpose(1, 2)  # gradient of the scores
        logits = x[size][:answer] @ output.t()
        _ = logits @ output

    rows = sample_rows(count)
    row(600, 300)
    with ThreadPoolExecutor(available_cpus()) as pool:
        tokens = sum(len(r.ids) for r in rows)
        return timed(lambda: list(pool.map(lambda r: row(len(r.ids), r.trained), rows)), tokens, tokens)


RUNS: dict[str, Callable[[int], dict[str, Any]]] = {
    "manual": manual,
    "trl": trl,
    **{f"trl-tuned:{batch}": partial(trl, batch=batch, tuned=True) for batch in TRL_BATCHES},
    "ours": ours,
    "ours-long": partial(ours, make_rows=long_rows),
    "limit": limit,
}
"""By way, and what is tried of it behind a colon: the best of them counts."""
WAYS = tuple(dict.fromkeys(run.partition(":")[0] for run in RUNS))


if __name__ == "__main__":
    main()
