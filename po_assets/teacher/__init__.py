"""Asking a teacher LLM for new rows: `teacher_batch` and its checks.

What lands goes into `incoming/` like any other file; taking it in belongs to `intake`, starting the graph to the sensor
in `automation`.
"""
