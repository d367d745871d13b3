"""What lies between two matmuls is computed in half precision where that costs little."""

from collections import Counter
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import NodeProto, TensorProto, helper, numpy_helper

from kwise.engine.model.runtime.onnxruntime_graph import OnnxRuntimeGraph
from kwise.engine.precision import Precision
from kwise.export.precision.half import write_half

Float32 = NDArray[np.float32]
WIDTH, ROWS = 16, 6
KINDS = {Precision.FP16: TensorProto.FLOAT16, Precision.BF16: TensorProto.BFLOAT16}
DTYPES: dict[Precision, Any] = {Precision.FP16: np.float16, Precision.BF16: ml_dtypes.bfloat16}
BOTH = pytest.mark.parametrize("precision", KINDS)


def node(op_type: str, inputs: str, output: str, **attributes: Any) -> NodeProto:
    return helper.make_node(op_type, inputs.split(), [output], **attributes)


# Matmuls by the identity: results are their rounded rows.
GATE_AND_UP = [node("MatMul", "x I1", "gate"), node("MatMul", "z I2", "up")]
SILU = [node("Sigmoid", "gate", "sigmoid"), node("Mul", "gate sigmoid", "silu")]
GELU = [node("Gelu", "gate", "gelu", approximate="tanh")]
NORM = [
    node("Pow", "x two", "squares"),
    node("ReduceMean", "squares last", "mean", keepdims=1),
    node("Add", "mean epsilon", "variance"),
    node("Sqrt", "variance", "root"),
    node("Div", "one root", "reciprocal"),
    node("Mul", "x reciprocal", "normalised"),
    node("Cast", "normalised", "same", to=TensorProto.FLOAT),
    node("Mul", "scale same", "product"),
]


def write(path: Path, nodes: list[NodeProto]) -> Path:
    """Write a graph from `x` and `z` that ends in a matmul of `product` by the identity."""
    random = np.random.default_rng(0)
    constants: dict[str, Any] = {
        **{f"I{number}": np.eye(WIDTH, dtype=np.float32) for number in (1, 2, 3)},
        "bias": random.standard_normal(WIDTH).astype(np.float32),
        "scale": random.uniform(0.5, 2, WIDTH).astype(np.float32),
        "two": np.float32(2),
        "one": np.float32(1),
        "epsilon": np.float32(1e-5),
        "last": np.array([-1]),
    }
    nodes = [*nodes, node("MatMul", "product I3", "y")]
    used = {name for n in nodes for name in n.input}
    graph = helper.make_graph(
        nodes,
        "between",
        [
            helper.make_tensor_value_info(name, TensorProto.FLOAT, ["rows", WIDTH])
            for name in ("x", "z")
            if name in used
        ],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["rows", WIDTH])],
        [numpy_helper.from_array(np.asarray(constants[n]), n) for n in sorted(used & {*constants})],
    )
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)], ir_version=10), path
    )
    return path


def operations_in_half(path: Path, precision: Precision) -> Counter[str]:
    """Count the nodes, but casts and matmuls, that compute in half precision."""
    graph = onnx.shape_inference.infer_shapes(onnx.load(path), strict_mode=True).graph
    types = {v.name: v.type.tensor_type.elem_type for v in graph.value_info}
    types |= {tensor.name: tensor.data_type for tensor in graph.initializer}
    return Counter(
        n.op_type
        for n in graph.node
        if n.op_type not in ("Cast", "MatMul") and types.get(n.output[0]) == KINDS[precision]
    )


def run(path: Path, x: Float32, z: Float32) -> Float32:
    graph = OnnxRuntimeGraph(path, device="cpu", threads=0)
    inputs = {"x": x, "z": z}
    return next(iter(graph.run({name: inputs[name] for name in graph.inputs}).values()))


def emulated(source: Path, precision: Precision) -> tuple[Float32, Float32, Float32]:
    """Return x, z and the output of an emulation, which has numbers of the precision only."""
    random = np.random.default_rng(1)
    x, z = (4 * random.standard_normal((ROWS, WIDTH)).astype(np.float32) for _ in range(2))
    path = source.with_name("emulated.onnx")
    write_half(source, path, precision, emulated=True)
    y = run(path, x, z)
    np.testing.assert_array_equal(y, rounded(y, precision))
    return x, z, y


def rounded(array: Float32, precision: Precision) -> Float32:
    return array.astype(DTYPES[precision]).astype(np.float32)


def weight(path: Path, name: str) -> Float32:
    (tensor,) = (tensor for tensor in onnx.load(path).graph.initializer if tensor.name == name)
    return numpy_helper.to_array(tensor)


def gelu(x: Float32) -> Float32:
    return x / 2 * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


def assert_near(y: Float32, expected: Float32, precision: Precision, num_roundings: int) -> None:
    step = float(ml_dtypes.finfo(DTYPES[precision]).eps) / 2
    np.testing.assert_allclose(y, expected, rtol=1.1 * num_roundings * step, atol=1e-6)


@BOTH
@pytest.mark.parametrize("product", ["silu up", "up silu"])
def test_the_product_of_a_silu_gate_is_half(
    tmp_path: Path, precision: Precision, product: str
) -> None:
    """In fp16 SiLU too, in an order that ONNX Runtime does not fuse into its coarser QuickGelu."""
    nodes = [*GATE_AND_UP, *SILU, node("Mul", product, "product")]
    source = write(tmp_path / "model.onnx", nodes)
    write_half(source, tmp_path / "half.onnx", precision)
    in_half = {Precision.FP16: {"Sigmoid": 1, "Mul": 2}, Precision.BF16: {"Mul": 1}}
    assert operations_in_half(tmp_path / "half.onnx", precision) == in_half[precision]
    for n in onnx.load(tmp_path / "half.onnx").graph.node if precision is Precision.FP16 else ():
        if n.op_type == "Mul":
            assert not any(name.startswith("gate") for name in n.input) or "up" not in n.input
    x, z, y = emulated(source, precision)
    gate, up = rounded(x, precision), rounded(z, precision)
    assert_near(y, gate / (1 + np.exp(-gate)) * up, precision, 3)


@BOTH
def test_the_product_of_another_gate_is_half_and_the_gate_fp32(
    tmp_path: Path, precision: Precision
) -> None:
    """CUDA's kernels of GELU subtract in half precision, which leaves few bits of small results."""
    source = write(
        tmp_path / "model.onnx", [*GATE_AND_UP, *GELU, node("Mul", "gelu up", "product")]
    )
    write_half(source, tmp_path / "half.onnx", precision)
    assert operations_in_half(tmp_path / "half.onnx", precision) == {"Mul": 1}
    x, z, y = emulated(source, precision)
    assert_near(y, gelu(rounded(x, precision)) * rounded(z, precision), precision, 2)


@BOTH
def test_an_activation_without_a_gate_is_fp32(tmp_path: Path, precision: Precision) -> None:
    nodes = [GATE_AND_UP[0], SILU[0], node("Mul", "gate sigmoid", "product")]
    source = write(tmp_path / "model.onnx", nodes)
    write_half(source, tmp_path / "half.onnx", precision)
    assert operations_in_half(tmp_path / "half.onnx", precision) == {}
    x, _, y = emulated(source, precision)
    gate = rounded(x, precision)
    assert_near(y, gate / (1 + np.exp(-gate)), precision, 1)


@BOTH
def test_a_gate_and_what_it_gates_may_be_parts_of_one_matmul(
    tmp_path: Path, precision: Precision
) -> None:
    nodes = [
        node("MatMul", "x I1", "joined"),
        helper.make_node("Split", ["joined"], ["gate", "up"], axis=-1, num_outputs=2),
        *SILU,
        node("Mul", "silu up", "half"),
        node("Concat", "half half", "product", axis=-1),
    ]
    source = write(tmp_path / "model.onnx", nodes)
    write_half(source, tmp_path / "half.onnx", precision)
    assert operations_in_half(tmp_path / "half.onnx", precision)["Mul"] >= 1
    x, _, y = emulated(source, precision)
    gate, up = np.split(rounded(x, precision), 2, axis=-1)
    expected = gate / (1 + np.exp(-gate)) * up
    assert_near(y, np.concatenate([expected, expected], -1), precision, 3)


@BOTH
def test_a_bias_is_added_in_half_precision(tmp_path: Path, precision: Precision) -> None:
    source = write(tmp_path / "model.onnx", [GATE_AND_UP[0], node("Add", "bias gate", "product")])
    write_half(source, tmp_path / "half.onnx", precision)
    assert operations_in_half(tmp_path / "half.onnx", precision) == {"Add": 1}
    x, _, y = emulated(source, precision)
    bias = weight(source, "bias")
    expected = rounded(rounded(x, precision) + rounded(bias, precision), precision)
    np.testing.assert_array_equal(y, expected)


@BOTH
def test_an_rmsnorm_writes_fp16_and_never_bf16(tmp_path: Path, precision: Precision) -> None:
    """ONNX Runtime has a kernel from fp32 to fp16. To bf16 it would fuse one that is missing."""
    source = write(tmp_path / "model.onnx", NORM)
    write_half(source, tmp_path / "half.onnx", precision)
    in_half = {"Mul": 1} if precision is Precision.FP16 else {}
    assert operations_in_half(tmp_path / "half.onnx", precision) == in_half
    x, _, y = emulated(source, precision)
    scale = weight(source, "scale")
    if precision is Precision.FP16:
        scale = rounded(scale, precision)
    expected = x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-5) * scale
    assert_near(y, expected, precision, 1)


def test_fp16_on_a_cpu_gives_what_its_emulation_gives(tmp_path: Path) -> None:
    nodes = [
        *NORM[:-1],
        node("Mul", "scale same", "norm"),
        node("MatMul", "norm I1", "gate"),
        node("MatMul", "norm I2", "up"),
        *SILU,
        node("Mul", "silu up", "product"),
    ]
    source = write(tmp_path / "model.onnx", nodes)
    x, z, expected = emulated(source, Precision.FP16)
    write_half(source, tmp_path / "half.onnx", Precision.FP16)
    assert_near(run(tmp_path / "half.onnx", x, z), expected, Precision.FP16, 6)
