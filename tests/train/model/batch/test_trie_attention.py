"""Attention over a trie, run by run, equals attention with one mask, forward and backward."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from kwise.train.model.batch.layout import TrieLayout
from kwise.train.model.batch.trie_attention import UnsupportedAttention, trie_attention, trie_mask

# Of few ids, so that prefixes are shared and some sequences are prefixes of others.
SEQUENCES = st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=8), min_size=1, max_size=6)
# Long enough to be cut into several calls, at and off the cut.
LONG = [
    [*range(n), *tail]
    for n, tails in ((255, [[7], [8]]), (600, [[1] * 300, [2] * 256, [3]]))
    for tail in tails
]


@given(
    sequences=SEQUENCES | st.sampled_from([LONG, LONG[:1], LONG[3:]]),
    heads=st.sampled_from([(1, 1), (4, 2), (3, 1)]),
    value_width=st.sampled_from([4, 3]),
)
def test_output_and_gradients_are_those_of_a_mask(
    sequences: list[list[int]], heads: tuple[int, int], value_width: int
) -> None:
    """The kernel of CPUs needs values as wide as keys; others take PyTorch's own graph."""
    ends = TrieLayout().lay_out(sequences)["ends"]
    rows = torch.arange(len(ends))
    visible = (rows[None, :] <= rows[:, None]) & (rows[:, None] < ends[None, :])
    shapes = [(1, heads[0], len(ends), 4)]
    shapes += [(1, heads[1], len(ends), width) for width in (4, value_width)]
    torch.manual_seed(0)
    inputs = [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes]
    query, key, value = inputs
    shared = heads[0] // heads[1]

    in_runs = trie_attention(nn.Module(), query, key, value, trie_mask(ends), scaling=0.3)[0]
    keys, values = (tensor.repeat_interleave(shared, 1) for tensor in (key, value))
    expected = F.scaled_dot_product_attention(query, keys, values, attn_mask=visible, scale=0.3)
    expected = expected.transpose(1, 2)

    torch.testing.assert_close(in_runs, expected)
    upstream = torch.randn_like(expected)
    for ours, theirs in zip(
        _gradients(in_runs, upstream, inputs), _gradients(expected, upstream, inputs), strict=True
    ):
        torch.testing.assert_close(ours, theirs)


def _gradients(output: Tensor, upstream: Tensor, inputs: list[Tensor]) -> tuple[Tensor, ...]:
    return torch.autograd.grad(output, inputs, upstream)


@pytest.mark.parametrize("heads", [(2, 2), (4, 2)])
@pytest.mark.parametrize("transposed", [0, 1, 2])
def test_values_of_a_head_need_not_be_neighbours_in_memory(
    heads: tuple[int, int], transposed: int
) -> None:
    """The kernel would read other memory, without an error."""
    mask = trie_mask(TrieLayout().lay_out(LONG[:2])["ends"])
    torch.manual_seed(0)
    shapes = [(1, count, mask.shape[2], 16) for count in (heads[0], heads[1], heads[1])]
    inputs = [torch.randn(shape, requires_grad=True) for shape in shapes]
    others = [tensor.detach().clone() for tensor in inputs]
    others[transposed] = others[transposed].mT.contiguous().mT
    others = [tensor.requires_grad_() for tensor in others]
    upstream = torch.randn(16, heads[0], mask.shape[2], 1).permute(3, 2, 1, 0)

    def attended(qkv: list[Tensor]) -> Tensor:
        query, key, value = qkv
        return trie_attention(nn.Module(), query, key, value, mask)[0]

    expected, output = attended(inputs), attended(others)

    torch.testing.assert_close(output, expected)
    for ours, theirs in zip(
        _gradients(output, upstream, others),
        _gradients(expected, upstream.contiguous(), inputs),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("widths", [(64, 64), (64, 32)])
def test_bf16_is_as_near_to_float64_as_bf16_is_precise(widths: tuple[int, int]) -> None:
    """Under autocast, as in a backbone in bf16, attention takes any dtypes."""
    ends = TrieLayout().lay_out(LONG)["ends"]
    torch.manual_seed(0)
    shapes = [(1, 4, len(ends), widths[0]), *((1, 2, len(ends), width) for width in widths)]
    inputs = [torch.randn(shape, requires_grad=True) for shape in shapes]
    upstream = torch.randn(1, len(ends), 4, widths[1])

    def attend(dtypes: tuple[torch.dtype, ...], use_autocast: bool) -> list[Tensor]:
        query, key, value = (tensor.to(dtype) for tensor, dtype in zip(inputs, dtypes, strict=True))
        with torch.autocast("cpu", torch.bfloat16, enabled=use_autocast):
            output = trie_attention(nn.Module(), query, key, value, trie_mask(ends))[0]
        return [output.detach(), *_gradients(output, upstream.to(output.dtype), inputs)]

    mixed = (torch.bfloat16, torch.float32, torch.bfloat16)
    expected = attend(3 * (torch.float64,), use_autocast=False)
    for ours, exact in zip(attend(mixed, use_autocast=True), expected, strict=True):
        scale = float(exact.abs().max())
        assert float((ours.double() - exact).abs().max()) < 0.02 * scale


@pytest.mark.parametrize("argument", [{"sliding_window": 8}, {"softcap": 30.0}])
def test_attention_of_another_kind_is_refused(argument: dict[str, Any]) -> None:
    """The model is then trained padded; ignoring the argument would train another model."""
    query = torch.zeros(1, 1, 2, 4)
    with pytest.raises(UnsupportedAttention, match=next(iter(argument))):
        trie_attention(
            nn.Module(), query, query, query, trie_mask(torch.tensor([2, 2])), **argument
        )
