"""The options of bulk work on Ray. Imports the standard library only."""

from dataclasses import dataclass

from kwise.options import MAX_COUNT, MAX_THREADS, check_bounds, option


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerConfig:
    """The processes that hold the model.

    Raises:
        ConfigError: a value is out of range; names the option and the bound.
    """

    workers: int = option(
        0,
        "processes that hold the model; 0 for as many as the cluster has CPUs and GPUs for",
        minimum=0,
        maximum=MAX_COUNT,
    )
    cpus_per_worker: int = option(
        1,
        "CPUs that Ray reserves for a worker, and the threads of its runtime unless --threads is "
        "given",
        minimum=1,
        maximum=MAX_THREADS,
    )
    gpus_per_worker: float = option(
        0.0, "GPUs that Ray reserves for a worker; give --device cuda too", minimum=0, maximum=64
    )

    def __post_init__(self) -> None:
        check_bounds(self)
