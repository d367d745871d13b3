"""The cost of a prompt whose responses come in one call each.

RL clients often send one (prompt, response) per call. Physics: at best the K calls cost as much as
one call with all K responses, which computes the prompt once and each response once; a group whose
prompt is cached costs its share of rows, K·R of P + K·R. Measured without the reward cache: K calls
in a row in one process; K calls at once from K connections to a server; and a group whose prompt is
cached. Each figure is a ratio to the best case, so that 1.00 is ideal.
"""

import asyncio
import statistics
import time
from collections.abc import Sequence
from typing import Any

from kwise.benchmarks.options import Cell
from kwise.benchmarks.serving.server_process import running_server
from kwise.client import AsyncRewardClient
from kwise.engine.artifact.read import Artifact
from kwise.engine.model.session import GraphSession
from kwise.engine.sequence import EncodedSequence


def run(
    session: GraphSession, artifact: Artifact, cells: Sequence[Cell], repeats: int
) -> list[dict[str, Any]]:
    """Print and return the ratios of each cell, medians over `repeats`."""
    results = []
    with running_server(artifact, "--cache-bytes", "0") as server:
        print("ratio to one call with all K responses; cached group: to its share of rows")
        print("     P     R     K   in a row   at once   cached group")
        for cell in cells:
            rounds = [
                _ratios_in_process(session, artifact, cell, 10_000 + 3 * repeat)
                for repeat in range(repeats)
            ]
            at_once = [
                asyncio.run(_ratio_at_once(server.address, artifact, cell, 1000 + 2 * repeat))
                for repeat in range(repeats)
            ]
            row = {
                "P": cell.P,
                "R": cell.R,
                "K": cell.K,
                "in_a_row": statistics.median(in_a_row for in_a_row, _ in rounds),
                "at_once": statistics.median(at_once),
                "cached_group": statistics.median(cached for _, cached in rounds),
            }
            line = "{P:>6} {R:>5} {K:>5} {in_a_row:>10.2f} {at_once:>9.2f} {cached_group:>14.2f}"
            print(line.format(**row), flush=True)
            results.append(row)
    return results


def _ratios_in_process(
    session: GraphSession, artifact: Artifact, cell: Cell, seed: int
) -> tuple[float, float]:
    """Return the ratios of (K calls in a row, a group whose prompt is cached)."""
    vocab_size = artifact.manifest.vocab_size
    together_s = _timed(session, [cell.group(vocab_size, seed)])
    group = cell.group(vocab_size, seed + 1)
    in_a_row_s = _timed(session, [[sequence] for sequence in group])
    prompt = group[0].token_ids[: cell.P]
    other_responses = cell.group(vocab_size, seed + 2)
    cached_s = _timed(session, [[_with_prompt(prompt, sequence) for sequence in other_responses]])
    share_of_rows = cell.K * cell.R / (cell.P + cell.K * cell.R)
    return in_a_row_s / together_s, cached_s / (together_s * share_of_rows)


def _with_prompt(prompt: Any, sequence: EncodedSequence) -> EncodedSequence:
    """Return `sequence` with its prompt replaced by another one of the same length."""
    token_ids = sequence.token_ids.copy()
    token_ids[: len(prompt)] = prompt
    return EncodedSequence(
        token_ids=token_ids, type_ids=None, num_tokens=len(token_ids), prompt_tokens=len(prompt)
    )


def _timed(session: GraphSession, batches: Sequence[Sequence[EncodedSequence]]) -> float:
    """Run the batches one after the other and return the seconds."""
    started = time.perf_counter()
    for batch in batches:
        session.run(batch)
    return time.perf_counter() - started


async def _ratio_at_once(address: str, artifact: Artifact, cell: Cell, seed: int) -> float:
    """Return the ratio of K calls at once from K connections to one call with K responses."""
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
