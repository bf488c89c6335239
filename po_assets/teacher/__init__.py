"""Asking a teacher LLM for new rows: `teacher_batch`, its checks, and a small local server to try it with.

What lands goes into `incoming/` like any other file; taking it in belongs to `teacher`, starting the graph to the
sensor in `automation`.
"""
