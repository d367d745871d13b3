"""The forms of the output: what is written of a group. One entry of the table holds one form."""

from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any

from kwise.bulk.input.row import InputRow
from kwise.bulk.output.digits import float32_digits, member_digits
from kwise.bulk.output.names import FormName, PairChoice
from kwise.bulk.output.pairs import chosen_pairs
from kwise.bulk.output.parquet import is_optional
from kwise.comparison import ranks, win_probability
from kwise.errors import ConfigError
from kwise.types import Group, Message, Reward, ScoredGroup

Fields = dict[str, Any]
ColumnTypes = dict[str, str | None]
"""The columns of the output, in order, with their types; None for the type of the values."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FormOptions:
    """The options of the forms.

    Attributes:
        texts: write the texts of the prompt and the responses, also where indices would do.
        top_k: the most responses that `top-k` writes of a group.
        pairs: the pairs that `pairs` writes of a group.
        min_margin: the smallest margin of a pair.
    """

    texts: bool
    top_k: int
    pairs: PairChoice
    min_margin: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Scored:
    """A row of the input whose group was scored, as the forms see it.

    Attributes:
        row: the row of the input.
        group: its group.
        raw: the raw reward of each response; None if it was not scored.
        rewards: the value of each reward with the digits of float32; None if it was not scored.
        ranks: the rank of each response; None if it was not scored.
        order: the indices of the responses that were scored, the best first. Equal rewards stay
            in the order of the input.
        members: "std", "min" and "members" of each reward, None if it was not scored; empty if the
            model has no members.
    """

    row: InputRow
    group: Group
    raw: tuple[float | None, ...]
    rewards: tuple[float | None, ...]
    ranks: tuple[int | None, ...]
    order: tuple[int, ...]
    members: Mapping[str, Sequence[Any]] = field(default_factory=dict)

    @classmethod
    def of(cls, row: InputRow, scored: ScoredGroup) -> "Scored":
        """Return what the forms need of a row and its result."""
        assert row.group is not None, "the row was scored"
        raw = tuple(r.raw if isinstance(r, Reward) else None for r in scored.rewards)
        ranked = ranks(scored.rewards)
        order = [(rank, index) for index, rank in enumerate(ranked) if rank is not None]
        return cls(
            row=row,
            group=row.group,
            raw=raw,
            rewards=tuple(None if v is None else float32_digits(v) for v in scored.values),
            ranks=tuple(ranked),
            order=tuple(index for _, index in sorted(order)),
            members=_members(scored),
        )

    def prompt(self) -> Any:
        """Return the prompt as the row has it, in messages if it is text, else token ids."""
        return _messages(self.group.prompt)

    def response(self, index: int) -> Any:
        """Return a response: its text or its token ids."""
        response = self.group.responses[index]
        return response if isinstance(response, str) else list(response)


def _members(scored: ScoredGroup) -> dict[str, Sequence[Any]]:
    """Return the columns of a model with members; none for another model."""
    fields = [member_digits(r) if isinstance(r, Reward) else {} for r in scored.rewards]
    names = next((each.keys() for each in fields if each), ())
    return {name: [each.get(name) for each in fields] for name in names}


@dataclass(frozen=True, slots=True, kw_only=True)
class Form:
    """A form of the output: the rows that are written of a group.

    Attributes:
        rows: yields the rows of the output of a group.
        types: the columns after `row`, with their types; see `kwise.bulk.output.parquet`. Those
            that end with "?" are in the output of models with members only.
        types_with_texts: the same if texts are written.
        texts: whether texts are written unless the user chooses.
        has_number: whether a row of the output begins with the number of the row of the input.
        summary: for the help.
    """

    rows: Callable[[Scored, FormOptions], Iterator[Fields]]
    types: ColumnTypes
    types_with_texts: ColumnTypes
    summary: str
    texts: bool = False
    has_number: bool = True

    def columns(self, kept: Sequence[str], *, texts: bool) -> ColumnTypes:
        """Return the columns of the output with their types, in order.

        Args:
            kept: the columns that are copied from the input.
            texts: whether texts are written.

        Raises:
            ConfigError: a column that is copied has the name of another one.
        """
        number: ColumnTypes = {"row": "long"} if self.has_number else {}
        own = self.types_with_texts if texts else self.types
        check_kept(kept, {*number, *(name for name, text in own.items() if not is_optional(text))})
        return {**number, **dict.fromkeys(kept), **own}


def check_kept(kept: Iterable[str], own: Container[str]) -> None:
    """Check that no column that is copied has the name of one of the output's own.

    Raises:
        ConfigError: one has; names it.
    """
    if both := next((name for name in kept if name in own), None):
        raise ConfigError(
            f"--keep names {both!r}, but the output has a column of that name; rename the "
            "column of the input, or leave it out of --keep"
        )


def _rewards(scored: Scored, options: FormOptions) -> Iterator[Fields]:
    yield _with_texts(scored, options, {"rewards": scored.rewards, **scored.members})


def _ranks(scored: Scored, options: FormOptions) -> Iterator[Fields]:
    fields = {"ranks": scored.ranks, "rewards": scored.rewards, **scored.members}
    yield _with_texts(scored, options, fields)


def _best(scored: Scored, options: FormOptions) -> Iterator[Fields]:
    if scored.order:
        best = scored.order[0]
        fields: Fields = {"best": best, "reward": scored.rewards[best]}
        fields |= {name: column[best] for name, column in scored.members.items()}
        if options.texts:
            fields |= {"prompt": scored.prompt(), "response": scored.response(best)}
        yield fields


def _top_k(scored: Scored, options: FormOptions) -> Iterator[Fields]:
    if top := scored.order[: options.top_k]:
        fields: Fields = {"top": top}
        for name, column in {"rewards": scored.rewards, **scored.members}.items():
            fields[name] = [column[index] for index in top]
        if options.texts:
            responses = [scored.response(index) for index in top]
            fields |= {"prompt": scored.prompt(), "responses": responses}
        yield fields


def _pairs(scored: Scored, options: FormOptions) -> Iterator[Fields]:
    for chosen, rejected, margin in chosen_pairs(
        scored.raw, scored.order, options.pairs, options.min_margin
    ):
        if options.texts:
            yield {
                "prompt": scored.prompt(),
                "chosen": _reply(scored.response(chosen)),
                "rejected": _reply(scored.response(rejected)),
                "margin": float32_digits(margin),
            }
        else:
            yield {
                "row": scored.row.number,
                "chosen_index": chosen,
                "rejected_index": rejected,
                "margin": float32_digits(margin),
            }


def _matrix(scored: Scored, options: FormOptions) -> Iterator[Fields]:
    num_responses = len(scored.raw)
    matrix: list[list[float | None]] = [[None] * num_responses for _ in range(num_responses)]
    for index, value in enumerate(scored.raw):
        matrix[index][index] = None if value is None else 0.5
    for first, second in combinations(range(num_responses), 2):
        a, b = scored.raw[first], scored.raw[second]
        if a is not None and b is not None:
            matrix[first][second] = float32_digits(win_probability(a - b))
            matrix[second][first] = float32_digits(win_probability(b - a))
    yield _with_texts(scored, options, {"win_probabilities": matrix})


def _with_texts(scored: Scored, options: FormOptions, fields: Fields) -> Fields:
    if options.texts:
        responses = [scored.response(index) for index in range(len(scored.raw))]
        fields |= {"prompt": scored.prompt(), "responses": responses}
    return fields


def _messages(prompt: Any) -> Any:
    if isinstance(prompt[0], Message):
        return [{"role": message.role, "content": message.content} for message in prompt]
    return list(prompt)


def _reply(response: Any) -> Any:
    """Return a response as the messages that follow the prompt, which TRL calls conversational."""
    if isinstance(response, str):
        return [{"role": "assistant", "content": response}]
    return response


_REWARDS: ColumnTypes = {
    "rewards": "list<float>",
    "std": "list<float>?",
    "min": "list<float>?",
    "members": "list<list<float>>?",
}
_RANKS: ColumnTypes = {"ranks": "list<int>", **_REWARDS}
_BEST: ColumnTypes = {
    "best": "int",
    "reward": "float",
    "std": "float?",
    "min": "float?",
    "members": "list<float>?",
}
_TOP: ColumnTypes = {"top": "list<int>", **_REWARDS}
_MATRIX: ColumnTypes = {"win_probabilities": "list<list<float>>"}
_GROUP_TEXTS: ColumnTypes = {"prompt": None, "responses": None}

FORMS: dict[FormName, Form] = {
    FormName.REWARDS: Form(
        rows=_rewards,
        types=_REWARDS,
        types_with_texts=_REWARDS | _GROUP_TEXTS,
        summary="the reward of each response",
    ),
    FormName.RANKS: Form(
        rows=_ranks,
        types=_RANKS,
        types_with_texts=_RANKS | _GROUP_TEXTS,
        summary="the rank of each response, 1 for the best, and its reward",
    ),
    FormName.BEST: Form(
        rows=_best,
        types=_BEST,
        types_with_texts={**_BEST, "prompt": None, "response": None},
        summary="the index of the best response, from 0, and its reward",
    ),
    FormName.TOP_K: Form(
        rows=_top_k,
        types=_TOP,
        types_with_texts=_TOP | _GROUP_TEXTS,
        summary="the indices of the --top-k best responses, and their rewards",
    ),
    FormName.PAIRS: Form(
        rows=_pairs,
        types={"row": "long", "chosen_index": "int", "rejected_index": "int", "margin": "float"},
        types_with_texts={"prompt": None, "chosen": None, "rejected": None, "margin": "float"},
        summary="pairs with the columns of TRL's DPO: prompt, chosen, rejected, margin",
        texts=True,
        has_number=False,
    ),
    FormName.MATRIX: Form(
        rows=_matrix,
        types=_MATRIX,
        types_with_texts=_MATRIX | _GROUP_TEXTS,
        summary="the probability that each response is preferred to each other one",
    ),
}
