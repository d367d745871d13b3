"""The command `kwise train`."""

import argparse
import os
import sys
from dataclasses import fields
from typing import Any

from kwise.options import add_options, from_options
from kwise.train.options.config import TrainConfig
from kwise.train.options.model_path import check_model_path, check_template_path
from kwise.train.options.recipe import ListRecipes, as_options, read_recipe
from kwise.train.rankings.errors import RankingsError
from kwise.train.rankings.open_file import check_input, display_name

_NOT_GIVEN = object()

_EPILOG = """\
Each line of DATA has a prompt (a string, or the messages before the assistant's) and K >= 2
responses. Each response has a rank (1 is the best, equal ranks are ties), or each has a score
(higher is better):

  {"prompt": "Why is the sky blue?",
   "responses": [{"text": "Air scatters ...", "rank": 1}, {"text": "Paint.", "rank": 2}]}

Other formats, and CSV, Parquet and JSON arrays, are converted on the way as by kwise data convert.
--validation takes the same formats.

DIR becomes a plain Hugging Face checkpoint (AutoModelForSequenceClassification with one label, or
with one for each of --heads) with tokenizer, chat template, training_report.json and README.md, a
model card. With --lora-rank the adapters are merged; DIR/adapter has them as well. DIR is written
when training has finished, in one step. Until then DIR.unfinished holds the run. To continue a run
that was killed, give the same command and --resume.

Several devices: torchrun --nproc_per_node N -m kwise train DATA ... computes the same in N
processes.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `TrainConfig`."""
    parser.usage = "%(prog)s DATA --model MODEL --output DIR [--recipe NAME] [options]"
    parser.epilog = _EPILOG
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    add_options(parser, TrainConfig)
    parser.add_argument(
        "--list-recipes", action=ListRecipes, help="print the recipes with their sources, and exit"
    )
    # Shows which options were given: the others may come from a recipe.
    parser.set_defaults(
        **{field.name: _NOT_GIVEN for field in fields(TrainConfig) if field.name != "data"}
    )


def recipe_of(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return the options that the recipe sets, without those that the command line overrides.

    Raises:
        ConfigError: the recipe cannot be used.
        OSError: the recipe cannot be read.
    """
    if arguments.recipe is _NOT_GIVEN:
        return {}
    recipe = read_recipe(arguments.recipe)
    if arguments.validation is not _NOT_GIVEN:
        recipe.pop("validation_fraction", None)  # the two exclude each other
    return {name: v for name, v in recipe.items() if getattr(arguments, name) is _NOT_GIVEN}


def config_of(arguments: argparse.Namespace) -> TrainConfig:
    """Return the options that were given, else those of the recipe, else the defaults.

    Raises:
        ConfigError: an option is missing or out of range, or the recipe cannot be used.
        OSError: the recipe cannot be read.
    """
    recipe = recipe_of(arguments)
    for field in fields(TrainConfig):
        if getattr(arguments, field.name) is _NOT_GIVEN:
            setattr(arguments, field.name, recipe.get(field.name, field.default))
    return from_options(TrainConfig, arguments)


def run(arguments: argparse.Namespace) -> int:
    """Train, and print the validation before and after.

    Return the exit code: 0, or 1 if the data cannot be used or a loss or weight is not finite.
    """
    recipe = recipe_of(arguments)
    if recipe and os.environ.get("RANK", "0") == "0":  # the main process of a launcher
        # Before the options are checked, because one of the recipe may exclude one that was given.
        print(f"recipe {arguments.recipe}: {as_options(recipe)}", file=sys.stderr)
    config = config_of(arguments)
    check_input(*_files(config))
    check_model_path("--model", config.model)
    check_template_path(config.chat_template)
    # Imported late, because torch and transformers take seconds: --help and a wrong option must
    # not.
    from kwise.train.run.training import train
    from kwise.train.run.unfinished_run import UnfinishedRun
    from kwise.train.step.losses import NotFinite

    try:
        report = train(config)
    except RankingsError as error:
        print(error, file=sys.stderr)  # each problem begins with FILE:LINE
        files = " with --validation ".join(map(display_name, _files(config)))
        print(f"kwise train: {files} cannot be used", file=sys.stderr)
        return 1
    except NotFinite as error:
        print(
            f"kwise train: {error}; no checkpoint is written; {UnfinishedRun(config.output).path} "
            "has the run so far",
            file=sys.stderr,
        )
        return 1
    if report.files:  # only in the main process
        print(report.text())
        print(f"checkpoint: {config.output}")
    return 0


def _files(config: TrainConfig) -> list[str]:
    """Return the files of rankings that a run reads."""
    return [config.data] if config.validation is None else [config.data, config.validation]
