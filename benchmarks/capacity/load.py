"""The calls that a simulation or a measurement sends: when, for which prompt, which responses.

Calls arrive at exponential intervals and do not wait for replies (an open loop). Everything follows
from the seed.
"""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from kwise.benchmarks.options import Cell
from kwise.engine.sequence import EncodedSequence
from kwise.engine.trie import KEY_BYTES, sort_key


@dataclass(frozen=True, slots=True, eq=False)
class Response:
    """A response to a prompt, as the policy and the caches see it."""

    sequence: EncodedSequence
    sort_key: bytes = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "sort_key", sort_key(self.sequence.token_ids))

    @property
    def prompt_key(self) -> bytes:
        """The beginning of `sort_key` that all responses to the prompt share."""
        return self.sort_key[: KEY_BYTES * self.sequence.prompt_tokens]

    @property
    def cost(self) -> int:
        return len(self.sequence.token_ids)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Call:
    """One request: some or all responses to a prompt.

    prompt: a number that stands for the prompt. Routers hash it.
    """

    arrives_s: float
    prompt: int
    responses: Sequence[Response]


def arrival_times(rate_per_s: float, count: int, seed: int) -> list[float]:
    """Return the times of `count` arrivals at random (Poisson), ascending, from the seed."""
    rng = random.Random(seed)
    now_s, times = 0.0, []
    for _ in range(count):
        now_s += rng.expovariate(rate_per_s)
        times.append(now_s)
    return times


def distinct_group(cell: Cell, prompt: int) -> list[Response]:
    """Return K responses to the prompt with this number.

    As with random texts, two prompts share no tokens, and two responses share their prompt only.
    The first token says which it is and the others are 0, because only equality matters and random
    numbers take longer to make.
    """
    tokens = np.zeros((cell.K, cell.P + cell.R), np.int64)
    tokens[:, 0] = prompt + 1
    tokens[:, cell.P] = np.arange(1, cell.K + 1)
    return [
        Response(
            EncodedSequence(token_ids=row, type_ids=None, num_tokens=len(row), prompt_tokens=cell.P)
        )
        for row in tokens
    ]


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """A load on a cluster.

    Attributes:
        cell: the size of a group. P and R are at least 1.
        groups: how many groups arrive.
        rate_per_s: groups per second.
        is_single: each response is a call of its own, as many RL libraries send them.
        spread_s: the calls of a group come at random within this time, as rollouts end.
        repeated: the share of groups that have been asked for before, drawn from all earlier ones.
        step_at_s, step_factor: from this time on, groups arrive `step_factor` times as often.
        seed: everything random follows from it.
    """

    cell: Cell
    groups: int
    rate_per_s: float
    is_single: bool = False
    spread_s: float = 0.0
    repeated: float = 0.0
    step_at_s: float | None = None
    step_factor: float = 1.0
    seed: int = 0

    def calls(self) -> Iterator[Call]:
        """Yield the calls group by group; within a group, in order of time."""
        rng = random.Random(self.seed)
        now_s, num_prompts = 0.0, 0
        for _ in range(self.groups):
            is_after = self.step_at_s is not None and now_s >= self.step_at_s
            rate_per_s = self.rate_per_s * (self.step_factor if is_after else 1.0)
            now_s += rng.expovariate(rate_per_s)
            if num_prompts and rng.random() < self.repeated:
                prompt = rng.randrange(num_prompts)
            else:
                prompt = num_prompts
                num_prompts += 1
            responses = distinct_group(self.cell, prompt)
            if not self.is_single:
                yield Call(arrives_s=now_s, prompt=prompt, responses=responses)
                continue
            times = sorted(now_s + rng.uniform(0.0, self.spread_s) for _ in responses)
            for time_s, response in zip(times, responses, strict=True):
                yield Call(arrives_s=time_s, prompt=prompt, responses=[response])
