"""Keep captures of CUDA graphs apart from all other calls of CUDA in the process.

ONNX Runtime captures in CUDA's mode Global. Until the capture ends, CUDA refuses calls such as
cudaMalloc, cudaFree and cudaMemcpy in every thread and for every device, and a refused call spoils
the capture. So a capture runs alone. It takes as long as a few passes, once per shape.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager


class CaptureGate:
    """Lets passes and loads run side by side, and a capture alone. Used by all threads."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._num_passes = 0
        self._num_loads = 0
        self._capturing_thread: int | None = None

    @contextmanager
    def running(self) -> Iterator[None]:
        """Hold off captures while the block runs a pass."""
        with self._changed:
            self._wait_for_capture()
            self._num_passes += 1
        try:
            yield
        finally:
            with self._changed:
                self._num_passes -= 1
                self._changed.notify_all()

    @contextmanager
    def loading(self) -> Iterator[None]:
        """Hold off captures while the block loads a model or frees its memory.

        The thread that captures may enter too: the garbage collector may free a model there, before
        or after the capture itself.
        """
        with self._changed:
            if self._capturing_thread != threading.get_ident():
                self._wait_for_capture()
            self._num_loads += 1
        try:
            yield
        finally:
            with self._changed:
                self._num_loads -= 1

    @contextmanager
    def capturing(self) -> Iterator[bool]:
        """Wait until the passes of other threads have ended, and hold off new ones and loads.

        Yields False, and holds nothing off, while a model is being loaded: passes would wait for
        seconds.
        """
        with self._changed:
            self._wait_for_capture()
            alone = not self._num_loads
            if alone:
                self._capturing_thread = threading.get_ident()
                self._changed.wait_for(lambda: not self._num_passes)
        try:
            yield alone
        finally:
            if alone:
                with self._changed:
                    self._capturing_thread = None
                    self._changed.notify_all()

    def _wait_for_capture(self) -> None:
        self._changed.wait_for(lambda: self._capturing_thread is None)


CAPTURE_GATE = CaptureGate()
"""The gate of this process."""
