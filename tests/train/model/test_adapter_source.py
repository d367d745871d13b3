"""A model that is given as an adapter is merged into its base, exactly, or refused in one line."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from kwise.errors import ConfigError
from kwise.export.checkpoint import read_checkpoint
from kwise.train.model.checkpoint import load_checkpoint
from kwise.train.model.reward_model import load_reward_model
from kwise.train.report.provenance import model_sha256
from tests.tiny_models import GROUPED
from tests.training_runs import IGNORED_WARNINGS

pytestmark = IGNORED_WARNINGS
IDS = torch.tensor([[5, 6, 7, 8, 9]])
TARGETS = ["q_proj", "v_proj"]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory, smollm2_tokenizer: Any) -> Path:
    """A tiny language model."""
    path = tmp_path_factory.mktemp("adapters") / "base"
    torch.manual_seed(1)
    config = transformers.LlamaConfig(
        vocab_size=len(smollm2_tokenizer), tie_word_embeddings=False, **GROUPED
    )
    transformers.LlamaForCausalLM(config).save_pretrained(path)
    smollm2_tokenizer.save_pretrained(path)
    return path


def adapter(base: Path, path: Path, kind: Any = AutoModelForCausalLM, **changed: Any) -> Any:
    """Write a random LoRA adapter of `base` to `path`, and return PEFT's model."""
    torch.manual_seed(0)
    labels = {} if kind is AutoModelForCausalLM else {"num_labels": changed.pop("labels", 1)}
    task = "CAUSAL_LM" if kind is AutoModelForCausalLM else "SEQ_CLS"
    options = {"r": 4, "target_modules": TARGETS, "init_lora_weights": False, "task_type": task}
    num_tokens = changed.pop("num_tokens", None)
    config = peft.LoraConfig(**{**options, **changed})
    model = kind.from_pretrained(base, **labels)
    if num_tokens is not None:
        model.resize_token_embeddings(num_tokens)
    adapted = peft.get_peft_model(model, config)
    adapted.save_pretrained(path, save_embedding_layers=num_tokens is not None)
    return adapted.eval()


def edit(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Change the tensors of a safetensors file, or the entries of a JSON file."""
    content = load_file(path) if path.suffix == ".safetensors" else json.loads(path.read_text())
    change(content)
    if path.suffix == ".safetensors":
        save_file(content, path)
    else:
        path.write_text(json.dumps(content))


@pytest.mark.parametrize(
    "changed", [{"target_modules": [*TARGETS, "lm_head"]}, {"num_tokens": 49_160}]
)
def test_an_sft_adapter_is_merged_and_takes_its_bases_tokenizer(
    changed: dict[str, Any], base: Path, tmp_path: Path
) -> None:
    """transformers keeps the adapter apart, and training lost it while saving."""
    adapted = adapter(base, tmp_path / "sft", **changed)
    loaded = load_reward_model(str(tmp_path / "sft"))
    with torch.inference_mode():
        expected = adapted.base_model.model.model(IDS).last_hidden_state
        states = loaded.model.base_model(IDS).last_hidden_state
    torch.testing.assert_close(states, expected, rtol=0, atol=1e-5)
    num_tokens = loaded.model.get_input_embeddings().num_embeddings
    assert num_tokens == loaded.model.config.vocab_size == changed.get("num_tokens", 49_152)
    assert not any("lora" in name for name in loaded.model.state_dict())
    assert all(parameter.requires_grad for parameter in loaded.model.parameters())
    assert loaded.new_layers == ("score",)


def test_a_reward_model_that_is_an_adapter_keeps_its_head(base: Path, tmp_path: Path) -> None:
    adapted = adapter(base, tmp_path / "rm", AutoModelForSequenceClassification)
    with torch.inference_mode():
        expected = float(adapted(IDS).logits[0, 0])
    for load in (load_reward_model, lambda name: read_checkpoint(name, "")):
        with torch.inference_mode():
            reward = float(load(str(tmp_path / "rm")).model(IDS).logits[0, 0])
        assert reward == pytest.approx(expected, abs=1e-5)
    assert load_reward_model(str(tmp_path / "rm")).new_layers == ()


def test_an_adapter_of_a_head_that_its_base_lacks_brings_no_head(
    base: Path, tmp_path: Path
) -> None:
    """The random head to which LoRA was added counted as the adapter's."""
    targets = [*TARGETS, "score"]
    kind = AutoModelForSequenceClassification
    adapter(base, tmp_path / "rm", kind, task_type=None, target_modules=targets)
    assert load_reward_model(str(tmp_path / "rm")).new_layers == ("score",)
    with pytest.raises(ConfigError, match=r"neither it nor its base .* has weights for score"):
        load_checkpoint("CHECKPOINT", str(tmp_path / "rm"), to_train=False)


def test_an_adapter_of_an_adapter_is_merged_into_the_merged_base(
    base: Path, tmp_path: Path
) -> None:
    """`kwise train --lora-rank` that starts from an adapter writes such an adapter."""
    sft = adapter(base, tmp_path / "sft")
    merged = tmp_path / "merged"
    sft.merge_and_unload().save_pretrained(merged)
    adapted = adapter(merged, tmp_path / "rm", AutoModelForSequenceClassification)
    shutil.rmtree(merged)
    config = tmp_path / "rm" / "adapter_config.json"
    edit(config, lambda entries: entries.update(base_model_name_or_path=str(tmp_path / "sft")))
    with torch.inference_mode():
        expected = float(adapted(IDS).logits[0, 0])
        reward = float(read_checkpoint(str(tmp_path / "rm"), "").model(IDS).logits[0, 0])
    assert reward == pytest.approx(expected, abs=1e-5)


def rename_base(folder: Path) -> None:
    edit(folder / "adapter_config.json", lambda c: c.update(base_model_name_or_path="nowhere"))


def forget_base(folder: Path) -> None:
    edit(folder / "adapter_config.json", lambda c: c.update(base_model_name_or_path=None))


def own_base(folder: Path) -> None:
    edit(folder / "adapter_config.json", lambda c: c.update(base_model_name_or_path=str(folder)))


def old_base(folder: Path) -> None:
    rename_base(folder)
    edit(folder / "adapter_config.json", lambda c: c.update(revision="0123abc"))


def replicate(folder: Path) -> None:
    edit(folder / "adapter_config.json", lambda c: c.update(layer_replication=[[0, 2], [1, 2]]))


def rename_tensor(folder: Path) -> None:
    def change(tensors: dict[str, Any]) -> None:
        name = min(tensors)
        tensors[name.replace("layers.0", "layers.7")] = tensors.pop(name)

    edit(folder / "adapter_model.safetensors", change)


def narrow(folder: Path) -> None:
    def change(tensors: dict[str, Any]) -> None:
        for name in tensors:
            tensors[name] = tensors[name][..., :3].contiguous()

    edit(folder / "adapter_model.safetensors", change)


def prompt_tuning(folder: Path) -> None:
    edit(folder / "adapter_config.json", lambda c: c.update(peft_type="PROMPT_TUNING"))


def spoil(folder: Path) -> None:
    (folder / "adapter_config.json").write_text("{")


def whole_model_too(folder: Path) -> None:
    (folder / "model.safetensors").touch()


def whole_model_of_pytorch_too(folder: Path) -> None:
    (folder / "pytorch_model-00001-of-00002.bin").touch()


def head_apart(folder: Path) -> None:
    (folder / "value_head.safetensors").touch()


def head_by_another_name(folder: Path) -> None:
    head = torch.ones(1, GROUPED["hidden_size"])
    weights = folder / "adapter_model.safetensors"
    edit(weights, lambda tensors: tensors.update({"base_model.model.lm_head.weight": head}))


def random_start(folder: Path) -> None:
    """Such an adapter belongs to weights of which PEFT had subtracted a randomised decomposition.

    Loading it again subtracts another one: 2.52 for a reward of 2.88.
    """
    edit(folder / "adapter_config.json", lambda c: c.update(init_lora_weights="pissa_niter_4"))


def pointer(folder: Path) -> None:
    path = folder / "adapter_model.safetensors"
    path.write_text("version https://git-lfs.github.com/spec/v1\n")


@pytest.mark.parametrize(
    ("fault", "problem"),
    [
        (rename_base, r"adapter_config.json\); its base model nowhere: there is no such file"),
        (forget_base, "that names no base model: merge it first"),
        (own_base, "that names itself as its base"),
        (old_base, "of the revision 0123abc of nowhere, and only the newest one"),
        (replicate, "that replicates layers .*: merge it first"),
        (rename_tensor, "of its tensors have no place there, .*layers.7.* first"),
        (narrow, "that cannot be merged into .*: .*size mismatch"),
        (prompt_tuning, "is an adapter .*cannot be merged"),
        (random_start, r"that started from pissa_niter_4 \(init_lora_weights\), which changes"),
        (pointer, r"adapter_model\.safetensors is a pointer of Git LFS; .*git lfs pull"),
        (spoil, "adapter_config.json cannot be read"),
        (whole_model_too, "has both a model .* and an adapter"),
        (whole_model_of_pytorch_too, "has both a model .* and an adapter"),
        (head_apart, "with its head in value_head.safetensors, which is not read: merge it first"),
        (head_by_another_name, "1 of its tensors have no place there, .*lm_head.weight first"),
    ],
)
def test_an_adapter_that_cannot_be_merged_is_refused_in_one_line(
    fault: Callable[[Path], None], problem: str, base: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "sft"
    adapter(base, folder)
    fault(folder)
    with pytest.raises(ConfigError, match=f"^--model {folder}.*{problem}") as refused:
        load_checkpoint("--model", str(folder), to_train=True)
    assert "\n" not in str(refused.value)


def test_an_adapter_with_several_outputs_and_four_bit_weights_are_refused(
    base: Path, tmp_path: Path
) -> None:
    adapter(base, tmp_path / "rm", AutoModelForSequenceClassification, labels=3)
    with pytest.raises(ConfigError, match="with 3 outputs in its head score; a reward model has 1"):
        load_checkpoint("CHECKPOINT", str(tmp_path / "rm"), to_train=False)
    with pytest.raises(ConfigError, match="cannot be merged into weights in four bits: merge it"):
        load_checkpoint(
            "--model", str(tmp_path / "rm"), to_train=True, quantised={"load_in_4bit": True}
        )


def test_the_hash_of_a_model_changes_with_its_weights_and_with_an_adapters_base(
    base: Path, tmp_path: Path
) -> None:
    other = shutil.copytree(base, tmp_path / "base")
    adapter(other, tmp_path / "sft")
    before = model_sha256(str(other)), model_sha256(str(tmp_path / "sft"))
    assert before[0] == model_sha256(str(base)) != before[1]
    edit(other / "model.safetensors", lambda tensors: tensors["lm_head.weight"].add_(1))
    after = model_sha256(str(other)), model_sha256(str(tmp_path / "sft"))
    assert before[0] != after[0] and before[1] != after[1]
