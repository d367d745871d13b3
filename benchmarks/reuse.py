"""What does a prompt cost when its responses come one call at a time?

RL clients often send one (prompt, response) a call. The least possible is the cost of one call with all K: the prompt once
and every response once. Measured without the reward cache: K calls in a row in one process; then through a server, K calls
at once from K connections against one call with K; and a group whose prompt is cached against its share of rows.
"""

import asyncio
import statistics
import time
from collections.abc import Sequence
from typing import Any

from kwise.benchmarks.serving import serving
from kwise.benchmarks.workload import Cell
from kwise.client import AsyncRewardClient
from kwise.engine.artifact import Artifact
from kwise.engine.model.session import GraphSession
from kwise.engine.sequence import EncodedSequence


def run(
    session: GraphSession, artifact: Artifact, cells: Sequence[Cell], repeats: int
) -> list[dict[str, Any]]:
    """Print and return the ratios of each cell, medians over `repeats`."""
    results = []
    with serving(artifact, "--cache-bytes", "0") as (_, address):
        print(
            "     P     R     K   in a row   at once   cached group / its rows' share     (1.00: one call with all K)"
        )
        for cell in cells:
            rounds = [
                _round(session, artifact, cell, 10_000 + 3 * repeat) for repeat in range(repeats)
            ]
            connections = [
                asyncio.run(_connections(address, artifact, cell, 1000 + 2 * repeat))
                for repeat in range(repeats)
            ]
            row = {
                "P": cell.P,
                "R": cell.R,
                "K": cell.K,
                "in_a_row": statistics.median(in_a_row for in_a_row, _ in rounds),
                "at_once": statistics.median(connections),
                "cached_group": statistics.median(cached for _, cached in rounds),
            }
            print(
                "{P:>6} {R:>5} {K:>5} {in_a_row:>10.2f} {at_once:>9.2f} {cached_group:>20.2f}".format(
                    **row
                ),
                flush=True,
            )
            results.append(row)
    return results


def _round(session: GraphSession, artifact: Artifact, cell: Cell, seed: int) -> tuple[float, float]:
    """(K calls in a row, a group whose prompt is cached), each in units of what it has to cost."""
    vocab_size = artifact.manifest.vocab_size
    together = _timed(session, [cell.group(vocab_size, seed)])
    group = cell.group(vocab_size, seed + 1)
    in_a_row = _timed(session, [[sequence] for sequence in group])
    prompt = group[0].token_ids[: cell.P]
    later = [_after(prompt, sequence) for sequence in cell.group(vocab_size, seed + 2)]
    cached = _timed(session, [later])
    share = cell.K * cell.R / (cell.P + cell.K * cell.R)
    return in_a_row / together, cached / (together * share)


def _after(prompt: Any, sequence: EncodedSequence) -> EncodedSequence:
    """The response of `sequence` to another prompt of the same length."""
    token_ids = sequence.token_ids.copy()
    token_ids[: len(prompt)] = prompt
    return EncodedSequence(
        token_ids=token_ids, type_ids=None, num_tokens=len(token_ids), prompt_tokens=len(prompt)
    )


def _timed(session: GraphSession, calls: Sequence[Sequence[EncodedSequence]]) -> float:
    started = time.perf_counter()
    for batch in calls:
        session.run(batch)
    return time.perf_counter() - started


async def _connections(address: str, artifact: Artifact, cell: Cell, seed: int) -> float:
    """K calls at once from K connections, in units of one call with K."""
    clients = [AsyncRewardClient(address) for _ in range(cell.K)]
    try:
        for client in clients:
            await client.wait_until_ready()
        seconds = []
        for calls in (1, cell.K):
            prompt, responses = cell.request(artifact.manifest.vocab_size, seed + (calls > 1))
            parts = [responses] if calls == 1 else [[response] for response in responses]
            started = time.perf_counter()
            await asyncio.gather(
                *(client.score(prompt, part) for client, part in zip(clients, parts, strict=False))
            )
            seconds.append(time.perf_counter() - started)
        return seconds[1] / seconds[0]
    finally:
        await asyncio.gather(*(client.close() for client in clients))
