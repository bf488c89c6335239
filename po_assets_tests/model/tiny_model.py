"""A Llama of 30,000 random weights with a byte-level chat tokenizer, and adapters that no training made."""

import atexit
import functools
import json
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

from po_assets.model import load_base_model

CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def make_tiny_model(folder: Path, *, context: int = 2048, seed: int = 0, hidden: int = 32) -> Path:
    """Write model and tokenizer to `folder`; pad and end-of-sequence are the same token, as in SmolLM2."""
    import torch

    made = _made(context, seed, hidden)
    torch.manual_seed(seed)
    shutil.copytree(made, folder, dirs_exist_ok=True, copy_function=shutil.copyfile)
    return folder


@functools.cache
def _made(context: int, seed: int, hidden: int) -> Path:
    """Many tests want the same one: it is made once in a process."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    folder = Path(tempfile.mkdtemp(prefix="po-tiny-model-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    make_tiny_tokenizer(folder)
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=259,
        hidden_size=hidden,
        intermediate_size=2 * hidden,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=context,
        tie_word_embeddings=True,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=1,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def make_tiny_tokenizer(folder: Path) -> Path:
    """One token per byte, and three special ones."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    special = ["<|im_start|>", "<|im_end|>", "<|endoftext|>"]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: i for i, token in enumerate([*special, *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in special])
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=special[0], eos_token=special[1], pad_token=special[1]
    )
    fast.chat_template = CHAT_TEMPLATE
    folder.mkdir(parents=True, exist_ok=True)
    fast.save_pretrained(folder)
    return folder


def random_adapter(base: Path, folder: Path, targets: Sequence[str], strength: float = 0.3) -> Path:
    """An adapter with random matrices on these modules; a small strength changes next to nothing."""
    import torch
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(1)
    config = LoraConfig(r=2, target_modules=list(targets), task_type="CAUSAL_LM")
    model = get_peft_model(load_base_model(base, "float32", device="cpu"), config)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=strength)
    model.save_pretrained(folder)
    return folder


def edit_json(path: Path, **changes: object) -> None:
    """Change keys of a JSON file; a value of None removes the key."""
    settings = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: value for key, value in settings.items() if value is not None}))
