"""The settings of evaluation: every wrong one is named at once, and each is part of the digest."""

import pytest

from po_assets.errors import UserError
from po_assets.evaluation.settings import Decoding


def test_every_wrong_setting_is_named_at_once() -> None:
    """With its value and what it may be."""
    wrong = {"mode": "loose", "max_new_tokens": 0, "temperature": -1.0, "top_p": 0.0, "retries": -1}
    with pytest.raises(UserError, match="The decoding settings: 7 wrong settings") as error:
        Decoding(**wrong, no_repeat_ngram=2, batch_size=0)
    for text in ("mode is 'loose'", "max_new_tokens is 0", "temperature is -1.0", "top_p is 0.0", "retries is -1"):
        assert text in str(error.value)
    assert "no_repeat_ngram is 2; use 0 (off) or at least 4." in str(error.value)
    assert "batch_size is 0; it must be at least 1." in str(error.value)


def test_greedy_retries_are_refused() -> None:
    """They would give nearly the same answer again."""
    with pytest.raises(UserError, match="set a temperature"):
        Decoding(retries=2)


def test_every_setting_changes_the_digest() -> None:
    """A cached answer belongs to exactly one way of decoding; the free answers have theirs, and the report both."""
    base = Decoding(temperature=0.5)
    other = {"mode": "free", "temperature": 0.2, "top_p": 0.9, "max_new_tokens": 700, "no_repeat_ngram": 30}
    other |= {"address": "http://127.0.0.1:8000/v1"}
    changed = {name: base.with_values(**{name: other.get(name, 7)}) for name in Decoding.model_fields}
    assert len({settings.report_fingerprint() for settings in [base, *changed.values()]}) == 1 + len(changed)
    own = [settings.fingerprint() for name, settings in changed.items() if not name.startswith("free_")]
    assert len({base.fingerprint(), *own}) == len(changed) - 1


def test_the_free_answers_differ_by_grammar_and_limit_only() -> None:
    """So that the free rate says something about the same student."""
    settings = Decoding(free_max_new_tokens=500)
    free = settings.free()
    assert free.with_values(mode="constrained", max_new_tokens=settings.max_new_tokens) == settings
    assert free.max_new_tokens == 500


def test_the_manual_way_of_decoding_is_an_option() -> None:
    """Temperature 0.2, top-p 0.9, two retries, 1,200 tokens."""
    manual = Decoding(mode="free", temperature=0.2, top_p=0.9, retries=2, max_new_tokens=1200)
    assert manual.described() == (
        "free, temperature 0.2, top-p 0.9, at most 1,200 new tokens, no 20-token sequence twice, "
        "up to 2 retries with a reminder"
    )


def test_an_address_decides_the_fingerprint_only_where_it_is_given() -> None:
    """Answers that were given in this process stay valid; a wrong address is refused."""
    here, there = Decoding(), Decoding(address="http://127.0.0.1:8000/v1")
    assert "address" not in here.effective()
    assert here.fingerprint() != there.fingerprint()
    assert "by the server http://127.0.0.1:8000/v1" in there.described()
    with pytest.raises(UserError, match="address is 'localhost:8000'"):
        Decoding(address="localhost:8000")
