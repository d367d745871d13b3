"""Attention of a training pass over a trie: every row sees its ancestors and itself, and nothing that it does not see is computed.

Rows lie depth first, so the trie is a series of runs, each row of a run the child of the one before it; with the K responses of
a ranking that begin differently there are K runs, the first with the prompt. A run's rows attend to the run and to the ancestors
of its first row, in one call of PyTorch's kernel, or in several where the run is long and half of such a call would be hidden. A
mask of N² for the whole trie computes all that it hides, 4 times as much at K = 9 and P/R = 256/128.

Registered with transformers' `AttentionInterface`, as the exported graph's attention is (export/attention.py), and chosen for a
model by its config; whatever is no trie goes to transformers' own `sdpa`. What tells the two apart has to come through the model
with the layers' arguments, for gradient checkpointing calls them again: a "mask" that is 4D already, which transformers hands on
unread.

Dimensions: N nodes of the trie; H heads of queries, G of keys and values; D of a head; L rows of a run, A with its ancestors.
"""

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

IMPLEMENTATION = "kwise_trie_training"
_MOST_ROWS = 256  # of a call: half of its own L² is hidden
# Arguments of attention by which it is not the plain one; a model that gives them is trained padded.
_OTHER_ATTENTION = ("sliding_window", "softcap", "s_aux", "position_bias", "head_mask")


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """Rows `start` … `end` − 1. path: int64[A], the ancestors of the first and then the rows; None where those are all rows up to
    `end`. visible: bool[L, A]."""

    start: int
    end: int
    path: Tensor | None
    visible: Tensor

    def keys(self, key: Tensor) -> Tensor:
        """[1, G, A, D] of [1, G, N, D]; a view where it can be, for what is copied is kept for the backward pass."""
        return key[:, :, : self.end] if self.path is None else key.index_select(2, self.path)


class TrieMask(Tensor):
    """`ends` of a trie in the shape of a mask, int64[1, 1, N, 1], with its runs."""

    runs: list[Run]


def trie_mask(ends: Tensor) -> TrieMask:
    """What a trie's attention mask is to this attention. ends: int64[N], see `lay_out`."""
    mask = ends[None, None, :, None].as_subclass(TrieMask)
    mask.runs = _runs(ends)
    return mask


def _runs(ends: Tensor) -> list[Run]:
    on_host = ends.cpu().numpy()
    rows = np.arange(len(on_host))
    begins = [
        0,
        *(rows[1:][on_host[:-1] == rows[1:]]).tolist(),
        len(on_host),
    ]  # a subtree ends where the next row is no child
    starts = [
        start for begin, after in pairwise(begins) for start in range(begin, after, _MOST_ROWS)
    ]
    runs = []
    for start, end in pairwise([*starts, len(on_host)]):
        path = np.concatenate([np.flatnonzero(on_host[:start] > start), rows[start:end]])
        length, num_keys = end - start, len(path)
        runs.append(
            Run(
                start=start,
                end=end,
                path=None if num_keys == end else torch.from_numpy(path).to(ends.device),
                visible=torch.ones(length, num_keys, dtype=torch.bool, device=ends.device).tril(
                    num_keys - length
                ),
            )
        )
    return runs


def trie_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """[1, N, H, D] of query [1, H, N, D], key and value [1, G, N, D].

    Raises:
        NotImplementedError: the model's attention is not the plain one.
    """
    if not isinstance(attention_mask, TrieMask):
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs
        )
    if other := [name for name in _OTHER_ATTENTION if kwargs.get(name) is not None]:
        raise NotImplementedError(f"attention with {other[0]} over a trie")
    outputs = [
        _of_run(query[:, :, run.start : run.end], run.keys(key), run.keys(value), run, scaling)
        for run in attention_mask.runs
    ]
    return torch.cat(outputs, dim=2).transpose(1, 2).contiguous(), None


def _of_run(query: Tensor, key: Tensor, value: Tensor, run: Run, scaling: float | None) -> Tensor:
    """[1, H, L, D]. The heads that share keys are rows of one head, so that no key is repeated for them and kept twice."""
    _, heads, length, depth = query.shape
    shared = heads // key.shape[1]
    rows = query.reshape(1, key.shape[1], shared * length, depth)
    visible = run.visible.repeat(shared, 1)
    output = F.scaled_dot_product_attention(rows, key, value, attn_mask=visible, scale=scaling)
    return output.reshape(1, heads, length, depth)


AttentionInterface.register(IMPLEMENTATION, trie_attention)
AttentionMaskInterface.register(IMPLEMENTATION, sdpa_mask)
