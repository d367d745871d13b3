"""The file with all figures of a benchmark: machine, versions, command and results, as JSON."""

import dataclasses
import json
import shlex
from pathlib import Path
from typing import Any

from kwise.benchmarks import machine

_PATHS = (
    "artifact",
    "checkpoint",
    "model",
    "text",
    "rankings",
    "json",
    "measured",
    "shapes",
    "states",
)


def write_results(path: str, benchmark: str, config: Any, results: dict[str, Any]) -> None:
    """Write the results of `kwise bench BENCHMARK` with `config`, a dataclass of options.

    Paths are reduced to names, because the directories of one machine mean nothing on another.
    """
    options = {
        field.name: _without_directory(field.name, getattr(config, field.name))
        for field in dataclasses.fields(config)
    }
    content = {
        "machine": machine.describe(),
        "command": command_line(benchmark, config),
        "options": options,
        **results,
    }
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def command_line(benchmark: str, config: Any) -> str:
    """Return the command that runs a benchmark with `config`, without options at their default."""
    words = ["kwise", "bench", benchmark]
    for field in dataclasses.fields(config):
        value = _without_directory(field.name, getattr(config, field.name))
        flag = "--" + field.name.replace("_", "-")
        if field.default is dataclasses.MISSING:
            words.append(str(value))
        elif getattr(config, field.name) == field.default:
            continue
        elif isinstance(value, bool):
            words.append(flag if value else flag.replace("--", "--no-", 1))
        elif isinstance(value, tuple):
            words += [flag, *map(str, value)]
        else:
            words += [flag, str(value)]
    return shlex.join(words)


def _without_directory(name: str, value: Any) -> Any:
    return Path(value).name if name in _PATHS and isinstance(value, str | Path) else value
