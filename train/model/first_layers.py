"""The first layers of a language model, as a smaller backbone.

The last layers of a language model prepare the next token. On frozen states a head reads the order
of responses better after two thirds of the layers than after all (docs/evidence.md), and what is
left out costs nothing in training and serving.
"""

from torch import nn
from transformers import PreTrainedModel

from kwise.errors import ConfigError
from kwise.train.checkpoint.ids import text_config


def keep_first_layers(model: PreTrainedModel, num_layers: int) -> None:
    """Remove all layers of the backbone but the first `num_layers`, and say so in its config.

    Raises:
        ConfigError: the model has fewer layers, or it does not hold them in one list.
    """
    config = text_config(model.config)
    total = getattr(config, "num_hidden_layers", None)
    lists = [
        module
        for module in model.base_model.modules()
        if isinstance(module, nn.ModuleList) and len(module) == total
    ]
    if total is None or len(lists) != 1:
        raise ConfigError(
            f"--layers: {type(model).__name__} does not have its layers in one list; leave it out"
        )
    if num_layers > total:
        raise ConfigError(f"--layers is {num_layers}; the model has {total} layers")
    del lists[0][num_layers:]
    for name, value in vars(config).items():
        if isinstance(value, list) and "layer" in name and len(value) == total:  # `layer_types`
            setattr(config, name, value[:num_layers])
    config.num_hidden_layers = num_layers
