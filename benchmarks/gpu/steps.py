"""The steps of the benchmark of a GPU, in the order of what matters, and the process of one step.

    python -m kwise.benchmarks.gpu.steps NAME FOLDER OPTIONS

Each step is a process of its own: it may be cut at its time limit, it starts with an empty GPU, and
CUDA's libraries read their variables anew.
"""

import dataclasses
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kwise.benchmarks.gpu.figures import Tell, print_figures
from kwise.benchmarks.gpu.subjects import subjects
from kwise.benchmarks.options import GpuBenchConfig
from kwise.engine.model.devices import parse_devices
from kwise.errors import ConfigError, KwiseError


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """A step of the benchmark.

    Attributes:
        question: what it answers, for people.
        limit_s: the time after which it is ended.
        run: does the work. It gets the options, the folder of the filled shapes, and where to tell.
    """

    question: str
    limit_s: float
    run: Callable[[GpuBenchConfig, Path, Tell], None]


def _shapes(config: GpuBenchConfig, filled: Path, tell: Tell) -> None:
    from kwise.benchmarks.gpu.shapes import SHAPES, write_shape

    for name in config.models:
        directory = Path(config.shapes, name)
        if directory.is_dir():
            continue
        if name not in SHAPES:
            known = ", ".join(SHAPES)
            raise ConfigError(f"--models: {directory} does not exist, and {name!r} is not {known}")
        write_shape(SHAPES[name], directory)
        tell(f"{directory} has the graphs of {name}, without weights", shape=name)


def _weights(config: GpuBenchConfig, filled: Path, tell: Tell) -> None:
    from kwise.benchmarks.gpu.shapes import fill

    for name in config.models:
        fill(Path(config.shapes, name), filled / name)
        tell(f"{name} has random weights", shape=name)


def _agree(config: GpuBenchConfig, filled: Path, tell: Tell) -> None:
    from kwise.benchmarks.gpu.rewards import agree

    agree(subjects(config, filled), _first_device(config), tell)


def _change(config: GpuBenchConfig, filled: Path, tell: Tell) -> None:
    from kwise.benchmarks.gpu.rewards import change

    change(subjects(config, filled), _first_device(config), tell, keep_environment=False)


def _change_by_default(config: GpuBenchConfig, filled: Path, tell: Tell) -> None:
    from kwise.benchmarks.gpu.rewards import change

    change(subjects(config, filled), _first_device(config), tell, keep_environment=True)


def _passes(config: GpuBenchConfig, filled: Path, tell: Tell) -> None:
    from kwise.benchmarks.gpu.times import passes

    passes(subjects(config, filled), config, _first_device(config), tell)


def _transformers(config: GpuBenchConfig, filled: Path, tell: Tell) -> None:
    from kwise.benchmarks.gpu.peers import transformers

    transformers(subjects(config, filled), config, _first_device(config), tell)


def _engine(config: GpuBenchConfig, filled: Path, tell: Tell) -> None:
    from kwise.benchmarks.gpu.times import engine

    engine(subjects(config, filled), config, tell)


def _vllm(config: GpuBenchConfig, filled: Path, tell: Tell) -> None:
    from kwise.benchmarks.gpu.peers import vllm

    vllm(subjects(config, filled), config, _first_device(config), tell)


# Writing the graphs needs no GPU, and happens once; it is not part of the time on one.
SHAPES_STEP = "shapes"
STEPS: dict[str, Step] = {
    SHAPES_STEP: Step(question="Write the graphs of the shapes", limit_s=3600, run=_shapes),
    "weights": Step(question="Draw random weights", limit_s=90, run=_weights),
    "agree": Step(
        question="Does each precision run, and does it agree with fp32 on the CPU?",
        limit_s=120,
        run=_agree,
    ),
    "change": Step(
        question="Do rewards change with their batch, with the variables that kwise sets?",
        limit_s=75,
        run=_change,
    ),
    "change-default": Step(
        question="Do rewards change with their batch, without these variables?",
        limit_s=75,
        run=_change_by_default,
    ),
    "passes": Step(question="How long does a pass take?", limit_s=150, run=_passes),
    "transformers": Step(
        question="How does it compare with transformers, conversations whole?",
        limit_s=120,
        run=_transformers,
    ),
    "engine": Step(question="How many groups a second from the queue?", limit_s=75, run=_engine),
    "vllm": Step(question="How does it compare with vLLM?", limit_s=150, run=_vllm),
}


def _first_device(config: GpuBenchConfig) -> str:
    return parse_devices(config.device)[0].name


def config_to_json(config: GpuBenchConfig) -> str:
    """Return the options for another process."""
    return json.dumps(dataclasses.asdict(config))


def _config_from_json(text: str) -> GpuBenchConfig:
    values: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value
        for name, value in json.loads(text).items()
    }
    return GpuBenchConfig(**values)


def main(name: str, filled: str, options: str) -> None:
    """Run one step."""
    try:
        STEPS[name].run(_config_from_json(options), Path(filled), print_figures)
    except KwiseError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main(*sys.argv[1:])
