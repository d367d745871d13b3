"""Tables of embeddings with sparse gradients: the sums of passes are PyTorch's, bit for bit."""

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from kwise.train.model.memory.embedding import use_sparse_gradients

V, D = 11, 5
PASSES = st.lists(st.lists(st.integers(0, V - 1), min_size=1, max_size=40), min_size=1, max_size=4)


def table(dtype: torch.dtype = torch.float32, **options: Any) -> nn.Embedding:
    torch.manual_seed(0)
    return nn.Embedding(V, D, dtype=dtype, **options)


def summed_gradient(module: nn.Embedding, passes: list[Tensor]) -> Tensor:
    """Return the gradient of all passes, without a change of the module's weight."""
    torch.manual_seed(1)
    for ids in passes:
        rows = module(ids)
        rows.backward(torch.randn(rows.shape).to(rows.dtype))
    assert module.weight.grad is not None
    return module.weight.grad


@given(PASSES, st.sampled_from([None, 0, V - 1]))
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("id_type", [torch.int64, torch.int32])
def test_gradients_of_several_passes_are_those_of_pytorch(
    dtype: torch.dtype, id_type: torch.dtype, passes: list[list[int]], padding_id: int | None
) -> None:
    tensors = [torch.tensor([ids], dtype=id_type) for ids in passes]
    expected = summed_gradient(table(dtype, padding_idx=padding_id), tensors)
    module = table(dtype, padding_idx=padding_id)
    use_sparse_gradients(module)
    gradient = summed_gradient(module, tensors)
    assert gradient.layout is torch.strided
    assert torch.equal(gradient, expected)


def test_only_the_first_pass_after_a_step_has_a_dense_gradient() -> None:
    module = table()
    use_sparse_gradients(module)
    layouts: list[torch.layout] = []
    module.weight.register_hook(lambda gradient: layouts.append(gradient.layout))
    for _ in range(2):
        summed_gradient(module, 3 * [torch.tensor([[1, 2, 2]])])
        module.zero_grad()
    assert layouts == 2 * [torch.strided, torch.sparse_coo, torch.sparse_coo]


def test_a_table_that_is_also_the_output_layer_gets_both_gradients() -> None:
    def passes(module: nn.Embedding) -> Tensor:
        for ids in (torch.tensor([[1, 2, 2]]), torch.tensor([[3, 1]])):
            (module(ids).tanh() @ module.weight.t()).square().sum().backward()
        assert module.weight.grad is not None
        return module.weight.grad

    module = table()
    use_sparse_gradients(module)
    assert torch.allclose(passes(module), passes(table()), rtol=1e-6)


def test_the_table_may_change_between_the_passes() -> None:
    """The gradient does not depend on the values of the table, so it is not among what is saved."""

    def passes(module: nn.Embedding) -> Tensor:
        for ids in (torch.tensor([[1, 2, 2]]), torch.tensor([[3, 1]])):
            rows = module(input=ids)
            with torch.no_grad():
                module.weight.mul_(2)
            rows.tanh().sum().backward()
        assert module.weight.grad is not None
        return module.weight.grad

    module = table()
    use_sparse_gradients(module)
    assert torch.equal(passes(module), passes(table()))


def test_a_second_derivative_is_refused() -> None:
    module = table()
    use_sparse_gradients(module)
    rows = module(torch.tensor([[1, 2]]))
    (gradient,) = torch.autograd.grad(rows.square().sum(), module.weight, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()


def test_a_frozen_table_gets_no_gradient() -> None:
    module = table().requires_grad_(False)
    use_sparse_gradients(module)
    assert not module(torch.tensor([[1, 2]])).requires_grad


@pytest.mark.parametrize("options", [{"max_norm": 1.0}, {"scale_grad_by_freq": True}])
def test_a_table_with_other_rows_or_gradients_stays_as_it_is(options: dict[str, Any]) -> None:
    module = table(**options)
    use_sparse_gradients(module)
    assert "forward" not in vars(module)


def test_a_forward_of_its_own_stays() -> None:
    module = table()
    module.forward = own = lambda ids: ids
    use_sparse_gradients(module)
    assert module.forward is own
