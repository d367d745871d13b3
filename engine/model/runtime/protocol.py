"""The interface of a graph that a runtime has loaded."""

from collections.abc import Collection, Mapping
from typing import Any, Protocol

from numpy.typing import NDArray

Shape = tuple[int | None, ...]
"""The shape of an input; None for a dimension that varies."""


class Graph(Protocol):
    """A graph, ready to run. Used by one thread."""

    runtime: str  # for people: runtime, version, device
    inputs: Mapping[str, Shape]
    outputs: Collection[str]

    def run(self, arrays: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Return all outputs by name; the caller may keep the arrays.

        Raises what the runtime raises, for example if memory runs out.
        """
