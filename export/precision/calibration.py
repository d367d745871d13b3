"""Measure the second moments of the rows that a graph's matmuls multiply, on real text.

Weights are rounded by them, see rounding.py.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from kwise.engine.model.runtime.kind import Runtime
from kwise.engine.model.runtime.open import open_graph
from kwise.engine.model.session import GraphSession
from kwise.engine.precision import Precision
from kwise.engine.sequence import EncodedSequence
from kwise.export.graph_file import add_weight, read_graph
from kwise.export.parity import ParityError
from kwise.export.precision.matmuls import columns_of, is_matmul

# Bytes of moments that a graph computes in one pass, and as many of their sums. A model with more
# makes another pass over the text for the next portion.
_MAX_BYTES = 2 << 30


def second_moments(
    source: Path, session: GraphSession, batches: Sequence[Sequence[EncodedSequence]]
) -> Iterator[tuple[list[ir.Node], NDArray[np.float32]]]:
    """For each distinct factor x [rows, K], yield its matmuls and the sum of xᵀ·x over the text.

    Args:
        source: The graph in fp32.
        session: A session of this graph, which makes its inputs.
        batches: The text.

    Yields:
        The matmuls that multiply the factor, and float32[K, K].

    Raises:
        ParityError: A factor is not finite on some text.
    """
    matmuls: dict[str, list[ir.Node]] = {}
    for node in read_graph(source).graph:
        if is_matmul(node):
            rows = node.inputs[0]
            assert rows is not None and rows.name
            matmuls.setdefault(rows.name, []).append(node)
    widths = {factor: columns_of(nodes[0]).shape[1] for factor, nodes in matmuls.items()}
    for portion in _portions(widths):
        moments = _moments(source, portion, session, batches)
        for factor in portion:
            yield matmuls[factor], moments.pop(factor)


def _portions(widths: Mapping[str, int]) -> Iterator[dict[str, int]]:
    """Split factors, given with their widths K, so that the moments of a portion fit in memory."""
    portion: dict[str, int] = {}
    num_bytes = 0
    for factor, width in widths.items():
        if portion and num_bytes + 4 * width**2 > _MAX_BYTES:
            yield portion
            portion, num_bytes = {}, 0
        portion[factor] = width
        num_bytes += 4 * width**2
    if portion:
        yield portion


def _moments(
    source: Path,
    widths: Mapping[str, int],
    session: GraphSession,
    batches: Sequence[Sequence[EncodedSequence]],
) -> dict[str, NDArray[np.float32]]:
    """Run a graph beside `source` that also multiplies each factor by itself."""
    model = read_graph(source)
    values = ir.convenience.create_value_mapping(model.graph)
    tape = ir.tape.Tape()
    model.graph.outputs.clear()
    for factor, width in widths.items():
        shape = add_weight(model.graph, f"{factor}.width", np.array([-1, width]))
        rows = tape.op("Reshape", [values[factor], shape])
        moments = tape.op("Gemm", [rows, rows], {"transA": 1})
        moments.name = f"{factor}.moments"
        moments.dtype, moments.shape = ir.DataType.FLOAT, ir.Shape([width, width])
        model.graph.outputs.append(moments)
    model.graph.extend(tape.nodes)
    path = source.with_name("moments.onnx")
    try:
        ir.save(model, path)
        runner = open_graph(
            path, runtime=Runtime.ONNXRUNTIME, precision=Precision.FP32, device="cpu", threads=0
        )
    finally:
        path.unlink(missing_ok=True)
    sums = {factor: np.zeros((width, width), np.float32) for factor, width in widths.items()}
    for batch in batches:
        inputs = {n: array for n, array in session.inputs(batch).items() if n in runner.inputs}
        for total, moments_of_batch in zip(sums.values(), runner.run(inputs).values(), strict=True):
            total += moments_of_batch
    for factor, total in sums.items():
        if not np.isfinite(total).all():
            raise ParityError(
                f"the model's values at {factor}, or their squares, are not finite in fp32 on the "
                "text that chooses how weights are rounded"
            )
    return sums
