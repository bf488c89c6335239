"""The one IO manager: tabular assets as JSONL files under stable names."""

from collections.abc import Iterable
from typing import Any

import dagster as dg
import pandas as pd
from upath import UPath

from po_assets.dag.frames import TableStream, read_frame, stage_frames
from po_assets.dag.resources import Artifacts
from po_assets.storage import Layout, StagedTable


class _JsonlIOManager(dg.UPathIOManager):
    """Data frames, streams of data frames and staged tables; see `JsonlIOManager`."""

    extension = ".jsonl"

    def __init__(self, layout: Layout) -> None:
        self._layout = layout
        super().__init__(base_path=layout.root)

    def _get_path(self, context: dg.InputContext | dg.OutputContext) -> UPath:
        return self._layout.table(context.asset_key.path[-1])

    def make_directory(self, path: UPath) -> None:
        """Nothing: staging a table made its folder, and an object store has none."""

    def dump_to_path(self, context: dg.OutputContext, obj: Any, path: UPath) -> None:
        """Publish a staged table, or write and publish a frame or a stream of frames."""
        if isinstance(obj, StagedTable):
            staged = obj
        elif isinstance(obj, pd.DataFrame):
            staged = stage_frames(path, [obj])
        elif isinstance(obj, Iterable) and not isinstance(obj, str | bytes | dict):
            staged = stage_frames(path, obj)
        else:
            raise TypeError(
                f"{context.asset_key.to_user_string()} returned a {type(obj).__name__}; the JSONL IO manager takes a "
                "DataFrame, an iterable of DataFrames or a StagedTable"
            )
        staged.publish()

    def load_from_path(self, context: dg.InputContext, path: UPath) -> pd.DataFrame | TableStream:
        """The table as the input's annotation asks: a `TableStream`, or everything in one frame."""
        return TableStream(path) if context.dagster_type.typing_type is TableStream else read_frame(path)


class JsonlIOManager(dg.ConfigurableIOManagerFactory[_JsonlIOManager]):
    """Keeps tabular assets as JSONL under the names of `Layout`."""

    artifacts: dg.ResourceDependency[Artifacts]

    def create_io_manager(self, _context: dg.InitResourceContext) -> _JsonlIOManager:
        """The manager for this run's artifact root."""
        return _JsonlIOManager(self.artifacts.layout)
