"""What a pass does on a GPU: where its nodes run, its kernels, and what it copies."""

from collections.abc import Callable

import pytest

from kwise.engine.model.devices import Device, Kind
from kwise.engine.model.runtime.cuda import free_bytes
from kwise.engine.model.session import GraphSession
from kwise.engine.precision import Precision
from kwise.errors import ConfigError
from tests.cuda.passes import (
    PRECISIONS,
    attention_kernels,
    batch,
    copies,
    nodes,
    num_attention_calls,
    second_pass,
)
from tests.cuda.standin.events import StandIn, launches

OpenSession = Callable[..., GraphSession]

# Launches of a pass of 2,048 rows. Lower a figure when a change saves launches.
LAUNCHES = {Precision.FP32: 73, Precision.FP16: 75, Precision.BF16: 81}
# The kernel of each call of Attention. Flash attention has none for fp32.
ATTENTION = {Precision.FP32: "unfused", Precision.FP16: "flash", Precision.BF16: "flash"}
# The kernels of both layers between their matmuls. QuickGelu is exact in fp32 alone.
_BETWEEN_MATMULS = {
    Precision.FP16: {"cuApplyLayerNorm<float, float, __half": 4, "OP_Sigmoid<__half>": 2},
    Precision.BF16: {"cuApplyLayerNorm<float, float, float": 5, "OP_QuickGelu<float>": 2},
}
# Operators of arithmetic on shapes. Its arrays have a few int64, and belong on the CPU.
_ON_SHAPES = {"Concat", "Equal", "Gather", "Reshape", "Slice", "Unsqueeze", "Where"}


@pytest.mark.parametrize("precision", PRECISIONS)
def test_only_arithmetic_on_shapes_is_left_to_the_cpu(
    open_session: OpenSession, precision: Precision
) -> None:
    assigned = nodes(open_session(precision))
    assert assigned["CPUExecutionProvider"].keys() <= _ON_SHAPES
    # ONNX Runtime inserts Memcpy nodes where one device reads what another one has computed.
    assert not any(name.startswith("Memcpy") for on_it in assigned.values() for name in on_it)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_pass_copies_its_indices_in_and_its_rewards_out_and_nothing_between(
    open_session: OpenSession, stand_in: StandIn, precision: Precision
) -> None:
    session = open_session(precision)
    events = second_pass(session, stand_in)
    assert len(copies(events, "h2d")) == 1
    assert copies(events, "d2h") == [4 * 16]  # 14 rewards, padded to 16
    assert not [event.name for event in events if event.kind in ("unexpected", "illegal")]


@pytest.mark.parametrize("precision", PRECISIONS)
def test_each_call_of_attention_takes_the_kernel_that_this_precision_should_have(
    open_session: OpenSession, stand_in: StandIn, precision: Precision
) -> None:
    session = open_session(precision)
    events = second_pass(session, stand_in)
    assert attention_kernels(events) == {ATTENTION[precision]: num_attention_calls(session)}


@pytest.mark.parametrize("precision", [Precision.FP16, Precision.BF16])
def test_attention_to_cached_prompts_is_flash_attention_too(
    open_session: OpenSession, stand_in: StandIn, precision: Precision
) -> None:
    session = open_session(precision, prompt_cache_bytes=1 << 24)
    session.run(batch())
    stand_in.clear()
    assert session.run(batch()).num_reused >= 256
    assert attention_kernels(stand_in.events()) == {"flash": num_attention_calls(session)}


@pytest.mark.parametrize("precision", PRECISIONS)
def test_keys_and_values_of_cached_prompts_stay_on_the_device(
    open_session: OpenSession, stand_in: StandIn, precision: Precision
) -> None:
    session = open_session(precision, prompt_cache_bytes=1 << 24)
    events = second_pass(session, stand_in)  # each pass caches its prompt
    assert len(copies(events, "h2d")) == 1 and copies(events, "d2h") == [4 * 16]
    scatters = [event for event in events if "ScatterND" in event.name]
    assert len(scatters) == 2 * 2, "keys and values of two layers, each in one kernel"


def test_the_pools_take_a_quarter_of_the_free_memory_by_default(open_session: OpenSession) -> None:
    slot_bytes = 2 * 2 * 2 * 64 * 2  # two layers, keys and values, two heads of 64 halves
    session = open_session(Precision.FP16, prompt_cache_bytes=None)
    num_slots = session._graph.num_slots
    assert num_slots > 1 << 10
    free = free_bytes(Device(kind=Kind.CUDA))
    assert 0.2 < num_slots * slot_bytes / (free + num_slots * slot_bytes) < 0.3


def test_pools_that_do_not_fit_name_the_option(open_session: OpenSession) -> None:
    with pytest.raises(ConfigError, match="--prompt-cache-bytes: cuda:0 cannot hold the keys"):
        open_session(Precision.FP16, prompt_cache_bytes=1 << 50)


@pytest.mark.parametrize("precision", _BETWEEN_MATMULS)
def test_norms_and_gates_take_kernels_that_compute_in_fp32_inside(
    open_session: OpenSession, stand_in: StandIn, precision: Precision
) -> None:
    found = launches(second_pass(open_session(precision), stand_in))
    expected = _BETWEEN_MATMULS[precision]
    counts = {part: sum(n for name, n in found.items() if part in name) for part in expected}
    assert counts == expected, found.most_common()
    assert not any("QuickGelu" in name and "QuickGelu<float>" not in name for name in found)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_launches_of_a_pass_grow_by_at_most_5_percent(
    open_session: OpenSession, stand_in: StandIn, precision: Precision
) -> None:
    found = launches(second_pass(open_session(precision), stand_in))
    assert found.total() <= 1.05 * LAUNCHES[precision], found.most_common()
