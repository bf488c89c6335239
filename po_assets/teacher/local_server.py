"""`python -m po_assets.teacher.local_server`: an OpenAI-compatible server in front of this project's own models.

For trying `teacher_batch` without a key or network: it answers /v1/chat/completions with the embedded base model (or
any other, with or without an adapter), through the same engine as the evaluation. Requests that wait are answered side
by side. The answers are as good as the model: the embedded one was never taught the task.
"""

import argparse
import asyncio
import contextlib
import json
import socket
import sys
import time
import uuid
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from po_assets.errors import UserError
from po_assets.evaluation.settings import Decoding
from po_assets.product_owner import requirement_entries, split_prompt

if TYPE_CHECKING:
    from starlette.applications import Starlette
    from starlette.requests import Request as HttpRequest
    from starlette.responses import Response

    from po_assets.evaluation.answers import AnsweringModel

_GATHER_SECONDS = 0.05
"""So long the first request of a batch waits for company."""
_KEEP_ALIVE_SECONDS = 10.0


@dataclass
class _Waiting:
    """A question that waits for its answer."""

    prompt: str
    grammar: str | None
    decoding: Decoding
    seed: int
    answer: "asyncio.Future[_Answered]" = field(default_factory=lambda: asyncio.get_running_loop().create_future())


@dataclass(frozen=True)
class _Answered:
    text: str
    finish_reason: str
    prompt_tokens: int
    completion_tokens: int


class Generator:
    """Answers questions with one model, several side by side."""

    def __init__(self, answering: "AnsweringModel", name: str, *, constrained: bool, batch_size: int = 8) -> None:
        self.name = name
        self._answering, self._constrained, self._batch_size = answering, constrained, batch_size
        self._waiting: asyncio.Queue[_Waiting] = asyncio.Queue()

    async def ask(self, prompt: str, max_tokens: int, temperature: float, seed: int) -> _Answered:
        """The model's answer; with a grammar when it is a Product Owner prompt and the server was started so."""
        decoding = Decoding(mode="free", max_new_tokens=max_tokens, temperature=temperature, batch_size=1)
        waiting = _Waiting(prompt, self._grammar(prompt) if self._constrained else None, decoding, seed)
        await self._waiting.put(waiting)
        return await waiting.answer

    async def serve(self) -> None:
        """Answer what waits, batch by batch, without end."""
        while True:
            batch = [await self._waiting.get()]
            await asyncio.sleep(_GATHER_SECONDS)
            while len(batch) < self._batch_size and not self._waiting.empty():
                batch.append(self._waiting.get_nowait())
            # Rows of one batch share their decoding; what asks for another one comes next.
            while batch:
                alike = [one for one in batch if one.decoding == batch[0].decoding]
                batch = [one for one in batch if one not in alike]
                await self._answer(alike)

    async def _answer(self, batch: list[_Waiting]) -> None:
        loop = asyncio.get_running_loop()

        def hand_over(waiting: _Waiting, answered: _Answered) -> None:
            if not waiting.answer.done():  # the client may be gone
                waiting.answer.set_result(answered)

        def generate() -> None:
            for waiting, answered in self._generate(batch):
                loop.call_soon_threadsafe(hand_over, waiting, answered)

        try:
            await asyncio.to_thread(generate)
        except Exception as error:  # noqa: BLE001 - one bad request must not end the server
            for waiting in batch:
                if not waiting.answer.done():
                    waiting.answer.set_exception(RuntimeError(f"{type(error).__name__}: {error}"))

    def _generate(self, batch: Sequence[_Waiting]) -> Iterator[tuple[_Waiting, _Answered]]:
        from po_assets.evaluation.generate import GrammarConstraint, Request, complete_batch, grammar_tokenizer

        model, chat = self._answering.model, self._answering.chat
        constrained = any(waiting.grammar for waiting in batch)
        tokenizer = grammar_tokenizer(chat.tokenizer, int(model.config.vocab_size)) if constrained else None
        requests = [
            Request(
                key=str(number),
                prompt_ids=chat.prompt_ids(waiting.prompt),
                constraint=GrammarConstraint(tokenizer, waiting.grammar) if tokenizer and waiting.grammar else None,
                seed=waiting.seed,
            )
            for number, waiting in enumerate(batch)
        ]
        room = int(getattr(model.config, "max_position_embeddings", 1 << 30))
        longest = max(len(request.prompt_ids) for request in requests)
        if longest >= room:
            raise ValueError(f"the prompt has {longest:,} tokens, the model's context is {room:,}")
        decoding = batch[0].decoding.with_values(max_new_tokens=min(batch[0].decoding.max_new_tokens, room - longest))
        for completion in complete_batch(model, requests, decoding, self._answering.eos_ids):
            number = int(completion.key)
            yield (
                batch[number],
                _Answered(
                    chat.answer_text(completion.token_ids),
                    completion.finish_reason,
                    len(requests[number].prompt_ids),
                    len(completion.token_ids),
                ),
            )

    @staticmethod
    def _grammar(prompt: str) -> str | None:
        from po_assets.product_owner.grammar import answer_grammar

        requirements = split_prompt(prompt).requirements_yaml
        entries = requirement_entries(requirements) if requirements else []
        return answer_grammar([entry.id for entry in entries if entry.id]) if entries else None


def make_app(generator: Generator) -> "Starlette":
    """The server: /v1/models and /v1/chat/completions, streamed or whole."""
    from starlette.applications import Starlette
    from starlette.responses import JSONResponse, StreamingResponse
    from starlette.routing import Route

    async def models(_request: "HttpRequest") -> "Response":
        return JSONResponse({"object": "list", "data": [{"id": generator.name, "object": "model"}]})

    async def completions(request: "HttpRequest") -> "Response":
        try:
            body = json.loads(await request.body())
            prompt, options = _read_question(body)
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            return _refusal(JSONResponse, 400, f"the request cannot be read: {error}")
        asked = asyncio.create_task(generator.ask(prompt, **options))
        if body.get("stream"):
            return StreamingResponse(_stream(asked, generator.name), media_type="text/event-stream")
        try:
            answered = await asked
        except RuntimeError as error:
            return _refusal(JSONResponse, 500, str(error))
        message = {"role": "assistant", "content": answered.text}
        choice = {"index": 0, "message": message, "finish_reason": answered.finish_reason}
        return JSONResponse(
            _record("chat.completion", generator.name) | {"choices": [choice], "usage": _usage(answered)}
        )

    @contextlib.asynccontextmanager
    async def lifespan(_app: "Starlette") -> AsyncIterator[None]:
        serving = asyncio.create_task(generator.serve())
        yield
        serving.cancel()

    return Starlette(
        routes=[Route("/v1/models", models), Route("/v1/chat/completions", completions, methods=["POST"])],
        lifespan=lifespan,
    )


def _refusal(make: Callable[..., "Response"], status: int, message: str) -> "Response":
    return make({"error": {"message": message, "type": "invalid_request_error", "code": None}}, status_code=status)


def _read_question(body: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """The user's last message and how to answer it; the models served here know no system message."""
    turns = [message["content"] for message in body["messages"] if message["role"] == "user"]
    if not turns or not isinstance(turns[-1], str):
        raise ValueError("messages hold no user message that is text")
    limit = body.get("max_completion_tokens") or body.get("max_tokens") or 768
    options = {"max_tokens": int(limit), "temperature": float(body.get("temperature") or 0.0)}
    if options["max_tokens"] < 1 or options["temperature"] < 0:
        raise ValueError(f"max_tokens is {limit} and temperature {options['temperature']}")
    return turns[-1], options | {"seed": int(body.get("seed") or 0)}


async def _stream(asked: "asyncio.Task[_Answered]", model: str) -> AsyncIterator[bytes]:
    """The answer as events, in one piece when it is whole; a comment line every few seconds until then."""
    while not asked.done():
        await asyncio.wait([asked], timeout=_KEEP_ALIVE_SECONDS)
        if not asked.done():
            yield b": still writing\n\n"
    try:
        answered = asked.result()
    except RuntimeError as error:
        yield _event({"error": {"message": str(error)}})
        return
    record = _record("chat.completion.chunk", model)
    yield _event(record | {"choices": [{"index": 0, "delta": {"role": "assistant", "content": answered.text}}]})
    yield _event(record | {"choices": [{"index": 0, "delta": {}, "finish_reason": answered.finish_reason}]})
    yield _event(record | {"choices": [], "usage": _usage(answered)})
    yield b"data: [DONE]\n\n"


def _event(record: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps(record).encode() + b"\n\n"


def _record(kind: str, model: str) -> dict[str, Any]:
    return {"id": f"chatcmpl-{uuid.uuid4().hex}", "object": kind, "created": int(time.time()), "model": model}


def _usage(answered: _Answered) -> dict[str, int]:
    return {
        "prompt_tokens": answered.prompt_tokens,
        "completion_tokens": answered.completion_tokens,
        "total_tokens": answered.prompt_tokens + answered.completion_tokens,
    }


def main(arguments: list[str] | None = None) -> None:
    """Serve until interrupted."""
    parser = argparse.ArgumentParser(prog="python -m po_assets.teacher.local_server", description=__doc__)
    parser.add_argument("--model", help="model folder or Hub id instead of the profile's model")
    parser.add_argument("--adapter", type=Path, help="LoRA adapter folder, such as artifacts/models/current")
    parser.add_argument("--free", action="store_true", help="no grammar: the model alone keeps to the answer's form")
    parser.add_argument("--port", type=int, default=8001, help="0 takes a free one (default: %(default)s)")
    parser.add_argument("--batch-size", type=int, default=8, help="answers written side by side (default: 8)")
    options = parser.parse_args(arguments)
    import uvicorn

    generator = _load(options)
    listening = socket.create_server(("127.0.0.1", options.port))
    host, port = listening.getsockname()[:2]
    sys.stdout.write(f"{generator.name} answers at http://{host}:{port}/v1\n")
    sys.stdout.flush()
    server = uvicorn.Server(uvicorn.Config(make_app(generator), log_level="warning"))
    server.run(sockets=[listening])


def _load(options: argparse.Namespace) -> Generator:
    from po_assets.dag import Artifacts
    from po_assets.evaluation.answers import load_baseline, load_student
    from po_assets.model import BaseModel, ensure_base_model

    try:
        spec = BaseModel(base_model=options.model).resolved()
        folder = ensure_base_model(spec, Artifacts().layout)
    except UserError as error:
        sys.exit(str(error))
    adapter = options.adapter
    answering = load_student(folder, spec, adapter) if adapter else load_baseline(folder, spec)
    name = f"{Path(spec.name).name}{'+' + adapter.name if adapter else ''}"
    return Generator(answering, name, constrained=not options.free, batch_size=options.batch_size)


if __name__ == "__main__":
    main()
