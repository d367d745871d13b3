"""Does a server's memory grow under all that clients do to it, for minutes?

Streams, single calls, calls that are cancelled, calls that are malformed and connections that are dropped, all with new
prompts, so that both caches turn over; they are small, and full before the measurement begins. The slope of the resident
memory is that of a least-squares line through the samples after the first third, a second apart. Every group must be answered
once, with as many rewards as responses.
"""

import asyncio
import random
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from kwise.benchmarks import machine
from kwise.benchmarks.serving import memory_bytes, serving
from kwise.client import AsyncRewardClient, RewardServiceError
from kwise.engine.artifact import read_artifact
from kwise.options import check_bounds, option
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


@dataclass(frozen=True, slots=True, kw_only=True)
class SoakConfig:
    """How long. Raises ConfigError, naming the option and its bound."""

    artifact: str = option(help="an artifact; a small model gives the most requests")
    minutes: float = option(10.0, "how long the load lasts", minimum=0.05)
    json: str = option("", "file for all figures, with the machine")

    def __post_init__(self) -> None:
        check_bounds(self)


def run(config: SoakConfig) -> None:
    """Print the slope, and write the figures where --json says."""
    artifact = read_artifact(Path(config.artifact))
    with serving(artifact, *_SMALL_CACHES) as (process, address):
        soak = _Soak(address, process.pid, 60 * config.minutes)
        asyncio.run(soak.run())
        if process.poll() is not None:
            raise RuntimeError("the server ended under load")
    results = soak.results()
    print(
        "{minutes:.1f} minutes: {scored} groups scored, {refused} malformed ones refused, {cancelled} calls cancelled, "
        "{wrong} lost or wrong".format(minutes=config.minutes, **results)
    )
    print(
        "resident memory {first_mb:.1f} MB after a third, {last_mb:.1f} MB at the end: {slope_kb_per_min:+.1f} KB a minute".format(
            **results
        )
    )
    if results["wrong"]:
        raise RuntimeError(f"{results['wrong']} groups were lost or wrong")
    if config.json:
        machine.write(
            Path(config.json),
            {"artifact": artifact.manifest.name, "options": machine.plain(asdict(config))}
            | results,
        )


class _Soak:
    """Until `seconds` have passed; what happened is counted."""

    def __init__(self, address: str, pid: int, seconds: float) -> None:
        self._address = address
        self._pid = pid
        self._ends_at = time.monotonic() + seconds
        self._rng = random.Random(0)
        self._samples: list[tuple[float, float]] = []
        self._counts = {"scored": 0, "refused": 0, "cancelled": 0, "wrong": 0}

    async def run(self) -> None:
        workers = (
            [self._stream() for _ in range(2)]
            + [self._single_calls() for _ in range(4)]
            + [self._cancelled_calls()]
        )
        await asyncio.gather(self._sample(), self._malformed_calls(), *workers)

    def results(self) -> dict[str, Any]:
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
        is_right = isinstance(scored, ScoredGroup) and [
            type(reward) for reward in scored.rewards
        ] == [Reward] * len(group[1])
        self._counts["scored" if is_right else "wrong"] += 1

    async def _stream(self) -> None:
        """A new connection every 200 groups; every fourth is left in the middle."""
        while time.monotonic() < self._ends_at:
            async with AsyncRewardClient(self._address) as client:
                groups = [self._group() for _ in range(200)]
                leave_after = 100 if self._rng.random() < 0.25 else 200
                number = 0
                async for scored in client.score_many(groups):
                    self._count(groups[number], scored)
                    number += 1
                    if number == leave_after:
                        break
                if number != leave_after:
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
