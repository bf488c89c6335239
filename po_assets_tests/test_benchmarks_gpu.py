"""`benchmarks.gpu` without a GPU: every part runs, and its correctness is of a kind that faults of the GPU path fail."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention as sdpa

from benchmarks import gpu, gpu_correct
from benchmarks.machine import machine
from po_assets.model import loading, packed
from po_assets.training import training

ROOT = Path(__file__).resolve().parents[1]
TINY = gpu.Bench("cpu", tiny=True, seconds=0.0)


@pytest.mark.slow
def test_every_part_runs_on_a_cpu(tmp_path: Path) -> None:
    """Each in a process of its own; what is not installed is named with its extra, never counted."""
    results = tmp_path / "gpu.json"
    command = [sys.executable, "-m", "benchmarks.gpu", "--device", "cpu", "--tiny", "--json", str(results)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    document = json.loads(results.read_text())
    assert document["machine"] in done.stdout
    parts = document["parts"]
    assert list(parts) == gpu.plan(tiny=True)
    for part, package, extra in (("correct:nf4", "bitsandbytes", "cuda"), ("trl:tiny", "trl", "bench")):
        if importlib.util.find_spec(package) is None:
            assert parts.pop(part) == {"not_run": f"{package} is not installed (extra {extra})"}
    assert all(parts["correct:none"]["holds"].values())
    assert parts["peak:"]["bfloat16_tflops"] > 0
    assert 0 < parts["train:tiny"]["mfu"] < 1
    assert parts["decode:tiny"]["grammar_tokens_s"] < parts["decode:tiny"]["roofline_tokens_s"]


def test_weights_in_another_type_than_the_log_says_fail_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """As PEFT's preparation for 4 bits once left them: everything in float32 under a log that said bfloat16."""
    real = gpu_correct.load_base_model
    monkeypatch.setattr(
        gpu_correct, "load_base_model", lambda *arguments, **options: real(*arguments, **options).float()
    )
    with pytest.raises(TypeError, match=r"frozen weights are not torch\.bfloat16"):
        gpu_correct.correct(TINY, "none")


def test_an_adapter_that_learns_nothing_and_a_wrong_reason_fail_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """An optimizer that does not step; and a CPU-only PyTorch that is told of a missing driver."""
    monkeypatch.setattr(torch.optim.AdamW, "step", lambda _self: None)
    monkeypatch.setattr(training, "_state", lambda *_: {})  # there is no optimizer state to keep
    monkeypatch.setattr(loading, "_why_no_gpu", lambda: "something is wrong with it.")
    monkeypatch.setattr(gpu_correct.CheckpointStore, "latest", lambda _self: None)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    holds = gpu_correct.correct(TINY, "none")["holds"]
    failed = {name for name, held in holds.items() if not held}
    assert failed == {"refused_for_its_own_reason", "loss_falls", "trained_is_noticed"}


def test_attention_that_looks_ahead_fails_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Packed or alone it is the same kernel, so that transformers' own is what it is compared with."""
    monkeypatch.setattr(packed, "_one_row", lambda q, k, v, scale, _window: sdpa(q, k, v, scale=scale, enable_gqa=True))
    assert not gpu_correct.correct(TINY, "none")["holds"]["packed_as_row_by_row"]


def test_what_fails_beside_ours_costs_nothing_that_was_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    """`generate` is compiled on a GPU, for which a machine may lack a compiler."""

    def fails(*_arguments: Any, **_options: Any) -> None:
        raise RuntimeError("Failed to find C compiler.\nPlease specify via CC environment variable.")

    monkeypatch.setattr("transformers.Qwen2ForCausalLM.generate", fails)
    found = gpu.decode(TINY, "tiny")
    assert found["generate_failed"] == "RuntimeError: Failed to find C compiler."
    assert found["grammar_tokens_s"] > 0


def test_a_part_that_fails_says_the_reason_not_the_advice_after_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """CUDA's errors end in advice; and where it was stands beside it, for whoever cannot run it again."""

    def fails(*_arguments: Any) -> None:
        raise RuntimeError("CUDA error: no kernel image\nCompile with `TORCH_USE_CUDA_DSA` to enable assertions.")

    monkeypatch.setitem(gpu.PARTS, "peak", fails)
    assert gpu.main(["--device", "cpu", "--tiny", "--one", "peak:"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["failed"] == "RuntimeError: CUDA error: no kernel image"
    assert "in fails" in found["trace"]


@pytest.mark.parametrize(
    ("flags", "kind"),
    [
        ("avx512f avx512_bf16", "(AVX512-BF16)"),
        ("avx512f avx512_bf16 amx_bf16 amx_tile", "(AMX)"),
        ("avx2", "(neither AMX nor AVX512-BF16)"),
    ],
)
def test_figures_name_the_kind_of_cpu(tmp_path: Path, flags: str, kind: str) -> None:
    """By its flags, with its name."""
    info = tmp_path / "cpuinfo"
    info.write_text(f"model name\t: Some CPU @ 2 GHz\nflags\t\t: fpu {flags} rep_good\n")
    assert f"Some CPU @ 2 GHz {kind}" in machine(info)
