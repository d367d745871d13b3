"""Every tensor of a checkpoint is used, known to be harmless, or named in a refusal."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import save_file

from kwise.errors import ConfigError
from kwise.train.model.checkpoint import load_checkpoint
from tests.edited_checkpoints import Tensors, copy_checkpoint


def adding(**tensors: tuple[int, ...]) -> Callable[[Tensors], Tensors]:
    """Return a change that adds tensors of these shapes; "__" in a name stands for a dot."""
    added = {name.replace("__", "."): torch.ones(shape) for name, shape in tensors.items()}
    return lambda stored: {**stored, **added}


def renaming(old: str, new: str) -> Callable[[Tensors], Tensors]:
    return lambda stored: {name.replace(old, new): tensor for name, tensor in stored.items()}


def dropping(part: str) -> Callable[[Tensors], Tensors]:
    return lambda stored: {name: t for name, t in stored.items() if part not in name}


QUERY = "model__layers__0__self_attn__q_proj__"
UNUSED: dict[str, tuple[Callable[[Tensors], Tensors], dict[str, Any], str]] = {
    "the head's bias": (
        adding(score__bias=(1,)),
        {},
        "score.bias [1]; the head of this class has no bias",
    ),
    "biases of projections": (
        adding(**{f"{QUERY}bias": (16,)}),
        {},
        "model.layers.0.self_attn.q_proj.bias [16]; if they belong to the model, config.json lacks",
    ),
    "an adapter that is not merged": (
        adding(**{f"{QUERY}lora_A__default__weight": (4, 16)}),
        {},
        "lora_A.default.weight [4, 16]; merge the adapter",
    ),
    "more layers than the config's": (
        lambda stored: stored,
        {"num_hidden_layers": 1},
        "does not use 9 tensors of the checkpoint that could change a reward: "
        "model.layers.1.input_layernorm.weight [16], model.layers.1.mlp.down_proj.weight [16, 32], "
        "model.layers.1.mlp.gate_proj.weight [32, 16] and 6 more; config.json states 1 layers",
    ),
    "the head by another name": (
        renaming("score.weight", "value_head.weight"),
        {},
        "value_head.weight [1, 16]; if value_head.weight is the reward head, call it score.weight",
    ),
    "names with a prefix": (
        renaming("model.", "pretrained_model.model."),
        {},
        "pretrained_model.model.embed_tokens.weight shows that the model was saved inside of TRL's "
        "model with a value head: save the inner model, whose names do not begin with",
    ),
    "a head of one output by the name of the language model's": (
        adding(lm_head__weight=(1, 16)),
        {},
        "lm_head.weight [1, 16]; if lm_head.weight is the reward head, call it score.weight",
    ),
    "a head of another task": (adding(qa_outputs__weight=(2, 16)), {}, "qa_outputs.weight [2, 16]"),
    "a bias by the name of a causal mask": (
        adding(model__layers__0__attention__bias=(16,)),
        {},
        "model.layers.0.attention.bias [16]; if they belong to the model",
    ),
    "quantised weights": (
        adding(**{f"{QUERY}qweight": (16, 2)}),
        {},
        "q_proj.qweight [16, 2]; the weights are quantised",
    ),
}


@pytest.mark.parametrize("to_train", [True, False])
@pytest.mark.parametrize("case", UNUSED)
def test_unused_tensors_that_could_change_a_reward_are_refused_by_name_and_shape(
    llama: Path, tmp_path: Path, case: str, to_train: bool
) -> None:
    """from_pretrained drops them without a word, in the model and in every comparison with it."""
    change, stated, message = UNUSED[case]
    path = copy_checkpoint(llama, tmp_path / "copy", change=change, **stated)
    with pytest.raises(ConfigError, match=re.escape(message)) as raised:
        load_checkpoint("--model", str(path), to_train=to_train)
    assert str(raised.value).startswith(f"--model {path}: ") and "\n" not in str(raised.value)


@pytest.mark.parametrize("name", ["lm_head.weight", "model.embeddings.position_ids", "model.mtp.w"])
def test_unused_tensors_that_cannot_change_a_reward_are_named_in_a_note(
    llama: Path, tmp_path: Path, name: str
) -> None:
    path = copy_checkpoint(
        llama, tmp_path / "copy", change=adding(**{name.replace(".", "__"): (2,)})
    )
    loaded = load_checkpoint("--model", str(path), to_train=False)
    assert loaded.notes == (f"{name} of the checkpoint: not used, which changes no reward",)


SMALL = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
LANGUAGE_MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "LlamaForCausalLM": ("Llama", {**SMALL, "intermediate_size": 32}),
    "GPTNeoXForCausalLM": ("GPTNeoX", {**SMALL, "intermediate_size": 32}),
    "GPTJForCausalLM": ("GPTJ", {"n_embd": 16, "n_layer": 1, "n_head": 2, "rotary_dim": 4}),
    "BertForPreTraining": ("Bert", {**SMALL, "intermediate_size": 32}),
    "BertForMaskedLM": ("Bert", {**SMALL, "intermediate_size": 32}),
    "RobertaModel": ("Roberta", {**SMALL, "intermediate_size": 32}),
    "RobertaForMaskedLM": ("Roberta", {**SMALL, "intermediate_size": 32}),
    "DistilBertForMaskedLM": ("DistilBert", {"dim": 16, "n_layers": 1, "n_heads": 2}),
    "AlbertForPreTraining": ("Albert", {**SMALL, "intermediate_size": 32, "embedding_size": 16}),
    "ElectraForPreTraining": ("Electra", {**SMALL, "intermediate_size": 32}),
    "ModernBertForMaskedLM": ("ModernBert", {**SMALL, "intermediate_size": 32}),
    "XLNetLMHeadModel": ("XLNet", {"d_model": 16, "n_layer": 1, "n_head": 2, "d_inner": 32}),
    "XLMWithLMHeadModel": ("XLM", {"emb_dim": 16, "n_layers": 1, "n_heads": 2}),
    # Its head has names that the table does not know. transformers 5 does not have it.
    "MegaForMaskedLM": (
        "Mega",
        {
            "hidden_size": 16,
            "num_hidden_layers": 1,
            "intermediate_size": 16,
            "ema_projection_size": 4,
            "shared_representation_size": 8,
            "nffn_hidden_size": 16,
        },
    ),
}


@pytest.mark.parametrize("name", LANGUAGE_MODELS)
def test_the_heads_of_language_models_are_known_to_be_harmless(tmp_path: Path, name: str) -> None:
    family, options = LANGUAGE_MODELS[name]
    if not hasattr(transformers, name):
        pytest.skip(f"this transformers has no {name}")
    config = getattr(transformers, f"{family}Config")(vocab_size=99, pad_token_id=0, **options)
    getattr(transformers, name)(config).save_pretrained(tmp_path / "model")
    loaded = load_checkpoint("--model", str(tmp_path / "model"), to_train=True)
    assert loaded.new_layers
    with pytest.raises(ConfigError, match="is not a reward model: these weights are missing"):
        load_checkpoint("CHECKPOINT", str(tmp_path / "model"), to_train=False)


def test_a_head_that_starts_at_random_is_told(llama: Path, tmp_path: Path) -> None:
    without_head = copy_checkpoint(llama, tmp_path / "copy", change=dropping("score"))
    loaded = load_checkpoint("--model", str(without_head), to_train=True)
    assert loaded.new_layers == ("score",)
    assert loaded.notes == ("score starts at random, because the checkpoint has no such weights",)


def test_missing_weights_of_the_language_model_are_refused(llama: Path, tmp_path: Path) -> None:
    path = copy_checkpoint(llama, tmp_path / "copy", change=dropping("layers.1"))
    with pytest.raises(ConfigError, match=r"lacks 9 weights of the language model, model\.layers"):
        load_checkpoint("--model", str(path), to_train=True)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_named(llama: Path, tmp_path: Path, value: float) -> None:
    def change(stored: Tensors) -> Tensors:
        stored["model.norm.weight"][3] = value
        return stored

    path = copy_checkpoint(llama, tmp_path / "copy", change=change)
    with pytest.raises(ConfigError, match=r"model\.norm\.weight has values that are NaN"):
        load_checkpoint("--model", str(path), to_train=True)


@pytest.mark.skipif(
    int(transformers.__version__.split(".")[0]) >= 5,
    reason="transformers 5 converts them when it reads them",
)
def test_weights_in_eight_bits_are_refused(llama: Path, tmp_path: Path) -> None:
    """The reason was '"sum_cpu" not implemented'."""
    name = "model.layers.0.self_attn.q_proj.weight"
    path = copy_checkpoint(
        llama, tmp_path / "copy", change=lambda t: {**t, name: t[name].to(torch.float8_e4m3fn)}
    )
    with pytest.raises(ConfigError, match=r"q_proj\.weight is stored in eight bits .*: save the"):
        load_checkpoint("--model", str(path), to_train=True)


def test_other_files_of_weights_are_named(llama: Path, tmp_path: Path) -> None:
    """Those of an earlier training may lie beside the weights that are read."""
    path = copy_checkpoint(llama, tmp_path / "copy")
    for name in ("pytorch_model.bin", "adapter_model.safetensors"):
        (path / name).write_bytes(b"")
    (note,) = load_checkpoint("--model", str(path), to_train=True).notes
    names = "adapter_model.safetensors, pytorch_model.bin"
    assert note == f"other weights in the directory are not read: {names}"


def test_layers_that_sentence_transformers_puts_on_top_are_not_read_silently(
    llama: Path, tmp_path: Path
) -> None:
    """A cross-encoder may have its head in such a layer."""
    path = copy_checkpoint(llama, tmp_path / "copy")
    (path / "2_Dense").mkdir()
    save_file({"linear.weight": torch.ones(1, 16)}, path / "2_Dense" / "model.safetensors")
    modules = [{"path": ""}, {"path": "1_Pooling"}, {"path": "2_Dense"}]
    (path / "modules.json").write_text(json.dumps(modules))
    (note,) = load_checkpoint("--model", str(path), to_train=True).notes
    assert note == "the layers in 2_Dense (modules.json) are not read"
    with pytest.raises(ConfigError, match=r"modules\.json puts layers on top of the model, 2_De"):
        load_checkpoint("CHECKPOINT", str(path), to_train=False)


def test_half_a_head_is_refused(tmp_path: Path) -> None:
    """The other half would start at random."""
    config = transformers.BertConfig(vocab_size=99, num_labels=1, intermediate_size=32, **SMALL)
    transformers.BertForSequenceClassification(config).save_pretrained(tmp_path / "bert")
    path = copy_checkpoint(tmp_path / "bert", tmp_path / "copy", change=dropping("classifier.bias"))
    with pytest.raises(ConfigError, match=r"has classifier\.weight and lacks classifier\.bias"):
        load_checkpoint("--model", str(path), to_train=True)


def test_a_head_for_several_labels_is_refused_with_both_shapes(llama: Path, tmp_path: Path) -> None:
    path = copy_checkpoint(
        llama, tmp_path / "copy", change=lambda t: {**t, "score.weight": torch.ones(3, 16)}
    )
    message = "its head is score.weight [3, 16], and that of a reward model is [1, 16]"
    with pytest.raises(ConfigError, match=re.escape(message)):
        load_checkpoint("--model", str(path), to_train=True)


def test_sizes_in_the_config_that_are_not_those_of_the_weights_are_refused(
    llama: Path, tmp_path: Path
) -> None:
    path = copy_checkpoint(llama, tmp_path / "copy", vocab_size=98)
    message = "does not describe a tensor of the checkpoint: model.embed_tokens.weight [99, 16] "
    with pytest.raises(ConfigError, match=re.escape(message)):
        load_checkpoint("--model", str(path), to_train=True)


@pytest.mark.parametrize(
    ("rope_theta", "size", "fits"), [(10_000.0, 4, True), (1e6, 4, False), (10_000.0, 2, False)]
)
def test_stored_rotary_frequencies_must_be_those_of_the_config(
    llama: Path, tmp_path: Path, rope_theta: float, size: int, fits: bool
) -> None:
    """Old checkpoints hold them, and a config without rope_theta gets a default.

    There are fewer of them if only a part of a head is rotated (partial_rotary_factor).
    """
    frequencies = (rope_theta ** -(torch.arange(0, size, 2) / size)).half()
    path = copy_checkpoint(
        llama,
        tmp_path / "copy",
        change=lambda t: {**t, "model.layers.0.self_attn.rotary_emb.inv_freq": frequencies},
    )
    if fits:
        load_checkpoint("--model", str(path), to_train=False)
        return
    with pytest.raises(ConfigError, match=r"inv_freq is not what config\.json gives \(rope_theta"):
        load_checkpoint("--model", str(path), to_train=False)


@pytest.mark.parametrize("file", ["value_head.safetensors", "score_head.bin", "classifier.pt"])
def test_a_head_in_a_file_of_its_own_is_refused(llama: Path, tmp_path: Path, file: str) -> None:
    path = copy_checkpoint(llama, tmp_path / "copy")
    save_file({"v_head.summary.weight": torch.ones(1, 16)}, path / file)
    with pytest.raises(ConfigError, match=f"the head in {re.escape(file)} is not read"):
        load_checkpoint("--model", str(path), to_train=True)


def test_sharded_and_pickled_checkpoints_are_checked_as_well(llama: Path, tmp_path: Path) -> None:
    model = transformers.AutoModelForSequenceClassification.from_pretrained(llama)
    model.extra = torch.nn.Linear(3, 1)
    model.save_pretrained(tmp_path / "sharded", max_shard_size="5KB")
    model.save_pretrained(tmp_path / "pickled", safe_serialization=False)
    assert (tmp_path / "sharded" / "model.safetensors.index.json").exists()
    for name in ("sharded", "pickled"):
        with pytest.raises(ConfigError, match=r"extra\.bias \[1\], extra\.weight \[1, 3\]"):
            load_checkpoint("--model", str(tmp_path / name), to_train=True)


def test_a_tensor_that_an_index_does_not_list_is_refused(llama: Path, tmp_path: Path) -> None:
    """transformers reads the files of the index, and of those only the tensors that it lists."""
    model = transformers.AutoModelForSequenceClassification.from_pretrained(llama)
    model.model.layers[0].self_attn.q_proj.bias = torch.nn.Parameter(torch.ones(16))
    model.save_pretrained(tmp_path / "copy", max_shard_size="5KB")
    index = tmp_path / "copy" / "model.safetensors.index.json"
    content = json.loads(index.read_text())
    del content["weight_map"]["model.layers.0.self_attn.q_proj.bias"]
    index.write_text(json.dumps(content))
    with pytest.raises(ConfigError, match=r"does not use a tensor .*q_proj\.bias \[16\]"):
        load_checkpoint("--model", str(tmp_path / "copy"), to_train=True)
