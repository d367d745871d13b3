"""Read what the stand-in for CUDA has logged."""

import ctypes
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, lru_cache

_LIBRARY = "libcudart.so.13"
_Callback = ctypes.CFUNCTYPE(None)


class _Event(ctypes.Structure):
    """`StandInEvent` of record.h."""

    _fields_ = (
        ("kind", ctypes.c_char_p),
        ("name", ctypes.c_char_p),
        ("size", ctypes.c_int64),
        ("device", ctypes.c_int32),
        ("captured", ctypes.c_int32),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """A call of CUDA.

    kind: "kernel", "gemm", "memset", "h2d", "d2h", "d2d", "h2h", "sync", "alloc", "capture",
        "replay", "illegal" (while a graph is captured) or "unexpected" (the stand-in has no code
        for this function).
    name: the kernel's C++ name, or the function that was called.
    size: bytes of a copy or an allocation; nodes of a graph.
    device: the number of the calling thread's device.
    captured: the work went into a graph instead of being done.
    """

    kind: str
    name: str
    size: int
    device: int
    captured: bool

    @property
    def is_launch(self) -> bool:
        return self.kind in ("kernel", "gemm", "memset")


class StandIn:
    """The stand-in that is loaded in this process.

    Raises:
        OSError: no libcudart is found.
        AttributeError: the one that is found is not the stand-in.
    """

    def __init__(self) -> None:
        self._library = ctypes.CDLL(_LIBRARY)
        self._library.stand_in_events.restype = ctypes.POINTER(_Event)

    def clear(self) -> None:
        self._library.stand_in_clear()

    def events(self) -> list[Event]:
        """Return the calls since the last `clear`, in order."""
        count = ctypes.c_size_t()
        events = self._library.stand_in_events(ctypes.byref(count))
        return [
            Event(
                kind=event.kind.decode(),
                name=_demangled(event.name),
                size=event.size,
                device=event.device,
                captured=bool(event.captured),
            )
            for event in events[: count.value]
        ]

    def fail_captures(self, fail: bool) -> None:
        """Let captures of graphs fail from now on, or succeed."""
        self._library.stand_in_fail_captures(fail)

    @contextmanager
    def during_captures(self, function: Callable[[], None]) -> Iterator[None]:
        """Call `function` in each capture of a graph, before it ends."""
        pointer = _Callback(function)
        self._library.stand_in_during_captures(pointer)
        try:
            yield
        finally:
            self._library.stand_in_during_captures(None)


def launches(events: Sequence[Event]) -> Counter[str]:
    """Count the kernels, matmuls and fills by name."""
    return Counter(event.name for event in events if event.is_launch)


@cache
def _demangled(name: bytes) -> str:
    """Return a C++ function's name as in its source."""
    status = ctypes.c_int()
    demangle = _cxx().__cxa_demangle
    demangle.restype = ctypes.c_void_p
    address = demangle(name, None, None, ctypes.byref(status))
    return ctypes.string_at(address).decode() if address else name.decode()


@lru_cache(maxsize=1)
def _cxx() -> ctypes.CDLL:
    return ctypes.CDLL("libstdc++.so.6")
