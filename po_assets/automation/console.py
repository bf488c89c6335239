"""How a run speaks on the console: one short line per message, Dagster's own events left out.

Dagster keeps every event in its log, where the UI shows them; a person who waits for `make run` wants the steps.
"""

import logging
import sys

import dagster as dg

_STEP_WIDTH = 20


class _ShortFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        meta = getattr(record, "dagster_meta", {})
        step = (meta.get("step_key") or "").split(".")[0]
        message = meta.get("orig_message") or record.getMessage()
        level = "" if record.levelno < logging.WARNING else f"{record.levelname}: "
        if check := _failed_check(record):
            message = f"the check {check.check_name} FAILED: {(check.description or '').partition(chr(10))[0]}"
        return f"{self.formatTime(record, '%H:%M:%S')}  {step:<{_STEP_WIDTH}}  {level}{message}"


class _PeopleOnly(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        """Keep what code says with `context.log`, and checks that fail: the run may go on for minutes with what it can.

        Events of the engine carry a `dagster_event`; for every step after a failed one it also logs an error that ends
        in "Not executing.", which hides the one that matters.
        """
        meta = getattr(record, "dagster_meta", {})
        if _failed_check(record):
            return True
        said = record.levelno >= logging.INFO and meta.get("dagster_event") is None
        return said and not str(meta.get("orig_message")).endswith("Not executing.")


def _failed_check(record: logging.LogRecord) -> dg.AssetCheckEvaluation | None:
    """The evaluation that the record is about, if it is one that failed with severity ERROR."""
    event = getattr(record, "dagster_meta", {}).get("dagster_event")
    if event is None or event.event_type_value != "ASSET_CHECK_EVALUATION":
        return None
    check: dg.AssetCheckEvaluation = event.asset_check_evaluation_data
    return check if not check.passed and check.severity == dg.AssetCheckSeverity.ERROR else None


@dg.logger(config_schema=None, description="Short progress lines: time, step, message.")
def console(_context: dg.InitLoggerContext) -> logging.Logger:
    """A logger for people who watch a run in a terminal."""
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(_ShortFormatter())
    handler.addFilter(_PeopleOnly())
    # Not a registered one: each run adds its handler to a logger of its own.
    logger = logging.Logger("po_assets", level=logging.DEBUG)  # noqa: LOG001
    logger.addHandler(handler)
    return logger
