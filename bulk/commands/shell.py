"""The common part of `kwise score`, `rank` and `compare`.

The commands read rows as `kwise rerank` does, ask a server, and write one line of JSON per row with
all that is known of its rewards, or tables if the output is a terminal. Each command adds its own
columns (`Report`). All three ask the server for rewards only, because ranks and comparisons follow
from the rewards by the functions that the server uses itself.
"""

import argparse
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kwise.bulk.commands.table import table, terminal_columns
from kwise.bulk.input.row import BadRow, InputRow
from kwise.bulk.output.digits import float32_digits, member_digits
from kwise.bulk.output.json_line import json_line
from kwise.client.channel import DEFAULT_TARGET, DEFAULT_TIMEOUT_S, check_timeout
from kwise.client.errors import RewardServiceError
from kwise.client.several.targets import check_targets
from kwise.errors import InvalidRequest, KwiseError
from kwise.types import Group, Priority, Reward, ScoredGroup

if TYPE_CHECKING:
    from kwise.bulk.scorers.protocol import BulkScorer

# Small windows, so that the first lines appear soon.
_WINDOW_TOKENS, _WINDOW_ROWS = 32_768, 128
_STDIO = "-"


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """The output of one command.

    Attributes:
        fields: returns the keys that a result adds to the JSON object.
        header: the header of the table.
        rows: returns the rows of the table.
        min_responses: the fewest responses that a group may have.
    """

    fields: Callable[[InputRow, ScoredGroup], dict[str, Any]]
    header: tuple[str, ...]
    rows: Callable[[InputRow, ScoredGroup], list[tuple[str, ...]]]
    min_responses: int = 1


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments that all three commands have."""
    parser.add_argument(
        "files",
        metavar="FILE",
        nargs="*",
        help='rows {"prompt": text, messages or token ids, "responses": [text, {"text": text} or '
        "token ids, ...]}, in JSON Lines, a JSON array or Parquet: files, folders or patterns, "
        "gzipped or not; '-' or no FILE is standard input. Other keys are kept, "
        "except those of the result. Each row has a line in the output",
    )
    parser.add_argument(
        "--prompt", metavar="TEXT", help="score one group given on the command line"
    )
    parser.add_argument(
        "--response",
        metavar="TEXT",
        action="append",
        help="a response to --prompt; once per response",
    )
    parser.add_argument(
        "--server",
        metavar="HOST:PORT[,HOST:PORT...]",
        default=DEFAULT_TARGET,
        help="the server, or several with commas between them, as HOST:PORT or as a URI of gRPC "
        f"such as unix:PATH (default: {DEFAULT_TARGET})",
    )
    parser.add_argument(
        "--timeout-s",
        metavar="SECONDS",
        type=float,
        default=DEFAULT_TIMEOUT_S,
        help=f"longest wait without any result (default: {DEFAULT_TIMEOUT_S:g})",
    )
    parser.add_argument(
        "--model",
        metavar="NAME",
        default="",
        help="the model that must answer (default: the first)",
    )
    parser.add_argument(
        "--priority",
        choices=[priority.value for priority in Priority],
        default=Priority.INTERACTIVE.value,
        help="bulk waits behind interactive requests (default: interactive)",
    )
    parser.add_argument(
        "--json", action="store_true", help="write JSON lines even if the output is a terminal"
    )
    parser.add_argument(
        "--output",
        metavar="FILE",
        default=_STDIO,
        help="write to a file, which can be resumed; .parquet and .gz say what they are",
    )
    parser.add_argument(
        "--resume",
        action="store_true",
        help="continue the unfinished run of --output; without one, start a new run",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace an --output that exists")


def run(arguments: argparse.Namespace, report: Report) -> int:
    """Answer every row of the input, and return the exit code.

    It is 0; 1 if a row is bad or a response was not scored; 2 if the command line is wrong.
    """
    if problem := _problem(arguments, report):
        print(f"kwise {arguments.command}: {problem}", file=sys.stderr)
        return 2
    return _run(arguments, report)


def _problem(arguments: argparse.Namespace, report: Report) -> str | None:
    """Return what is wrong with the command line, or None."""
    try:
        check_targets("--server", arguments.server)
        check_timeout("--timeout-s", arguments.timeout_s)
    except (InvalidRequest, ValueError) as error:
        return str(error)
    if arguments.prompt is not None and arguments.files:
        hint = (
            "; write --response before each response"
            if arguments.response and not any(Path(name).exists() for name in arguments.files)
            else ""
        )
        return f"give either files or --prompt, not both: {' '.join(arguments.files)}{hint}"
    if arguments.resume and (arguments.prompt is not None or _STDIO in _names(arguments)):
        return "--resume needs an input that can be read again: give files"
    if arguments.prompt is None:
        return "--response needs --prompt" if arguments.response else None
    return _too_few(len(arguments.response or []), report.min_responses)


def _names(arguments: argparse.Namespace) -> list[str]:
    return arguments.files or [_STDIO]


def _too_few(num_responses: int, min_responses: int) -> str | None:
    """Return why there are too few responses, or None if there are enough."""
    if num_responses >= min_responses:
        return None
    return (
        "there must be at least one response"
        if min_responses == 1
        else "a comparison needs at least two responses"
    )


def _run(arguments: argparse.Namespace, report: Report) -> int:
    # Imported late, because grpc takes a while: --help and a wrong option must not.
    from kwise.bulk.input.files import check_apart, input_files
    from kwise.bulk.job import Job, run_job
    from kwise.bulk.output.files import RunPaths
    from kwise.bulk.output.finish import check_kind

    def group_of(row: Any) -> Group:
        return group_of_row(row, Priority(arguments.priority), report.min_responses)

    rows, files = None, []
    if arguments.prompt is not None:
        fields = {"prompt": arguments.prompt, "responses": arguments.response}
        group = group_of(fields)
        rows = [InputRow(number=1, path="--prompt", line=0, fields=fields, group=group)]
    else:
        files = [file for name in _names(arguments) for file in input_files(name)]
    paths = RunPaths(arguments.output, has_bad_rows=False)
    paths.check(resume=arguments.resume, overwrite=arguments.overwrite)
    check_apart(files, paths.all)
    if not paths.is_stream:
        check_kind(paths.output)

    async def open_scorer() -> "BulkScorer":
        from kwise.bulk.scorers.server import ServerScorer

        return await ServerScorer.connect(
            arguments.server, timeout_s=arguments.timeout_s, model=arguments.model
        )

    def lines_of(row: InputRow, result: ScoredGroup | KwiseError) -> Iterator[bytes]:
        show = _table_lines if paths.is_terminal and not arguments.json else _json_lines
        return show(row, result, report)

    return run_job(
        Job(
            files=files,
            rows=rows,
            group_of=group_of,
            open_scorer=open_scorer,
            paths=paths,
            lines_of=lines_of,
            options={"command": arguments.command, "model": arguments.model},
            window_tokens=_WINDOW_TOKENS,
            window_rows=_WINDOW_ROWS,
            resume=arguments.resume,
            is_quiet=paths.is_stream,
        )
    )


def group_of_row(row: Any, priority: Priority, min_responses: int = 1) -> Group:
    """Return the group of a row.

    Raises:
        BadRow: the row describes no group, or it has pairs of responses that do not exist.
    """
    from kwise.bulk.input.groups import Columns
    from kwise.client.messages import to_pairs

    group = Columns().group(row, priority)
    if problem := _too_few(len(group.responses), min_responses):
        raise BadRow("responses", problem)
    try:
        pairs = to_pairs(row.get("pairs"))
    except (TypeError, ValueError) as error:
        raise BadRow("pairs", str(error)) from None
    for number, pair in enumerate(pairs):
        if max(pair.first, pair.second) >= len(group.responses):
            raise BadRow(
                f"pairs[{number}]",
                f"({pair.first}, {pair.second}) names a response that does not exist; there are "
                f"{len(group.responses)}, counted from 0",
            )
    return group


def responses_of(row: InputRow) -> tuple[Any, ...]:
    """Return the responses of a row that was scored."""
    assert row.group is not None, "the row was scored"
    return row.group.responses


def pairs_of(row: InputRow) -> list[tuple[int, int]] | None:
    """Return the pairs that a row names; None for all."""
    pairs = row.fields.get("pairs")
    return pairs and [(first, second) for first, second in pairs]


def reward_fields(outcome: Reward | KwiseError) -> dict[str, Any]:
    """Return the JSON object of one response's reward or error."""
    if isinstance(outcome, KwiseError):
        return {"error": error_fields(outcome)}
    numbers = {"value": float32_digits(outcome.value), "raw": float32_digits(outcome.raw)}
    fields = {**asdict(outcome), **numbers}
    for name in ("std", "min", "members"):
        del fields[name]
    return fields | member_digits(outcome)


def error_fields(error: KwiseError) -> dict[str, str]:
    """Return the JSON object of an error."""
    if isinstance(error, RewardServiceError):
        return {"code": error.code, "message": error.message}
    return {"code": error.status.name, "message": str(error)}


def _json_lines(row: InputRow, result: ScoredGroup | KwiseError, report: Report) -> Iterator[bytes]:
    if isinstance(result, KwiseError):
        error = error_fields(result)
        if row.problem is not None:
            error["message"] = f"{row.place}: {error['message']}"
        added: dict[str, Any] = {"error": error}
    else:
        added = {
            **report.fields(row, result),
            "model": result.model,
            "fingerprint": result.fingerprint,
            "precision": result.precision,
        }
    fields = row.fields if isinstance(row.fields, dict) else {}
    yield json_line({**fields, **added})


def _table_lines(
    row: InputRow, result: ScoredGroup | KwiseError, report: Report
) -> Iterator[bytes]:
    if isinstance(result, ScoredGroup):  # an error is in the summary
        lines = table(report.header, report.rows(row, result), terminal_columns())
        yield ("\n".join(lines) + "\n\n").encode(sys.stdout.encoding or "utf-8", "replace")
