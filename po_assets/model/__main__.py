"""Bring the profile's base model onto this machine ahead of the first run: `python -m po_assets.model`.

For images and shared volumes. `PO_PROFILE` chooses the profile; with `PO_ARTIFACTS_ROOT` in an object store the
embedded model goes to the user's cache.
"""

import sys

from po_assets.dag import Artifacts
from po_assets.model import ensure_base_model, resolve_spec


def main() -> int:
    """Entry point; 0 when the model is there."""
    try:
        folder = ensure_base_model(resolve_spec(), Artifacts().layout)
    except ValueError as error:
        print(error, file=sys.stderr)  # noqa: T201 - a command line speaks on its streams
        return 1
    print(folder)  # noqa: T201
    return 0


if __name__ == "__main__":
    sys.exit(main())
