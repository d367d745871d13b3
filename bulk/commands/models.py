"""The command `kwise models`: list, load and unload the models of a running server."""

import argparse
import sys
from collections.abc import Sequence

from kwise.client.channel import DEFAULT_TIMEOUT_S, check_target, check_timeout
from kwise.client.errors import RewardServiceError
from kwise.errors import ConfigError, InvalidRequest, Status


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of the command."""
    parser.add_argument(
        "server",
        metavar="SERVER",
        help="HOST:PORT of a server with --admin-token-file; KWISE_TOKEN has a token of that file",
    )
    change = parser.add_mutually_exclusive_group()
    change.add_argument(
        "--load",
        metavar="NAME[=DIRECTORY]",
        help="serve the artifact in a directory of the server under a name, in place of the model "
        "of that name if there is one; without a directory, read the model's own again",
    )
    change.add_argument(
        "--ensemble",
        metavar="NAME=MODEL,MODEL...",
        help="serve a model whose reward is the mean of those of other models of the server",
    )
    change.add_argument(
        "--unload",
        metavar="NAME",
        help="stop serving a model",
    )
    parser.add_argument(
        "--timeout-s",
        metavar="SECONDS",
        type=float,
        default=DEFAULT_TIMEOUT_S,
        help=f"the longest wait for the change (default: {DEFAULT_TIMEOUT_S:g})",
    )


def run(arguments: argparse.Namespace) -> int:
    """Make the change if one is asked for, print the models that are served, and return 0.

    Raises:
        ConfigError: an argument has another form.
        RewardServiceError: the server refuses the change, or does not answer.
    """
    from kwise.client.admin import AdminClient

    ensemble = None if arguments.ensemble is None else _ensemble(arguments.ensemble)
    load = None if arguments.load is None else _source(arguments.load)
    try:
        check_target("SERVER", arguments.server)
        check_timeout("--timeout-s", arguments.timeout_s)
        client = AdminClient(arguments.server, timeout_s=arguments.timeout_s)
    except (InvalidRequest, ValueError) as error:
        raise ConfigError(str(error)) from None
    with client:
        try:
            if load is not None:
                client.load_model(*load)
            elif ensemble is not None:
                client.load_model(ensemble[0], members=ensemble[1])
            elif arguments.unload is not None:
                client.unload_model(arguments.unload)
            models = client.list_models()
        except RewardServiceError as error:
            if error.status is not Status.UNIMPLEMENTED:
                raise
            problem = "its models cannot be changed: it was started without --admin-token-file"
            raise RewardServiceError(error.code, problem, target=error.target) from None
    if not models:
        print("the server has no model at present", file=sys.stderr)
    width = max((len(model.model) for model in models), default=0)
    for model in models:
        origin = model.artifact or f"ensemble of {', '.join(model.members)}"
        print(f"{model.model:<{width}}  {model.fingerprint[:12]}  {origin}")
    return 0


def _source(argument: str) -> tuple[str, str]:
    """Return the name and the directory of NAME=DIRECTORY, or NAME and ""."""
    name, equals, directory = argument.partition("=")
    if equals and not directory:
        raise ConfigError(
            f"--load is {argument!r}; it must have the form NAME=DIRECTORY, or NAME alone to read "
            "the directory of that model again"
        )
    return name, directory


def _ensemble(argument: str) -> tuple[str, Sequence[str]]:
    name, equals, members = argument.partition("=")
    if not equals or not members:
        raise ConfigError(f"--ensemble is {argument!r}; it must have the form NAME=MODEL,MODEL")
    return name, members.split(",")
