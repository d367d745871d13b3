"""The choice of a model's layout: the trie if it can run over one, else padded with a reason.

A padded pass takes 2.5 to 4.8 times as long, so the reason is part of the layout, and is printed
and reported. Whether a model can run over a trie is measured on hidden states, not looked up by
name; rewards would not do, because a small head makes them alike. Only `UnsupportedAttention` means
that it cannot: any other exception is a bug, and is not caught.
"""

import inspect
import math
import sys

import torch
from torch import Tensor
from transformers import PreTrainedModel

from kwise.train.model import trie_attention
from kwise.train.model.head import reward_head
from kwise.train.model.layout import Layout, PaddedLayout, TrieLayout, trie_states

# They share prefixes of 3 and 4 tokens.
_SEQUENCES = ([3, 4, 5, 6, 7], [3, 4, 5, 6, 8], [3, 4, 5, 9, 10, 11])


def choose_layout(model: PreTrainedModel, pad_token_id: int) -> Layout:
    """Return the fastest layout that gives the model's own rewards.

    Raises:
        ConfigError: the model has no reward head, see `reward_head`.
    """
    reason = _declared_obstacle(model) or _measured_obstacle(model)
    return TrieLayout() if reason is None else PaddedLayout(pad_token_id, reason)


def _declared_obstacle(model: PreTrainedModel) -> str | None:
    """Return what in the model's class or config rules out a trie; None if nothing does."""
    if model.base_model is model:  # base_model_prefix is "", as for Gemma 3 with images
        return f"{type(model).__name__} does not say which of its modules is the backbone"
    backbone = type(model.base_model).__name__
    window = getattr(model.config, "sliding_window", None)
    if window:
        return f"its attention has a sliding window of {window} tokens"
    layer_types = set(getattr(model.config, "layer_types", None) or ()) - {"full_attention"}
    if layer_types:
        return f"it has layers of type {', '.join(sorted(layer_types))}"
    if getattr(model, "_is_stateful", False):  # Mamba, Zamba, Jamba
        return f"{backbone} has recurrent layers"
    if "position_ids" not in inspect.signature(model.base_model.forward).parameters:
        return f"{backbone} takes no position_ids"
    head, _ = reward_head(model)
    if head != "score":
        return f"its reward head, {head}, does not read the last hidden state alone"
    if not _uses_attention_interface(model):
        return f"the attention of {backbone} does not go through transformers' AttentionInterface"
    return None


def _uses_attention_interface(model: PreTrainedModel) -> bool:
    """Return whether the model's code imports the registry that `AttentionInterface` fills.

    `_supports_attention_backend` is not enough: GPTBigCode and BioGPT use the interface without
    declaring it.
    """
    classes = type(model.base_model).__mro__
    own = classes[: classes.index(PreTrainedModel)]
    return any(hasattr(sys.modules[base.__module__], "ALL_ATTENTION_FUNCTIONS") for base in own)


@torch.no_grad()
def _measured_obstacle(model: PreTrainedModel) -> str | None:
    """Return why hidden states over a trie are not those of whole sequences; None if they are."""
    plain_attention = model.config._attn_implementation
    was_training = model.training
    model.eval()
    try:
        expected = torch.stack([_last_state(model, sequence) for sequence in _SEQUENCES])
        tensors = TrieLayout().lay_out(_SEQUENCES)
        tensors = {name: tensor.to(model.device) for name, tensor in tensors.items()}
        model.config._attn_implementation = trie_attention.IMPLEMENTATION
        measured = trie_states(model, tensors)[tensors["last_nodes"]]
    except trie_attention.UnsupportedAttention as error:
        return str(error)
    finally:
        model.train(was_training)
        model.config._attn_implementation = plain_attention
    tolerance = 1e-4 * float(expected.abs().max())
    if not math.isfinite(tolerance):
        return "its hidden states are not finite"
    if torch.allclose(measured, expected, rtol=0, atol=tolerance):
        return None
    return "its hidden states over a trie differ from those of whole sequences"


def _last_state(model: PreTrainedModel, sequence: list[int]) -> Tensor:
    """Return the hidden state of the last token, [hidden size], of an ordinary pass."""
    input_ids = torch.tensor([sequence], device=model.device)
    state: Tensor = model.base_model(input_ids).last_hidden_state[0, -1]
    return state
