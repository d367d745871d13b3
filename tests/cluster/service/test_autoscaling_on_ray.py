"""Ray adds a replica because of the tokens that one has."""

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from kwise import RewardClient
from tests.cluster.processes import ray_processes
from tests.servers import PATIENCE_S, raw_rewards, wait_until

REPLICAS = "ServeReplica:kwise:replicas"


def test_tokens_in_a_replica_add_another_one(serving: int, tiny_artifact: Path) -> None:
    from ray import serve  # pyright: ignore[reportMissingImports]

    from kwise.cluster.serve import app

    args: dict[str, Any] = {
        "artifact": str(tiny_artifact),
        "max_replicas": 2,
        "target_queued_tokens": 1,
        "upscale_delay_s": 0,
    }
    serve.run(app(args), name="kwise", route_prefix="/kwise")
    is_over = threading.Event()

    def load(thread: int) -> int:
        num_scored = 0
        with RewardClient(f"localhost:{serving}", timeout_s=PATIENCE_S) as client:
            while not is_over.is_set():
                responses = [f"{num_scored} {index}" for index in range(200)]
                num_scored += len(raw_rewards(client.score(f"prompt {thread}", responses)))
        return num_scored

    try:
        with ThreadPoolExecutor(4) as pool:
            loads = [pool.submit(load, thread) for thread in range(4)]
            try:
                wait_until(lambda: len(ray_processes(REPLICAS)) == 2)
            finally:
                is_over.set()
            assert all(future.result() for future in loads)
    finally:
        serve.delete("kwise")
