"""The sequences of a pass as tensors, and their rewards: over the trie of all their tokens, or padded.

The K conversations of a ranking share their prompt. Over the trie each distinct prefix is one row, so a pass computes
P + ΣR rows instead of K·(P + longest R), forward and backward; on the example rankings that is 2.65 times fewer. Each row
attends to its ancestors (attention.py), and positions are depths. Where a model's attention does not go through transformers'
`AttentionInterface`, or has windows of its own, its sequences are padded.

Every pass goes through the model's own `forward`, to which `read_tries` teaches the trie: whatever is wrapped around it, adapters
of PEFT, DistributedDataParallel, autocast, sees trie and padded passes alike.

Dimensions: S sequences, T tokens of the longest of them, N nodes of their trie.
"""

import functools
import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.utils import ModelOutput

from kwise.engine.trie import Trie, build_trie
from kwise.train.model import attention

_OF_FORWARD = frozenset(
    {
        "input_ids",
        "attention_mask",
        "position_ids",
        "ends",
        "last_nodes",
        "text_nodes",
        "text_targets",
    }
)


class TrainLayout(Enum):
    """How the sequences of a pass lie in its tensors."""

    TRIE = "trie"
    PADDED = "padded"


def lay_out(
    sequences: Sequence[Sequence[int]], layout: TrainLayout, pad_token_id: int
) -> dict[str, Tensor]:
    """What `rewards_of` reads; a dict because Hugging Face's `Trainer` moves dicts of tensors between devices.

    trie: input_ids, position_ids: int64[1, N]; ends: int64[N], rows below row n are n+1 … ends[n]-1; last_nodes: int64[S].
    padded, on the right: input_ids, attention_mask: int64[S, T], the mask 0 on padding.
    """
    if layout is TrainLayout.TRIE:
        return trie_tensors(trie_of(sequences))
    rows = [torch.tensor(sequence) for sequence in sequences]
    input_ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=pad_token_id)
    lengths_S = torch.tensor([len(sequence) for sequence in sequences])
    # From the lengths, not from the ids: the padding token may occur inside a conversation.
    return {
        "input_ids": input_ids,
        "attention_mask": (torch.arange(input_ids.shape[1]) < lengths_S[:, None]).long(),
    }


def trie_of(sequences: Sequence[Sequence[int]]) -> Trie:
    """Of sequences as training has them."""
    return build_trie([np.array(sequence, np.int64) for sequence in sequences])


def trie_tensors(trie: Trie) -> dict[str, Tensor]:
    """`lay_out`'s of a trie."""
    input_ids, position_ids = (
        torch.from_numpy(trie.token_ids)[None],
        torch.from_numpy(trie.depths)[None],
    )
    ends, last_nodes = torch.from_numpy(trie.ends), torch.from_numpy(trie.last_nodes)
    return {
        "input_ids": input_ids,
        "position_ids": position_ids,
        "ends": ends,
        "last_nodes": last_nodes,
    }


@dataclass
class TrieOutput(ModelOutput):
    """logits: [S, labels]. text_log_probs: float32[M], of `text_targets`, where they were given (see text_regulariser.py)."""

    logits: Tensor | None = None
    text_log_probs: Tensor | None = None


def rewards_of(model: nn.Module, tensors: Mapping[str, Tensor]) -> Tensor:
    """`rewards_and_text_of` without the text."""
    return rewards_and_text_of(model, tensors)[0]


def rewards_and_text_of(
    model: nn.Module, tensors: Mapping[str, Tensor]
) -> tuple[Tensor, Tensor | None]:
    """The reward of each sequence, float32[S], and the log-probabilities of `text_targets`, float32[M], if there are any: the one
    place where training and evaluation run the model.

    Args:
        model: a sequence-classification model, in whatever wrappers; `read_tries` has been called on it if it is to read a trie.
        tensors: of `lay_out`; padded sequences are padded with `config.pad_token_id`, which none of them ends with.
    """
    output = model(**{name: tensor for name, tensor in tensors.items() if name in _OF_FORWARD})
    return output.logits[:, 0].float(), getattr(output, "text_log_probs", None)


def read_tries(model: PreTrainedModel) -> None:
    """Teach `model.forward` to take the tensors of a trie as well: logits [S, labels], a row for each sequence.

    An attribute of this one model, as accelerate's mixed precision does it: class, weights and what is saved stay. Its attention is
    ours from now on, which leaves other masks than a trie's alone.
    """
    model.config._attn_implementation = attention.IMPLEMENTATION
    plain = model.forward

    @functools.wraps(plain)
    def forward(*args: Any, **kwargs: Any) -> Any:
        if "last_nodes" not in kwargs:
            return plain(*args, **kwargs)
        states_N = _states(model, kwargs)
        output = TrieOutput(logits=model.score(states_N[kwargs["last_nodes"]]))
        if "text_nodes" in kwargs:
            log_probs_MV = model.kwise_text_head(states_N[kwargs["text_nodes"]]).log_softmax(-1)
            output.text_log_probs = log_probs_MV.gather(1, kwargs["text_targets"][:, None])[:, 0]
        return output

    model.forward = forward


@torch.no_grad()
def best_layout(model: PreTrainedModel) -> TrainLayout:
    """TRIE where the backbone's hidden states over a trie are those of whole sequences: measured, not looked up by name, and
    not by rewards, which a small head would make alike."""
    windows = getattr(model.config, "sliding_window", None) or set(
        getattr(model.config, "layer_types", None) or ()
    ) - {"full_attention"}
    plain = model.config._attn_implementation
    takes_positions = "position_ids" in inspect.signature(model.base_model.forward).parameters
    if (
        windows
        or not takes_positions
        or not isinstance(getattr(model, "score", None), torch.nn.Module)
    ):
        return TrainLayout.PADDED
    sequences = [[3, 4, 5, 6, 7], [3, 4, 5, 8], [3, 4, 5, 9, 10, 11]]
    tensors = {
        name: tensor.to(model.device)
        for name, tensor in lay_out(sequences, TrainLayout.TRIE, 0).items()
    }
    was_training = model.training
    model.eval()
    model.config._attn_implementation = attention.IMPLEMENTATION
    try:
        over_trie = _states(model, tensors)[tensors["last_nodes"]]
        whole = [
            model.base_model(torch.tensor([ids], device=model.device)).last_hidden_state[0, -1]
            for ids in sequences
        ]
        expected = torch.stack(whole)
        alike = torch.allclose(over_trie, expected, rtol=0, atol=1e-4 * float(expected.abs().max()))
    except Exception:  # noqa: BLE001 - whatever a model raises that does not read such a mask or such ids
        alike = False
    finally:
        model.train(was_training)
        model.config._attn_implementation = plain
    return TrainLayout.TRIE if alike else TrainLayout.PADDED


def _states(model: PreTrainedModel, tensors: Mapping[str, Tensor]) -> Tensor:
    """[N, hidden size]: the hidden states of a trie."""
    mask = attention.trie_mask(tensors["ends"])
    states: Tensor = model.base_model(
        input_ids=tensors["input_ids"], position_ids=tensors["position_ids"], attention_mask=mask
    ).last_hidden_state
    return states[0]
