"""The contents of a row of preference data, in one vocabulary for all formats.

    row ──format──▶ RankedResponses   a whole ranking
                    ComparedPair      two responses; `merge_comparisons.py` makes rankings of pairs
                    ScoredResponse    one response; those of one prompt make a ranking
                    Skipped           a part that cannot be used, and the reason

A format reads one row. It knows neither files nor other rows; `convert/` combines the items of
all rows and knows no formats.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from kwise.train.data.rows.row import Row
from kwise.types import Conversation

WHOLE_ROW = "row"
"""The field of a problem that is not about one column."""


class RowProblem(ValueError):
    """A row that cannot be read: "field: problem". The reader of the file adds file and row.

    Attributes:
        field: the column, with the place in it; WHOLE_ROW if it is not about one.
        problem: what is wrong with it.
    """

    def __init__(self, field: str, problem: str) -> None:
        super().__init__(f"{field}: {problem}")
        self.field = field
        self.problem = problem


@dataclass(frozen=True, slots=True, kw_only=True)
class RankedResponses:
    """K responses to one prompt, with ranks (lower is better) or scores (higher is better).

    note: a remark to count in the report if the ranking is written.
    row: a row in kwise's schema as it was given, if nothing of it may be left out or changed; the
        other fields are not used then.
    ranking_keys: ids and metadata to write with the ranking.
    response_keys: those to write with each response, if there are any.
    guesses: (option, value) for each option that was not given and whose value was derived from
        the row. All rows of the input must agree on them.
    """

    prompt: Conversation
    responses: tuple[str, ...]
    ranks: tuple[int, ...] | None = None
    scores: tuple[float, ...] | None = None
    note: str = ""
    row: Mapping[str, Any] | None = None
    ranking_keys: Mapping[str, Any] = field(default_factory=dict)
    response_keys: tuple[Mapping[str, Any], ...] = ()
    guesses: tuple[tuple[str, str], ...] = ()

    def texts(self) -> tuple[str, ...]:
        """Return the texts of the responses."""
        return self.responses

    def with_texts(self, prompt: Conversation, texts: tuple[str, ...]) -> "RankedResponses":
        """Return the item with another prompt and other texts of the same responses."""
        return replace(self, prompt=prompt, responses=texts)

    def sort_keys(self) -> tuple[float, ...]:
        """Return one number per response; lower is better."""
        if self.ranks is not None:
            return self.ranks
        assert self.scores is not None, "a ranking has ranks or scores"
        return tuple(-score for score in self.scores)


@dataclass(frozen=True, slots=True, kw_only=True)
class ComparedPair:
    """Two responses to one prompt: `better` is preferred to `worse`, or they are tied.

    annotator: who compared them; None if the data does not say.
    scores: of better and worse, only if they agree with the preference.
    """

    prompt: Conversation
    better: str
    worse: str
    tied: bool = False
    annotator: str | None = None
    scores: tuple[float, float] | None = None
    note: str = ""

    def texts(self) -> tuple[str, ...]:
        """Return the texts of the responses, the better one first."""
        return (self.better, self.worse)

    def with_texts(self, prompt: Conversation, texts: tuple[str, ...]) -> "ComparedPair | Skipped":
        """Return the item with another prompt and other texts of the same responses."""
        better, worse = texts
        if better == worse:
            return Skipped(what="row", reason="both responses are the same")
        return replace(self, prompt=prompt, better=better, worse=worse)

    def as_ranking(self) -> RankedResponses:
        """Return the ranking of the two responses."""
        ranks = None if self.scores else ((1, 1) if self.tied else (1, 2))
        return RankedResponses(
            prompt=self.prompt,
            responses=(self.better, self.worse),
            ranks=ranks,
            scores=self.scores,
            note=self.note,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoredResponse:
    """One response and its score; higher is better."""

    prompt: Conversation
    response: str
    score: float

    def texts(self) -> tuple[str, ...]:
        """Return the text of the response."""
        return (self.response,)

    def with_texts(self, prompt: Conversation, texts: tuple[str, ...]) -> "ScoredResponse":
        """Return the item with another prompt and another text."""
        return replace(self, prompt=prompt, response=texts[0])


@dataclass(frozen=True, slots=True, kw_only=True)
class Skipped:
    """A part of the input that is not written: `num` × `what` ("row", "response", …).

    answered: the ranking questions that the row answers, if it does not answer --question. If no
        row of the input answers it, the option is misspelt.
    """

    what: str
    reason: str
    num: int = 1
    answered: tuple[str, ...] = ()


RowItem = RankedResponses | ComparedPair | ScoredResponse | Skipped


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadOptions:
    """Options of the user that tell a format what the rows do not say. Empty: use the default."""

    score_column: str = ""
    prompt_column: str = ""
    question: str = ""
    buckets: tuple[str, ...] = ()
    ignored_columns: tuple[str, ...] = ()
    keep_prompt: bool = False


ReadRow = Callable[[Row, ReadOptions], Iterable[RowItem]]
