"""The command `kwise top`: what a server does now, as a live view of its counters.

It asks for GetModel over gRPC, so it needs no HTTP port and no Prometheus. The live view is a few
escape sequences and not a library, because a client has grpcio and protobuf only.
"""

import argparse
import json
import shutil
import sys
import time
from collections.abc import Iterable
from dataclasses import asdict
from typing import TYPE_CHECKING

from kwise.bulk.commands.table import clip
from kwise.bulk.commands.top_sample import Reading, Sample, facts_of, sample_of
from kwise.client.channel import (
    DEFAULT_CONNECT_TIMEOUT_S,
    DEFAULT_TARGET,
    check_timeout,
)
from kwise.client.errors import RewardServiceError
from kwise.client.several.targets import check_targets
from kwise.errors import ConfigError, InvalidRequest

if TYPE_CHECKING:
    from kwise.client.sync import RewardClient

_MIN_INTERVAL_S = 0.1
# The other screen of the terminal, without a cursor; the screen as it was.
_ENTER, _LEAVE = "\x1b[?1049h\x1b[?25l", "\x1b[?25h\x1b[?1049l"
_HOME, _END_OF_LINE, _END_OF_SCREEN = "\x1b[H", "\x1b[K", "\x1b[J"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of the command."""
    parser.add_argument(
        "server",
        metavar="SERVER",
        nargs="?",
        default=DEFAULT_TARGET,
        help="the address of a server as HOST:PORT or a URI of gRPC; several servers of one model "
        f"with commas between them are summed up (default: {DEFAULT_TARGET})",
    )
    parser.add_argument(
        "--model", metavar="NAME", default="", help="the model to show (default: the first)"
    )
    parser.add_argument(
        "--interval-s",
        metavar="SECONDS",
        type=float,
        default=2.0,
        help="the time that a sample covers (default: 2)",
    )
    parser.add_argument("--once", action="store_true", help="print one sample and end")
    parser.add_argument(
        "--json", action="store_true", help="print each sample as a line of JSON with all numbers"
    )
    parser.add_argument(
        "--timeout-s",
        metavar="SECONDS",
        type=float,
        default=DEFAULT_CONNECT_TIMEOUT_S,
        help=f"the longest wait for a server (default: {DEFAULT_CONNECT_TIMEOUT_S:g})",
    )


def run(arguments: argparse.Namespace) -> int:
    """Show samples until Ctrl-C, or one with --once, and return the exit code.

    Raises:
        ConfigError: an option is out of its range, or the server is not an address.
        RewardServiceError: the server does not answer at first.
    """
    from kwise.client.sync import RewardClient

    try:
        check_targets("SERVER", arguments.server)
        check_timeout("--timeout-s", arguments.timeout_s)
        check_timeout("--interval-s", arguments.interval_s)
    except (InvalidRequest, ValueError) as error:
        raise ConfigError(str(error)) from None
    if arguments.interval_s < _MIN_INTERVAL_S:
        raise ConfigError(
            f"--interval-s is {arguments.interval_s:g}; it must be at least {_MIN_INTERVAL_S:g}"
        )
    is_live = sys.stdout.isatty() and not (arguments.once or arguments.json)
    with RewardClient(
        arguments.server,
        model=arguments.model,
        timeout_s=arguments.timeout_s,
        connect_timeout_s=arguments.timeout_s,
    ) as client:
        before = _read(client)
        try:
            if is_live:
                print(_ENTER, end="", flush=True)
            _show_samples(client, before, arguments, is_live=is_live)
        finally:
            if is_live:
                print(_LEAVE, end="", flush=True)
    return 0


def _show_samples(
    client: "RewardClient", before: Reading, arguments: argparse.Namespace, *, is_live: bool
) -> None:
    """Show a sample at the end of each interval. The first one is shown at once if it is live."""
    if is_live:
        _draw(_lines(arguments.server, sample_of(before, before)))
    while True:
        time.sleep(arguments.interval_s)
        try:
            after = _read(client)
        except RewardServiceError as error:
            if not is_live:
                raise
            _draw([f"{arguments.server}: {error}", "", "asking again; Ctrl-C ends this"])
            continue
        sample = sample_of(before, after)
        before = after
        if is_live:
            _draw(_lines(arguments.server, sample))
        elif arguments.json:
            print(json.dumps(asdict(sample), ensure_ascii=False), flush=True)
        else:
            print(*_lines(arguments.server, sample), "", sep="\n", flush=True)
        if arguments.once:
            return


def _read(client: "RewardClient") -> Reading:
    info = client.get_model()
    return Reading(info=info, at_s=time.monotonic())


def _lines(server: str, sample: Sample) -> list[str]:
    facts = facts_of(sample)
    width = max(map(len, facts))
    first = f"{sample.model} on {server}: {sample.precision}, {sample.runtime}"
    return [first, *(f"{name:<{width}}  {value}" for name, value in facts.items())]


def _draw(lines: Iterable[str]) -> None:
    """Replace what the screen shows. Lines that are too long are cut, so that none wraps."""
    columns, rows = shutil.get_terminal_size()
    shown = [clip(line, columns) + _END_OF_LINE for line in lines][:rows]
    print(_HOME + "\n".join(shown) + _END_OF_SCREEN, end="", flush=True)
