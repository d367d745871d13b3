"""The same conversations in other libraries on the same device: transformers and vLLM.

Each scores full batches of kwise's and so as many conversations. transformers computes every
conversation whole. vLLM shares prefixes too, so each repeat has new prompts.
"""

import statistics
from collections.abc import Callable, Iterable, Sequence
from importlib import import_module
from importlib.util import find_spec
from time import perf_counter
from typing import Any

from kwise.benchmarks.gpu.figures import Tell, attempt, median_ratio
from kwise.benchmarks.gpu.subjects import Subject, batch_of
from kwise.benchmarks.gpu.times import NUM_WARM_UPS
from kwise.benchmarks.model.baselines import TransformersModel
from kwise.benchmarks.options import GpuBenchConfig
from kwise.engine.model.devices import Kind, parse_devices
from kwise.engine.model.session import GraphSession
from kwise.engine.precision import Precision
from kwise.engine.sequence import EncodedSequence

Batch = Sequence[EncodedSequence]
_DTYPES = {Precision.FP16: "float16", Precision.BF16: "bfloat16", Precision.FP32: "float32"}
_VLLM_MEMORY = 0.5  # the share of the GPU's memory; kwise's session has some as well


def transformers(
    subjects: Iterable[Subject], config: GpuBenchConfig, device: str, tell: Tell
) -> None:
    """Compare with transformers, which computes each conversation whole."""
    for subject in subjects:
        first = next(subject.precisions(device), None)
        if first is None or not subject.checkpoint:
            continue
        with attempt(subject, first[0], tell):
            model = TransformersModel.load(
                subject.checkpoint, device, first[0], is_random=subject.is_random
            )
            if model is not None:
                session = subject.session(*first, device)
                _compare(subject, first[0], session, model.name, model.run, config, tell)


def vllm(subjects: Iterable[Subject], config: GpuBenchConfig, device: str, tell: Tell) -> None:
    """Compare with vLLM's pooling model, if vLLM is installed and the device is a GPU."""
    if find_spec("vllm") is None:
        tell("skipped: vllm is not installed", skipped="vllm is not installed")
        return
    if parse_devices(device)[0].kind is not Kind.CUDA:
        tell("skipped: vllm is compared on GPUs only", skipped="not a GPU")
        return
    for subject in subjects:
        first = next(subject.precisions(device), None)
        if first is None or not subject.checkpoint:
            continue
        with attempt(subject, first[0], tell):
            session = subject.session(*first, device)
            name, run = _vllm_model(subject, first[0])
            _compare(subject, first[0], session, name, run, config, tell)


def _vllm_model(
    subject: Subject, precision: Precision
) -> tuple[str, Callable[[Batch], tuple[float, Any]]]:
    """Load a subject in vLLM; return its name and a function as `TransformersModel.run`."""
    library: Any = import_module("vllm")
    model = library.LLM(
        model=subject.checkpoint,
        runner="pooling",
        load_format="dummy" if subject.is_random else "auto",
        skip_tokenizer_init=True,
        dtype=_DTYPES[precision],
        max_model_len=2048,
        gpu_memory_utilization=_VLLM_MEMORY,
    )

    def run(batch: Batch) -> tuple[float, Any]:
        prompts = [{"prompt_token_ids": sequence.token_ids.tolist()} for sequence in batch]
        started = perf_counter()
        outputs = model.encode(prompts, pooling_task="classify", use_tqdm=False)
        return perf_counter() - started, outputs

    return f"vllm {library.__version__}", run


def _compare(
    subject: Subject,
    precision: Precision,
    session: GraphSession,
    name: str,
    run: Callable[[Batch], tuple[float, Any]],
    config: GpuBenchConfig,
    tell: Tell,
) -> None:
    for cell in config.parsed_cells():
        for max_rows in config.rows:
            kwise_s, peer_s = [], []
            for repeat in range(NUM_WARM_UPS + config.repeats):
                batch = batch_of(cell, max_rows, subject.vocab_size, first_seed=1000 * repeat)
                started = perf_counter()
                session.run(batch)
                kwise_s.append(perf_counter() - started)
                peer_s.append(run(batch)[0])
            figures = {
                "sequences": len(batch),
                "kwise_ms": 1e3 * statistics.median(kwise_s[NUM_WARM_UPS:]),
                "peer_ms": 1e3 * statistics.median(peer_s[NUM_WARM_UPS:]),
                "ratio": median_ratio(peer_s[NUM_WARM_UPS:], kwise_s[NUM_WARM_UPS:]),
                "factor": subject.factor,
            }
            part = f" of 1/{subject.factor} of the layers" if subject.factor > 1 else ""
            tell(
                f"{subject.name} {precision.value} {cell}: {len(batch)} conversations{part} take "
                f"{figures['peer_ms']:.2f} ms in {name}, {figures['kwise_ms']:.2f} ms in kwise, "
                f"ratio {figures['ratio']:.2f}",
                subject=subject.name,
                precision=precision.value,
                peer=name,
                cell=str(cell),
                max_rows=max_rows,
                **figures,
            )
