"""Attention over a trie of tokens, registered with transformers so that no model is rewritten.

Every architecture whose attention goes through transformers' `AttentionInterface` calls
`trie_attention` instead of its own. Position-wise layers run on T rows, one per distinct prefix.
Here each tile of queries gathers its keys and runs ONNX's own `Attention` (opset 23: grouped heads,
3-D inputs, so no transposes and no expanded heads). The key table has the batch's rows first, then
P past entries. All layers share one set of index arrays and one mask per tile group and window
size. `kwise.engine.model.packing` makes the arrays.

Dimensions: T rows, P past entries, N tiles of a group, S queries in a tile, L keys of a tile, H
query heads, G key/value heads, D head size.
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
# The TorchScript exporter knows operators up to opset 20, so newer ones are traced under a
# placeholder domain. `trie_graph.py` renames it.
PLACEHOLDER_DOMAIN = "kwise"
# Finite, because ONNX Runtime's softmax expects finite values. It is far below any score, so a
# masked score becomes exactly this value.
_MASKED = -1e9


KeyValue = tuple[Tensor, Tensor]
"""Keys and values of one layer, [entries, G·D] each."""


@dataclass(slots=True, kw_only=True)
class TrieBatch:
    """The graph's index inputs while a model runs on them, and the states that the run collects.

    positions, preorder, subtree_end: int64[T+P], see `kwise.engine.model.packing.Packed`.
    queries, keys: int64[N, S] and int64[N, L] for each tile group.
    outputs: int64[T].
    past: the cached keys and values of each layer, [P, G·D]; empty if there are none.
    rows_to_cache: int64[rows to cache], the rows whose keys and values go to `present`; None for
        all rows.
    present: the keys and values of each layer, collected in the layers' order.
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

    def mask(self, group: int, window: int | None, dtype: torch.dtype) -> Tensor:
        """Return [N, 1, S, L] in `dtype`: 0 where key k is query q or its ancestor, else -1e9.

        With a window, a key must also be among the `window` nearest positions, the query's own
        included.
        """
        if (group, window) not in self._masks:
            queries, keys = self.queries[group][:, :, None], self.keys[group][:, None, :]
            order = self.preorder[queries]
            in_subtree = (self.preorder[keys] <= order) & (order < self.subtree_end[keys])
            visible = (keys >= 0) & in_subtree
            if window is not None:
                visible = visible & (self.positions[queries] - self.positions[keys] < window)
            masked = torch.zeros_like(visible, dtype=dtype).masked_fill(~visible, _MASKED)
            self._masks[group, window] = masked[:, None]
        return self._masks[group, window]

    def key_table(self, key: Tensor, value: Tensor) -> KeyValue:
        """Return the next layer's key table: keys and values, [T+P, G·D] each.

        Adds the layer to `present`.
        """
        layer, rows = len(self.present), self.rows_to_cache
        self.present.append((key, value) if rows is None else (key[rows], value[rows]))
        if not self.past:
            return key, value
        past_key, past_value = self.past[layer]
        return torch.cat([key, past_key]), torch.cat([value, past_value])


_running: ContextVar[TrieBatch] = ContextVar("trie batch")


@contextmanager
def on_trie(model: torch.nn.Module, batch: TrieBatch) -> Iterator[None]:
    """Let one pass of `model` within this context attend over the trie of `batch`."""
    token = _running.set(batch)
    previous = model.config._attn_implementation
    model.config._attn_implementation = IMPLEMENTATION
    try:
        yield
    finally:
        model.config._attn_implementation = previous
        _running.reset(token)


class _TileAttention(torch.autograd.Function):
    """The attention of one tile group; one node in ONNX.

    queries [N, S, H·D], keys and values [N, L, G·D], mask [N, 1, S, L] → [N, S, H·D].
    """

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
    """Attend over the running batch's trie, with the signature that transformers expects.

    query [1, H, T, D], key and value [1, G, T, D] → ([1, T, H, D], None).

    Raises:
        NotImplementedError: the model passes an option that changes the result and is not supported
        here.
    """
    unknown = {name for name, value in options.items() if value is not None} - _IGNORED
    if unknown or is_causal is False or head_mask is not None:
        raise NotImplementedError(
            f"{type(module).__name__} attends with {sorted(unknown) or 'a mask of its own'}"
        )
    batch = _running.get()
    heads, kv_heads, dim = int(query.shape[1]), int(key.shape[1]), int(query.shape[3])
    scale = float(scaling if scaling is not None else dim**-0.5)
    # [T, heads·D] each. A constant width: with `flatten(2)[0]` the graph would compute the shape of
    # each and copy it.
    q, k, v = (
        x.transpose(1, 2).reshape(-1, int(x.shape[1]) * int(x.shape[3]))
        for x in (query, key, value)
    )
    k, v = batch.key_table(k, v)
    outputs = []
    for group, (queries, keys) in enumerate(zip(batch.queries, batch.keys, strict=True)):
        mask = batch.mask(group, sliding_window, q.dtype)
        tiles = _TileAttention.apply(
            q[queries], k[keys], v[keys], mask, scale, float(softcap or 0.0), heads, kv_heads
        )
        # A constant width: with `tiles.shape[2]` each call would compute its shape in the graph.
        outputs.append(tiles.reshape(-1, heads * int(value.shape[3])))  # [N·S, H·D]
    rows = torch.cat(outputs)[batch.outputs]  # [T, H·D]
    return rows.view(1, -1, heads, int(value.shape[3])), None


# Options that models pass along and that change nothing here. Positions are in
# `TrieBatch.positions` already.
_IGNORED = {
    "position_ids",
    "cache_position",
    "output_attentions",
    "use_cache",
    "position_embeddings",
}

AttentionInterface.register(IMPLEMENTATION, trie_attention)
