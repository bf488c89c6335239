"""Settings: all wrong ones are named at once, and the key is none of them."""

import math

import pytest

from po_assets.errors import UserError
from po_assets.teacher.settings import BatchPlan, TeacherLLM, check_ready
from po_assets_tests.teacher.scenes import KEY, KEY_VARIABLE


def good(**changes: object) -> TeacherLLM:
    return TeacherLLM(**({"model": "m", "api_key_variable": ""} | changes))  # type: ignore[arg-type]


def test_every_wrong_setting_is_named_at_once() -> None:
    """One look at the message is enough to correct all of them."""
    teacher = {
        "base_url": "ftp://somewhere",
        "temperature": -1.0,
        "max_output_tokens": 0,
        "token_limit_parameter": "tokens",
        "extra_body": {"model": "other"},
        "timeout_seconds": 0,
        "concurrency": 0,
        "requests_per_minute": 0,
        "retries": -1,
        "retry_wait_seconds": math.inf,
        "price_per_million_input_tokens": -1,
    }
    plan = {"generate": 0, "tries": 0, "min_score": 1.5, "max_rows": -1, "max_tokens": -1, "max_cost": -0.5, "rows": 1}
    for settings, values in ((TeacherLLM, teacher), (BatchPlan, plan)):
        with pytest.raises(UserError, match=f"{len(values)} wrong settings") as caught:
            settings(**values)
        for name in values:
            assert name in str(caught.value), name


@pytest.mark.parametrize(
    "address", ["http://host:99999/v1", "http://host:port/v1", "http://[::1/v1", "https://host/v1/chat/completions"]
)
def test_an_address_that_cannot_be_asked_is_refused_by_its_name(address: str) -> None:
    """Not by the first request."""
    with pytest.raises(UserError, match=r"base_url is .*; give .* such as https://api\.openai\.com/v1"):
        good(base_url=address)


def test_what_only_the_run_can_know_is_named_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Model and key of the environment, and settings that do not go together."""
    monkeypatch.delenv(KEY_VARIABLE, raising=False)
    teacher = TeacherLLM(model=" ", api_key_variable=KEY_VARIABLE, temperature=0.0)
    with pytest.raises(UserError) as caught:
        check_ready(teacher, BatchPlan(tries=2, max_cost=5.0))
    for said in (
        "model is empty",
        f"variable {KEY_VARIABLE} is not set",
        "tries is 2 with temperature 0",
        "max_cost is 5.0, but both prices are 0",
    ):
        assert said in str(caught.value), said


def test_a_rate_limit_below_one_answer_is_refused() -> None:
    """Nothing could ever be sent."""
    with pytest.raises(UserError, match="tokens_per_minute is 100, less than one answer may have"):
        good(tokens_per_minute=100)


def test_a_key_in_another_place_is_refused_and_not_repeated() -> None:
    """People paste keys into the first field that says key; addresses are logged."""
    with pytest.raises(UserError, match="api_key_variable takes the variable's name, never the key") as pasted:
        check_ready(good(api_key_variable=KEY), BatchPlan())
    with pytest.raises(UserError, match="base_url carries a user, password or query") as logged:
        good(base_url=f"https://user:{KEY}@example.org/v1")
    assert KEY not in f"{pasted.value} {logged.value}"


@pytest.mark.parametrize("wrong", ["\n", "\x7f", "ü", "\u2011"])
def test_a_key_that_no_header_can_hold_is_refused_and_not_repeated(monkeypatch: pytest.MonkeyPatch, wrong: str) -> None:
    """Two keys in two lines, or a hyphen that a word processor made pretty."""
    monkeypatch.setenv(KEY_VARIABLE, f"{KEY}{wrong}{KEY}")
    with pytest.raises(
        UserError, match=f"the key in the environment variable {KEY_VARIABLE} holds a character that"
    ) as caught:
        check_ready(good(api_key_variable=KEY_VARIABLE), BatchPlan())
    assert KEY not in str(caught.value)


def test_only_what_decides_the_answers_decides_the_journal() -> None:
    """A raised limit, a new price or another pace must not pay for everything again."""

    def folder(**changes: object) -> str:
        return good(**changes).folder_name("1")

    same = folder()
    assert folder(max_output_tokens=9, concurrency=2, timeout_seconds=9, stream=False, retries=0) == same
    for change in (
        {"model": "n"},
        {"base_url": "http://other/v1"},
        {"temperature": 0.5},
        {"instructions": "Be kind."},
        {"extra_body": {"reasoning_effort": "low"}},
    ):
        assert folder(**change) != same, change


def test_environment_variables_set_the_defaults(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that a job can be launched without typing."""
    monkeypatch.setenv("PO_TEACHER_BASE_URL", "http://127.0.0.1:8001/v1")
    monkeypatch.setenv("PO_TEACHER_MODEL", "smollm")
    teacher = TeacherLLM()
    assert (teacher.base_url, teacher.model) == ("http://127.0.0.1:8001/v1", "smollm")
