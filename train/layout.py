"""The sequences of a pass as tensors, and their rewards: over the trie of all their tokens, or padded.

The K conversations of a ranking share their prompt. Over the trie each distinct prefix is one row, so a pass computes
P + ΣR rows instead of K·(P + longest R), forward and backward; on the example rankings that is 2.65 times fewer. A mask
that shows each row its ancestors goes to transformers' own attention as it is, and positions are depths. Where a model does
not read such a mask as it stands, or has windows of its own, its sequences are padded. The mask is N², over all rankings of a
pass: several long rankings a pass with short prompts pay more for it than they save.

Dimensions: S sequences, T tokens of the longest of them, N nodes of their trie.
"""

import inspect
from collections.abc import Mapping, Sequence
from enum import Enum

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from kwise.engine.trie import build_trie


class TrainLayout(Enum):
    """How the sequences of a pass lie in its tensors."""

    TRIE = "trie"
    PADDED = "padded"


def lay_out(sequences: Sequence[Sequence[int]], layout: TrainLayout, pad_token_id: int) -> dict[str, Tensor]:
    """What `rewards_of` reads; a dict because Hugging Face's `Trainer` moves dicts of tensors between devices.

    trie: input_ids, position_ids: int64[1, N]; ends: int64[N], rows below row n are n+1 … ends[n]-1; last_nodes: int64[S].
    padded, on the right: input_ids, attention_mask: int64[S, T], the mask 0 on padding.
    """
    if layout is TrainLayout.TRIE:
        trie = build_trie([np.array(sequence, np.int64) for sequence in sequences])
        input_ids, position_ids = torch.from_numpy(trie.token_ids)[None], torch.from_numpy(trie.depths)[None]
        ends, last_nodes = torch.from_numpy(trie.ends), torch.from_numpy(trie.last_nodes)
        return {"input_ids": input_ids, "position_ids": position_ids, "ends": ends, "last_nodes": last_nodes}
    rows = [torch.tensor(sequence) for sequence in sequences]
    input_ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=pad_token_id)
    lengths_S = torch.tensor([len(sequence) for sequence in sequences])
    # From the lengths, not from the ids: the padding token may occur inside a conversation.
    return {"input_ids": input_ids, "attention_mask": (torch.arange(input_ids.shape[1]) < lengths_S[:, None]).long()}


def rewards_of(model: PreTrainedModel, tensors: Mapping[str, Tensor]) -> Tensor:
    """The reward of each sequence, float32[S]: the one place where training and evaluation run the model.

    Args:
        tensors: of `lay_out`; padded sequences are padded with `config.pad_token_id`, which none of them ends with.
    """
    if "last_nodes" not in tensors:
        logits_S1 = model(input_ids=tensors["input_ids"], attention_mask=tensors["attention_mask"]).logits
        return logits_S1[:, 0].float()
    return model.score(_states(model, tensors))[:, 0].float()


@torch.no_grad()
def best_layout(model: PreTrainedModel) -> TrainLayout:
    """TRIE where the backbone's hidden states over a trie are those of whole sequences: measured, not looked up by name, and
    not by rewards, which a small head would make alike."""
    windows = getattr(model.config, "sliding_window", None) or set(getattr(model.config, "layer_types", None) or ()) - {
        "full_attention"
    }
    takes_positions = "position_ids" in inspect.signature(model.base_model.forward).parameters
    if windows or not takes_positions or not isinstance(getattr(model, "score", None), torch.nn.Module):
        return TrainLayout.PADDED
    sequences = [[3, 4, 5, 6, 7], [3, 4, 5, 8], [3, 4, 5, 9, 10, 11]]
    tensors = {name: tensor.to(model.device) for name, tensor in lay_out(sequences, TrainLayout.TRIE, 0).items()}
    was_training = model.training
    model.eval()
    try:
        over_trie = _states(model, tensors)
        whole = [model.base_model(torch.tensor([ids], device=model.device)).last_hidden_state[0, -1] for ids in sequences]
    except Exception:  # noqa: BLE001 - whatever a model raises that does not read such a mask or such ids
        return TrainLayout.PADDED
    finally:
        model.train(was_training)
    expected = torch.stack(whole)
    alike = torch.allclose(over_trie, expected, rtol=0, atol=1e-4 * float(expected.abs().max()))
    return TrainLayout.TRIE if alike else TrainLayout.PADDED


def _states(model: PreTrainedModel, tensors: Mapping[str, Tensor]) -> Tensor:
    """[S, hidden size]: the hidden state of each sequence's last token, over the trie."""
    rows = torch.arange(tensors["input_ids"].shape[1], device=tensors["input_ids"].device)
    visible_NN = (rows[None, :] <= rows[:, None]) & (rows[:, None] < tensors["ends"][None, :])
    states = model.base_model(
        input_ids=tensors["input_ids"], position_ids=tensors["position_ids"], attention_mask=visible_NN[None, None]
    ).last_hidden_state
    return states[0, tensors["last_nodes"]]
