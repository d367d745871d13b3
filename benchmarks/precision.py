"""What does a precision save on this CPU, and what does it cost in fidelity?

Physics: int8 and bf16 products have up to four and two times the operations of an instruction in fp32, and a quarter and half of
the bytes, where the processor has such instructions; attention, norms and the rounding itself gain nothing. Contenders, in turns
within each repeat after one to warm up:

    RUNTIME PRECISION    those of the artifact that `kwise serve` would run here; the others are named with the reason
    transformers bf16    torch, a padded batch of K; a CPU without bf16 products emulates it, slowly: at most one repeat
    stock graph          Optimum's padded export in fp32 on ONNX Runtime, a batch of K

Seconds are of a group, medians over repeats; ratios, to fp32 on ONNX Runtime, medians of ratios within a repeat, so that below 1
is faster. Ours run as the engine's queue batches them, the real groups all waiting at once; the peers one group after another.
"~": a padded batch too large, or emulated, was run by its longest sequence, times K; of emulated real groups, as many as
--max-seconds allow; or only the warm-up was run. No prompt is cached from one run to the next.

Fidelity is `kwise.export.precision.agreement`'s, on the real groups: errors in standard deviations of the fp32 rewards, and orders.
"""

import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from time import perf_counter
from typing import Any

from kwise.benchmarks import machine
from kwise.benchmarks.peers import MOST_PADDED_ROWS, Transformers, stock_session
from kwise.benchmarks.workload import Cell, parse_cells, read_trie, run_queued
from kwise.engine.artifact import Artifact
from kwise.engine.config import EngineConfig
from kwise.engine.load import new_encoder
from kwise.engine.model.devices import Kind
from kwise.engine.model.precision import Precision
from kwise.engine.model.prefix_cache import PromptCache
from kwise.engine.model.runtime.kind import Runtime
from kwise.engine.model.runtime.open import cpu_has_bf16
from kwise.engine.model.select import select_backend
from kwise.engine.model.session import GraphSession, Pass, Session
from kwise.engine.sequence import EncodedSequence
from kwise.errors import ConfigError
from kwise.export.precision.agreement import (
    Groups,
    Rewards,
    encode_groups,
    measure,
    read_texts,
    rewards_of,
    split,
)
from kwise.options import check_bounds, option

_REFERENCE = "onnxruntime fp32"
_REAL = "real"


@dataclass(frozen=True, slots=True, kw_only=True)
class PrecisionBenchConfig:
    """What to measure. Raises ConfigError, naming the option and its bound."""

    artifact: str = option(
        help="an artifact of the trie layout that holds fp32 and others (kwise export --dtype)"
    )
    checkpoint: str = option(
        "", "its checkpoint, for transformers in bf16 and the stock padded graph beside it"
    )
    rankings: str = option(
        "",
        "real groups: a JSON Lines file of rankings, .gz or not; without it, the shipped ones of an export",
    )
    cells: str = option(
        "64/64/9,256/128/9,1024/128/9",
        "groups P/R/K: tokens of the prompt, tokens of a response, responses",
    )
    num_groups: int = option(16, "how many of the real groups", minimum=1)
    repeats: int = option(5, "runs of each contender, after one to warm up", minimum=1)
    max_seconds: float = option(
        60.0,
        "no more runs of a contender on a cell, or on the real groups, once it took so long; it has one at least",
        minimum=0,
    )
    threads: int = option(0, "threads of each contender; 0 for one per core", minimum=0)
    max_batch_tokens: int = option(
        EngineConfig().max_batch_tokens, "as in `kwise serve`", minimum=16
    )
    json: str = option("", "file for all figures, with the machine")

    def __post_init__(self) -> None:
        check_bounds(self)
        self.parsed_cells()

    def parsed_cells(self) -> list[Cell]:
        return parse_cells(self.cells)


@dataclass(frozen=True, slots=True, kw_only=True)
class Contender:
    """padded: a group is a batch of its own. emulated: too slow for more than a sequence of a group, or more than one repeat.
    faithful: whether its fidelity is measured, too."""

    session: Session
    padded: bool = False
    emulated: bool = False
    faithful: bool = True

    def seconds(self, groups: Groups, config: PrecisionBenchConfig) -> tuple[float, bool]:
        """(of a group, whether it is "~")."""
        if not self.padded:
            self.session.prompt_cache = PromptCache(EngineConfig().prompt_cache_bytes)
            return run_queued(self.session, "trie", groups, config.max_batch_tokens)[0] / len(
                groups
            ), False
        longest = [max(group, key=lambda sequence: len(sequence.token_ids)) for group in groups]
        sizes = [
            len(group) * len(sequence.token_ids)
            for group, sequence in zip(groups, longest, strict=True)
        ]
        seconds, measured, rough = 0.0, 0, False
        give_up_at = perf_counter() + config.max_seconds
        for group, sequence, size in zip(groups, longest, sizes, strict=True):
            single = self.emulated or size > MOST_PADDED_ROWS
            started = perf_counter()
            self.session.run([sequence] if single else group)
            seconds += (perf_counter() - started) * (len(group) if single else 1)
            measured, rough = measured + size, rough or single
            if self.emulated and perf_counter() > give_up_at:
                break
        return seconds * sum(sizes) / measured / len(groups), rough


@dataclass(slots=True)
class _Runs:
    seconds: list[float] = field(default_factory=list)
    spent: float = 0.0
    rough: bool = False


def run(config: PrecisionBenchConfig) -> None:
    """Print the tables, and write the figures where --json says."""
    artifact = read_trie(config.artifact)
    if Precision.FP32 not in artifact.manifest.available_precisions:
        raise ConfigError(
            f"{config.artifact}: it holds no fp32, to which the others are compared (kwise export --dtype)"
        )
    texts = (
        read_texts(config.rankings, config.num_groups)
        if config.rankings
        else split(read_texts(""))[0]
    )
    texts = texts[: config.num_groups]
    groups = encode_groups(new_encoder(artifact, EngineConfig()), texts)
    contenders, left_out = contenders_of(artifact, config)
    workloads: dict[str, list[Groups]] = {}
    for cell in config.parsed_cells():
        seeds = range(config.repeats + 1)
        workloads[f"{cell.P}/{cell.R}/{cell.K}"] = [
            [cell.group(artifact.manifest.vocab_size, seed)] for seed in seeds
        ]
    workloads[_REAL] = [groups] * (config.repeats + 1)
    rows: dict[str, dict[str, Any]] = {
        name: {
            "contender": name,
            "runtime": c.session.runtime,
            "precision": c.session.precision.value,
            "seconds": {},
        }
        for name, c in contenders.items()
    }
    print(
        "seconds a group, and their ratio to the first column's\n"
        + " " * 12
        + "".join(f"{name:>21}" for name in rows)
    )
    for workload, repeats in workloads.items():
        figures = timed(contenders, repeats, config)
        for name, figure in figures.items():
            rows[name]["seconds"][workload] = figure
        print(f"{workload:<12}" + "".join(map(_shown, figures.values())), flush=True)
    print(
        f"{len(groups)} real groups: largest and mean error   order: all, clear pairs     tau   change with batch  "
    )
    expected: list[Rewards] = []
    for name, contender in contenders.items():
        if not contender.faithful:
            rows[name]["fidelity"] = None
            continue
        contender.session.prompt_cache = PromptCache(0)
        expected = expected or rewards_of(contender.session, groups)  # the reference is the first
        affordable = int(config.max_seconds / rows[name]["seconds"][_REAL]["seconds"])
        count = max(2, affordable) if contender.emulated else len(groups)
        rows[name]["fidelity"] = found = asdict(
            measure(contender.session, groups[:count], expected[:count])
        )
        print(_fidelity_line(name, found), flush=True)
    if config.json:
        options = machine.plain(asdict(config))
        results = {
            "artifact": artifact.manifest.name,
            "options": options,
            "contenders": [*rows.values()],
            "left_out": left_out,
        }
        machine.write(Path(config.json), results)


def contenders_of(
    artifact: Artifact, config: PrecisionBenchConfig
) -> tuple[dict[str, Contender], dict[str, str]]:
    """(those of this machine, fp32 on ONNX Runtime first; why the others are left out, which is printed too)."""
    threads = EngineConfig(threads=config.threads).runtime_threads
    available = artifact.manifest.available_precisions
    contenders: dict[str, Contender] = {}
    left_out: dict[str, str] = {}
    for precision in sorted(available, key=lambda precision: precision is not Precision.FP32):
        for runtime in (Runtime.ONNXRUNTIME, Runtime.OPENVINO):
            name = f"{runtime.value} {precision.value}"
            try:
                select_backend((precision,), runtime, Kind.CPU, available, cpu_has_bf16)
                session = GraphSession(
                    artifact, runtime=runtime, precision=precision, threads=threads
                )
                contenders[name] = Contender(session=session)
            except ConfigError as error:
                left_out[name] = str(error)
    if config.checkpoint:
        emulated = not {"avx512_bf16", "amx_bf16"} & set(machine.describe()["flags"])
        peer = _Transformers(config.checkpoint, threads)
        contenders["transformers bf16"] = Contender(session=peer, padded=True, emulated=emulated)
        contenders["stock graph"] = Contender(
            session=stock_session(config.checkpoint, threads), padded=True, faithful=False
        )
    else:
        left_out |= dict.fromkeys(
            ("transformers bf16", "stock graph"), "no --checkpoint to make it of"
        )
    for name, reason in left_out.items():
        print(f"left out: {name}: {reason}")
    return contenders, left_out


def timed(
    contenders: dict[str, Contender], repeats: Sequence[Groups], config: PrecisionBenchConfig
) -> dict[str, Any]:
    """By contender; the first repeat warms up, and counts only for those that have no other."""
    runs = {name: _Runs() for name in contenders}
    for number, groups in enumerate(repeats):
        for name, contender in contenders.items():
            of = runs[name]
            needed = 0 if contender.emulated else 1
            if number > needed and (
                of.spent > config.max_seconds or (contender.emulated and number > 1)
            ):
                continue
            started = perf_counter()
            seconds, of.rough = contender.seconds(groups, config)
            of.spent += perf_counter() - started
            of.seconds.append(seconds)
    return {
        name: figure_of(of.seconds, runs[_REFERENCE].seconds)
        | {"rough": of.rough or len(of.seconds) == 1}
        for name, of in runs.items()
    }


def figure_of(seconds: Sequence[float], reference: Sequence[float]) -> dict[str, Any]:
    """Medians of seconds and of ratios within a repeat, each sequence with its warm-up first."""
    first = 1 if min(len(seconds), len(reference)) > 1 else 0
    kept = seconds[1:] or seconds
    ratios = [a / b for a, b in zip(seconds[first:], reference[first:], strict=False)]
    return {
        "seconds": statistics.median(kept),
        "ratio": statistics.median(ratios),
        "runs": len(kept),
    }


class _Transformers:
    """The peer in bf16 as a session."""

    precision = Precision.BF16

    def __init__(self, checkpoint: str, threads: int) -> None:
        import torch

        torch.set_num_threads(threads)
        self._peer = Transformers(checkpoint, "cpu", "bfloat16")
        self.runtime, self.prompt_cache = self._peer.name, PromptCache(0)

    def run(self, batch: Sequence[EncodedSequence]) -> Pass:
        _, rewards = self._peer.run(batch)
        return Pass(
            rewards=rewards,
            num_rows=len(batch) * max(len(sequence.token_ids) for sequence in batch),
        )


def _shown(figure: dict[str, Any]) -> str:
    seconds = f"{'~' if figure['rough'] else ''}{figure['seconds']:.4g}"
    return f"{seconds:>13} {figure['ratio']:>7.2f}"


def _fidelity_line(name: str, found: dict[str, Any]) -> str:
    return (
        f"{name:<20} {found['max_error']:>14.1e} {found['mean_error']:>9.1e} {found['agreement']:>12.2%} "
        f"{found['clear_agreement']:>10.2%} {found['kendall_tau']:>9.3f} {found['max_batch_change']:>14.1e}"
        f"   ({found['num_groups']} groups)"
    )
