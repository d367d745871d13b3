"""Prepare the next batch while the model runs the one before it.

The next batch is decided when the session is free, not earlier. Until then an interactive request
may arrive and go first, a client may leave, or one more response may share a prompt. So the batch
that is prepared during a pass is a prediction: the batch that the policy would take now. If the
policy then takes the same rewards in the same order, the pass starts at once. Otherwise the
preparation is dropped, and the batch is prepared as if there had been none. A decision during the
pass would use every preparation, but it would make batches smaller, and an interactive request
would wait for one more pass.

While nothing arrives, the prediction is right. Once more waits than one batch holds, it is mostly
right too, because new work queues behind. So one prediction a pass is enough, and another one
whenever twice as much waits or the prompt cache has changed: with a queue that fills, predictions
stay few, and the last one is made of a full queue. On a CPU, where the model uses all cores, that
bounds the time that wrong predictions take from it.
"""

import asyncio
import logging
from collections.abc import Callable, Sequence
from collections.abc import Set as AbstractSet
from concurrent.futures import ThreadPoolExecutor

from kwise.engine.model.layouts.protocol import Pass
from kwise.engine.model.session import Session
from kwise.engine.schedule.in_flight import RewardInFlight
from kwise.engine.schedule.policy import Policy

_LOG = logging.getLogger(__name__)


class NextBatch:
    """The prediction of one session's next batch. Used from one event loop.

    Args:
        started: see `Session.prepare`.

    rewards: the rewards of the predicted batch; empty without a prediction.
    """

    def __init__(
        self,
        session: Session,
        policy: Policy[RewardInFlight],
        thread: ThreadPoolExecutor,
        started: Callable[[], None],
    ) -> None:
        self.rewards: list[RewardInFlight] = []
        self._session = session
        self._policy = policy
        self._thread = thread
        self._started = started
        self._prepared: asyncio.Future[Callable[[], Pass]] | None = None
        # What the last prediction was made from.
        self._num_waiting = 0
        self._cached: Sequence[bytes] = ()

    def predict(self, excluded: AbstractSet[RewardInFlight] = frozenset()) -> None:
        """Predict the batch from what waits now, unless the prediction that exists is good enough.

        excluded: the rewards that are predicted for other sessions.
        """
        num_waiting, cached = len(self._policy), self._session.prompt_cache.prefixes
        is_preparing = self._prepared is not None and not self._prepared.done()
        if is_preparing or not num_waiting or self._is_good(num_waiting, cached):
            return
        self._num_waiting, self._cached = num_waiting, cached
        try:
            rewards = self._policy.peek(cached, excluded)
        except Exception:  # noqa: BLE001 - `take` meets the same bug, and answers the requests
            _LOG.exception("the policy failed to predict a batch; none is prepared")
            rewards = []
        if rewards == self.rewards:
            return
        self.rewards = rewards
        self._prepared = None
        if sequences := [reward.sequence for reward in rewards if reward.sequence is not None]:
            loop = asyncio.get_running_loop()
            self._prepared = loop.run_in_executor(
                self._thread, self._session.prepare, sequences, self._started
            )
            # asyncio logs exceptions that are never retrieved. Here they do no harm: `run` prepares
            # the batch again, and its error counts.
            self._prepared.add_done_callback(lambda done: done.cancelled() or done.exception())

    def _is_good(self, num_waiting: int, cached: Sequence[bytes]) -> bool:
        return (
            len(self.rewards) > 0
            and num_waiting < 2 * self._num_waiting
            and cached is self._cached
            and all(reward in self._policy for reward in self.rewards)
        )

    async def take(self, batch: list[RewardInFlight]) -> Callable[[], Pass] | None:
        """Return the prepared pass of `batch`, or None if another batch or none was predicted."""
        rewards, prepared = self.rewards, self._prepared
        self.rewards, self._prepared = [], None
        if prepared is None:
            return None
        if rewards != batch:
            prepared.cancel()  # without effect if it has begun
            return None
        try:
            return await prepared
        except Exception:  # noqa: BLE001 - `run` prepares it again, and its error counts
            return None
