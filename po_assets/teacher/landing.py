"""Accepted answers as teacher rows, landed as one file in one step; the sensor takes it from there.

A landing is announced in the journal before the file appears and confirmed after: whatever a crash leaves undone is
done by the next run, with the same rows under the same name. No row lands twice.
"""

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import orjson
from upath import UPath

from po_assets.product_owner import METRIC_VERSION
from po_assets.storage import atomic_file, file_digest
from po_assets.teacher.journal import Journal, Landing
from po_assets.teacher.outcomes import Judged, judge
from po_assets.teacher.prompt import TEACHER_PROMPT_VERSION
from po_assets.teacher.settings import Endpoint

SOURCE = "teacher_llm"


def land(journal: Journal, incoming: UPath, accepted: Sequence[Judged], endpoint: Endpoint) -> Landing | None:
    """Land those of the accepted answers whose payloads have not landed yet, as one file; None when there are none."""
    already = landed_keys(journal)
    fresh: dict[str, Judged] = {}
    for judged in accepted:
        if judged.attempt.sent.key not in already:
            fresh.setdefault(judged.attempt.sent.key, judged)
    if not fresh:
        return None
    content = _content(list(fresh.values()), endpoint)
    digest = hashlib.sha256(content).hexdigest()
    landing = Landing(
        file=f"teacher_batch-{endpoint.slug}-{digest[:12]}.jsonl",
        sha256=digest,
        ids=tuple(judged.attempt.sent.id for judged in fresh.values()),
    )
    journal.landing(landing)
    _publish(journal, incoming, landing, content)
    return landing


def finish_landings(journal: Journal, incoming: UPath, endpoint: Endpoint) -> list[Landing]:
    """Publish what an earlier run announced and did not confirm; returns these landings."""
    contents = journal.contents
    unfinished = [landing for name, landing in contents.landings.items() if name not in contents.landed]
    for landing in unfinished:
        # They were accepted when they were announced: the present minimum score does not count.
        judged = [judge(contents.attempts[name], 0.0) for name in landing.ids if name in contents.attempts]
        _publish(journal, incoming, landing, _content([one for one in judged if one.answer], endpoint))
    return unfinished


def landed_keys(journal: Journal) -> set[str]:
    """The payloads whose rows have landed or are announced."""
    attempts = journal.contents.attempts
    ids = (name for landing in journal.contents.landings.values() for name in landing.ids)
    return {attempts[name].sent.key for name in ids if name in attempts}


def landing_row(judged: Judged, endpoint: Endpoint) -> dict[str, Any]:
    """An accepted answer in the format `teacher`, with where it comes from."""
    attempt, answer = judged.attempt, judged.answer
    if answer is None or attempt.done is None:
        raise ValueError(f"attempt {attempt.sent.id} has no answer that could land")
    payload, done = attempt.sent.payload, attempt.done
    named: Mapping[str, Any] = {"concept_id": payload.concept_id, "tier": payload.tier}
    return {
        **{name: value for name, value in named.items() if value is not None},
        "concept": payload.concept,
        "requirements_yaml": payload.requirements_yaml,
        "teacher_product_vision": answer.vision_yaml,
        "teacher_product_owner_review": answer.review_yaml,
        "score": judged.score,
        "metadata": {
            "source": SOURCE,
            "model": endpoint.model,
            "served_as": done.model[:200],  # as the server says, which may be anything
            "provider": endpoint.host,
            "answered_at": done.at,
            "input_digest": payload.key,
            "answer_digest": hashlib.sha256(done.text.encode("utf-8", "replace")).hexdigest(),
            "request": attempt.sent.id,
            "prompt_tokens": done.prompt_tokens,
            "completion_tokens": done.completion_tokens,
            "prompt_version": TEACHER_PROMPT_VERSION,
            "metric_version": METRIC_VERSION,
        },
    }


def _content(accepted: Sequence[Judged], endpoint: Endpoint) -> bytes:
    return b"".join(orjson.dumps(landing_row(judged, endpoint)) + b"\n" for judged in accepted)


def _publish(journal: Journal, incoming: UPath, landing: Landing, content: bytes) -> None:
    target = incoming / landing.file
    if not (target.exists() and file_digest(target) == landing.sha256):
        with atomic_file(target) as file:
            file.write(content)
    journal.landed(landing.file)
