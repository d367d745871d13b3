"""Time on the device: a pass of a full batch, and groups that the engine's queue holds.

A pass has two parts, which the engine overlaps: the host prepares a batch (trie, rows, tiles,
padding), and the graph computes its rewards, from arrays in host memory to rewards there.
"""

import asyncio
import statistics
from collections.abc import Iterable, Sequence
from time import perf_counter
from typing import Any

from tokenizers import Tokenizer, models

from kwise.benchmarks.gpu.figures import Tell, attempt
from kwise.benchmarks.gpu.subjects import Subject, batch_of
from kwise.benchmarks.options import Cell, GpuBenchConfig
from kwise.engine.config import EngineConfig
from kwise.engine.model.devices import parse_devices
from kwise.engine.model.session import GraphSession
from kwise.engine.scorer import Scorer
from kwise.engine.sequence import EncodedSequence
from kwise.engine.text.encoder import ConversationEncoder
from kwise.engine.text.limits import EncoderLimits
from kwise.options import MAX_COUNT
from kwise.types import Group, Reward

# The first pass of a shape plans its memory, the second uses the plan, and libraries choose their
# kernels.
NUM_WARM_UPS = 4  # the fourth pass of a shape is captured as a CUDA graph


def passes(subjects: Iterable[Subject], config: GpuBenchConfig, device: str, tell: Tell) -> None:
    """Time passes of full batches."""
    for subject in subjects:
        for precision, runtime in subject.precisions(device):
            with attempt(subject, precision, tell):
                session = subject.session(precision, runtime, device)
                for max_rows in config.rows:
                    for cell in config.parsed_cells():
                        batch = batch_of(cell, max_rows, subject.vocab_size)
                        figures = _pass(session, batch, config.repeats, subject.factor)
                        tell(
                            f"{subject.name} {precision.value} {cell}: {pass_line(figures)}",
                            subject=subject.name,
                            precision=precision.value,
                            cell=str(cell),
                            max_rows=max_rows,
                            **figures,
                        )


def _pass(
    session: GraphSession, batch: Sequence[EncodedSequence], repeats: int, factor: int
) -> dict[str, Any]:
    """Time passes of one batch, the host's part and the rest apart."""
    host_s, graph_s, num_rows = [], [], 0
    for _ in range(NUM_WARM_UPS + repeats):
        started = perf_counter()
        run = session.prepare(batch)
        prepared = perf_counter()
        num_rows = run().num_rows
        host_s.append(prepared - started)
        graph_s.append(perf_counter() - prepared)
    return pass_figures(
        len(batch),
        num_rows,
        host_s=statistics.median(host_s[NUM_WARM_UPS:]),
        graph_s=statistics.median(graph_s[NUM_WARM_UPS:]),
        factor=factor,
    )


def pass_figures(
    num_sequences: int, num_rows: int, *, host_s: float, graph_s: float, factor: int
) -> dict[str, Any]:
    """Return the figures of a pass of a model with `factor` times the layers of the graph.

    The host prepares the next batch while the graph runs, so the slower of both decides the rate.
    """
    return {
        "sequences": num_sequences,
        "rows": num_rows,
        "host_ms": 1e3 * host_s,
        "graph_ms": 1e3 * graph_s,
        "factor": factor,
        "model_ms": 1e3 * graph_s * factor,
        "rewards_per_s": num_sequences / max(graph_s * factor, host_s),
    }


def pass_line(figures: dict[str, Any]) -> str:
    """Return the line that is printed for a pass."""
    measured = f"{figures['rows']} rows take {figures['graph_ms']:.2f} ms"
    if figures["factor"] > 1:
        measured += (
            f" in 1/{figures['factor']} of the layers, times {figures['factor']} "
            f"{figures['model_ms']:.1f} ms"
        )
    return (
        f"{measured}, and {figures['host_ms']:.2f} ms to prepare; "
        f"{figures['rewards_per_s']:,.1f} rewards/s"
    )


def engine(subjects: Iterable[Subject], config: GpuBenchConfig, tell: Tell) -> None:
    """Time groups that wait together in the engine, on all devices and in the first precision."""
    devices = parse_devices(config.device)
    for subject in subjects:
        if subject.factor > 1:
            print(f"{subject.name}: skipped: only a part of the layers is here", flush=True)
            continue
        first = next(subject.precisions(devices[0].name), None)
        if first is None:
            continue
        with attempt(subject, first[0], tell):
            sessions = [subject.session(*first, device.name) for device in devices]
            for cell in config.parsed_cells():
                seconds = _engine_s(subject, config, cell, sessions)
                figures = throughput_of(cell, config.groups, seconds)
                tell(
                    f"{subject.name} {first[0].value} {cell}: {figures['groups_per_s']:,.1f} "
                    f"groups/s with {config.groups} groups queued on {len(devices)} devices",
                    subject=subject.name,
                    precision=first[0].value,
                    cell=str(cell),
                    devices=len(devices),
                    **figures,
                )


def throughput_of(cell: Cell, num_groups: int, seconds: Sequence[float]) -> dict[str, Any]:
    """Return medians. Tokens are counted as clients send them: K·(P + R) per group."""
    median = statistics.median(seconds)
    return {
        "groups": num_groups,
        "seconds": median,
        "groups_per_s": num_groups / median,
        "tokens_per_s": num_groups * cell.K * (cell.P + cell.R) / median,
    }


def _engine_s(
    subject: Subject, config: GpuBenchConfig, cell: Cell, sessions: Sequence[GraphSession]
) -> list[float]:
    manifest = subject.artifact.manifest
    encoder = ConversationEncoder(
        Tokenizer(models.BPE()),  # the groups are token ids
        template=None,
        special_tokens={},
        limits=EncoderLimits(max_tokens=manifest.max_tokens, vocab_size=manifest.vocab_size),
        trailing_pad_id=manifest.pad_token_id,
    )
    options = EngineConfig(device=config.device, cache_bytes=0, max_queue_tokens=MAX_COUNT)
    seconds = []
    with asyncio.Runner() as runner:
        scorer = Scorer(subject.artifact, options, encoder, sessions)
        runner.run(_start(scorer))
        for repeat in range(NUM_WARM_UPS + config.repeats):
            seeds = range(repeat * config.groups, (repeat + 1) * config.groups)
            groups = [_to_group(*cell.request(subject.vocab_size, seed)) for seed in seeds]
            started = perf_counter()
            runner.run(_score(scorer, groups))
            seconds.append(perf_counter() - started)
        runner.run(scorer.close())
    return seconds[NUM_WARM_UPS:]


def _to_group(prompt: list[int], responses: list[list[int]]) -> Group:
    return Group(prompt=tuple(prompt), responses=tuple(map(tuple, responses)))


async def _start(scorer: Scorer) -> None:
    scorer.start()


async def _score(scorer: Scorer, groups: Sequence[Group]) -> None:
    for scored in await asyncio.gather(*map(scorer.score, groups)):
        assert all(isinstance(reward, Reward) for reward in scored.rewards), scored.rewards
