"""`kwise data split`: a training and a validation file without a prompt in common."""

import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from kwise.errors import ConfigError
from kwise.options import check_bounds, option
from kwise.train.data.convert.json_line import json_line
from kwise.train.data.convert.report import ConversionReport
from kwise.train.data.files.output import STDOUT, check_output, open_output
from kwise.train.data.read import conversion_lines, read_rows_of_rankings
from kwise.train.rankings.open_file import check_input, display_name
from kwise.train.rankings.split import PromptSplit


@dataclass(frozen=True, slots=True, kw_only=True)
class SplitConfig:
    """Options of `kwise data split`."""

    file: str = option(help="file of any format that kwise data convert reads; - for stdin")
    train: str = option("train.jsonl", "output file for training; gzipped if it ends in .gz")
    validation: str = option("validation.jsonl", "output file for validation; likewise")
    validation_fraction: float = option(
        0.1,
        "fraction of the distinct prompts for validation, each with all of its rankings",
        exclusive_minimum=0,
        maximum=0.9,
    )
    seed: int = option(0, "seed of the choice of prompts", minimum=0, maximum=2**32 - 1)
    overwrite: bool = option(False, "replace the output files if they exist")

    def __post_init__(self) -> None:
        check_bounds(self)
        for flag, path in (("--train", self.train), ("--validation", self.validation)):
            if path == STDOUT:
                raise ConfigError(f"{flag} must be a file; standard output takes only one part")
            check_output(path, overwrite=self.overwrite, flag=flag)
        if Path(self.train).resolve() == Path(self.validation).resolve():
            raise ConfigError(f"--train and --validation are the same file, {self.train}")


def run(config: SplitConfig) -> int:
    """Write both files, print the numbers of rankings and prompts, and return 0.

    Raises:
        RankingsError: a row is bad, or there are fewer than two distinct prompts.
        ConfigError: the file is missing.
    """
    check_input(config.file)
    report, split = ConversionReport(), PromptSplit(config.seed)
    # The lines wait in a temporary file, because they may not fit into memory, and standard input
    # cannot be read twice.
    with tempfile.TemporaryFile() as lines:
        keys = []
        for converted in read_rows_of_rankings(config.file, report, allow_tied=True):
            keys.append(split.add(converted.ranking.prompt))
            lines.write(json_line(converted.row))
        validation_keys = split.validation_keys(config.validation_fraction)
        lines.seek(0)
        with open_output(config.train) as train, open_output(config.validation) as validation:
            for key, line in zip(keys, lines, strict=True):
                (validation if key in validation_keys else train).write(line)
    num_validation = sum(key in validation_keys for key in keys)
    num_prompts, num_validation_prompts = len(set(keys)), len(validation_keys)
    print(
        *conversion_lines(config.file, report),
        f"{display_name(config.file)}: {len(keys)} rankings of {num_prompts} prompts",
        f"{config.train}: {len(keys) - num_validation} rankings of "
        f"{num_prompts - num_validation_prompts} prompts",
        f"{config.validation}: {num_validation} rankings of {num_validation_prompts} prompts, none "
        f"of which is in {config.train} (white space and case are ignored)",
        sep="\n",
        file=sys.stderr,
    )
    return 0
