"""The example with a tiny policy: it runs against a server, and writes all of its results."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.real_data import ROOT
from tests.servers import Server

pytest.importorskip("trl", reason="TRL is not installed; `make test-rl` installs it")


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory, smollm2_tokenizer: Any) -> Path:
    """A tiny language model with random weights and a real tokenizer."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    path = tmp_path_factory.mktemp("policy") / "policy"
    torch.manual_seed(1)
    config = LlamaConfig(
        vocab_size=len(smollm2_tokenizer),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        pad_token_id=2,
        eos_token_id=2,
    )
    LlamaForCausalLM(config).save_pretrained(path)
    smollm2_tokenizer.save_pretrained(path)
    return path


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_the_example_trains_and_measures_before_during_and_after(
    tiny_server: Server, policy: Path, tmp_path: Path
) -> None:
    options = {
        "address": tiny_server.address,
        "policy": policy,
        "output": tmp_path,
        "steps": 3,
        "every": 2,
        "groups": 2,
        "learning-rate": 0.01,
        "held-out": 3,
        "samples": 2,
        "max-tokens": 6,
    }
    command = [sys.executable, "-m", "examples.grpo"]
    command += [text for name, value in options.items() for text in (f"--{name}", str(value))]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr[-3000:]

    curve = rows(tmp_path / "curve.jsonl")
    assert [row["step"] for row in curve] == [1, 2, 3]
    assert all(row["reward_std"] > 0 and row["update_s"] > 0 for row in curve)

    evaluations = {
        (row["step"], row["temperature"]): row for row in rows(tmp_path / "evaluations.jsonl")
    }
    assert set(evaluations) == {(0, 0.8), (2, 0.8), (3, 0.8), (3, 0.0), (0, 0.0)}
    assert evaluations[0, 0.8]["kl"] == pytest.approx(0, abs=1e-5)
    assert evaluations[3, 0.8]["kl"] > 1e-4

    samples = {step: rows(tmp_path / f"samples-{step}-0.8.jsonl") for step in (0, 3)}
    prompts = [[row["prompt"] for row in samples[step]] for step in (0, 3)]
    assert prompts[0] == prompts[1]
    assert len(prompts[0]) == 6
    result = json.loads((tmp_path / "result.json").read_text(encoding="utf-8"))
    before, after = (sum(row["reward"] for row in samples[step]) / 6 for step in (0, 3))
    assert result["step 3"]["reward"]["rise"] == pytest.approx(after - before, abs=1e-6)


def test_the_questions_are_distinct_and_none_is_among_the_rankings() -> None:
    questions = [row["prompt"] for row in rows(ROOT / "examples" / "questions.jsonl")]
    ranked = [row["prompt"] for row in rows(ROOT / "examples" / "rankings.jsonl")]
    assert len(set(questions)) == len(questions) == 168
    assert not set(questions) & {prompt for prompt in ranked if isinstance(prompt, str)}
