"""The interface of a graph that a runtime has loaded."""

from collections.abc import Mapping
from typing import Any, Protocol

from numpy.typing import NDArray

Shape = tuple[int | None, ...]
"""Of an input; None where it varies."""


class Graph(Protocol):
    """What a session needs of a runtime. Used by one thread."""

    runtime: str  # for people: runtime, version, device
    inputs: Mapping[str, Shape]

    def run(self, arrays: Mapping[str, NDArray[Any]]) -> list[NDArray[Any]]:
        """The outputs, in the graph's order; theirs to keep. Raises what the runtime raises, for want of memory for instance."""
