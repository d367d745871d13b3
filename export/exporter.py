"""Checkpoint → artifact, in reading order: read, choose the layout, write the graph, prove it, publish it.

Everything is written to a temporary directory beside the destination and renamed at the end, so a destination either holds a
whole artifact whose parity was checked, or what it held before.
"""

import gc
import json
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from enum import Enum
from importlib.metadata import version
from pathlib import Path
from typing import Any

from msgspec import structs

from kwise.engine.artifact import (
    CHAT_TEMPLATE,
    GOLDEN,
    MANIFEST,
    TOKENIZER,
    Artifact,
    ErrorBounds,
    FileEntry,
    GraphContract,
    Manifest,
    data_name,
    describe_file,
)
from kwise.engine.config import EngineConfig
from kwise.engine.load import new_encoder
from kwise.engine.model.session import GraphSession
from kwise.engine.precision import Precision, parse_precisions
from kwise.errors import ConfigError
from kwise.export.checkpoint import Checkpoint, check_padding, longest_conversation, read_checkpoint
from kwise.export.graphs.padded_graph import export_padded
from kwise.export.graphs.trie_graph import export_trie
from kwise.export.parity import ParityCase, check_parity, reference_cases
from kwise.export.precision.agreement import TextGroup, read_text_groups
from kwise.export.precision.precisions import add_precisions, contract_of
from kwise.export.publishing import check_destination, publish_artifact
from kwise.options import check_bounds, option
from kwise.types import Message

# Golden conversations are scored at every start of a server: short ones, and few.
_NUM_GOLDEN, _GOLDEN_CHARACTERS = 4, 1500


class Layout(Enum):
    """How a batch is laid out in the graph."""

    AUTO = "auto"
    TRIE = "trie"
    PADDED = "padded"


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportConfig:
    """What to export and where to. Raises ConfigError, naming the option and its bound."""

    checkpoint: str = option(
        help="directory or hub name of a sequence-classification checkpoint with one label"
    )
    artifact: str = option(help="directory to write")
    name: str = option(
        "", "the model's name in requests and replies; the artifact directory's by default"
    )
    layout: Layout = option(
        Layout.AUTO, "trie shares prompts and needs a causal model; padded takes any"
    )
    chat_template: str = option(
        "", "file with a Jinja chat template to use instead of the checkpoint's"
    )
    max_tokens: int = option(
        0, "longest conversation; 0 for the model's own limit", minimum=0, maximum=2**31 - 1
    )
    dtype: str = option(
        "fp32",
        "precisions to write, as fp32,int8: fp32 for any runtime, int8 for CPUs, fp16 for GPUs, bf16 for both. Each is measured "
        "against fp32, and must stay within error bounds",
    )
    rankings: str = option(
        "", "rankings of yours to measure precisions on; shipped conversations by default"
    )
    min_agreement: float = option(
        0.0,
        "share of pairs with clear margins that a precision must order as fp32 does; 0 for 0.98 of int8, 0.995 of fp16 and bf16",
        minimum=0,
        maximum=1,
    )
    tolerance: float = option(
        1e-4,
        "largest difference of a reward from the checkpoint's, in units of the raw reward, or of the rewards' standard "
        "deviation where that is above 1",
        exclusive_minimum=0,
        maximum=1e-3,
    )
    reward_mean: float = option(0.0, "served value = (raw - mean) / std")
    reward_std: float = option(1.0, "served value = (raw - mean) / std", exclusive_minimum=0)
    overwrite: bool = option(False, "replace an artifact that is already there")

    def __post_init__(self) -> None:
        check_bounds(self)
        parse_precisions(self.dtype, "--dtype")


def export(config: ExportConfig) -> Artifact:
    """Export, check parity, and publish the artifact.

    Raises:
        ConfigError: the checkpoint is no reward model, or an option does not suit it, or the destination exists.
        RankingsError, OSError: --rankings is no file of rankings.
        ParityError: the graph's rewards are not the checkpoint's, or a precision's not near enough; nothing was written.
    """
    destination = Path(config.artifact).resolve()
    check_destination(destination, overwrite=config.overwrite)
    text_groups = read_text_groups(config.rankings)  # first, because it may have mistakes
    checkpoint = read_checkpoint(config.checkpoint, config.chat_template)
    layout = _layout(config, checkpoint)
    manifest = _describe(config, checkpoint, layout)
    # Before the graph is written: whatever exporting does to the model, the reference is the checkpoint as it was read.
    cases = reference_cases(checkpoint.model, checkpoint.tokenizer, manifest.max_tokens)
    destination.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=f".{destination.name}-", dir=destination.parent))
    try:
        graph = _write(checkpoint, layout, work)
        # The weights need not be in memory beside those of the session that reads the artifact; tracing leaves cycles.
        del checkpoint
        gc.collect()
        manifest = _prove(manifest, graph, cases, text_groups, config, work)
        publish_artifact(work, destination)
    except BaseException:
        shutil.rmtree(work, ignore_errors=True)
        raise
    return Artifact(path=Path(config.artifact), manifest=manifest, golden=())


def _layout(config: ExportConfig, checkpoint: Checkpoint) -> Layout:
    """Raises ConfigError where the model cannot have the layout that was asked for."""
    layout = config.layout
    if layout is Layout.AUTO:
        layout = Layout.TRIE if checkpoint.shares_prefixes else Layout.PADDED
    elif layout is Layout.TRIE and not checkpoint.shares_prefixes:
        raise ConfigError(
            f"--layout trie: {type(checkpoint.model).__name__} cannot share prompts; use --layout padded"
        )
    if layout is Layout.PADDED:
        check_padding(checkpoint)
    return layout


def _describe(config: ExportConfig, checkpoint: Checkpoint, layout: Layout) -> Manifest:
    """The manifest but for what is measured later."""
    tokenizer, pad_token_id = checkpoint.tokenizer, checkpoint.model.config.pad_token_id
    if (
        layout is Layout.PADDED and pad_token_id is None
    ):  # an encoder, which masks whatever stands there
        pad_token_id = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else 0
    return Manifest(
        name=config.name or Path(config.artifact).resolve().name,
        layout="trie" if layout is Layout.TRIE else "padded",
        graphs={},
        error_bounds={},
        max_tokens=longest_conversation(checkpoint, config.max_tokens),
        vocab_size=checkpoint.model.get_input_embeddings().num_embeddings,
        pad_token_id=pad_token_id,
        causal=checkpoint.causal,
        special_tokens={
            name: str(token)
            for name, token in tokenizer.special_tokens_map.items()
            if isinstance(token, str)
        },
        files={},
        reward_mean=config.reward_mean,
        reward_std=config.reward_std,
        provenance=_provenance(checkpoint),
    )


def _write(checkpoint: Checkpoint, layout: Layout, work: Path) -> GraphContract:
    """Write graph, weights, tokenizer and template into the directory `work`.

    Returns the contract of the fp32 graph.
    """
    tokenizer = checkpoint.tokenizer
    export_graph = export_trie if layout is Layout.TRIE else export_padded
    graph = export_graph(checkpoint.model, work)
    tokenizer.backend_tokenizer.save(str(work / TOKENIZER))
    if tokenizer.chat_template is not None:
        (work / CHAT_TEMPLATE).write_text(tokenizer.chat_template, encoding="utf-8")
    return graph


def _prove(
    manifest: Manifest,
    graph: GraphContract,
    cases: Sequence[ParityCase],
    text_groups: Sequence[TextGroup],
    config: ExportConfig,
    work: Path,
) -> Manifest:
    """Check that what `work` holds gives the rewards of `cases`, add the other precisions, and make it an artifact: golden
    rewards, manifest."""
    requested = parse_precisions(config.dtype, "--dtype")
    graphs = {
        precision: contract_of(precision, graph)
        for precision in Precision
        if precision in {Precision.FP32, *requested}
    }
    manifest = structs.replace(manifest, graphs=graphs, files=_files(work))
    artifact = Artifact(path=work, manifest=manifest, golden=())
    encoder, session = new_encoder(artifact, EngineConfig()), GraphSession(artifact)
    report = check_parity(
        cases, encoder, session, layout=manifest.layout, tolerance=config.tolerance
    )
    error_bounds = {
        Precision.FP32: ErrorBounds(
            max_error=report.tolerance, max_batch_change=report.tolerance, report=asdict(report)
        )
    }
    golden = _golden_cases(cases)
    error_bounds |= add_precisions(
        artifact,
        encoder,
        session,
        requested,
        golden,
        text_groups=text_groups,
        min_agreement=config.min_agreement,
    )
    del session  # it maps the weights
    if Precision.FP32 not in requested:
        for name in (graph.file, data_name(graph.file)):
            (work / name).unlink(missing_ok=True)
        del graphs[Precision.FP32], error_bounds[Precision.FP32]
    _write_golden(work / GOLDEN, golden)
    manifest = structs.replace(
        manifest,
        graphs=graphs,
        error_bounds={precision: error_bounds[precision] for precision in graphs},
        files=_files(work),
    ).signed()
    (work / MANIFEST).write_text(manifest.to_json(), encoding="utf-8")
    return manifest


def _files(directory: Path) -> dict[str, FileEntry]:
    return {path.name: describe_file(path) for path in sorted(directory.iterdir())}


def _provenance(checkpoint: Checkpoint) -> dict[str, Any]:
    return {
        "checkpoint": Path(checkpoint.name).name,
        "model_type": checkpoint.model.config.model_type,
        "parameters": checkpoint.model.num_parameters(),
        "exported_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": {
            name: version(name)
            for name in ("kwise", "torch", "transformers", "optimum-onnx", "onnx", "onnxruntime")
        },
    }


def _golden_cases(cases: Sequence[ParityCase]) -> list[ParityCase]:
    """The first few short conversations of text."""
    return [
        case
        for case in cases
        if isinstance(case.response, str) and len(_golden_line(case)) < _GOLDEN_CHARACTERS
    ][:_NUM_GOLDEN]


def _golden_line(case: ParityCase) -> str:
    prompt = [asdict(message) for message in case.prompt if isinstance(message, Message)]
    return json.dumps(
        {"prompt": prompt, "response": case.response, "reward": case.reward}, ensure_ascii=False
    )


def _write_golden(path: Path, golden: Sequence[ParityCase]) -> None:
    path.write_text("".join(f"{_golden_line(case)}\n" for case in golden), encoding="utf-8")
