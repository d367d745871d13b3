"""A scorer that runs the model in this process, without queue, priorities and caches.

The stages of a window overlap with those of its neighbours: tokenizer threads encode the next
window while the sessions run this one. Each session has one thread and takes the next batch when it
is free. Nothing is reused from earlier batches, neither keys and values of prompts nor rewards, so
that the rewards of a window do not depend on what ran before. Little is lost by that, because the
plan of a window keeps each group that fits into a batch together.
"""

import asyncio
import logging
import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from queue import SimpleQueue

from kwise.bulk.scorers.plan import plan_of
from kwise.bulk.scorers.protocol import GroupResult, ModelIdentity
from kwise.engine.config import EngineConfig
from kwise.engine.load import OpenModel, open_model
from kwise.engine.model.layouts.protocol import is_finite, raw_rewards_of
from kwise.engine.model.layouts.table import LAYOUTS
from kwise.engine.model.session import Session
from kwise.engine.sequence import EncodedSequence
from kwise.engine.trie import sort_key
from kwise.errors import InvalidRequest, KwiseError, ModelFailed
from kwise.types import Group, RawReward, Reward, ScoredGroup

_LOG = logging.getLogger(__name__)
# Groups that one call of a tokenizer thread encodes.
_SLICE_GROUPS = 16

Outcome = EncodedSequence | InvalidRequest


class EngineScorer:
    """Scores windows with the sessions of one artifact.

    Attributes:
        num_members: the members of the model; 1 if it has none.
    """

    max_windows = 2

    def __init__(self, model: OpenModel, config: EngineConfig) -> None:
        manifest = model.artifact.manifest
        self.identity = ModelIdentity(
            model=manifest.name,
            fingerprint=manifest.fingerprint,
            precision=model.sessions[0].precision.value,
            runtime=model.sessions[0].runtime,
        )
        self.num_members = manifest.num_members
        self._new_reward = manifest.reward
        self._encode = model.encoder.encode
        new_batch = LAYOUTS[manifest.layout].new_batch
        self._plan = plan_of(manifest.layout, new_batch, config.effective_max_batch_tokens)
        self._free_sessions: SimpleQueue[Session] = SimpleQueue()
        for session in model.sessions:
            self._free_sessions.put(session)
        self._tokenizers = ThreadPoolExecutor(config.tokenizer_threads, "kwise-tokenizer")
        self._runners = ThreadPoolExecutor(len(model.sessions), "kwise-session")

    @classmethod
    def load(cls, path: Path, config: EngineConfig) -> "EngineScorer":
        """Load an artifact on each device and check its golden rewards there.

        Raises:
            ArtifactError: the artifact is damaged, or a golden reward comes out wrong.
            ConfigError: a device is not available, or a limit does not suit the artifact.
        """
        config = replace(config, prompt_cache_bytes=0, cache_bytes=0)
        return cls(open_model(path, config), config)

    async def score(self, groups: Sequence[Group]) -> Sequence[GroupResult]:
        """Return one result per group, in order."""
        loop = asyncio.get_running_loop()
        slices = [
            loop.run_in_executor(
                self._tokenizers, self._encode_groups, groups[start : start + _SLICE_GROUPS]
            )
            for start in range(0, len(groups), _SLICE_GROUPS)
        ]
        encoded = [outcome for slice_ in await asyncio.gather(*slices) for outcome in slice_]
        sequences: list[EncodedSequence] = []
        indices_of_groups: list[list[int]] = []
        for outcomes in encoded:
            scorable = [o for o in _responses(outcomes) if isinstance(o, EncodedSequence)]
            first = len(sequences)
            sequences += scorable
            indices_of_groups.append(list(range(first, len(sequences))))
        batches = await loop.run_in_executor(
            self._tokenizers, self._batches, indices_of_groups, sequences
        )
        # The session threads take batches in the order of their submission.
        runs = [
            loop.run_in_executor(self._runners, self._run, [sequences[index] for index in batch])
            for batch in batches
        ]
        raw: list[RawReward] = [math.nan] * len(sequences)
        for batch, rewards in zip(batches, await asyncio.gather(*runs), strict=True):
            for index, reward in zip(batch, rewards, strict=True):
                raw[index] = reward
        computed = zip(sequences, raw, strict=True)
        return [
            outcomes
            if isinstance(outcomes, KwiseError)
            else self._scored(
                tuple(
                    outcome
                    if isinstance(outcome, KwiseError)
                    else self._reward(number, *next(computed))
                    for number, outcome in enumerate(outcomes)
                )
            )
            for outcomes in encoded
        ]

    async def close(self) -> None:
        """Release the threads. A pass of the model that runs cannot be interrupted."""
        self._tokenizers.shutdown(wait=False, cancel_futures=True)
        self._runners.shutdown(wait=False, cancel_futures=True)

    def _encode_groups(self, groups: Sequence[Group]) -> list[Sequence[Outcome] | InvalidRequest]:
        outcomes: list[Sequence[Outcome] | InvalidRequest] = []
        for group in groups:
            try:
                outcomes.append(self._encode(group))
            except InvalidRequest as error:
                outcomes.append(error)
        return outcomes

    def _batches(
        self, groups: Sequence[Sequence[int]], sequences: Sequence[EncodedSequence]
    ) -> list[list[int]]:
        return self._plan(groups, [sort_key(sequence.token_ids) for sequence in sequences])

    def _run(self, batch: Sequence[EncodedSequence]) -> list[RawReward]:
        session = self._free_sessions.get()
        try:
            return _run(session, batch)
        finally:
            self._free_sessions.put(session)

    def _reward(
        self, number: int, sequence: EncodedSequence, raw: RawReward
    ) -> Reward | KwiseError:
        if not is_finite(raw):
            return ModelFailed(number)
        return self._new_reward(
            raw,
            tokens=sequence.num_tokens,
            dropped_tokens=sequence.dropped_tokens,
            control_tokens=sequence.control_tokens,
        )

    def _scored(self, rewards: tuple[Reward | KwiseError, ...]) -> ScoredGroup:
        identity = self.identity
        return ScoredGroup(
            rewards=rewards,
            model=identity.model,
            fingerprint=identity.fingerprint,
            precision=identity.precision,
            runtime=identity.runtime,
        )


def _responses(outcomes: Sequence[Outcome] | InvalidRequest) -> Sequence[Outcome]:
    return () if isinstance(outcomes, InvalidRequest) else outcomes


def _run(session: Session, batch: Sequence[EncodedSequence]) -> list[RawReward]:
    """Return the raw rewards of a batch; NaN for a sequence on which the model fails by itself.

    A batch that fails, because memory ran out or because of one sequence, runs again in halves.
    """
    try:
        rewards = raw_rewards_of(session.run(batch))
        if len(rewards) != len(batch):
            raise RuntimeError(f"{len(rewards)} rewards for {len(batch)} sequences")
        # One sequence may have spoiled the others: halves tell.
        if len(batch) == 1 or all(map(is_finite, rewards)):
            return rewards
        problem: object = "a reward is not finite"
    except Exception as error:  # noqa: BLE001 - a runtime may raise anything for a bad sequence
        problem = error
    if len(batch) == 1:
        _LOG.error("the model failed on a sequence of %d tokens: %s", batch[0].num_tokens, problem)
        return [math.nan]
    _LOG.warning("a batch of %d sequences failed; running it in halves: %s", len(batch), problem)
    half = len(batch) // 2
    return _run(session, batch[:half]) + _run(session, batch[half:])
