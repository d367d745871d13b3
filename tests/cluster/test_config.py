"""The options of an application on Ray."""

import argparse
from pathlib import Path
from typing import Any

import pytest

from kwise.cluster import config
from kwise.cluster.config import ClusterConfig, from_application_args
from kwise.engine.server.models.source import Source
from kwise.errors import ConfigError


def test_arguments_are_texts_from_a_command_line_or_values_from_a_file() -> None:
    texts = from_application_args(
        {"artifact": "/a,b=/c", "max_replicas": "8", "prompt_routing": "false", "grace_s": "5"}
    )
    values = from_application_args(
        {"artifact": "/a,b=/c", "max_replicas": 8, "prompt_routing": False, "grace_s": 5}
    )
    assert texts == values
    assert values.artifacts == (Source(path=Path("/a")), Source(path=Path("/c"), name="b"))
    assert values.cluster == ClusterConfig(max_replicas=8, prompt_routing=False, grace_s=5.0)


def test_they_are_the_options_of_the_command() -> None:
    parser = argparse.ArgumentParser()
    config.add_arguments(parser)
    arguments = parser.parse_args(["--replicas", "2", "--precision", "bf16,fp32"])
    from_command = config.from_arguments(("/a",), arguments)
    assert from_command == from_application_args(
        {"artifact": "/a", "replicas": 2, "precision": "bf16,fp32"}
    )


def test_a_replica_has_as_many_threads_as_it_reserves_cpus() -> None:
    options = from_application_args({"artifact": "/a", "cpus_per_replica": 4})
    assert options.engine.threads == 4
    options = from_application_args({"artifact": "/a", "cpus_per_replica": 4, "threads": 2})
    assert options.engine.threads == 2


@pytest.mark.parametrize(
    ("args", "tokens"),
    [
        ({}, 4 * 2048),
        ({"device": "cuda", "gpus_per_replica": 1}, 4 * 8192),
        ({"max_batch_tokens": 1000}, 4000),
        ({"target_queued_tokens": 7}, 7),
    ],
)
def test_autoscaling_aims_at_four_batches(args: dict[str, Any], tokens: int) -> None:
    options = from_application_args({"artifact": "/a", **args})
    assert options.effective_target_queued_tokens == tokens


@pytest.mark.parametrize(
    ("args", "problem"),
    [
        ({}, "the argument artifact is missing"),
        ({"artifact": "/a", "replica": 2}, "--replica=2"),
        ({"artifact": "/a", "replicas": 0}, "--replicas is 0; it must be at least 1"),
        ({"artifact": "/a", "replicas": "two"}, "--replicas"),
        ({"artifact": "/a", "replicas": 4, "max_replicas": 2}, "at least --replicas, 4"),
        ({"artifact": "/a", "device": "cuda"}, "give --gpus-per-replica 1"),
    ],
)
def test_a_wrong_argument_is_named(args: dict[str, Any], problem: str) -> None:
    with pytest.raises(ConfigError) as caught:
        from_application_args(args)
    assert problem in str(caught.value)
