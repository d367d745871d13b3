"""The options of `kwise bench experiments` and `kwise bench evidence`."""

from dataclasses import dataclass
from pathlib import Path

from kwise.errors import ConfigError
from kwise.options import MAX_COUNT, MAX_THREADS, check_bounds, option

STUDIES = (
    "annotators",
    "group-size",
    "data-size",
    "losses",
    "models",
    "systems",
    "fine-tuning",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class ExperimentsConfig:
    """Options of `kwise bench experiments`."""

    rankings: str = option(
        help="rankings with scores, all of the same number of responses, best of nine; a source "
        "for each response names the system that wrote it"
    )
    models: tuple[str, ...] = option(
        (), "required: models as NAME=MODEL; the first one is the model of most experiments"
    )
    studies: tuple[str, ...] = option(
        STUDIES[:-1],
        "experiments to run, one after another; fine-tuning trains whole models and takes hours: "
        + ", ".join(STUDIES),
    )
    states: Path = option(
        Path("build/experiments"), "folder for the hidden states, which take a pass"
    )
    results: Path = option(
        Path("benchmarks/results/experiments"),
        "folder of the results, a file for each experiment; cells that it has are not run again",
    )
    seeds: int = option(
        10, "trainings of each kind, each with other prompts", minimum=1, maximum=1000
    )
    max_cells: int = option(
        0, "stop each experiment after this many new cells; 0 for all", minimum=0, maximum=MAX_COUNT
    )
    bf16: bool = option(False, "run the matmuls of the backbone in bf16")
    threads: int = option(1, "threads of torch", minimum=1, maximum=MAX_THREADS)

    def __post_init__(self) -> None:
        check_bounds(self)
        self.named_models()
        for study in self.studies:
            if study not in STUDIES:
                raise ConfigError(f"--studies is {study!r}; it must be one of {', '.join(STUDIES)}")

    def named_models(self) -> dict[str, str]:
        """Return the models by name.

        Raises:
            ConfigError: no model is given, a model has no name, or two have the same name.
        """
        parts = [given.partition("=") for given in self.models]
        models = {name: model for name, _, model in parts}
        if not parts or not all(name.isidentifier() and model for name, _, model in parts):
            raise ConfigError("--models must be NAME=MODEL, with letters and digits as the name")
        if len(models) < len(parts):
            raise ConfigError("--models gives the same name twice")
        return models


@dataclass(frozen=True, slots=True, kw_only=True)
class EvidenceConfig:
    """Options of `kwise bench evidence`."""

    results: Path = option(
        Path("benchmarks/results/experiments"), "folder that kwise bench experiments wrote"
    )
    model: str = option(
        "",
        "model whose heads the tables of labels and losses are of; by default that of the first "
        "cell of each experiment",
    )
    images: Path = option(Path("docs/images"), "folder for the plots")
    draws: int = option(2000, "draws of the bootstrap", minimum=10, maximum=MAX_COUNT)

    def __post_init__(self) -> None:
        check_bounds(self)
