"""The interface of a graph that a runtime has loaded."""

from collections.abc import Callable, Collection, Mapping
from typing import Any, Protocol

from numpy.typing import NDArray

Shape = tuple[int | None, ...]
"""The shape of an input; None for a dimension that varies."""


Arrays = Mapping[str, NDArray[Any]]
"""A graph's inputs or outputs by name."""


class Graph(Protocol):
    """A graph, ready to run. One thread at a time runs it; several may prepare."""

    runtime: str  # for people: runtime, version, device
    inputs: Mapping[str, Shape]
    outputs: Collection[str]
    num_slots: int  # of its pools of cached keys and values, see pools.py; 0 if it has none
    slot_bytes: int  # that a slot takes in all pools together

    def run(self, arrays: Arrays) -> dict[str, NDArray[Any]]:
        """Return all outputs by name; the caller may keep the arrays.

        Raises what the runtime raises, for example if memory runs out.
        """

    def prepare(self, arrays: Arrays) -> Callable[[], dict[str, NDArray[Any]]]:
        """Do the host's part of `run`, and return a function that does the rest."""
