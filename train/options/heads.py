"""The options of several heads over one backbone."""

from dataclasses import dataclass

from kwise.errors import ConfigError
from kwise.options import option

# Of 5 heads, one loses 0.6 points of accuracy with 4 heads per prompt and 2.3 with 2, and their
# mean none (benchmarks/results/smollm2-heads.md).
DEFAULT_SHARE = 0.8


# Without slots: only one base of TrainConfig can have them.
@dataclass(frozen=True, kw_only=True)
class HeadsConfig:
    """The number of heads, and how many of them learn from a prompt."""

    heads: int = option(
        1,
        "heads over the one backbone, each a member of an ensemble: the reward is their mean, and "
        "their standard deviation says how unsure it is",
        minimum=1,
        maximum=100,
    )
    head_share: float = option(
        DEFAULT_SHARE,
        "share of the heads that learn from the rankings of a prompt, the same number for each "
        "prompt, drawn by --seed; with 1, heads differ by their first weights alone",
        exclusive_minimum=0,
        maximum=1,
    )


def check_heads(config: HeadsConfig) -> None:
    """Raise ConfigError if --head-share would have no effect."""
    if config.heads == 1 and config.head_share != DEFAULT_SHARE:
        raise ConfigError("--head-share has no effect with --heads 1")
