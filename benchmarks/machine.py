"""The machine that a figure was measured on: to be printed beside it, since kinds of CPU differ by several times."""

import re
import sys
from pathlib import Path

from po_assets.storage.workers import available_cpus


def machine(info: Path = Path("/proc/cpuinfo")) -> str:
    """Cores, name and kind of the CPU (how it multiplies bfloat16 matrices), and the GPU where PyTorch sees one."""
    text = info.read_text() if info.exists() else ""
    name = re.search(r"model name\s*:\s*(.+)", text)
    kind = "neither AMX nor AVX512-BF16"
    for flag, said in (("avx512_bf16", "AVX512-BF16"), ("amx_tile", "AMX")):
        kind = said if re.search(rf"\b{flag}\b", text) else kind
    torch = sys.modules.get("torch")  # not imported for this: it would weigh on what is measured
    gpu = f"; GPU {torch.cuda.get_device_name()}" if torch and torch.cuda.is_available() else ""
    return f"{available_cpus()} cores of {name.group(1).strip() if name else 'an unnamed CPU'} ({kind}){gpu}"
