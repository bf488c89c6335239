"""One tick of the landing sensor by Dagster's own daemon code, in a process that may die in it; for test_faults."""

import logging
import signal
import sys
import time
from pathlib import Path

import dagster as dg
from dagster._core.workspace.context import WorkspaceProcessContext
from dagster._core.workspace.load_target import ModuleTarget
from dagster._daemon.sensor import execute_sensor_iteration

from po_assets_tests.automation.live import LOCATION

SENSOR = "new_teacher_data"


def tick(moment: str) -> None:
    """Tick until a tick has ended; killed with SIGKILL where `moment` (Dagster's name for it) comes, if it is given."""
    crash = {SENSOR: {moment: signal.SIGKILL}} if moment else None
    target = ModuleTarget(LOCATION, None, str(Path.cwd()), None)
    with dg.DagsterInstance.get() as instance, WorkspaceProcessContext(instance, target) as workspace:
        before = _ended(instance)
        while _ended(instance) == before:
            list(execute_sensor_iteration(workspace, logging.getLogger(), None, None, debug_crash_flags=crash))
            time.sleep(0.2)  # the sensor's own interval


def _ended(instance: dg.DagsterInstance) -> float:
    """When the last finished tick began."""
    states = [state for state in instance.all_instigator_state() if state.instigator_name == SENSOR]
    for state in states:
        for one in instance.get_ticks(state.instigator_origin_id, state.selector_id, limit=5):
            if one.end_timestamp:
                return one.timestamp
    return 0.0


if __name__ == "__main__":
    tick(sys.argv[1])
