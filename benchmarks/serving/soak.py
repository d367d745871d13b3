"""The growth of a server's memory under all kinds of load for several minutes.

Does the memory grow? Physics: both caches are small and full before the measurement begins, so the
memory should stay level. The load is streams, single calls, cancelled calls, malformed calls and
dropped connections, all with new prompts, so that the caches replace their entries. The slope is
that of a least-squares line through the resident memory, sampled every second, after the first
third of the time. Every group must be answered exactly once, with as many rewards as responses.
"""

import asyncio
import random
import time
from pathlib import Path
from typing import Any

import numpy as np

from kwise.benchmarks.options import SoakConfig
from kwise.benchmarks.result_file import write_results
from kwise.benchmarks.serving.server_process import memory_bytes, running_server
from kwise.client import AsyncRewardClient, RewardServiceError
from kwise.engine.artifact.read import read_artifact
from kwise.types import Reward, ScoredGroup

_SMALL_CACHES = ("--cache-bytes", str(1 << 20), "--prompt-cache-bytes", str(8 << 20))
_WORDS = [
    "why",
    "how",
    "river",
    "stone",
    "number",
    "green",
    "answer",
    "quickly",
    "seven",
    "the",
    "a",
    "of",
    "and",
    "loud",
    "paper",
]


def run(config: SoakConfig) -> None:
    """Print the slope and write the figures to `config.json`.

    Raises:
        RuntimeError: the server ended, or groups were lost or wrong.
    """
    artifact = read_artifact(Path(config.artifact))
    with running_server(artifact, *_SMALL_CACHES) as server:
        soak = _Soak(server.address, server.process.pid, 60 * config.minutes)
        asyncio.run(soak.run())
        if server.process.poll() is not None:
            raise RuntimeError("the server ended under load")
    results = soak.results()
    print(
        "{minutes:.1f} minutes: {scored} groups scored, {refused} malformed calls refused, "
        "{cancelled} calls cancelled, {wrong} lost or wrong".format(
            minutes=config.minutes, **results
        )
    )
    print(
        "resident memory {first_mb:.1f} MB after a third, {last_mb:.1f} MB at the end: "
        "{slope_kb_per_min:+.1f} KB per minute".format(**results)
    )
    if results["wrong"]:
        raise RuntimeError(f"{results['wrong']} groups were lost or wrong")
    if config.json:
        write_results(config.json, "soak", config, {"artifact": artifact.manifest.name} | results)


class _Soak:
    """Load on a server for `seconds`, and counts of the outcomes."""

    def __init__(self, address: str, pid: int, seconds: float) -> None:
        self._address = address
        self._pid = pid
        self._ends_at = time.monotonic() + seconds
        self._rng = random.Random(0)
        self._samples: list[tuple[float, float]] = []
        self._counts = {"scored": 0, "refused": 0, "cancelled": 0, "wrong": 0}

    async def run(self) -> None:
        """Run all kinds of load at once."""
        workers = (
            [self._stream() for _ in range(2)]
            + [self._single_calls() for _ in range(4)]
            + [self._cancelled_calls()]
        )
        await asyncio.gather(self._sample(), self._malformed_calls(), *workers)

    def results(self) -> dict[str, Any]:
        """Return the counts, and the memory in MB with its slope in KB per minute."""
        times, sizes = np.array(self._samples[len(self._samples) // 3 :]).T
        slope = np.polyfit(times, sizes, 1)[0] if len(times) > 1 else 0.0
        return self._counts | {
            "first_mb": sizes[0] / 1e6,
            "last_mb": sizes[-1] / 1e6,
            "slope_kb_per_min": float(slope) * 60 / 1e3,
            "samples": [size for _, size in self._samples],
        }

    async def _sample(self) -> None:
        while time.monotonic() < self._ends_at:
            self._samples.append((time.monotonic(), memory_bytes(self._pid, "VmRSS")))
            await asyncio.sleep(1)

    def _group(self) -> tuple[str, list[str]]:
        words = self._rng.choices(_WORDS, k=self._rng.randrange(5, 120))
        return " ".join(words), [
            " ".join(self._rng.choices(_WORDS, k=self._rng.randrange(1, 40)))
            for _ in range(self._rng.randrange(1, 10))
        ]

    def _count(self, group: tuple[str, list[str]], scored: object) -> None:
        is_correct = isinstance(scored, ScoredGroup) and [
            type(reward) for reward in scored.rewards
        ] == [Reward] * len(group[1])
        self._counts["scored" if is_correct else "wrong"] += 1

    async def _stream(self) -> None:
        """Send 200 groups per connection; about every fourth connection is dropped halfway."""
        while time.monotonic() < self._ends_at:
            async with AsyncRewardClient(self._address) as client:
                groups = [self._group() for _ in range(200)]
                num_expected = 100 if self._rng.random() < 0.25 else 200
                number = 0
                async for scored in client.score_many(groups):
                    self._count(groups[number], scored)
                    number += 1
                    if number == num_expected:
                        break
                if number != num_expected:
                    self._counts["wrong"] += 1

    async def _single_calls(self) -> None:
        async with AsyncRewardClient(self._address) as client:
            while time.monotonic() < self._ends_at:
                group = self._group()
                self._count(group, await client.score(*group))

    async def _cancelled_calls(self) -> None:
        async with AsyncRewardClient(self._address) as client:
            await client.wait_until_ready()
            while time.monotonic() < self._ends_at:
                groups = [self._group() for _ in range(20)]
                calls = [asyncio.create_task(client.score(*group)) for group in groups]
                await asyncio.sleep(self._rng.random() / 20)
                for call in calls:
                    call.cancel()
                outcomes = await asyncio.gather(*calls, return_exceptions=True)
                for group, outcome in zip(groups, outcomes, strict=True):
                    if isinstance(outcome, asyncio.CancelledError):
                        self._counts["cancelled"] += 1
                    else:
                        self._count(group, outcome)

    async def _malformed_calls(self) -> None:
        async with AsyncRewardClient(self._address) as client:
            while time.monotonic() < self._ends_at:
                try:
                    await client.score("too long " * 20_000, ["a"])
                    self._counts["wrong"] += 1
                except RewardServiceError as error:
                    self._counts["refused" if error.code == "INVALID_ARGUMENT" else "wrong"] += 1
                await asyncio.sleep(0.1)
