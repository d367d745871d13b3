"""The time that a precision saves on this CPU, and the fidelity that it costs.

Physics: matmuls in int8 and bf16 have up to four and two times the operations per instruction of
fp32, and a quarter and half of the bytes, if the processor has such instructions. Attention, norms
and the rounding itself gain nothing. The contenders run in turns within each repeat:

    RUNTIME PRECISION    those of the artifact that kwise serve would run here
    transformers bf16    torch, a padded batch of K; a CPU without bf16 matmuls emulates it, slowly,
                         so that it has at most one repeat
    stock graph          Optimum's padded export in fp32 on ONNX Runtime, a batch of K

Times are per group, medians over repeats. Ratios are to fp32 on ONNX Runtime, medians of ratios
within a repeat; below 1 is faster. The second ratio is of CPU time: it depends less on what else
the machine does, but with several threads it contains their waiting in loops. No prompt is cached
from one run to the next. The workloads are the cells, whose repeats have the same shapes, and:

    real      the real groups as if all waited at once, batched by kwise; the baselines run one
              after another
    singly    one real group after another. Each repeat has groups of its own, if there are enough,
              so that every pass has new shapes.
    again     the same, but each group is timed in a second run, so that no shape is new

"~" marks an extrapolated time: of the longest sequence times K (padded batch too large, or
emulated), of a part of the real groups (emulated, --max-seconds), or of the warm-up only.

Fidelity is that of `kwise.export.precision.agreement` on the real groups.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from typing import Any

from kwise.benchmarks import machine
from kwise.benchmarks.model.baselines import TransformersModel, stock_session
from kwise.benchmarks.model.contender import Contender, Workload, measure_time
from kwise.benchmarks.options import PrecisionBenchConfig
from kwise.benchmarks.result_file import write_results
from kwise.benchmarks.workload import read_trie_artifact
from kwise.engine.artifact.read import Artifact
from kwise.engine.config import EngineConfig
from kwise.engine.load import new_encoder
from kwise.engine.model.devices import Kind
from kwise.engine.model.prefix_cache import PromptCache
from kwise.engine.model.runtime.kind import Runtime
from kwise.engine.model.runtime.open import cpu_has_bf16
from kwise.engine.model.session import GraphSession, Pass
from kwise.engine.precision import Precision
from kwise.engine.select import select_backend
from kwise.engine.sequence import EncodedSequence
from kwise.errors import ConfigError
from kwise.export.precision.agreement import (
    Groups,
    Rewards,
    measure,
    rewards_of,
    split,
)
from kwise.export.precision.text_groups import encode_groups, read_text_groups

_REAL = "real"


def run(config: PrecisionBenchConfig) -> None:
    """Print the tables and write the figures to `config.json`.

    Raises:
        ConfigError: the artifact has another layout or no fp32.
        RankingsError: the file of rankings is not usable.
    """
    artifact = read_trie_artifact(config.artifact)
    if Precision.FP32 not in artifact.manifest.available_precisions:
        raise ConfigError(
            f"{config.artifact}: it has no fp32, to which the others are compared "
            "(kwise export --dtype)"
        )
    groups = _real_groups(artifact, config)
    contenders, skipped = contenders_of(artifact, config)
    rows: dict[str, dict[str, Any]] = {
        name: {
            "contender": name,
            "runtime": contender.session.runtime,
            "precision": contender.session.precision.value,
            "seconds": {},
        }
        for name, contender in contenders.items()
    }
    print("seconds per group, and the ratios of wall time and CPU time to the first column's")
    print(" " * 12 + "".join(f"{name:>26}" for name in rows))
    for label, workload in _workloads(artifact, groups, config).items():
        figures = measure_time(contenders, workload, config)
        for name, figure in figures.items():
            rows[name]["seconds"][label] = figure
        print(f"{label:<12}" + "".join(map(_time_cell, figures.values())), flush=True)
    print(
        f"{len(groups)} real groups:        max error      mean   order: all   clear pairs     "
        "tau   batch composition"
    )
    expected: list[Rewards] = []
    for name, contender in contenders.items():
        if not contender.has_fidelity:
            rows[name]["fidelity"] = None
            continue
        contender.session.prompt_cache = PromptCache(0)
        # The first contender is the reference.
        expected = expected or rewards_of(contender.session, groups)
        num_affordable = int(config.max_seconds / rows[name]["seconds"][_REAL]["seconds"])
        count = max(2, num_affordable) if contender.emulated else len(groups)
        measured = asdict(measure(contender.session, groups[:count], expected[:count]))
        rows[name]["fidelity"] = measured
        print(_fidelity_line(name, measured), flush=True)
    if config.json:
        results = {
            "artifact": artifact.manifest.name,
            "contenders": [*rows.values()],
            "skipped": skipped,
        }
        write_results(config.json, "precision", config, results)


def _real_groups(artifact: Artifact, config: PrecisionBenchConfig) -> Groups:
    if config.rankings:
        texts = read_text_groups(config.rankings)
    else:
        texts = list(split(read_text_groups(""))[0])
    encoder = new_encoder(artifact, EngineConfig())
    return encode_groups(encoder, texts, max_groups=config.num_groups)


def _workloads(
    artifact: Artifact, groups: Groups, config: PrecisionBenchConfig
) -> dict[str, Workload]:
    """Return the workloads by name."""
    num_runs = config.repeats + 1
    vocab_size = artifact.manifest.vocab_size
    workloads = {
        str(cell): Workload(repeats=[[cell.group(vocab_size, seed)] for seed in range(num_runs)])
        for cell in config.parsed_cells()
    }
    shares = [groups[number % len(groups) :: num_runs] for number in range(num_runs)]
    return workloads | {
        _REAL: Workload(repeats=[groups] * num_runs),
        "singly": Workload(repeats=shares, singly=True),
        "again": Workload(repeats=shares, singly=True, again=True),
    }


def contenders_of(
    artifact: Artifact, config: PrecisionBenchConfig
) -> tuple[dict[str, Contender], dict[str, str]]:
    """Return (contenders by name, reasons of the skipped ones by name), and print the latter.

    The first contender is the reference, fp32 on ONNX Runtime.
    """
    threads, available = (
        EngineConfig(threads=config.threads).runtime_threads,
        artifact.manifest.available_precisions,
    )
    contenders: dict[str, Contender] = {}
    skipped: dict[str, str] = {}
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
                skipped[name] = str(error)
    if config.checkpoint:
        emulated = not {"avx512_bf16", "amx_bf16"} & set(machine.cpu_flags())
        transformers = _TransformersSession(config.checkpoint, threads)
        contenders["transformers bf16"] = Contender(
            session=transformers, padded=True, emulated=emulated
        )
        contenders["stock graph"] = Contender(
            session=stock_session(config.checkpoint, threads), padded=True, has_fidelity=False
        )
    else:
        skipped |= dict.fromkeys(("transformers bf16", "stock graph"), "needs --checkpoint")
    for name, reason in skipped.items():
        print(f"skipped: {name}: {reason}")
    return contenders, skipped


class _TransformersSession:
    """transformers in bf16 with the interface of a session."""

    precision = Precision.BF16

    def __init__(self, checkpoint: str, threads: int) -> None:
        import torch

        torch.set_num_threads(threads)
        self._model = TransformersModel(checkpoint, "cpu", "bfloat16")
        self.runtime, self.prompt_cache = self._model.name, PromptCache(0)

    def prepare(
        self, batch: Sequence[EncodedSequence], started: Callable[[], None] = lambda: None
    ) -> Callable[[], Pass]:
        return partial(self.run, batch)

    def run(self, batch: Sequence[EncodedSequence]) -> Pass:
        """Return the rewards of a padded batch."""
        _, rewards = self._model.run(batch)
        max_tokens = max(len(sequence.token_ids) for sequence in batch)
        return Pass(rewards=rewards, num_rows=len(batch) * max_tokens)


def _time_cell(figure: dict[str, Any]) -> str:
    seconds = f"{'~' if figure['extrapolated'] else ''}{figure['seconds']:.4g}"
    return f"{seconds:>13} {figure['ratio']:>6.2f} {figure['cpu_ratio']:>5.2f}"


def _fidelity_line(name: str, measured: dict[str, Any]) -> str:
    return (
        f"{name:<20} {measured['max_error']:>14.1e} {measured['mean_error']:>9.1e} "
        f"{measured['agreement']:>12.2%} {measured['clear_agreement']:>13.2%} "
        f"{measured['kendall_tau']:>7.3f} {measured['max_batch_change']:>19.1e}"
        f"   ({measured['num_groups']} groups)"
    )
