"""Rows per minute from a teacher of fixed latency: one request at a time against many side by side.

Run: `python -m benchmarks.teacher_batch [--latency 1.0] [--concurrency 1 8 32] [--rounds 10]`. The teacher is a small
server in a process of its own that answers every request after the same time, whatever else it is asked; so the best
that can be had is concurrency times the rate of one at a time, and what is lost to that is this project's own work:
journal with fsync, validation, scoring, rate limits, budget.

* `by hand`: the loop of the manual process; `openai.OpenAI`, one request after the other, answers parsed and scored,
  written at the end.
* `teacher_batch`: the whole run as the asset makes it, from an empty journal to the landed file.
"""

import argparse
import asyncio
import json
import re
import sys
import tempfile
import time
from multiprocessing import Process
from pathlib import Path
from socket import socket
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from upath import UPath

from benchmarks.machine import machine
from po_assets.dag import Artifacts
from po_assets.product_owner import format_answer, parse_answer, score_product_owner, validate_answer
from po_assets.product_owner.prompts import teacher_messages
from po_assets.serving.protocol import choice, event, record
from po_assets.serving.server import listen
from po_assets.storage import Layout
from po_assets.teacher.payloads import generate_payloads
from po_assets.teacher.run import run_batch
from po_assets.teacher.settings import BatchPlan, TeacherLLM
from po_assets.text import Progress

MODEL = "fixed-latency"
_ID = re.compile(r"- id: (\w+)")
_VISION = """\
product_name: Product
product_summary: A product that does what its concept asks for, written at such length that it counts as full.
target_users:
- Staff
- Customers
value_proposition:
- Less waiting
- Fewer mistakes
key_capabilities:
- List
- Book
non_goals:
- Sell fuel
success_metrics:
- 30 percent less waiting
- 80 percent book ahead
last_updated: '2026-05-29'"""
_REVIEW = """\
status: aligned
summary:
- Every need has a requirement
- Nothing reaches into what is excluded
requirements_alignment:
  aligned:
{aligned}
  gaps: []
  conflicts: []
recommended_actions:
- Show FR001 in an early draft
- Test it with real data before the pilot
narrative: The requirements cover what the product must do and stay clear of what it excludes. Work can begin."""


def main() -> int:
    """Measure and print a table; 1 when the goal is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--latency", type=float, default=1.0, help="seconds that the teacher takes for every answer")
    parser.add_argument("--concurrency", type=int, nargs="*", default=[1, 8, 32])
    parser.add_argument("--rounds", type=int, default=10, help="answers per worker")
    arguments = parser.parse_args()
    listening = listen("127.0.0.1", 0)
    server = Process(target=_serve, args=(listening, arguments.latency), daemon=True)
    server.start()
    url = f"http://127.0.0.1:{listening.getsockname()[1]}/v1"
    try:
        alone = _by_hand(url, arguments.rounds)
        print(f"{machine()}; latency {arguments.latency:g} s, {arguments.rounds} answers per worker")
        print(f"{'way':<22} {'rows':>6} {'rows/min':>9} {'of concurrency x by hand':>25}")
        print(f"{'by hand':<22} {arguments.rounds:>6} {alone:>9.1f} {'100 %':>25}")
        missed = 0
        for concurrency in arguments.concurrency:
            rows = concurrency * arguments.rounds
            rate = _batch(url, concurrency, rows)
            share = rate / (concurrency * alone)
            missed += share < 0.9
            print(f"{f'teacher_batch, {concurrency:>3}':<22} {rows:>6} {rate:>9.1f} {share:>23.1%}")
        print("goal: at least 90 % of concurrency x by hand:", "missed" if missed else "met")
    finally:
        server.terminate()
        server.join()
    return int(missed > 0)


def _by_hand(url: str, count: int) -> float:
    """Rows per minute of the manual process."""
    from openai import OpenAI

    client = OpenAI(base_url=url, api_key="none")
    wanted = list(generate_payloads(count, seed=1))
    rows = []
    started = time.perf_counter()
    for payload in wanted:
        messages = teacher_messages(payload.concept, payload.requirements_yaml)
        completion = client.chat.completions.create(model=MODEL, messages=messages)  # type: ignore[arg-type]
        answer = parse_answer(completion.choices[0].message.content or "")
        assert validate_answer(answer.vision_yaml, answer.review_yaml)
        score = score_product_owner(payload.requirements_yaml, answer.vision_yaml or "", answer.review_yaml or "")
        rows.append(json.dumps({"concept": payload.concept, "score": score.total}))
    seconds = time.perf_counter() - started
    client.close()
    return len(rows) / seconds * 60


def _batch(url: str, concurrency: int, rows: int) -> float:
    """Rows per minute of a whole run, landing included."""
    with tempfile.TemporaryDirectory() as folder:
        layout = Layout(UPath(folder))
        layout.eval_cases.parent.mkdir(parents=True)
        layout.eval_cases.write_bytes(Artifacts().layout.eval_cases.read_bytes())
        plan = BatchPlan(generate=rows, seed=1)
        teacher = TeacherLLM(base_url=url, model=MODEL, api_key_variable="", concurrency=concurrency)
        started = time.perf_counter()
        report = run_batch(teacher, plan, layout, Progress(lambda _line: None))
        seconds = time.perf_counter() - started
        landed = Path(folder) / "incoming" / report.landed_file
        assert report.accepted == rows == len(landed.read_bytes().splitlines())
    return rows / seconds * 60


def _serve(listening: socket, latency: float) -> None:
    """Answer every request after `latency` seconds, with a review that names the ids it was asked about."""

    async def answer(request: Request) -> Response:
        arrived = time.perf_counter()
        made = _answer(await request.json())
        await asyncio.sleep(latency - (time.perf_counter() - arrived))
        return made

    app = Starlette(routes=[Route("/v1/chat/completions", answer, methods=["POST"])])
    uvicorn.Server(uvicorn.Config(app, log_level="warning")).run(sockets=[listening])


def _answer(body: dict[str, Any]) -> Response:
    ids = _ID.findall(body["messages"][-1]["content"])
    aligned = "\n".join(f"  - {name} serves the vision" for name in ids)
    text = format_answer(_VISION, _REVIEW.format(aligned=aligned))
    usage = {"prompt_tokens": 900, "completion_tokens": 300, "total_tokens": 1200}
    if not body.get("stream"):
        message = {"role": "assistant", "content": text}
        choices = [{"index": 0, "message": message, "finish_reason": "stop"}]
        return JSONResponse(record("chat.completion", MODEL) | {"choices": choices, "usage": usage})
    # Pieces of about a token, as servers send them: reading them is part of the client's work.
    pieces = [choice({"content": text[start : start + 4]}) for start in range(0, len(text), 4)]
    head = record("chat.completion.chunk", MODEL)
    events = [event(head | one) for one in (*pieces, choice({}, "stop"), {"choices": [], "usage": usage})]
    return Response(b"".join([*events, b"data: [DONE]\n\n"]), media_type="text/event-stream")


if __name__ == "__main__":
    sys.exit(main())
