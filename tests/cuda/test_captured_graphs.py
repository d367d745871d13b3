"""Passes that are captured as CUDA graphs and replayed."""

import ctypes
import logging
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from kwise.engine.model.runtime import captured_graphs
from kwise.engine.model.runtime.bound_run import BoundRun
from kwise.engine.model.runtime.captured_graphs import MIN_PASSES
from kwise.engine.model.runtime.index_buffer import join_arrays
from kwise.engine.model.runtime.onnxruntime_graph import OnnxRuntimeGraph
from kwise.engine.model.session import GraphSession
from kwise.engine.precision import Precision
from tests.cuda.passes import PRECISIONS, batch
from tests.cuda.standin.events import Event, StandIn

OpenSession = Callable[..., GraphSession]


def kinds(events: Sequence[Event]) -> Counter[str]:
    """Count the events by kind, without copies of empty arrays."""
    return Counter(e.kind for e in events if e.size or not e.kind.endswith(("2h", "2d")))


def captures(events: Sequence[Event]) -> int:
    return sum(event.name == "cudaStreamBeginCapture" for event in events)


def bound(session: GraphSession) -> BoundRun:
    graph: Any = session._graph
    run = getattr(graph, "graph", graph)._bound
    assert isinstance(run, BoundRun)
    return run


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_repeated_shape_is_captured_once_and_its_passes_are_one_launch_each(
    open_session: OpenSession, stand_in: StandIn, precision: Precision
) -> None:
    session = open_session(precision)
    for seed in range(MIN_PASSES):
        session.run(batch(seed))
    assert captures(stand_in.events()) == 0
    session.run(batch())
    events = stand_in.events()
    assert captures(events) == 1
    # A copy from the host in the graph would read the host's memory again at each replay.
    captured = [event.kind for event in events if event.captured]
    assert not {"h2d", "d2h", "h2h"}.intersection(captured)
    for seed in range(3):
        stand_in.clear()
        session.run(batch(seed))
        assert kinds(stand_in.events()) == {"h2d": 1, "replay": 1, "d2h": 1, "sync": 2}


def test_each_replay_reads_its_own_inputs_and_returns_its_own_rewards(
    open_session: OpenSession,
) -> None:
    """The graph knows addresses only, so this reads and writes the memory of the device."""
    session = open_session(Precision.FP16)
    for seed in range(MIN_PASSES + 1):
        session.run(batch(seed))
    run = bound(session)
    assert run._graphs is not None
    (shape,) = run._graphs._shapes.values()
    assert shape.graph is not None
    rewards = shape.graph._outputs["rewards"]
    graph: Any = session._graph
    for seed in range(10, 13):
        expected = np.random.default_rng(seed).random(16, np.float32)
        ctypes.memmove(rewards.data_ptr(), expected.ctypes.data, expected.nbytes)
        np.testing.assert_array_equal(session.run(batch(seed)).rewards, expected[:14])
        arrays = graph.pad(session.inputs(batch(seed)))
        joined = join_arrays({n: a for n, a in arrays.items() if a.dtype == np.int64 and a.size})
        buffer = run._index_buffers._buffers[len(joined.values)]
        found = ctypes.string_at(buffer.data_ptr(), joined.values.nbytes)
        np.testing.assert_array_equal(np.frombuffer(found, np.int64), joined.values)


def test_a_session_has_a_graph_for_each_repeated_shape(
    open_session: OpenSession, stand_in: StandIn
) -> None:
    session = open_session(Precision.FP16)
    shapes = [{"prompt": 256}, {"prompt": 1024}]
    for seed in range(MIN_PASSES + 1):
        for shape in shapes:
            session.run(batch(seed, **shape))
    sizes = [event.size for event in stand_in.events() if event.kind == "replay"]
    assert len(sizes) == 2
    for shape in shapes:
        stand_in.clear()
        session.run(batch(**shape))
        assert kinds(stand_in.events())["replay"] == 1
        assert kinds(stand_in.events())["kernel"] == 0


def test_sessions_on_two_devices_capture_and_replay_there(
    open_session: OpenSession, stand_in: StandIn
) -> None:
    sessions = [open_session(Precision.FP16, f"cuda:{index}") for index in range(2)]
    stand_in.clear()
    for session in sessions:  # as when a server loads a model, and each session has a thread then
        session.run(batch())

    def serve(session: GraphSession) -> None:
        for seed in range(MIN_PASSES + 3):
            session.run(batch(seed))

    for session in sessions:
        thread = threading.Thread(target=serve, args=[session])
        thread.start()
        thread.join()
    replays = [event.device for event in stand_in.events() if event.kind == "replay"]
    assert replays == [0, 0, 0, 1, 1, 1]


def test_a_thread_with_two_devices_uses_the_right_one(
    open_session: OpenSession, stand_in: StandIn
) -> None:
    """ONNX Runtime selects the device in a thread's first pass only."""
    sessions = [open_session(Precision.FP16, f"cuda:{index}") for index in range(2)]
    for seed in range(MIN_PASSES + 3):
        for index, session in enumerate(sessions):
            stand_in.clear()
            session.run(batch(seed))
            assert {event.device for event in stand_in.events()} == {index}


def test_other_threads_use_cuda_after_a_capture_and_not_during_it(
    open_session: OpenSession, stand_in: StandIn
) -> None:
    """CUDA would refuse their copies and what they free, and the capture would fail."""
    capturing, running, freed = [
        open_session(Precision.FP16, device) for device in ("cuda:0", "cuda:1", "cuda:1")
    ]
    sessions = [freed]
    del freed
    threads = [
        threading.Thread(target=lambda: running.run(batch())),
        threading.Thread(target=sessions.clear),
    ]

    def use_cuda() -> None:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(0.2)  # it would end by then, if it did not wait
            assert thread.is_alive()

    for seed in range(MIN_PASSES):
        capturing.run(batch(seed))
    stand_in.clear()
    with stand_in.during_captures(use_cuda):
        capturing.run(batch())
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()
    assert kinds(stand_in.events())["illegal"] == 0
    assert captures(stand_in.events()) == 1


def test_passes_that_fill_and_use_the_prompt_cache_are_captured_too(
    open_session: OpenSession, stand_in: StandIn
) -> None:
    session = open_session(Precision.FP16, prompt_cache_bytes=1 << 24)
    for seed in range(MIN_PASSES + 3):
        assert session.run(batch(seed)).num_reused == 0
        assert session.run(batch(seed)).num_reused >= 256
    assert captures(stand_in.events()) == 2
    stand_in.clear()
    assert session.run(batch(seed)).num_reused >= 256
    assert kinds(stand_in.events()) == {"h2d": 1, "replay": 1, "d2h": 1, "sync": 2}


def test_a_pass_that_cannot_be_captured_is_launched_and_the_log_says_so(
    open_session: OpenSession, stand_in: StandIn, caplog: pytest.LogCaptureFixture
) -> None:
    session = open_session(Precision.FP16)
    stand_in.fail_captures(True)
    try:
        with caplog.at_level(logging.WARNING):
            for seed in range(MIN_PASSES + 3):
                session.run(batch(seed))
    finally:
        stand_in.fail_captures(False)
    (record,) = caplog.records
    assert record.getMessage().startswith("cuda:0: a pass could not be captured as a CUDA graph")
    assert "\n" not in record.getMessage()
    stand_in.clear()
    session.run(batch())
    assert kinds(stand_in.events())["kernel"] > 50
    # Another shape can still be captured.
    for seed in range(MIN_PASSES + 1):
        session.run(batch(seed, prompt=1024))
    assert captures(stand_in.events()) == 1


def test_the_number_of_graphs_is_limited(
    open_session: OpenSession, stand_in: StandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(captured_graphs, "MAX_GRAPHS", 1)
    session = open_session(Precision.FP16)
    for prompt in (256, 1024):
        for seed in range(MIN_PASSES + 2):
            session.run(batch(seed, prompt=prompt))
    assert captures(stand_in.events()) == 1


def test_a_graph_that_cannot_be_captured_runs_all_the_same(
    tmp_path: Path, stand_in: StandIn, caplog: pytest.LogCaptureFixture
) -> None:
    """ONNX Runtime refuses CUDA graphs where the CPU computes; Det has no kernel for CUDA."""
    nodes = [
        helper.make_node("Cast", ["x"], ["y"], to=TensorProto.FLOAT),
        helper.make_node("Det", ["y"], ["det"]),
        helper.make_node("Add", ["det", "det"], ["rewards"]),
    ]
    graph = helper.make_graph(
        nodes,
        "test",
        [helper.make_tensor_value_info("x", TensorProto.INT64, ["n", 2, 2])],
        [helper.make_tensor_value_info("rewards", TensorProto.FLOAT, ["n"])],
    )
    path = tmp_path / "model.onnx"
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path
    )
    with caplog.at_level(logging.WARNING):
        opened = OnnxRuntimeGraph(path, device="cuda:0", threads=1, few_shapes=True)
    (record,) = caplog.records
    assert record.getMessage().startswith("cuda:0: no CUDA graphs for this model: ")
    for _ in range(MIN_PASSES + 2):
        opened.run({"x": np.ones((3, 2, 2), np.int64)})
    assert captures(stand_in.events()) == 0
