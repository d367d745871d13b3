"""One description of what several servers serve."""

from collections.abc import Sequence
from dataclasses import fields, replace
from typing import Any

from kwise.types import Counters, ModelInfo

# A request may go to any server, so it has to keep to the limits of all.
_LIMITS = ("max_tokens", "max_batch_tokens", "max_responses", "max_pairs")
_SUMS = ("queue_tokens", "queue_sequences", "max_queue_tokens", "num_devices")
_TEXTS = ("precision", "runtime", "overlong", "control_tokens")
# The settings on which the reward or the error of a conversation depends.
_DECIDING = ("precision", "max_tokens", "overlong", "control_tokens")


def merge_models(models: Sequence[ModelInfo]) -> ModelInfo:
    """Return the description of several servers of one model as if they were one server.

    Limits are the lowest; counters and what waits are sums. Settings that differ between the
    servers are named all, with commas between them.
    """
    first = models[0]
    if len(models) == 1:
        return first
    counters = {
        field.name: sum(getattr(model.counters, field.name) for model in models)
        for field in fields(Counters)
    }
    settings: dict[str, Any] = {
        name: min(getattr(model, name) for model in models) for name in _LIMITS
    }
    for name in _SUMS:
        settings[name] = sum(getattr(model, name) for model in models)
    for name in _TEXTS:
        settings[name] = ", ".join(dict.fromkeys(getattr(model, name) for model in models))
    return replace(first, counters=Counters(**counters), **settings)


def differing_settings(models: Sequence[ModelInfo]) -> dict[str, tuple[Any, ...]]:
    """Return the settings on which servers of one model differ in what they answer.

    Returns:
        The values of each such setting, in the order of the servers; empty if all answer alike.
    """
    values = {
        name: tuple(dict.fromkeys(getattr(model, name) for model in models)) for name in _DECIDING
    }
    return {name: distinct for name, distinct in values.items() if len(distinct) > 1}
