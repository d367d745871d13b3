"""Attention over a trie of tokens, registered with transformers so that no model is rewritten.

Every architecture whose attention goes through transformers' `AttentionInterface` calls this function instead of its own.
Position-wise layers run on T rows, one per distinct prefix; here each tile of queries gathers its keys and runs ONNX's own
`Attention` (opset 23, grouped heads, 3-D inputs: no transposes, no expanded heads). The table that keys are gathered from
has the batch's rows first, then P entries that earlier batches computed. One set of index arrays, and one mask a class and
window size, serve all layers. `kwise.engine.model.packing` makes the arrays and says what they mean.

Dimensions: T rows, P past entries, N tiles of a class, S queries in a tile, L keys of a tile, H query heads, G key/value
heads, D head size.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface

IMPLEMENTATION = "kwise_trie"
# The TorchScript exporter stops at opset 20, so the operator travels under a domain of ours; `trie_graph.py` renames it.
PLACEHOLDER_DOMAIN = "kwise"
# Finite, as ONNX Runtime's softmax expects; far below any score, yet exact when added to one.
_MASKED = -1e9


KeyValue = tuple[Tensor, Tensor]
"""Keys and values of one layer, each [entries, G·D]."""


@dataclass(slots=True, kw_only=True)
class TrieBatch:
    """The graph's index inputs while a model runs on them, and what follows from them.

    positions, preorder, subtree_end: int64[T+P]; queries, keys: one int64[N, S] and int64[N, L] a class; outputs: int64[T]; past: a
    layer's keys and values each [P, G·D], empty for none; rows_to_cache: int64[rows], whose keys and values each layer adds to
    `present`.
    """

    positions: Tensor
    preorder: Tensor
    subtree_end: Tensor
    queries: Sequence[Tensor]
    keys: Sequence[Tensor]
    outputs: Tensor
    past: Sequence[KeyValue] = ()
    rows_to_cache: Tensor | None = None
    present: list[KeyValue] = field(default_factory=list)
    _masks: dict[tuple[int, int | None], Tensor] = field(default_factory=dict)

    def mask(self, c: int, window: int | None, dtype: torch.dtype) -> Tensor:
        """[N, 1, S, L] in `dtype`: 0 where key k is query q or its ancestor, else −1e9.

        With a window, also only the `window` nearest positions, the query's own included.
        """
        if (c, window) not in self._masks:
            queries, keys = self.queries[c][:, :, None], self.keys[c][:, None, :]
            order = self.preorder[queries]
            visible = (
                (keys >= 0) & (self.preorder[keys] <= order) & (order < self.subtree_end[keys])
            )
            if window is not None:
                visible = visible & (self.positions[queries] - self.positions[keys] < window)
            masked = torch.zeros_like(visible, dtype=dtype).masked_fill(~visible, _MASKED)
            self._masks[c, window] = masked[:, None]
        return self._masks[c, window]

    def table(self, key: Tensor, value: Tensor) -> KeyValue:
        """What the next layer's tiles gather from: the rows' keys and values, [T, G·D], and behind them the past's."""
        layer = len(self.present)
        self.present.append(
            (key, value)
            if self.rows_to_cache is None
            else (key[self.rows_to_cache], value[self.rows_to_cache])
        )
        if not self.past:
            return key, value
        past_key, past_value = self.past[layer]
        return torch.cat([key, past_key]), torch.cat([value, past_value])


_running: ContextVar[TrieBatch] = ContextVar("trie batch")


@contextmanager
def on_trie(model: torch.nn.Module, batch: TrieBatch) -> Iterator[None]:
    """Within, one pass of `model` attends over the trie that `batch` describes."""
    token = _running.set(batch)
    previous = model.config._attn_implementation
    model.config._attn_implementation = IMPLEMENTATION
    try:
        yield
    finally:
        model.config._attn_implementation = previous
        _running.reset(token)


class _TileAttention(torch.autograd.Function):
    """queries [N, S, H·D], keys and values [N, L, G·D], mask [N, 1, S, L] → [N, S, H·D]; one node in ONNX."""

    @staticmethod
    def forward(
        ctx: Any,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        mask: Tensor,
        scale: float,
        softcap: float,
        heads: int,
        kv_heads: int,
    ) -> Tensor:
        q, k, v = (
            x.unflatten(-1, (n, -1)).transpose(1, 2)
            for x, n in ((q, heads), (k, kv_heads), (v, kv_heads))
        )
        k, v = (x.repeat_interleave(heads // kv_heads, 1) for x in (k, v))
        scores = q @ k.transpose(2, 3) * scale
        if softcap:
            scores = torch.tanh(scores / softcap) * softcap
        return ((scores + mask).softmax(-1) @ v).transpose(1, 2).flatten(2)

    @staticmethod
    def symbolic(
        g: Any,
        q: Any,
        k: Any,
        v: Any,
        mask: Any,
        scale: float,
        softcap: float,
        heads: int,
        kv_heads: int,
    ) -> Any:
        node = g.op(
            f"{PLACEHOLDER_DOMAIN}::Attention",
            q,
            k,
            v,
            mask,
            scale_f=scale,
            softcap_f=softcap,
            q_num_heads_i=heads,
            kv_num_heads_i=kv_heads,
        )
        return node.setType(q.type())


def trie_attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    softcap: float | None = None,
    is_causal: bool | None = None,
    head_mask: Tensor | None = None,
    **options: Any,
) -> tuple[Tensor, None]:
    """transformers' attention contract: query [1, H, T, D], key and value [1, G, T, D] → ([1, T, H, D], None).

    Raises:
        NotImplementedError: the model asks for something that changes the result and that this function does not do.
    """
    unknown = {name for name, value in options.items() if value is not None} - _IGNORED
    if unknown or is_causal is False or head_mask is not None:
        raise NotImplementedError(
            f"{type(module).__name__} attends with {sorted(unknown) or 'a mask of its own'}"
        )
    batch = _running.get()
    heads, kv_heads, dim = int(query.shape[1]), int(key.shape[1]), int(query.shape[3])
    scale = float(scaling if scaling is not None else dim**-0.5)
    q, k, v = (x.transpose(1, 2).flatten(2)[0] for x in (query, key, value))
    k, v = batch.table(k, v)
    outputs = []
    for c, (queries, keys) in enumerate(zip(batch.queries, batch.keys, strict=True)):
        mask = batch.mask(c, sliding_window, q.dtype)
        tile = _TileAttention.apply(
            q[queries], k[keys], v[keys], mask, scale, float(softcap or 0.0), heads, kv_heads
        )
        outputs.append(tile.reshape(-1, tile.shape[2]))
    rows = torch.cat(outputs)[batch.outputs]
    return rows.view(1, -1, heads, int(value.shape[3])), None


# What models pass along that does not change what attention computes here: positions are in `positions` already.
_IGNORED = {
    "position_ids",
    "cache_position",
    "output_attentions",
    "use_cache",
    "position_embeddings",
}

AttentionInterface.register(IMPLEMENTATION, trie_attention)
