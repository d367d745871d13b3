"""`kwise data merge`: several files of rankings as one.

Rankings of the same prompt, from several annotators or several runs of one, stay separate: each is
one example, and training sees how often each order was chosen. `--combine` makes one ranking of
those that agree, which gives more pairs: a > b and b > c become a > b > c. Rankings that disagree
stay separate all the same, because a mean of ranks or a majority would hide the disagreement that
`kwise data stats` measures.
"""

import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from kwise.errors import ConfigError
from kwise.options import option
from kwise.train.data.convert.convert import ConvertedRow
from kwise.train.data.convert.json_line import json_line
from kwise.train.data.convert.report import ConversionReport
from kwise.train.data.edit.combine import NotCombined, combine
from kwise.train.data.edit.dedupe import prompt_parts, ranking_key
from kwise.train.data.files.output import check_output, open_output
from kwise.train.data.read import conversion_lines, read_rows_of_rankings
from kwise.train.rankings.open_file import check_input, display_name
from kwise.train.rankings.prompt_key import text_hash
from kwise.types import Conversation


@dataclass(frozen=True, slots=True, kw_only=True)
class MergeConfig:
    """Options of `kwise data merge`."""

    files: tuple[str, ...] = option(
        help="files of any formats that kwise data convert reads; - for stdin"
    )
    output: str = option(
        "-", "output file, JSON Lines; compressed if the name ends in .gz; - for stdout"
    )
    combine: bool = option(
        False,
        "make one ranking of the rankings of a prompt if they have responses in common and "
        "determine one order; needs the memory of the texts",
    )
    overwrite: bool = option(False, "replace the file --output if it exists")

    def __post_init__(self) -> None:
        check_output(self.output, overwrite=self.overwrite)
        if self.files.count("-") > 1:
            raise ConfigError("standard input (-) can be read only once")


def run(config: MergeConfig) -> int:
    """Write all rankings, print the counts and return 0.

    Raises:
        RankingsError: a row is bad, or a file has no ranking. Nothing is written then.
        ConfigError: a file is missing.
    """
    check_input(*config.files)
    lines: list[str] = []
    files_of_prompt: dict[int, set[int]] = {}
    keys: Counter[int] = Counter()
    rows = _rows(config, lines, files_of_prompt, keys)
    num_written = 0
    with open_output(config.output) as output:
        for row in _combined(rows, lines) if config.combine else rows:
            output.write(json_line(row.row))
            num_written += 1
    num_shared = sum(len(files) > 1 for files in files_of_prompt.values())
    lines.append(
        f"{num_written} rankings of {len(files_of_prompt)} prompts written; {num_shared} prompts "
        "are in several files"
    )
    if num_shared and not config.combine:
        lines.append(
            "note: rankings of one prompt stay separate, one for each annotator (--combine makes "
            "one of those that agree)"
        )
    if not config.combine and (num_repeated := keys.total() - len(keys)):
        lines.append(
            f"note: {num_repeated} rankings repeat another one (kwise data dedupe removes them)"
        )
    print(*lines, sep="\n", file=sys.stderr)
    return 0


def _rows(
    config: MergeConfig,
    lines: list[str],
    files_of_prompt: dict[int, set[int]],
    keys: Counter[int],
) -> Iterator[ConvertedRow]:
    """Yield the rankings of all files; add a line per file, and count prompts and rankings."""
    for index, path in enumerate(config.files):
        report = ConversionReport()
        for converted in read_rows_of_rankings(path, report, allow_tied=True):
            key = text_hash(*prompt_parts(converted.ranking.prompt))
            files_of_prompt.setdefault(key, set()).add(index)
            keys[ranking_key(converted)] += 1
            yield converted
        lines += conversion_lines(path, report)
        lines.append(f"{display_name(path)}: {report.num_rankings} rankings")


def _combined(rows: Iterator[ConvertedRow], lines: list[str]) -> Iterator[ConvertedRow]:
    by_prompt: dict[Conversation, list[ConvertedRow]] = {}
    for row in rows:
        by_prompt.setdefault(row.ranking.prompt, []).append(row)
    reasons: Counter[str] = Counter()
    num_rankings = num_combined = num_without_keys = 0
    for rows_of_prompt in by_prompt.values():
        if len(rows_of_prompt) == 1:
            yield rows_of_prompt[0]
            continue
        combined = combine([row.ranking for row in rows_of_prompt])
        if isinstance(combined, NotCombined):
            reasons[combined.value] += 1
            yield from rows_of_prompt
            continue
        num_combined += 1
        num_rankings += len(rows_of_prompt)
        num_without_keys += sum(_has_more_keys(row) for row in rows_of_prompt)
        yield combined
    lines.append(f"combined: {num_rankings} rankings into {num_combined}")
    lines += [f"not combined: {num} prompts, whose rankings {why}" for why, num in reasons.items()]
    if not num_combined and not reasons:
        lines.append("not combined: no prompt has two rankings")
    if num_without_keys:
        lines.append(
            f"note: {num_without_keys} x a combined ranking's id, source, annotator and metadata "
            "are not written"
        )


def _has_more_keys(row: ConvertedRow) -> bool:
    objects: Sequence[dict[str, object]] = [dict(row.row), *row.row["responses"]]
    return any(keys.keys() - {"prompt", "responses", "text", "rank", "score"} for keys in objects)
