"""A capture runs alone: passes and loads of other threads wait, and it waits for passes."""

import threading
from collections.abc import Callable

import pytest

from kwise.engine.model.runtime.capture_gate import CaptureGate


class _Thread:
    """A thread that enters a block of the gate, and leaves it when told to."""

    def __init__(self, enter: Callable[[], object], order: list[str], name: str) -> None:
        self._leave = threading.Event()
        self.entered = threading.Event()

        def run() -> None:
            with enter():  # type: ignore[attr-defined]
                order.append(f"{name} entered")
                self.entered.set()
                assert self._leave.wait(60)
                order.append(f"{name} left")

        self._thread = threading.Thread(target=run)
        self._thread.start()

    def leave(self) -> None:
        self._leave.set()
        self._thread.join(60)


@pytest.mark.parametrize("other", ["running", "loading"])
def test_what_uses_cuda_waits_for_a_capture(other: str) -> None:
    gate, order = CaptureGate(), list[str]()
    capture = _Thread(gate.capturing, order, "capture")
    assert capture.entered.wait(60)
    waiting = _Thread(getattr(gate, other), order, other)
    capture.leave()
    assert waiting.entered.wait(60)
    waiting.leave()
    assert order == ["capture entered", "capture left", f"{other} entered", f"{other} left"]


def test_a_capture_waits_for_the_passes_of_all_threads() -> None:
    gate, order = CaptureGate(), list[str]()
    passes = [_Thread(gate.running, order, "pass") for _ in range(2)]
    assert all(each.entered.wait(60) for each in passes)
    capture = _Thread(gate.capturing, order, "capture")
    for each in passes:
        each.leave()
    assert capture.entered.wait(60)
    capture.leave()
    assert order[2:] == ["pass left", "pass left", "capture entered", "capture left"]


def test_nothing_is_captured_while_a_model_is_loaded() -> None:
    gate = CaptureGate()
    with gate.loading(), gate.capturing() as alone:
        assert not alone
        with gate.running():
            pass
    with gate.capturing() as alone:
        assert alone


def test_the_thread_that_captures_may_free_a_model() -> None:
    gate = CaptureGate()
    with gate.capturing(), gate.loading():
        pass
    with gate.capturing() as alone:
        assert alone
