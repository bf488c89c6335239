"""A code location for real processes: the tiny definitions on the base model in `PO_TEST_BASE_MODEL`."""

import os
from pathlib import Path

import dagster as dg

from po_assets_tests.automation.tiny_definitions import tiny_definitions

defs = tiny_definitions(Path(os.environ["PO_TEST_BASE_MODEL"]))

# Tests wait for ticks.
for sensor in defs.sensors or ():
    if isinstance(sensor, dg.SensorDefinition):
        sensor._min_interval = 3
