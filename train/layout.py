"""The sequences of a pass as tensors, and their rewards: over the trie of all their tokens, or padded.

The K conversations of a ranking share their prompt. Over the trie each distinct prefix is one row, so a pass computes
P + ΣR rows instead of K·(P + longest R), forward and backward; on the example rankings that is 2.65 times fewer. A mask
that shows each row its ancestors goes to transformers' own attention as it is, and positions are depths. Where a model does
not read such a mask as it stands, or has windows of its own, its sequences are padded.

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
    rows = torch.arange(tensors["input_ids"].shape[1], device=tensors["input_ids"].device)
    visible_NN = (rows[None, :] <= rows[:, None]) & (rows[:, None] < tensors["ends"][None, :])
    states = model.base_model(
        input_ids=tensors["input_ids"], position_ids=tensors["position_ids"], attention_mask=visible_NN[None, None]
    ).last_hidden_state
    return model.score(states[0, tensors["last_nodes"]])[:, 0].float()


@torch.no_grad()
def best_layout(model: PreTrainedModel) -> TrainLayout:
    """TRIE where the model's rewards over a trie are those of padded sequences: measured, not looked up by name."""
    config = model.config
    windows = getattr(config, "sliding_window", None) or set(getattr(config, "layer_types", None) or ()) - {"full_attention"}
    takes_positions = "position_ids" in inspect.signature(model.base_model.forward).parameters
    if windows or not takes_positions or not isinstance(getattr(model, "score", None), torch.nn.Module):
        return TrainLayout.PADDED
    random = np.random.default_rng(0)
    ids = [i for i in range(min(512, config.get_text_config().vocab_size)) if i != config.pad_token_id]
    prompt = random.choice(ids, 20).tolist()
    sequences = [prompt + random.choice(ids, length).tolist() for length in (5, 1, 9)]
    was_training = model.training
    model.eval()
    try:
        over_trie, padded = (
            rewards_of(model, {n: t.to(model.device) for n, t in lay_out(sequences, layout, config.pad_token_id).items()})
            for layout in TrainLayout
        )
    except (RuntimeError, TypeError, ValueError):
        return TrainLayout.PADDED
    finally:
        model.train(was_training)
    alike = torch.allclose(over_trie, padded, atol=1e-4 * max(1.0, float(padded.std())))
    return TrainLayout.TRIE if alike else TrainLayout.PADDED
