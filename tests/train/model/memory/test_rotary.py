"""Rotary embeddings in few passes over memory: the same rotations and gradients."""

import functools
from types import FunctionType
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers.models.llama import modeling_llama as llama
from transformers.models.qwen2 import modeling_qwen2 as qwen2
from transformers.utils.deprecation import deprecate_kwarg

from kwise.train.model.memory.rotary import Rotary
from kwise.train.model.memory.save_less import _with_rotary


def random(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, requires_grad=True)


def test_the_gradients_are_those_of_finite_differences() -> None:
    torch.manual_seed(0)
    cos, sin = (random(1, 1, 3, 4).detach() for _ in range(2))  # whose halves differ
    rotary: Any = Rotary.apply
    assert torch.autograd.gradcheck(lambda x: rotary(x, cos, sin), random(1, 2, 3, 4))


@pytest.mark.parametrize("transposed", [False, True])
def test_a_rotation_is_that_of_transformers(transposed: bool) -> None:
    torch.manual_seed(0)
    query, key = random(1, 6, 5, 8), random(1, 2, 5, 8)  # [1, heads, N, D]
    if transposed:  # as after a linear layer: [1, N, heads, D] in memory
        query, key = random(1, 5, 6, 8).transpose(1, 2), random(1, 5, 2, 8).transpose(1, 2)
    cos, sin = (random(1, 5, 8).detach() for _ in range(2))
    replaced: Any = _with_rotary(llama.LlamaAttention.forward)
    rotate = replaced.__globals__["apply_rotary_pos_emb"]
    expected = llama.apply_rotary_pos_emb(query, key, cos, sin)
    for rotated, original in zip(rotate(query, key, cos, sin), expected, strict=True):
        torch.testing.assert_close(rotated, original)
        assert rotated.stride() == original.stride()
    given = query.float(), key.float(), cos, sin  # of types that are promoted
    for rotated, original in zip(rotate(*given), llama.apply_rotary_pos_emb(*given), strict=True):
        assert torch.equal(rotated, original)
        assert rotated.dtype is torch.float64
    given = query.transpose(1, 2), key.transpose(1, 2), cos, sin
    expected = llama.apply_rotary_pos_emb(*given, unsqueeze_dim=2)
    for rotated, original in zip(rotate(*given, unsqueeze_dim=2), expected, strict=True):
        assert torch.equal(rotated, original)


@pytest.mark.parametrize(
    ("x", "table", "learned"),
    [
        ((3, 2, 5, 8), (3, 5, 8), False),  # positions that differ between sequences
        ((3, 2, 5, 8), (1, 5, 8), True),
        ((1, 2, 5, 8), (3, 5, 8), False),  # one sequence, rotated by each table
        ((1, 2, 1, 8), (1, 5, 8), False),
        ((1, 2, 5, 7), (1, 5, 7), False),
        ((1, 2, 5, 8), (1, 5, 1), False),
        ((5, 2, 8), (5, 8), False),  # no dimension of sequences
    ],
)
def test_tables_of_any_shape_have_the_gradients_of_transformers(
    x: tuple[int, ...], table: tuple[int, ...], learned: bool
) -> None:
    torch.manual_seed(0)
    given = [*(random(*x) for _ in "qk"), *(random(*table) for _ in "cs")]
    for tensor in given[2:]:
        tensor.requires_grad_(learned)
    replaced: Any = _with_rotary(llama.LlamaAttention.forward)

    def outputs(rotate: Any) -> list[Tensor]:
        rotated = rotate(**dict(zip(("q", "k", "cos", "sin"), given, strict=True)))
        total = sum(tensor.sin().sum() for tensor in rotated)
        inputs = [tensor for tensor in given if tensor.requires_grad]
        return [*rotated, *torch.autograd.grad(total, inputs)]

    after = outputs(replaced.__globals__["apply_rotary_pos_emb"])
    torch.testing.assert_close(after, outputs(llama.apply_rotary_pos_emb))


def function_like(function: Any, **names: Any) -> Any:
    """Return a copy of `function` in a module that has other `names`."""
    return FunctionType(
        function.__code__, function.__globals__ | names, function.__name__, function.__defaults__
    )


def test_a_rotation_with_another_default_or_rotate_half_stays(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    original = qwen2.apply_rotary_pos_emb
    monkeypatch.setattr(qwen2, "apply_rotary_pos_emb", function_like(original))
    assert _with_rotary(qwen2.Qwen2Attention.forward) is not None
    interleaved = function_like(original, rotate_half=lambda x: x.flip(-1))
    monkeypatch.setattr(qwen2, "apply_rotary_pos_emb", interleaved)
    assert _with_rotary(qwen2.Qwen2Attention.forward) is None
    other_default = function_like(original)
    other_default.__defaults__ = (*original.__defaults__[:-1], 2)
    monkeypatch.setattr(qwen2, "apply_rotary_pos_emb", other_default)
    assert _with_rotary(qwen2.Qwen2Attention.forward) is None


def test_only_the_decorator_that_renames_arguments_is_removed() -> None:
    def doubled(function: Any) -> Any:
        return functools.wraps(function)(lambda *args, **kwargs: 2 * function(*args, **kwargs))

    forward = llama.LlamaAttention.forward
    renamed: Any = deprecate_kwarg("old", new_name="new", version="9.9")
    assert _with_rotary(renamed(forward)) is not None
    assert _with_rotary(renamed(doubled(forward))) is None


def test_other_rotations_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    def twice(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
        return 2 * q, 2 * k

    class Decorated(llama.LlamaAttention):
        @functools.wraps(llama.LlamaAttention.forward)
        def forward(self, *args: Any, **kwargs: Any) -> Any:
            return super().forward(*args, **kwargs)

    assert _with_rotary(Decorated.forward) is None
    monkeypatch.setattr(qwen2, "apply_rotary_pos_emb", twice)
    assert _with_rotary(qwen2.Qwen2Attention.forward) is None
