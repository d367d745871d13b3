"""How much memory do serving and exporting take at their peak, and how soon is a server ready?

A server holds the weights once, the runtime's packed copy of them, beside Python, gRPC and the tokenizer; activations come on top,
in proportion to --max-batch-tokens, and the prompt cache. Peak is the kernel's high-water mark of the process's resident
memory (VmHWM; ru_maxrss of a finished process), after batches of several shapes, each filled to the limit, on a real server.
"""

import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from kwise.benchmarks.serving import memory_bytes, serving
from kwise.benchmarks.workload import Cell
from kwise.client import RewardClient
from kwise.engine.artifact import MODEL, Artifact

_MAX_BATCH_TOKENS = 4096
# Each fills a batch: many short sequences, a few long ones, one that is nearly all prompt.
_SHAPES = [Cell(P=64, R=64, K=62), Cell(P=1024, R=128, K=23), Cell(P=3900, R=20, K=9)]
_IMPORTS = {"engine": "kwise.engine.server.serve", "client": "kwise.client"}


def run(artifact: Artifact, checkpoint: str) -> dict[str, Any]:
    """Print and return the figures."""
    weights = artifact.manifest.files[f"{MODEL}.data"].bytes
    results: dict[str, Any] = {"weights_bytes": weights, "serving": _serving(artifact)}
    served = results["serving"]["peak_bytes"]
    allowed = 1.2 * weights + 400e6
    print(
        f"weights {weights / 1e6:.0f} MB; ready {results['serving']['ready_s']:.2f} s after the start"
    )
    print(
        f"serving peak {served / 1e6:.0f} MB at --max-batch-tokens {_MAX_BATCH_TOKENS} (1.2x weights + 400 MB: {allowed / 1e6:.0f})"
    )
    if checkpoint:
        results["export_peak_bytes"] = peak = _export_peak(checkpoint)
        print(f"exporting peak {peak / 1e6:.0f} MB, {peak / weights:.2f}x the weights")
    results["import_s"] = {name: _import_s(module) for name, module in _IMPORTS.items()}
    print(
        "import: "
        + ", ".join(f"{name} {seconds:.2f} s" for name, seconds in results["import_s"].items())
    )
    return results


def _serving(artifact: Artifact) -> dict[str, float]:
    started = time.perf_counter()
    with serving(artifact, "--max-batch-tokens", str(_MAX_BATCH_TOKENS), "--cache-bytes", "0") as (
        process,
        address,
    ):
        ready_s = time.perf_counter() - started
        with RewardClient(address) as client:
            for seed, cell in enumerate(_SHAPES):
                client.score(*cell.request(artifact.manifest.vocab_size, seed))
        return {"ready_s": ready_s, "peak_bytes": memory_bytes(process.pid, "VmHWM")}


# A child starts with its parent's high-water mark (Linux, exec(2)), and this process has had two models: a small one in between.
PEAK_OF = "import resource, subprocess, sys; subprocess.run(sys.argv[1:], check=True, stdout=2); \
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)"


def _export_peak(checkpoint: str) -> int:
    """Of a whole `kwise export`, its parity check included."""
    with tempfile.TemporaryDirectory() as directory:
        export = [
            sys.executable,
            "-m",
            "kwise",
            "export",
            checkpoint,
            str(Path(directory) / "artifact"),
        ]
        command = [sys.executable, "-c", PEAK_OF, *export]
        return (
            int(subprocess.run(command, check=True, capture_output=True, text=True).stdout) * 1024
        )


def _import_s(module: str) -> float:
    """The best of three, of a fresh interpreter that imports it; an import of torch there is an error."""
    program = f"import {module}, sys; sys.exit('torch' in sys.modules)"
    seconds = []
    for _ in range(3):
        started = time.perf_counter()
        subprocess.run([sys.executable, "-c", program], check=True)
        seconds.append(time.perf_counter() - started)
    return min(seconds)
