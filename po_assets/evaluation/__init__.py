"""Evaluation: baseline and student answer the same cases, are scored, compared, gated and reported.

How the metric works belongs to `product_owner`, how a student is trained to `training`. Nothing is re-exported here, so
that importing one light module of the package (settings, gate) does not import the heavy ones.
"""
