"""The decoding settings: every wrong one is named at once, and each is part of the digest."""

from dataclasses import fields, replace

import pytest

from po_assets.evaluation.settings import Decoding, DecodingSettings


def test_every_wrong_setting_is_named_at_once() -> None:
    """With its value and what it may be."""
    wrong = DecodingSettings(
        mode="loose", max_new_tokens=0, temperature=-1.0, top_p=0.0, retries=-1, no_repeat_ngram=2, batch_size=0
    )
    with pytest.raises(ValueError, match="the decoding settings are wrong") as error:
        wrong.decoding()
    for text in ("mode is 'loose'", "max_new_tokens is 0", "temperature is -1.0", "top_p is 0.0", "retries is -1"):
        assert text in str(error.value)
    assert "no_repeat_ngram is 2" in str(error.value)
    assert "batch_size is 0" in str(error.value)


def test_greedy_retries_are_refused() -> None:
    """They would give nearly the same answer again."""
    with pytest.raises(ValueError, match="set a temperature"):
        DecodingSettings(retries=2).decoding()


def test_every_setting_changes_the_digest() -> None:
    """A cached answer belongs to exactly one way of decoding."""
    base = Decoding()
    other = {"mode": "free", "temperature": 0.2, "top_p": 0.9}
    digests = {base.digest}
    for field in fields(Decoding):
        value = other.get(field.name, getattr(base, field.name))
        digests.add(replace(base, **{field.name: value if field.name in other else value + 1}).digest)
    assert len(digests) == 1 + len(fields(Decoding))


def test_the_free_answers_differ_by_grammar_and_limit_only() -> None:
    """So that the free rate says something about the same student."""
    settings = DecodingSettings(free_max_new_tokens=500)
    free = settings.free_decoding()
    assert replace(free, mode="constrained", max_new_tokens=4096) == settings.decoding()
    assert free.max_new_tokens == 500


def test_the_manual_way_of_decoding_is_an_option() -> None:
    """Temperature 0.2, top-p 0.9, two retries, 1,200 tokens."""
    manual = DecodingSettings(mode="free", temperature=0.2, top_p=0.9, retries=2, max_new_tokens=1200).decoding()
    assert manual.described() == (
        "free, temperature 0.2, top-p 0.9, at most 1,200 new tokens, no 20-token sequence twice, "
        "up to 2 retries with a reminder"
    )
