"""Where artifacts live and how they are written: names, publication in one step, manifests, lines, locks, workers.

Plain Python: no Dagster and no pandas, since worker processes and tools import it. What a table holds belongs to the
stage that makes it; frames, resources and the IO manager belong to `dag`.
"""

from po_assets.storage.files import (
    LockedError,
    atomic_directory,
    atomic_file,
    disk_fault,
    full_disk_named,
    is_disk_full,
    is_local,
    local_copy,
    lock,
    open_buffered,
    published_directory,
    remove_stale_staging,
    replace_file,
    staging_path,
)
from po_assets.storage.layout import Layout, artifact_root, default_root
from po_assets.storage.tables import (
    LineWriter,
    Manifest,
    StagedTable,
    digest_of,
    directory_digest,
    file_digest,
    published_lines,
    read_manifest,
    read_rows,
    recorded_digest,
    stage_lines,
    write_manifest,
)
