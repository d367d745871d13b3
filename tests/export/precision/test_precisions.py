"""A lower precision rounds row by row, and is written only if it ranks as fp32 does."""

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from kwise.engine.artifact.read import Artifact, read_artifact
from kwise.engine.config import EngineConfig
from kwise.engine.load import new_encoder
from kwise.engine.model.runtime.onnxruntime_graph import OnnxRuntimeGraph
from kwise.engine.model.session import GraphSession, Pass
from kwise.engine.precision import Precision
from kwise.engine.sequence import EncodedSequence
from kwise.errors import ConfigError
from kwise.export.parity import ParityError
from kwise.export.precision import agreement
from kwise.export.precision.agreement import (
    measure,
    rewards_of,
    shortcomings,
)
from kwise.export.precision.half import write_half
from kwise.export.precision.int8 import write_int8
from kwise.export.precision.matmuls import layer_groups
from kwise.export.precision.precisions import _by_sensitivity, _min_fp32_layers
from kwise.export.precision.rotation import Rotation
from kwise.export.precision.rounding import round_weights
from kwise.export.precision.text_groups import encode_groups, read_text_groups
from kwise.train.rankings.errors import RankingsError
from tests.exports import export_quietly
from tests.real_data import EXAMPLES
from tests.tiny_models import PADDED, TRIE, tiny_model

NAMES = (
    *(f"self_attn.{name}" for name in "qkvo"),
    *(f"mlp.{name}" for name in ("gate", "up", "down")),
)
# Weights in the products of two layers of width 64: queries, keys, values, outputs, and the MLP's.
PRODUCTS = {
    "gpt2": 2 * (4 * 64 * 64 + 2 * 64 * 256),
    "gpt_neox": 2 * (4 * 64 * 64 + 2 * 64 * 96),
    "modernbert": 2 * (4 * 64 * 64 + 3 * 64 * 96) + 64 * 64,  # and the head's
}
Float32 = NDArray[np.float32]


@pytest.fixture(scope="module")
def artifact(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """The tiny model in all precisions. Its random weights leave small margins: hence the 0.9."""
    path = tmp_path_factory.mktemp("precisions") / "tiny"
    return read_artifact(
        export_quietly(tiny_checkpoint, path, dtype="fp32,fp16,bf16,int8", min_agreement=0.9)
    )


@pytest.fixture(scope="module")
def groups(artifact: Artifact) -> list[list[EncodedSequence]]:
    return encode_groups(new_encoder(artifact, EngineConfig()), read_text_groups(str(EXAMPLES)))[:6]


MOVES = {"Gather", "Reshape", "Transpose", "Concat", "Unsqueeze", "Squeeze", "Split", "Shape"}
# What is computed in the half precision beside matmuls and attention, in a Llama.
BETWEEN = {TensorProto.FLOAT16: {"Mul", "Sigmoid"}, TensorProto.BFLOAT16: {"Mul"}}


def narrow_names(graph: onnx.GraphProto, kind: int) -> set[str]:
    """What is in the half precision: cast to it, and what other nodes make of that."""
    names = {tensor.name for tensor in graph.initializer if tensor.data_type == kind}
    for node in graph.node:
        if node.op_type == "Cast":
            if node.attribute[0].i == kind:
                names.add(node.output[0])
        elif node.op_type != "Shape" and names & set(node.input):
            names.update(node.output)
    return names


def product(directory: Path, weight: Float32, leading: tuple[int, ...] = ()) -> Path:
    """A graph y = x·W in fp32; `leading`: dimensions before the rows."""
    path = directory / "model.onnx"
    rows, columns = weight.shape
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "product",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [*leading, "rows", rows])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [*leading, "rows", columns])],
        [numpy_helper.from_array(weight, "w")],
    )
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)], ir_version=10), path
    )
    return path


def runner(path: Path) -> Callable[[Float32], Float32]:
    graph = OnnxRuntimeGraph(path, device="cpu", threads=0)
    return lambda x: next(iter(graph.run({"x": x}).values()))


def quantised(x: Float32) -> tuple[Float32, Float32]:
    """Return rows rounded to integers from -127 to 127, and their scales [rows, 1]."""
    scale = np.maximum(
        np.abs(x).max(axis=1, keepdims=True) * np.float32(1 / 127), np.float32(1e-20)
    )
    return np.round(x / scale), scale


@pytest.mark.parametrize(
    ("rows", "width", "columns"), [(7, 576, 192), (1, 1536, 8), (3, 33, 5), (4, 48, 7)]
)
def test_an_int8_product_is_that_of_rounded_rows_and_columns(
    tmp_path: Path, rows: int, width: int, columns: int
) -> None:
    """Summed up exactly: extreme values saturate a 16-bit sum of two on CPUs without VNNI."""
    rng = np.random.default_rng(width)
    weight = rng.choice([-1.0, 1.0], (width, columns)).astype(np.float32)
    x = (rng.standard_normal((rows, width)) * np.where(np.arange(width) == 3, 50, 1)).astype(
        np.float32
    )
    write_int8(product(tmp_path, weight), tmp_path / "model.int8.onnx")
    rotated = Rotation(width).rotated
    x_rounded, x_scale = quantised(rotated(x))
    w_rounded, w_scale = quantised(rotated(weight.T))
    expected = (x_rounded.astype(np.int64) @ w_rounded.T.astype(np.int64)) * w_scale.T * x_scale
    # Where ONNX Runtime's rotation rounds another way, one factor is off by a step.
    step = (np.abs(w_rounded).max() * w_scale.T * x_scale).max()
    found = runner(tmp_path / "model.int8.onnx")(x)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=3 * step)
    exact = x.astype(np.float64) @ weight
    assert np.linalg.norm(found - exact) < 0.03 * np.linalg.norm(exact)


@pytest.mark.parametrize(("leading", "gemm"), [((), False), ((1,), False), ((), True)])
def test_rows_that_the_head_reads_have_sixteen_bits(
    tmp_path: Path, leading: tuple[int, ...], gemm: bool
) -> None:
    """Once each, however many sequences end in them; the others' are as before."""
    rng = np.random.default_rng(0)
    x, weight = (
        rng.standard_normal((*leading, 9, 64)).astype(np.float32),
        rng.standard_normal((64, 24)).astype(np.float32),
    )
    path = product(tmp_path, weight, leading)
    model = onnx.load(path)
    if gemm:
        model.graph.node[0].op_type = "Gemm"
        model.graph.node[0].input.append("c")
        model.graph.initializer.append(numpy_helper.from_array(np.zeros(24, np.float32), "c"))
        onnx.save(model, path)
    write_int8(path, tmp_path / "plain.onnx")
    model.graph.input.append(
        helper.make_tensor_value_info("last_rows", TensorProto.INT64, ["sequences"])
    )
    onnx.save(model, path)
    write_int8(path, tmp_path / "finer.onnx")
    last = np.array([4, 7, 4, 0])
    plain = runner(tmp_path / "plain.onnx")(x).reshape(9, 24)
    graph = OnnxRuntimeGraph(tmp_path / "finer.onnx", device="cpu", threads=0)
    (finer,) = graph.run({"x": x, "last_rows": last}).values()
    assert finer.shape == (*leading, 9, 24)
    finer = finer.reshape(9, 24)
    others = np.setdiff1d(np.arange(9), last)
    np.testing.assert_array_equal(finer[others], plain[others])
    w_rounded, w_scale = quantised(Rotation(64).rotated(weight.T))
    exact = Rotation(64).rotated(x.reshape(9, 64)) @ (w_rounded * w_scale).T
    errors, before = np.abs(finer - exact)[last].max(), np.abs(plain - exact)[last].max()
    assert errors < before / 50


@pytest.fixture(scope="module")
def row_product(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Float32], Float32]:
    directory = tmp_path_factory.mktemp("rows")
    weight = np.random.default_rng(1).standard_normal((64, 24)).astype(np.float32)
    write_int8(product(directory, weight), directory / "model.int8.onnx")
    return runner(directory / "model.int8.onnx")


@given(
    rows=st.integers(1, 40),
    position=st.integers(0, 39),
    scale=st.floats(1e-3, 1e6),
    seed=st.integers(0, 1000),
)
def test_the_rounding_of_a_row_is_its_own(
    row_product: Callable[[Float32], Float32], rows: int, position: int, scale: float, seed: int
) -> None:
    """Whatever stands beside it, however large."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((rows, 64)).astype(np.float32)
    row = x[position % rows].copy()
    x *= np.float32(scale)
    x[position % rows] = row
    np.testing.assert_array_equal(row_product(x)[position % rows], row_product(row[None])[0])


def test_rows_of_zeros_and_channels_of_zeros_stay_zero(tmp_path: Path) -> None:
    weight = np.zeros((64, 3), np.float32)
    weight[:, 1] = 1
    write_int8(product(tmp_path, weight), tmp_path / "model.int8.onnx")
    x = np.zeros((2, 64), np.float32)
    x[1] = 1
    np.testing.assert_allclose(
        runner(tmp_path / "model.int8.onnx")(x), [[0, 0, 0], [0, 64, 0]], rtol=0.02
    )


@pytest.mark.parametrize(
    ("precision", "dtype"), [(Precision.FP16, np.float16), (Precision.BF16, ml_dtypes.bfloat16)]
)
@pytest.mark.parametrize("split_sums", [False, True])
def test_an_emulated_product_rounds_factors_and_result(
    tmp_path: Path, precision: Precision, dtype: Any, split_sums: bool
) -> None:
    rng = np.random.default_rng(0)
    weight, x = (
        rng.standard_normal((96, 12)).astype(np.float32),
        rng.standard_normal((5, 96)).astype(np.float32),
    )
    write_half(
        product(tmp_path, weight),
        tmp_path / "half.onnx",
        precision,
        emulated=True,
        split_sums=split_sums,
    )
    exact = x.astype(dtype).astype(np.float64) @ weight.astype(dtype).astype(np.float64)
    found = runner(tmp_path / "half.onnx")(x)
    np.testing.assert_array_equal(found, found.astype(dtype).astype(np.float32))
    np.testing.assert_allclose(found, exact, rtol=float(ml_dtypes.finfo(dtype).eps), atol=1e-5)


@pytest.mark.parametrize(
    ("precision", "kind"),
    [(Precision.FP16, TensorProto.FLOAT16), (Precision.BF16, TensorProto.BFLOAT16)],
)
def test_matmuls_and_what_lies_between_them_are_half(
    artifact: Artifact, precision: Precision, kind: int
) -> None:
    """Attention's factors, matmul weights but the head's, gates, and in fp16 the norms' outputs."""
    halves, whole = (
        onnx.load(artifact.graph_path(p), load_external_data=False).graph
        for p in (precision, Precision.FP32)
    )
    weights = {tensor.name: tensor for tensor in halves.initializer}
    multiplied = {n.input[1] for n in halves.node if n.op_type == "MatMul"} & weights.keys()
    assert {weights[name].data_type for name in multiplied if 1 not in weights[name].dims} == {kind}
    assert {weights[name].data_type for name in multiplied if 1 in weights[name].dims} == {
        TensorProto.FLOAT
    }
    others = [t for t in halves.initializer if t.name not in multiplied and t.data_type == kind]
    num_layers = 2
    # The norm before the head is fp32.
    assert len(others) == (2 * num_layers if kind == TensorProto.FLOAT16 else 0)
    assert all("norm" in tensor.name for tensor in others)
    in_half = [n for n in halves.node if narrow_names(halves, kind) & set(n.input)]
    between = {n.op_type for n in in_half} - {"MatMul", "Attention", "Cast", *MOVES}
    assert between == BETWEEN[kind]
    for node in (n for n in halves.node if n.op_type == "Attention"):
        assert narrow_names(halves, kind) >= set(node.input)
    assert [value.name for value in halves.input] == [value.name for value in whole.input]
    assert halves.output == whole.output


@pytest.mark.parametrize("precision", [Precision.FP16, Precision.INT8])
def test_rewards_stay_near_fp32_and_do_not_depend_on_the_batch(
    artifact: Artifact, groups: list[list[EncodedSequence]], precision: Precision
) -> None:
    session = GraphSession(artifact, precision=precision)
    expected = rewards_of(GraphSession(artifact), groups)
    found = measure(session, groups, expected)
    assert found.num_responses == sum(map(len, groups))
    assert 0 < found.mean_error < {Precision.FP16: 0.02, Precision.INT8: 0.12}[precision]
    assert found.max_batch_change < 0.01
    everything = session.run([sequence for group in groups for sequence in group]).rewards
    apart = np.concatenate(rewards_of(session, groups))
    assert np.abs(everything - apart).max() < 0.01 * found.reward_std


@pytest.mark.parametrize("precision", [Precision.FP16, Precision.INT8])
def test_a_reward_does_not_depend_on_what_is_cached_of_its_prompt(
    artifact: Artifact, groups: list[list[EncodedSequence]], precision: Precision
) -> None:
    session = GraphSession(artifact, precision=precision, prompt_cache_bytes=1 << 24)
    without = GraphSession(artifact, precision=precision)
    std = np.concatenate(rewards_of(without, groups)).std()
    for group in groups:
        session.run(group[:1])
        passed = session.run(group)
        assert passed.num_reused > 0
        assert np.abs(passed.rewards - without.run(group).rewards).max() < 0.01 * std


def test_a_reward_does_not_depend_on_a_conversation_that_ends_within_its_own(
    artifact: Artifact,
) -> None:
    """A row in which another conversation ends has more bits for that one only, cached or not."""
    rng = np.random.default_rng(0)
    ids = rng.integers(5, 40_000, 90)

    def sequence(length: int, prompt_tokens: int) -> EncodedSequence:
        return EncodedSequence(
            token_ids=ids[:length], prompt_tokens=prompt_tokens, type_ids=None, num_tokens=length
        )

    whole, within = sequence(90, 70), [sequence(length, length) for length in (70, 60, 80, 89)]
    without = GraphSession(artifact, precision=Precision.INT8)
    alone = without.run([whole]).rewards[0]
    ends = [without.run([end]).rewards[0] for end in within]
    std = np.std(ends)
    together = without.run([*within, whole, whole]).rewards
    assert np.abs(together - [*ends, alone, alone]).max() < 0.01 * std
    cached = GraphSession(artifact, precision=Precision.INT8, prompt_cache_bytes=1 << 24)
    for end, reward in zip(within, ends, strict=True):
        assert abs(cached.run([end]).rewards[0] - reward) < 0.01 * std
    passed = cached.run([whole])
    assert passed.num_reused > 60
    assert abs(passed.rewards[0] - alone) < 0.01 * std


def test_agreement_is_counted_by_hand(
    artifact: Artifact, groups: list[list[EncodedSequence]]
) -> None:
    """The rewards of one group are negated: all its pairs are in the wrong order, its tau is -1."""
    session = GraphSession(artifact)
    own = rewards_of(session, groups)
    expected = [-own[0], *own[1:]]
    std = np.concatenate(expected).std()
    found = measure(session, groups, expected)
    margins = [np.abs(r[:, None] - r)[np.triu_indices(len(r), 1)] for r in own]
    clear = [int((m >= 0.05 * std).sum()) for m in margins]
    assert found.clear_pairs == sum(clear)
    assert found.clear_agreement == pytest.approx(sum(clear[1:]) / sum(clear))
    assert found.agreement == pytest.approx(sum(map(len, margins[1:])) / sum(map(len, margins)))
    assert found.kendall_tau == pytest.approx((len(groups) - 2) / len(groups))
    assert found.max_error == pytest.approx(2 * np.abs(own[0]).max() / std)


def test_the_manifest_says_what_was_measured(artifact: Artifact) -> None:
    manifest = artifact.manifest
    assert manifest.available_precisions == [
        Precision.FP32,
        Precision.FP16,
        Precision.BF16,
        Precision.INT8,
    ]
    names = [f"model{name}.onnx" for name in ("", ".fp16", ".bf16", ".int8")]
    assert {*names, *(f"{name}.data" for name in names)} <= manifest.files.keys()
    for precision in (Precision.FP16, Precision.BF16, Precision.INT8):
        bounds = manifest.error_bounds[precision]
        report = bounds.report
        assert report["clear_agreement"] >= 0.9 and report["num_groups"] > 10
        assert report["emulated"] is (precision is not Precision.INT8)
        assert bounds.max_error >= report["max_error"] * report["reward_std"] * (
            2 if report["emulated"] else 1
        )
        assert bounds.max_batch_change == pytest.approx(0.01 * report["reward_std"])
        # Another order of summation flips roundings to few bits, and int8 sums up exactly.
        assert (bounds.max_order_change > 0) is report["emulated"]
        assert bounds.max_order_change < bounds.max_error
    weights = [
        (artifact.path / f"model{name}.onnx.data").stat().st_size for name in ("", ".bf16", ".int8")
    ]
    assert weights == sorted(weights, reverse=True)


def _assert_same_for_cuda(artifact: Artifact, precision: Precision) -> None:
    """Check on a CPU that the graph for CUDA gives the same rewards to the last bit."""
    random = np.random.default_rng(0)
    prompt = random.integers(3, 40_000, 70)
    batch = [
        EncodedSequence(token_ids=ids, type_ids=None, num_tokens=len(ids))
        for ids in (prompt, *(np.append(prompt, random.integers(3, 40_000, n)) for n in (5, 60)))
    ]
    for_cuda = artifact.with_graph(precision, artifact.manifest.cuda_graphs[precision])
    rewards = [
        GraphSession(each, precision=precision, threads=1).run(batch).rewards.tolist()
        for each in (artifact, for_cuda)
    ]
    assert rewards[0] == rewards[1]


@pytest.mark.parametrize("family", PRODUCTS)
def test_other_architectures_too(family: str, smollm2_tokenizer: Any, tmp_path: Path) -> None:
    """GPT-2's matmuls are Gemm nodes with biases; ModernBERT is padded, its attention written out.

    Rotary angles are products too, and only fp32 can hold them.
    """
    checkpoint = tiny_model(*(TRIE | PADDED)[family], smollm2_tokenizer, tmp_path / "checkpoint")
    path = export_quietly(
        checkpoint, tmp_path / "artifact", dtype="fp32,fp16,bf16,int8", min_agreement=0.8
    )
    artifact = read_artifact(path)
    sizes = layer_groups(artifact.graph_path(), attention=True)
    assert sum(sizes.values()) - sizes["attention"] == PRODUCTS[family]
    for precision, bound in ((Precision.FP16, 0.02), (Precision.BF16, 0.1), (Precision.INT8, 0.25)):
        report = artifact.manifest.error_bounds[precision].report
        assert (report["fp32_layers"], report["matmul_share"]) == ([], 1)
        assert 0 < report["mean_error"] < bound
    assert artifact.manifest.cuda_graphs.keys() == (
        {Precision.FP32, Precision.FP16, Precision.BF16} if family in TRIE else set()
    )
    if family in TRIE:
        _assert_same_for_cuda(artifact, Precision.FP16)
    int8, fp16 = (
        onnx.load(artifact.graph_path(p), load_external_data=False).graph
        for p in (Precision.INT8, Precision.FP16)
    )
    assert (
        sum(int(np.prod(t.dims)) for t in int8.initializer if t.data_type == TensorProto.INT8)
        == PRODUCTS[family]
    )
    rounded = narrow_names(fp16, TensorProto.FLOAT16)
    assert {n.op_type for n in fp16.node if rounded & set(n.input)} <= {
        "MatMul",
        "Gemm",
        "Attention",
        "Add",  # of a bias
        "Mul",  # of a gate
        "Cast",
        *MOVES,
    }
    weights = {tensor.name for tensor in fp16.initializer}
    beside_softmax = [
        n for n in fp16.node if n.op_type == "MatMul" and rounded - weights >= set(n.input)
    ]
    assert len(beside_softmax) == (4 if family in PADDED else 0)


@pytest.mark.parametrize("width", [33, 64, 576])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_int8_hides_no_number_that_is_none(tmp_path: Path, width: int, value: float) -> None:
    write_int8(product(tmp_path, np.ones((width, 4), np.float32)), tmp_path / "model.int8.onnx")
    x = np.ones((3, width), np.float32)
    x[1, width // 2] = value
    found = runner(tmp_path / "model.int8.onnx")(x)
    assert np.isnan(found[1]).all()
    assert np.isfinite(found[[0, 2]]).all()


def test_a_gemm_has_its_weights_either_way_round_and_its_bias(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    weight, bias = (
        rng.standard_normal((64, 64)).astype(np.float32),
        rng.standard_normal(64).astype(np.float32),
    )
    graph = onnx.load(product(tmp_path, weight))
    graph.graph.initializer.append(numpy_helper.from_array(bias, "c"))
    del graph.graph.node[:]
    graph.graph.node.extend(
        [
            helper.make_node("Gemm", ["x", "w", "c"], ["plain"]),
            helper.make_node("Gemm", ["x", "w", "c"], ["turned"], transB=1),
            helper.make_node("Sub", ["plain", "turned"], ["y"]),
        ]
    )
    onnx.save(graph, tmp_path / "model.onnx")
    x = rng.standard_normal((5, 64)).astype(np.float32)
    expected = x @ weight - x @ weight.T
    write_int8(tmp_path / "model.onnx", tmp_path / "model.int8.onnx")
    found = runner(tmp_path / "model.int8.onnx")(x)
    assert 0 < np.linalg.norm(found - expected) < 0.03 * np.linalg.norm(expected)


@pytest.mark.parametrize("precision", [Precision.FP16, Precision.INT8])
def test_names_that_look_like_those_of_turned_weights_are_others(
    tmp_path: Path, precision: Precision
) -> None:
    """And a Gemm may name no bias."""
    rng = np.random.default_rng(0)
    weight, other = (rng.standard_normal((64, 64)).astype(np.float32) for _ in range(2))
    graph = onnx.load(product(tmp_path, weight))
    for name in ("w.transposed", "w.columns"):
        graph.graph.initializer.append(numpy_helper.from_array(other, name))
    del graph.graph.node[:]
    graph.graph.node.extend(
        [
            helper.make_node("Gemm", ["x", "w", ""], ["turned"], transB=1),
            helper.make_node("Gemm", ["x", "w.transposed"], ["first"]),
            helper.make_node("Gemm", ["x", "w.columns"], ["second"]),
            helper.make_node("Sum", ["turned", "first", "second"], ["y"]),
        ]
    )
    onnx.save(graph, tmp_path / "model.onnx")
    x = rng.standard_normal((5, 64)).astype(np.float32)
    expected = x @ (weight.T + 2 * other)
    if precision is Precision.INT8:
        write_int8(tmp_path / "model.onnx", tmp_path / "lower.onnx")
    else:
        write_half(tmp_path / "model.onnx", tmp_path / "lower.onnx", precision, emulated=True)
    found = runner(tmp_path / "lower.onnx")(x)
    assert 0 < np.linalg.norm(found - expected) < 0.03 * np.linalg.norm(expected)


def test_a_weight_that_is_read_through_a_node_that_does_nothing_is_one(tmp_path: Path) -> None:
    weight = np.random.default_rng(0).standard_normal((64, 64)).astype(np.float32)
    graph = onnx.load(product(tmp_path, weight))
    graph.graph.node[0].output[0] = "once"
    shared = [
        helper.make_node("Identity", ["w"], ["same"]),
        helper.make_node("Identity", ["same"], ["again"]),
    ]
    graph.graph.node.extend([*shared, helper.make_node("MatMul", ["once", "again"], ["y"])])
    onnx.save(graph, tmp_path / "model.onnx")
    assert layer_groups(tmp_path / "model.onnx", attention=True) == {"w": 2 * 64 * 64}
    write_int8(tmp_path / "model.onnx", tmp_path / "model.int8.onnx")
    stored = onnx.load(tmp_path / "model.int8.onnx", load_external_data=False).graph
    assert [t.name for t in stored.initializer if t.data_type == TensorProto.INT8] == ["w.int8"]
    assert [n.op_type for n in stored.node].count("MatMulIntegerToFloat") == 2


def test_without_numbers_or_margins_nothing_is_good_enough(
    artifact: Artifact, groups: list[list[EncodedSequence]]
) -> None:
    session = GraphSession(artifact)
    expected = rewards_of(session, groups)
    found = measure(session, groups, expected)
    assert shortcomings(Precision.INT8, found, 0.0) == ""
    assert "a reward is not a finite number" in shortcomings(
        Precision.INT8, replace(found, max_error=np.nan), 1e-9
    )
    alike = measure(session, groups, [np.zeros(len(rewards)) for rewards in expected])
    assert "int8 cannot be measured: no two responses to a prompt" in shortcomings(
        Precision.INT8, alike, 1e-9
    )


def test_fp32_need_not_be_kept(tiny_checkpoint: Path, tmp_path: Path) -> None:
    path = export_quietly(
        tiny_checkpoint, tmp_path / "int8", dtype="int8", rankings=str(EXAMPLES), min_agreement=0.9
    )
    artifact = read_artifact(path)
    assert artifact.manifest.available_precisions == [Precision.INT8]
    assert {file.name for file in path.iterdir()} == artifact.manifest.files.keys() | {
        "manifest.json"
    }
    assert not [name for name in artifact.manifest.files if name.startswith("model.onnx")]
    assert not artifact.manifest.cuda_graphs and "model.cuda.onnx" not in artifact.manifest.files


def test_sensitive_layer_groups_stay_in_fp32_until_the_rest_ranks_as_fp32_does(
    tiny_checkpoint: Path, tmp_path: Path
) -> None:
    """Not all of the tiny model can be int8 if all clear pairs are to keep their order."""
    exported = export_quietly(
        tiny_checkpoint,
        tmp_path / "int8",
        dtype="fp32,int8",
        rankings=str(EXAMPLES),
        min_agreement=1,
    )
    artifact = read_artifact(exported)
    report = artifact.manifest.error_bounds[Precision.INT8].report
    kept = set(report["fp32_layers"])
    sizes = layer_groups(artifact.graph_path(), attention=False)
    assert kept and kept < sizes.keys() == {f"layers.*.{name}_proj" for name in NAMES}
    assert report["matmul_share"] == pytest.approx(
        1 - sum(sizes[kind] for kind in kept) / sum(sizes.values())
    )
    graph = onnx.load(artifact.graph_path(Precision.INT8), load_external_data=False).graph
    stored = {
        t.name: t.data_type
        for t in graph.initializer
        if "_proj" in t.name and not t.name.endswith(".scale")
    }
    for name, data_type in stored.items():
        is_kept = any(kind.removeprefix("layers.*.") in name for kind in kept)
        assert data_type == (TensorProto.FLOAT if is_kept else TensorProto.INT8), name


def test_a_precision_that_is_not_good_enough_is_not_written(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not with any layer group in fp32. The bound is impossible, so no model could pass."""
    monkeypatch.setattr(agreement, "_MAX_BATCH_CHANGE", -1.0)
    with pytest.raises(
        ParityError,
        match=r"int8: a reward changes with the batch composition by 0\.\d\d% of the rewards'",
    ):
        export_quietly(tiny_checkpoint, tmp_path / "refused", dtype="fp32,int8")
    assert list(tmp_path.iterdir()) == []


@given(num_groups=st.integers(1, 12), data=st.data())
def test_as_few_layer_groups_stay_in_fp32_as_are_enough(
    num_groups: int, data: st.DataObject
) -> None:
    order = [f"group {number}" for number in range(num_groups)]
    least = data.draw(st.integers(1, num_groups))
    found: Any = object()
    if least > num_groups - 1:
        with pytest.raises(ParityError, match="not enough"):
            _min_fp32_layers(
                order, lambda kept: (found, "" if len(kept) >= least else "not enough")
            )
    else:
        kept, _ = _min_fp32_layers(
            order, lambda kept: (found, "" if len(kept) >= least else "not enough")
        )
        assert kept == order[:least]


class OneLayerGroup:
    """A session with one layer group in the precision, whose error is that of all rewards."""

    def __init__(self, error: float) -> None:
        self.error = error

    def run(self, batch: Sequence[EncodedSequence]) -> Pass:
        return Pass(rewards=np.full(len(batch), self.error, np.float32), num_rows=len(batch))


@given(st.permutations([0.0, 0.1, 1.0, float("inf"), float("nan"), float("nan")]))
def test_layer_groups_that_overflow_are_the_first_to_stay_in_fp32(errors: list[float]) -> None:
    """NaN compares as false with everything, so sorting by it gives no order."""
    sizes = dict.fromkeys(map(str, range(len(errors))), 1)
    sequence = EncodedSequence(token_ids=np.arange(6, 9), type_ids=None, num_tokens=3)

    def open_session(fp32_layers: Sequence[str], *, split_sums: bool = False) -> Any:
        (group,) = sizes.keys() - set(fp32_layers)
        return OneLayerGroup(errors[int(group)])

    order = _by_sensitivity(open_session, sizes, [[sequence]], [np.zeros(1)])
    finite = [errors[int(group)] for group in order[3:]]
    assert finite == [1.0, 0.1, 0.0]


def with_large_weight(artifact: Artifact, size: float, path: Path) -> Artifact:
    model = onnx.load(artifact.graph_path())
    weight = next(t for t in model.graph.initializer if "up_proj" in t.name)
    values = numpy_helper.to_array(weight).copy()
    values[:, 0] = size
    weight.CopyFrom(numpy_helper.from_array(values, weight.name))
    onnx.save(model, path / "model.onnx")
    return Artifact(path=path, manifest=artifact.manifest, golden=())


def test_fp16_that_overflows_is_not_written(
    artifact: Artifact, groups: list[list[EncodedSequence]], tmp_path: Path
) -> None:
    """The weights are finite in fp16, their sums are not, so the rewards are NaN."""
    changed = with_large_weight(artifact, 6e4, tmp_path)
    write_half(
        changed.graph_path(), changed.graph_path(Precision.FP16), Precision.FP16, emulated=True
    )
    expected = rewards_of(GraphSession(changed), groups)
    assert np.isfinite(np.concatenate(expected)).all()
    found = measure(GraphSession(changed, precision=Precision.FP16), groups, expected)
    assert shortcomings(Precision.FP16, found, 1e-9) == "fp16: a reward is not a finite number"


def test_text_on_which_fp32_overflows_chooses_no_rounding(
    artifact: Artifact, groups: list[list[EncodedSequence]], tmp_path: Path
) -> None:
    changed = with_large_weight(artifact, 3e38, tmp_path)
    with pytest.raises(
        ParityError, match=r"the model's values at .*, or their squares, are not finite in fp32"
    ):
        round_weights(
            changed.graph_path(), [Precision.INT8], GraphSession(changed), groups, tmp_path
        )


def test_a_weight_beyond_fp16_is_named(artifact: Artifact, tmp_path: Path) -> None:
    changed = with_large_weight(artifact, 1e6, tmp_path)
    with pytest.raises(
        ParityError, match=r"the weight .*up_proj.* contains 1e\+06, which is too large for float16"
    ):
        write_half(changed.graph_path(), changed.graph_path(Precision.FP16), Precision.FP16)
    write_half(changed.graph_path(), changed.graph_path(Precision.BF16), Precision.BF16)


def test_what_is_asked_for_in_vain_is_named(
    tiny_checkpoint: Path, artifact: Artifact, tmp_path: Path
) -> None:
    for dtype in ("fp8", "", "int8,int8", "int8,"):
        with pytest.raises(ConfigError, match="--dtype is"):
            export_quietly(tiny_checkpoint, tmp_path / "none", dtype=dtype)
    (tmp_path / "bad.jsonl").write_text(json.dumps({"prompt": "Hi"}) + "\n")
    with pytest.raises(RankingsError, match=r"bad\.jsonl:1"):
        export_quietly(
            tiny_checkpoint,
            tmp_path / "none",
            dtype="fp32,int8",
            rankings=str(tmp_path / "bad.jsonl"),
        )


def test_rankings_with_what_is_too_long_are_told_by_line_and_left_out(
    tiny_artifact: Path, tmp_path: Path
) -> None:
    """A prompt over the limit ended the export, and a response over it vanished."""
    path, told = tmp_path / "rankings.jsonl", list[str]()
    texts = [("Q", "no"), ("long " * 400, "no"), ("Q", "long " * 400)]
    path.write_text(
        "".join(
            json.dumps({"prompt": p, "responses": [{"text": t, "rank": r}
                        for r, t in enumerate(("yes", response, "maybe"), 1)]}) + "\n"
            for p, response in texts
        )
    )  # fmt: skip
    encoder = new_encoder(read_artifact(tiny_artifact), EngineConfig(max_tokens=200))
    groups = encode_groups(encoder, read_text_groups(str(path)), told.append)
    assert [len(group) for group in groups] == [3, 2]
    assert [line.partition(" skipped: ")[0] for line in told[:2]] == [
        f"--rankings: {path}:2:",
        f"--rankings: {path}:3:",
    ]
    assert told[1].startswith(f"--rankings: {path}:3: skipped: responses[1]: ")
    assert all("200" in line for line in told[:2])
