"""Artifacts as Dagster sees them: where they are kept, tables as pandas frames, the one IO manager.

Tabular assets are JSONL files under stable names; how files are written belongs to `storage`.
"""

from collections.abc import Iterable, Iterator
from typing import Any

import dagster as dg
import orjson
import pandas as pd
from pydantic import Field
from upath import UPath

from po_assets.dag.checks import user_errors_fail_the_step
from po_assets.dag.pages import place
from po_assets.storage import Layout, StagedTable, artifact_root, default_root, read_rows, stage_lines


class Artifacts(dg.ConfigurableResource["Artifacts"]):
    """Where artifacts are kept."""

    root: str = Field(
        default_factory=default_root,
        description="Folder or fsspec URL (s3://…) that holds every artifact; PO_ARTIFACTS_ROOT sets the default.",
    )

    @property
    def layout(self) -> Layout:
        """The artifacts' places under this root.

        Raises:
            UserError: nothing installed here reaches such a root.
        """
        return Layout(artifact_root(self.root))


def read_frame(path: UPath) -> pd.DataFrame:
    """The whole table; an empty file gives an empty frame. Errors as `storage.read_rows`."""
    return pd.DataFrame(list(read_rows(path)))


def stage_frames(target: UPath, frames: Iterable[pd.DataFrame]) -> StagedTable:
    """Write data frames as one JSON object per row beside `target`; missing values become null."""
    return stage_lines(target, (line for frame in frames for line in _encoded(frame)))


def _encoded(frame: pd.DataFrame) -> Iterator[bytes]:
    columns = [str(column) for column in frame.columns]
    values = [frame[column].tolist() for column in frame.columns]
    options = orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_NON_STR_KEYS
    for row in zip(*values, strict=True):
        yield orjson.dumps(dict(zip(columns, row, strict=True)), option=options)


class _JsonlIOManager(dg.UPathIOManager):
    """Data frames and staged tables; see `JsonlIOManager`."""

    extension = ".jsonl"

    def __init__(self, layout: Layout) -> None:
        self._layout = layout
        super().__init__(base_path=layout.root)

    def _get_path(self, context: dg.InputContext | dg.OutputContext) -> UPath:
        return self._layout.table(context.asset_key.path[-1])

    def make_directory(self, path: UPath) -> None:
        """Nothing: staging a table made its folder, and an object store has none."""

    def dump_to_path(self, context: dg.OutputContext, obj: Any, path: UPath) -> None:
        """Publish a staged table, or write and publish a frame."""
        if isinstance(obj, StagedTable):
            staged = obj
        elif isinstance(obj, pd.DataFrame):
            with user_errors_fail_the_step():
                staged = stage_frames(path, [obj])
        else:
            raise TypeError(
                f"{context.asset_key.to_user_string()} returned a {type(obj).__name__}; the JSONL IO manager takes a "
                "DataFrame or a StagedTable"
            )
        with user_errors_fail_the_step():
            staged.publish()

    def get_metadata(self, context: dg.OutputContext, obj: Any) -> dict[str, dg.MetadataValue]:
        """The path as an asset's page has room for it."""
        return {} if obj is None else {"path": place(self._get_path(context))}

    def load_from_path(self, context: dg.InputContext, path: UPath) -> pd.DataFrame:  # noqa: ARG002 - named by Dagster
        """The whole table."""
        return read_frame(path)


class JsonlIOManager(dg.ConfigurableIOManagerFactory[_JsonlIOManager]):
    """Keeps tabular assets as JSONL under the names of `Layout`."""

    artifacts: dg.ResourceDependency[Artifacts]

    def create_io_manager(self, _context: dg.InitResourceContext) -> _JsonlIOManager:
        """The manager for this run's artifact root."""
        return _JsonlIOManager(self.artifacts.layout)
