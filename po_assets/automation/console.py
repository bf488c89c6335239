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
        return f"{self.formatTime(record, '%H:%M:%S')}  {step:<{_STEP_WIDTH}}  {level}{message}"


class _PeopleOnly(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        """Keep what code says with `context.log`.

        Events of the engine carry a `dagster_event`; for every step after a failed one it also logs an error that ends
        in "Not executing.", which hides the one that matters.
        """
        meta = getattr(record, "dagster_meta", {})
        return meta.get("dagster_event") is None and not str(meta.get("orig_message")).endswith("Not executing.")


@dg.logger(config_schema=None, description="Short progress lines: time, step, message.")
def console(_context: dg.InitLoggerContext) -> logging.Logger:
    """A logger for people who watch a run in a terminal."""
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(_ShortFormatter())
    handler.addFilter(_PeopleOnly())
    # Not a registered one: each run adds its handler to a logger of its own.
    logger = logging.Logger("po_assets", level=logging.INFO)  # noqa: LOG001
    logger.addHandler(handler)
    return logger
