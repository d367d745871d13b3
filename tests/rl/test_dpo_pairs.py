"""The pairs of `kwise rerank` are what TRL's DPOTrainer takes, as they are."""

from pathlib import Path
from typing import Any

import pytest

from tests.bulk.runs import groups, rerank, write_lines

trl = pytest.importorskip("trl", reason="TRL is not installed; `make test-rl` installs it")


@pytest.mark.parametrize("name", ["pairs.jsonl", "pairs.parquet"])
def test_dpo_trains_on_the_pairs(
    name: str, tmp_path: Path, tiny_artifact: Path, smollm2_tokenizer: Any
) -> None:
    from datasets import load_dataset  # pyright: ignore[reportMissingImports]
    from transformers import LlamaConfig, LlamaForCausalLM

    given = write_lines(tmp_path / "in.jsonl", groups(8))
    pairs = tmp_path / name
    assert rerank(given, pairs, "--artifact", tiny_artifact, "--write", "pairs") == 0
    kind = "json" if pairs.suffix == ".jsonl" else "parquet"
    dataset = load_dataset(kind, data_files=str(pairs), cache_dir=str(tmp_path / "cache"))["train"]
    assert dataset.column_names == ["prompt", "chosen", "rejected", "margin"]
    policy = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(smollm2_tokenizer),
            hidden_size=16,
            intermediate_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            num_key_value_heads=2,
            pad_token_id=2,
        )
    )
    policy.save_pretrained(tmp_path / "policy")
    trainer = trl.DPOTrainer(
        str(tmp_path / "policy"),
        args=trl.DPOConfig(
            output_dir=str(tmp_path / "dpo"), max_steps=1, report_to=[], use_cpu=True, bf16=False
        ),
        train_dataset=dataset,
        processing_class=smollm2_tokenizer,
    )
    assert trainer.train().global_step == 1
