"""Routers: each picks the replica of a call among the replicas that are up, in a fixed order."""

from collections.abc import Callable, Sequence
from random import Random

import numpy as np
from numpy.typing import NDArray

from kwise.benchmarks.capacity.replica import Replica

Router = Callable[[Sequence[Replica], int], Replica]
"""Pick a replica. The arguments are the replicas that are up, and the number of the prompt."""

# The prompts of a replica go to another one if its load is over this many times the mean load, plus
# one batch that runs and one that waits.
_LOAD_FACTOR, _SLACK_BATCHES = 1.25, 2


def random_router(rng: Random) -> Router:
    """Any replica, as a load balancer without knowledge picks it."""
    return lambda replicas, prompt: rng.choice(replicas)


def two_choices_router(rng: Random) -> Router:
    """The less loaded of two random replicas (Mitzenmacher 2001), Ray Serve's default."""

    def pick(replicas: Sequence[Replica], prompt: int) -> Replica:
        return min(rng.choice(replicas), rng.choice(replicas), key=_pending)

    return pick


def least_loaded_router(rng: Random) -> Router:
    """The replica with the fewest pending tokens, known exactly: the best balance there is."""
    return lambda replicas, prompt: min(replicas, key=_pending)


def prompt_hash_router(rng: Random) -> Router:
    """The prompt's replica by rendezvous hashing (Thaler and Ravishankar 1998), as the client does.

    A replica that comes or goes moves only its own share of the prompts.
    """
    return lambda replicas, prompt: replicas[int(_weights(replicas, prompt).argmax())]


def bounded_hash_router(rng: Random) -> Router:
    """The prompt's replica, unless it has far more than the mean load: then the next by weight.

    Consistent hashing with bounded loads (Mirrokni, Thorup and Zadimoghaddam 2018).
    """

    def pick(replicas: Sequence[Replica], prompt: int) -> Replica:
        order = np.argsort(-_weights(replicas, prompt).astype(np.float64), kind="stable")
        limit = _LOAD_FACTOR * sum(map(_pending, replicas)) / len(replicas)
        limit += _SLACK_BATCHES * replicas[0].config.max_batch_tokens
        within = (replicas[index] for index in order if _pending(replicas[index]) <= limit)
        return next(within, replicas[int(order[0])])

    return pick


ROUTERS: dict[str, Callable[[Random], Router]] = {
    "random": random_router,
    "two-choices": two_choices_router,
    "least-loaded": least_loaded_router,
    "prompt-hash": prompt_hash_router,
    "bounded-hash": bounded_hash_router,
}


def _pending(replica: Replica) -> int:
    return replica.pending_tokens


def _weights(replicas: Sequence[Replica], prompt: int) -> NDArray[np.uint64]:
    """Return the weight of each replica for a prompt: a hash of both (splitmix64)."""
    numbers = np.fromiter((replica.number for replica in replicas), np.uint64, len(replicas))
    x = _mixed(np.full(1, prompt, np.uint64))[0] ^ _mixed(numbers + np.uint64(1))
    return _mixed(x)


def _mixed(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    x = x + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed: NDArray[np.uint64] = x ^ (x >> np.uint64(31))
    return mixed
