"""Rows of tensors in blocks, whose intermediate results stay in the cache of a core."""

from collections.abc import Iterable

from torch import Tensor

_BLOCK_BYTES = 1 << 18


def blocks(*tensors: Tensor) -> Iterable[tuple[Tensor, ...]]:
    """Return the same rows of all tensors, block by block, as views.

    There is only one block on a GPU, where each operation on a block is a kernel, and for tensors
    that are not contiguous.

    Args:
        tensors: [..., N, D], with the same number of rows N, and any D each.
    """
    if not all(tensor.device.type == "cpu" and tensor.is_contiguous() for tensor in tensors):
        return [tensors]
    widest = max(tensor.shape[-1] * tensor.element_size() for tensor in tensors)
    num_rows = max(_BLOCK_BYTES // widest, 1)
    rows = (tensor.view(-1, tensor.shape[-1]).split(num_rows) for tensor in tensors)
    return zip(*rows, strict=True)
