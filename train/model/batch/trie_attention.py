"""Attention of a training pass over a trie: every row attends to its ancestors and to itself.

Rows are in depth-first order, so the trie is a series of runs: within a run each row is the child
of the row before it. K responses that begin differently give K runs, the first of which includes
the prompt. The rows of a run attend to the run and to the ancestors of its first row, in one call
of PyTorch's kernel. A run of more than 256 rows is cut, because half of each L × L block is masked
and computed in vain. One mask of N × N for the whole trie would compute 4 times as much at K = 9
and P/R = 256/128.

The function is registered with transformers' `AttentionInterface`, like the attention of the
exported graph (export/graphs/attention.py), and chosen by the model's config. A pass is recognised
by its mask: transformers passes a 4D mask on unread, and gradient checkpointing keeps it among the
layer's arguments when it runs a layer again. Other masks go to `sdpa`.

Dimensions: N nodes of the trie; H query heads; G key and value heads; D values per head of queries
and keys, and E of values (another number in DeepSeek's latent attention); L rows of a run; A rows
that the run attends to, its ancestors and itself.
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
_MAX_ROWS = 256
# Arguments that models pass along and that change nothing over a trie. Any other, such as
# `sliding_window`, `softcap` or `s_aux`, changes what attention computes.
_IGNORED_ARGUMENTS = {
    "cache_position",
    "cu_seq_lens_k",
    "cu_seq_lens_q",
    "deterministic",
    "is_causal",  # about passes without a mask
    "max_length_k",
    "max_length_q",
    "output_attentions",
    "output_hidden_states",
    "position_embeddings",
    "position_ids",
    "use_cache",
}


class UnsupportedAttention(NotImplementedError):
    """The model's attention is not plain causal attention, so it cannot run over a trie."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """Rows `start` … `end` − 1 of the trie.

    Attributes:
        path: int64[A], the ancestors of the first row, then the rows; None if these are rows 0 …
            `end` − 1.
        visible: bool[L, A], which rows attend to which.
    """

    start: int
    end: int
    path: Tensor | None
    visible: Tensor

    def select(self, key: Tensor) -> Tensor:
        """Return the rows of `path`, [1, G, A, D] of [1, G, N, D]; of `value` likewise.

        It is a view if possible, because copies are kept for the backward pass.
        """
        return key[:, :, : self.end] if self.path is None else key.index_select(2, self.path)


class TrieMask(Tensor):
    """The attention mask of a trie: its `ends` as int64[1, 1, N, 1], with its runs."""

    runs: list[Run]


def trie_mask(ends: Tensor) -> TrieMask:
    """Return the attention mask of a trie.

    Args:
        ends: int64[N]; the descendants of row n are rows n+1 … ends[n]−1.
    """
    mask = ends[None, None, :, None].as_subclass(TrieMask)
    mask.runs = _runs(ends)
    return mask


def _runs(ends: Tensor) -> list[Run]:
    on_host = ends.cpu().numpy()
    rows = np.arange(len(on_host))
    # A run ends at a row without children: its subtree ends where the next row begins.
    leaf_ends = rows[1:][on_host[:-1] == rows[1:]].tolist()
    bounds = [0, *leaf_ends, len(on_host)]
    starts = [start for begin, end in pairwise(bounds) for start in range(begin, end, _MAX_ROWS)]
    runs = []
    for start, end in pairwise([*starts, len(on_host)]):
        path = np.concatenate([np.flatnonzero(on_host[:start] > start), rows[start:end]])
        length, num_keys = end - start, len(path)
        visible = torch.ones(length, num_keys, dtype=torch.bool, device=ends.device)
        runs.append(
            Run(
                start=start,
                end=end,
                path=None if num_keys == end else torch.from_numpy(path).to(ends.device),
                visible=visible.tril(num_keys - length),
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
    """Return the output of attention, [1, N, H, E], and None in place of the attention weights.

    Args:
        module: the attention layer; transformers' interface has it, only `sdpa` reads it.
        query: [1, H, N, D].
        key: [1, G, N, D].
        value: [1, G, N, E].
        attention_mask: a `TrieMask`; with any other mask this is transformers' `sdpa`.

    Raises:
        UnsupportedAttention: the layer gives an argument that changes attention, or the model has
            changed the mask on its way.
    """
    if not isinstance(attention_mask, TrieMask):
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs
        )
    given = {name for name, value in kwargs.items() if value is not None} - _IGNORED_ARGUMENTS
    if given:
        raise UnsupportedAttention(f"its attention uses {min(given)}")
    if not hasattr(attention_mask, "runs"):  # a slice, a sum: a tensor of the same class
        raise UnsupportedAttention("it changes the attention mask before its layers see it")
    outputs = [
        _run_attention(
            query[:, :, run.start : run.end], run.select(key), run.select(value), run, scaling
        )
        for run in attention_mask.runs
    ]
    return torch.cat(outputs, dim=2).transpose(1, 2).contiguous(), None


def _run_attention(
    query: Tensor, key: Tensor, value: Tensor, run: Run, scaling: float | None
) -> Tensor:
    """Return the output of one run, [1, H, L, E].

    The H / G query heads that share a key head become rows of one head, so that no key is repeated
    and kept twice.
    """
    num_heads, length = query.shape[1:3]
    shared = num_heads // key.shape[1]
    rows = query.reshape(1, key.shape[1], shared * length, query.shape[3])
    visible = run.visible.repeat(shared, 1)
    output = F.scaled_dot_product_attention(rows, key, value, attn_mask=visible, scale=scaling)
    return output.reshape(1, num_heads, length, value.shape[3])


AttentionInterface.register(IMPLEMENTATION, trie_attention)
AttentionMaskInterface.register(IMPLEMENTATION, sdpa_mask)
