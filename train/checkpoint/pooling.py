"""Mean pooling in a checkpoint: what config.json states about it.

The weights do not say at which tokens the head was trained to read, so `kwise_response_header` in
config.json does: the token ids after which a response begins (kwise/engine/model/pooling.py). A
model without the key is read at the last token. transformers does not know the key, and reads every
model at the last token.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from transformers import PretrainedConfig

from kwise.errors import ConfigError
from kwise.types import TokenIds

HEADER_KEY = "kwise_response_header"


def stated_header(place: str, stated: Mapping[str, Any]) -> TokenIds | None:
    """Return the response header that the content of a config.json states; None if it states none.

    Args:
        place: what the user calls the checkpoint; the error begins with it.

    Raises:
        ConfigError: the value is not a list of token ids.
    """
    value = stated.get(HEADER_KEY)
    if value is None:
        return None
    ids = value if isinstance(value, list) else []
    if not ids or not all(type(token_id) is int and token_id >= 0 for token_id in ids):
        raise ConfigError(
            f"{place}: config.json has {HEADER_KEY} {value!r}; it must be a list of token ids"
        )
    return tuple(ids)


def header_of(config: PretrainedConfig) -> TokenIds | None:
    """Return the response header of a loaded config; None without mean pooling."""
    header = getattr(config, HEADER_KEY, None)
    return None if header is None else tuple(header)


def state_header(config: PretrainedConfig, header: Sequence[int] | None) -> None:
    """Write the response header into a config, or remove it if it is None."""
    if header is not None:
        setattr(config, HEADER_KEY, list(header))
    elif hasattr(config, HEADER_KEY):
        delattr(config, HEADER_KEY)
