"""Kill -9 at many moments: nothing that was answered is asked again, every request is accounted for, all rows land once."""

from collections import Counter
from pathlib import Path

import pytest

from po_assets_tests.processes import assert_killed
from po_assets_tests.teacher.crash_driver import start
from po_assets_tests.teacher.scenes import Scene, llm, payload
from po_assets_tests.teacher.teacher_server import Asked, Does, Teacher, teacher
from po_assets_tests.teacher.test_journal import attempts_in

PAYLOADS = 8


@pytest.fixture
def scene(tmp_path: Path) -> Scene:
    return Scene(tmp_path, PAYLOADS)


def answered_on_disk(scene: Scene) -> Counter[str]:
    """Requests for each concept whose answer has been kept, as they were asked until now."""
    return Counter(
        attempt.concept
        for path in scene.layout.root.glob("teacher_llm/*/journal.sqlite")
        for attempt in attempts_in(Path(str(path)))
        if attempt.answered_at
    )


def assert_resumes(scene: Scene, server: Teacher) -> None:
    """The next run ends with every row landed once, nothing paid for twice but what the crash took with it."""
    kept, before = answered_on_disk(scene), server.by_concept
    for rows in scene.landed.values():  # what can be seen is whole
        assert len(rows) == PAYLOADS
    report = scene.run(llm(server.url))
    assert report.accepted == PAYLOADS
    assert sorted(scene.landed_concepts) == sorted(payload(n).concept for n in range(1, PAYLOADS + 1))
    assert len(scene.landed) == 1
    for concept in kept:
        assert server.by_concept[concept] == before[concept], "it was answered and kept, and asked again"
    interrupted = Counter(row["concept_id"] for row in scene.ledger if row["reason"] == "interrupted")
    names = {payload(n).concept: payload(n).concept_id for n in range(1, PAYLOADS + 1)}
    for concept, times in server.answered.items():
        assert times <= 1 + interrupted[names[concept]], "it was paid for twice without a crash to blame"
    # Every request that reached the teacher has its row; a row more at most is a request that never left.
    assert len(server.asked) <= len(scene.ledger) <= len(server.asked) + interrupted.total()


@pytest.mark.parametrize(
    ("moment", "at"),
    [
        ("before a request is noted", 3),
        ("in the middle of keeping an answer", 1),
        ("in the middle of keeping an answer", 2),  # those that come together are kept together
        ("when an answer is on disk", 1),
        ("when an answer is on disk", 8),
        ("when a landing is announced", 1),
        ("while the file is written", 1),
        ("when the file has landed", 1),
        ("before the ledger is written", 1),
    ],
)
def test_killed_at_any_moment_the_batch_resumes(scene: Scene, moment: str, at: int) -> None:
    """From the journal, and with the landing that was under way."""
    with teacher() as server:
        assert_killed(start(scene, server.url, moment, at))
        assert_resumes(scene, server)


@pytest.mark.parametrize("number", [1, 4, 7])
@pytest.mark.parametrize("answered", [False, True])
def test_killed_while_the_teacher_answers_the_batch_resumes(scene: Scene, number: int, *, answered: bool) -> None:
    """Before the answer is sent, or the moment it is."""

    def does(asked: Asked) -> Does:
        if asked.number != number:
            return Does(delay=0.02)
        return Does(after=process.kill) if answered else Does(before=process.kill)

    with teacher(does) as server:
        process = start(scene, server.url)
        assert_killed(process)
        assert_resumes(scene, server)
