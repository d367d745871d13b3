"""The interface of a scorer: a window of groups in, their results out.

A window is scored as a whole, so that a scorer may sort its groups and batch them as it likes, on
one machine or on many. Windows are cut at fixed rows of the input. A scorer whose batches depend on
the window alone therefore gives the same rewards, bit for bit, whenever it scores the window again.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from kwise.errors import KwiseError
from kwise.types import Group, ScoredGroup

GroupResult = ScoredGroup | KwiseError


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelIdentity:
    """The model that computes the rewards of a run, which must not change within the run.

    Attributes:
        model: the name of the model.
        fingerprint: the identity of the model, a SHA-256 in hex.
        precision: the precision of the matrix products.
        runtime: the library and the device.
        server_options: the options of the server that decide what it answers; empty if the model
            runs in this process, which has them from the options of the run.
    """

    model: str
    fingerprint: str
    precision: str
    runtime: str
    server_options: dict[str, Any] = field(default_factory=dict)


class BulkScorer(Protocol):
    """Scores windows of groups. All methods are called in one event loop.

    Attributes:
        identity: the model that answers.
        max_windows: the number of windows that should be in flight. While one is computed the next
            one is prepared, so it is at least 2.
    """

    identity: ModelIdentity
    max_windows: int

    async def score(self, groups: Sequence[Group]) -> Sequence[GroupResult]:
        """Return one result per group, in order.

        A group that cannot be scored has its error in its place. An exception ends the run, and
        the window is scored again when the run is resumed.
        """

    async def close(self) -> None:
        """Release what the scorer holds. Windows in flight may be left unanswered."""
