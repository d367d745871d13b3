"""One run of `kwise rerank`: checks, and the job that its options describe."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from kwise.bulk.config import RerankConfig
from kwise.bulk.input.files import check_apart, input_files
from kwise.bulk.input.groups import Columns
from kwise.bulk.input.row import InputRow
from kwise.bulk.input.windows import MAX_WINDOW_ROWS
from kwise.bulk.job import Job, run_job
from kwise.bulk.output.files import RunPaths
from kwise.bulk.output.finish import check_kind
from kwise.bulk.output.forms import FORMS, FormOptions, Scored, check_kept
from kwise.bulk.output.json_line import json_line
from kwise.bulk.pipeline import LinesOf
from kwise.bulk.scorers.protocol import BulkScorer, GroupResult
from kwise.bulk.scorers.thread import OpenScorer
from kwise.client.several.targets import check_targets
from kwise.errors import ConfigError, InvalidRequest
from kwise.train.rankings.open_file import STDIN
from kwise.types import ScoredGroup


def rerank(config: RerankConfig) -> int:
    """Score the input and return the exit code: 1 if a row or a response was not scored, else 0.

    Raises:
        ConfigError: the options do not suit each other, the input, or an unfinished run.
        KwiseError: the scorer failed as a whole.
        OSError: the input cannot be read, or the output cannot be written.
    """
    return run_job(job_of(config))


def job_of(config: RerankConfig) -> Job:
    """Check the options, and return the job that they describe.

    Raises:
        ConfigError: the options do not suit each other or the input, or the output exists.
    """
    columns = Columns(
        prompt=config.prompt_column,
        responses=config.responses_column,
        ignored=config.ignore_columns,
    )
    if config.server:
        try:
            check_targets("--server", config.server)
        except InvalidRequest as error:
            raise ConfigError(str(error)) from None
    files = input_files(config.input)
    paths = RunPaths(config.output, config.bad_rows)
    if config.resume and config.input == STDIN:
        raise ConfigError("--resume needs an input that can be read again, not standard input")
    paths.check(resume=config.resume, overwrite=config.overwrite)
    check_apart(files, paths.all)
    if not paths.is_stream:
        check_kind(paths.output)
    types = FORMS[config.write].columns(config.keep, texts=_has_texts(config))
    kept = KeptColumns(config.keep)
    return Job(
        files=files,
        group_of=columns.group,
        open_scorer=scorer_of(config),
        paths=paths,
        lines_of=lines_of(config, kept),
        options=config.deciding(),
        types=types,
        window_tokens=config.effective_window_tokens,
        window_rows=MAX_WINDOW_ROWS,
        resume=config.resume,
        fields_of=kept.present,
        notes=kept.notes,
    )


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


def _has_texts(config: RerankConfig) -> bool:
    return FORMS[config.write].texts if config.texts is None else config.texts


class KeptColumns:
    """The columns that are copied to the output. Rows without one of them have null there."""

    def __init__(self, names: Sequence[str]) -> None:
        self._names = names
        self._num_missing: Counter[str] = Counter()

    def present(self, row: Any) -> dict[str, Any]:
        """Return those of the columns that a row has."""
        if not isinstance(row, dict):
            return {}
        return {name: row[name] for name in self._names if name in row}

    def of(self, fields: Mapping[str, Any]) -> dict[str, Any]:
        """Return the columns of a row."""
        self._num_missing.update(name for name in self._names if name not in fields)
        return {name: fields.get(name) for name in self._names}

    def notes(self) -> list[str]:
        """Return a line for each column that rows lack."""
        return [
            f"--keep {name}: {num:,} rows have no such column, and null was written"
            for name, num in self._num_missing.items()
        ]


def lines_of(config: RerankConfig, kept: KeptColumns) -> LinesOf:
    """Return the function that makes the lines of the output of a row. A bad row has none."""
    form = FORMS[config.write]
    options = FormOptions(
        texts=_has_texts(config),
        top_k=config.top_k,
        pairs=config.pairs,
        min_margin=config.min_margin,
    )

    def lines(row: InputRow, result: GroupResult) -> Iterator[bytes]:
        if not isinstance(result, ScoredGroup):
            return
        copied = kept.of(row.fields)
        for fields in form.rows(Scored.of(row, result), options):
            number = {"row": row.number} if form.has_number else {}
            check_kept(copied, fields)
            yield json_line({**number, **copied, **fields})

    return lines
