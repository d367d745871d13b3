"""The peak memory of serving and exporting, and the time in which a server starts.

Physics: a server holds the weights once, in the packed copy of the runtime, in addition to Python,
gRPC and the tokenizer. Activations, in proportion to --max-batch-tokens, and the prompt cache add
to this.
The peak is the kernel's high-water mark of resident memory (VmHWM; ru_maxrss for a finished
process), after batches of several shapes on a real server, each filled to the limit.
"""

import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from kwise.benchmarks.options import Cell
from kwise.benchmarks.serving.server_process import memory_bytes, running_server
from kwise.client import RewardClient
from kwise.engine.artifact.names import MODEL
from kwise.engine.artifact.read import Artifact

_MAX_BATCH_TOKENS = 4096
# Each fills a batch: many short sequences, a few long ones, one group that is nearly all prompt.
_SHAPES = [Cell(P=64, R=64, K=62), Cell(P=1024, R=128, K=23), Cell(P=3900, R=20, K=9)]
_IMPORTS = {"engine": "kwise.engine.server.serve", "client": "kwise.client"}


def run(artifact: Artifact, checkpoint: str) -> dict[str, Any]:
    """Print and return the figures. Without a checkpoint, the export is not measured."""
    weights = artifact.manifest.files[f"{MODEL}.data"].bytes
    serving = _measure_serving(artifact)
    results: dict[str, Any] = {"weights_bytes": weights, "serving": serving}
    target = 1.2 * weights + 400e6
    print(f"weights {weights / 1e6:.0f} MB; ready {serving['ready_s']:.2f} s after the start")
    print(
        f"serving peak {serving['peak_bytes'] / 1e6:.0f} MB at --max-batch-tokens "
        f"{_MAX_BATCH_TOKENS} (target: 1.2x weights + 400 MB = {target / 1e6:.0f})"
    )
    if checkpoint:
        results["export_peak_bytes"] = peak = _export_peak(checkpoint)
        print(f"export peak {peak / 1e6:.0f} MB, {peak / weights:.2f}x the weights")
    results["import_s"] = {name: _import_s(module) for name, module in _IMPORTS.items()}
    times = ", ".join(f"{name} {seconds:.2f} s" for name, seconds in results["import_s"].items())
    print(f"import: {times}")
    return results


def _measure_serving(artifact: Artifact) -> dict[str, float]:
    started = time.perf_counter()
    options = ("--max-batch-tokens", str(_MAX_BATCH_TOKENS), "--cache-bytes", "0")
    with running_server(artifact, *options) as server:
        ready_s = time.perf_counter() - started
        with RewardClient(server.address) as client:
            for seed, cell in enumerate(_SHAPES):
                client.score(*cell.request(artifact.manifest.vocab_size, seed))
        return {"ready_s": ready_s, "peak_bytes": memory_bytes(server.process.pid, "VmHWM")}


# A child starts with its parent's high-water mark (Linux, exec(2)), and this process has loaded two
# models. So a small process in between starts the command and prints its peak in KiB.
PRINT_PEAK_OF = (
    "import resource, subprocess, sys; subprocess.run(sys.argv[1:], check=True, stdout=2); \
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)"
)


def _export_peak(checkpoint: str) -> int:
    """Return the peak of `kwise export` in bytes, its parity check included."""
    with tempfile.TemporaryDirectory() as directory:
        target = str(Path(directory) / "artifact")
        export = [sys.executable, "-m", "kwise", "export", checkpoint, target]
        command = [sys.executable, "-c", PRINT_PEAK_OF, *export]
        finished = subprocess.run(command, check=True, capture_output=True, text=True)
        return int(finished.stdout) * 1024


def _import_s(module: str) -> float:
    """Return the best of three times that a fresh interpreter needs to import `module`.

    Raises:
        CalledProcessError: the import loads torch.
    """
    program = f"import {module}, sys; sys.exit('torch' in sys.modules)"
    seconds = []
    for _ in range(3):
        started = time.perf_counter()
        subprocess.run([sys.executable, "-c", program], check=True)
        seconds.append(time.perf_counter() - started)
    return min(seconds)
