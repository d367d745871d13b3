"""IO binding, and passes that are run again with the same buffers, on a CPU."""

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from kwise.engine.artifact.read import Artifact, read_artifact
from kwise.engine.model.devices import Device, Kind
from kwise.engine.model.packing import NOT_PAST, pack
from kwise.engine.model.runtime import captured_graphs
from kwise.engine.model.runtime.bound_run import BoundRun
from kwise.engine.model.runtime.captured_graphs import MIN_PASSES, CapturedGraphs
from kwise.engine.model.runtime.index_buffer import join_arrays
from kwise.engine.model.runtime.onnxruntime_graph import OnnxRuntimeGraph
from kwise.engine.model.runtime.pools import Pools
from kwise.engine.precision import Precision
from kwise.engine.trie import build_trie

CPU = Device(kind=Kind.CPU)
CPU_PROVIDER = "CPUExecutionProvider"


@pytest.fixture(scope="module")
def artifact(tiny_artifact: Path) -> Artifact:
    return read_artifact(tiny_artifact)


def _arrays(lengths: tuple[int, ...], num_past: int) -> dict[str, NDArray[Any]]:
    """Return the inputs of a batch with one prompt of 20 tokens, `num_past` of them past entries.

    If none is past, the prompt is to be cached. Its token number N has slot N + 1.
    """
    trie = build_trie(
        [np.concatenate([np.arange(20), np.full(length, length)]) for length in lengths]
    )
    past = np.full(trie.num_nodes, NOT_PAST)
    past[:num_past] = np.arange(num_past)
    packed = pack(trie, 1, past, num_past, aligned_keys=True)
    to_cache = np.arange(0 if num_past else 20)
    return packed.arrays | {
        "rows_to_cache": packed.entries[to_cache],
        "past_slots": np.arange(1, num_past + 1),
        "slots_to_cache": to_cache[:, None] + 1,
    }


def test_a_bound_run_reads_and_writes_its_pools_in_place_and_uses_its_buffer_again(
    artifact: Artifact,
) -> None:
    """The reference is a plain run, whose pools are arrays that come back changed."""
    path = artifact.path / artifact.manifest.cuda_graphs[Precision.FP32].file
    session = ort.InferenceSession(path, providers=[CPU_PROVIDER])
    inputs = {node.name: node for node in session.get_inputs()}
    pools = Pools.of(session, CPU, 100_000)
    assert pools is not None
    bound = BoundRun(session, CPU, pools)
    arrays_of = {
        name: np.zeros((pools.num_slots, node.shape[1]), np.float32)
        for name, node in inputs.items()
        if name.startswith("pool.")
    }
    rewards = []
    for arrays in (_arrays((3, 9, 30), 0), _arrays((4, 10), 12), _arrays((3, 9, 30), 12)):
        fed = {name: array for name, array in arrays.items() if name in inputs}
        outputs = [node.name for node in session.get_outputs()]
        expected = dict(zip(outputs, session.run(None, fed | arrays_of), strict=True))
        arrays_of = {name: expected[name.replace("pool", "updated")] for name in arrays_of}
        actual = bound.prepare(fed)()
        assert actual.keys() == {"rewards"}
        np.testing.assert_array_equal(actual["rewards"], expected["rewards"])
        for name, table in pools._tables.items():
            written = slice(1, 21)  # the rest was never written
            np.testing.assert_array_equal(
                table.numpy()[written], arrays_of[f"pool.{name}"][written]
            )
        rewards.append(actual["rewards"])
    np.testing.assert_allclose(rewards[0], rewards[2], rtol=0, atol=1e-5)
    assert len(bound._index_buffers) == 1


def test_pools_take_the_bytes_that_they_are_given(artifact: Artifact) -> None:
    path = artifact.path / artifact.manifest.cuda_graphs[Precision.FP32].file
    for num_bytes in (0, 511, 512, 100_000):  # a slot takes 2 layers, keys and values, 32 floats
        graph = OnnxRuntimeGraph(path, device="cpu", threads=1, pool_bytes=num_bytes)
        assert graph.num_slots == 1 + num_bytes // 512
        assert graph.slot_bytes == 512
    assert OnnxRuntimeGraph(artifact.graph_path(), device="cpu", threads=1).num_slots == 0


@settings(max_examples=50)
@given(
    st.dictionaries(
        st.sampled_from("abcdef"), st.lists(st.integers(1, 90), min_size=1, max_size=2), min_size=1
    )
)
def test_joined_arrays_are_aligned_and_none_touches_another(shapes: dict[str, list[int]]) -> None:
    arrays = {
        name: np.arange(1, 1 + np.prod(shape)).reshape(shape) for name, shape in shapes.items()
    }
    joined = join_arrays(arrays)
    for name, array in arrays.items():
        offset = joined.offsets[name]
        assert offset * joined.values.itemsize % 256 == 0
        found = joined.values[offset : offset + array.size].reshape(joined.shapes[name])
        np.testing.assert_array_equal(found, array)
    assert np.count_nonzero(joined.values) == sum(array.size for array in arrays.values())


def test_joined_arrays_have_few_sizes_and_little_padding() -> None:
    totals = range(1 << 13, 1 << 19, 1000)
    sizes = [len(join_arrays({"a": np.ones(total, np.int64)}).values) for total in totals]
    assert all(
        total <= size <= 1.26 * total
        for total, size in zip(totals, sizes, strict=True)
        if total > 1 << 15
    )
    assert len(set(sizes)) <= 24


def test_passes_of_repeated_shapes_give_the_rewards_of_other_passes(artifact: Artifact) -> None:
    """A CPU runs a captured pass again, from the same buffers into the same buffers."""
    path = artifact.path / artifact.manifest.cuda_graphs[Precision.FP32].file
    session = ort.InferenceSession(path, providers=[CPU_PROVIDER])
    names = {node.name for node in session.get_inputs()}
    plain = BoundRun(session, CPU, Pools.of(session, CPU, 100_000))
    bound = BoundRun(session, CPU, Pools.of(session, CPU, 100_000), capture=True)
    random = np.random.default_rng(1)
    expected, actual = [], []
    for _ in range(MIN_PASSES + 3):
        # Both write keys and values of the same prompt to their pools, and read them.
        for lengths, num_past in (((3, 9, 30), 0), ((40, 41), 12)):
            arrays = {n: a for n, a in _arrays(lengths, num_past).items() if n in names}
            arrays["input_ids"] = random.permutation(arrays["input_ids"])
            expected.append(plain.prepare(arrays)()["rewards"])
            actual.append(bound.prepare(arrays)()["rewards"])
    # Compared at the end: a later pass must not change what an earlier one has returned.
    np.testing.assert_array_equal(np.concatenate(actual), np.concatenate(expected))
    assert len(np.unique(actual[0])) > 1
    assert bound._graphs is not None
    assert bound._graphs.num_graphs == 2


def test_the_number_of_graphs_is_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(captured_graphs, "MAX_GRAPHS", 0)
    graphs = CapturedGraphs(CPU)
    for _ in range(2 * MIN_PASSES):
        graphs.count("shape", {})
    assert not graphs.should_capture("shape")


def test_a_shape_is_captured_once_it_has_repeated() -> None:
    graphs = CapturedGraphs(CPU)
    for _ in range(MIN_PASSES):
        assert not graphs.should_capture("shape")
        graphs.count("shape", {})
    assert graphs.should_capture("shape") and not graphs.should_capture("another")
