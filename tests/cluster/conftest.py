"""A Ray cluster of this machine, and an application on it."""

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from kwise import RewardClient
from tests.servers import PATIENCE_S


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Ray warns of its own code, which no test here is about."""
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.filterwarnings("default"))


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[Any]:
    """A cluster of one node, whose processes are those of a larger one: one per replica."""
    # Ray reads these when it is imported. The timeouts are for busy machines.
    os.environ.update(
        RAY_AUTH_MODE="disabled",
        RAY_USAGE_STATS_ENABLED="0",
        RAY_raylet_start_wait_time_s="300",
        RAY_agent_register_timeout_ms="300000",
        RAY_worker_register_timeout_seconds="300",
        RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S="300",
        RAY_SERVE_PROXY_HEALTH_CHECK_TIMEOUT_S="300",
        # Workers find kwise, and the tests, as this process does.
        PYTHONPATH=os.pathsep.join([str(Path.cwd()), os.environ.get("PYTHONPATH", "")]),
    )
    ray = pytest.importorskip("ray", reason="ray is not installed; `make test-ray` installs it")
    with tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True) as directory:
        ray.init(
            address="local",
            num_cpus=4,
            include_dashboard=False,
            object_store_memory=200_000_000,
            _temp_dir=directory,  # a short path: Ray's sockets lie there
            log_to_driver=False,
        )
        yield ray
        ray.shutdown()


@pytest.fixture(scope="session")
def serving(ray_cluster: Any) -> Iterator[int]:
    """Ray Serve with a gRPC proxy; its port."""
    from ray import serve  # pyright: ignore[reportMissingImports]

    from kwise.cluster.serve import SERVICER_FUNCTIONS
    from kwise.engine.server.listen import bound_sockets

    ports = []
    for _ in range(2):
        (probe,) = bound_sockets("127.0.0.1", 0)
        ports.append(probe.getsockname()[1])
        probe.close()
    serve.start(
        proxy_location="HeadOnly",
        http_options={"port": ports[0]},
        grpc_options={"port": ports[1], "grpc_servicer_functions": SERVICER_FUNCTIONS},
    )
    yield ports[1]
    serve.shutdown()


@pytest.fixture(scope="module")
def application(serving: int, tiny_artifact: Path) -> Iterator[int]:
    """The application with two replicas of `tiny_artifact`; the port."""
    from ray import serve  # pyright: ignore[reportMissingImports]

    from kwise.cluster.serve import app

    serve.run(
        app({"artifact": str(tiny_artifact), "replicas": 2}), name="kwise", route_prefix="/kwise"
    )
    yield serving
    serve.delete("kwise")


@pytest.fixture
def client(application: int) -> Iterator[RewardClient]:
    with RewardClient(f"localhost:{application}", timeout_s=PATIENCE_S) as client:
        yield client
