"""The resource that says where artifacts are kept."""

import dagster as dg
from pydantic import Field

from po_assets.storage import Layout, artifact_root, default_root


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
