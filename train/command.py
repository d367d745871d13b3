"""`kwise train`: the command line of `training.train`."""

import argparse
import sys
from dataclasses import fields

from kwise.options import add_options, from_options
from kwise.train.options.config import TrainConfig
from kwise.train.options.recipe import ListRecipes, read_recipe
from kwise.train.rankings.errors import RankingsError

_NOT_GIVEN = object()

_EPILOG = """\
Each line of DATA is a prompt (a text, or messages before the assistant's turn) and K >= 2 responses, each with a rank
(1 is the best, equal ranks are ties) or each with a score (higher is better):

  {"prompt": "Why is the sky blue?", "responses": [{"text": "Air scatters ...", "rank": 1}, {"text": "Paint.", "rank": 2}]}

DIR gets a plain Hugging Face checkpoint (AutoModelForSequenceClassification with one label) with tokenizer and chat
template, training_report.json, and README.md, a model card. With --lora-rank the adapters are merged, and DIR/adapter has
them as well. A run that was killed goes on with the same command and --resume.

Several devices: torchrun --nproc_per_node N -m kwise train DATA ... computes the same in N processes.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `TrainConfig`."""
    parser.usage = "%(prog)s DATA --model MODEL --output DIR [--recipe NAME] [options]"
    parser.epilog = _EPILOG
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    add_options(parser, TrainConfig)
    parser.add_argument(
        "--list-recipes", action=ListRecipes, help="print the recipes and where they come from"
    )
    # So that `run` can tell what was given from what was not.
    parser.set_defaults(
        **{field.name: _NOT_GIVEN for field in fields(TrainConfig) if field.name != "data"}
    )


def config_of(arguments: argparse.Namespace) -> TrainConfig:
    """What was given, else what the recipe says, else the defaults.

    Raises:
        ConfigError: an option is missing or out of range, or the recipe is not right.
    """
    recipe = read_recipe(arguments.recipe) if arguments.recipe is not _NOT_GIVEN else {}
    for field in fields(TrainConfig):
        if getattr(arguments, field.name) is _NOT_GIVEN:
            setattr(arguments, field.name, recipe.get(field.name, field.default))
    return from_options(TrainConfig, arguments)


def run(arguments: argparse.Namespace) -> int:
    """Train, and print the validation before and after. 0, or 1 where the data is not usable or a loss is not finite."""
    config = config_of(arguments)
    # Here, because torch and transformers take seconds to import: --help and a wrong option answer before.
    from kwise.train.run.training import train
    from kwise.train.step.losses import NotFinite

    try:
        report = train(config)
    except RankingsError as error:
        print(error, file=sys.stderr)  # each problem begins with FILE:LINE
        print(f"kwise train: {config.data} cannot be trained on", file=sys.stderr)
        return 1
    except NotFinite as error:
        print(
            f"kwise train: {error}; no checkpoint is written, {config.output}/steps has the run so far",
            file=sys.stderr,
        )
        return 1
    if report.files:  # of several processes one has written them
        print(report.text())
        print(f"checkpoint: {config.output}")
    return 0
