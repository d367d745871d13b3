"""The first layers of a language model, as a smaller backbone.

The last layers of a language model prepare the next token. On frozen states a head reads the order
of responses better after two thirds of the layers than after all (docs/evidence.md). Training and
serving do not pay for the layers that are left out.

The config must describe the smaller model, because any program may load the checkpoint. So lists
with an entry for each layer are cut, and a model that is made from the config is compared with the
one in memory.
"""

import json
from typing import Any

import torch
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel

from kwise.errors import ConfigError
from kwise.train.checkpoint.ids import text_config
from kwise.train.model.architecture.layer_lists import lists_per_layer


def keep_first_layers(model: PreTrainedModel, num_layers: int) -> list[str]:
    """Remove all layers of the backbone after the first `num_layers`, and update the config.

    Returns:
        A note on the layers that were removed, if any were.

    Raises:
        ConfigError: the model has fewer layers, does not have its layers in one list, or has a
            config that cannot describe the smaller model.
    """
    config = text_config(model.config)
    total = getattr(config, "num_hidden_layers", None)
    names = _outer_lists(model.base_model, total)
    if total is None or len(names) != 1 or model.config.is_encoder_decoder:
        raise ConfigError(
            f"--layers: {type(model).__name__} does not have its layers in one list; leave it out"
        )
    if num_layers > total:
        raise ConfigError(f"--layers is {num_layers}; it must be at most {total}, the model's own")
    if num_layers == total:
        return []
    del model.base_model.get_submodule(names[0])[num_layers:]
    problem = (
        f"--layers: the config of {type(model).__name__} cannot describe its first {num_layers} "
        "layers"
    )
    try:
        _cut_config(config, total, num_layers)
        described = _is_described_by_config(model, names[0])
    except Exception as error:  # a config checks its lists with errors of any class
        raise ConfigError(f"{problem}: {error}; leave it out") from error
    if not described:
        raise ConfigError(f"{problem}; leave it out")
    return [f"the first {num_layers} of {total} layers are kept (--layers)"]


def _outer_lists(model: nn.Module, length: int | None) -> list[str]:
    """Return the names of the module lists of this length that are in no other such list.

    A layer may have a list of as many experts as the model has layers.
    """
    names = [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.ModuleList) and len(module) == length
    ]
    return [name for name in names if not any(name.startswith(f"{outer}.") for outer in names)]


def _cut_config(config: PretrainedConfig, total: int, num_layers: int) -> None:
    """Set the number of layers, and cut the lists with an entry for each layer.

    Indices of layers that are left out do no harm in a list of indices.
    """
    for name, value in lists_per_layer(config, total).items():
        setattr(config, name, value[:num_layers])
    if hasattr(config, "attention_types"):  # GPT-Neo makes `attention_layers` from it
        config.attention_types = [[config.attention_layers, 1]]
    config.num_hidden_layers = num_layers


def _is_described_by_config(model: PreTrainedModel, layers: str) -> bool:
    """Return whether a model made from the saved config has the same layers.

    Raises what the class and its config raise.

    Args:
        layers: the name of the list of layers in the backbone.
    """
    config = type(model.config).from_dict(json.loads(model.config.to_json_string()))
    config._attn_implementation = model.config._attn_implementation  # it is not saved
    with torch.random.fork_rng(devices=[]), torch.device("meta"):
        loaded = type(model)(config)
    return _structure(loaded, layers) == _structure(model, layers)


def _structure(model: PreTrainedModel, layers: str) -> dict[str, Any]:
    """Return the shapes of the backbone's weights and the settings of its layers.

    Settings are numbers, texts and flags of a module, for instance `sliding_window`.
    """
    backbone = model.base_model
    structure: dict[str, Any] = {
        name: tuple(parameter.shape) for name, parameter in backbone.named_parameters()
    }
    for path, module in backbone.get_submodule(layers).named_modules():
        for name, value in vars(module).items():
            is_setting = value is None or isinstance(value, bool | int | float | str)
            if is_setting and name != "training" and not name.startswith("_"):
                structure[f"{path}.{name}"] = value
    return structure
