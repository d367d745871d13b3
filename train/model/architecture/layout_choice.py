"""The choice of a model's layout: the fastest one that gives each conversation its own reward.

A padded pass takes 2.5 to 4.8 times as long as one over a trie, and single sequences take longer
still, so the reason is part of the layout, and is printed and reported. A layout is not looked up
by the model's name. It is measured: hidden states of the model itself over a small trie, because a
small head makes rewards alike, and rewards of small copies at all lengths (architecture/). Of the
model's own pass over a trie only `UnsupportedAttention` means that it cannot: any other exception
is a bug, and is not caught.
"""

import inspect
import sys
from collections.abc import Callable, Hashable
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor
from transformers import PreTrainedModel

from kwise.errors import ConfigError
from kwise.train.checkpoint.ids import num_rows
from kwise.train.model.architecture.invariance import (
    CannotScore,
    Invariance,
    longest_measured,
    longest_that_holds,
    rewards_alone,
)
from kwise.train.model.architecture.probe import Probe
from kwise.train.model.architecture.quiet import quiet
from kwise.train.model.architecture.small_copy import small_copies
from kwise.train.model.batch import trie_attention
from kwise.train.model.batch.layout import (
    Layout,
    PaddedLayout,
    SeparateLayout,
    TrieLayout,
    trie_states,
)
from kwise.train.model.head import reward_head
from kwise.train.model.limits import model_max_tokens

# They share prefixes of 3 and 4 tokens.
_SEQUENCES = ([3, 4, 5, 6, 7], [3, 4, 5, 6, 8], [3, 4, 5, 9, 10, 11])
# A layout that holds for shorter conversations only is not worth its code paths.
_MIN_SHARED = 32
_CHOICES: dict[Hashable, Layout] = {}
"""The choices of this process that small copies led to: the members of an ensemble, the runs of a
mean and a resumed run have the same architecture."""


def choose_layout(
    model: PreTrainedModel,
    pad_token_id: int,
    probe: Probe | None = None,
    max_tokens: int | None = None,
) -> Layout:
    """Return the fastest layout that gives the model's own rewards.

    Args:
        pad_token_id: a token that no sequence ends with.
        probe: what conversations look like; None for random tokens.
        max_tokens: the longest conversation that the model will get; None for its own limit.

    Raises:
        ConfigError: the model has no reward head, see `reward_head`; it cannot score a
            conversation; or no layout gives its rewards.
    """
    was_training = model.training
    probe = probe or Probe(vocab_size=num_rows(model))
    try:
        with quiet():
            return _choice(model.eval(), pad_token_id, probe, max_tokens)
    except CannotScore as error:
        raise ConfigError(f"{type(model).__name__} cannot score a conversation: {error}") from error
    finally:
        model.train(was_training)


def _choice(
    model: PreTrainedModel, pad_token_id: int, probe: Probe, max_tokens: int | None
) -> Layout:
    # The model itself, before anything else: it may need what this machine does not have.
    rewards_alone(model, [probe.sequence(probe.min_tokens, seed=0)])
    obstacle = _declared_obstacle(model) or _measured_obstacle(model)
    padded = PaddedLayout(pad_token_id, obstacle)
    layouts: list[TrieLayout | PaddedLayout] = [TrieLayout(), padded]
    layouts = [padded] if obstacle else layouts
    longest = longest_measured(model, max_tokens or model_max_tokens(model))
    # All that small copies and what is measured of them depend on. The path does not matter.
    settings = repr(model.config.to_dict() | {"_name_or_path": None})
    attention = model.config._attn_implementation
    key = type(model), settings, attention, probe, longest, *layouts
    if (choice := _CHOICES.get(key)) is not None:
        return choice
    new_copy = small_copies(model)
    if new_copy is None:
        return _unmeasured_choice(model, padded, probe) if obstacle else TrieLayout()
    measured = Invariance(new_copy, probe)
    choice = _measured_choice(measured, layouts, probe.min_tokens, longest, type(model).__name__)
    _CHOICES[key] = choice
    return choice


def _unmeasured_choice(model: PreTrainedModel, padded: PaddedLayout, probe: Probe) -> Layout:
    """Return the layout of a model of which no small copy can be made, from short sequences."""
    obstacle = Invariance(model.eval, probe).obstacle(padded, probe.min_tokens + 24)
    if obstacle is None:
        return padded
    return SeparateLayout(reason=f"{padded.reason}; {obstacle}")


def _measured_choice(
    measured: Invariance,
    layouts: list[TrieLayout | PaddedLayout],
    shortest: int,
    longest: int,
    name: str,
) -> Layout:
    """Return the first layout that holds at all lengths, else the best combination."""
    lengths = sorted({min(shortest + 24, longest), longest})

    def first(obstacle: Callable[[int], str | None]) -> str | None:
        return next((reason for length in lengths if (reason := obstacle(length))), None)

    if any(measured.is_random(length) for length in lengths):
        raise ConfigError(
            f"{name} cannot be trained: training mode changes its rewards, even without dropout"
        )
    reason, limit = first(measured.history_obstacle), None
    if reason is not None:
        limit = longest_that_holds(measured.history_obstacle, shortest, longest)
        if limit < _MIN_SHARED:
            raise ConfigError(f"{name} cannot be trained: {reason}")
        reason = f"beyond that {reason}"
        longest, lengths = limit, sorted({min(lengths[0], limit), limit})
    obstacles: list[str] = []
    for layout in layouts:
        obstacle = first(partial(measured.obstacle, layout))
        if obstacle is None:
            because = "; ".join(filter(None, [layout.reason, *obstacles, reason])) or None
            return replace(layout, reason=because, max_tokens=limit)
        obstacles.append(obstacle)
    if obstacle := first(partial(measured.obstacle, SeparateLayout())):
        raise ConfigError(f"{name} cannot be trained: {obstacle}")
    because = "; ".join(filter(None, [layouts[0].reason, *obstacles, reason]))
    for layout in layouts:
        shared = longest_that_holds(partial(measured.obstacle, layout), shortest, longest)
        if shared >= _MIN_SHARED:
            return SeparateLayout(layout, shared, because, limit)
    return SeparateLayout(reason=because, max_tokens=limit)


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
    if torch.allclose(measured, expected, rtol=0, atol=tolerance):
        return None
    return "its hidden states over a trie differ from those of whole sequences"


def _last_state(model: PreTrainedModel, sequence: list[int]) -> Tensor:
    """Return the hidden state of the last token, [hidden size], of an ordinary pass."""
    input_ids = torch.tensor([sequence], device=model.device)
    state: Tensor = model.base_model(input_ids).last_hidden_state[0, -1]
    return state
