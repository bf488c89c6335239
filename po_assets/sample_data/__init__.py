"""The project's own sample data: a seeded generator of teacher rows and evaluation cases, and the files it makes.

Fictitious products of many trades, written for this project; no teacher model took part. Whatever reads such rows
belongs to `intake`, whatever selects among them to `dataset`.
"""

from po_assets.sample_data.records import generate_rows, sample_files, write_sample_data
