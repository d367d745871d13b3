"""What the rows look like that a graph's products multiply, on real text: second moments, by which weights are rounded."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper

from kwise.engine.model.runtime.kind import Runtime
from kwise.engine.model.runtime.open import open_graph
from kwise.engine.model.session import GraphSession
from kwise.engine.precision import Precision
from kwise.engine.sequence import EncodedSequence
from kwise.export.parity import ParityError
from kwise.export.precision.matmuls import columns_of, is_product
from kwise.export.weights import Rewriting

# Of moments in a graph's outputs, and as many of their sums; where a model has more, its passes are made again for the next.
_MOST_BYTES = 2 << 30


def second_moments(
    graph: Rewriting,
    source: Path,
    session: GraphSession,
    batches: Sequence[Sequence[EncodedSequence]],
) -> Iterator[tuple[list[onnx.NodeProto], NDArray[np.float32]]]:
    """For each distinct factor x [rows, K]: (the products that multiply it, the sum of xᵀ·x [K, K] over the batches).

    graph, source: of fp32. session: of the same graph, for its inputs.

    Raises:
        ParityError: a factor is not finite on some text.
    """
    products: dict[str, list[onnx.NodeProto]] = {}
    for node in graph.nodes:
        if is_product(graph, node):
            products.setdefault(node.input[0], []).append(node)
    widths = {x: int(columns_of(graph, nodes[0]).shape[1]) for x, nodes in products.items()}
    for names in _portions(widths):
        moments = _moments(source, {name: widths[name] for name in names}, session, batches)
        for name in names:
            yield products[name], moments.pop(name)


def _portions(widths: dict[str, int]) -> Iterator[list[str]]:
    portion: list[str] = []
    size = 0
    for name, width in widths.items():
        if portion and size + 4 * width**2 > _MOST_BYTES:
            yield portion
            portion, size = [], 0
        portion.append(name)
        size += 4 * width**2
    if portion:
        yield portion


def _moments(
    source: Path,
    widths: dict[str, int],
    session: GraphSession,
    batches: Sequence[Sequence[EncodedSequence]],
) -> dict[str, NDArray[np.float32]]:
    """By a graph beside the source that also multiplies the factors with themselves."""
    model = onnx.load(source, load_external_data=False)
    del model.graph.output[:]
    for name, width in widths.items():
        rows, shape = f"{name}.rows", f"{name}.width"
        model.graph.initializer.append(onnx.numpy_helper.from_array(np.array([-1, width]), shape))
        model.graph.node.append(helper.make_node("Reshape", [name, shape], [rows]))
        model.graph.node.append(
            helper.make_node("Gemm", [rows, rows], [f"{name}.moments"], transA=1)
        )
        model.graph.output.append(
            helper.make_tensor_value_info(f"{name}.moments", TensorProto.FLOAT, [width, width])
        )
    path = source.with_name("moments.onnx")
    try:
        onnx.save(model, path)
        runner = open_graph(
            path, runtime=Runtime.ONNXRUNTIME, precision=Precision.FP32, device="cpu", threads=0
        )
    finally:
        path.unlink(missing_ok=True)
    sums = {name: np.zeros((width, width), np.float32) for name, width in widths.items()}
    for batch in batches:
        inputs = {
            name: array for name, array in session.inputs(batch).items() if name in runner.inputs
        }
        for total, found in zip(sums.values(), runner.run(inputs).values(), strict=True):
            total += found
    if overflown := next(
        (name for name, total in sums.items() if not np.isfinite(total).all()), None
    ):
        raise ParityError(
            f"the model's values at {overflown}, or their squares, are not finite in fp32, on text that chooses the rounding"
        )
    return sums
