"""Export a checkpoint: read it, write the graph, check its rewards, and publish the artifact.

Everything is written to a temporary directory beside the destination and published at the end, so
the destination holds either a complete artifact whose parity was checked, or what it held before.
"""

import gc
import json
import shutil
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path

from msgspec import structs

from kwise.engine.artifact.files import FileEntry, describe_file
from kwise.engine.artifact.golden import read_golden
from kwise.engine.artifact.manifest import ErrorBounds, GraphContract, Manifest, read_manifest
from kwise.engine.artifact.names import CHAT_TEMPLATE, GOLDEN, MANIFEST, TOKENIZER, data_name
from kwise.engine.artifact.read import Artifact
from kwise.engine.config import EngineConfig
from kwise.engine.load import new_encoder
from kwise.engine.model.devices import Kind
from kwise.engine.model.session import GraphSession
from kwise.engine.precision import Precision, parse_precisions
from kwise.engine.select import can_compute
from kwise.errors import ConfigError
from kwise.export.checkpoint import Checkpoint, check_padding, longest_conversation, read_checkpoint
from kwise.export.config import ExportConfig, Layout
from kwise.export.graphs.cuda_graph import write_cuda_graph
from kwise.export.manifest import describe, other_template_notes, scale_notes
from kwise.export.parity import check_cuda_graph, check_parity, encoded
from kwise.export.parity_cases import ParityCase, check_tokens, reference_cases
from kwise.export.precision.precisions import add_precisions, contract_of
from kwise.export.precision.text_groups import TextGroup, read_text_groups
from kwise.export.publishing import check_destination, publish_artifact
from kwise.export.rehearsal import EXPORTS, LayoutName, Rehearsal, possible_layouts, rehearse
from kwise.libraries.errors import library_errors
from kwise.publish import check_writable
from kwise.train.checkpoint.pooling import HEADER_KEY
from kwise.train.checkpoint.transformers_versions import writes_type_ids
from kwise.train.model.architecture.probe import conversation_probe
from kwise.train.model.response_header import check_header, pooling_notes
from kwise.train.model.threads import use_available_cpus
from kwise.types import Message

# A server scores the golden conversations at every start, so they are few and short.
_NUM_GOLDEN, _GOLDEN_CHARACTERS = 4, 1500


def _silent(line: str) -> None:
    """Print nothing."""


def export(
    config: ExportConfig,
    progress: Callable[[str], None] = _silent,
) -> Artifact:
    """Export, check parity, and publish the artifact.

    Args:
        config: The options.
        progress: Gets each note on the checkpoint and the rankings, and a line at the start of each
            stage, because some take minutes.

    Returns:
        The artifact, without its golden conversations.

    Raises:
        ConfigError: The checkpoint is not a reward model, or an option does not suit it, or the
            destination exists.
        ArtifactError: A server would refuse the artifact, which is a bug. Nothing was written.
        RankingsError: `rankings` has rows that cannot be read.
        OSError: A file cannot be read or written.
        ParityError: The graph's rewards differ from the checkpoint's, or a precision does not rank
            as fp32 does. Nothing was written.
    """
    use_available_cpus()
    destination = Path(config.artifact).resolve()
    check_destination(destination, overwrite=config.overwrite)
    check_writable("ARTIFACT", destination)
    text_groups = read_text_groups(config.rankings, progress)  # first, because it may have mistakes
    if config.rankings and parse_precisions(config.dtype, "--dtype") == (Precision.FP32,):
        progress("--rankings is not used, because --dtype names no precision to compare")
    progress(f"reading {config.checkpoint}")
    with library_errors(f"CHECKPOINT {config.checkpoint}: cannot be read"):
        checkpoint = read_checkpoint(config.checkpoint, config.chat_template, config.template_date)
    for note in (
        *checkpoint.notes,
        *checkpoint.template.notes,
        *other_template_notes(checkpoint),
        *scale_notes(config, checkpoint),
        *pooling_notes(checkpoint.tokenizer, checkpoint.statements.response_header),
    ):
        progress(f"note: {note}")
    subject = f"CHECKPOINT {config.checkpoint}: {type(checkpoint.model).__name__}"
    with library_errors(f"{subject} cannot be examined"):
        rehearsal = _rehearsal(config, checkpoint)
        if rehearsal.layout == "padded":
            check_padding(checkpoint)
        manifest = describe(config, checkpoint, rehearsal)
    for reason in rehearsal.reasons:
        limit = f"up to {rehearsal.max_tokens} tokens"
        progress(f"note: the layout is {rehearsal.layout}, {limit}: {reason}")
    progress(f"computing rewards of {type(checkpoint.model).__name__} to compare with")
    # Before the graph is written, because exporting might change the model.
    with library_errors(f"{subject}: its rewards cannot be computed"):
        cases = reference_cases(
            checkpoint.model,
            checkpoint.tokenizer,
            manifest.max_tokens,
            lambda note: progress(f"note: {note}"),
        )
    destination.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=f".{destination.name}-", dir=destination.parent))
    try:
        layout = rehearsal.layout
        progress(f"writing the graph in the {layout} layout")
        advice = "try --layout padded" if layout == "trie" else ""
        with library_errors(f"{subject} cannot be exported in the {layout} layout", advice=advice):
            graph = _write(checkpoint, layout, work)
        # Free the weights before a session reads them again. Tracing leaves reference cycles.
        del checkpoint
        gc.collect()
        progress(f"comparing the graph's rewards of {len(cases)} conversations")
        with library_errors(f"{subject}: the exported graph does not run", advice=advice):
            manifest = _prove(manifest, graph, cases, text_groups, config, work, progress)
        check_destination(destination, overwrite=config.overwrite)  # it may have changed meanwhile
        publish_artifact(work, destination)
    except BaseException:
        shutil.rmtree(work, ignore_errors=True)
        raise
    return Artifact(path=Path(config.artifact), manifest=manifest, golden=())


def _rehearsal(config: ExportConfig, checkpoint: Checkpoint) -> Rehearsal:
    """Return the layout to export and the artifact's limit in tokens, measured on a small copy.

    Raises:
        ConfigError: The model cannot have the requested layout or limit.
    """
    model = checkpoint.model
    max_tokens = longest_conversation(checkpoint, config.max_tokens)
    layouts = possible_layouts(model)
    if config.layout is not Layout.AUTO:
        requested = config.layout.value
        if requested not in layouts and checkpoint.statements.response_header:
            raise ConfigError(
                f"--layout {requested}: the model reads its reward with mean pooling "
                f"({HEADER_KEY} in config.json), which needs the layout trie"
            )
        if requested not in layouts:
            raise ConfigError(
                f"--layout {requested}: {type(model).__name__} cannot share prompts; use --layout "
                "padded"
            )
        layouts = [requested]
    if "trie" not in layouts:
        check_padding(checkpoint)
    check_tokens(model, checkpoint.tokenizer)
    if checkpoint.statements.response_header is not None:
        check_header(checkpoint.name, checkpoint.tokenizer, checkpoint.statements.response_header)
    probe = conversation_probe(checkpoint.tokenizer, model)
    rehearsal = rehearse(model, probe, layouts, max_tokens)
    limit = rehearsal.max_tokens
    if limit is not None and config.max_tokens > limit:
        raise ConfigError(
            f"--max-tokens is {config.max_tokens}; it must be at most {limit}, because beyond that "
            f"{rehearsal.reasons[-1]}"
        )
    return replace(rehearsal, max_tokens=limit or max_tokens)


def _write(checkpoint: Checkpoint, layout: LayoutName, work: Path) -> GraphContract:
    """Write graph, weights, tokenizer and template into the directory `work`.

    Returns the contract of the fp32 graph.
    """
    tokenizer = checkpoint.tokenizer
    with_type_ids = writes_type_ids(tokenizer)
    graph = EXPORTS[layout](checkpoint.model, work, with_type_ids=with_type_ids)
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
    progress: Callable[[str], None],
) -> Manifest:
    """Check parity of the graph in `work`, add the other precisions, and complete the artifact.

    Args:
        manifest: As from `_describe`.
        graph: The contract of the graph in fp32.
        cases: The checkpoint's rewards.
        text_groups: Text to compare precisions on.
        work: The directory to complete, with golden conversations and the manifest.

    Raises:
        ParityError: As `export`.
    """
    requested = parse_precisions(config.dtype, "--dtype")
    graphs = {
        precision: contract_of(precision, graph, mean_pooling=manifest.mean_pooling)
        for precision in Precision
        if precision in {Precision.FP32, *requested}
    }
    manifest = structs.replace(manifest, graphs=graphs, files=_files(work))
    artifact = Artifact(path=work, manifest=manifest, golden=())
    encoder = new_encoder(artifact, EngineConfig())
    session = GraphSession(artifact, threads=EngineConfig().runtime_threads)
    report = check_parity(
        cases, encoder, session, layout=manifest.layout, tolerance=config.tolerance
    )
    error_bounds = {
        Precision.FP32: ErrorBounds(
            max_error=report.tolerance, max_batch_change=report.tolerance, report=asdict(report)
        )
    }
    golden = _golden_cases(cases)
    if lower := [precision.value for precision in requested if precision is not Precision.FP32]:
        progress(f"writing {', '.join(lower)}, to be compared with fp32")
    error_bounds |= add_precisions(
        artifact,
        encoder,
        session,
        requested,
        golden,
        text_groups=text_groups,
        min_agreement=config.min_agreement,
        tell=progress,
    )
    sequences = [encoded(encoder, case) for case in golden]
    expected = session.run(sequences).rewards
    del session  # it maps the weights
    cuda_graphs = {}
    if manifest.layout == "trie":
        cuda_graphs = {
            precision: write_cuda_graph(work, contract)
            for precision, contract in graphs.items()
            if can_compute(precision, Kind.CUDA)
        }
        check_cuda_graph(
            artifact, cuda_graphs[Precision.FP32], sequences, expected, report.tolerance
        )
    if Precision.FP32 not in requested:
        unused = cuda_graphs.pop(Precision.FP32, graph).file
        for name in {graph.file, unused, data_name(graph.file)}:
            (work / name).unlink(missing_ok=True)
        del graphs[Precision.FP32], error_bounds[Precision.FP32]
    _write_golden(work / GOLDEN, golden)
    manifest = structs.replace(
        manifest,
        graphs=graphs,
        cuda_graphs=cuda_graphs,
        error_bounds={precision: error_bounds[precision] for precision in graphs},
        files=_files(work),
    ).signed()
    (work / MANIFEST).write_text(manifest.to_json(), encoding="utf-8")
    # As a server reads them. It would also hash the files, whose hashes were just taken.
    read_manifest(work)
    read_golden(work, manifest.num_members)
    return manifest


def _files(directory: Path) -> dict[str, FileEntry]:
    return {path.name: describe_file(path) for path in sorted(directory.iterdir())}


def _golden_cases(cases: Sequence[ParityCase]) -> list[ParityCase]:
    """Return the first few short conversations that are text, not token ids."""
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
