"""How much faster is the trie graph than Optimum's stock padded graph, on the same ONNX Runtime in the same run?

Physics: a group of K responses of R tokens to a prompt of P tokens costs K·(P+R) rows padded and P+K·R rows as a trie; the rest
is how well each graph uses the machine. Both are exported from the same checkpoint, run in turns, and compared by the median
of several runs each; rewards of both must agree. Random token ids: the model does not mind, and cells are exact.

    python benchmarks/graph.py CHECKPOINT [--repeats 3] [--json OUT]
"""

import argparse
import json
import os
import platform
import statistics
import tempfile
import time
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from kwise.engine.artifact import read_artifact
from kwise.engine.conversation import EncodedSequence
from kwise.engine.session import OnnxSession
from kwise.export.exporter import ExportConfig, Layout, export

# (P, R, K)
CELLS = [(64, 64, 9), (256, 128, 9), (1024, 128, 9)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        sessions = {}
        for layout in (Layout.PADDED, Layout.TRIE):
            path = Path(directory) / layout.value
            export(ExportConfig(checkpoint=arguments.checkpoint, artifact=str(path), layout=layout))
            sessions[layout.value] = OnnxSession(read_artifact(path))
        rows = [measure(sessions, cell, arguments.repeats) for cell in CELLS]
    print("    P     R   K    padded      trie   ratio   largest difference")
    for row in rows:
        print(
            f"{row['P']:>5} {row['R']:>5} {row['K']:>3} {row['padded_s']:>8.3f}s {row['trie_s']:>8.3f}s {row['ratio']:>6.2f}x"
            f"   {row['max_difference']:.1e}"
        )
    if arguments.json:
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        arguments.json.write_text(json.dumps({**environment(arguments), "cells": rows}, indent=2) + "\n")


def measure(sessions: dict[str, OnnxSession], cell: tuple[int, int, int], repeats: int) -> dict[str, Any]:
    """Medians of `repeats` runs of one group, padded and trie in turns after a warm-up of each."""
    P, R, K = cell
    rng = np.random.default_rng(0)
    prompt = rng.integers(20, 40000, P)
    batch = []
    for _ in range(K):
        token_ids = np.concatenate([prompt, rng.integers(20, 40000, R)])
        batch.append(EncodedSequence(token_ids=token_ids, type_ids=None, num_tokens=P + R))
    rewards = {name: session.run(batch)[0] for name, session in sessions.items()}
    seconds: dict[str, list[float]] = {name: [] for name in sessions}
    for _ in range(repeats):
        for name, session in sessions.items():
            started = time.perf_counter()
            session.run(batch)
            seconds[name].append(time.perf_counter() - started)
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    ratios = [padded / trie for padded, trie in zip(seconds["padded"], seconds["trie"], strict=True)]
    return {
        "P": P,
        "R": R,
        "K": K,
        "padded_s": medians["padded"],
        "trie_s": medians["trie"],
        "ratio": statistics.median(ratios),
        "max_difference": float(np.abs(rewards["padded"] - rewards["trie"]).max()),
    }


def environment(arguments: argparse.Namespace) -> dict[str, Any]:
    cpu_lines = Path("/proc/cpuinfo").read_text().splitlines()
    model = next((line.split(":", 1)[1].strip() for line in cpu_lines if line.startswith("model name")), "")
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "checkpoint": Path(arguments.checkpoint).name,
        "repeats": arguments.repeats,
        "cpu": model or platform.processor(),
        "cores": len(os.sched_getaffinity(0)),
        "versions": {name: version(name) for name in ("kwise", "onnxruntime", "torch", "transformers", "optimum-onnx")},
    }


if __name__ == "__main__":
    main()
