"""The command `kwise rerank --ray`."""

import argparse
from dataclasses import replace

from kwise.bulk.config import RerankConfig
from kwise.cluster.bulk.worker_config import WorkerConfig
from kwise.errors import ConfigError
from kwise.options import add_options, from_options


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `RerankConfig` and `WorkerConfig`."""
    add_options(parser, RerankConfig)
    add_options(parser, WorkerConfig)


def run(arguments: argparse.Namespace) -> int:
    """Run the command and return its exit code; 1 if a row or a response was not scored.

    Ray takes the cluster of RAY_ADDRESS, or the one of this machine, or starts one.
    """
    config = from_options(RerankConfig, arguments)
    workers = from_options(WorkerConfig, arguments)
    if not config.artifact:
        raise ConfigError("--ray computes on the cluster; give --artifact, and leave out --server")
    engine = config.engine()
    if engine.device != "cpu" and not workers.gpus_per_worker:
        raise ConfigError(
            f"--device is {engine.device} and --gpus-per-worker is 0: Ray hides the GPUs from a "
            "worker that reserves none; give --gpus-per-worker 1"
        )
    # Imported late: --help and a wrong option need none of these packages.
    import ray  # pyright: ignore[reportMissingImports]

    from kwise.bulk.job import run_job
    from kwise.bulk.rerank import job_of
    from kwise.cluster.bulk.workers import RayScorer

    job = job_of(config)
    ray.init(ignore_reinit_error=True, log_to_driver=False)
    return run_job(
        replace(job, open_scorer=lambda: RayScorer.start(config.artifact, engine, workers))
    )
