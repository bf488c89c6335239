"""A model folder as one GGUF file, which llama.cpp, Ollama and their kin run.

Families of which llama.cpp's layout is known here: Llama (the embedded model) and Qwen2 (the profile `paper`), with
their own tokenizers. Each tensor is converted when it is written, so that memory holds the largest of them only.
"""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from po_assets.errors import UserError
from po_assets.model import load_tokenizer

if TYPE_CHECKING:
    from gguf import GGMLQuantizationType, GGUFWriter

Quantization = Literal["f16", "q8_0", "q4_0"]

_PERMUTED = {"llama": True, "qwen2": False}
"""Families, and whether llama.cpp wants the halves of queries and keys interleaved (its rotary embedding differs)."""
_BLOCK = 32
"""Numbers that share a scale in q8_0 and q4_0. (The package `gguf` writes no K-quants, such as q4_k.)"""


def write_gguf(folder: Path, target: Path, quantization: Quantization, name: str) -> None:
    """Write the merged model in `folder` (safetensors, 16 bits) to the file `target`.

    Matrices are quantized, vectors stay in 32 bits, as llama.cpp has it.

    Raises:
        UserError: a family, a tokenizer or a rotary embedding whose form in GGUF is not known here.
    """
    import gguf

    config = json.loads((folder / "config.json").read_text())
    family, pre_tokenizer = check_gguf(folder)
    architecture = {"llama": gguf.MODEL_ARCH.LLAMA, "qwen2": gguf.MODEL_ARCH.QWEN2}[family]
    names = gguf.get_tensor_name_map(architecture, int(config["num_hidden_layers"]))
    writer = gguf.GGUFWriter(target, family)
    try:
        _add_model(writer, config, name, quantization)
        _add_tokenizer(writer, folder, config, pre_tokenizer)
        for source, values in _tensors(folder, tied=bool(config.get("tie_word_embeddings"))):
            kind = _kind(source, values.shape, quantization)
            ordered = _permuted(source, values, config) if _PERMUTED[family] else values
            writer.add_tensor(_named(names, source), gguf.quants.quantize(ordered, kind), raw_dtype=kind)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
    finally:
        writer.close()


def check_gguf(folder: Path) -> tuple[str, str]:
    """The family of a model and llama.cpp's name of its pre-tokenizer.

    Raises:
        UserError: there is none that is known here.
    """
    config, tokenizer = (json.loads((folder / name).read_text()) for name in ("config.json", "tokenizer.json"))
    family = config.get("model_type")
    rope = (config.get("rope_parameters") or config.get("rope_scaling") or {}).get("rope_type", "default")
    steps = tokenizer.get("pre_tokenizer") or {}
    steps = steps.get("pretokenizers", [steps])
    pre_tokenizer = _pre_tokenizer(steps) if tokenizer.get("model", {}).get("type") == "BPE" else None
    known = family in _PERMUTED and rope == "default" and pre_tokenizer
    if not known:
        raise UserError(
            f"No GGUF file can be written of a model of type {family!r} with rotary embedding {rope!r} and the "
            f"pre-tokenizer {' + '.join(step.get('type', '?') for step in steps)}: known are the Llama and Qwen2 "
            "families with SmolLM2's or Qwen2's tokenizer. Export safetensors only (--format safetensors) and convert "
            "them with llama.cpp's convert_hf_to_gguf.py."
        )
    return str(family), str(pre_tokenizer)


def _pre_tokenizer(steps: list[dict[str, Any]]) -> str | None:
    """llama.cpp's name of what cuts text before the merges."""
    match [step.get("type") for step in steps]:
        case ["Digits", "ByteLevel"] if steps[0].get("individual_digits"):
            return "smollm"
        case ["Split", "ByteLevel"] if r"|\p{N}|" in str(steps[0].get("pattern")):
            return "qwen2"
        case ["ByteLevel"]:
            return "gpt-2"
    return None


def _add_model(writer: "GGUFWriter", config: Mapping[str, Any], name: str, quantization: Quantization) -> None:
    import gguf

    heads, hidden = int(config["num_attention_heads"]), int(config["hidden_size"])
    head = int(config.get("head_dim") or hidden // heads)
    rope = config.get("rope_parameters") or config
    writer.add_type(gguf.GGUFType.MODEL)
    writer.add_name(name)
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(hidden)
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(config.get("num_key_value_heads") or heads)
    writer.add_key_length(head)
    writer.add_value_length(head)
    writer.add_rope_dimension_count(head)
    writer.add_rope_freq_base(float(rope.get("rope_theta", 10_000.0)))
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_vocab_size(config["vocab_size"])
    writer.add_file_type(gguf.LlamaFileType[f"MOSTLY_{quantization.upper()}"])
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)


def _add_tokenizer(writer: "GGUFWriter", folder: Path, config: Mapping[str, Any], pre_tokenizer: str) -> None:
    from gguf import TokenType

    loaded = load_tokenizer(folder)
    description = json.loads((folder / "tokenizer.json").read_text())
    tokens = [f"[PAD{number}]" for number in range(config["vocab_size"])]  # weights may have rows beyond the vocabulary
    types = [int(TokenType.UNUSED)] * len(tokens)
    for text, number in description["model"]["vocab"].items():
        tokens[number], types[number] = text, int(TokenType.NORMAL)
    for added in description["added_tokens"]:
        kind = TokenType.CONTROL if added["special"] else TokenType.USER_DEFINED
        tokens[added["id"]], types[added["id"]] = added["content"], int(kind)
    merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in description["model"]["merges"]]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre_tokenizer)
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    if merges:
        writer.add_token_merges(merges)
    for add, number in (
        (writer.add_bos_token_id, loaded.bos_token_id),
        (writer.add_eos_token_id, loaded.eos_token_id),
        (writer.add_unk_token_id, loaded.unk_token_id),
        (writer.add_pad_token_id, loaded.pad_token_id),
    ):
        if number is not None:
            add(number)
    # Whatever stands in front of a prompt is in the chat template, as in training.
    writer.add_add_bos_token(False)
    writer.add_add_space_prefix(False)
    writer.add_chat_template(str(loaded.chat_template))


def _tensors(folder: Path, *, tied: bool) -> Iterator[tuple[str, Any]]:
    """Name and values (float32, read when they are written) of every tensor; a head that is the embeddings is none."""
    import gguf
    import torch
    from safetensors import safe_open

    def read(file: Path, name: str) -> Any:
        with safe_open(file, framework="pt") as tensors:
            return tensors.get_tensor(name).to(torch.float32).numpy()

    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, framework="pt") as tensors:
            shapes = {name: tuple(tensors.get_slice(name).get_shape()) for name in sorted(tensors.keys())}
        for name, shape in shapes.items():
            if not (tied and name == "lm_head.weight"):
                meta = gguf.LazyNumpyTensor.meta_with_dtype_and_shape(np.float32, shape)
                yield name, gguf.LazyNumpyTensor(meta=meta, args=(file, name), func=read)


def _named(names: Any, source: str) -> str:
    name = names.get_name(source, try_suffixes=(".weight", ".bias"))
    if name is None:
        raise UserError(
            f"The tensor {source!r} has no place in a GGUF file of this family: is the folder a plain model?"
        )
    return str(name)


def _kind(source: str, shape: tuple[int, ...], quantization: Quantization) -> "GGMLQuantizationType":
    from gguf import GGMLQuantizationType

    if len(shape) == 1:
        return GGMLQuantizationType.F32
    if quantization == "f16" or shape[-1] % _BLOCK:
        return GGMLQuantizationType.F16
    # As llama.cpp has it: what all words go through keeps more bits.
    whole = quantization == "q8_0" or source in ("model.embed_tokens.weight", "lm_head.weight")
    return GGMLQuantizationType.Q8_0 if whole else GGMLQuantizationType.Q4_0


def _permuted(source: str, values: "np.ndarray[Any, Any]", config: Mapping[str, Any]) -> "np.ndarray[Any, Any]":
    """Queries and keys with the halves of each head interleaved; all else as it is."""
    heads = int(config["num_attention_heads"])
    if "k_proj" in source:
        heads = int(config.get("num_key_value_heads") or heads)
    elif "q_proj" not in source:
        return values
    halves = values.reshape(heads, 2, values.shape[0] // heads // 2, *values.shape[1:])
    return halves.swapaxes(1, 2).reshape(values.shape)
