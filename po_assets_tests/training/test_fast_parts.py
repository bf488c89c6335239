"""Each part of the fast path against the plain computation that it replaces: same values, same gradients."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional

from po_assets.model.cpu.attention import BLOCK, rotary_causal_attention
from po_assets.model.cpu.training import LOSS_CHUNK, DropoutPool, LoraGroup, linear_cross_entropy, rms_norm

CLOSE = {"rtol": 1e-4, "atol": 1e-5}


def gradients(output: torch.Tensor, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
    torch.manual_seed(9)
    return torch.autograd.grad(output, inputs, torch.randn(output.shape))


def assert_all_close(ours: tuple[torch.Tensor, ...], theirs: tuple[torch.Tensor, ...]) -> None:
    for mine, reference in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, reference, **CLOSE)


def test_rms_norm_equals_autograd():
    """Value and gradient of the usual float32 implementation."""
    torch.manual_seed(0)
    x, weight = torch.randn(7, 24, requires_grad=True), torch.rand(24)
    ours = rms_norm(x, weight, 1e-5)
    plain = x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-5) * weight
    assert_all_close((ours, *gradients(ours, x)), (plain, *gradients(plain, x)))


@pytest.mark.parametrize("tokens", [1, 5, BLOCK, BLOCK + 1, 3 * BLOCK + 17])
@pytest.mark.parametrize(("heads", "key_heads"), [(6, 2), (4, 4), (3, 1)])
def test_attention_equals_rotary_and_scaled_dot_product_attention(tokens: int, heads: int, key_heads: int):
    """One block or many, with or without shared key heads."""
    from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

    torch.manual_seed(0)
    size = 8
    q, k, v = (torch.randn(tokens, n, size, requires_grad=True) for n in (heads, key_heads, key_heads))
    angles = torch.outer(torch.arange(tokens).float(), 10_000 ** (-torch.arange(0, size, 2) / size)).repeat(1, 2)
    cos, sin = angles.cos(), angles.sin()
    ours = rotary_causal_attention(q, k, v, cos, sin, 1 / math.sqrt(size))
    rows = (t.transpose(0, 1).unsqueeze(0) for t in (q, k, v))
    query, key, value = rows
    query, key = apply_rotary_pos_emb(query, key, cos.unsqueeze(0), sin.unsqueeze(0))
    plain = functional.scaled_dot_product_attention(query, key, value, is_causal=True, enable_gqa=True)
    plain = plain[0].transpose(0, 1)
    assert_all_close((ours, *gradients(ours, q, k, v)), (plain, *gradients(plain, q, k, v)))


def lora_layers(count: int, *, bias: bool) -> nn.ModuleList:
    from peft.tuners.lora import Linear, LoraConfig

    torch.manual_seed(1)
    layers = nn.ModuleList()
    for i in range(count):
        base = nn.Linear(12, 10 + i, bias=bias).requires_grad_(False)
        layer = Linear(base, "default", LoraConfig(), r=3, lora_alpha=6)
        nn.init.normal_(layer.lora_B["default"].weight)
        layers.append(layer)
    return layers


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("bias", [True, False])
def test_lora_group_equals_peft(count: int, bias: bool):
    """Outputs, the input's gradient and the gradients of every A and B."""
    layers = lora_layers(count, bias=bias)
    x = torch.randn(5, 12, requires_grad=True)
    parameters = [p for p in layers.parameters() if p.requires_grad]
    group = LoraGroup.of(list(layers))
    ours, plain = torch.cat(group(x, None), 1), torch.cat([layer(x) for layer in layers], 1)
    assert_all_close((ours, *gradients(ours, x, *parameters)), (plain, *gradients(plain, x, *parameters)))


def test_lora_group_with_dropout_equals_the_same_masks_applied_plainly():
    """Dropout acts on the input of A alone, forwards and backwards."""
    layers = lora_layers(2, bias=False)
    x = torch.randn(6, 12, requires_grad=True)
    group = LoraGroup.of(list(layers))
    mask = DropoutPool(0.4, 72, torch.float32, seed=5).window(6, 12)
    ours = torch.cat(group(x, mask), 1)
    assert 0 < (mask == 0).sum() < 72
    plain = torch.cat(
        [
            w.get_base_layer()(x) + (x * mask) @ a.t() @ b.t() * 2.0
            for w, a, b in zip(layers, group.a, group.b, strict=True)
        ],
        1,
    )
    inputs = (x, *group.a, *group.b)
    assert_all_close((ours, *gradients(ours, *inputs)), (plain, *gradients(plain, *inputs)))


def test_lora_group_sees_new_parameters_after_refresh():
    """The copies in the compute type are taken anew after a step, and only then."""
    layers = lora_layers(1, bias=False)
    group, x = LoraGroup.of(list(layers)), torch.randn(2, 12)
    before = group(x, None)[0].clone()
    with torch.no_grad():
        group.b[0].mul_(2)
    assert torch.equal(group(x, None)[0], before)
    group.refresh()
    torch.testing.assert_close(group(x, None)[0], layers[0](x), **CLOSE)


def test_dropout_sets_the_share_to_zero_and_keeps_the_mean():
    """P of the elements are 0, the others 1 / (1 - p)."""
    mask = DropoutPool(0.05, 400_000, torch.float32, seed=1).window(400, 1000)
    assert (mask == 0).float().mean().item() == pytest.approx(0.05, abs=0.002)
    assert mask.mean().item() == pytest.approx(1.0, abs=0.003)
    assert mask.unique().tolist() == pytest.approx([0.0, 1 / 0.95])


def test_dropout_windows_differ_and_follow_the_seed():
    """Each layer gets its own mask; the same seed gives the same ones again."""
    pools = [DropoutPool(0.5, 1000, torch.float32, seed=seed) for seed in (1, 1, 2)]
    first = [pool.window(10, 100).clone() for pool in pools]
    second = pools[0].window(10, 100)
    assert torch.equal(first[0], first[1])
    assert not torch.equal(first[0], first[2])
    assert not torch.equal(first[0], second)


@pytest.mark.parametrize("tokens", [1, LOSS_CHUNK, 2 * LOSS_CHUNK + 3])
def test_linear_cross_entropy_equals_logits_and_cross_entropy(tokens: int):
    """The weighted sum over tokens, and the hidden states' gradient, scaled by what comes from above."""
    torch.manual_seed(0)
    hidden, weight = torch.randn(tokens, 16, requires_grad=True), torch.randn(50, 16)
    targets, token_weights = torch.randint(0, 50, (tokens,)), torch.rand(tokens)
    ours = linear_cross_entropy(hidden, weight, targets, token_weights)
    plain = (functional.cross_entropy(hidden @ weight.t(), targets, reduction="none") * token_weights).sum()
    assert_all_close((ours, *gradients(ours, hidden)), (plain, *gradients(plain, hidden)))
