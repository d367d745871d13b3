"""Adapters: the base does not change, both layouts agree, and merging changes no reward."""

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSequenceClassification

from kwise.errors import ConfigError
from kwise.train.model.adapter import add_adapter, merge_adapter
from kwise.train.model.batch.layout import PaddedLayout, rewards_of
from kwise.train.model.four_bit import has_four_bits
from kwise.train.model.reward_model import load_reward_model
from kwise.train.options.config import TrainConfig
from kwise.train.run.training import train
from kwise.train.step.losses import kwise_loss
from kwise.types import Message
from tests.real_data import SMOLLM2_GGUF, smollm2_directory
from tests.tiny_models import GROUPED, SMALL, tiny_model
from tests.training_runs import IGNORED_WARNINGS, interrupted_at, options

pytestmark = IGNORED_WARNINGS
SEQUENCES = [[5, 6, 7, 8], [5, 6, 9], [5, 6, 7, 8, 4]]
FAMILIES: dict[str, dict[str, Any]] = {
    "Llama": GROUPED,
    "GPT2": {"n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 512},
    "Bert": {**SMALL, "max_position_embeddings": 512},
}


def config_of(**changed: Any) -> TrainConfig:
    return TrainConfig(
        **{"data": "d", "model": "m", "output": Path("o"), "lora_rank": 4, **changed}
    )


@pytest.mark.parametrize("family", FAMILIES)
def test_adapters_and_head_learn_the_rest_is_frozen_and_merging_changes_no_reward(
    family: str, smollm2_tokenizer: Any, tmp_path: Path
) -> None:
    loaded = load_reward_model(
        str(tiny_model(family, FAMILIES[family], smollm2_tokenizer, tmp_path))
    )
    before = {name: value.clone() for name, value in loaded.model.state_dict().items()}
    torch.manual_seed(0)
    adapted = add_adapter(loaded, config_of()).train()
    optimizer = torch.optim.AdamW([p for p in adapted.parameters() if p.requires_grad], lr=1e-2)
    gradients = []
    for layout in (*{loaded.layout, PaddedLayout(2)}, *[PaddedLayout(2)] * 3):
        optimizer.zero_grad()
        kwise_loss(
            rewards_of(adapted, layout.lay_out(SEQUENCES)), torch.tensor([3, 1, 2])
        ).backward()
        gradients.append(
            {name: p.grad.clone() for name, p in adapted.named_parameters() if p.grad is not None}
        )
        if len(gradients) > 1:
            optimizer.step()
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, rtol=1e-4, atol=1e-5, msg=name)
    trained = {name for name, p in adapted.named_parameters() if p.requires_grad}
    assert gradients[0].keys() <= trained and all(
        "lora_" in n or "modules_to_save" in n for n in trained
    )
    frozen = {
        name.replace(".base_layer", ""): p
        for name, p in adapted.named_parameters()
        if name not in trained
    }
    for name, value in frozen.items():
        plain = name.removeprefix("base_model.model.").replace("original_module.", "")
        torch.testing.assert_close(value, before[plain], rtol=0, atol=0, msg=name)
    adapted.eval()
    tensors = loaded.layout.lay_out(SEQUENCES)
    with torch.inference_mode():
        as_adapted = rewards_of(adapted, tensors)
    merge_adapter(adapted)
    assert loaded.model.state_dict().keys() == before.keys()
    with torch.inference_mode():
        torch.testing.assert_close(rewards_of(loaded.model, tensors), as_adapted, rtol=0, atol=1e-5)
    changed = {
        name
        for name, value in loaded.model.state_dict().items()
        if not torch.equal(value, before[name])
    }
    assert changed and not any("embed" in name or "norm" in name.lower() for name in changed)


def test_a_run_with_adapters_resumes_exactly_and_leaves_the_merged_model_and_the_adapter(
    data: Path, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    changed = {
        "epochs": 1.0,
        "lora_rank": 4,
        "lora_dropout": 0.1,
        "learning_rate": 1e-2,
        "log_every": 1,
    }
    whole, parted = (
        options(data, tiny_checkpoint, tmp_path / name, **changed) for name in ("whole", "parted")
    )
    report = train(TrainConfig(**whole))
    assert 0 < report.num_trained < report.num_parameters / 10
    assert {
        "adapter/adapter_config.json",
        "adapter/adapter_model.safetensors",
        "model.safetensors",
    } <= set(report.files)
    interrupted_at("step 8/", TrainConfig(**parted))
    sizes = [
        path.stat().st_size for path in (tmp_path / "parted.unfinished").glob("*/*.safetensors")
    ]
    assert sizes and max(sizes) < (tmp_path / "whole" / "model.safetensors").stat().st_size / 10
    resumed = train(TrainConfig(**parted, resume=True))
    assert [loss.step for loss in resumed.losses] == [loss.step for loss in report.losses]
    assert [loss.loss for loss in resumed.losses] == pytest.approx(
        [loss.loss for loss in report.losses], abs=2e-4
    )
    ours, theirs = (
        load_file(tmp_path / name / "model.safetensors") for name in ("whole", "parted")
    )
    for name, weights in ours.items():
        torch.testing.assert_close(theirs[name], weights, rtol=0, atol=2e-5, msg=name)

    base = AutoModelForSequenceClassification.from_pretrained(tiny_checkpoint)
    adapted = PeftModel.from_pretrained(base, tmp_path / "whole" / "adapter").eval()
    merged = load_reward_model(str(tmp_path / "whole"))
    conversation = (
        Message(role="user", content="Question 1?"),
        Message(role="assistant", content="yes no"),
    )
    ids = merged.tokenizer.apply_chat_template(
        [{"role": m.role, "content": m.content} for m in conversation], return_dict=False
    )
    with torch.inference_mode():
        expected = adapted(input_ids=torch.tensor([ids])).logits.item()
    assert merged.rewards([conversation])[0] == pytest.approx(expected, abs=1e-5)
    merged_again = load_reward_model(str(tmp_path / "whole" / "adapter"))
    assert merged_again.rewards([conversation])[0] == pytest.approx(expected, abs=1e-5)

    train(
        TrainConfig(**{**whole, "lora_rank": 0, "lora_dropout": 0.0, "epochs": 0.1}, overwrite=True)
    )
    assert not (tmp_path / "whole" / "adapter").exists()


def test_every_layer_that_is_named_gets_an_adapter_whatever_stands_around_its_name(
    smollm2_tokenizer: Any, tmp_path: Path
) -> None:
    """The name with a space before it was no layer, and q_proj was trained alone."""
    loaded = load_reward_model(str(tiny_model("Llama", GROUPED, smollm2_tokenizer, tmp_path)))
    adapted = add_adapter(loaded, config_of(lora_targets="q_proj, v_proj"))
    names = {
        name.split(".lora_A")[0].rpartition(".")[2]
        for name, _ in adapted.named_parameters()
        if ".lora_A" in name
    }
    assert names == {"q_proj", "v_proj"}


def test_layers_that_are_not_there_and_options_without_a_rank_are_refused(
    smollm2_tokenizer: Any, tmp_path: Path
) -> None:
    loaded = load_reward_model(str(tiny_model("Llama", GROUPED, smollm2_tokenizer, tmp_path)))
    with pytest.raises(ConfigError, match="--lora-targets query: "):
        add_adapter(loaded, config_of(lora_targets="query"))
    for targets in ("q_proj, v_porj", "proj", "q_proj,"):
        with pytest.raises(
            ConfigError,
            match=r"^--lora-targets (v_porj|proj|): LlamaForSequenceClassification has no layer",
        ):
            add_adapter(loaded, config_of(lora_targets=targets))
    for changed in (
        {"lora_alpha": 8},
        {"lora_dropout": 0.1},
        {"lora_targets": "q_proj"},
        {"load_in_4bit": True},
    ):
        with pytest.raises(ConfigError, match=r"^--lo[\w-]+ has no effect without --lora-rank"):
            config_of(lora_rank=0, **changed)


def test_beside_weights_of_four_bits_what_is_saved_is_what_was_trained(
    data: Path, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    changed = {
        "epochs": 1.0,
        "lora_rank": 4,
        "load_in_4bit": True,
        "learning_rate": 1e-2,
        "log_every": 1,
    }
    whole, parted = (
        options(data, tiny_checkpoint, tmp_path / name, **changed) for name in ("whole", "parted")
    )
    report = train(TrainConfig(**whole, eval_every=13))
    assert report.before is not None and report.after is not None
    assert report.after.accuracy > report.before.accuracy and report.after.loss < report.before.loss
    # The last evaluation was of the model in four bits with adapters, the one after training of
    # what is saved.
    assert report.evaluations[-1].step == report.num_steps
    assert report.after.loss == pytest.approx(report.evaluations[-1].loss, abs=1e-5)

    saved, read = (
        load_file(path / "model.safetensors") for path in (tmp_path / "whole", tiny_checkpoint)
    )
    assert saved.keys() == read.keys() and {tensor.dtype for tensor in saved.values()} == {
        torch.float32
    }
    changed_little = [
        torch.dist(saved[n], read[n]) / read[n].norm() for n in read if n.endswith("_proj.weight")
    ]
    assert all(0.02 < change < 0.5 for change in changed_little), "four bits round every weight"
    assert "four bits" in (tmp_path / "whole" / "adapter" / "README.md").read_text()
    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path / "whole")
    assert not hasattr(loaded.config, "quantization_config") and not getattr(
        loaded, "is_quantized", False
    )

    interrupted_at("step 8/", TrainConfig(**parted))
    train(TrainConfig(**parted, resume=True))
    resumed = load_file(tmp_path / "parted" / "model.safetensors")
    for name, weights in saved.items():
        torch.testing.assert_close(resumed[name], weights, rtol=0, atol=2e-5, msg=name)


@pytest.mark.parametrize("family", FAMILIES)
def test_four_bits_merged_saved_and_read_back_give_the_rewards_of_the_adapted_model(
    family: str, smollm2_tokenizer: Any, tmp_path: Path
) -> None:
    """GPT-2's layers came back the wrong way round."""
    source = tiny_model(family, FAMILIES[family], smollm2_tokenizer, tmp_path / "source")
    loaded = load_reward_model(str(source), load_in_4bit=True)
    adapted = add_adapter(loaded, config_of(load_in_4bit=True)).train()
    optimizer = torch.optim.AdamW([p for p in adapted.parameters() if p.requires_grad], lr=1e-2)
    tensors = loaded.layout.lay_out(SEQUENCES)
    for _ in range(3):
        kwise_loss(rewards_of(adapted, tensors), torch.tensor([3, 1, 2])).backward()
        optimizer.step()
    adapted.eval()
    with torch.inference_mode():
        expected = rewards_of(adapted, tensors)
    merge_adapter(adapted)
    loaded.save(tmp_path / "saved")
    read = AutoModelForSequenceClassification.from_pretrained(tmp_path / "saved").eval()
    with torch.inference_mode():
        rewards = [read(input_ids=torch.tensor([ids])).logits.item() for ids in SEQUENCES]
    torch.testing.assert_close(torch.tensor(rewards), expected, rtol=0, atol=1e-4)


def test_four_bits_of_a_gguf_file_or_beside_the_text_regulariser_are_refused() -> None:
    with pytest.raises(
        ConfigError, match=r"--load-in-4bit and --text-regulariser exclude each other"
    ):
        config_of(load_in_4bit=True, text_regulariser=0.1)
    with pytest.raises(ConfigError, match=r"--load-in-4bit reads a Hugging Face checkpoint"):
        load_reward_model(str(smollm2_directory() / SMOLLM2_GGUF), load_in_4bit=True)


def test_layers_that_the_checkpoint_lacks_are_not_in_four_bits(
    tmp_path: Path, smollm2_tokenizer: Any
) -> None:
    bert = tiny_model("Bert", FAMILIES["Bert"], smollm2_tokenizer, tmp_path)
    weights = {
        name: tensor
        for name, tensor in load_file(bert / "model.safetensors").items()
        if "pooler" not in name
    }
    save_file(weights, bert / "model.safetensors", {"format": "pt"})
    loaded = load_reward_model(str(bert), load_in_4bit=True)
    linear = {
        name: module
        for name, module in loaded.model.named_modules()
        if isinstance(module, torch.nn.Linear)
    }
    assert {name for name, module in linear.items() if not has_four_bits(module)} == {
        "classifier",
        "bert.pooler.dense",
    }
