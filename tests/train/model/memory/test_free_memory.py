"""Free memory goes back to the system during a pass, for a small share of the time."""

import ctypes
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from kwise.train.model.memory.free_memory import FreeMemory, free_memory_between_layers

HAS_TRIM = hasattr(ctypes.CDLL(None), "malloc_trim")


class Clock:
    """A time that the test moves."""

    now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


@given(st.lists(st.floats(0, 3), min_size=1, max_size=200), st.floats(0.001, 0.2))
def test_calls_take_a_twentieth_of_the_time_and_one_call_more(
    layers_s: list[float], call_s: float
) -> None:
    clock, calls = Clock(), []

    def trim() -> None:
        calls.append(clock.now_s)
        clock.now_s += call_s

    free_memory = FreeMemory(trim, clock)
    for layer_s in layers_s:
        clock.now_s += layer_s
        free_memory()
        assert len(calls) * call_s <= 0.05 * clock.now_s + call_s + 1e-9
    assert calls, "the first call is free"


def _resident_bytes() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096


@pytest.mark.skipif(not HAS_TRIM, reason="this C library has no malloc_trim")
def test_holes_in_the_heap_go_back_to_the_system() -> None:
    model = nn.Module()
    model.layers = nn.ModuleList([nn.Linear(4, 4)])
    free_memory_between_layers(model, after_gradients=True)
    # Blocks below the threshold from which glibc takes a block of its own (128 KiB and more).
    blocks = [torch.zeros(16_384) for _ in range(4096)]
    del blocks[::2]  # holes of 64 KiB between what is kept
    before = _resident_bytes()
    model.layers[0].weight.grad = torch.zeros(4, 4)
    model.layers[0](torch.zeros(1, 4))
    assert _resident_bytes() < before - 64e6
    assert all(block[0] == 0 for block in blocks)
    del blocks


@pytest.mark.skipif(not HAS_TRIM, reason="this C library has no malloc_trim")
@pytest.mark.parametrize("after_gradients", [True, False])
@pytest.mark.parametrize(
    ("num_layers", "calls"), [(0, []), (1, [0]), (2, [1]), (3, [1, 2]), (30, [15, 25])]
)
def test_passes_beside_gradients_call_it_twice_and_if_asked_the_pass_after_them_once(
    num_layers: int, calls: list[int], after_gradients: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = nn.Module()
    model.layers = nn.ModuleList([nn.Linear(4, 4) for _ in range(num_layers)])
    index, seen = -1, []
    monkeypatch.setattr(FreeMemory, "__call__", lambda _: seen.append(index))
    free_memory_between_layers(model, after_gradients=after_gradients)
    last_calls = [*calls, 0] if after_gradients and num_layers else calls  # 0: before layer 0

    def forward() -> torch.Tensor:
        nonlocal index
        hidden = torch.ones(1, 4, requires_grad=True)
        for index, layer in enumerate(model.layers):  # noqa: B007 - the hooks read it
            hidden = layer(hidden)
        return hidden

    forward().sum().backward()
    assert seen == []
    forward()
    assert seen == calls
    model.zero_grad()
    model.eval()
    forward()
    assert seen == calls, "an evaluation in between"
    model.train()
    for _ in range(2):
        forward()
        assert seen == last_calls
