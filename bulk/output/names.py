"""The names of the forms and of the choices of pairs. Imports the standard library only."""

from enum import Enum


class FormName(Enum):
    """The value of `--write`."""

    REWARDS = "rewards"
    RANKS = "ranks"
    BEST = "best"
    TOP_K = "top-k"
    PAIRS = "pairs"
    MATRIX = "matrix"


class PairChoice(Enum):
    """The value of `--pairs`."""

    BEST_WORST = "best-worst"
    BEST_REST = "best-rest"
    ALL = "all"
