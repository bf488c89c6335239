import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from po_assets.errors import UserError
from po_assets.model import BaseModel, choose_precision, decide_quantization, load_base_model, require_hardware
from po_assets.model.loading import own_device
from po_assets_tests.model.tiny_model import edit_json


def test_precision_follows_the_hardware_and_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    """bfloat16 only where the processor has instructions for it; emulated it would be slower than float32."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True)
    assert choose_precision().dtype == "bfloat16"
    assert "AVX512-BF16" in choose_precision("auto").reason
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    assert choose_precision().dtype == "float32"
    assert choose_precision("bfloat16").dtype == "bfloat16"


def test_an_unknown_precision_is_refused() -> None:
    """With the values that there are."""
    with pytest.raises(UserError, match="'int8'; choose 'bfloat16', 'float32' or 'auto'"):
        choose_precision("int8")


@pytest.mark.parametrize(("settings", "named"), [({"profile": "paper"}, "'paper'"), ({"quantization": "nf4"}, "'nf4'")])
def test_a_gpu_is_demanded_where_one_is_needed(monkeypatch: pytest.MonkeyPatch, settings, named) -> None:
    """The message names what needs it and the profile that does not."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match=rf"{named} needs a CUDA GPU.*PO_PROFILE=embedded"):
        require_hardware(BaseModel(**settings).resolved())


@pytest.mark.parametrize(
    ("cuda", "said", "visible", "expected"),
    [
        (None, "", None, "is built for CPUs only. .*EXTRAS=cuda"),
        (
            "13.0",
            "The NVIDIA driver on your system is too old (found version 11040).",
            None,
            "driver is too old .*11040",
        ),
        ("13.0", "No CUDA GPUs are available", "", "CUDA_VISIBLE_DEVICES is '', which leaves none visible"),
        ("13.0", "Found no NVIDIA driver on your system.", None, "sees none on this machine .*Found no NVIDIA driver"),
        ("13.0", "Found no NVIDIA driver on your system.", "0", "sees none on this machine .*Found no NVIDIA driver"),
    ],
)
def test_each_reason_for_no_gpu_has_its_own_sentence(
    monkeypatch: pytest.MonkeyPatch, cuda: str | None, said: str, visible: str | None, expected: str
) -> None:
    """They look the same to PyTorch, and each is mended in another way."""

    def init() -> None:
        raise RuntimeError(said)

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "init", init)
    monkeypatch.setattr(torch.version, "cuda", cuda)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    with pytest.raises(UserError, match=expected):
        require_hardware(BaseModel(profile="paper").resolved())


WHEEL = ["sm_75", "sm_80", "sm_86", "sm_90", "sm_100", "sm_120"]  # PyTorch 2.13 for CUDA 13


@pytest.mark.parametrize(
    ("capability", "built", "works"),
    [
        ((7, 0), WHEEL, False),  # V100
        ((7, 5), WHEEL, True),  # T4
        ((8, 9), WHEEL, True),  # L40S: the code of its generation's older cards
        ((9, 0), ["sm_80", "sm_90a"], True),
        ((9, 0), ["sm_80", "compute_80"], True),  # compiled when it is loaded
        ((8, 0), ["sm_86", "compute_90"], False),
        ((9, 0), [], True),  # it cannot be said
    ],
)
def test_a_gpu_that_pytorch_has_no_code_for_is_refused_in_every_profile(
    monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], built: list[str], *, works: bool
) -> None:
    """PyTorch sees it, and would fail in the first step; the sentence has both ways out."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: built)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Tesla V100-SXM2-16GB")
    spec = BaseModel(profile="embedded").resolved()
    if works:
        require_hardware(spec)
        return
    with pytest.raises(UserError, match=r"^Tesla V100-SXM2-16GB cannot be used: .* sm_8.*/cu126.*CUDA_VISIBLE_DEVICES"):
        require_hardware(spec)


@pytest.mark.parametrize(
    ("memory", "gpus", "decided", "why"),
    [
        (85e9, "1", "none", "there are 85 GB on the GPU, enough for 16-bit weights"),
        (42.3e9, "1", "none", "there are 42 GB on the GPU, enough for 16-bit weights"),  # what a card of 40 GiB says
        (25.4e9, "1", "nf4", "there are 25 GB on the GPU, less than the 40 that go with 16-bit weights"),
        # Steps that share a card have their share of it.
        (48e9, "1", "none", "there are 48 GB on the GPU, enough for 16-bit weights"),
        (48e9, "0.5", "nf4", "there are 24 GB on the GPU, less than the 40 that go with 16-bit weights"),
    ],
)
def test_the_gpus_memory_decides_between_16_and_4_bits(
    monkeypatch: pytest.MonkeyPatch, memory: float, gpus: str, decided: str, why: str
) -> None:
    """Only where it is left open; then 4-bit weights need bitsandbytes, asked for before any download, 16-bit not."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    card = SimpleNamespace(total_memory=memory, major=9, minor=0)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _device: card)
    monkeypatch.setattr("importlib.util.find_spec", lambda _name: None)
    monkeypatch.setenv("PO_GPUS", gpus)
    spec = BaseModel(profile="paper").resolved()
    assert decide_quantization(spec) == (decided, why)
    if decided == "none":
        require_hardware(spec)
    else:
        with pytest.raises(UserError, match=r"'paper' needs the package bitsandbytes.*EXTRAS=cuda"):
            require_hardware(spec)
    asked = BaseModel(profile="paper", quantization="nf4").resolved()
    assert decide_quantization(asked) == ("nf4", "quantization is nf4")


def test_each_worker_of_a_machine_loads_onto_its_own_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """As the launcher of the workers says; alone it is the first."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    assert own_device() == "cuda:0"
    monkeypatch.setenv("LOCAL_RANK", "3")
    assert own_device() == "cuda:3"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert own_device() == "cpu"


@pytest.mark.parametrize("precision", ["bfloat16", "float32"])
def test_a_model_loads_in_the_precision_asked_for(tiny_folder: Path, precision) -> None:
    """Training, baseline and student share this loader."""
    model = load_base_model(tiny_folder, precision, device="cpu")
    assert model.dtype == getattr(torch, precision)
    assert not model.training


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({}, ""),
        # transformers would make up what does not fit, and leave layers out without a word.
        ({"intermediate_size": 96}, r"weights have other sizes .*mlp.* is \[32, 64\], not \[32, 96\]"),
        (
            {"num_hidden_layers": 1},
            r"it has 9 weights of layers that its config\.json does not have, model\.layers\.1\.",
        ),
        ({"num_key_value_heads": 0}, "division (or modulo )?by zero"),
        ({"hidden_size": 30}, r"The hidden size \(30\) is not a multiple of the number of attention heads"),
        ({"hidden_act": "nosuch"}, "KeyError: 'nosuch'"),
    ],
)
def test_damaged_weights_or_a_config_of_other_ones_are_one_sentence(
    tiny_folder: Path, config: dict[str, Any], said: str
) -> None:
    """With the folder and the way out, wherever in transformers it fails."""
    if config:
        edit_json(tiny_folder / "config.json", **config)
    else:
        (tiny_folder / "model.safetensors").write_bytes(b"not safetensors")
    way_out = r"Delete the folder if .* give another base_model"
    with pytest.raises(UserError, match=rf"{tiny_folder}' cannot be loaded \(.*{said}.*{way_out}"):
        load_base_model(tiny_folder, "float32", device="cpu")


def test_missing_weights_are_refused(tiny_folder: Path) -> None:
    """They would be random numbers, and the only trace a warning."""
    tensors = load_file(tiny_folder / "model.safetensors")
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, tiny_folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"lacks 1 of its weights, model\.layers\.1\.mlp\.up_proj\.weight among them"):
        load_base_model(tiny_folder, "float32", device="cpu")


@pytest.mark.parametrize("quantization", ["none", "nf4"])
def test_weights_go_onto_the_gpu_at_once(monkeypatch: pytest.MonkeyPatch, tiny_folder: Path, quantization: Any) -> None:
    """Without a copy of all in main memory; what an earlier step left there in cycles is gone before.

    4 bits are NormalFloat with double quantization, computed in the precision of the run (QLoRA's settings).
    """
    done: list[Any] = []

    def from_pretrained(_path: str, **options: Any) -> None:
        done.append(options)
        raise RuntimeError

    monkeypatch.setattr("transformers.AutoModelForCausalLM.from_pretrained", from_pretrained)
    monkeypatch.setattr("gc.collect", lambda: done.append("collected"))
    with pytest.raises(RuntimeError):
        load_base_model(tiny_folder, "bfloat16", quantization=quantization, device="cuda:1")
    collected, options = done
    assert (collected, options["device_map"]) == ("collected", {"": "cuda:1"})
    assert (options["trust_remote_code"], options["use_safetensors"]) == (False, True)
    if quantization == "nf4":
        asked = options["quantization_config"]
        assert asked.load_in_4bit
        assert asked.bnb_4bit_quant_type == "nf4"
        assert asked.bnb_4bit_use_double_quant
        assert asked.bnb_4bit_compute_dtype == torch.bfloat16
    else:
        assert "quantization_config" not in options


VARIABLE = "OMP_WAIT_POLICY"


def test_the_wait_policy_is_set_before_torch_is_imported() -> None:
    """However the package is started, and whichever of its modules comes first; what is set already stays."""
    with_torch = "import os, sys, po_assets.evaluation.generate; assert 'torch' in sys.modules"
    for given, code, expected in (
        ({}, with_torch, "PASSIVE"),
        ({VARIABLE: "ACTIVE"}, "import os, po_assets", "ACTIVE"),
    ):
        environment = {name: value for name, value in os.environ.items() if name != VARIABLE} | given
        command = [sys.executable, "-W", "ignore", "-c", f"{code}; print(os.environ['{VARIABLE}'])"]
        said = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
        assert said.stdout.split() == [expected]


def test_a_limited_container_gets_as_many_threads_as_it_may_use(
    tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """PyTorch itself would start one for each core of the machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    limit = tmp_path / "cpu.max"
    monkeypatch.setattr("po_assets.storage.workers._CPU_LIMIT", limit)
    monkeypatch.setattr("os.sched_getaffinity", lambda _pid: set(range(8)))
    try:
        for text, expected in (("max 100000", 2), ("250000 100000", 2), ("50000 100000", 1)):
            limit.write_text(text)
            load_base_model(tiny_folder, "float32", device="cpu")
            assert torch.get_num_threads() == expected
    finally:
        torch.set_num_threads(before)
