"""The options of `kwise data convert`."""

from dataclasses import dataclass
from enum import Enum

from kwise.errors import ConfigError
from kwise.options import check_bounds, option
from kwise.train.data.files.output import check_output
from kwise.train.data.formats.lists import names_ranks
from kwise.train.data.formats.table import FORMATS, FormatName
from kwise.train.data.rows.items import ReadOptions


class Merge(Enum):
    """Which comparisons of a prompt are merged into one ranking."""

    AUTO = "auto"
    """ANNOTATOR for formats whose rows name their annotator, else NONE."""
    NONE = "none"
    """Each comparison stays a ranking of two."""
    ANNOTATOR = "annotator"
    """Comparisons of one annotator. Rows that name none are not merged, because they may differ."""
    PROMPT = "prompt"
    """All, as if they came from one annotator."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ConvertConfig:
    """Options of `kwise data convert`."""

    input: tuple[str, ...] = option(
        help="files: JSON Lines, a JSON array, Parquet, CSV or TSV, gzipped or not; - for stdin"
    )
    output: str = option(
        "-", "output file, JSON Lines; compressed if the name ends in .gz; - for stdout"
    )
    format: FormatName | None = option(
        None, "format of the input; by default the keys of each row decide"
    )
    merge: Merge = option(
        Merge.AUTO,
        "which comparisons of a prompt to merge into one ranking if they determine one; auto is "
        "annotator for summarize and arena, else none; needs the memory of the texts",
    )
    score_column: str = option(
        "",
        "score to rank by, for nested objects a path such as annotations.helpfulness.Rating; by "
        "default the format's own",
    )
    prompt_column: str = option(
        "", "trl, argilla, label-studio: field with the prompt, if it has an unusual name"
    )
    question: str = option(
        "", "argilla, label-studio: ranking question to read; required if there are several"
    )
    buckets: tuple[str, ...] = option((), "label-studio: buckets to read, best first")
    ignore_columns: tuple[str, ...] = option(
        (),
        "columns that are refused because they change what was judged (tools, context, …), but do "
        "not matter for the labels; the report counts them",
    )
    keep_prompt: bool = option(
        False,
        "keep the text of the prompt at the beginning of responses that all begin with it, as "
        "completions of code do; else it is removed, except in kwise's own format",
    )
    keep_tied: bool = option(
        False,
        "also write rankings whose responses are all tied; kwise train reads them with --ties or "
        "--objective regression",
    )
    skip_bad: bool = option(
        False, "skip and count rows that cannot be read, instead of writing nothing"
    )
    overwrite: bool = option(False, "replace the file --output if it exists")

    def __post_init__(self) -> None:
        check_bounds(self)
        check_output(self.output, overwrite=self.overwrite)
        if self.input.count("-") > 1:
            raise ConfigError("standard input (-) can be read only once")

    def read_options(self) -> ReadOptions:
        """Return the options that formats read."""
        return ReadOptions(
            score_column=self.score_column,
            prompt_column=self.prompt_column,
            question=self.question,
            buckets=self.buckets,
            ignored_columns=self.ignore_columns,
            keep_prompt=self.keep_prompt,
        )

    def check_format(self, format_name: FormatName) -> None:
        """Raise ConfigError for an option that the format does not read, or reads otherwise."""
        is_given = {
            "--merge": self.merge is not Merge.AUTO,
            "--score-column": bool(self.score_column),
            "--prompt-column": bool(self.prompt_column),
            "--question": bool(self.question),
            "--buckets": bool(self.buckets),
        }
        form = FORMATS[format_name]
        for name, given in is_given.items():
            if given and name not in form.options:
                raise ConfigError(f"{name} has no effect on the format {format_name.value}")
        if names_ranks(self.score_column) and format_name is not FormatName.COMPLETIONS:
            # Ranks that are read as scores turn every ranking around.
            raise ConfigError(
                f"--score-column {self.score_column} names ranks, which the format "
                f"{format_name.value} does not have: give a column of scores (higher is better), "
                f"or write rows of the format {FormatName.COMPLETIONS.value}, which may have ranks"
            )
        if self.merge is Merge.ANNOTATOR and not form.has_annotators:
            raise ConfigError(
                f"--merge annotator has no effect on the format {format_name.value}, "
                "which names no annotators"
            )
