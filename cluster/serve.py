"""The Ray Serve application: `serve run kwise.cluster.serve:app artifact=/models/reward`.

docs/ray.md has a configuration file with the gRPC port.
"""

from collections.abc import Mapping
from typing import Any

from ray import serve  # pyright: ignore[reportMissingImports]
from ray.serve.config import (  # pyright: ignore[reportMissingImports]
    AutoscalingConfig,
    AutoscalingPolicy,
    RequestRouterConfig,
)

from kwise.cluster.config import ClusterConfig, ClusterOptions, from_application_args
from kwise.cluster.service.autoscaling import QueuedTokensPolicy
from kwise.cluster.service.ingress import Ingress
from kwise.cluster.service.prompt_router import PromptRouter
from kwise.cluster.service.replica import RewardReplica
from kwise.engine.server.base_service import RequestLimits
from kwise.engine.server.models.loader import by_name

SERVICER_FUNCTIONS = ["kwise.cluster.proxy.add_RewardServiceServicer_to_server"]

# The engine has its own queue and its own limit, in tokens, which answers RESOURCE_EXHAUSTED. Ray's
# limit in requests only bounds the tasks of one process.
_MAX_ONGOING_REQUESTS = 10_000


def app(args: Mapping[str, Any]) -> Any:
    """Return the application for its arguments. Ray Serve calls this.

    Args:
        args: see `from_application_args`.

    Raises:
        ConfigError: an argument is missing, unknown or out of range.
        ArtifactError: a path has no artifact.
    """
    return build(from_application_args(args))


def build(options: ClusterOptions) -> Any:
    """Return the application: an ingress bound to the replicas.

    Raises:
        ArtifactError: a path has no artifact.
        ConfigError: two artifacts have one name.
    """
    cluster = options.cluster
    sources = by_name(options.artifacts)
    common = {
        "max_ongoing_requests": _MAX_ONGOING_REQUESTS,
        "graceful_shutdown_timeout_s": cluster.grace_s,
    }
    replicas = serve.deployment(
        RewardReplica,
        name="replicas",
        ray_actor_options={
            "num_cpus": cluster.cpus_per_replica,
            "num_gpus": cluster.gpus_per_replica,
        },
        **_number_of_replicas(options),
        **_routing(cluster),
        **common,
    ).bind(sources, options.engine, cluster.max_models_per_replica)
    limits = RequestLimits(max_responses=cluster.max_responses, max_pairs=cluster.max_pairs)
    return serve.deployment(
        Ingress,
        name="ingress",
        num_replicas=cluster.ingress_replicas,
        ray_actor_options={"num_cpus": 0},
        **common,
    ).bind(replicas, list(sources), limits)


def _number_of_replicas(options: ClusterOptions) -> dict[str, Any]:
    cluster = options.cluster
    if not cluster.max_replicas:
        return {"num_replicas": cluster.replicas}
    policy = AutoscalingPolicy(
        policy_function=QueuedTokensPolicy,
        policy_kwargs={"target_queued_tokens": options.effective_target_queued_tokens},
    )
    config = AutoscalingConfig(
        min_replicas=cluster.replicas,
        max_replicas=cluster.max_replicas,
        upscale_delay_s=cluster.upscale_delay_s,
        downscale_delay_s=cluster.downscale_delay_s,
        policy=policy,
    )
    return {"autoscaling_config": config}


def _routing(cluster: ClusterConfig) -> dict[str, Any]:
    if not cluster.prompt_routing:
        return {}
    config = RequestRouterConfig(
        request_router_class=PromptRouter,
        request_router_kwargs={"replicas_per_model": cluster.replicas_per_model},
    )
    return {"request_router_config": config}
