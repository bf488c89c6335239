"""The local server speaks the protocol, whole and streamed, and a batch through it ends in the ledger."""

import asyncio
import contextlib
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from po_assets.teacher.prompt import messages_for
from po_assets.teacher.replies import Reply

from po_assets.product_owner import parse_answer
from po_assets.teacher.client import TeacherClient
from po_assets.teacher.local_server import Generator, make_app
from po_assets.teacher.settings import Endpoint
from po_assets_tests.model.tiny_model import make_tiny_model
from po_assets_tests.teacher.scenes import Scene, llm, payload

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def answering(tmp_path_factory: pytest.TempPathFactory) -> Any:
    from po_assets.evaluation.answers import load_baseline
    from po_assets.model import BaseModel

    folder = make_tiny_model(tmp_path_factory.mktemp("model") / "tiny", context=8192)
    return load_baseline(folder, BaseModel(base_model=str(folder)).resolved())


@contextlib.contextmanager
def served(generator: Generator) -> Iterator[str]:
    listening = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(make_app(generator), log_level="error"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}/v1"
    finally:
        server.should_exit = True
        thread.join(20)


def ask(url: str, count: int = 1, **options: Any) -> list[Reply]:
    async def all_at_once() -> list[Reply]:
        client = TeacherClient(Endpoint(url, "tiny", max_output_tokens=40, **options), "none")
        try:
            return await asyncio.gather(*(client.ask(messages_for(payload(n))) for n in range(count)))
        finally:
            await client.close()

    return asyncio.run(all_at_once())


def test_answers_are_the_same_streamed_whole_and_side_by_side(answering: Any) -> None:
    """With the tokens that they took; an answer at its limit says so."""
    with served(Generator(answering, "tiny", constrained=False)) as url:
        streamed, whole = ask(url, 3), ask(url, 3, stream=False)
    assert streamed == whole
    for reply in streamed:
        assert reply.fault is None
        assert reply.model == "tiny"
        assert reply.usage
        assert reply.usage.prompt > 300
        assert (reply.usage.completion, reply.finish_reason) == (40, "length")


def test_with_the_grammar_every_answer_has_both_blocks(answering: Any) -> None:
    """Even those of a model with random weights: a batch through it parses, whatever it is worth."""
    with served(Generator(answering, "tiny", constrained=True)) as url:
        (reply,) = ask(url, token_limit_parameter="max_tokens", timeout_seconds=100)
        assert reply.text.startswith("```yaml VISION\nproduct_name: ")
    assert parse_answer(reply.text).missing  # 40 tokens are not enough


def test_a_batch_through_it_ends_in_the_ledger(answering: Any, tmp_path: Path) -> None:
    """Random weights: nothing is accepted, everything is accounted for."""
    scene = Scene(tmp_path, payloads=3)
    with served(Generator(answering, "tiny", constrained=False)) as url:
        report = scene.run(llm(url, model="tiny", max_output_tokens=30))
    assert (report.payloads, report.given_up, report.requests) == (3, 3, 3)
    assert {row["reason"] for row in scene.ledger} <= {"token limit", "block missing"}


def test_what_it_cannot_read_or_answer_is_refused_in_words(answering: Any) -> None:
    """And it goes on serving."""
    with served(Generator(answering, "tiny", constrained=False)) as url:
        faults = [ask(url, extra_body=extra)[0].fault for extra in ({"temperature": -1}, {"max_completion_tokens": -5})]
        assert ask(url)[0].fault is None
    assert [fault.reason for fault in faults if fault] == ["request refused (400)"] * 2


def test_a_prompt_longer_than_the_context_is_an_error_not_a_cut(tmp_path: Path) -> None:
    """In a stream it comes as an error event."""
    from po_assets.evaluation.answers import load_baseline
    from po_assets.model import BaseModel

    folder = make_tiny_model(tmp_path / "short", context=256)
    answering = load_baseline(folder, BaseModel(base_model=str(folder), max_length=256).resolved())
    with served(Generator(answering, "short", constrained=False)) as url:
        (streamed,), (whole,) = ask(url), ask(url, stream=False)
    assert streamed.fault
    assert "the model's context is 256" in streamed.fault.detail
    assert whole.fault
    assert whole.fault.reason == "server error (500)"


def test_the_command_serves_a_model_folder(tmp_path: Path) -> None:
    """It says where, on a free port of this machine alone."""
    folder = make_tiny_model(tmp_path / "tiny", context=4096)
    command = [
        sys.executable,
        "-m",
        "po_assets.teacher.local_server",
        "--model",
        str(folder),
        "--port",
        "0",
        "--free",
    ]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=REPOSITORY) as process:
        try:
            assert process.stdout
            line = process.stdout.readline()
            assert line.startswith("tiny answers at http://127.0.0.1:")
            (reply,) = ask(line.split(" at ")[1].strip())
            assert reply.finish_reason == "length"
        finally:
            process.terminate()
