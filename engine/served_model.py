"""The interface of a model that a server serves by name."""

from contextlib import AbstractContextManager
from typing import Protocol

from kwise.engine.config import EngineConfig
from kwise.engine.statistics.counters import Counters
from kwise.engine.statistics.state import EngineState
from kwise.types import Group, ModelInfo, ScoredGroup


class ServedModel(Protocol):
    """A model that scores groups: one artifact, or an ensemble of several.

    Attributes:
        name: the name by which requests ask for it.
        config: the options of its engine.
        counters: the work that it has done.
        max_tokens: the limit of a conversation, in tokens.
    """

    name: str
    counters: Counters

    @property
    def config(self) -> EngineConfig: ...

    @property
    def max_tokens(self) -> int: ...

    @property
    def description(self) -> str:
        """The name, fingerprint, layout, precision and runtime of the model, for the log."""

    @property
    def has_chat_template(self) -> bool:
        """False if the model reads a prompt and a response as a pair of texts."""

    @property
    def tokenizer_id(self) -> str:
        """Two models with the same one have the same tokenizer."""

    @property
    def template_id(self) -> str:
        """Two models with the same one apply the same chat template."""

    @property
    def state(self) -> EngineState:
        """The queue and the caches at this moment."""

    def info(self, *, max_responses: int, max_pairs: int) -> ModelInfo:
        """Describe the model and the work that it has done; the limits are the server's."""

    async def score(self, group: Group) -> ScoredGroup:
        """Return one reward or error per response, in order. See `Scorer.score`."""

    def start(self) -> None:
        """Begin to serve, in the running event loop."""

    def running(self) -> AbstractContextManager[None]:
        """Count a group as running, for `idle`, before `score` is called."""

    async def idle(self) -> None:
        """Wait until no group is being scored."""

    async def stop(self) -> None:
        """Answer everything that waits or runs, and all later requests, with Unavailable."""
