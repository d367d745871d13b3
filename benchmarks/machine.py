"""A description of the machine and its software, for the results of a benchmark."""

import os
import platform
import shutil
import subprocess
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

_CPU_FLAGS = {"avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_bf16", "amx_int8"}
_PACKAGES = (
    "kwise",
    "onnxruntime",
    "onnxruntime-gpu",
    "openvino",
    "onnx",
    "torch",
    "transformers",
    "optimum-onnx",
    "trl",
    "numpy",
)


def describe() -> dict[str, Any]:
    """Return the date, the processor, cores, memory in bytes, GPUs if any, and versions."""
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "processor": _cpu_fields().get("model name") or platform.processor(),
        "flags": cpu_flags(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        **({"gpus": gpus} if (gpus := _gpus()) else {}),
        "python": platform.python_version(),
        "versions": {
            name: installed for name in _PACKAGES if (installed := _installed_version(name))
        },
    }


def cpu_flags() -> list[str]:
    """Return the instruction sets of the CPU that matter for matrix products."""
    return [flag for flag in _cpu_fields().get("flags", "").split() if flag in _CPU_FLAGS]


def _cpu_fields() -> dict[str, str]:
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    parts = (line.partition(":") for line in lines)
    return {name.strip(): value.strip() for name, _, value in parts}


def _gpus() -> list[str]:
    """Return name, memory and driver of each GPU, as nvidia-smi describes them."""
    if (tool := shutil.which("nvidia-smi")) is None:
        return []
    query = [tool, "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"]
    listed = subprocess.run(query, capture_output=True, text=True, check=False)
    return listed.stdout.strip().splitlines() if listed.returncode == 0 else []


def _installed_version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
