"""The options of most benchmarks, and the sizes of their groups.

One dataclass per benchmark, in one module, because they share the types of their fields. It imports
the standard library only, so that `kwise bench --help` works with any installation.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from kwise.engine.config import EngineConfig
from kwise.engine.model.devices import parse_devices
from kwise.errors import ConfigError
from kwise.options import MAX_COUNT, MAX_SECONDS, MAX_THREADS, check_bounds, option

if TYPE_CHECKING:
    from kwise.engine.sequence import EncodedSequence


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """Groups of K responses of R tokens each to a prompt of P tokens."""

    P: int
    R: int
    K: int

    def __str__(self) -> str:
        return f"{self.P}/{self.R}/{self.K}"

    @classmethod
    def parse(cls, text: str) -> "Cell":
        """Parse "P/R/K"; raise ValueError if it is not three integers."""
        P, R, K = map(int, text.split("/"))
        return cls(P=P, R=R, K=K)

    def group(self, vocab_size: int, seed: int) -> list["EncodedSequence"]:
        """Return one group of random ids; another seed gives another prompt."""
        from kwise.benchmarks.workload import random_group

        return random_group(self.P, self.R, self.K, vocab_size=vocab_size, seed=seed)

    def request(self, vocab_size: int, seed: int) -> tuple[list[int], list[list[int]]]:
        """Return `group` as a client sends it: (ids of the prompt, ids of each response)."""
        group = self.group(vocab_size, seed)
        prompt = group[0].token_ids[: self.P].tolist()
        return prompt, [sequence.token_ids[self.P :].tolist() for sequence in group]


def parse_cell(text: str) -> Cell:
    """Parse the option `--cell`, "P/R/K".

    Raises:
        ConfigError: it has another form.
    """
    try:
        return Cell.parse(text)
    except ValueError:
        raise ConfigError(f"--cell is {text!r}; it must be P/R/K in integers") from None


def parse_cells(text: str) -> list[Cell]:
    """Parse the option `--cells`, "P/R/K,P/R/K,…".

    Raises:
        ConfigError: it has another form.
    """
    try:
        return [Cell.parse(cell) for cell in text.split(",")]
    except ValueError:
        raise ConfigError(f"--cells is {text!r}; it must be P/R/K,P/R/K,… in integers") from None


@dataclass(frozen=True, slots=True, kw_only=True)
class GraphBenchConfig:
    """Options of `kwise bench graph`."""

    artifact: str = option(help="an artifact with the trie layout")
    checkpoint: str = option(
        "",
        "its checkpoint, to compare with the stock padded graph and to measure the memory of an "
        "export",
    )
    cells: str = option(
        "64/64/9,256/128/9,1024/128/9",
        "groups P/R/K: tokens of the prompt, tokens of each response, number of responses",
    )
    rankings: str = option("", "real groups: rankings of any format that kwise data reads")
    num_groups: int = option(24, "number of real groups", minimum=1, maximum=MAX_COUNT)
    repeats: int = option(5, "runs of each cell, after one warm-up", minimum=1, maximum=MAX_COUNT)
    max_seconds: float = option(
        120.0,
        "stop repeating a cell after this time; it runs at least once",
        minimum=0,
        maximum=MAX_SECONDS,
    )
    threads: int = option(
        0, "threads of the runtime; 0 for one per CPU", minimum=0, maximum=MAX_THREADS
    )
    max_batch_tokens: int = option(
        EngineConfig().effective_max_batch_tokens,
        "batch budget, as in kwise serve",
        minimum=16,
        maximum=MAX_COUNT,
    )
    prompt_reuse: bool = option(
        True, "also measure calls that share a prompt, in a row and from several connections"
    )
    memory: bool = option(True, "also measure peak memory and start-up time")
    json: str = option("", "file for all figures and the machine")

    def __post_init__(self) -> None:
        check_bounds(self)
        self.parsed_cells()

    def parsed_cells(self) -> list[Cell]:
        """Return `cells`, parsed."""
        return parse_cells(self.cells)


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuBenchConfig:
    """Options of `kwise bench gpu`."""

    artifact: str = option("", "an artifact with the trie layout, best with fp32, fp16 and bf16")
    checkpoint: str = option("", "its checkpoint, to compare with transformers and vLLM")
    shapes: str = option(
        "",
        "folder of graphs in the shape of SmolLM2-135M and of Llama-3-8B (two layers, times 16), "
        "which get random weights; they are written there if they are missing",
    )
    models: tuple[str, ...] = option(
        ("smollm2-135m", "llama-3-8b"), "with --shapes: sub-folders of it to measure"
    )
    device: str = option(
        "cuda:0", "devices, as in kwise serve; all but the queue is measured on the first"
    )
    cells: str = option(
        "256/128/9,1024/128/9",
        "groups P/R/K: tokens of the prompt, tokens of each response, number of responses",
    )
    rows: tuple[int, ...] = option(
        (2048, 8192), "rows of a batch (--max-batch-tokens)", minimum=16, maximum=MAX_COUNT
    )
    repeats: int = option(
        10, "runs of each measurement, after three warm-ups", minimum=1, maximum=MAX_COUNT
    )
    groups: int = option(
        64, "groups that wait together, for the queue", minimum=1, maximum=MAX_COUNT
    )
    steps: tuple[str, ...] = option(
        (),
        "steps to run instead of all: shapes, weights, agree, change, change-default, passes, "
        "transformers, engine, vllm",
    )
    json: str = option("", "file for all figures and the machine, written as they come")

    def __post_init__(self) -> None:
        check_bounds(self)
        if not (self.artifact or self.shapes):
            raise ConfigError("give --artifact, --shapes, or both")
        parse_devices(self.device)
        self.parsed_cells()

    def parsed_cells(self) -> list[Cell]:
        """Return `cells`, parsed."""
        return parse_cells(self.cells)


@dataclass(frozen=True, slots=True, kw_only=True)
class PrecisionBenchConfig:
    """Options of `kwise bench precision`."""

    artifact: str = option(
        help="an artifact with the trie layout, fp32 and other precisions (kwise export --dtype)"
    )
    checkpoint: str = option(
        "", "its checkpoint, to compare with transformers in bf16 and the stock padded graph"
    )
    rankings: str = option(
        "",
        "real groups: rankings of any format that kwise data reads; by default the groups that "
        "kwise export uses",
    )
    cells: str = option(
        "64/64/9,256/128/9,1024/128/9",
        "groups P/R/K: tokens of the prompt, tokens of each response, number of responses",
    )
    num_groups: int = option(16, "number of real groups", minimum=1, maximum=MAX_COUNT)
    repeats: int = option(
        5, "runs of each contender, after one warm-up", minimum=1, maximum=MAX_COUNT
    )
    max_seconds: float = option(
        60.0,
        "stop repeating a contender on a cell, or on the real groups, after this time; it runs at "
        "least once",
        minimum=0,
        maximum=MAX_SECONDS,
    )
    threads: int = option(
        0, "threads of each contender; 0 for one per CPU", minimum=0, maximum=MAX_THREADS
    )
    max_batch_tokens: int = option(
        EngineConfig().effective_max_batch_tokens,
        "batch budget, as in kwise serve",
        minimum=16,
        maximum=MAX_COUNT,
    )
    json: str = option("", "file for all figures and the machine")

    def __post_init__(self) -> None:
        check_bounds(self)
        self.parsed_cells()

    def parsed_cells(self) -> list[Cell]:
        """Return `cells`, parsed."""
        return parse_cells(self.cells)


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadBenchConfig:
    """Options of `kwise bench load`."""

    artifact: str = option(help="an artifact")
    cell: str = option(
        "256/128/9",
        "groups P/R/K: tokens of the prompt, tokens of each response, number of responses",
    )
    groups: int = option(16, "groups in a round at saturation", minimum=1, maximum=MAX_COUNT)
    repeats: int = option(3, "rounds", minimum=1, maximum=MAX_COUNT)
    clients: int = option(1, "processes that ask for cached groups", minimum=1, maximum=256)
    calls: int = option(2000, "calls to measure latency", minimum=10, maximum=MAX_COUNT)
    poisson_calls: int = option(
        200, "calls to measure queueing; 0 skips this", minimum=0, maximum=MAX_COUNT
    )
    json: str = option("", "file for all figures and the machine")

    def __post_init__(self) -> None:
        check_bounds(self)
        self.parsed_cell()

    def parsed_cell(self) -> Cell:
        """Return `cell`, parsed."""
        return parse_cell(self.cell)


@dataclass(frozen=True, slots=True, kw_only=True)
class BulkBenchConfig:
    """Options of `kwise bench bulk`."""

    artifact: str = option(help="an artifact")
    checkpoint: str = option("", "the artifact's checkpoint, to compare with transformers")
    cell: str = option(
        "256/128/9",
        "groups P/R/K: tokens of the prompt, tokens of each response, number of responses",
    )
    groups: int = option(16, "groups in a round", minimum=1, maximum=MAX_COUNT)
    repeats: int = option(3, "rounds", minimum=1, maximum=MAX_COUNT)
    batch_sizes: tuple[int, ...] = option(
        (1, 9, 18), "batch sizes of transformers' pipeline", minimum=1, maximum=MAX_COUNT
    )
    pipeline_groups: int = option(
        2, "groups of a round that the pipeline scores", minimum=1, maximum=MAX_COUNT
    )
    threads: int = option(
        0, "threads of the runtimes; 0 for one per CPU", minimum=0, maximum=MAX_THREADS
    )
    json: str = option("", "file for all figures and the machine")

    def __post_init__(self) -> None:
        check_bounds(self)
        self.parsed_cell()

    def parsed_cell(self) -> Cell:
        """Return `cell`, parsed."""
        return parse_cell(self.cell)


@dataclass(frozen=True, slots=True, kw_only=True)
class JoinedBenchConfig:
    """Options of `kwise bench joined`."""

    artifact: str = option(help="an artifact with the trie layout")
    cell: str = option(
        "48/24/9",
        "groups P/R/K: words of the prompt, words of each response, number of responses",
    )
    prompts: int = option(64, "prompts", minimum=1, maximum=MAX_COUNT)
    clients: int = option(2, "processes that send calls", minimum=1, maximum=256)
    window: int = option(
        32, "calls that a process has open in the staggered run", minimum=1, maximum=MAX_COUNT
    )
    repeats: int = option(3, "rounds, after one warm-up", minimum=1, maximum=MAX_COUNT)
    http: bool = option(False, "call /get_reward over HTTP, one connection per call")
    json: str = option("", "file for all figures and the machine")

    def __post_init__(self) -> None:
        check_bounds(self)
        self.parsed_cell()

    def parsed_cell(self) -> Cell:
        """Return `cell`, parsed."""
        return parse_cell(self.cell)


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainBenchConfig:
    """Options of `kwise bench train`."""

    model: str = option(help="a language model or reward model, as for kwise train")
    text: Path = option(
        Path("examples/rankings.jsonl"), "any UTF-8 text; prompts and responses are cut from it"
    )
    cells: str = option(
        "256/128/9,1024/128/9",
        "rankings P/R/K: tokens of the prompt, tokens of each response, number of responses",
    )
    steps: int = option(
        2, "timed steps of two rankings in each run of kwise", minimum=1, maximum=MAX_COUNT
    )
    repeats: int = option(
        1, "runs of each trainer; medians are reported", minimum=1, maximum=MAX_COUNT
    )
    pairs_per_pass: tuple[int, ...] = option(
        (1,),
        "pairs that TRL computes at a time; each must divide C(K,2)",
        minimum=1,
        maximum=MAX_COUNT,
    )
    json: str = option("", "file for all figures and the machine")

    def __post_init__(self) -> None:
        check_bounds(self)
        for cell in self.parsed_cells():
            num_pairs = cell.K * (cell.K - 1) // 2
            if any(size < 1 or num_pairs % size for size in self.pairs_per_pass):
                sizes = " ".join(map(str, self.pairs_per_pass))
                raise ConfigError(
                    f"--pairs-per-pass is {sizes}; each must divide {num_pairs}, the pairs of "
                    f"{cell}"
                )

    def parsed_cells(self) -> list[Cell]:
        """Return `cells`, parsed."""
        return parse_cells(self.cells)


@dataclass(frozen=True, slots=True, kw_only=True)
class SoakConfig:
    """Options of `kwise bench soak`."""

    artifact: str = option(help="an artifact; a small model allows the most requests")
    minutes: float = option(10.0, "duration of the load", minimum=0.05, maximum=MAX_SECONDS / 60)
    json: str = option("", "file for all figures and the machine")

    def __post_init__(self) -> None:
        check_bounds(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class SharedCacheBenchConfig:
    """Options of `kwise bench shared-cache`."""

    artifact: str = option(help="an artifact; a small model shows the overhead at its largest")
    calls: int = option(20, "calls of each kind in a round", minimum=1, maximum=MAX_COUNT)
    repeats: int = option(7, "rounds, after one warm-up", minimum=1, maximum=MAX_COUNT)
    json: str = option("", "file for all figures and the machine")

    def __post_init__(self) -> None:
        check_bounds(self)
