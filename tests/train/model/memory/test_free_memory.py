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

    hook = FreeMemory(trim, clock)
    for layer_s in layers_s:
        clock.now_s += layer_s
        hook()
        assert len(calls) * call_s <= 0.05 * clock.now_s + call_s + 1e-9
    assert calls, "the first call is free"


def _resident_bytes() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096


@pytest.mark.skipif(not HAS_TRIM, reason="this C library has no malloc_trim")
def test_holes_in_the_heap_go_back_to_the_system() -> None:
    model = nn.Module()
    model.layers = nn.ModuleList([nn.Linear(4, 4)])
    free_memory_between_layers(model)
    # Blocks below the threshold from which glibc takes a block of its own (128 KiB and more).
    blocks = [torch.zeros(16_384) for _ in range(4096)]
    del blocks[::2]  # holes of 64 KiB between what is kept
    before = _resident_bytes()
    model.layers[0](torch.zeros(1, 4))
    assert _resident_bytes() < before - 64e6
    assert all(block[0] == 0 for block in blocks)
    del blocks


@pytest.mark.skipif(not HAS_TRIM, reason="this C library has no malloc_trim")
@pytest.mark.parametrize(
    ("num_layers", "calls"),
    [
        (0, []),
        (1, ["forward 0", "backward 0"]),
        (2, ["forward 1", "backward 1"]),
        (3, ["forward 1", "forward 2", "backward 1"]),
        (30, ["forward 15", "forward 25", "backward 15"]),
    ],
)
def test_three_places_of_a_pass_call_it(
    num_layers: int, calls: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = nn.Module()
    model.layers = nn.ModuleList([nn.Linear(4, 4) for _ in range(num_layers)])
    place, seen = "", []
    monkeypatch.setattr(FreeMemory, "__call__", lambda *_: seen.append(place))
    free_memory_between_layers(model)
    hidden = torch.ones(1, 4, requires_grad=True)
    for index, layer in enumerate(model.layers):
        # The order of backward passes is that of the layers, from the last.
        hidden.register_hook(lambda _, index=index: _set(f"backward {index}"))
        place = f"forward {index}"
        hidden = layer(hidden)

    def _set(value: str) -> None:
        nonlocal place
        place = value

    hidden.sum().backward()
    assert seen == calls
    with torch.no_grad():
        seen.clear()
        for layer in model.layers:
            layer(torch.ones(1, 4))
    assert len(seen) == len([call for call in calls if call.startswith("forward")])
