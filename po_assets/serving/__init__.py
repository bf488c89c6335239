"""The student in use: asked from the command line, served over HTTP.

How tokens are chosen belongs to `evaluation.generate`: what is served is decoded as what passed the gate.
"""
