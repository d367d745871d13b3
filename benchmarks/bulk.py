"""Measure the throughput of bulk reranking relative to the model alone and to transformers.

Physics: the passes of the model limit the rate. Reading, tokenising, planning and writing happen
while they run, on the same cores. Two ratios, each within a round:

    session      time of the passes alone, of the same sequences through the server's policy and
                 prompt cache in this process, relative to `kwise rerank` from a file to a file
    pipeline     time per group of transformers' pipeline "text-classification" at its best batch
                 size, on the same texts with the same threads, relative to `kwise rerank`

The first ratio is also given in CPU time, which other load on the machine changes less. The texts
are random words of one token each, so that their lengths are those of the cell.
"""

import json
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from kwise.benchmarks.options import BulkBenchConfig, Cell
from kwise.benchmarks.result_file import write_results
from kwise.benchmarks.workload import run_queued
from kwise.bulk.config import RerankConfig
from kwise.bulk.job import run_with
from kwise.bulk.rerank import job_of
from kwise.bulk.scorers.thread import ScorerThread
from kwise.engine.artifact.read import Artifact, read_artifact
from kwise.engine.config import EngineConfig
from kwise.engine.load import load_tokenizer, new_encoder
from kwise.engine.model.layouts.table import LAYOUTS
from kwise.engine.model.session import GraphSession
from kwise.engine.sequence import EncodedSequence
from kwise.engine.text.encoder import ConversationEncoder
from kwise.types import Group, Message

Texts = tuple[str, list[str]]
"""A prompt and its responses."""


def run(config: BulkBenchConfig) -> None:
    """Print the figures and write them to `config.json`."""
    artifact, cell = read_artifact(Path(config.artifact)), config.parsed_cell()
    engine = EngineConfig(threads=config.threads)
    encoder = new_encoder(artifact, engine)
    session = GraphSession(
        artifact,
        threads=engine.runtime_threads,
        prompt_cache_bytes=engine.effective_prompt_cache_bytes,
    )
    words = _words(artifact)
    pipeline = _Pipeline(config, engine.runtime_threads) if config.checkpoint else None
    rounds: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as directory:
        options = _rerank_config(config, Path(directory))
        Path(options.input).touch()
        with ScorerThread(job_of(options).open_scorer) as scorer:
            for repeat in range(-1, config.repeats):  # -1 is the warm-up
                groups = _groups(words, cell, config.groups, seed=repeat + 1)
                sequences = [_encoded(encoder, group) for group in groups]
                Path(options.input).write_text(_lines(groups), encoding="utf-8")
                session_cpu_s = -time.process_time()
                session_s, _ = run_queued(
                    session,
                    sequences,
                    engine.effective_max_batch_tokens,
                    LAYOUTS[artifact.manifest.layout].new_batch,
                )
                session_cpu_s += time.process_time()
                started, bulk_cpu_s = time.perf_counter(), -time.process_time()
                if run_with(job_of(options), scorer):
                    raise RuntimeError("a group was not scored")
                bulk_s = time.perf_counter() - started
                bulk_cpu_s += time.process_time()
                pipeline_s = {} if pipeline is None else pipeline.seconds(groups)
                if repeat >= 0:
                    tokens = sum(s.num_tokens for group in sequences for s in group)
                    rounds.append(
                        {
                            "session_per_s": len(groups) / session_s,
                            "bulk_per_s": len(groups) / bulk_s,
                            "bulk_tokens_per_s": tokens / bulk_s,
                            "session_cpu_s": session_cpu_s,
                            "bulk_cpu_s": bulk_cpu_s,
                            "pipeline_per_s": {
                                size: config.pipeline_groups / seconds
                                for size, seconds in pipeline_s.items()
                            },
                        }
                    )
                    print(_round_line(rounds[-1]), flush=True)
    results = {"artifact": artifact.manifest.name, "rounds": rounds, **_ratios(rounds)}
    print(_result_line(results))
    if config.json:
        write_results(config.json, "bulk", config, results)


def _rerank_config(config: BulkBenchConfig, directory: Path) -> RerankConfig:
    return RerankConfig(
        input=str(directory / "in.jsonl"),
        output=str(directory / "out.jsonl"),
        artifact=config.artifact,
        threads=config.threads,
        overwrite=True,
    )


def _words(artifact: Artifact) -> list[str]:
    """Return words that are one token each where they follow a space."""
    vocabulary = load_tokenizer(artifact).get_vocab()
    words = [token[1:] for token in vocabulary if token[:1] in ("Ġ", "▁")]
    return sorted(word for word in words if word.isascii() and word.isalpha() and word.islower())


def _groups(words: Sequence[str], cell: Cell, count: int, *, seed: int) -> list[Texts]:
    rng = np.random.default_rng(seed)

    def text(length: int) -> str:
        return " ".join(words[index] for index in rng.integers(0, len(words), length))

    return [(text(cell.P), [text(cell.R) for _ in range(cell.K)]) for _ in range(count)]


def _lines(groups: Sequence[Texts]) -> str:
    rows = [{"prompt": prompt, "responses": responses} for prompt, responses in groups]
    return "".join(json.dumps(row) + "\n" for row in rows)


def _encoded(encoder: ConversationEncoder, group: Texts) -> list[EncodedSequence]:
    prompt, responses = group
    messages = (Message(role="user", content=prompt),)
    outcomes = encoder.encode(Group(prompt=messages, responses=tuple(responses)))
    return [outcome for outcome in outcomes if isinstance(outcome, EncodedSequence)]


class _Pipeline:
    """transformers' pipeline "text-classification" with a checkpoint, in fp32."""

    def __init__(self, config: BulkBenchConfig, threads: int) -> None:
        import torch
        import transformers

        torch.set_num_threads(threads)
        self._num_groups = config.pipeline_groups
        self._batch_sizes = config.batch_sizes
        tokenizer = transformers.AutoTokenizer.from_pretrained(config.checkpoint)
        self._template = tokenizer.apply_chat_template
        self._classify = transformers.pipeline(
            "text-classification", model=config.checkpoint, tokenizer=tokenizer, device="cpu"
        )
        # A tokenizer of a causal model often has no padding token, and the model's config has one.
        pad_id = self._classify.model.config.pad_token_id
        tokenizer.pad_token = tokenizer.convert_ids_to_tokens(pad_id)

    def seconds(self, groups: Sequence[Texts]) -> dict[int, float]:
        """Return the seconds that the first groups take, by batch size."""
        texts = [
            self._template(
                [
                    {"role": "user", "content": prompt},
                    {"role": "assistant", "content": response},
                ],
                tokenize=False,
            )
            for prompt, responses in groups[: self._num_groups]
            for response in responses
        ]
        seconds = {}
        for size in self._batch_sizes:
            started = time.perf_counter()
            self._classify(texts, batch_size=size, function_to_apply="none")
            seconds[size] = time.perf_counter() - started
        return seconds


def _ratios(rounds: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return the medians of the rates and of the ratios within a round."""
    ratios: dict[str, Any] = {
        "session_per_s": statistics.median(r["session_per_s"] for r in rounds),
        "bulk_per_s": statistics.median(r["bulk_per_s"] for r in rounds),
        "share_of_session": statistics.median(r["bulk_per_s"] / r["session_per_s"] for r in rounds),
        "share_in_cpu_time": statistics.median(
            r["session_cpu_s"] / r["bulk_cpu_s"] for r in rounds
        ),
        "times_pipeline": None,
    }
    if rounds[0]["pipeline_per_s"]:
        ratios["times_pipeline"] = statistics.median(
            r["bulk_per_s"] / max(r["pipeline_per_s"].values()) for r in rounds
        )
    return ratios


def _round_line(figures: dict[str, Any]) -> str:
    pipeline = ", ".join(
        f"{rate:.3f} at batch size {size}" for size, rate in figures["pipeline_per_s"].items()
    )
    return "groups/s: rerank {bulk_per_s:.3f}, session alone {session_per_s:.3f}".format(
        **figures
    ) + (f", transformers' pipeline {pipeline}" if pipeline else "")


def _result_line(results: dict[str, Any]) -> str:
    line = f"rerank reaches {results['share_of_session']:.3f} of the session's rate "
    line += f"({results['share_in_cpu_time']:.3f} in CPU time)"
    if results["times_pipeline"] is not None:
        line += f" and {results['times_pipeline']:.2f} times the pipeline's"
    return line
