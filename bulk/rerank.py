"""One run of `kwise rerank`: checks, the scorer, the pipeline, the summary."""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from kwise.bulk.config import RerankConfig
from kwise.bulk.input.files import InputFile, check_apart, input_files
from kwise.bulk.input.groups import Columns
from kwise.bulk.input.size import estimated_rows
from kwise.bulk.input.windows import InputRow, cut_windows, read_input
from kwise.bulk.output.files import RunFiles, RunPaths, StreamOutput
from kwise.bulk.output.finish import check_kind
from kwise.bulk.output.forms import FORMS, FormOptions, Scored
from kwise.bulk.output.run_record import RunRecord
from kwise.bulk.pipeline import Pipeline, RowsOf
from kwise.bulk.progress import Progress
from kwise.bulk.scorers.protocol import BulkScorer
from kwise.bulk.scorers.thread import OpenScorer, ScorerThread
from kwise.bulk.summary import Problems, summary_lines
from kwise.errors import ConfigError
from kwise.train.rankings.open_file import STDIN
from kwise.types import ScoredGroup


def rerank(config: RerankConfig) -> int:
    """Score the input and return the exit code: 1 if a row or a response was not scored, else 0.

    Raises:
        ConfigError: the options do not suit each other, the input, or an unfinished run.
        KwiseError: the scorer failed as a whole.
        OSError: the input cannot be read, or the output cannot be written.
    """
    columns = Columns(
        prompt=config.prompt_column,
        responses=config.responses_column,
        ignored=config.ignore_columns,
    )
    files = input_files(config.input)
    paths = RunPaths(config.output, config.bad_rows)
    if config.resume and config.input == STDIN:
        raise ConfigError("--resume needs an input that can be read again, not standard input")
    paths.check(resume=config.resume, overwrite=config.overwrite)
    check_apart(files, paths.all)
    if not paths.is_stream:
        check_kind(paths.output)
    with ScorerThread(scorer_of(config)) as scorer:
        asked = RunRecord(
            options=config.deciding(),
            input=[file.as_json() for file in files],
            model=scorer.scorer.identity,
        )
        form = FORMS[config.write]
        output: RunFiles | StreamOutput = (
            StreamOutput(paths, asked)
            if paths.is_stream
            else RunFiles(paths, asked, resume=config.resume, types=form.types)
        )
        with output:
            return _run(config, scorer, output, files, columns, paths)


def scorer_of(config: RerankConfig) -> OpenScorer:
    """Return the function that opens the scorer which the options name."""

    async def engine() -> BulkScorer:
        from kwise.bulk.scorers.engine import EngineScorer

        return EngineScorer.load(Path(config.artifact), config.engine())

    async def server() -> BulkScorer:
        from kwise.bulk.scorers.server import ServerScorer

        return await ServerScorer.connect(
            config.server, timeout_s=config.timeout_s, model=config.model
        )

    return engine if config.artifact else server


def _run(
    config: RerankConfig,
    scorer: ScorerThread,
    output: RunFiles | StreamOutput,
    files: list[InputFile],
    columns: Columns,
    paths: RunPaths,
) -> int:
    before = output.record.counts
    if output.record.is_read:
        output.finish()
        _say(f"{paths.output} is complete: all {before.rows:,} rows of the input were read")
        return int(before.has_failures)
    if before.rows:
        _say(f"going on after row {before.rows:,}")
    problems = Problems()
    progress = Progress(estimated_rows(files), before)
    pipeline = Pipeline(
        scorer,
        output,
        rows_of(config),
        counts=before,
        on_progress=progress.update,
        on_problem=problems.add,
    )
    rows = read_input(files, columns, skip_rows=before.rows)
    try:
        pipeline.run(cut_windows(rows, config.window_tokens))
    except BaseException:
        progress.close()
        if not paths.is_stream and config.input != STDIN:
            _say(
                f"stopped; {output.record.counts.rows:,} rows are safe in {paths.partial}. The "
                "same command with --resume goes on"
            )
        raise
    progress.close()
    bad_rows = str(paths.bad_rows) if paths.has_bad_rows else ""
    for line in summary_lines(
        pipeline.counts, before, problems, seconds=progress.elapsed_s, bad_rows=bad_rows
    ):
        _say(line)
    return int(pipeline.counts.has_failures)


def rows_of(config: RerankConfig) -> RowsOf:
    """Return the function that makes the rows of the output of a row of the input."""
    form = FORMS[config.write]
    texts = form.texts if config.texts is None else config.texts
    options = FormOptions(
        texts=texts, top_k=config.top_k, pairs=config.pairs, min_margin=config.min_margin
    )

    def rows(row: InputRow, scored: ScoredGroup) -> Iterator[dict[str, Any]]:
        kept = {name: row.fields.get(name) for name in config.keep}
        for fields in form.rows(Scored.of(row, scored), options):
            number = {"row": row.number} if form.has_number else {}
            yield {**number, **kept, **fields}

    return rows


def _say(line: str) -> None:
    print(line, file=sys.stderr)
