"""The groups that benchmarks score, and the engine's batching without a server.

Groups of random token ids have exact sizes, and time does not depend on the ids. Real groups come
from a file of rankings.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from kwise.engine.artifact.read import Artifact, read_artifact
from kwise.engine.config import EngineConfig
from kwise.engine.load import new_encoder
from kwise.engine.model.batch_builder import NewBatchBuilder
from kwise.engine.model.layouts.trie import TrieLayout
from kwise.engine.model.session import Session
from kwise.engine.schedule.fair_queue import Flow
from kwise.engine.schedule.policy import FairBatching, Policy
from kwise.engine.sequence import EncodedSequence
from kwise.engine.trie import KEY_BYTES, sort_key
from kwise.errors import ConfigError
from kwise.train.data.read import read_rankings
from kwise.types import Group, Priority

# In most vocabularies the special tokens are among the first hundred ids.
_FIRST_ID = 100


def random_group(P: int, R: int, K: int, *, vocab_size: int, seed: int) -> list[EncodedSequence]:
    """Return K responses of R random token ids each to a prompt of P; the seed sets the prompt."""
    rng = np.random.default_rng((seed, P, R, K))
    prompt = rng.integers(_FIRST_ID, vocab_size, P)
    return [_sequence(prompt, rng.integers(_FIRST_ID, vocab_size, R)) for _ in range(K)]


def random_sequence(length: int, vocab_size: int, rng: np.random.Generator) -> EncodedSequence:
    """Return a sequence of random token ids."""
    return _sequence(rng.integers(_FIRST_ID, vocab_size, length), np.empty(0, np.int64))


def _sequence(prompt: NDArray[np.int64], response: NDArray[np.int64]) -> EncodedSequence:
    ids = np.concatenate([prompt, response])
    return EncodedSequence(
        token_ids=ids, type_ids=None, num_tokens=len(ids), prompt_tokens=len(prompt)
    )


def read_trie_artifact(path: str) -> Artifact:
    """Read the artifact of a benchmark that measures the trie layout.

    Raises:
        ArtifactError: the artifact is damaged.
        ConfigError: it has another layout.
    """
    artifact = read_artifact(Path(path))
    if artifact.manifest.layout != "trie":
        raise ConfigError(
            f"{path}: the layout is {artifact.manifest.layout}; this benchmark needs trie"
        )
    return artifact


def real_groups(artifact: Artifact, path: Path, count: int) -> list[list[EncodedSequence]]:
    """Return the first `count` rankings of a file as the engine encodes them.

    Responses over the artifact's limit of tokens are skipped.

    Raises:
        RankingsError: the file has bad lines.
    """
    encoder = new_encoder(artifact, EngineConfig())
    groups = []
    for ranking in read_rankings(path, allow_tied=True)[:count]:
        outcomes = encoder.encode(Group(prompt=ranking.prompt, responses=ranking.responses))
        groups.append([outcome for outcome in outcomes if isinstance(outcome, EncodedSequence)])
    return groups


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Waiting:
    """A sequence that waits for the model, and its place among the rewards."""

    index: int
    sequence: EncodedSequence
    sort_key: bytes

    @property
    def prompt_key(self) -> bytes:
        return self.sort_key[: KEY_BYTES * self.sequence.prompt_tokens]

    @property
    def cost(self) -> int:
        return len(self.sequence.token_ids)


def run_queued(
    session: Session,
    groups: Sequence[Sequence[EncodedSequence]],
    max_batch_tokens: int,
    new_batch: NewBatchBuilder = TrieLayout.new_batch,
) -> tuple[float, NDArray[np.float32]]:
    """Run groups that wait together through the engine's batching policy, in this thread.

    Returns:
        (seconds, rewards float32[sequences of all groups, in order])
    """
    policy: Policy[_Waiting] = FairBatching(new_batch, max_batch_tokens=max_batch_tokens)
    sequences = [sequence for group in groups for sequence in group]
    started = time.perf_counter()
    for index, sequence in enumerate(sequences):
        waiting = _Waiting(index=index, sequence=sequence, sort_key=sort_key(sequence.token_ids))
        policy.add(waiting, Flow(Priority.BULK, ""))
    rewards = np.empty(len(sequences), np.float32)
    while batch := policy.take(session.prompt_cache.prefixes):
        result = session.run([waiting.sequence for waiting in batch])
        rewards[[waiting.index for waiting in batch]] = result.rewards
    return time.perf_counter() - started, rewards
