"""What training and evaluation measured, sent to a tracker such as MLflow while it happens; off by default.

A tracker never stops a step: one that is down, refuses or is not installed costs one note. Another kind of tracker is a
class with the three methods of `Tracker` and a row in `TRACKERS`.
"""

import contextlib
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, ClassVar, Protocol
from urllib.parse import urlsplit

import dagster as dg
from pydantic import Field, field_validator

from po_assets.dag.settings import Settings
from po_assets.text import shown

URI_VARIABLE = "PO_TRACKING_URI"
_SECONDS, _RETRIES = "10", "1"
"""MLflow's client would by default wait minutes for a server that is down."""
_MOST_METRICS = 1_000
"""In one request, as MLflow's server allows."""
_PARAM_CHARACTERS = 500

Point = tuple[int, Mapping[str, float]]
"""A step, and what was measured after it."""


class Tracker(Protocol):
    """One run in a tracker; made with `(uri, experiment, name, key)`, found again by its key where that is known."""

    def params(self, values: Mapping[str, str]) -> None:
        """What was set."""

    def metrics(self, points: Sequence[Point]) -> None:
        """What was measured."""

    def end(self, *, finished: bool) -> None:
        """Nothing more comes."""


class MLflow:
    """A run on an MLflow tracking server; credentials are MLflow's own variables (`MLFLOW_TRACKING_TOKEN`, …)."""

    def __init__(self, uri: str, experiment: str, name: str, key: str) -> None:
        defaults = {"DISABLE_TELEMETRY": "true", "HTTP_REQUEST_TIMEOUT": _SECONDS, "HTTP_REQUEST_MAX_RETRIES": _RETRIES}
        defaults["SUPPRESS_PRINTING_URL_TO_STDOUT"] = "true"
        for variable, value in defaults.items():
            os.environ.setdefault(f"MLFLOW_{variable}", value)
        from mlflow import MlflowClient

        self._client = MlflowClient(tracking_uri=uri)
        known = self._client.get_experiment_by_name(experiment)
        place = known.experiment_id if known else self._client.create_experiment(experiment)
        # A step that was killed goes on in its run.
        runs = self._client.search_runs([place], f"tags.`po_assets.key` = '{key}'", max_results=1)
        tags = {"po_assets.key": key, "mlflow.runName": name, "mlflow.source.name": "po_assets"}
        self._run = runs[0].info.run_id if runs else self._client.create_run(place, tags=tags).info.run_id

    def params(self, values: Mapping[str, str]) -> None:  # noqa: D102
        from mlflow.entities import Param

        self._client.log_batch(self._run, params=[Param(name, value) for name, value in values.items()])

    def metrics(self, points: Sequence[Point]) -> None:  # noqa: D102
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        found = [Metric(name, value, now, step) for step, values in points for name, value in values.items()]
        for start in range(0, len(found), _MOST_METRICS):
            self._client.log_batch(self._run, metrics=found[start : start + _MOST_METRICS])

    def end(self, *, finished: bool) -> None:  # noqa: D102
        self._client.set_terminated(self._run, "FINISHED" if finished else "FAILED")


TRACKERS: dict[str, Callable[[str, str, str, str], Tracker]] = {"http": MLflow, "https": MLflow}
"""By the scheme of the URI."""


class Tracking(Settings):
    """Where metrics and settings of training and evaluation are sent besides Dagster."""

    noun: ClassVar[str] = "the settings of the resource tracking"
    without_effect: ClassVar[frozenset[str]] = frozenset({"uri", "experiment"})

    uri: str = Field(
        default_factory=lambda: os.environ.get(URI_VARIABLE) or "",
        validate_default=True,
        description="MLflow tracking server, such as http://localhost:5000. Empty: none. "
        f"{URI_VARIABLE} sets the default.",
    )
    experiment: str = Field(default="po_assets", min_length=1)
    """The experiment that the runs are put under."""

    @field_validator("uri")
    @classmethod
    def _is_known(cls, value: str) -> str:
        url = urlsplit(value)
        if url.username or url.password:  # not quoted: it would end up in logs
            raise ValueError("uri carries a user or password; set MLFLOW_TRACKING_USERNAME and …_PASSWORD instead.")
        if value and url.scheme not in TRACKERS:
            raise ValueError(
                f"uri is {shown(value)!r}; it must begin with {' or '.join(f'{scheme}://' for scheme in TRACKERS)}, "
                "as http://localhost:5000 does, or be empty."
            )
        return value

    @contextlib.contextmanager
    def run(self, context: dg.AssetExecutionContext, params: Mapping[str, Any]) -> Iterator["Tracked"]:
        """A tracked step; it exists in the tracker, with its params, from its first numbers on."""
        tracked = Tracked(self, context.asset_key.to_user_string(), context.run.run_id, context.log.info, params)
        try:
            yield tracked
        except BaseException:
            tracked.end(finished=False)
            raise
        tracked.end(finished=True)


class Tracked:
    """A step's line to its tracker; silent where none is set, and from the first failure on."""

    def __init__(
        self, settings: Tracking, asset: str, run_id: str, say: Callable[[str], None], params: Mapping[str, Any]
    ) -> None:
        self._params = {name: str(value)[:_PARAM_CHARACTERS] for name, value in params.items()}
        self._uri, self._experiment, self._say = settings.uri, settings.experiment, say
        self._name, self._key = f"{asset} {run_id[:8]}", f"{asset}/{run_id}"
        self._tracker: Tracker | None = None
        self._sent: set[int] = set()

    def metrics(self, points: Sequence[Point]) -> None:
        """Send what was measured; steps that were sent already are left out."""
        new = [(step, values) for step, values in points if step not in self._sent]
        self._sent |= {step for step, _ in new}
        if new:
            self._send(lambda tracker: tracker.metrics(new))

    def result(self, metadata: Mapping[str, Any]) -> None:
        """Send the numbers among a materialization's metadata, as what came out."""
        numbers = {
            name.rpartition("/")[2]: float(value) for name, value in metadata.items() if isinstance(value, int | float)
        }
        self._send(lambda tracker: tracker.metrics([(0, numbers)]))

    def end(self, *, finished: bool) -> None:
        """Say that nothing more comes."""
        if self._tracker:
            self._send(lambda tracker: tracker.end(finished=finished))

    def _send(self, send: Callable[[Tracker], None]) -> None:
        if not self._uri:
            return
        try:
            if self._tracker is None:
                make = TRACKERS[urlsplit(self._uri).scheme]
                self._tracker = make(self._uri, self._experiment, self._name, self._key)
                self._tracker.params(self._params)
            send(self._tracker)
        except ModuleNotFoundError as error:
            self._give_up(f"{error.name} is not installed: make setup EXTRAS=mlflow")
        except Exception as error:  # noqa: BLE001 - whatever a tracker does, the step goes on
            self._give_up(f"{type(error).__name__}: {shown(error, 200)}")

    def _give_up(self, why: str) -> None:
        self._say(
            f"Nothing more is sent to the tracker {shown(urlsplit(self._uri).hostname or '')} in this step: {why}"
        )
        self._uri, self._tracker = "", None
