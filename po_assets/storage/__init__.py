"""Where artifacts live and how they are written: names, atomic publication, manifests, JSONL tables.

What a table holds belongs to the stage that makes it; how one is drawn in the UI belongs to `presentation`.
"""

from po_assets.storage.atomic import (
    atomic_directory,
    atomic_file,
    is_disk_full,
    published_directory,
    remove_left_over_staging,
)
from po_assets.storage.io_manager import JsonlIOManager
from po_assets.storage.jsonl import StagedTable, TableStream, read_jsonl, read_jsonl_chunks, stage_jsonl, stage_lines
from po_assets.storage.layout import Artifacts, Layout
from po_assets.storage.manifest import (
    Manifest,
    digest_of,
    directory_digest,
    file_digest,
    read_manifest,
    write_manifest,
)
from po_assets.storage.reading import local_copy, open_buffered

__all__ = [
    "Artifacts",
    "JsonlIOManager",
    "Layout",
    "Manifest",
    "StagedTable",
    "TableStream",
    "atomic_directory",
    "atomic_file",
    "digest_of",
    "directory_digest",
    "file_digest",
    "is_disk_full",
    "local_copy",
    "open_buffered",
    "published_directory",
    "read_jsonl",
    "read_jsonl_chunks",
    "read_manifest",
    "remove_left_over_staging",
    "stage_jsonl",
    "stage_lines",
    "write_manifest",
]
