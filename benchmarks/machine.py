"""Where and with what a benchmark ran, and its results on disk."""

import json
import os
import platform
import shutil
import subprocess
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

_FLAGS = {"avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_bf16", "amx_int8"}
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
    """Date, processor, cores, memory in bytes, GPUs (name, memory, driver; only where there are any), versions."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    fields = {
        name.strip(): value.strip() for name, _, value in (line.partition(":") for line in lines)
    }
    flags = [flag for flag in fields.get("flags", "").split() if flag in _FLAGS]
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "processor": fields.get("model name") or platform.processor(),
        "flags": flags,
        "cores": len(os.sched_getaffinity(0)),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        **({"gpus": gpus} if (gpus := _gpus()) else {}),
        "python": platform.python_version(),
        "versions": {name: found for name in _PACKAGES if (found := _version(name))},
    }


def _gpus() -> list[str]:
    """As NVIDIA's own tool describes them."""
    if (tool := shutil.which("nvidia-smi")) is None:
        return []
    query = [tool, "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"]
    listed = subprocess.run(query, capture_output=True, text=True, check=False)
    return listed.stdout.strip().splitlines() if listed.returncode == 0 else []


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def plain(options: dict[str, Any]) -> dict[str, Any]:
    """The options, with the names of files instead of their places on this machine."""
    names = ("artifact", "checkpoint", "model", "text", "rankings", "json")
    return {
        k: Path(v).name if k in names and isinstance(v, str | Path) else v
        for k, v in options.items()
    }


def write(path: Path, results: dict[str, Any]) -> None:
    """The results with the machine, as JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(
        json.dumps({"machine": describe()} | results, indent=2) + "\n", encoding="utf-8"
    )
