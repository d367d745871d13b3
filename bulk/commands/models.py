"""The command `kwise models`: list, load and unload the models of a running server."""

import argparse
from collections.abc import Sequence

from kwise.client.channel import DEFAULT_TIMEOUT_S
from kwise.errors import ConfigError, InvalidRequest


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
        help="serve a model no more",
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

    try:
        client = AdminClient(arguments.server, timeout_s=arguments.timeout_s)
    except (InvalidRequest, ValueError) as error:
        raise ConfigError(str(error).replace("target", "SERVER").replace("_", "-")) from None
    with client:
        if arguments.load is not None:
            name, _, directory = arguments.load.partition("=")
            client.load_model(name, directory)
        elif arguments.ensemble is not None:
            name, members = _ensemble(arguments.ensemble)
            client.load_model(name, members=members)
        elif arguments.unload is not None:
            client.unload_model(arguments.unload)
        for model in client.list_models():
            origin = model.artifact or f"ensemble of {', '.join(model.members)}"
            print(f"{model.model}  {model.fingerprint[:12]}  {origin}")
    return 0


def _ensemble(argument: str) -> tuple[str, Sequence[str]]:
    name, equals, members = argument.partition("=")
    if not equals or not members:
        raise ConfigError(f"--ensemble is {argument!r}; it must have the form NAME=MODEL,MODEL")
    return name, members.split(",")
