"""What a row of a preference dataset says, in one vocabulary for all formats.

    row ──a format──▶ Ranked                      a whole ranking
                      Compared                    one response against another; `comparisons.py` makes rankings of them
                      Rated                       one response and its score; the rows of a prompt make a ranking
                      Left                        something that cannot be used, and why

A format (`formats.py`) knows the row and nothing of files or of other rows; `convert.py` knows the order of things and
nothing of formats.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from kwise.types import Conversation

Row = Mapping[str, Any]


class RowProblem(ValueError):
    """`field: problem` of the row at hand; the reader of rows adds where the row is."""

    def __init__(self, field: str, problem: str) -> None:
        super().__init__(f"{field}: {problem}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Ranked:
    """K responses to one prompt, with ranks (lower is better) or with scores (higher is better)."""

    prompt: Conversation
    responses: tuple[str, ...]
    ranks: tuple[int, ...] | None = None
    scores: tuple[float, ...] | None = None
    note: str = ""  # what is to be counted of a ranking that is kept
    row: Row | None = (
        None  # the row itself where it is a ranking of our schema already, with its ids and metadata
    )
    guesses: tuple[
        tuple[str, str], ...
    ] = ()  # (option that is not given, what was taken for it): one for the whole input

    def order(self) -> tuple[float, ...]:
        """One number a response; lower is better."""
        if self.ranks is not None:
            return self.ranks
        assert self.scores is not None, "a ranking has ranks or scores"
        return tuple(-score for score in self.scores)


@dataclass(frozen=True, slots=True, kw_only=True)
class Compared:
    """`better` is preferred to `worse`, or they are tied. `annotator`: who said so, None where the data does not tell. `scores`:
    of the two, where they agree."""

    prompt: Conversation
    better: str
    worse: str
    tied: bool = False
    annotator: str | None = None
    scores: tuple[float, float] | None = None
    note: str = ""

    def alone(self) -> Ranked:
        """The ranking of the two."""
        ranks = None if self.scores else ((1, 1) if self.tied else (1, 2))
        responses = (self.better, self.worse)
        return Ranked(
            prompt=self.prompt, responses=responses, ranks=ranks, scores=self.scores, note=self.note
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Rated:
    """One response and its score, higher is better."""

    prompt: Conversation
    response: str
    score: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Left:
    """`num` of `what` ("row", "response", …) are left out of the output for `reason`. `answered`: the ranking questions to which
    the row has answers, where it has none to --question; where no row has, the option is mistyped."""

    what: str
    reason: str
    num: int = 1
    answered: tuple[str, ...] = ()


Item = Ranked | Compared | Rated | Left


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadOptions:
    """What a format cannot see in the rows. Empty: the format's own default."""

    score_column: str = ""
    prompt_column: str = ""
    question: str = ""
    buckets: tuple[str, ...] = ()


ReadRow = Callable[[Row, ReadOptions], Iterable[Item]]
