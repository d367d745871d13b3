"""The lists of a config that have an entry for each layer, for instance `layer_types`."""

from typing import Any

from transformers import PretrainedConfig

_OF_INDICES = {"mlp_only_layers", "attn_layer_indices", "hybrid_layer_ids"}
"""Names of lists of layer indices, which may be as long by chance."""

_OTHER_NAMES = {"attention_window"}  # Longformer


def lists_per_layer(config: PretrainedConfig, num_layers: int) -> dict[str, list[Any]]:
    """Return the lists of `config` with an entry for each of its `num_layers` layers, by name."""
    return {
        name: value
        for name, value in vars(config).items()
        if isinstance(value, list)
        and len(value) == num_layers
        and (name in _OTHER_NAMES or ("layer" in name and name not in _OF_INDICES))
    }
