"""For any sequence of faults the ledger balances, budgets hold, and what was accepted lands once."""

import asyncio
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from po_assets.errors import UserError
from po_assets.teacher.client import Fault, Reply, TeacherClient, Usage
from po_assets.teacher.run import run_batch
from po_assets.text import Progress
from po_assets_tests.teacher.scenes import ACCEPTED, BROKEN_YAML, NO_REVIEW, TOO_THIN, Scene, assert_sound, llm

BILL = Usage(900, 400)
REPLIES = [
    Reply(ACCEPTED, "stop", usage=BILL),
    Reply(ACCEPTED, "stop"),
    Reply(TOO_THIN, "stop", usage=BILL),
    Reply(NO_REVIEW, "stop", usage=BILL),
    Reply(BROKEN_YAML, "stop", usage=BILL),
    Reply("\ud800", "stop", usage=BILL),
    Reply("", "stop", refusal="no", usage=BILL),
    Reply("", "content_filter", usage=BILL),
    Reply(ACCEPTED[:50], "length", usage=BILL),
    Reply(ACCEPTED[:50], fault=Fault("connection lost", "x", cut=True, again=True)),
    Reply(fault=Fault("time-out", "x", again=True)),
    Reply(fault=Fault("rate limited (429)", "x", again=True, wait=0.0, free=True)),
    Reply(fault=Fault("rate limited (429)", "x", again=True, wait=0.001, free=True)),
    Reply(fault=Fault("server error (500)", "x", again=True, free=True)),
    Reply(fault=Fault("not a chat completion", "x", again=True)),
    Reply(fault=Fault("request refused (400)", "x", free=True)),
    Reply(fault=Fault("rate limited (429)", "x", again=True, wait=9_999.0, free=True)),
    Reply(fault=Fault("key refused (401)", "x", stops=True, free=True)),
]


class Scripted(TeacherClient):
    """Replies in turn, then good answers; remembers what it was asked."""

    def __init__(self, script: list[int]) -> None:
        self._script = script
        self.asked: list[str] = []

    async def ask(self, messages: list[dict[str, str]], name: str = "") -> Reply:
        """The next reply of the script."""
        number = len(self.asked)
        self.asked.append(messages[-1]["content"].split("\n\nReminder:")[0])
        await asyncio.sleep(0)
        return REPLIES[self._script[number]] if number < len(self._script) else REPLIES[0]

    async def close(self) -> None:
        """Nothing to give back."""


def run(scene: Scene, client: Scripted, teacher: dict[str, Any], plan: dict[str, Any]) -> None:
    llm_ = llm("http://x/v1", **teacher, retry_wait_seconds=0.0)
    try:
        run_batch(llm_, scene.plan(**plan), scene.layout, Progress(scene.said.append), client)
    except UserError:
        assert scene.report.stop_reason == "outage"


@settings(max_examples=40, deadline=None)
@given(
    script=st.lists(st.integers(0, len(REPLIES) - 1), max_size=25),
    concurrency=st.integers(1, 4),
    retries=st.integers(0, 2),
    tries=st.integers(1, 3),
    max_rows=st.none() | st.integers(0, 6),
    max_cost=st.none() | st.floats(0, 0.2),
)
def test_for_any_sequence_of_faults_the_ledger_balances(  # noqa: PLR0917
    script: list[int], concurrency: int, retries: int, tries: int, max_rows: int | None, max_cost: float | None
) -> None:
    """After the run and after resuming it: every request in the ledger, none over budget, every accepted row once."""
    teacher = {"concurrency": concurrency, "retries": retries, "max_output_tokens": 1000}
    with tempfile.TemporaryDirectory() as folder:
        scene, client = Scene(Path(folder), payloads=5), Scripted(script)
        for plan in ({"max_rows": max_rows, "max_cost": max_cost}, {}):
            run(scene, client, teacher, {"tries": tries, **plan})
            ledger = scene.ledger
            assert len(ledger) == len(client.asked) == scene.report.requests
            assert_sound(scene.layout)
            accepted = Counter(row["payload"] for row in ledger if row["outcome"] == "accepted")
            assert set(accepted.values()) <= {1}
            for key in accepted:  # nothing is asked about a payload that has its row
                assert [row["outcome"] for row in ledger if row["payload"] == key][-1] == "accepted"
            landed = Counter(scene.landed_concepts)
            assert set(landed.values()) <= {1}
            if scene.report.stop_reason != "outage":
                assert landed.total() == len(accepted)
            assert sum(row["cost"] for row in ledger) == pytest.approx(scene.report.cost)
