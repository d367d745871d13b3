"""One run over an input: open the scorer, the output and the input, run the pipeline, sum up."""

import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from kwise.bulk.input.files import InputFile
from kwise.bulk.input.row import InputRow
from kwise.bulk.input.size import estimated_rows
from kwise.bulk.input.windows import FieldsOf, GroupOf, cut_windows, read_input
from kwise.bulk.output.files import RunFiles, RunPaths, StreamOutput
from kwise.bulk.output.run_record import RunRecord
from kwise.bulk.pipeline import LinesOf, Pipeline
from kwise.bulk.progress import Progress
from kwise.bulk.scorers.thread import OpenScorer, ScorerThread
from kwise.bulk.summary import Problems, summary_lines
from kwise.errors import ConfigError
from kwise.train.rankings.open_file import STDIN


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """The input, the scorer and the output of a run.

    Attributes:
        files: the files of the input.
        group_of: returns the group of a row.
        open_scorer: opens the scorer.
        paths: where the output goes.
        lines_of: returns the lines of the output of a row.
        options: the options that decide what is written, as JSON.
        types: the columns of a Parquet file with their types; see `parquet.py`.
        window_tokens, window_rows: the size of a window.
        resume: continue an unfinished run if there is one.
        is_quiet: say nothing at the end of a run in which everything was scored.
        rows: rows that are given instead of files; None to read the files.
        fields_of: returns what `lines_of` needs of a row, because a window holds thousands of them.
        notes: returns remarks on the rows that were written, for the end.
    """

    files: Sequence[InputFile]
    group_of: GroupOf
    open_scorer: OpenScorer
    paths: RunPaths
    lines_of: LinesOf
    options: dict[str, Any]
    window_tokens: int
    window_rows: int
    types: dict[str, str | None] = field(default_factory=dict)
    resume: bool = False
    is_quiet: bool = False
    rows: Sequence[InputRow] | None = None
    fields_of: FieldsOf = lambda row: row
    notes: Callable[[], Sequence[str]] = tuple

    @property
    def can_resume(self) -> bool:
        """True if a run that was stopped can go on."""
        return not self.paths.is_stream and all(file.path != STDIN for file in self.files)


def run_job(job: Job) -> int:
    """Run a job and return the exit code: 1 if a row or a response was not scored, else 0.

    Raises:
        ConfigError: an unfinished run is another one.
        KwiseError: the scorer failed as a whole.
        OSError: the input cannot be read, or the output cannot be written.
    """
    with ScorerThread(job.open_scorer) as scorer:
        return run_with(job, scorer)


def run_with(job: Job, scorer: ScorerThread) -> int:
    """Run a job as `run_job` does, with a scorer that is open."""
    asked = RunRecord(
        options=job.options,
        input=[file.as_json() for file in job.files],
        model=scorer.scorer.identity,
    )
    output: RunFiles | StreamOutput = (
        StreamOutput(job.paths, asked)
        if job.paths.is_stream
        else RunFiles(job.paths, asked, resume=job.resume, types=job.types)
    )
    with output:
        return _run(job, scorer, output)


def _run(job: Job, scorer: ScorerThread, output: RunFiles | StreamOutput) -> int:
    before = output.record.counts
    if output.record.is_read:
        output.finish()
        _say(f"{job.paths.output} is complete: all {before.rows:,} rows of the input were read")
        return int(before.has_failures)
    if before.rows:
        _say(f"going on after row {before.rows:,}")
    problems = Problems()
    progress = Progress(estimated_rows(job.files), before, is_shown=not job.paths.is_terminal)
    pipeline = Pipeline(
        scorer,
        output,
        job.lines_of,
        counts=before,
        on_progress=progress.update,
        on_problem=problems.add,
    )
    try:
        pipeline.run(cut_windows(_rows(job, before.rows), job.window_tokens, job.window_rows))
    except BaseException as error:
        progress.close()
        if job.can_resume and not _is_refused(error, output.record):
            done = output.record.counts.rows
            _say(
                f"stopped; {done:,} row{' is' if done == 1 else 's are'} safe in "
                f"{job.paths.partial}. The same command with --resume goes on"
            )
        raise
    progress.close()
    lines = summary_lines(
        pipeline.counts,
        before,
        problems,
        seconds=progress.elapsed_s,
        bad_rows=str(job.paths.bad_rows) if job.paths.has_bad_rows else "",
    )
    for line in [*(lines[1:] if job.is_quiet else lines), *job.notes()]:
        _say(line)
    return int(pipeline.counts.has_failures)


def _is_refused(error: BaseException, record: RunRecord) -> bool:
    """Return whether the finished lines do not suit the output, so that --resume would not help."""
    return record.is_read and isinstance(error, ConfigError)


def _rows(job: Job, skip_rows: int) -> Iterator[InputRow]:
    if job.rows is not None:
        return iter(job.rows)
    return read_input(job.files, job.group_of, skip_rows, job.fields_of)


def _say(line: str) -> None:
    print(line, file=sys.stderr)
