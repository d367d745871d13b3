"""The command `kwise info`: what an artifact is, or what a server serves and has done."""

import argparse
import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from kwise.client.channel import DEFAULT_CONNECT_TIMEOUT_S, check_timeout
from kwise.client.several.targets import check_targets
from kwise.errors import ConfigError, InvalidRequest
from kwise.types import value_formula


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of the command."""
    parser.add_argument(
        "target",
        metavar="ARTIFACT|SERVER",
        help="the directory of an artifact, whose files are verified, or the address of a server "
        "as HOST:PORT or a URI of gRPC; several servers with commas between them",
    )
    parser.add_argument(
        "--model",
        metavar="NAME",
        default="",
        help="the model of a server to describe (default: the first)",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object with all fields")
    parser.add_argument(
        "--timeout-s",
        metavar="SECONDS",
        type=float,
        default=DEFAULT_CONNECT_TIMEOUT_S,
        help=f"the longest wait for a server (default: {DEFAULT_CONNECT_TIMEOUT_S:g})",
    )


def run(arguments: argparse.Namespace) -> int:
    """Print the facts and return the exit code.

    Raises:
        ConfigError: the target is neither a directory nor an address.
        ArtifactError: the artifact is damaged.
        RewardServiceError: the server does not answer.
    """
    if Path(arguments.target).exists() or "/" in arguments.target.partition(":")[0]:
        if arguments.model:
            problem = "is for servers, and ARTIFACT|SERVER is an artifact"
            raise ConfigError(f"--model {arguments.model} {problem}; leave it out")
        facts, details = _of_artifact(Path(arguments.target))
    else:
        facts, details = _of_server(arguments.target, arguments.model, arguments.timeout_s)
    if arguments.json:
        print(json.dumps(details, ensure_ascii=False))
    else:
        width = max(map(len, facts))
        for name, value in facts.items():
            print(f"{name:<{width}}  {value}")
    return 0


Facts = Mapping[str, str]


def _of_artifact(path: Path) -> tuple[Facts, dict[str, Any]]:
    if not path.is_dir():
        raise ConfigError(
            f"{path}: there is no such directory; give an artifact or the address of a server"
        )
    import msgspec  # a client alone does not have the engine's packages

    from kwise.engine.artifact.read import read_artifact

    artifact = read_artifact(path)
    manifest = artifact.manifest
    bounds = manifest.error_bounds
    provenance = manifest.provenance
    versions = provenance.get("versions")  # nothing checks what is there for people
    facts = {
        "model": manifest.name,
        "fingerprint": manifest.fingerprint,
        "layout": manifest.layout,
        "longest conversation": f"{manifest.max_tokens} tokens",
        "precisions": ", ".join(
            f"{precision.value} (within {bounds[precision].max_error:.2g} of the checkpoint)"
            for precision in manifest.graphs
        ),
        "graphs for CUDA": ", ".join(p.value for p in manifest.cuda_graphs) or "none of their own",
        **({"raw reward": "the mean over the response's tokens"} if manifest.mean_pooling else {}),
        **_values(
            manifest.num_members,
            manifest.reward_mean,
            manifest.reward_std,
            [(member.mean, member.std) for member in manifest.members or ()],
        ),
        "files": f"{len(manifest.files)}, {_megabytes(manifest.files.values())}, all verified",
        "golden rewards": str(len(artifact.golden)),
        "checkpoint": f"{provenance.get('checkpoint', 'not known')}, "
        f"{provenance.get('model_type', 'not known')}",
        "exported": f"{provenance.get('exported_at', 'not known')} with "
        + (
            ", ".join(f"{name} {version}" for name, version in versions.items())
            if isinstance(versions, dict)
            else "versions that are not known"
        ),
    }
    return facts, msgspec.to_builtins(manifest)


def _values(
    num_members: int, mean: float, std: float, members: Sequence[tuple[float, float]]
) -> dict[str, str]:
    """Return how the value is computed, or how that of each member is."""
    if num_members <= 1:
        return {"value": value_formula(mean, std)}
    numbered = enumerate(members, start=1)
    return {
        "value": f"the mean of {num_members} members",
        **{f"member {number}": value_formula(*scale) for number, scale in numbered},
    }


def _megabytes(files: Any) -> str:
    return f"{sum(file.bytes for file in files) / 1e6:.1f} MB"


def _of_server(target: str, model: str, timeout_s: float) -> tuple[Facts, dict[str, Any]]:
    from kwise.client.sync import RewardClient

    try:
        check_targets("ARTIFACT|SERVER", target)
        check_timeout("--timeout-s", timeout_s)
    except InvalidRequest as error:
        raise ConfigError(f"{error}; a directory of this name does not exist either") from None
    except ValueError as error:
        raise ConfigError(str(error)) from None
    with RewardClient(
        target, model=model, timeout_s=timeout_s, connect_timeout_s=timeout_s
    ) as client:
        info = client.get_model()
    counters = info.counters
    saved = 1 - counters.rows / counters.unshared_rows if counters.unshared_rows else 0.0
    facts = {
        "model": info.model,
        "fingerprint": info.fingerprint,
        "layout": info.layout,
        "precision": info.precision,
        "runtime": info.runtime,
        "longest conversation": f"{info.max_tokens} tokens, longer ones: {info.overlong}",
        "control tokens": info.control_tokens,
        "largest batch": f"{info.max_batch_tokens} token rows",
        "largest request": f"{info.max_responses} responses, {info.max_pairs} pairs",
        **_values(
            info.num_members,
            info.reward_mean,
            info.reward_std,
            list(zip(info.member_means, info.member_stds, strict=True)),
        ),
        "scored": f"{counters.sequences} sequences in {counters.model_passes} passes",
        "cached": f"{counters.cache_hits} rewards from the cache",
        "token rows": f"{counters.rows} computed instead of {counters.unshared_rows}: {saved:.0%} "
        f"saved by shared prefixes, {counters.reused_rows} rows by the prompt cache",
        "refused": f"{counters.rejected_groups} groups, {counters.abandoned} sequences abandoned",
    }
    return facts, dataclasses.asdict(info)
