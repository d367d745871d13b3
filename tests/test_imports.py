"""Imports load what they need and no more."""

import subprocess
import sys

import pytest

from kwise.benchmarks.command import _BENCHMARKS
from kwise.cli import _COMMANDS


def loaded_by(statement: str) -> set[str]:
    """Return the top-level modules that a fresh interpreter has loaded after `statement`."""
    program = f"""
import sys
before = set(sys.modules)
{statement}
print(*{{name.split(".")[0] for name in set(sys.modules) - before}})
"""
    finished = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    return set(finished.stdout.split())


@pytest.mark.parametrize(
    "statement",
    [
        "from kwise import RewardClient, AsyncRewardClient; RewardClient, AsyncRewardClient",
        "from kwise.client import RewardClient, AsyncRewardClient",
    ],
)
def test_the_client_loads_no_runtime_and_no_tokenizer(statement: str) -> None:
    loaded = loaded_by(statement)
    assert "grpc" in loaded
    assert loaded.isdisjoint(
        [
            "numpy",
            "onnxruntime",
            "openvino",
            "tokenizers",
            "jinja2",
            "msgspec",
            "torch",
            "transformers",
        ]
    )


@pytest.mark.parametrize("module", ["kwise", "kwise.cli", "kwise.engine.config", "kwise.types"])
def test_modules_that_load_the_standard_library_only(module: str) -> None:
    assert loaded_by(f"import {module}") - sys.stdlib_module_names == {"kwise"}


def test_help_of_every_command_needs_the_standard_library_only() -> None:
    """In a plain clone `kwise export --help` imported torch, and --help of serve needed numpy."""
    commands = [[name] for name in _COMMANDS]
    commands += [["data", task] for task in ("convert", "validate", "stats")]
    commands += [["bench", name] for name in _BENCHMARKS]
    statement = f"""
import contextlib, io
from kwise.cli import main
for words in {commands}:
    with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(SystemExit):
        raise AssertionError(main([*words, "--help"]))
"""
    assert loaded_by(statement) - sys.stdlib_module_names == {"kwise"}


@pytest.mark.parametrize(
    ("command", "package", "extra"),
    [
        (["train", "-", "--model", "m", "--output", "o"], "torch", "[train]"),
        (["train", "d.jsonl", "--model", "m", "--output", "o", "--recipe", "stackllama"],
         "yaml", "[train]"),
        (["export", "c", "a"], "torch", "[export]"),
        (["serve", "."], "tokenizers", "[engine]"),
        (["rerank", "setup.py", "never-written", "--artifact", "."], "tokenizers", "[engine]"),
        (["bench", "load", "."], "grpc_health", "[bench]"),
        (["bench", "cluster"], "simpy", "[bench]"),
        (["score", "--prompt", "p", "--response", "r"], "grpc", ""),
    ],
)  # fmt: skip
def test_a_missing_package_is_told_with_the_extra_that_installs_it(
    command: list[str], package: str, extra: str
) -> None:
    """`kwise train` with the engine alone ended in a traceback."""
    program = f"""
import sys
sys.modules[{package!r}] = None
from kwise.cli import main
sys.exit(main({command}))
"""
    ended = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    what = " ".join(command[:1])
    advice = f"pip install '.{extra}' in a clone of kwise"
    assert ended.stderr == f"kwise {what}: needs the package {package}: {advice}\n"
    assert ended.returncode == 1
