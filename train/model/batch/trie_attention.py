"""Attention of a training pass over a trie: every row attends to its ancestors and to itself.

Rows are in depth-first order, so the trie is a series of runs: within a run each row is the child
of the row before it. K responses that begin differently give K runs, the first of which includes
the prompt. The rows of a run attend to the run and to the ancestors of its first row, in one call
of PyTorch's kernel. A run of more than 256 rows is cut, because half of each L × L block is masked
and computed in vain. One mask of N × N for the whole trie would compute 4 times as much at K = 9
and P/R = 256/128.

On a CPU, all runs are one autograd function, which calls the kernel's forward and backward itself
(`_TrieAttention`). PyTorch's own graph would keep the keys and values of each run, and its backward
would write a gradient of all N rows for each run.

The function is registered with transformers' `AttentionInterface`, like the attention of the
exported graph (export/graphs/attention.py), and chosen by the model's config. A pass is recognised
by its mask: transformers passes a 4D mask on unread, and gradient checkpointing keeps it among the
layer's arguments when it runs a layer again. Other masks go to `sdpa`.

Dimensions: N nodes of the trie; H query heads; G key and value heads; D values per head of queries
and keys, and E of values (another number in DeepSeek's latent attention); L rows of a run; A rows
that the run attends to, its ancestors and itself.
"""

from dataclasses import dataclass, field
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
        biases: what `bias` has returned in this pass.
    """

    start: int
    end: int
    path: Tensor | None
    visible: Tensor
    biases: dict[tuple[int, torch.dtype], Tensor] = field(default_factory=dict)

    def select(self, key: Tensor) -> Tensor:
        """Return the rows of `path`, [1, G, A, D] of [1, G, N, D]; of `value` likewise.

        It is a view if possible, because copies are kept for the backward pass.
        """
        return key[:, :, : self.end] if self.path is None else key.index_select(2, self.path)

    def add(self, sums: Tensor, part: Tensor) -> None:
        """Add `part`, [1, G, A, D], to the rows of `path` of `sums`, [1, G, N, D]."""
        if self.path is None:
            sums[:, :, : self.end] += part
        else:
            sums.index_add_(2, self.path, part)

    def fold(self, tensor: Tensor, num_groups: int) -> Tensor:
        """Return this run's rows of a tensor [1, H, N, D], as [1, G, H / G · L, D].

        The H / G query heads that share a key head become rows of one head, so that no key is
        repeated.
        """
        return tensor[:, :, self.start : self.end].reshape(1, num_groups, -1, tensor.shape[3])

    def unfold(self, tensor: Tensor, num_heads: int) -> Tensor:
        """Return a tensor [1, G, H / G · L, D] as [1, H, L, D]."""
        return tensor.reshape(1, num_heads, self.end - self.start, tensor.shape[3])

    def bias(self, shared: int, dtype: torch.dtype) -> Tensor:
        """Return `visible` for folded rows, [H / G · L, A]: 0 if visible, else −infinity.

        The kernel would make it of `visible` in each call: 1.3 % of the time of a training step.
        """
        if (shared, dtype) not in self.biases:
            hidden = ~self.visible.repeat(shared, 1)
            zeros = torch.zeros(hidden.shape, dtype=dtype, device=hidden.device)
            self.biases[shared, dtype] = zeros.masked_fill_(hidden, float("-inf"))
        return self.biases[shared, dtype]


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
    if query.device.type == "cpu" and query.shape[3] == value.shape[3]:  # as the kernel requires
        if torch.is_autocast_enabled("cpu"):  # it does not know the kernel
            dtype = torch.get_autocast_dtype("cpu")
            query, key, value = query.to(dtype), key.to(dtype), value.to(dtype)
        # The kernel reads the values of a head as neighbours, whatever the stride says.
        query, key, value = (
            tensor if tensor.stride(3) == 1 else tensor.contiguous()
            for tensor in (query, key, value)
        )
        return _TrieAttention.apply(query, key, value, attention_mask.runs, scaling), None
    outputs = [_run_attention(query, key, value, run, scaling) for run in attention_mask.runs]
    return torch.cat(outputs, dim=2).transpose(1, 2).contiguous(), None


def _run_attention(
    query: Tensor, key: Tensor, value: Tensor, run: Run, scaling: float | None
) -> Tensor:
    """Return the output of one run, [1, H, L, E]."""
    num_heads, num_groups = query.shape[1], key.shape[1]
    output = F.scaled_dot_product_attention(
        run.fold(query, num_groups),
        run.select(key),
        run.select(value),
        attn_mask=run.visible.repeat(num_heads // num_groups, 1),
        scale=scaling,
    )
    return run.unfold(output, num_heads)


_forward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


class _TrieAttention(torch.autograd.Function):
    """The attention of all runs on a CPU; D = E.

    Beside its inputs and its output it keeps one number per row and head, the logarithm of the sum
    of softmax. The backward pass selects keys and values again, and adds each gradient in place.
    """

    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        runs: list[Run],
        scaling: float | None,
    ) -> Tensor:
        num_heads, num_groups = query.shape[1], key.shape[1]
        # In the order of the next matmul, so that it is not copied.
        output = query.new_empty(1, query.shape[2], num_heads, value.shape[3])
        log_sums = []
        for run in runs:
            rows, log_sum = _forward(
                run.fold(query, num_groups),
                run.select(key),
                run.select(value),
                attn_mask=run.bias(num_heads // num_groups, query.dtype),
                scale=scaling,
            )
            output[:, run.start : run.end] = run.unfold(rows, num_heads).transpose(1, 2)
            log_sums.append(log_sum)
        ctx.save_for_backward(query, key, value, output, *log_sums)
        ctx.runs, ctx.scaling = runs, scaling
        return output

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, output, *log_sums = ctx.saved_tensors
        num_heads, num_groups = query.shape[1], key.shape[1]
        gradient, output = gradients[0].transpose(1, 2), output.transpose(1, 2)
        # In bfloat16 the kernel's backward takes 1.2 times as long as in float32, conversions
        # included (AVX512-BF16 and AMX).
        dtype = torch.promote_types(query.dtype, torch.float32)
        of_query = torch.empty_like(query)
        of_key, of_value = (torch.zeros_like(tensor, dtype=dtype) for tensor in (key, value))
        for run, log_sum in zip(ctx.runs, log_sums, strict=True):
            of_rows, of_keys, of_values = _backward(
                run.fold(gradient, num_groups).to(dtype),
                run.fold(query, num_groups).to(dtype),
                run.select(key).to(dtype),
                run.select(value).to(dtype),
                run.fold(output, num_groups).to(dtype),
                log_sum,
                0.0,
                False,
                attn_mask=run.bias(num_heads // num_groups, dtype),
                scale=ctx.scaling,
            )
            of_query[:, :, run.start : run.end] = run.unfold(of_rows, num_heads)
            run.add(of_key, of_keys)
            run.add(of_value, of_values)
        return of_query, of_key.to(key.dtype), of_value.to(value.dtype), None, None


AttentionInterface.register(IMPLEMENTATION, trie_attention)
AttentionMaskInterface.register(IMPLEMENTATION, sdpa_mask)
