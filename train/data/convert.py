"""`kwise data convert`: rows of any format in, rankings out.

    files.py ─▶ formats.py ─▶ Ranked ──────────────────────────────▶ usable? ─▶ output.py
     a row      its meaning   Compared ─▶ comparisons.py (--merge) ─▶
                              Rated ────▶ by prompt ───────────────▶

A row that is a ranking goes through before the next is read. Comparisons that are merged and scores of single responses are
held until the end, for the rows of a prompt may be anywhere: that takes the memory of the texts. Nothing goes silently: what is
left out is counted with its reason, and every line that is written has passed the check of `kwise train`.
"""

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any

from kwise.errors import ConfigError
from kwise.options import check_bounds, option
from kwise.train.data.comparisons import Comparison, merge
from kwise.train.data.files import read_rows
from kwise.train.data.formats.annotation import listed
from kwise.train.data.formats.items import (
    Compared,
    Item,
    Left,
    Ranked,
    Rated,
    ReadOptions,
    RowProblem,
)
from kwise.train.data.formats.table import FORMATS, FormatName, detect
from kwise.train.data.lines import line, usable
from kwise.train.data.output import check_output, open_output
from kwise.train.data.tally import Tally
from kwise.train.rankings.errors import MAX_PROBLEMS, RankingsError
from kwise.train.rankings.open_file import display_name
from kwise.train.rankings.schema import parse_ranking
from kwise.types import Conversation


class Merge(Enum):
    """Whose comparisons of one prompt may make one ranking."""

    AUTO = "auto"  # annotator for summarize and arena, whose rows are parts of rankings; none for the rest
    NONE = "none"  # each stays a ranking of two
    ANNOTATOR = "annotator"  # those of one annotator; rows that name none stay alone, for two of them may differ
    PROMPT = "prompt"  # all: annotators are taken for one


CONTRADICTION = "comparison contradicts others: written as a ranking of two, not merged"
SCORES_MERGED = "comparison merged with others: its scores are not written"
_NAME_ANNOTATORS = (FormatName.SUMMARIZE, FormatName.ARENA)


@dataclass(frozen=True, slots=True, kw_only=True)
class ConvertConfig:
    """Options of `kwise data convert`."""

    input: tuple[str, ...] = option(
        help="files of one format: JSON Lines, a JSON array or Parquet, .gz or not; - for stdin"
    )
    output: str = option(
        "-",
        "where the rankings go, as JSON Lines; compressed where the name ends in .gz; - for stdout",
    )
    format: FormatName | None = option(
        None, "the format of the input; unset tells it by the keys of the first row"
    )
    merge: Merge = option(
        Merge.AUTO,
        "whose comparisons of one prompt make one ranking where they determine one, in memory; auto is annotator for summarize "
        "and arena, else none",
    )
    score_column: str = option(
        "",
        "the score to rank by, by dots in nested objects: annotations.helpfulness.Rating; unset takes the format's own",
    )
    prompt_column: str = option(
        "", "trl, argilla, label-studio: the field that is the prompt, where it is not called so"
    )
    question: str = option(
        "", "argilla, label-studio: the ranking question; needed where there are several"
    )
    buckets: tuple[str, ...] = option((), "label-studio: the buckets to read, best first")
    keep_tied: bool = option(
        False,
        "write rankings that are one tie throughout, which kwise train takes with --ties or regression",
    )
    skip_bad: bool = option(
        False, "leave out rows that cannot be read, and count them, instead of writing nothing"
    )
    overwrite: bool = option(False, "replace --output")

    def __post_init__(self) -> None:
        check_bounds(self)
        check_output(self.output, overwrite=self.overwrite)
        if self.input.count("-") > 1:
            raise ConfigError("standard input (-) can be read once")

    def read_options(self) -> ReadOptions:
        return ReadOptions(
            score_column=self.score_column,
            prompt_column=self.prompt_column,
            question=self.question,
            buckets=self.buckets,
        )


def run(config: ConvertConfig) -> int:
    """Convert; what was left out is told on standard error.

    Raises:
        RankingsError: rows that cannot be read, without --skip-bad; or there is no ranking. Nothing is written then.
        ConfigError: the format cannot be told, or an option does not fit it.
    """
    tally = Tally()
    try:
        with open_output(config.output) as output:
            for written in convert(config, tally):
                output.write(written)
            if not tally.num_rankings:
                raise RankingsError([f"{', '.join(map(display_name, config.input))}: no rankings"])
    except RankingsError as error:
        raise RankingsError([*error.problems, *tally.lines(is_written=False)]) from None
    print(*tally.lines(), sep="\n", file=sys.stderr)
    return 0


def convert(config: ConvertConfig, tally: Tally) -> Iterator[bytes]:
    """The lines of the output, each with its newline.

    Raises:
        RankingsError: up to `MAX_PROBLEMS` bad rows, one problem of each, at the end of the input or when there are more.
    """
    for origin, ranked in _rankings(config, tally):
        remaining = usable(ranked, tally.left, keep_tied=config.keep_tied)
        if remaining is None:
            continue
        written = line(remaining)
        try:
            parse_ranking(written, origin=origin, allow_tied=config.keep_tied)
        except RankingsError as error:
            _bad(error.problems[0], config, tally)
            continue
        tally.num_rankings += 1
        if ranked.note:
            tally.notes[ranked.note] += 1
        yield written
    if tally.problems:
        raise RankingsError(tally.problems)


def _rankings(config: ConvertConfig, tally: Tally) -> Iterator[tuple[str, Ranked]]:
    """(FILE:ROW, ranking), those that need several rows at the end."""
    compared: dict[tuple[Conversation, str | None], list[tuple[str, Compared]]] = {}
    rated: dict[Conversation, list[tuple[str, Rated]]] = {}
    answered: dict[
        str, str
    ] = {}  # ranking question: the first row that has answers to it and none to --question
    is_answered = False
    for origin, item in _items(config, tally):
        match item:
            case Ranked():
                is_answered = True
                yield origin, item
            case Left():
                tally.left[item.what, item.reason] += item.num
                for question in item.answered:
                    answered.setdefault(question, origin)
            case Rated():
                rated.setdefault(item.prompt, []).append((origin, item))
            case Compared():
                merge_by = _merge(config.merge, tally.format)
                if merge_by is Merge.NONE or (
                    merge_by is Merge.ANNOTATOR and item.annotator is None
                ):
                    yield origin, item.alone()
                    continue
                annotator = None if merge_by is Merge.PROMPT else item.annotator
                compared.setdefault((item.prompt, annotator), []).append((origin, item))
    if config.question and answered and not is_answered and config.question not in answered:
        problem = f"no row has an answer to {config.question[:40]!a}; there are answers to {listed(answered)}"
        tally.problems.append(f"{next(iter(answered.values()))}: --question: {problem}")
    for (prompt, _), comparisons in compared.items():
        yield from (
            (comparisons[0][0], ranked)
            for ranked in _merged(prompt, [item for _, item in comparisons], tally)
        )
    for prompt, ratings in rated.items():
        responses = tuple(rating.response for _, rating in ratings)
        yield (
            ratings[0][0],
            Ranked(
                prompt=prompt,
                responses=responses,
                scores=tuple(rating.score for _, rating in ratings),
            ),
        )


def _merge(merge: Merge, format_name: FormatName | None) -> Merge:
    if merge is not Merge.AUTO:
        return merge
    return Merge.ANNOTATOR if format_name in _NAME_ANNOTATORS else Merge.NONE


def _merged(prompt: Conversation, items: Sequence[Compared], tally: Tally) -> Iterator[Ranked]:
    if len(items) == 1:
        yield items[0].alone()
        return
    if num_scored := sum(item.scores is not None for item in items):
        tally.notes[SCORES_MERGED] += num_scored
    tally.notes.update(item.note for item in items if item.note)
    merged = merge(
        [Comparison(better=item.better, worse=item.worse, tied=item.tied) for item in items]
    )
    if merged.num_contradictions:
        tally.notes[CONTRADICTION] += merged.num_contradictions
    for order in merged.orders:
        responses = tuple(response for group in order for response in group)
        ranks = tuple(rank for rank, group in enumerate(order, start=1) for _ in group)
        yield Ranked(prompt=prompt, responses=responses, ranks=ranks)


def _items(config: ConvertConfig, tally: Tally) -> Iterator[tuple[str, Item]]:
    """(FILE:ROW, item) of every row; bad rows are dealt with here."""
    options = config.read_options()
    guesses: dict[str, str] = {}
    for path in config.input:
        for number, row in read_rows(path):
            tally.num_rows += 1
            origin = f"{display_name(path)}:{number}"
            try:
                if isinstance(row, RowProblem):
                    raise row
                if not isinstance(row, dict):
                    raise RowProblem("row", "must be an object")
                if tally.format is None:
                    tally.format = config.format or _detected(origin, row)
                    _check_options(config, tally.format)
                items = list(FORMATS[tally.format].read(row, options))
                _check_guesses(items, guesses)
            except RowProblem as problem:
                _bad(f"{origin}: {problem}", config, tally)
                continue
            for item in items:
                yield origin, item


def _check_guesses(items: Sequence[Item], guesses: dict[str, str]) -> None:
    """Refuse a row for which another field or question was taken than for the rows before: it would be mixed in silently."""
    for item in items:
        for name, guess in item.guesses if isinstance(item, Ranked) else ():
            if guesses.setdefault(name, guess) != guess:
                before = guesses[name]
                raise RowProblem(
                    "row",
                    f"{name} would be {guess[:40]!a} here, but {before[:40]!a} in rows before; say which",
                )


def _detected(origin: str, row: dict[str, Any]) -> FormatName:
    if (found := detect(row)) is None:
        keys = ", ".join(key[:40] for key in list(row)[:12])
        names = ", ".join(name.value for name in FormatName)
        raise ConfigError(
            f"{origin}: the keys ({keys}) are of no format that is known; if it is one, say which: --format {names}"
        )
    return found


def _check_options(config: ConvertConfig, format_name: FormatName) -> None:
    """Refuse an option that would do nothing."""
    given = {
        "--merge": config.merge is not Merge.AUTO,
        "--score-column": bool(config.score_column),
        "--prompt-column": bool(config.prompt_column),
        "--question": bool(config.question),
        "--buckets": bool(config.buckets),
    }
    for name, is_given in given.items():
        if is_given and name not in FORMATS[format_name].options:
            raise ConfigError(f"{name} means nothing for the format {format_name.value}")
    if config.merge is Merge.ANNOTATOR and format_name not in _NAME_ANNOTATORS:
        raise ConfigError(
            f"--merge annotator means nothing for the format {format_name.value}: it names no annotators"
        )


def _bad(problem: str, config: ConvertConfig, tally: Tally) -> None:
    """Count the row, or keep its problem to tell."""
    if config.skip_bad:
        tally.left["row", "cannot be read (--skip-bad)"] += 1
        tally.first_bad = tally.first_bad or problem
        return
    if len(tally.problems) == MAX_PROBLEMS:
        raise RankingsError(
            [*tally.problems, f"stopped after {MAX_PROBLEMS} problems; there are more"]
        )
    tally.problems.append(problem)
