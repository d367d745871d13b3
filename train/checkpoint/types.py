"""Check the types of what kwise itself reads in a checkpoint's config.json.

transformers checks hardly any of them, so that a string in the place of a size would fail much
later, and look like a bug.
"""

from collections.abc import Mapping
from typing import Any

from kwise.errors import ConfigError

_NUMBER = ((int, float), "a number")
_OBJECT = ((dict,), "an object")
_LIST = ((list, tuple), "a list")
_TYPES: dict[str, tuple[tuple[type, ...], str]] = {
    "architectures": _LIST,
    "auto_map": _OBJECT,
    "id2label": _OBJECT,
    "layer_types": _LIST,
    "max_position_embeddings": _NUMBER,
    "num_labels": _NUMBER,
    "quantization_config": _OBJECT,
    "sentence_transformers": _OBJECT,
    "text_config": _OBJECT,
    "vocab_size": _NUMBER,
}


def check_types(place: str, stated: Any) -> None:
    """Raise ConfigError if a key of config.json that kwise reads has a value of another type.

    Args:
        place: what the user calls the checkpoint; the error begins with it.
        stated: the content of config.json. null stands for a key that is missing.
    """
    if not isinstance(stated, Mapping):  # transformers 5 does not check this
        raise ConfigError(f"{place}: cannot be read: config.json is not a JSON object")
    for key, (types, expected) in _TYPES.items():
        value = stated.get(key)
        if value is not None and (isinstance(value, bool) or not isinstance(value, types)):
            raise ConfigError(f"{place}: config.json has {key} {value!r}; it must be {expected}")
