"""The options of the service on Ray. Imports the standard library only."""

import argparse
import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

from kwise.engine.config import EngineConfig
from kwise.engine.server.models.source import Source, parse_source
from kwise.errors import ConfigError
from kwise.options import (
    MAX_COUNT,
    MAX_SECONDS,
    MAX_THREADS,
    MAX_UINT32,
    add_options,
    check_bounds,
    flag_of,
    from_options,
    option,
)

_TARGET_BATCHES = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterConfig:
    """The options of the service on Ray.

    Raises:
        ConfigError: an option is out of its range, or does not suit another; names the option.
    """

    replicas: int = option(
        1, "processes that hold the model; the smallest number with --max-replicas", minimum=1
    )
    max_replicas: int = option(
        0,
        "largest number of replicas: Ray adds and removes replicas by their queued tokens; 0 for "
        "always --replicas",
        minimum=0,
        maximum=MAX_COUNT,
    )
    target_queued_tokens: int = option(
        0,
        "tokens per replica, waiting or being computed, that autoscaling aims at; 0 for four "
        "batches of --max-batch-tokens",
        minimum=0,
        maximum=MAX_COUNT,
    )
    upscale_delay_s: float = option(
        30.0,
        "seconds that more replicas are needed before they are added",
        minimum=0,
        maximum=MAX_SECONDS,
    )
    downscale_delay_s: float = option(
        600.0,
        "seconds that fewer replicas suffice before some are removed",
        minimum=0,
        maximum=MAX_SECONDS,
    )
    cpus_per_replica: int = option(
        1,
        "CPUs that Ray reserves for a replica, and the threads of its runtime unless --threads is "
        "given",
        minimum=1,
        maximum=MAX_THREADS,
    )
    gpus_per_replica: float = option(
        0.0,
        "GPUs that Ray reserves for a replica; give --device cuda too",
        minimum=0,
        maximum=64,
    )
    ingress_replicas: int = option(
        1,
        "processes that take requests, choose a replica by the prompt, and send a request again if "
        "its replica dies",
        minimum=1,
        maximum=MAX_COUNT,
    )
    prompt_routing: bool = option(
        True,
        "send requests for the same prompt to the same replica; without it, to the least loaded "
        "of two random ones",
    )
    max_models_per_replica: int = option(
        3,
        "models that a replica holds at once, if several artifacts are served; the least recently "
        "used goes first",
        minimum=1,
        maximum=MAX_COUNT,
    )
    replicas_per_model: int = option(
        0,
        "replicas among which the prompts of one model are spread, if several artifacts are "
        "served; 0 for all",
        minimum=0,
        maximum=MAX_COUNT,
    )
    max_responses: int = option(2048, "responses of one request", minimum=1, maximum=MAX_UINT32)
    max_pairs: int = option(50_000, "pairs of one Compare", minimum=1, maximum=MAX_UINT32)
    grace_s: float = option(
        30.0,
        "seconds that running requests get to finish when a replica is removed",
        minimum=0,
        maximum=MAX_SECONDS,
    )

    def __post_init__(self) -> None:
        check_bounds(self)
        if self.max_replicas and self.max_replicas < self.replicas:
            raise ConfigError(
                f"--max-replicas is {self.max_replicas}; it must be at least --replicas, "
                f"{self.replicas}"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterOptions:
    """All options of one application on Ray.

    Attributes:
        artifacts: the artifacts. The first answers requests that name no model.
        cluster: replicas, routing and limits.
        engine: the options of each replica's engine.
    """

    artifacts: tuple[Source, ...]
    cluster: ClusterConfig
    engine: EngineConfig

    @property
    def effective_target_queued_tokens(self) -> int:
        """The tokens per replica that autoscaling aims at."""
        return (
            self.cluster.target_queued_tokens
            or _TARGET_BATCHES * self.engine.effective_max_batch_tokens
        )


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `ClusterConfig` and `EngineConfig` to `parser`."""
    add_options(parser, ClusterConfig)
    add_options(parser, EngineConfig)


def from_arguments(artifacts: Sequence[str], arguments: argparse.Namespace) -> ClusterOptions:
    """Return the options that the parsed arguments describe.

    Args:
        artifacts: DIRECTORY or NAME=DIRECTORY each.

    Raises:
        ConfigError: a value is out of range, a name is not valid, or two options exclude each
            other.
    """
    cluster = from_options(ClusterConfig, arguments)
    engine = from_options(EngineConfig, arguments)
    if not engine.threads:
        # Ray does not bind a replica to CPUs, so the engine would count all of the machine.
        engine = dataclasses.replace(engine, threads=cluster.cpus_per_replica)
    if engine.device != "cpu" and not cluster.gpus_per_replica:
        raise ConfigError(
            f"--device is {engine.device} and --gpus-per-replica is 0: Ray hides the GPUs from a "
            "replica that reserves none; give --gpus-per-replica 1"
        )
    sources = tuple(parse_source(argument) for argument in artifacts)
    return ClusterOptions(artifacts=sources, cluster=cluster, engine=engine)


def from_application_args(args: Mapping[str, Any]) -> ClusterOptions:
    """Return the options of an application's arguments, as Ray Serve gives them.

    Args:
        args: `artifact`, DIRECTORY or NAME=DIRECTORY or several with commas between them, and
            options by their name without dashes (`max_replicas`). A value is a string or has the
            type of the option.

    Raises:
        ConfigError: an argument is missing, unknown or out of range.
    """
    given = dict(args)
    artifacts = tuple(filter(None, str(given.pop("artifact", "")).split(",")))
    if not artifacts:
        raise ConfigError("the argument artifact is missing: the path of an artifact")
    parser = _Parser(prog="kwise.cluster.serve:app", allow_abbrev=False, add_help=False)
    add_arguments(parser)
    argv = [_flag(name, value) for name, value in given.items()]
    return from_arguments(artifacts, parser.parse_args(argv))


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ConfigError(message)


def _flag(name: str, value: Any) -> str:
    flag = flag_of(name)
    if str(value).lower() in ("true", "false"):
        return flag if str(value).lower() == "true" else f"--no{flag[1:]}"
    return f"{flag}={value}"
