"""What answers: the adapter merged into its base; or a real OpenAI-compatible server, this project's own."""

import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import uvicorn
from upath import UPath

from po_assets.errors import UserError
from po_assets.evaluation.answering import AnsweringModel, load_student, merged, served
from po_assets.evaluation.answers import AnswerCache, answer_cases
from po_assets.evaluation.settings import Decoding
from po_assets.model import BaseModel
from po_assets.serving.engine import Generated, OnText, Sampling, Turn
from po_assets.serving.server import listen, make_app
from po_assets_tests.evaluation.scenes import GOOD, cases
from po_assets_tests.model.tiny_model import make_tiny_model
from po_assets_tests.training.tiny_training import tiny_recipe, tiny_student

NAME = "po-student-0123456789ab"


class Student:
    """Answers every question well, and remembers how it was asked."""

    name, digest = NAME, "d" * 64

    def __init__(self) -> None:
        self.asked: list[tuple[Sequence[Turn], Sampling]] = []

    def prepare(self, turns: Sequence[Turn], sampling: Sampling) -> str:
        """The question's last words."""
        self.asked.append((turns, sampling))
        return turns[-1]["content"]

    def generate(self, question: str, on_text: OnText | None = None) -> Generated:
        """The same answer to all."""
        return Generated(GOOD, "stop", len(question), 123, 0.1)


@pytest.fixture
def student() -> Student:
    return Student()


@pytest.fixture
def address(student: Student) -> Iterator[str]:
    with listen("127.0.0.1", 0) as socket:
        server = uvicorn.Server(uvicorn.Config(make_app(student), log_level="error"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [socket]})
        thread.start()
        yield f"http://127.0.0.1:{socket.getsockname()[1]}/v1"
        server.should_exit = True
        thread.join(60)


def test_a_server_answers_all_cases(tmp_path: Path, student: Student, address: str) -> None:
    """With the case's prompt, the limit and the seed of the settings; what was answered is cached."""
    decoding = Decoding(mode="free", max_new_tokens=400, address=address, batch_size=3, temperature=0.5, seed=7)
    cache = AnswerCache(UPath(tmp_path), "model", decoding.fingerprint())
    answers = answer_cases(cases(5), decoding, cache, lambda: served(address, NAME), name="student")
    assert [(answer.case_id, answer.text, answer.tokens) for answer in answers] == [
        (case.case_id, GOOD, 123) for case in cases(5)
    ]
    assert sorted(turns[-1]["content"] for turns, _ in student.asked) == sorted(case.prompt for case in cases(5))
    assert {(how.max_tokens, how.temperature) for _, how in student.asked} == {(400, 0.5)}
    answer_cases(cases(5), decoding, cache, lambda: pytest.fail("asked again"), name="student")


def test_another_adapters_answers_are_not_taken(address: str) -> None:
    """The name holds the adapter's digest; a server that cannot load it is refused with what there is."""
    with pytest.raises(
        UserError, match=rf"has no model 'po-student-ffff', but {NAME}: .*--lora-modules po-student-ffff"
    ):
        served(address, "po-student-ffff", Path("adapter"))
    with pytest.raises(UserError, match=r"has no model 'Qwen/Qwen2.5-7B-Instruct'.*--served-model-name"):
        served(address, "Qwen/Qwen2.5-7B-Instruct")


def test_what_the_server_does_not_do_is_said(tmp_path: Path, address: str) -> None:
    """Ours takes no grammar from outside; nothing is scored as if it had."""
    decoding = Decoding(address=address)
    cache = AnswerCache(UPath(tmp_path), "model", decoding.fingerprint())
    with pytest.raises(UserError, match=r"does not answer: .*structured_outputs.*Answers that are finished are kept"):
        answer_cases(cases(2), decoding, cache, lambda: served(address, NAME))


def test_no_server_is_a_sentence() -> None:
    """With the way out."""
    with listen("127.0.0.1", 0) as socket:
        port = socket.getsockname()[1]
    with pytest.raises(UserError, match=r"cannot be asked: .*Start it, or leave address empty"):
        served(f"http://127.0.0.1:{port}/v1", NAME)


def test_an_adapter_is_merged_in_float32_layer_by_layer(tmp_path: Path) -> None:
    """Each merged weight is the sum in float32, rounded once; what was 16 bits is 16 bits again."""
    folder = make_tiny_model(tmp_path / "tiny")
    student = tiny_student(folder, tiny_recipe(folder, precision="bfloat16"))
    for name, parameter in student.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    layer = student.get_base_model().model.layers[1].mlp.up_proj
    expected = (layer.get_base_layer().weight.float() + layer.get_delta_weight("default")).bfloat16()
    assert expected.ne(layer.get_base_layer().weight).any()
    whole = merged(student)
    assert torch.equal(whole.model.layers[1].mlp.up_proj.weight, expected)
    assert {parameter.dtype for parameter in whole.parameters()} == {torch.bfloat16}
    assert not [name for name, _ in whole.named_parameters() if "lora" in name]


def test_a_gpu_without_room_is_not_taken_for_a_wrong_adapter(
    tmp_path: Path, answering: AnsweringModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The advice would be to train it anew."""

    def no_room(*_arguments: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    spec = BaseModel(base_model=str(tmp_path), quantization="none").resolved()
    cache = AnswerCache(UPath(tmp_path), "", "")
    monkeypatch.setattr("po_assets.evaluation.answering.load_base_model", lambda *_a, **_o: answering.model)
    monkeypatch.setattr("peft.PeftModel.from_pretrained", no_room)
    with pytest.raises(UserError, match=r"ran out while student answered.*nothing is trained anew"):
        answer_cases(cases(2), Decoding(), cache, lambda: load_student(tmp_path, spec, tmp_path), name="student")
