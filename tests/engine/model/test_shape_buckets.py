"""Padding to shape buckets changes no reward; shapes are few and not much larger."""

from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from kwise.engine.artifact.read import Artifact, read_artifact
from kwise.engine.model.packing import pack
from kwise.engine.model.runtime.protocol import Shape
from kwise.engine.model.session import GraphSession
from kwise.engine.model.shape_buckets import BucketedGraph, round_up, rows_bucket
from kwise.engine.precision import Precision
from kwise.engine.sequence import EncodedSequence
from kwise.engine.trie import Int64, build_trie
from tests.batches import BATCHES

EXACT = 1e-5  # fp32, another order of additions


class RecordingGraph:
    """Returns as many rewards and states as requested, and records the shapes of its inputs."""

    runtime = "test"
    inputs: Mapping[str, Shape] = {}
    outputs: Collection[str] = ("rewards",)
    num_slots = slot_bytes = 0

    def __init__(self) -> None:
        self.shapes: list[tuple[tuple[int, ...], ...]] = []

    def prepare(self, arrays: Mapping[str, NDArray[Any]]) -> Callable[[], dict[str, NDArray[Any]]]:
        return partial(self.run, arrays)

    def run(self, arrays: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        self.shapes.append(tuple(arrays[name].shape for name in sorted(arrays)))
        return {"rewards": np.zeros(len(arrays["last_rows"]), np.float32)}


@pytest.fixture(scope="module")
def artifact(tiny_artifact: Path) -> Artifact:
    """The artifact, with its graph for CUDA as the one for CPUs."""
    artifact = read_artifact(tiny_artifact)
    return artifact.with_graph(Precision.FP32, artifact.manifest.cuda_graphs[Precision.FP32])


def _bucketed(artifact: Artifact, prompt_cache_bytes: int) -> GraphSession:
    """Return a session on a CPU whose graph is wrapped as on a GPU."""
    session = GraphSession(artifact, threads=1, prompt_cache_bytes=prompt_cache_bytes)
    session._graph = BucketedGraph(session._graph)
    return session


def _sequences(batch: Sequence[Int64]) -> list[EncodedSequence]:
    return [
        EncodedSequence(
            token_ids=ids, type_ids=None, num_tokens=len(ids), prompt_tokens=3 * len(ids) // 4
        )
        for ids in batch
    ]


def _batch(random: np.random.Generator, max_rows: int) -> list[Int64]:
    """Return groups of different lengths with about `max_rows` tokens."""
    batch: list[Int64] = []
    while sum(map(len, batch)) < max_rows:
        prompt = random.integers(0, 50_000, random.integers(5, 300))
        lengths = random.integers(1, 200, random.integers(1, 9))
        batch.extend(
            np.concatenate([prompt, random.integers(0, 50_000, length)]) for length in lengths
        )
    return batch


def _inputs(batch: Sequence[Int64]) -> dict[str, NDArray[Any]]:
    arrays = pack(build_trie(batch), 1, aligned_keys=True).arrays
    size = len(batch[0])
    return arrays | {
        "rows_to_cache": np.arange(size),
        "past_slots": np.empty(0, np.int64),
        "slots_to_cache": np.arange(1, size + 1)[:, None],
    }


def _scores(arrays: Mapping[str, NDArray[Any]]) -> int:
    return int(arrays["queries.0"].size * arrays["keys.0"].shape[1])


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(st.lists(BATCHES, min_size=1, max_size=3), st.sampled_from([0, 1 << 14, 64 << 20]))
def test_padding_changes_no_reward_whatever_is_cached(
    artifact: Artifact, batches: list[list[Int64]], prompt_cache_bytes: int
) -> None:
    bucketed = _bucketed(artifact, prompt_cache_bytes)
    plain = GraphSession(artifact, threads=1, prompt_cache_bytes=prompt_cache_bytes)
    for batch in [*batches, batches[0]]:
        passed, expected = bucketed.run(_sequences(batch)), plain.run(_sequences(batch))
        np.testing.assert_allclose(passed.rewards, expected.rewards, rtol=0, atol=EXACT)
        assert (passed.num_rows, passed.num_reused) == (expected.num_rows, expected.num_reused)


def test_large_batches_of_many_tiles_keep_their_rewards(artifact: Artifact) -> None:
    random = np.random.default_rng(0)
    bucketed, plain = _bucketed(artifact, 64 << 20), GraphSession(artifact, threads=1)
    for max_rows in (3000, 200, 3000, 1500):
        batch = _sequences([ids % 40_000 for ids in _batch(random, max_rows)])
        np.testing.assert_allclose(
            bucketed.run(batch).rewards, plain.run(batch).rewards, rtol=0, atol=EXACT
        )


@given(st.integers(0, 100_000), st.sampled_from([1, 8, 64]), st.sampled_from([1, 2, 4, 16]))
def test_rounding_up_adds_less_than_a_step_and_repeats_itself(
    size: int, smallest: int, steps: int
) -> None:
    rounded = round_up(size, smallest, steps)
    assert rounded == round_up(rounded, smallest, steps) >= size
    assert rounded <= max(smallest, size + max(size // steps, 1)) if size else rounded == 0
    assert rounded <= round_up(size + 1, smallest, steps)


@pytest.mark.parametrize(("num_rows", "padded"), [(1025, 1280), (2048, 2048), (2049, 2176)])
def test_more_rows_get_a_smaller_share_of_padding(num_rows: int, padded: int) -> None:
    assert rows_bucket(num_rows) == padded


@given(st.integers(2049, 100_000))
def test_above_2048_rows_padding_is_at_most_a_sixteenth(num_rows: int) -> None:
    assert num_rows <= rows_bucket(num_rows) <= num_rows * 17 / 16


def test_there_are_few_shapes_and_hardly_new_ones_in_the_last_batches() -> None:
    """Without buckets all 400 differ. The bounds are about twice what random batches had."""
    random = np.random.default_rng(1)
    graph = RecordingGraph()
    bucketed = BucketedGraph(graph)
    for _ in range(400):
        arrays = _inputs(_batch(random, 2000))
        bucketed.run(
            arrays | {name: arrays[name][:0] for name in ("rows_to_cache", "slots_to_cache")}
        )
    assert len(set(graph.shapes)) <= 100
    assert len(set(graph.shapes)) - len(set(graph.shapes[:300])) <= 10


def test_a_shape_costs_a_quarter_more_rows_at_most_and_scores_in_proportion() -> None:
    random = np.random.default_rng(2)
    bucketed = BucketedGraph(RecordingGraph())
    scores, padded_scores = 0, 0
    for _ in range(100):
        arrays = _inputs(_batch(random, 2000))
        padded = bucketed.pad(arrays)
        num_rows = len(arrays["input_ids"])
        assert num_rows <= len(padded["input_ids"]) < 1.25 * num_rows
        assert padded["keys.0"].shape[1] % 4 == 0, "a mask would keep ONNX Runtime off flash"
        scores, padded_scores = scores + _scores(arrays), padded_scores + _scores(padded)
    assert padded_scores < 5 * scores


def test_outputs_are_cut_to_the_batch_even_to_one_token() -> None:
    bucketed = BucketedGraph(RecordingGraph())
    for batch in ([np.array([3])], [np.array([3]), np.array([3, 4])]):
        outputs = bucketed.run(_inputs(batch))
        assert len(outputs["rewards"]) == len(batch)
