"""The sharded configuration for a 70B model, as far as a machine without devices can tell.

test_processes.py checks that sharded training computes the same.
"""

from typing import Any

import pytest
import torch
from accelerate import FullyShardedDataParallelPlugin
from accelerate.commands.config.config_args import load_config_from_file
from transformers import LlamaConfig, LlamaForSequenceClassification

from kwise.errors import ConfigError
from kwise.train.options.config import Checkpointing
from kwise.train.options.recipe import read_recipe
from kwise.train.run.processes import Processes
from tests.real_data import ROOT

LLAMA_70B = {
    "vocab_size": 32000,
    "hidden_size": 8192,
    "intermediate_size": 28672,
    "num_hidden_layers": 80,
    "num_attention_heads": 64,
    "num_key_value_heads": 8,
}


@pytest.fixture
def fsdp_environment(monkeypatch: pytest.MonkeyPatch) -> Any:
    """What `accelerate launch` sets for train/launch/fsdp.yaml."""
    config = load_config_from_file(str(ROOT / "train/launch/fsdp.yaml")).fsdp_config
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    for name, value in config.items():
        monkeypatch.setenv(
            name.upper(), str(value).lower() if isinstance(value, bool) else str(value)
        )
    return config


def test_by_arithmetic_the_70b_recipe_fits_32_devices_of_80_gb(fsdp_environment: Any) -> None:
    recipe = read_recipe("deepmind-70b")
    assert recipe["gradient_checkpointing"] is Checkpointing.FULL
    assert recipe["rankings_per_step"] % (32 * recipe["rankings_per_pass"]) == 0
    with torch.device("meta"):
        model = LlamaForSequenceClassification(
            LlamaConfig(num_labels=1, pad_token_id=0, **LLAMA_70B)
        )
    plugin = FullyShardedDataParallelPlugin()
    plugin.set_auto_wrap_policy(model)
    (layer_class,) = plugin.auto_wrap_policy.keywords["transformer_layer_cls"]
    layers = [module for module in model.modules() if isinstance(module, layer_class)]
    assert len(layers) == 80 and plugin.fsdp_version == 2 and plugin.reshard_after_forward is True
    per_layer = sum(parameter.numel() for parameter in layers[0].parameters())
    rows = 1024 + 9 * 512  # of a pass: a ranking of K = 9
    in_parts = 16 * model.num_parameters() / 32  # float32 weights, gradients, two moments
    gathered = (
        2 * (4 + 2) * per_layer
    )  # a layer and the next, float32 and what autocast makes of it
    kept = 4 * rows * 8192 * 80  # the input of each layer
    working = 4 * rows * (12 * 8192 + 4 * 28672)  # within one layer, computed again
    assert 34e9 < in_parts < 35e9
    assert in_parts + gathered + kept + working < 0.9 * 80e9


@pytest.mark.parametrize("name", ["ddp", "fsdp"])
def test_launch_configurations_are_accelerates(name: str) -> None:
    config = load_config_from_file(str(ROOT / f"train/launch/{name}.yaml"))
    assert config.num_processes == 8 and config.mixed_precision == "no"


def test_what_shards_otherwise_is_refused(
    fsdp_environment: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FSDP_VERSION", "1")
    with pytest.raises(ConfigError, match=r"launched with FSDP 1, .*set fsdp_version: 2"):
        Processes()
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    with pytest.raises(
        ConfigError, match=r"launched with DeepSpeed, which is not supported; use FSDP 2"
    ):
        Processes()
