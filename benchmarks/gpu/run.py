"""Fifteen minutes on a GPU: steps in the order of what matters, each with a time limit.

Question: does each precision run on this GPU and agree with fp32 on the CPU, do rewards change with
their batch, how long does a pass take, and what do other libraries take for the same conversations?

Physics: as on a CPU (see model/graph.py), a group is P + K·R rows instead of K·(P + R), 1.8 times
fewer at 64/64/9 and 4.8 times fewer at 1024/128/9. But starting the kernels of a small batch, about
a thousand per pass, takes a GPU longer than running them. So the number of kernels decides for
small models and batches, and rows decide in large ones.

A machine with a GPU may be at hand for minutes only. Each step is a process that is ended at its
limit (steps.py); each figure is printed and saved as soon as it is known; a step that fails leaves
the others. docs/gpu.md explains the use, also on a machine without a network. `--device cpu` runs
the same code without a GPU.
"""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Timer
from time import perf_counter
from typing import Any

from kwise.benchmarks.gpu.figures import FIGURES
from kwise.benchmarks.gpu.steps import SHAPES_STEP, STEPS, config_to_json
from kwise.benchmarks.options import GpuBenchConfig
from kwise.benchmarks.result_file import write_results
from kwise.errors import ConfigError

_WEIGHTS_STEP = "weights"


def run(config: GpuBenchConfig) -> None:
    """Run the steps, and write the figures to `config.json` as they come.

    Raises:
        ConfigError: a step does not exist.
        OSError: no precision runs on the device.
    """
    if unknown := set(config.steps) - set(STEPS):
        raise ConfigError(f"--steps: {min(unknown)!r} is not one of {', '.join(STEPS)}")
    # So that `timeout` ends the step and its files too, and not this process alone.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    results: dict[str, Any] = {"steps": {}}
    with TemporaryDirectory(prefix="kwise-gpu-") as filled:
        for name in steps_of(config):
            _run_step(name, config, Path(filled), results)
            if name == "agree":
                _check_device(config, results["steps"][name])


def steps_of(config: GpuBenchConfig) -> list[str]:
    """Return the steps to run, in order. Shapes get their weights before anything is measured."""
    chosen = set(config.steps or STEPS)
    of_shapes = {SHAPES_STEP, _WEIGHTS_STEP}
    if not config.shapes:
        chosen -= of_shapes
    elif chosen - {SHAPES_STEP}:
        chosen |= of_shapes
    return [name for name in STEPS if name in chosen]


def _run_step(name: str, config: GpuBenchConfig, filled: Path, results: dict[str, Any]) -> None:
    """Run a step in a process of its own, and add its figures to `results`."""
    step = STEPS[name]
    print(f"== {name}: {step.question} (at most {step.limit_s:.0f} s)", flush=True)
    outcome: dict[str, Any] = {"figures": []}
    results["steps"][name] = outcome
    started = perf_counter()
    with subprocess.Popen(
        [sys.executable, "-m", "kwise.benchmarks.gpu.steps", name, filled, config_to_json(config)],
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,  # so that the processes that a library starts end with it
    ) as process:
        timer = Timer(step.limit_s, _end, [process])
        timer.start()
        try:
            assert process.stdout is not None
            for line in process.stdout:
                if not line.startswith(FIGURES):
                    print(line, end="", flush=True)
                    continue
                figures = json.loads(line.removeprefix(FIGURES))
                print(figures.pop("line"), flush=True)
                outcome["figures"].append(figures)
                _save(config, results)
            process.wait()
        finally:
            timer.cancel()
            _end(process)
    outcome["seconds"] = perf_counter() - started
    if process.returncode:
        is_cut = outcome["seconds"] >= step.limit_s
        outcome["failed"] = "time limit" if is_cut else f"exit status {process.returncode}"
        print(f"{name} did not end: {outcome['failed']}", flush=True)
    _save(config, results)


def _end(process: "subprocess.Popen[str]") -> None:
    """End a step with all processes that it has started."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        process.wait()


def _save(config: GpuBenchConfig, results: dict[str, Any]) -> None:
    if config.json:
        write_results(config.json, "gpu", config, results)


def _check_device(config: GpuBenchConfig, outcome: dict[str, Any]) -> None:
    """Check that some precision ran.

    Raises:
        OSError: none did; the reason of the first one.
    """
    failures = [figures["failed"] for figures in outcome["figures"] if "failed" in figures]
    if failures and len(failures) == len(outcome["figures"]):
        raise OSError(f"no precision runs on --device {config.device}: {failures[0]}")
