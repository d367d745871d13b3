"""The interface of a layout: how a batch of token sequences becomes a pass of the graph."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import numpy as np
from numpy.typing import NDArray

from kwise.engine.artifact.manifest import GraphContract, Manifest
from kwise.engine.model.batch_builder import (
    BatchBuilder,
)
from kwise.engine.model.prefix_cache import PromptCache
from kwise.engine.model.prefix_reuse import Reuse
from kwise.engine.model.runtime.protocol import Graph, Shape
from kwise.engine.sequence import EncodedSequence
from kwise.types import RawReward

Arrays = dict[str, NDArray[Any]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """A batch whose pass can start at once.

    run: runs the graph and caches new prompts. It is called once. It calls its argument when the
        graph is about to run. A batch that is prepared from then on can reuse the prompts that this
        one caches, if they stay on the device.
    reuse: what the batch takes from the prompt cache; None if the layout does not use it.
    """

    run: "Callable[[Callable[[], None]], Pass]"
    reuse: Reuse | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Pass:
    """The result of one batch.

    rewards: raw, float32[B], in the batch's order; float32[B, M] if the model has M members.
    num_rows: token rows that were computed, padding included.
    num_reused: token rows whose keys and values came from the prompt cache.
    """

    rewards: NDArray[np.float32]
    num_rows: int
    num_reused: int = 0


class Layout(Protocol):
    """The layout of one session's batches.

    pads_sequences: a batch has padding up to its longest sequence.
    bucket: on a GPU, wraps the graph so that it sees few input shapes; None if the layout needs no
        wrapper.
    """

    pads_sequences: ClassVar[bool]
    bucket: ClassVar[Callable[[Graph], Graph] | None]

    def __init__(
        self, manifest: Manifest, contract: GraphContract, inputs: Mapping[str, Shape]
    ) -> None: ...

    @staticmethod
    def new_batch(cached: Sequence[bytes]) -> BatchBuilder:
        """Return an empty batch, which knows what sequences cost in this layout.

        cached: sort keys, ascending, of the prefixes that the session has in its prompt cache.
        """

    def inputs(self, batch: Sequence[EncodedSequence]) -> Arrays:
        """Return the graph's inputs for the batch, with nothing reused and nothing to cache."""

    def prepare(
        self, graph: Graph, batch: Sequence[EncodedSequence], cache: PromptCache
    ) -> Prepared:
        """Do all of a pass but the graph's work: plan what is reused, and lay out the inputs."""


def rewards_of(output: NDArray[Any], num_members: int) -> NDArray[np.float32]:
    """Return the rewards in a graph's output.

    [B] or [B, 1] → float32[B]. With M members, [B, M] → float32[B, M].

    Raises:
        ValueError: the graph gives another number of rewards per sequence than it has members.
    """
    rewards = np.asarray(output, np.float32)
    return rewards.reshape(-1) if num_members == 1 else rewards.reshape(len(rewards), num_members)


def raw_rewards_of(result: Pass) -> list[RawReward]:
    """Return the raw reward of each sequence of a pass: a number, or a tuple of one per member."""
    rewards: list[Any] = result.rewards.tolist()
    return rewards if result.rewards.ndim == 1 else [tuple(members) for members in rewards]


def is_finite(raw: RawReward) -> bool:
    """Return whether a raw reward, or that of each member, is a finite number."""
    return all(map(math.isfinite, raw)) if isinstance(raw, tuple) else math.isfinite(raw)
