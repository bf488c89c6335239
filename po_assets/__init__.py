"""po_assets: distil a teacher LLM into a Product Owner student, as a Dagster asset graph."""

import os

# The threads of PyTorch read this when it is imported, which no module of the package does before this line. Threads
# that wait by spinning make decoding several times slower as soon as another process wants the cores.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
