"""The options of `kwise bench heads`. Imports the standard library only."""

from dataclasses import dataclass

from kwise.options import MAX_COUNT, MAX_THREADS, check_bounds, option


@dataclass(frozen=True, slots=True, kw_only=True)
class HeadsBenchConfig:
    """Options of `kwise bench heads`."""

    model: str = option(help="a language model or reward model; its backbone stays frozen")
    rankings: str = option(help="rankings of any format that kwise data reads, at least a hundred")
    states: str = option(
        "", "file (.npz) for the hidden states, which take a pass; it is read if it is there"
    )
    num_rankings: int = option(
        0, "rankings to use, drawn at random; 0 for all", minimum=0, maximum=MAX_COUNT
    )
    bf16: bool = option(False, "compute the hidden states in bf16")
    heads: tuple[int, ...] = option((3, 5, 10), "numbers of heads", minimum=2, maximum=100)
    shares: tuple[float, ...] = option(
        (0.01, 0.5, 0.8, 1.0),
        "shares of the heads that learn from a prompt (kwise train --head-share)",
        exclusive_minimum=0,
        maximum=1,
    )
    seeds: int = option(10, "splits of the prompts", minimum=1, maximum=MAX_COUNT)
    test_fraction: float = option(
        0.33, "fraction of the prompts that is held out", exclusive_minimum=0, maximum=0.9
    )
    epochs: int = option(10, "passes over the training prompts", minimum=1, maximum=MAX_COUNT)
    learning_rate: float = option(3e-3, "peak of the learning rate", exclusive_minimum=0, maximum=1)
    threads: int = option(1, "threads of torch", minimum=1, maximum=MAX_THREADS)
    json: str = option("", "file for all figures and the machine")

    def __post_init__(self) -> None:
        check_bounds(self)
