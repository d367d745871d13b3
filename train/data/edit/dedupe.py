"""`kwise data dedupe`: remove rankings that repeat an earlier one.

A ranking repeats another one if prompt, responses, labels and annotator are equal; the order in
which the responses are written does not matter. The same responses with other labels are a second
judgement, and so is the same ranking by another annotator: both teach something, and stay.
"""

import sys
from dataclasses import dataclass

from kwise.options import option
from kwise.train.data.convert.convert import ConvertedRow
from kwise.train.data.convert.json_line import json_line
from kwise.train.data.convert.report import ConversionReport
from kwise.train.data.files.output import check_output, open_output
from kwise.train.data.read import conversion_lines, read_rows_of_rankings
from kwise.train.rankings.open_file import check_input, display_name
from kwise.train.rankings.prompt_key import text_hash
from kwise.train.rankings.schema import Ranking
from kwise.types import Conversation


@dataclass(frozen=True, slots=True, kw_only=True)
class DedupeConfig:
    """Options of `kwise data dedupe`."""

    file: str = option(help="file of any format that kwise data convert reads; - for stdin")
    output: str = option(
        "-", "output file, JSON Lines; compressed if the name ends in .gz; - for stdout"
    )
    ignore_labels: bool = option(
        False,
        "also remove a ranking of the same responses that has other ranks or scores, or another "
        "annotator; the first one stays",
    )
    overwrite: bool = option(False, "replace the file --output if it exists")

    def __post_init__(self) -> None:
        check_output(self.output, overwrite=self.overwrite)


def run(config: DedupeConfig) -> int:
    """Write the rankings that repeat no earlier one, print the counts and return 0.

    Raises:
        RankingsError: a row is bad, or there is no ranking. Nothing is written then.
        ConfigError: the file is missing.
    """
    check_input(config.file)
    report = ConversionReport()
    contents: set[int] = set()
    wholes: set[int] = set()
    num_removed = num_other_labels = 0
    with open_output(config.output) as output:
        for converted in read_rows_of_rankings(config.file, report, allow_tied=True):
            content, whole = _content(converted.ranking), ranking_key(converted)
            is_repeated = content in contents
            if whole in wholes or (config.ignore_labels and is_repeated):
                num_removed += 1
            else:
                num_other_labels += is_repeated
                output.write(json_line(converted.row))
            contents.add(content)
            wholes.add(whole)
    num_read = report.num_rankings
    print(
        *conversion_lines(config.file, report),
        f"{display_name(config.file)}: {num_read} rankings read, {num_removed} repeated ones "
        f"removed, {num_read - num_removed} written",
        sep="\n",
        file=sys.stderr,
    )
    if num_other_labels:
        print(
            f"note: {num_other_labels} x the same prompt and responses as an earlier ranking, with "
            "other labels or another annotator: kept (--ignore-labels removes them)",
            file=sys.stderr,
        )
    return 0


def _content(ranking: Ranking) -> int:
    """Return a hash of prompt and responses, in any order; 128 bits, because it removes data."""
    return text_hash(*prompt_parts(ranking.prompt), *sorted(ranking.responses), num_bytes=16)


def ranking_key(converted: ConvertedRow) -> int:
    """Return a hash of all that makes a ranking another one: also labels and annotator."""
    ranking = converted.ranking
    labels = ranking.scores or ranking.ranks
    labelled = sorted(zip(ranking.responses, map(str, labels), strict=True))
    annotator = repr(converted.row.get("annotator"))
    is_scored = str(ranking.scores is not None)
    parts = (part for pair in labelled for part in pair)
    return text_hash(annotator, is_scored, *prompt_parts(ranking.prompt), *parts, num_bytes=16)


def prompt_parts(prompt: Conversation) -> tuple[str, ...]:
    """Return the texts of a prompt, after their number."""
    turns = [part for message in prompt for part in (message.role, message.content)]
    return (str(len(turns)), *turns)
