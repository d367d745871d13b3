"""Imports load what they need and no more."""

import subprocess
import sys

import pytest


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
        "import kwise.client",
        "import kwise.client.commands.score, kwise.client.commands.rank",
        "import kwise.client.commands.compare",
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
