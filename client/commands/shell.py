"""The common part of `kwise score`, `rank` and `compare`.

It reads groups from files or the command line, keeps them in flight together, and writes JSON
lines, or tables if the output is a terminal. Each command adds its own columns (`Report`). All
three ask the server for rewards only, because ranks and comparisons follow from the rewards by the
functions that the server uses itself.
"""

import argparse
import gzip
import io
import json
import sys
import zlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from kwise.client.channel import DEFAULT_TARGET, DEFAULT_TIMEOUT_S, check_target, check_timeout
from kwise.client.commands.table import table, terminal_columns
from kwise.client.errors import RewardServiceError
from kwise.errors import InvalidRequest, KwiseError
from kwise.json_object import json_reason, object_of_pairs
from kwise.meanings import Meaning, row_meaning, says_nothing
from kwise.types import Group, Priority, Reward, ScoredGroup


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One line of the input.

    Attributes:
        where: FILE:LINE.
        fields: the JSON object as it was read.
        responses: the responses of the group.
        pairs: the pairs to compare; None for all.
        problem: the reason why the line is not a group; None if it is one.
    """

    where: str
    fields: dict[str, Any]
    responses: list[Any] = field(default_factory=list)
    pairs: list[tuple[int, int]] | None = None
    problem: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """The output of one command.

    Attributes:
        fields: returns the keys that a result adds to the JSON object.
        header: the header of the table.
        rows: returns the rows of the table.
        min_responses: the fewest responses that a group may have.
    """

    fields: Callable[[Line, ScoredGroup], dict[str, Any]]
    header: tuple[str, ...]
    rows: Callable[[Line, ScoredGroup], list[tuple[str, ...]]]
    min_responses: int = 1


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments that all three commands have."""
    parser.add_argument(
        "files",
        metavar="FILE",
        nargs="*",
        help='JSON lines {"prompt": text, messages or token ids, "responses": [text, '
        '{"text": text} or token ids, ...]}, gzipped or not; '
        "'-' or no FILE is standard input. Other keys are kept, "
        "except those of the result. Each line that is not blank has a line in the output",
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
        metavar="HOST:PORT",
        default=DEFAULT_TARGET,
        help=f"the server, or a URI of gRPC such as unix:PATH (default: {DEFAULT_TARGET})",
    )
    parser.add_argument(
        "--timeout-s",
        metavar="SECONDS",
        type=float,
        default=DEFAULT_TIMEOUT_S,
        help=f"longest wait without any result (default: {DEFAULT_TIMEOUT_S:g})",
    )
    parser.add_argument(
        "--model", metavar="NAME", default="", help="the model that must answer (default: any)"
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


def run(arguments: argparse.Namespace, report: Report) -> int:
    """Answer every line of the input, and return the exit code.

    It is 0; 1 if a line is bad or a response was not scored; 2 if the command line is wrong.
    """
    if problem := _problem(arguments, report):
        print(f"kwise {arguments.command}: {problem}", file=sys.stderr)
        return 2
    return _run(arguments, report)


def _problem(arguments: argparse.Namespace, report: Report) -> str | None:
    """Return the error of the command line, or None."""
    try:
        check_target("--server", arguments.server)
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
    # Before the server is contacted, so that a mistyped name is reported at once.
    if missing := [
        name for name in arguments.files or [] if name != "-" and not Path(name).exists()
    ]:
        return f"{missing[0]}: no such file"
    if arguments.prompt is None:
        return "--response needs --prompt" if arguments.response else None
    return _too_few(arguments.response or [], report.min_responses)


def _too_few(responses: Sequence[Any], min_responses: int) -> str | None:
    """Return why there are too few responses, or None if there are enough."""
    if len(responses) >= min_responses:
        return None
    return (
        "there must be at least one response"
        if min_responses == 1
        else "a comparison needs at least two responses"
    )


def _run(arguments: argparse.Namespace, report: Report) -> int:
    # Imported late, because grpc takes a while: --help and a wrong option must not.
    from kwise.client.sync import RewardClient

    failures: list[str] = []

    def failed(where: str, problem: object) -> None:
        failures.append(where)
        print(f"{where}: {problem}", file=sys.stderr)

    in_flight: deque[Line] = deque()

    def groups_of(lines: Iterable[tuple[str, str]]) -> Iterator[Group]:
        for where, text in lines:
            try:
                line, group = read_line(
                    where, text, Priority(arguments.priority), report.min_responses
                )
            except (TypeError, ValueError) as error:
                failed(where, error)
                in_flight.append(
                    Line(where=where, fields=_fields_of_bad_line(text), problem=str(error))
                )
                continue
            in_flight.append(line)
            yield group

    def groups() -> Iterator[Group]:
        if arguments.prompt is not None:
            fields = {"prompt": arguments.prompt, "responses": arguments.response}
            yield from groups_of([("--prompt", json.dumps(fields))])
            return
        for name in arguments.files or ["-"]:
            try:
                yield from groups_of(_texts(name))
            except OSError as error:
                failed(name, error.strerror or error)

    with RewardClient(
        arguments.server, timeout_s=arguments.timeout_s, model=arguments.model
    ) as client:
        client.wait_until_ready(min(5.0, arguments.timeout_s))
        show = _show_table if sys.stdout.isatty() and not arguments.json else _show_json

        def show_bad_lines() -> None:
            """Show the bad lines before the next group. Input and output lines correspond."""
            while in_flight and in_flight[0].problem is not None:
                line = in_flight.popleft()
                show(line, InvalidRequest(line.where, line.problem or ""), report)

        for result in client.score_many(groups()):
            show_bad_lines()
            line = in_flight.popleft()
            for problem in _problems(result):
                failed(line.where, problem)
            show(line, result, report)
        show_bad_lines()
    return 1 if failures else 0


def _problems(result: ScoredGroup | KwiseError) -> Iterator[str]:
    """Yield the error of the group, or of each response without a reward."""
    if isinstance(result, KwiseError):
        yield str(result)
        return
    for index, outcome in enumerate(result.rewards):
        if isinstance(outcome, KwiseError):
            message = error_fields(outcome)["message"]
            # An error about a response names it in its message.
            is_named = outcome.response is not None
            yield message if is_named else f"responses[{index}]: {message}"


def read_line(
    where: str, text: str, priority: Priority, min_responses: int = 1
) -> tuple[Line, Group]:
    """Return the line, and the group that its JSON describes.

    Raises:
        TypeError, ValueError: it does not describe a group. The message has the reason.
    """
    from kwise.client.messages import to_group, to_pairs

    fields = _object(text)
    if missing := [key for key in ("prompt", "responses") if key not in fields]:
        raise ValueError(f"has no {' and no '.join(map(repr, missing))}")
    if not isinstance(fields["responses"], list):
        raise ValueError("'responses' must be a list")
    if problem := _too_few(fields["responses"], min_responses):
        raise ValueError(problem)
    _refuse_meanings(fields, "the line")
    responses = [
        _response_of(number, response) for number, response in enumerate(fields["responses"])
    ]
    pairs = fields.get("pairs")
    # The client's own functions check the line here, because here its number is known.
    to_group("", fields["prompt"], responses, priority)
    for number, pair in enumerate(to_pairs(pairs)):
        if max(pair.first, pair.second) >= len(responses):
            raise ValueError(
                f"pairs[{number}]: ({pair.first}, {pair.second}) names a response that does not "
                f"exist; there are {len(responses)}, counted from 0"
            )
    line = Line(
        where=where, fields=fields, responses=responses, pairs=pairs and [(a, b) for a, b in pairs]
    )
    return line, Group(prompt=fields["prompt"], responses=tuple(responses), priority=priority)


def _object(text: str) -> dict[str, Any]:
    try:
        fields = json.loads(text, object_pairs_hook=object_of_pairs)
    except json.JSONDecodeError as error:
        raise ValueError(f"not JSON: {json_reason(error)} at column {error.colno}") from None
    except RecursionError:
        raise ValueError("not JSON that can be read: too deep") from None
    if not isinstance(fields, dict):
        raise ValueError(f"a JSON object is expected, not {type(fields).__name__}")
    return fields


def _fields_of_bad_line(text: str) -> dict[str, Any]:
    with suppress(ValueError):
        return _object(text)
    return {}


def reward_fields(outcome: Reward | KwiseError) -> dict[str, Any]:
    """Return the JSON object of one response's reward or error."""
    return {"error": error_fields(outcome)} if isinstance(outcome, KwiseError) else asdict(outcome)


def error_fields(error: KwiseError) -> dict[str, str]:
    """Return the JSON object of an error."""
    if isinstance(error, RewardServiceError):
        return {"code": error.code, "message": error.message}
    return {"code": error.status.name, "message": str(error)}


def _response_of(number: int, response: Any) -> Any:
    if not isinstance(response, dict):
        return response
    if "text" not in response:
        raise ValueError(f"responses[{number}] has no 'text'")
    _refuse_meanings(response, f"responses[{number}]")
    return response["text"]


def _refuse_meanings(fields: dict[str, Any], where: str) -> None:
    """Refuse a key that holds a part of the conversation, because it would not be scored.

    Other keys, such as ids, are copied to the output.
    """
    for key, value in fields.items():
        meaning = row_meaning(key)
        if meaning and meaning is not Meaning.PROMPT and not says_nothing(value):
            raise ValueError(
                f"{where} has {key!r}, {meaning.value}, which would not be scored; put it into the "
                "messages of the prompt, or remove it"
            )


def _texts(name: str) -> Iterator[tuple[str, str]]:
    """Yield (FILE:LINE, text) of every line that is not blank; "-" is standard input.

    A gzip file is recognised by its first bytes and not by its name, as in training.

    Raises:
        OSError: the file cannot be read, or is not a whole gzip file.
    """
    shown = "<stdin>" if name == "-" else name
    with sys.stdin.buffer if name == "-" else Path(name).open("rb") as opened:
        plain: Any = opened if isinstance(opened, io.BufferedReader) else io.BufferedReader(opened)
        if plain.peek(2)[:2] == b"\x1f\x8b":
            plain = gzip.GzipFile(fileobj=plain)
        try:
            # Bytes that are not UTF-8 become lone surrogates, so that only their line fails.
            with io.TextIOWrapper(plain, encoding="utf-8", errors="surrogateescape") as lines:
                for number, text in enumerate(lines, start=1):
                    if text.strip():
                        yield f"{shown}:{number}", text
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise OSError(f"not a complete gzip file ({error})") from None


def _show_json(line: Line, result: ScoredGroup | KwiseError, report: Report) -> None:
    if isinstance(result, KwiseError):
        added: dict[str, Any] = {"error": error_fields(result)}
    else:
        added = {
            **report.fields(line, result),
            "model": result.model,
            "fingerprint": result.fingerprint,
            "precision": result.precision,
        }
    fields = {**line.fields, **added}
    try:
        text = json.dumps(fields, ensure_ascii=False, allow_nan=False)
    except ValueError:  # NaN and infinity are not JSON: null, like a missing rank
        fields = json.loads(json.dumps(fields), parse_constant=lambda _: None)
        text = json.dumps(fields, ensure_ascii=False)
    try:
        text.encode(sys.stdout.encoding or "ascii")
    except UnicodeEncodeError:  # another locale, or a lone surrogate in a key of the input
        text = json.dumps(fields)
    print(text)


def _show_table(line: Line, result: ScoredGroup | KwiseError, report: Report) -> None:
    if isinstance(result, KwiseError):
        return  # it is on standard error already
    print(
        "\n".join(table(report.header, report.rows(line, result), terminal_columns())), end="\n\n"
    )
