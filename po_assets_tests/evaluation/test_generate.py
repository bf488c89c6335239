"""The decode loop: equal to transformers' own generation, whatever shares the batch, and stopping where it should."""

from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from llguidance.numpy import apply_token_bitmask_inplace

from po_assets.evaluation.answering import AnsweringModel
from po_assets.evaluation.generate import (
    Completion,
    GrammarConstraint,
    Request,
    _choose,
    _masked,
    _Row,
    batches_by_length,
    complete_batch,
    grammar_tokenizer,
)
from po_assets.evaluation.settings import Decoding
from po_assets.model import load_base_model
from po_assets.model.cpu.decoding import ATTENTION, pack_linears, prepare_for_decoding
from po_assets.product_owner.grammar import answer_grammar
from po_assets_tests.evaluation.scenes import GOOD
from po_assets_tests.model.tiny_model import make_tiny_model

EOS = 1
PROMPTS = [[5, 9, 200, 31], [17, 4, 4, 80, 99, 120, 7], [40], [61, 62, 63, 64, 65, 66, 67, 68, 69, 70, 71, 72]]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = make_tiny_model(tmp_path_factory.mktemp("tiny"))

    def load() -> Any:
        model = load_base_model(folder, "float32", device="cpu")
        with torch.no_grad():
            for layer in model.model.layers:  # as initialized, attention hardly matters and one token repeats for ever
                for parameter in layer.parameters():
                    parameter.mul_(12)
        return model

    return load


def requests() -> list[Request]:
    return [Request(f"case-{index}", prompt, seed=index) for index, prompt in enumerate(PROMPTS)]


def answers(
    model: Any, asked: list[Request] | None = None, stops: Sequence[int] = (EOS,), **settings: Any
) -> dict[str, Completion]:
    decoding = Decoding(**{"mode": "free", "max_new_tokens": 40, "no_repeat_ngram": 0, **settings})
    return {done.key: done for done in complete_batch(model, asked or requests(), decoding, stops)}


def generated(model: Any, prompt: list[int]) -> list[int]:
    """What transformers' own `generate` answers to this prompt alone."""
    ids, ends = torch.tensor([prompt]), {"pad_token_id": EOS, "eos_token_id": EOS}
    answer: list[int] = model.generate(ids, max_new_tokens=150, do_sample=False, **ends)[0, len(prompt) :].tolist()
    return answer[: answer.index(EOS)] if EOS in answer else answer


@pytest.mark.parametrize("prepare", [lambda _model: None, prepare_for_decoding], ids=["as loaded", "prepared"])
def test_a_padded_batch_answers_as_generate_does_one_by_one(tiny: Any, prepare: Callable[[Any], Any]) -> None:
    """Padding, the block cache and the CPU's attention change no token."""
    expected = [generated(tiny(), prompt) for prompt in PROMPTS]
    assert min(len(set(tokens)) for tokens in expected) > 8  # varied enough to show a difference
    model = tiny()
    prepare(model)
    found = answers(model, max_new_tokens=150)
    assert [found[f"case-{index}"].token_ids for index in range(len(PROMPTS))] == expected


def test_rows_that_finish_leave_the_others_undisturbed(tiny: Any) -> None:
    """Some rows stop early (a token of their own answer is made to end it), the rest go on as if nothing happened."""
    model = tiny()
    prepare_for_decoding(model)
    full = {key: done.token_ids for key, done in answers(model).items()}
    stops = [full["case-1"][3], full["case-3"][20]]
    cut = answers(model, stops=stops)
    for key, tokens in full.items():
        ends = [index for index, token in enumerate(tokens) if token in stops]
        assert cut[key].token_ids == (tokens[: ends[0]] if ends else tokens)
        assert cut[key].finish_reason == ("stop" if ends else "length")


def test_the_prepared_model_is_as_exact_as_the_plain_one(tiny: Any) -> None:
    """It rounds in bfloat16 either way: both are about as far from float32."""
    ids = torch.tensor([PROMPTS[3]])
    exact = tiny()(ids).logits
    model = tiny().to(torch.bfloat16)
    plain = (model(ids).logits - exact).abs().max()
    done = prepare_for_decoding(model)
    assert model.config._attn_implementation == ATTENTION
    assert any("packed" in text for text in done)
    assert (model(ids).logits - exact).abs().max() < 1.5 * plain


def test_packing_leaves_other_modules_alone() -> None:
    """A subclass of Linear (PEFT's, bitsandbytes') computes something else and must stay."""

    class Special(torch.nn.Linear):
        pass

    model = torch.nn.Sequential(torch.nn.Linear(16, 32, dtype=torch.bfloat16), Special(32, 8, dtype=torch.bfloat16))
    states = torch.randn(3, 16, dtype=torch.bfloat16)
    before = model(states)
    assert pack_linears(model) == 1
    assert isinstance(model[1], Special)
    assert torch.equal(model(states), before)


def test_batches_are_by_length_and_the_same_whatever_the_order() -> None:
    """So that an interrupted evaluation forms the same remaining batches."""
    asked = requests()
    batches = [[request.key for request in batch] for batch in batches_by_length(asked, 3)]
    assert batches == [["case-3", "case-1", "case-0"], ["case-2"]]
    assert [[r.key for r in batch] for batch in batches_by_length(asked[::-1], 3)] == batches


class Fake:
    """A model whose logits are a function of the tokens so far of the one row that it answers."""

    device = torch.device("cpu")

    def __init__(self, rules: Callable[[list[int]], dict[int, float]]) -> None:
        self.rules, self.row = rules, list[int]()

    def __call__(self, input_ids: torch.Tensor, **_others: Any) -> Any:
        """Logits of the next token."""
        self.row += input_ids[0].tolist()
        logits = torch.zeros(1, 1, 12)
        for token, value in self.rules(self.row).items():
            logits[0, 0, token] = value
        return SimpleNamespace(logits=logits)


@pytest.mark.parametrize(("limit", "answer", "reason"), [(40, [5, 5], "stop"), (1, [5], "length")])
def test_an_answer_is_cut_at_the_limit_and_says_so(limit: int, answer: list[int], reason: str) -> None:
    """The end-of-sequence token never becomes part of an answer."""
    model = Fake(lambda row: {5: 1.0} if len(row) < 4 else {EOS: 1.0})
    done = answers(model, [Request("a", [3, 3])], max_new_tokens=limit)["a"]
    assert (done.token_ids, done.finish_reason) == (answer, reason)


def test_no_sequence_is_repeated_when_that_is_asked_for() -> None:
    """A model that goes in circles takes the next best token instead."""
    circle = {3: 4, 4: 5, 5: 6, 6: 3}
    model = Fake(lambda row: {circle.get(row[-1], 3): 2.0, 9: 1.0})
    tokens = answers(model, [Request("a", [6])], no_repeat_ngram=4, max_new_tokens=12)["a"].token_ids
    sequences = [tuple(tokens[start : start + 4]) for start in range(len(tokens) - 3)]
    assert 9 in tokens
    assert len(set(sequences)) == len(sequences)


def test_sampling_depends_on_the_requests_seed_alone(tiny: Any) -> None:
    """Not on the neighbours in the batch; top-p of almost nothing is greedy."""
    sampled = answers(tiny(), temperature=1.0)
    alone = answers(tiny(), [requests()[1]], temperature=1.0)
    assert alone["case-1"].token_ids == sampled["case-1"].token_ids
    other = answers(tiny(), [Request("case-1", PROMPTS[1], seed=99)], temperature=1.0)
    assert other["case-1"].token_ids != sampled["case-1"].token_ids
    narrow = answers(tiny(), temperature=1.0, top_p=1e-6)
    assert narrow["case-0"].token_ids == answers(tiny())["case-0"].token_ids


def test_an_empty_prompt_is_refused_by_name(tiny: Any) -> None:
    """Left padding alone would generate from nothing."""
    with pytest.raises(ValueError, match="no prompt tokens for case-0"):
        answers(tiny(), [Request("case-0", [])])


def test_the_computing_time_is_divided_among_the_answers(tiny: Any) -> None:
    """So that tokens a second can be derived from the answers; each pass says how many rows got a token."""
    steps: list[int] = []
    decoding = Decoding(mode="free", max_new_tokens=5)
    done = list(complete_batch(tiny(), requests(), decoding, [2], steps.append))
    assert sum(steps) == sum(len(answer.token_ids) for answer in done) == 5 * len(PROMPTS)
    assert all(answer.seconds > 0 for answer in done)


def only(permitted: list[int]) -> Mock:
    """A constraint that permits these of 512 tokens, wherever it stands; asking for all of them costs much."""
    bits = np.zeros(512, dtype=np.uint8)
    bits[permitted] = 1
    every = Mock(return_value=np.packbits(bits, bitorder="little"))
    return Mock(complete=False, permits=permitted.__contains__, permitted_bits=every)


@pytest.mark.parametrize("seed", range(20))
def test_the_best_permitted_token_is_that_of_the_whole_mask(seed: int) -> None:
    """Whether it is found among the likeliest or not, also where many tokens are equally likely."""
    random = np.random.default_rng(seed)
    logits = torch.from_numpy(random.integers(0, 400 if seed % 2 else 12, (3, 512))).to(torch.bfloat16)
    allowed = [random.choice(512, size, replace=False).tolist() for size in (300, 40, 1)]
    rows = [_Row(Request(str(i), [1], only(some))) for i, some in enumerate(allowed)]
    expected = [min(some, key=lambda token: (-float(logits[i, token]), token)) for i, some in enumerate(allowed)]
    assert _choose(logits, rows, Decoding(no_repeat_ngram=0)) == expected
    assert not rows[0].request.constraint.permitted_bits.called or not seed % 2


def test_the_masks_bits_are_the_grammars(answering: AnsweringModel) -> None:
    """As llguidance's own kernel reads them, for every token of the vocabulary and along a whole answer."""
    constraint, size = answering.constraint(answer_grammar(["FR001", "FR002", "NFR001", "C001"])), answering.vocabulary
    for token in answering.chat.piece_ids(GOOD)[:400]:
        own = np.zeros((1, size), dtype=np.float32)
        bits = constraint.permitted_bits()
        packed = np.zeros((size + 31) // 32 * 4, dtype=np.uint8)
        packed[: len(bits)] = bits
        apply_token_bitmask_inplace(own, packed.view(np.int32)[None])
        assert np.array_equal(constraint.permitted().numpy(), np.isfinite(own[0]))
        assert [constraint.permits(number) for number in range(5)] == constraint.permitted()[:5].tolist()
        constraint.advance(token)


@pytest.mark.parametrize("vocabulary", [260, 264, 288])
def test_rows_at_different_places_of_their_grammars_are_masked_together(
    answering: AnsweringModel, vocabulary: int
) -> None:
    """One in the middle of a key, one in a text, one without grammar; whatever the vocabulary's size."""
    tokenizer = answering.chat.tokenizer
    view = grammar_tokenizer(tokenizer, max(vocabulary, len(tokenizer)))
    forced, free = (GrammarConstraint(view, answer_grammar(["FR001"])) for _ in range(2))
    for token in answering.chat.piece_ids("```yaml VISION\nproduct_name: "):
        free.advance(token)
    rows = [_Row(Request("a", [1], forced)), _Row(Request("b", [1], free)), _Row(Request("c", [1]))]
    allowed = torch.isfinite(_masked(torch.zeros(3, view.vocab_size), rows, Decoding(no_repeat_ngram=0)))
    assert [torch.equal(allowed[i], one.permitted()) for i, one in enumerate((forced, free))] == [True, True]
    assert allowed[0].sum() == 1 < allowed[1].sum() < allowed[2].sum() == view.vocab_size
