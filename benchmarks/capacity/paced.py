"""Measures the engine with passes of known duration, so that only the queue is compared.

Everything but the model is real: admission, tokenizer, policy, batcher, threads and event loop. A
pass sleeps for its modelled seconds, so other work on the machine hardly changes the figures.
"""

import asyncio
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np

from kwise.benchmarks.capacity.load import arrival_times
from kwise.benchmarks.capacity.measuring import Round, Run, at_times, state_bytes, timed_sizes
from kwise.benchmarks.capacity.one_replica import capacity_per_s, text_seed
from kwise.benchmarks.capacity.options import QueueBenchConfig
from kwise.benchmarks.capacity.pass_time import (
    MeasuredPass,
    PassSize,
    PassTime,
    default_pass_time,
)
from kwise.benchmarks.capacity.replica import NO_STATES, ReplicaConfig
from kwise.benchmarks.options import Cell
from kwise.engine.artifact.read import Artifact
from kwise.engine.config import CPU_PROMPT_CACHE_BYTES, EngineConfig
from kwise.engine.load import new_encoder
from kwise.engine.model.prefix_cache import PromptCache
from kwise.engine.model.prefix_reuse import cache_prompts, plan_reuse
from kwise.engine.model.session import Pass, Session
from kwise.engine.precision import Precision
from kwise.engine.scorer import Scorer
from kwise.engine.sequence import EncodedSequence
from kwise.engine.trie import KEY_BYTES
from kwise.types import Group


class PacedSession:
    """A session whose passes take the modelled seconds, whatever else the machine does."""

    runtime = "paced"
    precision = Precision.FP32

    def __init__(self, pass_time: PassTime, prompt_cache_tokens: int) -> None:
        self.prompt_cache = PromptCache(KEY_BYTES * prompt_cache_tokens)
        self._pass_time = pass_time

    def prepare(
        self, batch: Sequence[EncodedSequence], started: Callable[[], None] = lambda: None
    ) -> Callable[[], Pass]:
        """Do nothing in advance: the modelled seconds include the preparation."""
        return partial(self.run, batch)

    def run(self, batch: Sequence[EncodedSequence]) -> Pass:
        """Wait as long as the pass takes, and return zeros."""
        started_s = time.perf_counter()
        reuse = plan_reuse(batch, self.prompt_cache, NO_STATES)
        size = PassSize.of(reuse)
        states = np.empty((len(reuse.nodes_to_cache), 0), np.float32)
        cache_prompts(reuse, [states], self.prompt_cache)
        ends_s = started_s + self._pass_time.seconds(size)
        time.sleep(max(ends_s - time.perf_counter(), 0.0))
        num_reused = reuse.trie.num_nodes - size.rows
        rewards = np.zeros(len(batch), np.float32)
        return Pass(rewards=rewards, num_rows=size.rows, num_reused=num_reused)


def measure_paced(
    artifact: Artifact,
    config: QueueBenchConfig,
    cell: Cell,
    on_run: Callable[[list[Round]], None],
) -> list[Round]:
    """Run the engine in this process; otherwise as `measure`."""
    vocab_size = artifact.manifest.vocab_size
    pass_time = default_pass_time().scaled(config.pace)
    cache_tokens = CPU_PROMPT_CACHE_BYTES // state_bytes(artifact)
    sizes = [PassSize.of_group(size) for size in timed_sizes(cell)]
    timed = [MeasuredPass(size=size, seconds=pass_time.seconds(size)) for size in sizes]
    replica = ReplicaConfig(pass_time=pass_time, prompt_cache_tokens=cache_tokens)
    capacity = capacity_per_s(cell, vocab_size, replica)
    rounds: list[Round] = []
    for seed in config.seeds:
        runs: list[Run] = []
        rounds.append(
            Round(seed=seed, prompt_cache_tokens=cache_tokens, capacity_per_s=capacity, runs=runs)
        )
        for load in config.loads:
            session = PacedSession(pass_time, cache_tokens)
            sent = _send_paced(artifact, session, cell, config.groups, seed, load * capacity)
            runs.append(
                Run(
                    load=load,
                    rate_per_s=load * capacity,
                    timed=timed,
                    overhead_s=0.0,
                    **asyncio.run(sent),
                )
            )
            on_run(rounds)
    return rounds


async def _send_paced(
    artifact: Artifact,
    session: Session,
    cell: Cell,
    groups: int,
    seed: int,
    rate_per_s: float,
) -> dict[str, Any]:
    """Send the seed's groups to an engine in this process; return measured fields of `Run`."""
    engine, vocab_size = EngineConfig(cache_bytes=0), artifact.manifest.vocab_size
    requests = [cell.request(vocab_size, text_seed(seed, number)) for number in range(groups)]
    async with Scorer(artifact, engine, new_encoder(artifact, engine), [session]) as scorer:

        async def call(number: int) -> None:
            prompt, responses = requests[number]
            await scorer.score(Group(prompt=tuple(prompt), responses=tuple(map(tuple, responses))))

        figures = await at_times(arrival_times(rate_per_s, groups, seed), call)
    counters = scorer.counters
    return {
        **figures,
        "busy_s": counters.busy_s,
        "passes": counters.model_passes,
        "rows": counters.rows,
    }
